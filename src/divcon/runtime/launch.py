"""Launch the processes of distributed training, watch them, and end all of them when one fails."""

from __future__ import annotations

import _thread
import logging
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
from torch.distributed import FileStore, HashStore, PrefixStore  # type: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from divcon.errors import ConfigError, DivconError, WorkerError
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.launchers import StartedGroup, is_initialised, own_group, started_group

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
TIMEOUT = timedelta(days=2)
"""How long a collective waits for the other ranks, as rank 0 may evaluate for hours; a death is noticed earlier."""
NOTICED_S = 25
"""Seconds that rank 0 has to notice itself that another rank died; then it is interrupted."""


def is_main_process() -> bool:
    """Whether this process is rank 0, or would be rank 0 of a group that it launches."""
    group = started_group()
    return group is None or group.rank == 0


@contextmanager
def launch(devices: int, across: str, device: str, worker: Callable[..., None], *args: Any) -> Iterator[ProcessGroup]:
    """Join a process group of one process a device. Inside of the block this process is rank 0, and the others, which
    are spawned here, run ``worker(group, *args)``. Where a launcher has started the processes (torchrun, or another
    that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT), or PyTorch's process group is initialised, nothing is
    spawned: this process has the rank that it has there.

    Args:
        devices: number of processes.
        across: see `ProcessGroup`.
        device: cpu or cuda, where each process has a device of its own.
        worker: must be importable, and ``args`` picklable, as `multiprocessing` wants it of spawned processes.

    Raises:
        ConfigError: there are fewer devices, or another number of processes was started, or a launcher has set half of
            its variables.
        WorkerError: another process was killed.
        DivconError: the error of another process.
    """
    joins = started_group()
    size = 1 if joins is None else joins.world_size
    if devices == 1 and size == 1:
        yield ALONE
        return
    if joins is not None and size not in (1, devices):
        raise ConfigError(
            f"`devices` {devices}: {size} processes were started; set `devices={size}`, or leave it out",
            field="devices",
        )
    if device not in BACKENDS:
        raise ConfigError(
            f"`devices` {devices}: several devices work on cuda and cpu, not on {device}; set `device=cpu`",
            field=("devices", "device"),
        )
    if joins is not None and size > 1:
        if device == "cuda":
            torch.cuda.set_device(_local_device(joins))
        if joins.rank:
            _ignore_signals()
        try:
            with _joined(device) as cpu_group:
                yield ProcessGroup(joins.rank, size, across, cpu_group)
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            raise WorkerError(
                "another process of the group ended; its own output says why. Go on with `resume=True`"
            ) from None
        return
    if device == "cuda" and torch.cuda.device_count() < devices:
        raise ConfigError(
            f"`devices` {devices}: PyTorch finds {torch.cuda.device_count()} CUDA devices here; use fewer, or start "
            "the processes on several machines with torchrun",
            field="devices",
        )
    # No other machine can join: the ranks meet in a file of this user and talk over the loopback interface. (A TCPStore
    # listens on the whole network.)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    with tempfile.TemporaryDirectory(prefix="divcon-", ignore_cleanup_errors=True) as folder:
        store = f"{folder}/store"
        workers = _Workers(devices, across, device, store, worker, args)
        try:
            workers.wait_for_start()
            with _share_of_threads(devices if device == "cpu" else 1), _process_group(device, 0, devices, store):
                yield ProcessGroup(0, devices, across)
        except (Exception, KeyboardInterrupt) as error:
            workers.main_done = True
            failure = workers.failure(wait_for_it=_is_lost(error))
            if failure is not None and not isinstance(error, DivconError):
                raise failure from None
            raise
        finally:
            workers.end()


@contextmanager
def started(device: str) -> Iterator[ProcessGroup]:
    """The group that a launcher has started, for work that shares out images; `ALONE` without one.

    Raises:
        ConfigError, WorkerError: as `launch`.
    """
    group = started_group()
    with launch(1 if group is None else group.world_size, "batch", device, _nothing) as processes:
        yield processes


def _nothing(group: ProcessGroup) -> None:
    """What no process runs: a launcher has started all."""


