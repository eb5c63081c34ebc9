"""Ablation: several ways to train at the same budget, chosen by the same number of trials on train classes, and
compared on the test classes."""

from divcon.ablation.arms import ARMS, Arm, arms_of
from divcon.ablation.picture import picture
from divcon.ablation.results import read_results
from divcon.ablation.space_file import read_space
from divcon.ablation.study import ablate
from divcon.ablation.table import table

__all__ = [
    "ARMS",
    "Arm",
    "ablate",
    "arms_of",
    "picture",
    "read_results",
    "read_space",
    "table",
]
