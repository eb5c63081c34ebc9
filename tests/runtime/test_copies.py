"""Copies of files at addresses: what is there is here, what is written here is there, nothing is lost between."""

from __future__ import annotations

import time

import pytest

from divcon.errors import OutputError, RemoteError
from divcon.runtime import copies, remote
from divcon.runtime.copies import here, opened, read_file, removable, removed, send_rest, size_of
from divcon.runtime.files import atomic_write, check_folder, check_writable
from divcon.runtime.places import place


@pytest.fixture
def storage(cache, monkeypatch):
    """An empty folder in fsspec's own memory."""
    import fsspec

    monkeypatch.setattr(copies, "_known", set())
    system = fsspec.filesystem("memory")
    if system.exists("/shop"):
        system.rm("/shop", recursive=True)
    system.makedirs("/shop")
    return system


def anew():
    """As another process sees it."""
    copies._known.clear()


def write(system, name, content):
    time.sleep(0.002)  # memory's version of a file is the time of its change
    system.pipe_file(f"/shop/{name}", content)


def test_a_folder_is_brought_and_kept_up_to_date(storage):
    write(storage, "run/config.json", b"1")
    write(storage, "run/model/weights", b"2")
    write(storage, "run/checkpoint", b"large")
    folder = here("memory://shop/run", without=("checkpoint",))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "config.json",
        "model/weights",
    }
    assert here(folder / "checkpoint").read_bytes() == b"large"
    write(storage, "run/config.json", b"changed")
    storage.rm("/shop/run/model/weights")
    assert (here("memory://shop/run") / "config.json").read_bytes() == b"1"  # a process looks once
    anew()
    assert (here("memory://shop/run") / "config.json").read_bytes() == b"changed"
    assert not (folder / "model" / "weights").exists()
    assert not here("memory://shop/nothing").exists()
    (folder / "checkpoint.previous").write_text("of this machine")
    storage.rm("/shop/run", recursive=True)
    anew()
    assert not here("memory://shop/run", without=("checkpoint",)).exists()


def test_what_is_written_is_uploaded(storage):
    with atomic_write("memory://shop/out/scores.json") as beside:
        beside.write_text("{}")
        assert not storage.exists("/shop/out/scores.json")
    assert storage.cat_file("/shop/out/scores.json") == b"{}"
    assert storage.find("/shop") == ["/shop/out/scores.json"]
    removed(place("memory://shop/out/scores.json"))
    assert storage.find("/shop") == []
    with atomic_write("memory://shop/a/b.json") as beside:
        beside.write_text("{}")
    removed(place("memory://shop/a"))
    assert storage.find("/shop") == [] and not place("memory://shop/a").exists()


def test_an_upload_that_fails_is_made_up_for(storage, monkeypatch):
    """The file stays here, and wins over what was there; over what another has written there, it does not."""
    path = place("memory://shop/run/metrics.jsonl")
    with atomic_write(path) as beside:
        beside.write_text("one")

    def fails(*_):
        raise RemoteError("memory://shop/run/metrics.jsonl", "cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "put", fails)
        for text in ("one\ntwo", "one\ntwo\nthree"):
            with (
                pytest.raises(
                    OutputError, match=r"^memory://shop/run/metrics\.jsonl: cannot be written \(cannot be re"
                ),
                atomic_write(path) as beside,
            ):
                beside.write_text(text)
    assert not removable(path)
    assert storage.cat_file("/shop/run/metrics.jsonl") == b"one"
    anew()
    assert here(path).read_text() == "one\ntwo\nthree"
    assert storage.cat_file("/shop/run/metrics.jsonl") == b"one\ntwo\nthree"
    assert removable(path)

    path.write_text("mine")
    write(storage, "run/metrics.jsonl", b"another's")
    anew()
    assert here(path).read_text() == "another's"
    assert path.with_name("metrics.jsonl.unsaved").read_text() == "mine"


def test_what_never_came_there_is_sent_later(storage):
    folder = here("memory://shop/run")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "checkpoint.previous").write_text("of this machine alone")
    (folder / "model.new").mkdir()
    (folder / "model.new" / "config.json").write_text("not whole yet")
    anew()
    assert (here("memory://shop/run") / "config.json").exists()
    send_rest(folder)
    assert storage.find("/shop") == ["/shop/run/config.json"]


def test_parquet_files_are_read_where_they_are(storage):
    write(storage, "t.parquet", b"PAR1" + bytes(3_000_000) + b"PAR1")
    path = here("memory://shop/t.parquet")
    assert path.stat().st_size == 0 and size_of(path) == 3_000_008
    with opened(path) as file:
        file.seek(-4, 2)
        assert file.read() == b"PAR1"
    with atomic_write("memory://shop/u.parquet") as beside:
        beside.write_bytes(b"PAR1")
    assert place("memory://shop/u.parquet").stat().st_size == 0
    assert opened("memory://shop/u.parquet").read() == read_file("memory://shop/u.parquet") == b"PAR1"


def test_outputs_are_checked_before_any_work(storage, s3):
    check_writable("memory://shop/a.json")
    check_folder("memory://shop/runs/x")
    assert storage.find("/shop") == []
    with pytest.raises(
        OutputError, match=r"^s3://no-such-bucket/a\.json: cannot be written \(there is no such bucket\)"
    ):
        check_writable("s3://no-such-bucket/a.json")
