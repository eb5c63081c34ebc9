"""MATLAB files, read by SciPy in a process of its own: on broken bytes its reader may crash, or ask for any memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MOST_BYTES = 4 << 30
"""What the process may ask for: the largest file that is read here needs a hundredth of it."""
MOST_SECONDS = 120


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a file by name: of an array of structs the lists of its fields, by name; of any other the list
    of its values. Values are numbers or text.

    Raises:
        DataError: the file does not read as a MATLAB file.
    """
    from divcon.errors import DataError

    answer: dict[str, Any]
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__, str(path)], capture_output=True, timeout=MOST_SECONDS, check=False
        )
        answer = json.loads(done.stdout) if not done.returncode else {"error": _last_words(done)}
    except (subprocess.TimeoutExpired, ValueError, RecursionError) as error:
        answer = {"error": str(error)}
    if "error" in answer:
        raise DataError(
            f"{path}: does not read as a MATLAB file ({answer['error']}); unpack the original archive again"
        )
    return answer["variables"]


def _last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"SciPy's reader crashed on it, by signal {-done.returncode}"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"SciPy's reader ended with {done.returncode}"


def _variables(path: str) -> dict[str, Any]:
    import numpy as np
    import scipy.io

    def plain(value: Any) -> Any:
        value = value.item() if isinstance(value, (np.ndarray, np.generic)) and value.size == 1 else value
        return value if isinstance(value, (str, int, float)) else str(value)

    variables = {}
    for name, held in scipy.io.loadmat(path, squeeze_me=True).items():
        array = np.atleast_1d(held) if not name.startswith("__") else None
        if array is not None and array.dtype.names:
            variables[name] = {field: [plain(value) for value in array[field].ravel()] for field in array.dtype.names}
        elif array is not None:
            variables[name] = [plain(value) for value in array.ravel()]
    return variables


def _main(path: str) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # not on Windows, and not where less is allowed already
    try:
        answer = {"variables": _variables(path)}
    except Exception as error:  # broken bytes bring about whatever its reader did not think of
        answer = {"error": str(error) or type(error).__name__}
    sys.stdout.buffer.write(json.dumps(answer).encode())


if __name__ == "__main__":
    _main(sys.argv[1])
