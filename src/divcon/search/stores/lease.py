"""`Lease`: the lock of a store's only writer, where a server and no kernel keeps it: it ends if it is not renewed."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from divcon.errors import StoreError

LEASE_SECONDS = 120.0
"""A writer that has not renewed its lock for so long is taken to be dead."""
_RENEW_SECONDS = 30.0


class Note(Protocol):
    """A small dictionary that a server keeps."""

    def put(self, owner: Mapping[str, Any], *, new: bool) -> bool:
        """Write it; with ``new`` only where there is none. Whether it was written.

        Raises:
            StoreError: it cannot be written.
        """
        ...

    def get(self) -> dict[str, Any]:
        """What was written last; empty: nothing.

        Raises:
            StoreError: it cannot be read.
        """
        ...

    def remove(self) -> None:
        """Remove it; it is no error if there is none.

        Raises:
            StoreError: it cannot be removed.
        """
        ...


class Lease:
    """The lock of one writer, as long as its process renews it. The lock of a process that has not renewed it for two
    minutes is taken over; should that process come back, it stops at its next commit (see `check`).

    Args:
        uri: the store, for messages.
        note: where the server keeps who has the lock.
    """

    def __init__(self, uri: str, note: Note) -> None:
        self._uri = uri
        self._note = note
        self._token: str | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the lock inside the block.

        Raises:
            StoreError: another process has it, or the server cannot be reached.
        """
        token = secrets.token_hex(8)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        owner |= {"token": token}
        self._acquire(owner)
        self._token = token
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(_RENEW_SECONDS):
                with suppress(StoreError):  # the next time, or at the next commit
                    if self._note.get().get("token") == token:
                        self._put(owner, new=False)

        renewing = threading.Thread(target=renew, name="divcon-lock", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self._token = None
            with suppress(StoreError):
                if self._note.get().get("token") == token:
                    self._note.remove()

    def check(self) -> None:
        """Check that this process still has the lock that it took; nothing, if it took none.

        Raises:
            StoreError: another process has taken it over.
        """
        if self._token is not None and self._note.get().get("token") != self._token:
            raise StoreError(f"{self._uri}: another process has taken over the lock of this one; run the command again")

    def _put(self, owner: dict[str, Any], *, new: bool) -> bool:
        return self._note.put({**owner, "renewed": time.time()}, new=new)

    def _acquire(self, owner: dict[str, Any]) -> None:
        if self._put(owner, new=True):
            return
        other = self._note.get()
        if other and time.time() - float(other.get("renewed", 0)) < LEASE_SECONDS:
            raise StoreError(
                f"{self._uri}: another process is writing to it ({other.get('pid')} on {other.get('host')}, since "
                f"{other.get('since')}); wait until it has ended, or stop it. If it was killed, its lock ends "
                f"{LEASE_SECONDS:.0f} s after it was renewed last"
            )
        self._note.remove()
        taken = self._put(owner, new=True)
        time.sleep(min(1.0, LEASE_SECONDS / 2))  # who else took it over at this moment has removed it by then
        if not taken or self._note.get().get("token") != owner["token"]:
            raise StoreError(f"{self._uri}: another process is writing to it; wait until it has ended")
