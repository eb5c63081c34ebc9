"""The memory of this machine, and what the processes on it may each take."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from divcon.runtime.distributed import ProcessGroup

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory() -> int:
    """The bytes of this machine's memory, or of its container's where that has less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # "max" is no limit
            total = min(total, int(text))
    return total


def processes_here(group: ProcessGroup) -> int:
    """The number of a group's processes on this machine: as the launcher says, otherwise all."""
    if group.alone:
        return 1
    return min(int(os.environ.get("LOCAL_WORLD_SIZE") or group.world_size), group.world_size)


def budget_in_bytes(size: float, group: ProcessGroup, gpu: int | None = None) -> int:
    """What a setting means for each process of a group, in bytes; 0: no limit. A share of the memory is that of the
    machine of rank 0, divided among the processes there. All processes call this at once, and get the same number.

    Args:
        gpu: the bytes of the process's own GPU, if the data goes there: at most that share of them.
    """
    here = int(size)
    if 0 < size <= 1:
        here = int(size * machine_memory()) // processes_here(group)
        here = here if gpu is None else min(here, int(size * gpu))
    return int(group.broadcast(np.array([here], np.int64))[0])