class _Workers:
    """The processes of the other ranks, and a thread that watches them."""

    def __init__(
        self, size: int, across: str, device: str, store: str, worker: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.main_done = False
        """Whether rank 0 has stopped training."""
        self._size = size
        self._running: list[tuple[BaseProcess, Connection]] = []
        self._reaping = threading.Lock()
        """The exit code of a process goes to the one thread that reaps it, which keeps it for the other."""
        for rank in range(1, size):
            here, there = context.Pipe(duplex=False)
            threads, method = torch.get_num_threads() // size, multiprocessing.get_start_method()
            arguments = (there, rank, size, across, device, store, threads, method, worker, args)
            process = context.Process(target=_run_worker, args=arguments, name=f"divcon {rank} of {size}")
            process.start()
            there.close()
            self._running.append((process, here))
        threading.Thread(target=self._watch, daemon=True).start()

    def wait_for_start(self) -> None:
        """Wait until all have started.

        Raises:
            WorkerError: one ended before its first line.
        """
        for rank, (process, pipe) in enumerate(self._running, 1):
            try:
                pipe.recv()
            except EOFError:
                process.join()
                raise WorkerError(
                    f"process {rank} of {self._size} did not start (its error stands above); a script that trains on "
                    'several devices needs the line if __name__ == "__main__": around what it does'
                ) from None

    def failure(self, *, wait_for_it: bool) -> DivconError | None:
        """The error that ended another rank; None where none has failed."""
        wait([process.sentinel for process, _ in self._running], NOTICED_S if wait_for_it else 0)
        lost = None
        for rank, (process, pipe) in enumerate(self._running, 1):
            with suppress(EOFError, OSError):
                if pipe.poll(0):
                    return pipe.recv()
            if code := self._exit_code(process):
                lost = WorkerError(
                    f"process {rank} of {self._size} ended ({_describe(code)}); memory may have run out. The last "
                    "checkpoint stays: go on with `resume=True`"
                )
        return lost

    def end(self) -> None:
        """Wait for all processes to end, and kill those that do not."""
        self.main_done = True
        until = time.monotonic() + 10
        for process, pipe in self._running:
            process.join(max(0.0, until - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
            pipe.close()

    def _watch(self) -> None:
        """Interrupt rank 0 when another rank dies: waiting for a device, or busy elsewhere, it would not notice."""
        sentinels = {process.sentinel: process for process, _ in self._running}
        while sentinels and not self.main_done:
            for ended in wait(list(sentinels), 1):
                if self._exit_code(sentinels.pop(ended)):  # type: ignore[arg-type]
                    self._interrupt()
                    return

    def _exit_code(self, process: BaseProcess) -> int | None:
        with self._reaping:
            if wait([process.sentinel], 0):
                process.join()
            return process.exitcode

    def _interrupt(self) -> None:
        for act in (_thread.interrupt_main, self._exit):
            time.sleep(NOTICED_S)
            if self.main_done:
                return
            act()

    def _exit(self) -> None:
        logging.getLogger("divcon").critical("%s", self.failure(wait_for_it=False))
        os._exit(1)


def _run_worker(
    pipe: Connection,
    rank: int,
    size: int,
    across: str,
    device: str,
    store: str,
    threads: int,
    start_method: str,
    worker: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    """What a spawned process runs."""
    _ignore_signals()
    # A spawned process would spawn the workers of its data loaders, too, which takes seconds each time.
    multiprocessing.set_start_method(start_method, force=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device == "cpu":
        torch.set_num_threads(max(1, threads))
    pipe.send("started")
    try:
        with _process_group(device, rank, size, store):
            worker(ProcessGroup(rank, size, across), *args)
    except BaseException as error:
        if not _is_lost(error):
            text = "".join(traceback.format_exception(error))
            pipe.send(error if isinstance(error, DivconError) else WorkerError(f"process {rank}: {text}"))
        sys.stderr.flush()
        os._exit(1)


def _ignore_signals() -> None:
    """Leave stopping to rank 0: Ctrl-C reaches all processes of a terminal, torchrun's SIGTERM all that it started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _local_device(started: StartedGroup) -> int:
    """The number of the CUDA device of a process that a launcher has started.

    Raises:
        ConfigError: there are fewer devices here than processes, or the launcher does not say which is whose.
    """
    count, place, here = torch.cuda.device_count(), started.local_rank, started.local_world_size
    if place is None:
        if count >= started.world_size:
            return started.rank  # all on this machine
        raise ConfigError(
            f"`devices` {started.world_size}: PyTorch finds {count} CUDA devices here, and LOCAL_RANK, which says "
            "whose each is, is missing; start the processes with torchrun",
            field="devices",
        )
    if place < count and (here is None or here <= count):
        return place
    if count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        return 0  # the launcher shows each process its own
    raise ConfigError(
        f"`devices` {started.world_size}: PyTorch finds {count} CUDA devices on this machine, and "
        f"{here or place + 1} processes were started on it; start as many as it has devices",
        field="devices",
    )


@contextmanager
def _joined(device: str) -> Iterator[Any]:
    """Join the group that was started; yields the group for tensors on the CPU, None for the default one. A group that
    somebody else has initialised stays as it is."""
    if not is_initialised():
        with _process_group(device):
            yield None
    elif "cpu:gloo" in dist.get_backend_config():
        yield None
    else:
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        try:
            yield group
        finally:
            dist.destroy_process_group(group)


@contextmanager
def _process_group(device: str, rank: int = 0, size: int = 1, store: str | None = None) -> Iterator[None]:
    """Initialise PyTorch's process group for the block, through a store in a file, or as the environment says."""
    if device == "cuda" and store is not None:
        torch.cuda.set_device(rank)
    try:
        if store is None:
            meeting, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
            # torchrun keeps its store when it starts the processes again, with the addresses of those that are gone.
            shared: Any = PrefixStore(f"divcon {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", meeting)
        else:
            shared = FileStore(store, size)
        dist.init_process_group(BACKENDS[device], timeout=TIMEOUT, store=shared, rank=rank, world_size=size)
    except BaseException:
        # PyTorch has counted this group: until one is destroyed, it would look for the next under another name than the
        # other ranks do.
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        dist.destroy_process_group()
        raise
    try:
        with own_group():
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _share_of_threads(size: int) -> Iterator[None]:
    """Use one ``size``-th of the threads: the processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // size))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_lost(error: BaseException) -> bool:
    """Whether the error says that another rank is gone."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error).lower()


def _describe(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exit code {exitcode}"
    with suppress(ValueError):
        return signal.Signals(-exitcode).name
    return f"signal {-exitcode}"
