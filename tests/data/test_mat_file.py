"""MATLAB files: what they hold, and a reader that dies on one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from divcon.data.published import mat_file
from divcon.data.published.mat_file import read_mat
from divcon.errors import DataError


def annotations(path: Path, rows: int = 6) -> None:
    kind = [("relative_im_path", object), ("class", object)]
    held = np.array([(f"car_ims/{i}.jpg", i % 4 + 1) for i in range(rows)], dtype=kind)
    scipy.io.savemat(path, {"annotations": held, "class_names": np.array(["a", "é", "c", "d"], object)})


@pytest.mark.parametrize("rows", [1, 6])
def test_structs_by_field_and_names(rows: int, tmp_path: Path) -> None:
    annotations(tmp_path / "a.mat", rows)
    variables = read_mat(tmp_path / "a.mat")
    assert variables == {
        "annotations": {
            "relative_im_path": [f"car_ims/{i}.jpg" for i in range(rows)],
            "class": [i % 4 + 1 for i in range(rows)],
        },
        "class_names": ["a", "é", "c", "d"],
    }


def test_a_byte_that_kills_scipy_s_reader_kills_nothing_else(tmp_path: Path) -> None:
    """Found by fuzzing: SciPy 1.17 reads beyond what it has, and the process dies by SIGBUS or SIGSEGV."""
    annotations(tmp_path / "a.mat")
    content = bytearray((tmp_path / "a.mat").read_bytes())
    content[369] = 0xFD
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.mat: does not read as a MATLAB file \(.*unpack the original archive"):
        read_mat(tmp_path / "a.mat")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SciPy's reader crashed on it, by signal 11"),
        ("import time; time.sleep(60)", "timed out"),
        ("raise SystemExit('Out of memory')", "Out of memory"),
        ("print('no json')", "Expecting value"),
    ],
)
def test_however_the_reader_ends_it_is_an_error(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reader.py").write_text(program)
    monkeypatch.setattr(mat_file, "__file__", str(tmp_path / "reader.py"))
    monkeypatch.setattr(mat_file, "MOST_SECONDS", 2)
    with pytest.raises(DataError, match=said):
        read_mat(tmp_path / "a.mat")
