"""The lock of a folder at an address: a small file that its owner writes again and again.

Object storages have no locks that end with a process. So the owner renews ``divcon.lock`` every few seconds; who finds
one waits until it has not changed for a while, and takes it over. Two that begin within the same moment exclude each
other where the storage creates a file only if there is none (S3 does, in memory too); elsewhere the later one finds out
when it renews, and stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from divcon.errors import DivconError, RemoteError, RemoteMissingError
from divcon.runtime import remote
from divcon.runtime.places import without_secrets

RENEW_SECONDS = 10.0
"""The owner writes the file again after so long."""
STALE_SECONDS = 45.0
"""A lock that has not changed for so long is nobody's any more."""
_FILE = "divcon.lock"

_held: set[str] = set()
"""The tokens of this process's locks."""
_lost: dict[str, str] = {}
"""The folders whose lock another process has taken over, and which."""


def check_not_lost(url: str) -> None:
    """
    Raises:
        RemoteError: another process has taken the lock of a folder that this file is in.
    """
    for folder, owner in _lost.items():
        if url.startswith(f"{folder}/"):
            raise RemoteError(without_secrets(url), f"another process has taken this folder over ({owner})")


class Lease:
    """The lock of a folder at an address, held from `acquire` to `release`.

    Args:
        what, error: as of `divcon.runtime.lock.FolderLock`.
    """

    def __init__(self, url: str, what: str, error: type[DivconError]) -> None:
        self._folder = url
        self._url = f"{url}/{_FILE}"
        self._what = what
        self._error = error
        self._about: dict[str, Any] = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": uuid.uuid4().hex,
            "renewed": 0,
        }
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self.left_by: str | None = None
        """The process that held the lock before and did not release it."""

    def acquire(self) -> None:
        """Acquire the lock; where another process seems to hold it, after watching it for `STALE_SECONDS`.

        Raises:
            DivconError: of the class ``error``: another process holds it.
            RemoteError: it cannot be written.
        """
        if not remote.put_bytes(self._content(), self._url, new=True):
            there = self._read()
            if there is not None:
                self._wait_for(there)
                self.left_by = _named(there)
            remote.put_bytes(self._content(), self._url)
            if (now := self._read()) is not None and now.get("token") != self._about["token"]:
                raise self._held_by(now)
        _lost.pop(self._folder, None)
        _held.add(self._about["token"])
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Release the lock: the file is removed, if it is still this process's."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(2 * RENEW_SECONDS)
        with suppress(RemoteError):
            if (now := self._read()) is not None and now.get("token") == self._about["token"]:
                remote.remove(self._url)
        _lost.pop(self._folder, None)
        _held.discard(self._about["token"])

    def _wait_for(self, there: dict[str, Any]) -> None:
        """Wait until the lock is nobody's any more.

        Raises:
            DivconError: its owner is alive.
        """
        if there.get("machine") == self._about["machine"] != "":
            mine = there.get("pid") == os.getpid()  # or that of a process before a restart of its container
            if there.get("token") in _held if mine else _is_alive(there.get("pid")):
                raise self._held_by(there)
            return
        until = time.monotonic() + STALE_SECONDS
        while time.monotonic() < until:
            time.sleep(min(2.0, RENEW_SECONDS / 2))
            if (now := self._read()) is None:
                return
            if now != there:
                raise self._held_by(now)

    def _renew(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            with suppress(RemoteError):  # the network may be away for a while
                now = self._read()
                if now is not None and now.get("token") != self._about["token"]:
                    _lost[self._folder] = _named(now)
                    return
                self._about["renewed"] += 1
                remote.put_bytes(self._content(), self._url)

    def _content(self) -> bytes:
        return json.dumps(self._about).encode() + b"\n"

    def _read(self) -> dict[str, Any] | None:
        try:
            about = json.loads(remote.read(self._url))
        except RemoteMissingError:
            return None
        except ValueError:
            return {}
        return about if isinstance(about, dict) else {}

    def _held_by(self, there: dict[str, Any]) -> DivconError:
        return self._error(
            f"{without_secrets(self._folder)}: another process is {self._what} ({_named(there)}); wait until it has "
            f"ended, or stop it (where there is none, delete {_FILE} in it)"
        )


def _machine() -> str:
    """Identifies what a process id is of: the machine since its start, and the container; "": it cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _named(there: dict[str, Any]) -> str:
    return f"{there.get('pid')} on {there.get('host')}, since {there.get('since')}"


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, TypeError):
        return False
    except OSError:
        return True
    return True
