"""The group of processes that a launcher (torchrun, or any that sets its variables) has started this process in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from divcon.errors import ConfigError

START = "start the processes with torchrun: torchrun --nproc-per-node N -m divcon ..."
_TASKS = {
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"): ("SLURM", "srun --ntasks-per-node=1 torchrun --nnodes NODES ..."),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"): ("Open MPI", "torchrun on each node in place of mpirun"),
    ("PMI_RANK", "PMI_SIZE"): ("MPI", "torchrun on each node in place of mpirun"),
}
"""The variables of launchers that say nothing to PyTorch: with each, its name and what to use."""


@dataclass(frozen=True)
class StartedGroup:
    """This process's place among those that a launcher has started."""

    rank: int
    world_size: int
    local_rank: int | None = None
    """The place among the processes of this machine; None where the launcher does not say."""
    local_world_size: int | None = None
    """The number of processes on this machine; None where the launcher does not say."""


def started_group() -> StartedGroup | None:
    """The group that PyTorch is initialised with, or that the environment names; None where there is neither.

    Raises:
        ConfigError: the environment names a half: each process would train the whole on its own.
    """
    distributed = _initialised()
    if distributed is not None:
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
        return StartedGroup(rank, world_size, _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE"))
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    if rank is None and world_size is None:
        for (_, name), (launcher, instead) in _TASKS.items():
            if (count := _number(name)) is not None and count > 1:
                raise ConfigError(
                    f"{launcher} has started {count} processes ({name}), and each would do the whole on its own, as "
                    f"PyTorch's variables RANK and WORLD_SIZE are missing; use {instead}, or start one process"
                )
        return None
    names = ["RANK", "WORLD_SIZE"] + ["MASTER_ADDR", "MASTER_PORT"] * (world_size != 1)
    missing = [name for name in names if not os.environ.get(name)]
    if rank is None or world_size is None or missing:
        there = ", ".join(f"{name}={os.environ[name]}" for name in names if name not in missing)
        raise ConfigError(
            f"the environment has {there} without {' and '.join(missing)}, so that the processes cannot meet; {START} "
            "(or, to train in this process alone, unset them)"
        )
    if not 0 <= rank < world_size:
        raise ConfigError(f"RANK={rank} is not below WORLD_SIZE={world_size}; {START}")
    return StartedGroup(rank, world_size, _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE"))


def started_size() -> int | None:
    """The number of processes that a launcher has started; None where there is no launcher, or only half of one."""
    try:
        group = started_group()
    except ConfigError:
        return None  # an error of what trains, and not of what reads settings
    return None if group is None else group.world_size


def started_task() -> tuple[int, int]:
    """The number of this process, from 0, and the number of all that a launcher has started, for work that needs no
    communication; (0, 1) without a launcher.

    Raises:
        ConfigError: the environment names half of a group, or no whole numbers.
    """
    for name, of in (("RANK", "WORLD_SIZE"), *_TASKS):
        number, count = _number(name), _number(of)
        if number is not None and count is not None and number < count:
            return number, count
        # PyTorch's variables go together; a batch script of SLURM has the first of its own alone.
        if name == "RANK" and (number is not None or count is not None):
            raise ConfigError(f"the environment has {name}={number} and {of}={count}, which name no process; {START}")
    return 0, 1


def is_first() -> bool:
    """Whether this process is alone, or rank 0 of those that a launcher has started.

    Raises:
        ConfigError: as `started_group`.
    """
    group = started_group()
    return group is None or group.rank == 0


def is_restarted_alone() -> bool:
    """Whether torchrun has started this process alone, and may start it again, by itself or with others."""
    return "TORCHELASTIC_RESTART_COUNT" in os.environ and _number("WORLD_SIZE") == 1 and not is_initialised()


def is_initialised() -> bool:
    """Whether somebody has initialised PyTorch's process group in this process."""
    return _initialised() is not None


def _initialised() -> Any:
    """``torch.distributed``, if somebody else has initialised its process group; PyTorch is not imported for that."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and not _own and distributed.is_initialized() else None


_own: list[None] = []
"""Not empty while the process group is one that divcon has initialised."""


@contextmanager
def own_group() -> Iterator[None]:
    """A process group that divcon initialises inside of the block is none that a launcher has started."""
    _own.append(None)
    try:
        yield
    finally:
        _own.pop()


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name}={text}: a launcher sets it to a whole number; {START}")
    return int(text)
