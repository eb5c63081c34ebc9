"""Training: divide, train the learners in turn, conquer. ``divcon.train`` is the function `train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.context import Progress
from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.training.estimator import DivideAndConquer
    from divcon.training.loop import train
    from divcon.training.losses import create_losses
    from divcon.training.report import EpochReport
    from divcon.training.sampler import LearnerBatchSampler, plan_epoch
    from divcon.training.schedule import Phase

__all__ = [
    "DivideAndConquer",
    "EpochReport",
    "LearnerBatchSampler",
    "Phase",
    "Progress",
    "create_losses",
    "plan_epoch",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DivideAndConquer": "estimator",
        "EpochReport": "report",
        "LearnerBatchSampler": "sampler",
        "Phase": "schedule",
        "create_losses": "losses",
        "plan_epoch": "sampler",
        "train": "loop",
    },
)
