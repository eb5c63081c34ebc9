"""The processes that decode images: they leave it to the main process when to stop, and their deaths are told."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from divcon.errors import WorkerError


def begin_worker(number: int) -> None:
    """What a worker of a loader does first (``worker_init_fn``).

    A terminal sends Ctrl-C, and a scheduler its SIGTERM, to all processes at once: a worker that died of it would take
    the batch with it that the main process wants to finish. It ends when the main process says so, or dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_if_parent_asks, daemon=True).start()


def _end_if_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """For what forks the workers: threads that PyTorch starts in them before `begin_worker` have it blocked, too."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_death(error: BaseException) -> WorkerError | None:
    """What a person should know, where ``error`` is PyTorch's about a worker that died; else None."""
    text = str(error).strip()
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader worker"):
        return None
    return _killed(text.rstrip("."))


def _killed(how: str) -> WorkerError:
    return WorkerError(
        f"a process that decodes images was killed ({how}): memory may have run out, or shared memory "
        "(/dev/shm); fewer --workers need less"
    )


def of_workers(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader gives.

    Raises:
        WorkerError: one of its workers was killed.
    """
    with _sigterm_blocked():
        batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            raise worker_death(error) or error from None
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # It died with a batch that was done but not handed over.
            raise _killed(f"its last batch is lost: {error or type(error).__name__}") from None
        yield batch
