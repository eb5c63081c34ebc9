"""Processes that train together are started, watched, and ended with the first that ends too early."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import FileStore, HashStore  # type: ignore[reportPrivateImportUsage]

from divcon.errors import ConfigError, DivconError, WorkerError
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.environment import started_by_torchrun

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
WAITS = timedelta(days=2)
"""How long a process waits for the others: evaluating between two epochs may take long, and who dies is noticed."""
NOTICED_S = 25
"""Seconds after which the first process is interrupted where it has not noticed itself that another died."""


def is_main_process() -> bool:
    """Whether this process writes, or would be the first of those that it starts."""
    return started_by_torchrun() is None or os.environ["RANK"] == "0"


@contextmanager
def launch(devices: int, across: str, device: str, follow: Callable[..., None], *given: Any) -> Iterator[ProcessGroup]:
    """This process becomes the first of ``devices`` that train together; ``follow(processes, *given)`` is what the
    others run, which are started here (and must be importable, as `multiprocessing` says of spawned processes), or one
    of those that torchrun has started.

    Args:
        device: cpu, or cuda: each has one of its own.

    Raises:
        ConfigError: there are not so many devices, or torchrun has started another number of processes.
        WorkerError: another process was killed.
        DivconError: what another has raised.
    """
    started = started_by_torchrun()
    if devices == 1 and started in (None, 1):
        yield ALONE
        return
    if started not in (None, devices):
        raise ConfigError(
            f"torchrun has started {started} processes, and --devices is {devices}; give --devices {started}"
        )
    if device not in BACKENDS:
        raise ConfigError(
            f"--devices {devices}: a training cannot run on several devices of kind {device}; try --device cpu"
        )
    if device == "cuda" and torch.cuda.device_count() < devices:
        raise ConfigError(
            f"--devices {devices}: PyTorch finds {torch.cuda.device_count()} of kind cuda here; give fewer"
        )
    if started is not None:
        if not is_main_process():
            _leave_stopping_to_the_first()
        try:
            with _joined(device, int(os.environ["RANK"]), devices, None):
                yield ProcessGroup(int(os.environ["RANK"]), devices, across)
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            raise WorkerError(
                "another of the processes that torchrun has started ended: see what it says, and go on with --resume"
            ) from None
        return
    # Nobody from another machine is to join in: they meet in a file of this user's, and talk within the machine. (A
    # TCPStore listens to all the network.)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    with tempfile.TemporaryDirectory(prefix="divcon-", ignore_cleanup_errors=True) as folder:
        meeting = f"{folder}/meeting"
        others = _Workers(devices, across, device, meeting, follow, given)
        try:
            others.wait_for_start()
            with _threads(devices if device == "cpu" else 1), _joined(device, 0, devices, meeting):
                yield ProcessGroup(0, devices, across)
        except (Exception, KeyboardInterrupt) as error:
            others.left = True
            told = others.told(wait_for_it=_is_lost(error))
            if told is not None and not isinstance(error, DivconError):
                raise told from None
            raise
        finally:
            others.end()


class _Workers:
    """The processes of the other ranks, and a thread that watches them."""

    def __init__(
        self, size: int, across: str, device: str, meeting: str, follow: Callable[..., None], given: tuple[Any, ...]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.left = False
        """Whether the first process has stopped training."""
        self._size = size
        self._running: list[tuple[BaseProcess, Connection]] = []
        self._asking = threading.Lock()
        """How a process has ended is told to one thread alone, which keeps it for the other."""
        for rank in range(1, size):
            here, there = context.Pipe(duplex=False)
            threads, method = torch.get_num_threads() // size, multiprocessing.get_start_method()
            arguments = (there, rank, size, across, device, meeting, threads, method, follow, given)
            process = context.Process(target=_other, args=arguments, name=f"divcon {rank} of {size}")
            process.start()
            there.close()
            self._running.append((process, here))
        threading.Thread(target=self._watch, daemon=True).start()

    def wait_for_start(self) -> None:
        """
        Raises:
            WorkerError: one has not come as far as its first line.
        """
        for rank, (process, pipe) in enumerate(self._running, 1):
            try:
                pipe.recv()
            except EOFError:
                process.join()
                raise WorkerError(
                    f"process {rank} of the {self._size} that are to train together did not start (what is wrong with "
                    "it stands above); a script that trains on several devices needs the line if __name__ == "
                    '"__main__": around what it does'
                ) from None

    def told(self, *, wait_for_it: bool) -> DivconError | None:
        """What another process has failed of; None where none has."""
        wait([process.sentinel for process, _ in self._running], NOTICED_S if wait_for_it else 0)
        lost = None
        for rank, (process, pipe) in enumerate(self._running, 1):
            with suppress(EOFError, OSError):
                if pipe.poll(0):
                    return pipe.recv()
            if code := self._exit_code(process):
                lost = WorkerError(
                    f"process {rank} of the {self._size} that train together ended ({_how(code)}): memory "
                    "may have run out; what the checkpoint holds stays: go on with --resume"
                )
        return lost

    def end(self) -> None:
        """Wait for all to end, and end those that do not."""
        self.left = True
        until = time.monotonic() + 10
        for process, pipe in self._running:
            process.join(max(0.0, until - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
            pipe.close()

    def _watch(self) -> None:
        """A process that waits for a device, or is busy elsewhere, does not notice that another died."""
        sentinels = {process.sentinel: process for process, _ in self._running}
        while sentinels and not self.left:
            for ended in wait(list(sentinels), 1):
                if self._exit_code(sentinels.pop(ended)):  # type: ignore[arg-type]
                    self._interrupt()
                    return

    def _exit_code(self, process: BaseProcess) -> int | None:
        with self._asking:
            if wait([process.sentinel], 0):
                process.join()
            return process.exitcode

    def _interrupt(self) -> None:
        for act in (_thread.interrupt_main, self._exit):
            time.sleep(NOTICED_S)
            if self.left:
                return
            act()

    def _exit(self) -> None:
        print(f"error: {self.told(wait_for_it=False)}", file=sys.stderr, flush=True)
        os._exit(1)


def _other(
    failures: Connection,
    rank: int,
    size: int,
    across: str,
    device: str,
    meeting: str,
    threads: int,
    start_method: str,
    follow: Callable[..., None],
    given: tuple[Any, ...],
) -> None:
    """The life of a process of another rank."""
    _leave_stopping_to_the_first()
    # A spawned process would spawn the workers of its loaders, which takes seconds each time.
    multiprocessing.set_start_method(start_method, force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device == "cpu":
        torch.set_num_threads(max(1, threads))
    failures.send("started")
    try:
        with _joined(device, rank, size, meeting):
            follow(ProcessGroup(rank, size, across), *given)
    except BaseException as error:
        if not _is_lost(error):
            text = "".join(traceback.format_exception(error))
            failures.send(error if isinstance(error, DivconError) else WorkerError(f"process {rank}: {text}"))
        sys.stderr.flush()
        os._exit(1)


def _leave_stopping_to_the_first() -> None:
    """Ctrl-C reaches all processes of a terminal, torchrun's SIGTERM all that it has started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _joined(device: str, rank: int, size: int, meeting: str | None) -> Iterator[None]:
    """One of the group; they meet in a file, or as torchrun has arranged."""
    where = {} if meeting is None else {"store": FileStore(meeting, size), "rank": rank, "world_size": size}
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    try:
        dist.init_process_group(BACKENDS[device], timeout=WAITS, **where)
    except BaseException:
        # PyTorch has counted this group, and would look for the next under another name than the other processes do,
        # until one is destroyed.
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        dist.destroy_process_group()
        raise
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _threads(size: int) -> Iterator[None]:
    """Several processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // size))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_lost(error: BaseException) -> bool:
    """Whether it says that another process is gone."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def _how(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    with suppress(ValueError):
        return signal.Signals(-exitcode).name
    return f"signal {-exitcode}"
