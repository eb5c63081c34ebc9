"""The lock of a folder at an address."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from divcon.errors import OutputError, RunError
from divcon.runtime import lease, remote
from divcon.runtime.files import atomic_write
from divcon.runtime.lock import FolderLock

ELSEWHERE = {"host": "another", "pid": 7, "since": "2026-01-01 00:00:00", "token": "t"}


@pytest.fixture
def folder(s3, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.3)
    return f"{s3.url}/run"


def test_it_is_there_while_it_is_held(s3, folder):
    with FolderLock(folder, "training it", RunError) as lock:
        assert json.loads(s3.read("run/divcon.lock"))["renewed"] >= 0
        assert lock.left_by is None
        with pytest.raises(RunError, match=rf"^{folder}: another process is training it \(\d+ on "):
            lease.Lease(folder, "training it", RunError).acquire()
    assert s3.names() == []
    with FolderLock(folder, "training it", RunError):
        pass


def test_one_of_an_owner_that_is_alive_is_refused(s3, folder, monkeypatch):
    s3.write({"run/divcon.lock": json.dumps(ELSEWHERE).encode()})
    sleep = lease.time.sleep

    def renewed(seconds):
        s3.write({"run/divcon.lock": json.dumps(ELSEWHERE | {"renewed": 1}).encode()})
        sleep(seconds)

    monkeypatch.setattr(lease.time, "sleep", renewed)
    with pytest.raises(RunError, match=r"another process is training it \(7 on another, since 2026"):
        FolderLock(folder, "training it", RunError).acquire()


def test_one_that_nobody_renews_is_taken_over(s3, folder):
    s3.write({"run/divcon.lock": json.dumps(ELSEWHERE).encode()})
    with FolderLock(folder, "training it", RunError) as lock:
        assert lock.left_by == "7 on another, since 2026-01-01 00:00:00"


def test_one_of_a_dead_process_of_this_machine_is_taken_over_at_once(s3, folder, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e9)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = {**ELSEWHERE, "machine": lease._machine(), "pid": dead.pid}
    s3.write({"run/divcon.lock": json.dumps(own).encode()})
    with FolderLock(folder, "training it", RunError) as lock:
        assert lock.left_by.startswith(f"{dead.pid} on ")


def test_an_owner_that_was_away_too_long_writes_no_more(s3, folder):
    """As after a break of its network, in which another has taken over."""
    with FolderLock(folder, "training it", RunError):
        with atomic_write(f"{folder}/a") as beside:
            beside.write_text("mine")
        s3.write({"run/divcon.lock": json.dumps(ELSEWHERE).encode()})
        for _ in range(100):
            if lease._lost:
                break
            lease.time.sleep(0.05)
        with pytest.raises(OutputError, match="another process has taken this folder over"):  # noqa: SIM117
            with atomic_write(f"{folder}/b") as beside:
                beside.write_text("mine")
    assert s3.names() == ["run/a", "run/divcon.lock"]
    assert remote.read(f"{folder}/divcon.lock") == json.dumps(ELSEWHERE).encode()
