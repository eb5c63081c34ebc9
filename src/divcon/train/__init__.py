"""Train: divide, the learners in turn, conquer. ``divcon.train(...)`` is the function `train`."""

from divcon.callable_module import make_callable
from divcon.train.loop import train
from divcon.train.report import EpochReport, Progress
from divcon.train.schedule import Phase

__all__ = ["EpochReport", "Phase", "Progress", "train"]

make_callable(__name__)
