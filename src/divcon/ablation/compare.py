"""Arms against the reference: intervals over seeds and classes, equal seconds, images until it is reached."""

from __future__ import annotations

from typing import Any

import numpy as np


def mean_curve(runs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The mean curve of an arm's runs: (E,) float64 ``epoch``, ``images_seen``, ``seconds``, ``recall_at_1``."""
    names = ("epoch", "images_seen", "seconds", "recall_at_1")
    return {name: np.mean([[point[name] for point in run["curve"]] for run in runs], axis=0) for name in names}


def at_seconds(runs: list[dict[str, Any]], seconds: float) -> float | None:
    """An arm's mean Recall@1 at the last judged epoch that has ended after ``seconds``, on the mean over its runs; None
    where none has."""
    curve = mean_curve(runs)
    ended = np.flatnonzero(curve["seconds"] <= seconds * (1 + 1e-9))
    return float(curve["recall_at_1"][ended[-1]]) if len(ended) else None


def images_to(runs: list[dict[str, Any]], recall_at_1: float) -> float | None:
    """Images that an arm has seen, on the mean over its runs, when its mean Recall@1 first is at ``recall_at_1`` or
    above, of the epochs that were judged; None where it never is."""
    curve = mean_curve(runs)
    reached = np.flatnonzero(curve["recall_at_1"] >= recall_at_1)
    return float(curve["images_seen"][reached[0]]) if len(reached) else None
