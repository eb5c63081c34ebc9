"""Training: divide, train the learners in turn, conquer. ``divcon.train`` is the function `train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.context import Progress
from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.training.loop import train
    from divcon.training.report import EpochReport
    from divcon.training.schedule import Phase

__all__ = ["EpochReport", "Phase", "Progress", "train"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EpochReport": "report",
        "Phase": "schedule",
        "train": "loop",
    },
)
