"""Join the process group that a launcher has started, or launch the processes of one machine, and end all where one
fails.

``devices=N`` without a launcher starts the other ranks by ``torch.multiprocessing.start_processes``, which watches them
and keeps their errors, and not by torchrun's elastic agent: rank 0 is the process that the user has started, with the
model that it trains in place, its callbacks, and the generator that ``divcon.train`` is, which no process that an agent
starts could have. There is nothing that the agent could restart, as rank 0 itself is never lost without the rest. Who
wants restarts or several machines starts torchrun.
"""

from __future__ import annotations

import _thread
import copy
import itertools
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed import FileStore, HashStore, PrefixStore  # type: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing.spawn import ProcessException, ProcessRaisedException, start_processes

from divcon.errors import ConfigError, DivconError, RunError, Stopped, WorkerError, as_text, error_of
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.launchers import StartedGroup, is_initialised, is_restarted_alone, own_group, started_group
from divcon.runtime.watch import Watch

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
MEETING = timedelta(minutes=30)
"""How long a rank waits for the others to join: they may be started one after the other."""
TIMEOUT = timedelta(days=2)
"""How long a collective waits for the other ranks, as rank 0 may evaluate for hours; a death is noticed earlier."""
NOTICED_S = 25
"""Seconds that rank 0 has to notice itself that another rank died; then it is interrupted."""


@dataclass(frozen=True)
class _Joined:
    """The group that this process has joined."""

    group: ProcessGroup
    watch: Watch
    meeting: Any = None
    """The store of the launcher, which outlives a restart; None where there is none."""


_joined: list[_Joined] = []
"""The group that this process has joined, if any."""

_PROCESS = uuid4().hex
"""This process, which no other is, on any machine."""

_numbers = itertools.count()
"""Of the groups that this process has joined: the same in all ranks."""


@contextmanager
def join() -> Iterator[ProcessGroup]:
    """Join the group that a launcher has started, for the block; `ALONE` without one. In a block within it is the same
    group. Rank 0 alone needs folders: the others get what stands in these by `divcon.runtime.exchange.from_main`.

    Raises:
        ConfigError: a launcher has set half of its variables.
        DivconError: the error that has ended another rank (``elsewhere`` says whether that reports it).
        WorkerError: another process was lost, which says nothing.
        Stopped: another rank was asked to stop.
    """
    started = started_group()
    if _joined or started is None or started.world_size == 1:
        yield _joined[-1].group if _joined else ALONE
        return
    rank, size = started.rank, started.world_size
    with ended_in_words():
        meeting, store, cpu_group, leave = _meet(started)
        # The keys of a group that was joined before, and whose ranks have left, mean nothing to this one.
        watch = Watch(PrefixStore(f"join {next(_numbers)}", store), rank, size, beats=True)
        try:
            with watch:
                _joined.append(_Joined(ProcessGroup(rank, size, cpu_group=cpu_group), watch, meeting))
                try:
                    with ended_in_words():
                        yield _joined[-1].group
                except DivconError as error:
                    if not error.elsewhere and not isinstance(error, WorkerError):
                        watch.announce_error(error)
                    raise
                finally:
                    _joined.pop()
        except BaseException as error:
            leave()  # the others' connections end
            if not isinstance(error, WorkerError):
                watch.wait_for_others()
            raise
        leave()


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
        Stopped: another process was asked to stop.
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
        with join() as group:
            yield ProcessGroup(group.rank, size, across, group.cpu_group)
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
        store = FileStore(f"{folder}/store", devices)
        workers = _Workers(devices, across, device, store, worker, args)
        try:
            workers.wait_for_start()
            group = ProcessGroup(0, devices, across)
            with _share_of_threads(devices if device == "cpu" else 1), _spawned_group(device, group, store):
                yield group
        except (Exception, KeyboardInterrupt) as error:
            workers.main_done = True
            failure = workers.failure(wait_for_it=_is_lost(error) or _says_lost(error))
            if failure is not None and not (isinstance(error, DivconError) and not _says_lost(error)):
                raise failure from None
            raise
        finally:
            workers.end()


@contextmanager
def ended_in_words() -> Iterator[None]:
    """Inside of the block, an error of PyTorch which says that another rank is gone becomes what has ended that: its
    own error, or `Stopped`; or `WorkerError`, where nobody knows."""
    try:
        yield
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise _reason() from None


def _reason() -> DivconError | Stopped:
    """Why another rank is gone."""
    watch = _joined[-1].watch if _joined else None
    if watch is not None and (number := watch.stopped()) is not None:
        return Stopped("stopped", number)
    if watch is not None and (of := watch.error()) is not None:
        rank, host, error = of
        error = copy.copy(error)
        if rank and _joined[-1].group.is_main:
            error.args = (f"rank {rank} on {host}: {error}", *error.args[1:])
        error.elsewhere = not _joined[-1].group.is_main
        return error
    return WorkerError("another process of the group ended; its own output says why. Go on with `resume=True`")


