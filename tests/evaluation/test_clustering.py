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
from divcon.evaluation import clustering
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


def test_scores_of_given_clusters_are_those_of_the_formula(monkeypatch):
    generator = np.random.default_rng(0)
    points, labels = clustered(5, 8)
    given_clusters = {seed: generator.integers(0, 5, 40) for seed in (3, 4, 9)}
    monkeypatch.setattr(clustering, "_kmeans", lambda points, k, seed, iterations: given_clusters[seed])
    found = clustering_metrics(points, labels, seeds=(3, 4, 9))
    nmi = [slow_nmi(labels, clusters) for clusters in given_clusters.values()]
    ami = [adjusted_mutual_info_score(labels, clusters) for clusters in given_clusters.values()]
    expected = {"nmi": np.mean(nmi), "nmi_std": np.std(nmi, ddof=1)}
    expected |= {"ami": np.mean(ami), "ami_std": np.std(ami, ddof=1)}
    assert found == pytest.approx(expected, abs=1e-9)
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
    found = clustering_metrics(points, labels, seeds=range(5))
    theirs = [KMeans(20, init="random", n_init=1, random_state=seed).fit_predict(points) for seed in range(5)]
    nmi = np.mean([normalized_mutual_info_score(labels, clusters) for clusters in theirs])
    ami = np.mean([adjusted_mutual_info_score(labels, clusters) for clusters in theirs])
    assert found["nmi"] == pytest.approx(nmi, abs=0.03)
    assert found["ami"] == pytest.approx(ami, abs=0.03)
    assert 0.3 < found["nmi"] < 0.97


@pytest.mark.parametrize(("points", "classes"), [((900, 16), 180), ((400, 8), 12), ((300, 4), 299)])
@pytest.mark.parametrize("seed", [0, 1])
def test_kmeans_finds_what_faiss_finds(points, classes, seed):
    """From the same start, all 25 iterations of it, whatever is left out here because nothing moved there."""
    values = np.random.default_rng(7).standard_normal(points).astype(np.float32)
    theirs = faiss.Kmeans(
        points[1], classes, niter=25, seed=seed, min_points_per_centroid=1, max_points_per_centroid=points[0]
    )
    theirs.train(values)
    assigned = theirs.assign(values)[1]
    mine = clustering._kmeans(values, classes, seed, 25)
    assert (mine == assigned).mean() > 0.99
    assert len(np.unique(mine)) == classes


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(0, 6))
@settings(max_examples=80, deadline=None)
def test_kmeans_is_lloyds_where_points_repeat_and_clusters_empty(seed, k, iterations):
    # The mean of two equal points is the point, to the last bit. That of three may be another, and break ties.
    values = np.random.default_rng(seed).standard_normal((16, 3)).astype(np.float32).repeat(2, axis=0)
    mine = clustering._kmeans(values, k, seed, iterations)
    drawn = np.empty(len(values), np.int32)
    faiss.rand_perm(faiss.swig_ptr(drawn), len(drawn), seed + 1)
    centroids = values[drawn[:k]].astype(float)
    for turn in range(iterations + 1):
        distances = np.square(values[:, None].astype(float) - centroids[None]).sum(2)
        found = distances.argmin(1)
        if turn < iterations:
            for c in np.unique(found):
                centroids[c] = values[found == c].mean(axis=0)
    # Which of equal centroids it is does not matter.
    means = [np.stack([values[of == of[i]].mean(axis=0) for i in range(len(values))]) for of in (mine, found)]
    inertia = [np.square(values - mean).sum() for mean in means]
    assert inertia[0] == pytest.approx(inertia[1], rel=1e-4, abs=1e-5)


def test_a_seed_gives_the_same_clusters_and_another_seed_others():
    points, labels = clustered(spread=1.2)
    assert clustering_metrics(points, labels) == clustering_metrics(points, labels)
    assert clustering_metrics(points, labels, seeds=(5,)) != clustering_metrics(points, labels, seeds=(6,))


def test_kmeans_uses_all_points():
    points, _ = clustered(4, 1000, spread=1.2)  # faiss would draw 256 a cluster
    clusters = clustering._kmeans(points, 4, seed=0, iterations=100)
    means = np.stack([points[clusters == k].mean(axis=0) for k in range(4)])
    nearest = ((points[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == clusters).mean() > 0.999


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
def test_bad_input_is_said(points, labels, options, message):
    with pytest.raises(ValueError, match=message):
        clustering_metrics(points, labels, **options)


def test_broken_embeddings_are_named():
    with pytest.raises(NonFiniteError, match="1 of 2 rows"):
        clustering_metrics([[0.0], [np.nan]], [0, 1])
