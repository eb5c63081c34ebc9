"""k-means against scikit-learn, and against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans

import divcon as dc
from divcon.division.kmeans import kmeans
from divcon.division.kmeans import kmeans as kmeans_function
from divcon.errors import DataError, NonFiniteError


@pytest.fixture(scope="module")
def features(demo: dc.Benchmark) -> np.ndarray:
    """Real features: ImageNet's EfficientNet-Lite0 on 600 icons, of length one."""
    model = dc.EmbeddingModel("tf_efficientnet_lite0", image_size=64)
    values = model.features(demo.train.subset(np.arange(600)))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.heavy
@pytest.mark.parametrize("num_clusters", [4, 8, 32])
def test_inertia_is_within_one_percent_of_scikit_learn_over_ten_seeds(features: np.ndarray, num_clusters: int) -> None:
    ours = np.mean([kmeans(features, num_clusters, seed=seed).inertia for seed in range(10)])
    theirs = [SklearnKMeans(num_clusters, n_init=1, random_state=seed).fit(features).inertia_ for seed in range(10)]
    assert ours <= 1.01 * np.mean(theirs)


def test_result_is_a_fixed_point_of_lloyd_in_loops(features: np.ndarray) -> None:
    points = features[:200, :20]
    result = kmeans(points, 5, seed=3, tolerance=0.0)
    for i, point in enumerate(points):
        distances = [float(((point - c) ** 2).sum()) for c in result.centroids]
        assert distances[result.assignment[i]] <= min(distances) + 1e-6
    for k in range(5):
        np.testing.assert_allclose(result.centroids[k], points[result.assignment == k].mean(axis=0), atol=1e-5)
    inertia = sum(float(((p - result.centroids[a]) ** 2).sum()) for p, a in zip(points, result.assignment, strict=True))
    assert result.inertia == pytest.approx(inertia, rel=1e-5)


def test_same_seed_same_clusters_and_another_seed_others(features: np.ndarray) -> None:
    first, again, other = (kmeans(features, 8, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.assignment, again.assignment)
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert not np.array_equal(first.assignment, other.assignment)


def test_blocks_change_nothing(features: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    whole = kmeans(features, 8, seed=0)
    for name in ("divcon.division.kmeans", "divcon.division.kmeans"):
        monkeypatch.setattr(sys.modules[name], "BLOCK_ELEMENTS", 8 * 37)
        monkeypatch.setattr(sys.modules[name], "CACHED_ELEMENTS", 13 * features.shape[1])
    blocks = kmeans(features, 8, seed=0)
    np.testing.assert_array_equal(whole.assignment, blocks.assignment)
    np.testing.assert_allclose(whole.centroids, blocks.centroids, atol=1e-6)
    assert whole.inertia == pytest.approx(blocks.inertia, rel=1e-6)


def test_points_far_from_the_origin_are_divided_as_those_around_it(features: np.ndarray) -> None:
    around = kmeans(features, 4, seed=0)
    far = kmeans(features + 100, 4, seed=0)
    np.testing.assert_array_equal(far.assignment, around.assignment)
    np.testing.assert_allclose(far.centroids, around.centroids + 100, atol=1e-4)
    assert far.inertia == pytest.approx(around.inertia, rel=1e-3)


def test_a_start_among_some_of_the_points_is_as_good(features: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    points = np.tile(features, (4, 1))  # 2,400 points, of which a start for one cluster needs 256
    whole = [kmeans(points, 2, seed=seed) for seed in range(5)]
    monkeypatch.setattr(sys.modules["divcon.division.kmeans"], "SEEDING_POINTS", 512)
    drawn: list[int] = []
    plus_plus = sys.modules["divcon.division.kmeans"]._plus_plus
    monkeypatch.setattr(
        sys.modules["divcon.division.kmeans"],
        "_plus_plus",
        lambda x, *rest: drawn.append(len(x)) or plus_plus(x, *rest),
    )
    some = [kmeans(points, 2, seed=seed) for seed in range(5)]
    assert drawn == [512] * 5
    assert np.mean([s.inertia for s in some]) == pytest.approx(np.mean([w.inertia for w in whole]), rel=0.01)


def test_few_distinct_points_are_found_and_counted_among_all() -> None:
    points = np.zeros((40_000, 2), np.float32)
    points[[5, 39_999]] = [[1, 0], [0, 1]]  # hardly among the 16,384 that a start is chosen from
    for seed in range(3):
        assert sorted(np.bincount(kmeans(points, 3, seed=seed).assignment)) == [1, 1, 39_998]
    with pytest.raises(DataError, match="only 3 distinct points"):
        kmeans(points, 4)


def test_an_emptied_cluster_starts_again_at_the_farthest_point() -> None:
    import torch

    from divcon.division.kmeans import _means, _sums

    x = torch.tensor([[0.0], [1.0], [10.0], [30.0]])
    assignment = torch.tensor([0, 0, 1, 1])  # cluster 2 is empty
    distances = torch.tensor([0.25, 0.25, 100.0, 100.5])
    means = _means(x, assignment, _sums(x, assignment, 3), lambda: distances)
    np.testing.assert_allclose(means.numpy(), [[0.5], [10.0], [30.0]])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40), st.integers(0, 99))
def test_sums_follow_the_points_that_move(moves: list[tuple[int, int]], seed: int) -> None:
    import torch

    from divcon.division.kmeans import _moved_sums, _sums

    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(moves), 5)).astype(np.float32))
    before, after = (torch.tensor(clusters) for clusters in zip(*moves, strict=True))
    expected = np.zeros((4, 5))
    for point, cluster in zip(x.numpy(), after.tolist(), strict=True):
        expected[cluster] += point
    np.testing.assert_allclose(_moved_sums(x, after, before, _sums(x, before, 4)).numpy(), expected, atol=1e-5)


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=6, max_size=40),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_cluster_holds_a_point_or_the_error_counts_the_distinct_ones(
    num_clusters: int, points: list[tuple[int, int]], seed: int
) -> None:
    distinct = len(set(points))
    values = np.array(points, np.float32)
    if distinct < num_clusters:
        with pytest.raises(DataError, match=f"only {distinct} distinct"):
            kmeans_function(values, num_clusters, seed=seed)
        return
    result = kmeans_function(values, num_clusters, seed=seed)
    assert set(result.assignment) == set(range(num_clusters))


def test_errors_say_what_and_where() -> None:
    points = np.ones((5, 2), np.float32)
    with pytest.raises(DataError, match="5 points cannot be divided into 6"):
        kmeans(points, 6)
    points[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"1 of 5 rows .* \[3\]"):
        kmeans(points, 2)
    points[3, 1] = 1e30
    with pytest.raises(NonFiniteError, match="the squares of these values are too large for float32; scale them down"):
        kmeans(points, 2)
