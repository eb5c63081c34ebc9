"""What the processes that a launcher has started do with a command: one rule for all commands.

`train` and `evaluate` share the work. `index --parts` gives each process a shard of its own, and so does `encode` into
a folder, unless an engine (`--engine`) shares it out. Commands that train several runs one after the other are refused.
Every other command runs in process 0, and the others end at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console

from divcon.errors import ConfigError
from divcon.runtime.launchers import started_group, started_task

SHARED = ("train", "evaluate")
"""Commands whose work the processes share."""
SHARDED = {"index": "--parts", "encode": "--out"}
"""Commands that take a shard of the work each, without a word to the others, into the folder of this option."""
SEVERAL = ("ablate", "demo", "reproduce")
"""Commands that train one run after the other."""

T = TypeVar("T")


@contextmanager
def as_rank(words: Sequence[str], consoles: Sequence[Console]) -> Iterator[bool]:
    """Run a command inside of the block, as one of the processes that a launcher has started; yields whether this
    process has anything to do. Of processes that share the work, the first alone prints to the consoles.

    Raises:
        ConfigError: the command cannot be run by several processes, or a launcher has set half of its variables.
        DivconError, Stopped: as `divcon.runtime.launch.join`.
    """
    command = next((word for word in words if not word.startswith("-")), "")
    if command in SHARED:
        group = started_group()
        if group is None or group.world_size == 1:
            yield True
            return
        from divcon.runtime.launch import join
        from divcon.runtime.signals import SignalHandler

        with SignalHandler(), join():
            for console in consoles:
                console.quiet = group.rank > 0
            try:
                yield True
            finally:
                for console in consoles:
                    console.quiet = False
        return
    number, count = started_task()
    if count == 1:
        yield True
        return
    if command in SEVERAL:
        raise ConfigError(
            f"divcon {command} trains several runs, and {count} processes were started; start one, which takes several "
            "devices by itself: `devices=N`",
            field="devices",
        )
    folder = _value(words, SHARDED.get(command, ""))
    is_folder = folder is not None and not folder.endswith(".parquet")
    yield number == 0 or (is_folder and _value(words, "--engine") is None)


def _value(words: Sequence[str], option: str) -> str | None:
    """The value of an option as typed; None without it."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return after
        if option and word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def of_first(work: Callable[[], T]) -> T:
    """What ``work`` returns in process 0, which alone calls it, for all processes that share the command's work: the
    others need none of its folders."""
    group = started_group()
    if group is None or group.world_size == 1:
        return work()
    from divcon.runtime.exchange import from_main
    from divcon.runtime.launch import current_group

    return from_main(current_group(), work)
