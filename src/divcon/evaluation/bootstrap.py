"""Confidence intervals of means over queries, by bootstrap over classes; Wilson's where that has no width.

Queries of one class are not independent, so that an interval from a bootstrap over queries would be too narrow.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from divcon.evaluation.task import column

_DRAWN_AT_ONCE = 2**22


def bootstrap_interval(
    values: object, classes: object, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of a mean over queries; each draw takes as many classes as there are, with replacement.

    Args:
        values: (Q,) numbers, one a query, such as hits at rank 1; NaN where the query was left out of the mean.
        classes: (Q,) ints or strings, the class of each query.
        level: the share of the drawn means inside the interval.
        draws: number of draws.
        seed: draws are the same for the same seed and number of classes.

    Returns:
        The lower and the upper end; (nan, nan) where all queries are of one class.

    Raises:
        ValueError: lengths that differ, no value that is not NaN, level outside (0, 1), draws below 1.
    """
    sums, counts = _by_class(values, classes)
    return _interval(sums[None], counts, level, draws, seed)


BOOTSTRAP, WILSON = "bootstrap over classes", "Wilson, over classes"
"""The methods of `share_interval`."""


def share_interval(
    values: object, classes: object, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, str]:
    """The interval of a share of queries, such as Recall@1, and its method.

    It is that of `bootstrap_interval`, but where that has no width, or does not exist: where all values are 0, or all
    are 1, every draw has the same mean, which does not make the share certain; and one class cannot be drawn from.
    There it is `wilson_interval` with the number of classes as the number of trials. That is conservative: as if the
    queries of a class were copies of one query.

    Args:
        values: (Q,) numbers from 0 to 1, one a query; NaN where the query was left out.
        classes, level, draws, seed: as of `bootstrap_interval`.

    Returns:
        The lower and the upper end, and ``"bootstrap over classes"`` or ``"Wilson, over classes"``.

    Raises:
        ValueError: as of `bootstrap_interval`.
    """
    sums, counts = _by_class(values, classes)
    low, high = _interval(sums[None], counts, level, draws, seed)
    if high > low:
        return low, high, BOOTSTRAP
    share = float(min(1.0, max(0.0, sums.sum() / counts.sum())))
    return *wilson_interval(share, int((counts > 0).sum()), level=level), WILSON


def wilson_interval(share: float, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of ``trials`` (E. B. Wilson, 1927), which has a width at 0 and 1 too.

    Raises:
        ValueError: a share outside [0, 1], no trial, or level outside (0, 1).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, not {trials}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    middle = share + z2 / (2 * trials)
    half = (z2 * (share * (1 - share) + z2 / (4 * trials)) / trials) ** 0.5
    low, high = ((middle + side * half) / (1 + z2 / trials) for side in (-1, 1))
    return min(share, max(0.0, low)), max(share, min(1.0, high))  # but for rounding, the share lies inside


def bootstrap_difference(
    values_a: object,
    values_b: object,
    classes: object,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of mean(a) - mean(b) of two models on the same queries: both use the same drawn classes.

    Queries that either leaves out are left out. Arguments, result and errors as for ``bootstrap_interval``.
    """
    a, b = _values(values_a), _values(values_b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values of the one and {len(b)} of the other: pass those of the same queries")
    return bootstrap_interval(a - b, classes, level=level, draws=draws, seed=seed)


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
        level: the share of the drawn differences inside the interval.
        draws: number of draws.
        seed: draws are the same for the same seed, number of seeds and number of classes.

    Returns:
        The lower and the upper end; (nan, nan) where all queries are of one class.

    Raises:
        ValueError: shapes that differ, a value that is not finite, no value, level outside (0, 1), draws below 1.
    """
    a, b = np.asarray(hits_a, np.float64), np.asarray(hits_b, np.float64)
    code = np.unique(np.asarray(classes), return_inverse=True)[1]
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] != len(code) or not a.size:
        raise ValueError(
            f"hits of shapes {a.shape} and {b.shape} for the classes of {len(code)} queries; pass two of shape (S, Q)"
        )
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError("a value is NaN or infinite; leave out queries without a match")
    # A draw needs only the sum of each seed and class.
    sums = np.stack([np.bincount(code, weights=row) for row in a - b])
    return _interval(sums, np.bincount(code), level, draws, seed)


def runs_interval(
    sums: np.ndarray, counts: np.ndarray, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The interval of a mean over queries and runs when seeds and classes are drawn; with one run only classes are.

    Where a bootstrap has no width and the scores are shares, it is Wilson's, as of `share_interval`.

    Args:
        sums: (S, C), the sum of the values of each run and class.
        counts: (C,) ints, the queries of each class.
        level, draws, seed: as of `bootstrap_interval`.

    Returns:
        The lower and the upper end; (nan, nan) where all queries are of one class and the mean is no share.

    Raises:
        ValueError: level outside (0, 1), draws below 1.
    """
    low, high = _interval(np.asarray(sums, np.float64), np.asarray(counts), level, draws, seed)
    mean = float(np.mean(sums, axis=0).sum() / np.sum(counts))
    if high > low or not -1e-9 <= mean <= 1 + 1e-9:
        return low, high
    return wilson_interval(min(1.0, max(0.0, mean)), int((np.asarray(counts) > 0).sum()), level=level)


def _interval(sums: np.ndarray, counts: np.ndarray, level: float, draws: int, seed: int) -> tuple[float, float]:
    """The interval of the mean, from the (S, C) sums of each seed and class and the (C,) queries of each class."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    num_seeds, num_classes = sums.shape
    if num_classes == 1:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // sums.size)
    means = []
    for i in range(0, draws, step):
        size = min(step, draws - i)
        of_seeds = sums[generator.integers(num_seeds, size=(size, num_seeds))].mean(axis=1) if num_seeds > 1 else sums
        drawn = generator.integers(num_classes, size=(size, num_classes))
        drawn_sums = np.take_along_axis(np.broadcast_to(of_seeds, drawn.shape), drawn, axis=1)
        means.append(drawn_sums.sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _values(values: object) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()  # pyright: ignore[reportAttributeAccessIssue]
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"one value a query is needed, not an array of shape {array.shape}")
    return array


def _by_class(values: object, classes: object) -> tuple[np.ndarray, np.ndarray]:
    """(C,) float64 sums and (C,) int64 counts of the values that are not NaN, classes in sorted order."""
    array, names = _values(values), column(classes, "classes")
    if len(array) != len(names):
        raise ValueError(f"{len(array)} values for the classes of {len(names)} queries")
    kept = ~np.isnan(array)
    if not kept.any():
        raise ValueError("there is no query to draw: every value is NaN or there is none")
    code = np.unique(names[kept], return_inverse=True)[1]
    return np.bincount(code, weights=array[kept]), np.bincount(code)
