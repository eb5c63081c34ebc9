"""Files that are broken, or made to break what reads them: each gives its value or an error of divcon's own."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import divcon as dc
from divcon.errors import DataError

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent
EXAMPLES = int(os.environ.get("DIVCON_FUZZ_EXAMPLES", "0"))
"""Of each target; 0: a few, the same ones each time."""


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", HERE / "mutations.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


mutations = _module()
TARGETS = mutations.targets()
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["overwrite", "insert", "cut", "end", "double"]),
        st.integers(0, 1 << 20),
        st.binary(min_size=1, max_size=6)
        | st.sampled_from(
            [b"\xff" * 8, b"\0" * 8, b"\x7f\xff\xff\xff", b"'", b'"', b"{", b"[", b"-1", b"1e999", b"NaN"]
        ),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a whole file for each target."""
    made = {}
    for name, target in TARGETS.items():
        made[name] = tmp_path_factory.mktemp("whole")
        target.write(made[name] / name)
    return made


def attempt(name: str, whole: Path, content: bytes) -> Any:
    """Read a file of this content, of the name of the target, with what lies beside it."""
    folder = Path(tempfile.mkdtemp(prefix="divcon-fuzz-"))
    try:
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        (folder / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return TARGETS[name].read(folder / name)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", TARGETS)
def test_undamaged_files_are_read(name: str, wholes: dict[str, Path]) -> None:
    attempt(name, wholes[name], (wholes[name] / name).read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_broken_it_gives_a_value_or_an_error_of_divcon_s(name: str, wholes: dict[str, Path]) -> None:
    whole = (wholes[name] / name).read_bytes()

    tried = 0

    @settings(
        max_examples=EXAMPLES or 40,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS)
    def check(edits: list[tuple[str, int, bytes]]) -> None:
        nonlocal tried
        tried += 1
        try:
            attempt(name, wholes[name], mutations.broken(whole, edits))
        except mutations.EXPECTED as error:
            assert str(error)
        except RecursionError:
            raise AssertionError("nested without end") from None

    check()
    assert tried >= (EXAMPLES or 40)


FOUND = [
    ("vectors.parquet", ("overwrite", 0, b"\xff" * 8)),
    ("encoded.parquet", ("overwrite", 0, b"\xff" * 8)),
    ("rows.jsonl", ("overwrite", 2, b"\x80")),
    ("rows.jsonl", ("overwrite", 10, b"\x80")),
    ("rows.jsonl", ("overwrite", 11, b"\x80")),
    ("rows.jsonl", ("overwrite", 30238, b"\x80")),
    *(("weights.pth", ("overwrite", 0, letter)) for letter in (b"a", b"b", b"c", b"e")),
    ("weights.pth", ("overwrite", 99, b"\xff" * 8)),
    ("weights.pth", ("overwrite", 1129, b"e")),
    ("config.json", ("overwrite", 556, b" ")),
]
"""What other errors came of before."""


@pytest.mark.parametrize(("name", "edit"), FOUND)
def test_earlier_findings_are_errors_of_divcon(
    name: str, edit: tuple[str, int, bytes], wholes: dict[str, Path]
) -> None:
    whole = (wholes[name] / name).read_bytes()
    with pytest.raises(mutations.EXPECTED):
        attempt(name, wholes[name], mutations.broken(whole, [edit]))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\xff\xfe" * 40, b"[" * 20_000, b'{"a":' * 20_000], ids=range(5))
def test_something_else_altogether(name: str, content: bytes, wholes: dict[str, Path]) -> None:
    try:
        attempt(name, wholes[name], content)
    except mutations.EXPECTED as error:
        assert str(error)


def test_no_pickle_is_ever_loaded() -> None:
    """Of what can run code in a file that it reads, the source has nothing but PyTorch's reader of tensors alone."""
    source = Path(__file__).parents[2] / "src"
    for path in source.rglob("*.py"):
        text = path.read_text()
        # What the processes of one Ray cluster send each other, as Ray itself does.
        if path.parts[-2:] == ("search", "sources.py"):
            assert text.count("pickle.loads(content)") == 1
            text = text.replace("pickle.loads(content)", "")
        for call in re.finditer(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "weights_only=True" in call[0], f"{path}: {call[0]}"
        for never in (
            r"pickle\.loads?\(",
            r"allow_pickle=True",
            r"joblib",
            r"yaml\.(unsafe_|full_)?load\(",
            r"\beval\(\w",
        ):
            assert not re.search(never, re.sub(r"\.eval\(|#.*", "", text)), f"{path}: {never}"


def test_a_parquet_on_whose_size_statistics_pyarrow_aborts() -> None:
    """`make fuzz-guided` found it: asked for the numbers of its column of images, PyArrow ended the process."""
    with pytest.raises(DataError, match=r"size_statistics\.parquet: its images are damaged"):
        dc.read(str(Path(__file__).parent / "found" / "size_statistics.parquet"))
