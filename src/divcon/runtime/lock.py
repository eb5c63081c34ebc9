"""A lock on a folder: one process at a time writes to a run or to a store of embeddings.

The package filelock does not say who holds a lock or who left one behind, and its lock lives on in forked processes.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divcon.errors import DivconError, OutputError
from divcon.runtime.places import place, text_of, url_of

if TYPE_CHECKING:
    from divcon.runtime.lease import Lease

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = "divcon.lock"


class FolderLock:
    """The lock of a folder, as a context manager. The kernel releases it when the process ends, however it ends; the
    file ``divcon.lock`` names the process that holds it, and is removed on exit.

    A folder that does not exist is created, and removed on exit if it is still empty. A folder at an address is locked
    there too (`divcon.runtime.lease`).

    Args:
        what: what this process does with the folder, for the message: ``training it``.
        error: the class of the error to raise if another process holds the lock.
    """

    def __init__(self, folder: str | Path, what: str, error: type[DivconError]) -> None:
        self._folder = place(folder)
        self._file = self._folder / LOCK_FILE
        self._what = what
        self._error = error
        self._descriptor: int | None = None
        self._created_folder = False
        self._lease: Lease | None = None
        self.left_by: str | None = None
        """The process that held the lock before and was killed, as text; None where there was none."""
        self.locks = True
        """Whether the file system has locks; without them, nothing keeps a second process out."""

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            OutputError: the folder cannot be written; or ``error``: another process holds the lock.
        """
        try:
            self._created_folder = not self._folder.exists()
            self._folder.mkdir(parents=True, exist_ok=True)
            while self._descriptor is None:
                self._try()
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(owner).encode() + b"\n", 0)
            self._acquire_lease()
        except OSError as error:
            self._close()
            raise OutputError(f"{text_of(self._folder)}: cannot be written ({error.strerror or error})") from error
        except DivconError:
            self._close()
            raise

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor not in _open_locks:  # in a process that was forked from the owner
            return
        if self._lease is not None:
            self._lease.release()
        # Before the lock is released: a process that opens the file after that creates a new one.
        with suppress(OSError):
            self._file.unlink()
        self._close()
        if self._created_folder:
            with suppress(OSError):
                self._folder.rmdir()

    def _acquire_lease(self) -> None:
        if (url := url_of(self._folder)) is None:
            return
        from divcon.runtime.lease import Lease

        lease = Lease(url, self._what, self._error)
        lease.acquire()
        self._lease = lease
        self.left_by = self.left_by or lease.left_by

    def _try(self) -> None:
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(descriptor)
                os.close(descriptor)
                raise self._error(
                    f"{text_of(self._folder)}: another process is {self._what}{f' ({owner})' if owner else ''}; wait "
                    "until it has ended, or stop it"
                ) from None
            except OSError:
                self.locks = False
        else:
            self.locks = False
        # The owner before may have removed the file between opening and locking: such a lock keeps nobody out.
        if self.locks and not _is_at(descriptor, self._file):
            os.close(descriptor)
            return
        self._descriptor = descriptor
        self.left_by = _owner(descriptor) if self.locks else None
        _open_locks.add(descriptor)

    def _close(self) -> None:
        if self._descriptor is not None:
            _open_locks.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


_open_locks: set[int] = set()


def _close_locks() -> None:
    """Close the locks in a forked process, such as a data loader's worker: it would hold them after the owner died."""
    for descriptor in _open_locks:
        with suppress(OSError):
            os.close(descriptor)
    _open_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _owner(descriptor: int) -> str | None:
    """The process that has written the file, as text."""
    try:
        owner: Any = json.loads(os.pread(descriptor, 4096, 0))
        return f"{owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
