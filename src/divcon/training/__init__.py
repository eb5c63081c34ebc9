"""Training: divide, train the learners in turn, conquer. ``divcon.train`` is the function `train`."""

from __future__ import annotations

from divcon.runtime.context import Progress
from divcon.training.loop import train
from divcon.training.report import EpochReport
from divcon.training.schedule import Phase

__all__ = ["EpochReport", "Phase", "Progress", "train"]
