"""Dividing within a memory budget, against dividing with all features in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from divcon.division import Division, divide
from divcon.division.division import class_means, classes_with_pairs, normalized
from divcon.division.kmeans import kmeans
from divcon.division.streamed import (
    POINTS_PER_CLUSTER,
    _means,
    _Points,
    assign,
    bytes_of_points,
    divide_streamed,
    points_within,
)
from divcon.errors import DataError


class Source:
    """Features that are embedded in batches, and how often each was."""

    def __init__(self, features: np.ndarray, batch: int = 7) -> None:
        self.features, self.batch = features, batch
        self.embedded = np.zeros(len(features), int)

    def __call__(self, images: np.ndarray) -> Iterator[np.ndarray]:
        for i in range(0, len(images), self.batch):
            some = images[i : i + self.batch]
            self.embedded[some] += 1
            yield self.features[some]


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng, labels = np.random.default_rng(0), np.random.default_rng(1).permutation(np.repeat(np.arange(60), 10))
    return (rng.normal(size=(60, 16))[labels] + rng.normal(size=(600, 16))).astype(np.float32) + 1, labels


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 9), st.data())
def test_running_class_means_are_the_means_of_the_classes(labels: list[int], batch: int, draw: st.DataObject) -> None:
    features = np.random.default_rng(len(labels)).normal(size=(len(labels), 3)).astype(np.float32)
    points = _Points.of(np.array(labels), "class")
    some = np.array(draw.draw(st.sets(st.integers(0, len(points.counts) - 1)).map(sorted)), np.int64)
    means = list(_means(Source(features, batch), points, some))
    expected = class_means(normalized(features), np.array(labels))[0][some]
    np.testing.assert_allclose(np.concatenate(means) if means else np.empty((0, 3)), expected, atol=1e-6)


def test_assignment_is_that_of_a_loop_over_all_points(data: tuple[np.ndarray, np.ndarray]) -> None:
    """Centroids that are far from the origin too; halves are of the nearest cluster, even where others are nearer."""
    points = data[0] + 100
    rng = np.random.default_rng(2)
    centroids = points[:3]
    halves = points[rng.integers(0, 600, 6)]
    nearest = [int(((p - centroids) ** 2).sum(1).argmin()) for p in points]
    np.testing.assert_array_equal(assign(points, centroids), nearest)
    halved = [
        2 * k + int(((p - halves[2 * k : 2 * k + 2]) ** 2).sum(1).argmin())
        for p, k in zip(points, nearest, strict=True)
    ]
    np.testing.assert_array_equal(assign(points, centroids, halves), halved)


@pytest.mark.parametrize("double", [False, True])
def test_images_beyond_the_sample_go_to_the_nearest_centroid(data: tuple[np.ndarray, np.ndarray], double: bool) -> None:
    features, labels = data
    previous = Division(np.random.default_rng(3).integers(0, 3, 600), np.zeros((3, 16), np.float32))
    source = Source(features)
    options = {"seed": 4, "previous": previous, "double": double}
    division = divide_streamed(source, labels, 3, max_points=200, **options)
    assert (source.embedded == 1).all()
    assert division.sample == 200
    assert division.num_learners == (6 if double else 3)
    if not double:
        expected = Division(assign(normalized(features), division.centroids), division.centroids, 200)
        np.testing.assert_array_equal(division.learner, expected.without_singletons(labels).learner)
        np.testing.assert_array_equal(division.learner, division.matched_to(previous).learner)
    else:
        assert (classes_with_pairs(division.learner, labels, 6) >= 2).all()
        merged = division.merged()
        np.testing.assert_array_equal(merged.learner, merged.matched_to(previous).learner)
        # An image is nearer to its own half than to the other one of its cluster.
        own = division.learner >= 0
        pairs = division.centroids.reshape(3, 2, -1)[division.learner[own] // 2]
        nearer = ((normalized(features)[own, None] - pairs) ** 2).sum(2).argmin(1)
        np.testing.assert_array_equal(nearer, division.learner[own] % 2)


@pytest.mark.parametrize("by", ["image", "class", "random", "random-class"])
@pytest.mark.parametrize("double", [False, True])
def test_where_all_points_fit_it_is_the_division_of_all(
    data: tuple[np.ndarray, np.ndarray], by: str, double: bool
) -> None:
    features, labels = data
    previous = divide(features, labels, 2, by=by, seed=9)  # type: ignore[arg-type]
    options = {"by": by, "seed": (1, 2), "previous": previous, "double": double}
    source = Source(features)
    division = divide_streamed(source, labels, 2, max_points=600, **options)
    np.testing.assert_array_equal(division.learner, divide(features, labels, 2, **options).learner)
    assert division.sample is None
    assert source.embedded.max() == (0 if by.startswith("random") else 1)


def test_by_class_a_sample_of_the_classes_leaves_all_whole(data: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = data
    source = Source(features)
    division = divide_streamed(source, labels, 2, max_points=25, by="class", double=True)
    assert (source.embedded == 1).all()
    assert division.sample == 25
    assert all(len(np.unique(division.learner[labels == c])) == 1 for c in range(60))
    assert (classes_with_pairs(division.learner, labels, 4) >= 2).all()


def test_inertia_of_the_least_sample_is_within_one_percent_of_all_on_real_images() -> None:
    features = normalized(load_digits().data.astype(np.float32))  # 1,797 handwritten digits
    for num_clusters in (2, 4):
        whole = np.mean([kmeans(features, num_clusters, seed=seed).inertia for seed in range(5)])
        inertia = []
        for seed in range(5):
            division = divide_streamed(
                Source(features, 64),
                np.zeros(len(features), int),
                num_clusters,
                max_points=POINTS_PER_CLUSTER * num_clusters,
                seed=seed,
                tries=1,
            )
            inertia.append(((features - division.centroids[division.learner]) ** 2).sum())
        assert whole < np.mean(inertia) < 1.01 * whole


def test_a_hierarchy_whose_halves_have_no_pairs_is_an_error() -> None:
    features = np.eye(4, dtype=np.float32).repeat(3, axis=0)
    with pytest.raises(DataError, match=r"the hierarchy cannot split learner \d of 2"):
        divide_streamed(Source(features), np.arange(4).repeat(3), 2, max_points=6, double=True)


def test_more_learners_than_points() -> None:
    with pytest.raises(DataError, match="2 classes cannot be divided among 3 learners"):
        divide_streamed(Source(np.eye(4)), np.array([0, 0, 1, 1]), 3, max_points=9, by="class")


def test_points_within_a_budget_take_no_more_than_it() -> None:
    count = points_within(10**9, 2048, 8)
    assert bytes_of_points(count, 2048, 8) <= 10**9 < bytes_of_points(count + 1, 2048, 8)
