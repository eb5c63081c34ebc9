"""How far a mean over queries may be from that over all classes of the kind: bootstrap over classes.

Queries of one class stand or fall together, so an interval that draws single queries is too narrow.
"""

from __future__ import annotations

import numpy as np

from divcon.evaluate.exclusion import column

_DRAWN_AT_ONCE = 2**22


def bootstrap_interval(
    values: object, classes: object, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of a mean over queries when as many classes are drawn, with replacement.

    Args:
        values: (Q,) numbers, one a query, such as hits at 1; NaN where the query was left out of the mean.
        classes: (Q,) ints or strings, the class of each query.
        level: the share of the drawn means that lies inside.
        draws: how many times classes are drawn.
        seed: draws are the same for the same seed and number of classes.

    Returns:
        Both ends; (nan, nan) where all queries are of one class, which says nothing of others.

    Raises:
        ValueError: lengths that differ, no value that is not NaN, level outside (0, 1), draws below 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    sums, counts = _by_class(values, classes)
    if len(sums) == 1:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // len(sums))
    means = []
    for i in range(0, draws, step):
        drawn = generator.integers(len(sums), size=(min(step, draws - i), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_difference(
    values_a: object,
    values_b: object,
    classes: object,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of mean(a) - mean(b) of two models on the same queries: both see the same drawn classes.

    Queries that either leaves out are left out. Arguments, result and errors as for ``bootstrap_interval``.
    """
    a, b = _values(values_a), _values(values_b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values of the one and {len(b)} of the other: give the same queries of both")
    return bootstrap_interval(a - b, classes, level=level, draws=draws, seed=seed)


def _values(values: object) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()  # pyright: ignore[reportAttributeAccessIssue]
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"one value a query is needed, an array of shape {array.shape} was given")
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
