"""The runs in an ablation's results, by arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from divcon.ablation.results import Results
from divcon.errors import RunError


def runs_by_arm(
    results: Results, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The runs that are done, by the arm's name, each arm's in the order of their seeds; arms without any are left out.

    Args:
        arms: in this order; None: all, as they were asked for.
        seeds: in this order; None: all.

    Raises:
        RunError: none is done.
    """
    runs = results["runs"]
    arms = list(results["settings"].get("arms", {})) or [run["method"] for run in runs] if arms is None else arms
    seeds = sorted({run["seed"] for run in runs}) if seeds is None else seeds
    found = {
        arm: [run for seed in seeds for run in runs if (run["method"], run["seed"]) == (arm, seed)] for arm in arms
    }
    found = {arm: some for arm, some in found.items() if some}
    if not found:
        raise RunError("none of the runs is done yet; there is nothing to tabulate")
    return found


def reference_of(by_arm: dict[str, list[dict[str, Any]]], asked: str | None = None) -> str:
    """The arm that the others are compared with: the one that is asked for, single, or the first; of those that have
    a run."""
    return next(name for name in (asked, "single", *by_arm) if name in by_arm)
