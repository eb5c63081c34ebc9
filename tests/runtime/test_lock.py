"""One owner a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from divcon.errors import OutputError, RunError
from divcon.runtime.lock import LOCK_FILE, FolderLock

HOLDER = """
import os, sys, time
from divcon.errors import RunError
from divcon.runtime.lock import FolderLock
with FolderLock(sys.argv[1], "training it", RunError):
    if os.fork() == 0:  # as a process that decodes, which may outlive its owner by seconds
        print("held", flush=True)  # said by the child: the owner may run on before its child has begun
    time.sleep(60)
"""


def lock(folder: Path) -> FolderLock:
    return FolderLock(folder, "training it", RunError)


def test_a_second_owner_is_refused_while_the_first_lives_and_not_after(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=rf"another process is training it \({process.pid} on .*, since .*\); wait"):
            lock(tmp_path).acquire()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # Its child lives on, and has the file open.
        with lock(tmp_path) as mine:
            assert mine.left_by is not None and str(process.pid) in mine.left_by
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    new = tmp_path / "deep" / "run"
    with lock(new) as mine:
        assert mine.left_by is None and mine.locks
        with pytest.raises(RunError, match="another process is training it"):
            lock(new).acquire()
        assert (new / LOCK_FILE).exists()
    assert not new.exists()
    with lock(new):
        (new / "metrics.jsonl").touch()
    assert [p.name for p in new.iterdir()] == ["metrics.jsonl"]


def test_a_file_that_its_owner_removes_locks_nobody_in(tmp_path: Path) -> None:
    """Who waits for the file that the owner removes must not take that one's lock for the folder's."""
    first = lock(tmp_path)
    first.acquire()
    held = os.open(tmp_path / LOCK_FILE, os.O_RDWR)
    first.release()
    second, third = lock(tmp_path), lock(tmp_path)
    second.acquire()
    with pytest.raises(RunError):
        third.acquire()
    second.release()
    os.close(held)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/run: cannot be written"):
        lock(tmp_path / "file" / "run").acquire()
