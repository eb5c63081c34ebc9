"""A long run holds no more after a hundred divisions than after fifty: memory, open files, processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.heavy


def long_run(kind: str, divisions: int, learners: int, checkpoint: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("long_run.py")), kind, str(divisions), str(learners)]
    # oneDNN, and PyTorch's own cache in front of it, keep 1,024 kernels each, one for each size of a batch: they gather
    # for hundreds of divisions, and would hide a leak.
    environment = {**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "1"}
    done = subprocess.run([*command, str(checkpoint)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    usage = json.loads(done.stdout)
    half, last = usage["allocated"][divisions // 2], usage["allocated"][-1]
    print(
        f"{kind}, K {learners}: {half:.0f} MiB after {divisions // 2} divisions, {last:.0f} after {divisions}; "
        f"open files {max(usage['files'])}, {usage['files_after']} in the end; workers left {usage['children_after']}"
    )
    return usage


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "learners"), [("vectors", 4), ("images", 4), ("images", 64)])
def test_a_hundred_divisions(kind: str, learners: int, tmp_path: Path) -> None:
    usage = long_run(kind, 100, learners, tmp_path / "checkpoint")
    allocated = np.array(usage["allocated"])
    assert allocated[-10:].mean() - allocated[45:55].mean() < 1
    assert max(usage["files"][5:]) <= max(usage["files"][:5])
    assert set(usage["children"]) == {2 if kind == "images" else 0}
    assert usage["children_after"] == 0


def test_files_are_closed_and_processes_end(tmp_path: Path) -> None:
    usage = long_run("images", 10, 16, tmp_path / "checkpoint")
    assert len(set(usage["files"][2:])) == 1
    assert set(usage["children"]) == {2}
    assert usage["children_after"] == 0
    assert usage["files_after"] < usage["files"][-1]
