"""Ablation: train several arms at the same budget, choose their settings by the same number of trials on train classes,
and compare them on the test classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.experiments.ablation import ablate
    from divcon.experiments.arms import ARMS, Arm, arms_of, read_space
    from divcon.experiments.curves import recall_curves
    from divcon.experiments.results import picture, read_results, score_table, table

__all__ = [
    "ARMS",
    "Arm",
    "ablate",
    "arms_of",
    "picture",
    "read_results",
    "read_space",
    "recall_curves",
    "score_table",
    "table",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ARMS": "arms",
        "Arm": "arms",
        "ablate": "ablation",
        "arms_of": "arms",
        "picture": "results",
        "read_results": "results",
        "read_space": "arms",
        "recall_curves": "curves",
        "score_table": "results",
        "table": "results",
    },
)
