"""Arms against the reference: intervals over seeds and classes, equal seconds, images until it is reached."""

from __future__ import annotations

from typing import Any

import numpy as np

_DRAWN_AT_ONCE = 2**22


def bootstrap_runs_difference(
    hits_a: object,
    hits_b: object,
    classes: object,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of mean(a) - mean(b) of two arms when seeds and classes are drawn, with replacement.

    Each draw takes as many seeds, and as many classes, as there are; the same ones for both arms. With one seed only
    classes are drawn.

    Args:
        hits_a: (S, Q) numbers, a run a row, a query a column.
        hits_b: (S, Q), of the same seeds and queries.
        classes: (Q,) ints or strings, the class of each query.
        level: the share of the drawn differences that lies inside.
        draws: how many times.
        seed: draws are the same for the same seed, number of seeds and number of classes.

    Returns:
        Both ends; (nan, nan) where all queries are of one class, which says nothing of others.

    Raises:
        ValueError: shapes that differ, a value that is not finite, no value, level outside (0, 1), draws below 1.
    """
    a, b = np.asarray(hits_a, np.float64), np.asarray(hits_b, np.float64)
    code = np.unique(np.asarray(classes), return_inverse=True)[1]
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] != len(code) or not a.size:
        raise ValueError(f"hits of shapes {a.shape} and {b.shape} for {len(code)} classes; (S, Q) is needed of both")
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError("a value is NaN or infinite; leave queries out that have no match")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level must lie between 0 and 1 and draws be 1 or more, not {level} and {draws}")
    counts = np.bincount(code).astype(np.float64)
    if len(counts) == 1:
        return float("nan"), float("nan")
    # All that a draw needs of the queries: the sum of a seed and class.
    sums = np.stack([np.bincount(code, weights=row) for row in a - b])
    generator = np.random.default_rng(seed)
    num_seeds, num_classes = sums.shape
    step = max(1, _DRAWN_AT_ONCE // num_classes)
    means = []
    for i in range(0, draws, step):
        size = min(step, draws - i)
        of_seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=size)
        of_classes = generator.multinomial(num_classes, np.full(num_classes, 1 / num_classes), size=size)
        means.append(((of_seeds @ sums) * of_classes).sum(axis=1) / (num_seeds * (of_classes @ counts)))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
