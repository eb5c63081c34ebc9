"""Bootstrap over classes, against a loop over draws, classes and queries."""

import numpy as np
import pytest
import torch

from divcon.evaluation import bootstrap
from divcon.evaluation.bootstrap import bootstrap_difference, bootstrap_interval, share_interval, wilson_interval


def example(seed=0, num_classes=9):
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.repeat(np.arange(num_classes), generator.integers(1, 12, num_classes)))
    hits = (generator.random(len(classes)) < 0.2 + 0.6 * (classes % 2)).astype(float)
    return hits, classes


def slow_interval(hits, classes, level, draws, seed):
    names = sorted(set(classes))
    drawn_classes = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    means = []
    for drawn in drawn_classes:
        queries = [hit for c in drawn for hit, name in zip(hits, classes, strict=True) if name == names[c]]
        means.append(sum(queries) / len(queries))
    return np.percentile(means, 50 * (1 - level)), np.percentile(means, 100 - 50 * (1 - level))


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_that_of_a_loop(level):
    hits, classes = example()
    interval = bootstrap_interval(hits, classes, level=level, draws=300, seed=4)
    assert interval == pytest.approx(slow_interval(hits, classes, level, 300, 4), abs=1e-12)
    assert interval[0] < hits.mean() < interval[1]


def test_how_many_are_drawn_at_once_changes_nothing(monkeypatch):
    hits, classes = example()
    expected = bootstrap_interval(hits, classes)
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", 100)
    assert bootstrap_interval(hits, classes) == expected


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    hits, classes = example()
    assert bootstrap_interval(hits, classes, seed=1) == bootstrap_interval(hits, classes, seed=1)
    assert bootstrap_interval(hits, classes, seed=1) != bootstrap_interval(hits, classes, seed=2)


def test_queries_of_one_class_are_drawn_together():
    # Repeating every query tells nothing new: the interval stays as wide.
    hits, classes = example()
    repeated = bootstrap_interval(np.tile(hits, 20), np.tile(classes, 20))
    assert repeated == pytest.approx(bootstrap_interval(hits, classes), abs=1e-12)


def test_queries_left_out_are_dropped():
    hits, classes = example()
    padded = bootstrap_interval(np.append(hits, [np.nan, np.nan]), np.append(classes, [3, 77]))
    assert padded == bootstrap_interval(hits, classes)


def test_the_difference_is_paired():
    hits, classes = example(num_classes=40)
    generator = np.random.default_rng(8)
    better = np.where(generator.random(len(hits)) < 0.3, 1.0, hits)
    low, high = bootstrap_difference(better, hits, classes, draws=300, seed=4)
    assert (low, high) == pytest.approx(slow_interval(better - hits, classes, 0.95, 300, 4), abs=1e-12)
    assert low > 0
    apart = [bootstrap_interval(values, classes) for values in (better, hits)]
    assert apart[0][0] < apart[1][1]  # which the two intervals alone do not show
    assert bootstrap_difference(hits, hits, classes) == (0, 0)


def test_a_query_that_either_leaves_out_is_out_of_the_difference():
    hits, classes = example()
    other = 1 - hits
    holes = hits.copy(), other.copy()
    holes[0][3] = holes[1][5] = np.nan
    kept = ~np.isin(np.arange(len(hits)), [3, 5])
    expected = bootstrap_difference(hits[kept], other[kept], classes[kept])
    assert bootstrap_difference(*holes, classes) == expected


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        rates = generator.beta(2, 2, size=40)  # classes differ; their mean rate is 0.5
        classes = np.repeat(np.arange(40), 10)
        hits = generator.random(400) < rates[classes]
        low, high = bootstrap_interval(hits, classes, level=0.9, draws=300, seed=seed)
        covered += low <= 0.5 <= high
    assert 165 <= covered <= 193  # single queries drawn alone would cover about 140 times


def test_strings_tensors_and_booleans():
    hits, classes = example()
    expected = bootstrap_interval(hits, classes)
    assert bootstrap_interval(torch.from_numpy(hits), torch.from_numpy(classes)) == expected
    assert bootstrap_interval(hits.astype(bool), [f"class {c}" for c in classes]) == expected


def test_one_class_says_nothing():
    assert np.isnan(bootstrap_interval([1, 0, 1], [5, 5, 5])).all()


def test_wilson_is_the_solution_of_its_equation():
    """The ends are the shares p whose distance from the share seen is z standard errors of p."""
    z = 1.959963984540054
    for share, trials in ((0.0, 1), (0.0, 20), (1.0, 7), (0.5, 1), (0.3, 10), (0.9, 200)):
        low, high = wilson_interval(share, trials)
        for end in (low, high):
            if 0 < end < 1:
                assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / trials, abs=1e-12)
        assert 0 <= low <= share <= high <= 1
        assert high > low
    assert wilson_interval(1.0, 10) == (pytest.approx(10 / (10 + z**2)), 1.0)
    assert wilson_interval(0.0, 10) == (0.0, pytest.approx(z**2 / (10 + z**2)))
    low, high = wilson_interval(0.0, 10, level=0.5)
    assert high < 0.05
    for wrong in ((1.1, 3), (0.5, 0), (0.5, 3, 1.0)):
        with pytest.raises(ValueError):
            wilson_interval(*wrong[:2], **({"level": wrong[2]} if len(wrong) > 2 else {}))


def test_an_interval_of_a_share_always_has_a_width():
    hits, classes = example()
    assert share_interval(hits, classes) == (*bootstrap_interval(hits, classes), "bootstrap over classes")
    num_classes = len(set(classes))
    for share in (0.0, 1.0):
        interval = share_interval(np.full(len(hits), share), classes)
        assert interval == (*wilson_interval(share, num_classes), "Wilson, over classes")
    # Classes alike, and one class; queries that are left out do not count.
    assert share_interval([1, 0, 1, 0], [1, 1, 2, 2]) == (*wilson_interval(0.5, 2), "Wilson, over classes")
    assert share_interval([1, 0, 0, 0], [5, 5, 5, 5]) == (*wilson_interval(0.25, 1), "Wilson, over classes")
    assert share_interval([1, 1, np.nan], [1, 2, 3]) == (*wilson_interval(1.0, 2), "Wilson, over classes")


@pytest.mark.parametrize(
    ("hits", "classes", "options", "message"),
    [
        ([1, 0], [1], {}, "2 values for the classes of 1"),
        ([np.nan], [1], {}, "no query to draw"),
        ([], [], {}, "no query to draw"),
        ([[1.0]], [1], {}, "one value a query"),
        ([1, 0], [1, 2], {"level": 95}, "between 0 and 1"),
        ([1, 0], [1, 2], {"draws": 0}, "draws"),
    ],
)
def test_bad_input_is_reported(hits, classes, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(hits, classes, **options)


def test_the_same_queries_of_both_are_needed():
    with pytest.raises(ValueError, match="2 values of the one and 3 of the other"):
        bootstrap_difference([1, 0], [1, 0, 1], [1, 2, 3])
