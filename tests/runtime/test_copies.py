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
    if system.exists("/work"):
        system.rm("/work", recursive=True)
    system.makedirs("/work")
    return system


def anew():
    """As another process sees it."""
    copies._known.clear()


def write(system, name, content):
    time.sleep(0.002)  # memory's version of a file is the time of its change
    system.pipe_file(f"/work/{name}", content)


def test_a_folder_is_brought_and_kept_up_to_date(storage):
    write(storage, "run/config.json", b"1")
    write(storage, "run/model/weights", b"2")
    write(storage, "run/checkpoint", b"large")
    folder = here("memory://work/run", without=("checkpoint",))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "config.json",
        "model/weights",
    }
    assert here(folder / "checkpoint").read_bytes() == b"large"
    write(storage, "run/config.json", b"changed")
    storage.rm("/work/run/model/weights")
    assert (here("memory://work/run") / "config.json").read_bytes() == b"1"  # a process looks once
    anew()
    assert (here("memory://work/run") / "config.json").read_bytes() == b"changed"
    assert not (folder / "model" / "weights").exists()
    assert not here("memory://work/nothing").exists()


def test_what_is_written_is_uploaded(storage):
    with atomic_write("memory://work/out/scores.json") as beside:
        beside.write_text("{}")
        assert not storage.exists("/work/out/scores.json")
    assert storage.cat_file("/work/out/scores.json") == b"{}"
    assert storage.find("/work") == ["/work/out/scores.json"]
    removed(place("memory://work/out/scores.json"))
    assert storage.find("/work") == []
    with atomic_write("memory://work/a/b.json") as beside:
        beside.write_text("{}")
    removed(place("memory://work/a"))
    assert storage.find("/work") == [] and not place("memory://work/a").exists()


def test_an_upload_that_fails_is_made_up_for(storage, monkeypatch):
    """The file stays here, and wins over what was there; over what another has written there, it does not."""
    path = place("memory://work/run/metrics.jsonl")
    with atomic_write(path) as beside:
        beside.write_text("one")

    def fails(*_):
        raise RemoteError("memory://work/run/metrics.jsonl", "cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "put", fails)
        for text in ("one\ntwo", "one\ntwo\nthree"):
            with (
                pytest.raises(
                    OutputError, match=r"^memory://work/run/metrics\.jsonl: cannot be written \(cannot be re"
                ),
                atomic_write(path) as beside,
            ):
                beside.write_text(text)
    assert not removable(path)
    assert storage.cat_file("/work/run/metrics.jsonl") == b"one"
    anew()
    assert here(path).read_text() == "one\ntwo\nthree"
    assert storage.cat_file("/work/run/metrics.jsonl") == b"one\ntwo\nthree"
    assert removable(path)

    path.write_text("mine")
    write(storage, "run/metrics.jsonl", b"another's")
    anew()
    assert here(path).read_text() == "another's"
    assert path.with_name("metrics.jsonl.unsaved").read_text() == "mine"


def test_what_never_came_there_is_sent_later(storage):
    folder = here("memory://work/run")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "checkpoint.previous").write_text("of this machine alone")
    (folder / "model.new").mkdir()
    (folder / "model.new" / "config.json").write_text("not whole yet")
    anew()
    assert (here("memory://work/run") / "config.json").exists()
    send_rest(folder)
    assert storage.find("/work") == ["/work/run/config.json"]


def test_parquet_files_are_read_where_they_are(storage):
    write(storage, "t.parquet", b"PAR1" + bytes(3_000_000) + b"PAR1")
    path = here("memory://work/t.parquet")
    assert path.stat().st_size == 0 and size_of(path) == 3_000_008
    with opened(path) as file:
        file.seek(-4, 2)
        assert file.read() == b"PAR1"
    with atomic_write("memory://work/u.parquet") as beside:
        beside.write_bytes(b"PAR1")
    assert place("memory://work/u.parquet").stat().st_size == 0
    assert opened("memory://work/u.parquet").read() == read_file("memory://work/u.parquet") == b"PAR1"


def test_outputs_are_checked_before_any_work(storage, s3):
    check_writable("memory://work/a.json")
    check_folder("memory://work/runs/x")
    assert storage.find("/work") == []
    with pytest.raises(
        OutputError, match=r"^s3://no-such-bucket/a\.json: cannot be written \(there is no such bucket\)"
    ):
        check_writable("s3://no-such-bucket/a.json")
