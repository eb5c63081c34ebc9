"""NMI and AMI, against a naive formula, and against scikit-learn's scores and k-means."""

from collections import Counter
from math import log

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from divcon.errors import NonFiniteError
from divcon.evaluation.clustering import adjusted_mutual_information, clustering_metrics


def clustered(num_classes=20, per_class=15, size=16, spread=0.5, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(num_classes), per_class))
    points = generator.standard_normal((num_classes, size))[labels]
    points = points + spread * generator.standard_normal(points.shape)
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def slow_nmi(labels, clusters):
    n = len(labels)
    both, left, right = Counter(zip(labels, clusters, strict=True)), Counter(labels), Counter(clusters)
    shared = sum(m / n * log(n * m / (left[a] * right[b])) for (a, b), m in both.items())
    entropies = [-sum(m / n * log(m / n) for m in counts.values()) for counts in (left, right)]
    return shared / (sum(entropies) / 2)


def faiss_clusters(points, k, seed):
    """The clusters of faiss's k-means after 25 iterations on all points."""
    kmeans = faiss.Kmeans(
        points.shape[1], k, niter=25, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(points)
    )
    kmeans.train(points)
    return kmeans.assign(points)[1]


@pytest.mark.parametrize(("classes", "per_class"), [(5, 8), (180, 5), (4, 1000)])
def test_scores_are_those_of_the_formula_on_the_clusters_of_faiss(classes, per_class):
    points, labels = clustered(classes, per_class, spread=1.2)
    seeds = (3, 4, 9)
    result = clustering_metrics(points, labels, seeds=seeds)
    clusterings = [faiss_clusters(points, classes, seed) for seed in seeds]
    nmi = [slow_nmi(labels, clusters) for clusters in clusterings]
    ami = [adjusted_mutual_info_score(labels, clusters) for clusters in clusterings]
    expected = {"nmi": np.mean(nmi), "nmi_std": np.std(nmi, ddof=1)}
    expected |= {"ami": np.mean(ami), "ami_std": np.std(ami, ddof=1)}
    assert result == pytest.approx(expected, abs=1e-6)
    assert clustering_metrics(points, labels, seeds=(4,))["nmi_std"] == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
@settings(deadline=None)
def test_adjusted_mutual_information_is_scikit_learns(pairs):
    labels, clusters = (np.array(side) for side in zip(*pairs, strict=True))
    expected = adjusted_mutual_info_score(labels, clusters)
    assert adjusted_mutual_information(labels, clusters) == pytest.approx(expected, abs=1e-7)


def test_adjusted_mutual_information_is_scikit_learns_at_unequal_sizes():
    generator = np.random.default_rng(1)
    labels = (40 * generator.random(3000) ** 2).astype(int)
    clusters = np.where(generator.random(3000) < 0.5, labels, generator.integers(0, 60, 3000))
    expected = adjusted_mutual_info_score(labels, clusters)
    assert adjusted_mutual_information(labels, clusters) == pytest.approx(expected, abs=1e-8)
    assert 0.2 < expected < 0.6


@pytest.mark.parametrize("spread", [0.6, 1.2])
def test_scikit_learns_kmeans_scores_alike(spread):
    points, labels = clustered(spread=spread)
    result = clustering_metrics(points, labels, seeds=range(5))
    theirs = [KMeans(20, init="random", n_init=1, random_state=seed).fit_predict(points) for seed in range(5)]
    nmi = np.mean([normalized_mutual_info_score(labels, clusters) for clusters in theirs])
    ami = np.mean([adjusted_mutual_info_score(labels, clusters) for clusters in theirs])
    assert result["nmi"] == pytest.approx(nmi, abs=0.03)
    assert result["ami"] == pytest.approx(ami, abs=0.03)
    assert 0.3 < result["nmi"] < 0.97


def test_a_seed_gives_the_same_clusters_and_another_seed_others():
    points, labels = clustered(spread=1.2)
    assert clustering_metrics(points, labels) == clustering_metrics(points, labels)
    assert clustering_metrics(points, labels, seeds=(5,)) != clustering_metrics(points, labels, seeds=(6,))


def test_equal_points_are_clustered_too(capfd):
    points = np.random.default_rng(0).standard_normal((4, 3)).repeat(5, axis=0)
    result = clustering_metrics(points, np.arange(20) // 2)
    assert 0 < result["nmi"] <= 1
    assert capfd.readouterr() == ("", "")  # faiss writes warnings of few points to the terminal


def test_classes_apart_are_found_and_noise_is_not():
    points, labels = clustered(4, 25, spread=0.01)
    apart = max(clustering_metrics(points, labels, seeds=(seed,))["nmi"] for seed in range(5))
    assert apart == pytest.approx(1)
    noise = clustering_metrics(points, np.random.default_rng(0).permutation(labels))
    assert abs(noise["ami"]) < 0.1 < 0.1 + noise["nmi"]


def test_strings_score_as_their_numbers():
    points, labels = clustered()
    assert clustering_metrics(points, [f"{n:03}" for n in labels]) == clustering_metrics(points, labels)


def test_one_class_and_classes_of_one_image():
    points, _ = clustered(2, 5)
    assert clustering_metrics(points, [0] * 10)["ami"] == 1
    assert clustering_metrics(points, range(10))["nmi"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("points", "labels", "options", "message"),
    [
        (np.ones((3, 2)), [0, 1], {}, "labels has 2 entries for 3"),
        (np.ones(3), [0, 1, 1], {}, r"shape \(N, D\)"),
        (np.ones((0, 2)), [], {}, "no vectors"),
        (np.ones((2, 2)), [0, 1], {"seeds": ()}, "at least one seed"),
    ],
)
def test_bad_input_is_reported(points, labels, options, message):
    with pytest.raises(ValueError, match=message):
        clustering_metrics(points, labels, **options)


def test_broken_embeddings_are_named():
    with pytest.raises(NonFiniteError, match="1 of 2 rows"):
        clustering_metrics([[0.0], [np.nan]], [0, 1])


def test_a_sample_is_of_whole_classes() -> None:
    points, labels = clustered(num_classes=20, per_class=15, spread=1.0)
    some = clustering_metrics(points, labels, max_items=100)
    assert some.pop("clustered") == {"num_items": 90, "num_classes": 6, "num_items_total": 300}
    chosen = np.random.default_rng(0x0EE5).permutation(20)[:6]
    rows = np.isin(labels, chosen)
    assert some == clustering_metrics(points[rows], labels[rows])
    assert clustering_metrics(points, labels, max_items=300) == clustering_metrics(points, labels)
    assert clustering_metrics(points, labels, max_items=1)["clustered"]["num_classes"] == 1
    with pytest.raises(ValueError, match="max_items must be at least 1, not 0"):
        clustering_metrics(points, labels, max_items=0)
