"""Files that are there whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from divcon.errors import OutputError
from divcon.runtime.files import atomic_write, check_writable


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as beside:
        beside.write_text("first")
    with pytest.raises(KeyError), atomic_write(path) as beside:
        beside.write_text("half")
        raise KeyError
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    with atomic_write(path) as beside:
        beside.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"file/inside\.txt: cannot be written"),
        atomic_write(tmp_path / "file" / "inside.txt") as beside,
    ):
        beside.write_text("never")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_was_there_is_kept_beside(tmp_path: Path) -> None:
    path, previous = tmp_path / "c", tmp_path / "c.previous"
    for content in ("1", "2", "3"):
        with atomic_write(path, previous=previous) as beside:
            beside.write_text(content)
    assert (path.read_text(), previous.read_text()) == ("3", "2")
    # As a kill leaves it just before the new file takes its place.
    previous.unlink()
    previous.hardlink_to(path)
    with atomic_write(path, previous=previous) as beside:
        beside.write_text("4")
    assert (path.read_text(), previous.read_text()) == ("4", "3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "c.previous"]


def test_a_check_touches_no_file_of_others(tmp_path: Path) -> None:
    """All ranks of a group check one path at once, while another process writes it."""
    path = tmp_path / "deep" / "scores.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_writable, [path] * 400))
    with atomic_write(path) as beside:
        beside.write_text("written")
        check_writable(path)
    assert path.read_text() == "written"
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]


def test_a_check_names_the_place_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path, why in ((tmp_path / "file" / "x.json", "x.json: cannot be written"), (tmp_path, "is a folder")):
        with pytest.raises(OutputError, match=why):
            check_writable(path)
