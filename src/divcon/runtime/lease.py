"""The lock of what a server keeps, such as a folder at an address: a small note that its owner writes again and again.

Object storages and databases have no locks that end with a process. So the owner renews its note every few seconds; who
finds one waits until it has not changed for a while, and takes it over: clocks of machines need not agree. Two that
begin within the same moment exclude each other where a note is created only if there is none (S3 does, memory and
Qdrant too); elsewhere the later one finds out when it renews, and stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

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


class Note(Protocol):
    """A small dictionary that a server keeps."""

    def put(self, content: Mapping[str, Any], *, new: bool = False) -> bool:
        """Write it; with ``new`` only where there is none. Whether it was written.

        Raises:
            DivconError: it cannot be written.
        """
        ...

    def get(self) -> dict[str, Any] | None:
        """What was written last; None: there is none.

        Raises:
            DivconError: it cannot be read.
        """
        ...

    def remove(self) -> None:
        """Remove it; it is no error if there is none.

        Raises:
            DivconError: it cannot be removed.
        """
        ...


class FileNote:
    """The note ``divcon.lock`` of a folder at an address. Its errors are RemoteErrors."""

    def __init__(self, folder: str) -> None:
        self._url = f"{folder}/{_FILE}"

    def put(self, content: Mapping[str, Any], *, new: bool = False) -> bool:
        return remote.put_bytes(json.dumps(content).encode() + b"\n", self._url, new=new)

    def get(self) -> dict[str, Any] | None:
        try:
            about = json.loads(remote.read(self._url))
        except RemoteMissingError:
            return None
        except ValueError:
            return {}
        return about if isinstance(about, dict) else {}

    def remove(self) -> None:
        remote.remove(self._url)


class Lease:
    """The lock of a folder at an address, or of something else that a server keeps, held from `acquire` to `release`.

    Args:
        name: of what is locked: the address of a folder.
        what, error: as of `divcon.runtime.lock.FolderLock`.
        note: where the server keeps who holds it; None: the file ``divcon.lock`` in the folder.
    """

    def __init__(self, name: str, what: str, error: type[DivconError], note: Note | None = None) -> None:
        self._name = name
        self._note = FileNote(name) if note is None else note
        self._what = what
        self._error = error
        self._about: dict[str, Any] = {}
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self.left_by: str | None = None
        """The process that held the lock before and did not release it."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock inside of the block.

        Raises:
            DivconError: as `acquire`.
        """
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def check(self) -> None:
        """Check, before something is written, that this process still has the lock, if it holds it.

        Raises:
            DivconError: of the class ``error``: another process has taken it over.
        """
        if self._thread is not None and ((now := self._note.get()) or {}).get("token") != self._about["token"]:
            who = f" ({_named(now)})" if now else ""
            raise self._error(
                f"{without_secrets(self._name)}: another process has taken over the lock of this one{who}; run the "
                "command again"
            )

    def acquire(self) -> None:
        """Acquire the lock; where another process seems to hold it, after watching it for `STALE_SECONDS`.

        Raises:
            DivconError: of the class ``error``: another process holds it.
            RemoteError: it cannot be written.
        """
        self._about = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": uuid.uuid4().hex,
            "renewed": 0,
        }
        if not self._note.put(self._about, new=True):
            there = self._note.get()
            if there is not None:
                self._wait_for(there)
                self.left_by = _named(there)
            self._note.put(self._about)
            if (now := self._note.get()) is not None and now.get("token") != self._about["token"]:
                raise self._held_by(now)
        _lost.pop(self._name, None)
        _held.add(self._about["token"])
        self._end.clear()
        self._thread = threading.Thread(target=self._renew, name="divcon-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Release the lock: the note is removed, if it is still this process's."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(2 * RENEW_SECONDS)
            self._thread = None
        with suppress(DivconError):
            if (self._note.get() or {}).get("token") == self._about["token"]:
                self._note.remove()
        _lost.pop(self._name, None)
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
            if (now := self._note.get()) is None:
                return
            if now != there:
                raise self._held_by(now)

    def _renew(self) -> None:
        while not self._end.wait(RENEW_SECONDS):
            with suppress(DivconError):  # the network may be away for a while
                now = self._note.get()
                if now is not None and now.get("token") != self._about["token"]:
                    _lost[self._name] = _named(now)
                    return
                self._about["renewed"] += 1
                self._note.put(self._about)

    def _held_by(self, there: dict[str, Any]) -> DivconError:
        return self._error(
            f"{without_secrets(self._name)}: another process is {self._what} ({_named(there)}); wait until it has "
            f"ended, or stop it. If it was killed, its lock ends {STALE_SECONDS:.0f} s later"
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