def _says_lost(error: BaseException) -> bool:
    return isinstance(error, WorkerError) and str(error).startswith("another process of the group ended")


@contextmanager
def started(device: str) -> Iterator[ProcessGroup]:
    """The group that a launcher has started, for work that shares out images, with this process's own device; `ALONE`
    without one.

    Raises:
        ConfigError, WorkerError: as `launch`.
    """
    group = started_group()
    with launch(1 if group is None else group.world_size, "batch", device, _nothing) as processes:
        yield processes


def _nothing(group: ProcessGroup) -> None:
    """What no process runs: a launcher has started all."""


def current_group() -> ProcessGroup:
    """The group that this process has joined; `ALONE` where it has joined none."""
    return _joined[-1].group if _joined else ALONE


def note_begun(folder: Path) -> None:
    """Note in the launcher's store that its processes have begun a run; rank 0 calls it."""
    store = _launcher_store()
    if store is not None:
        store.set(_begun(folder), json.dumps([_PROCESS, socket.gethostname()]))


def begun_before_restart(folder: Path) -> bool:
    """Whether the processes that the launcher had started before, and now starts again, have begun this run; rank 0
    calls it.

    Raises:
        RunError: they have, on another machine, whose folder is not here.
    """
    store = _launcher_store()
    if store is None or not store.check([_begun(folder)]):
        return False
    process, host = json.loads(store.get(_begun(folder)))
    if host != socket.gethostname() and not (folder / "config.json").exists():
        raise RunError(
            f"{folder}: this run was begun on {host}, which had rank 0, and is not here; start it again with that "
            "machine, or use a folder that all machines share as `out`"
        )
    return process != _PROCESS


def _launcher_store() -> Any:
    """The store of torchrun, which is the same after a restart; None without it."""
    if _joined:
        return _joined[-1].meeting
    if is_restarted_alone():
        return PrefixStore("divcon launch", next(rendezvous("env://", timeout=MEETING))[0])
    return None


def _begun(folder: Path) -> str:
    return f"begun {folder.absolute()}"


