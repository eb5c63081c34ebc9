"""Numbers of the comparison, against slow and obvious ways to find them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divcon.evaluation.bootstrap import bootstrap_difference, bootstrap_runs_difference
from divcon.experiments.results import at_seconds, images_to, mean_curve


def slow_interval(a: np.ndarray, b: np.ndarray, classes: np.ndarray, draws: int, seed: int) -> tuple[float, float]:
    """Each draw gathers its queries one by one."""
    names = sorted(set(classes.tolist()))
    rng = np.random.default_rng(seed)
    seeds = rng.integers(len(a), size=(draws, len(a))) if len(a) > 1 else np.zeros((draws, 1), int)
    drawn = rng.integers(len(names), size=(draws, len(names)))
    means = []
    for of_seeds, of_classes in zip(seeds, drawn, strict=True):
        values = []
        for run in of_seeds:
            for place in of_classes:
                queries = [q for q in range(len(classes)) if classes[q] == names[place]]
                values += [a[run, q] - b[run, q] for q in queries]
        means.append(np.mean(values))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def hits(seeds: int, queries: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (seeds, queries))


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_the_interval_is_that_of_the_slow_way(seeds: int) -> None:
    a, b = hits(seeds, 30, 1), hits(seeds, 30, 2)
    classes = np.random.default_rng(3).integers(0, 6, 30) * 7
    interval = bootstrap_runs_difference(a, b, classes, draws=60, seed=5)
    np.testing.assert_allclose(interval, slow_interval(a, b, classes, 60, 5), atol=1e-12)


@given(
    st.integers(1, 4), st.lists(st.integers(0, 4), min_size=2, max_size=20).filter(lambda c: len(set(c)) > 1), st.data()
)
def test_equal_arms_differ_by_nothing_and_swapped_arms_by_the_opposite(
    seeds: int, classes: list[int], data: st.DataObject
) -> None:
    def drawn() -> np.ndarray:
        row = st.lists(st.integers(0, 1), min_size=len(classes), max_size=len(classes))
        return np.array(data.draw(st.lists(row, min_size=seeds, max_size=seeds)))

    a, b = drawn(), drawn()
    assert bootstrap_runs_difference(a, a, classes, draws=50) == (0, 0)
    low, high = bootstrap_runs_difference(a, b, classes, draws=50)
    np.testing.assert_allclose(bootstrap_runs_difference(b, a, classes, draws=50), (-high, -low), atol=1e-12)
    assert -1 <= low <= high <= 1


def test_one_seed_is_the_interval_over_classes() -> None:
    a, b = hits(1, 3000, 1), hits(1, 3000, 2)
    classes = np.repeat(np.arange(300), 10)
    interval = bootstrap_runs_difference(a, b, classes, draws=4000)
    np.testing.assert_allclose(interval, bootstrap_difference(a[0], b[0], classes, draws=4000), atol=0.004)


def test_seeds_that_disagree_make_it_wider() -> None:
    classes = np.repeat(np.arange(200), 5)
    b = np.zeros((4, 1000), int)
    a = b.copy()
    a[0] = 1  # all of the difference is of one seed
    low, high = bootstrap_runs_difference(a, b, classes)
    assert low == 0
    assert high >= 0.5


def test_one_class_says_nothing() -> None:
    assert np.isnan(bootstrap_runs_difference([[1, 0]], [[0, 0]], ["a", "a"])).all()


@pytest.mark.parametrize(
    ("a", "b", "classes", "options", "message"),
    [
        ([[1, 0]], [[1, 0], [1, 0]], [0, 1], {}, r"\(1, 2\) and \(2, 2\)"),
        ([[1, 0]], [[1, 0]], [0, 1, 2], {}, "classes of 3 queries"),
        ([1, 0], [1, 0], [0, 1], {}, "pass two of shape"),
        ([[1, np.nan]], [[1, 0]], [0, 1], {}, "without a match"),
        ([[1, 0]], [[1, 0]], [0, 1], {"level": 1.0}, "level"),
        ([[1, 0]], [[1, 0]], [0, 1], {"draws": 0}, "draws"),
    ],
)
def test_what_cannot_be_drawn_is_reported(a: Any, b: Any, classes: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_runs_difference(a, b, classes, **options)


def run(seconds: list[float], scores: list[float]) -> dict[str, Any]:
    curve = [
        {"epoch": i, "images_seen": 10 * (i + 1), "seconds": s, "recall_at_1": r}
        for i, (s, r) in enumerate(zip(seconds, scores, strict=True))
    ]
    return {"curve": curve}


def test_curves_are_the_mean_over_seeds() -> None:
    runs = [run([1, 2, 4], [0.2, 0.4, 0.6]), run([3, 4, 6], [0.4, 0.4, 0.4])]
    np.testing.assert_allclose(mean_curve(runs)["seconds"], [2, 3, 5])
    np.testing.assert_allclose(mean_curve(runs)["recall_at_1"], [0.3, 0.4, 0.5])
    assert at_seconds(runs, 1.9) is None
    assert at_seconds(runs, 2.0) == pytest.approx(0.3)
    assert at_seconds(runs, 4.9) == pytest.approx(0.4)
    assert at_seconds(runs, 100) == pytest.approx(0.5)
    assert images_to(runs, 0.35) == 20
    assert images_to(runs, 0.1) == 10
    assert images_to(runs, 0.51) is None
