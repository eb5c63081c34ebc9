"""Ablation: train several arms at the same budget, choose their settings by the same number of trials on train classes,
and compare them on the test classes."""

from __future__ import annotations

from divcon.experiments.ablation import ablate
from divcon.experiments.arms import ARMS, Arm, arms_of, read_space
from divcon.experiments.results import picture, read_results, table

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