class _Workers:
    """The processes of the other ranks, and a thread that watches them."""

    def __init__(
        self, size: int, across: str, device: str, store: Any, worker: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        self.main_done = False
        """Whether rank 0 has stopped training."""
        self._size, self._store = size, store
        threads, method = torch.get_num_threads() // size, multiprocessing.get_start_method()
        arguments = (size, across, device, store.path, threads, method, worker, args)
        self._context: Any = start_processes(_run_worker, arguments, nprocs=size - 1, join=False, start_method="spawn")
        self._ended = threading.Event()
        """Whether one has failed, or all have ended."""
        self._failed: ProcessException | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def wait_for_start(self) -> None:
        """Wait until all have started.

        Raises:
            WorkerError: one ended before its first line.
        """
        while not self._have_started():
            if self._ended.wait(0.05) and not self._have_started():
                rank = self._failed.error_index + 1 if self._failed is not None else 1
                raise WorkerError(
                    f"process {rank} of {self._size} did not start (its error stands above); a script that trains on "
                    'several devices needs the line if __name__ == "__main__": around what it does'
                )

    def _have_started(self) -> bool:
        return self._store.check([f"started {rank}" for rank in range(1, self._size)])

    def failure(self, *, wait_for_it: bool) -> DivconError | None:
        """The error that ended another rank; None where none has failed."""
        self._ended.wait(NOTICED_S if wait_for_it else 0)
        failed = self._failed
        if failed is None:
            return None
        with suppress(Exception):
            if self._store.check(["error"]):
                return error_of(self._store.get("error"))
        rank = failed.error_index + 1
        if isinstance(failed, ProcessRaisedException):
            return WorkerError(f"process {rank}: {failed.msg[failed.msg.index('Traceback') :]}")
        how = _describe(getattr(failed, "exit_code", 1))
        return WorkerError(
            f"process {rank} of {self._size} ended ({how}); memory may have run out. The last checkpoint stays: go on "
            "with `resume=True`"
        )

    def end(self) -> None:
        """Wait for all processes to end, and kill those that do not."""
        self.main_done = True
        self._ended.wait(10)
        for process in self._context.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def _watch(self) -> None:
        """Interrupt rank 0 when another rank dies: waiting for a device, or busy elsewhere, it would not notice."""
        try:
            while not self._context.join(1, grace_period=5):
                pass
        except ProcessException as error:
            self._failed = error
        self._ended.set()
        if self._failed is None:
            return
        for act in (_thread.interrupt_main, self._exit):
            time.sleep(NOTICED_S)
            if self.main_done:
                return
            act()

    def _exit(self) -> None:
        logging.getLogger("divcon").critical("%s", self.failure(wait_for_it=False))
        os._exit(1)


def _run_worker(
    index: int,
    size: int,
    across: str,
    device: str,
    path: str,
    threads: int,
    start_method: str,
    worker: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    """What a spawned process runs. Linux interrupts it when rank 0 is killed; elsewhere its next collective fails."""
    rank = index + 1
    # A spawned process would spawn the workers of its data loaders, too, which takes seconds each time.
    multiprocessing.set_start_method(start_method, force=True)
    if device == "cpu":
        torch.set_num_threads(max(1, threads))
    store = FileStore(path, size)
    store.set(f"started {rank}", "1")
    group = ProcessGroup(rank, size, across)
    try:
        with _spawned_group(device, group, store):
            worker(group, *args)
    except DivconError as error:
        if _says_lost(error):
            sys.exit(0)  # rank 0 reports what has ended
        with suppress(Exception):
            store.set("error", as_text(error))
        raise


@contextmanager
def _spawned_group(device: str, group: ProcessGroup, store: Any) -> Iterator[None]:
    """Join the group of the processes that rank 0 has spawned, through a store in a file."""
    with ended_in_words(), _process_group(device, group.rank, group.world_size, PrefixStore("group", store)):
        watch = Watch(store, group.rank, group.world_size, beats=False)
        with watch:
            _joined.append(_Joined(group, watch))
            try:
                with ended_in_words():
                    yield
            finally:
                _joined.pop()


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


def _meet(started: StartedGroup) -> tuple[Any, Any, Any, Callable[[], object]]:
    """Join the group that was started. A group that somebody else has initialised stays as it is.

    Returns:
        The store of the launcher, or None; a store of this start; the group for tensors on the CPU, None for the
        default one; and what leaves the group.
    """
    if not is_initialised():
        try:
            meeting, rank, size = next(rendezvous("env://", timeout=MEETING))
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            raise _not_met(started.world_size, f" ({str(error).splitlines()[0]})") from None
        # torchrun keeps its store when it starts the processes again, with the addresses of those that are gone; and
        # its agents do not count their restarts alike.
        store = PrefixStore(f"divcon {_agree(PrefixStore('divcon meeting', meeting), rank, size)}", meeting)
        entered = _process_group("cuda" if torch.cuda.is_available() else "cpu", rank, size, store)
        entered.__enter__()
        return PrefixStore("divcon launch", meeting), store, None, lambda: entered.__exit__(None, None, None)
    store = PrefixStore("divcon", dist.distributed_c10d._get_default_store())
    if "cpu:gloo" in dist.get_backend_config():
        return None, store, None, lambda: None
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return None, store, group, lambda: _destroy(group)


def _agree(store: Any, rank: int, size: int) -> str:
    """A name for what these processes do together, which no processes before them have used. Each says that it is
    there; rank 0 offers a name to those; when they have accepted it, they use it.

    Raises:
        WorkerError: not all have come.
    """
    others, until = range(1, size), time.monotonic() + MEETING.total_seconds()
    offered, name, me = None, "", uuid4().hex
    store.set(f"here {rank}", me)
    while time.monotonic() < until:
        if rank == 0 and store.check([f"here {other}" for other in others]):
            there = [each.decode() for each in store.multi_get([f"here {other}" for other in others])]
            if there != offered:  # the others, or those before them, whose places they take
                offered, name = there, uuid4().hex
                store.set("offer", json.dumps([name, *there]))
            if store.check([f"{name} accepted by {other}" for other in others]):
                store.set(f"{name} is used", "yes")
                return name
        elif rank and store.check(["offer"]):
            name, *there = json.loads(store.get("offer"))
            if len(there) == size - 1 and there[rank - 1] == me:
                store.set(f"{name} accepted by {rank}", "yes")
                if store.check([f"{name} is used"]):
                    return name
        time.sleep(0.05)
    raise _not_met(size)


def _not_met(size: int, why: str = "") -> WorkerError:
    return WorkerError(
        f"the {size} processes of the group did not meet within {MEETING} at {os.environ['MASTER_ADDR']}:"
        f"{os.environ['MASTER_PORT']}{why}"
    )


def _destroy(group: Any) -> None:
    with suppress(Exception):
        dist.destroy_process_group(group)


@contextmanager
def _process_group(device: str, rank: int, size: int, store: Any) -> Iterator[None]:
    """Initialise PyTorch's process group for the block, through this store."""
    try:
        dist.init_process_group(BACKENDS[device], timeout=TIMEOUT, store=store, rank=rank, world_size=size)
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
