"""One owner a folder: who writes to a run or to a store of embeddings, as long as that process lives.

The package filelock has neither who holds a lock, nor who left one behind, and its lock lives on in forked processes.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from divcon.errors import DivconError, OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = "divcon.lock"


class FolderLock:
    """The lock of a folder, a context manager. The kernel drops it when the process ends, however it ends; the file
    ``divcon.lock`` says who has it, and is gone when the block is left.

    The folder is made where it is not there, and is gone again where nothing was put into it.

    Args:
        what: what is done with the folder, for the message: ``training it``.
        refused: the error to raise where another process has it.
    """

    def __init__(self, folder: str | Path, what: str, refused: type[DivconError]) -> None:
        self._folder = Path(folder)
        self._file = self._folder / LOCK_FILE
        self._what = what
        self._refused = refused
        self._held: int | None = None
        self._made = False
        self.left_by: str | None = None
        """The process that had the lock and ended without leaving the block, in words; None where there was none."""
        self.locks = True
        """Whether the file system has locks; without, nothing keeps a second process out."""

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OutputError: the folder cannot be written; or ``refused``: another process has the lock.
        """
        try:
            self._made = not self._folder.exists()
            self._folder.mkdir(parents=True, exist_ok=True)
            while self._held is None:
                self._try()
            mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(self._held, 0)
            os.pwrite(self._held, json.dumps(mine).encode() + b"\n", 0)
        except OSError as error:
            self._let_go()
            raise OutputError(f"{self._folder}: cannot be written ({error.strerror or error})") from error

    def release(self) -> None:
        """Give the lock back."""
        if self._held not in _HELD:  # in a process that was forked from the owner
            return
        # Before the lock is dropped: who opens the file after that makes a new one.
        with suppress(OSError):
            self._file.unlink()
        self._let_go()
        if self._made:
            with suppress(OSError):
                self._folder.rmdir()

    def _try(self) -> None:
        held = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(held)
                os.close(held)
                raise self._refused(
                    f"{self._folder}: another process is {self._what}{f' ({owner})' if owner else ''}; wait until it "
                    "has ended, or stop it"
                ) from None
            except OSError:
                self.locks = False
        else:
            self.locks = False
        # The owner before may have removed the file between opening and locking it: then this lock locks nobody out.
        if self.locks and not _is_at(held, self._file):
            os.close(held)
            return
        self._held = held
        self.left_by = _owner(held) if self.locks else None
        _HELD.add(held)

    def _let_go(self) -> None:
        if self._held is not None:
            _HELD.discard(self._held)
            os.close(self._held)
            self._held = None


_HELD: set[int] = set()


def _forget() -> None:
    """A process that decodes images is forked with the lock open: it would hold it beyond the death of the owner."""
    for held in _HELD:
        with suppress(OSError):
            os.close(held)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _is_at(held: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False


def _owner(held: int) -> str | None:
    """Who has written the file, in words."""
    try:
        found: Any = json.loads(os.pread(held, 4096, 0))
        return f"{found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
