"""Train: divide, the learners in turn, conquer. ``divcon.train(...)`` is the function `train`."""

from __future__ import annotations

from divcon.training.loop import train
from divcon.training.report import EpochReport, Progress
from divcon.training.schedule import Phase

__all__ = ["EpochReport", "Phase", "Progress", "train"]
