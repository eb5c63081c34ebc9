"""`Context`, an argument of every long call: worker processes, progress, warnings, and the process group."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from divcon.runtime.distributed import ProcessGroup

Stage = Literal["unpack", "decode", "compare", "pack", "fetch", "embed", "divide", "train", "evaluate", "index", "map"]
"""The kind of work whose progress is reported."""


@dataclass(frozen=True)
class Progress:
    """The progress of a piece of work."""

    stage: Stage
    done: int
    """Images, items, or bytes of an archive."""
    total: int | None
    """None: unknown."""
    epoch: int | None = None
    """The epoch of a training, from 0; the fields below are also of a training."""
    phase: str | None = None
    sizes: tuple[int, ...] = ()
    """Number of images of each learner."""
    loss: float | None = None
    """Mean of the epoch so far."""
    images_per_second: float | None = None


def ignore(progress: Progress) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Context:
    """How a call runs and reports; it never changes a result.

    All functions that take long accept one: ``dc.read``, ``dc.train``, ``dc.evaluate``, ``model.encode`` ...

    >>> quick = Context(workers=4, on_progress=lambda p: print(p.stage, p.done, p.total))

    Args:
        workers: processes that decode images; 0 decodes in this one. `divcon.train` takes ``TrainConfig.workers``.
        on_progress: called after each batch, or other unit of the work.
        on_warning: called with each message that a person should read.
        processes: the process group that this process has joined, see `divcon.runtime.launch`. None: it runs alone, and
            `divcon.train` launches as many as ``TrainConfig.devices`` says.
    """

    workers: int = 0
    on_progress: Callable[[Progress], None] = ignore
    on_warning: Callable[[str], None] = logging.getLogger("divcon").warning
    processes: ProcessGroup | None = None

    @property
    def group(self) -> ProcessGroup:
        """The process group; without one, a group of this process."""
        from divcon.runtime.distributed import ALONE  # PyTorch takes seconds to import, and reading does not need it

        return self.processes or ALONE

    def progress(self, stage: Stage, done: int, total: int | None, **fields: Any) -> None:
        """Report progress."""
        self.on_progress(Progress(stage, done, total, **fields))

    def warn(self, message: str) -> None:
        """Report something that a person should read."""
        self.on_warning(message)

    def subtask(
        self, stage: Stage | None = None, *, before: int = 0, total: int | None = None, times: int = 1, **fields: Any
    ) -> Context:
        """The context of a call that is part of a larger piece of work, whose progress is reported instead.

        Args:
            stage: the stage of the whole; None: the call's own.
            before: the number of items done before the call.
            total: the number of items of the whole; None: the call's own total.
            times: the number of items done with each one of the call, if processes share the work.
            fields: further fields of each `Progress`.
        """

        def on_progress(progress: Progress) -> None:
            whole = progress.total if total is None else total
            done = before + times * progress.done
            self.on_progress(replace(progress, stage=stage or progress.stage, done=done, total=whole, **fields))

        return replace(self, on_progress=on_progress)

    def silent(self) -> Context:
        """The same without progress."""
        return replace(self, on_progress=ignore)

    def alone(self) -> Context:
        """The same for work that this process does alone, without its group."""
        return replace(self, processes=None)


DEFAULT = Context()
