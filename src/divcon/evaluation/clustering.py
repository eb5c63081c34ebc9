"""How well k-means clusters of embeddings agree with the classes: NMI and AMI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from scipy.special import gammaln
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

from divcon.evaluation.nearness import as_vectors
from divcon.evaluation.task import column
from divcon.runtime.context import DEFAULT, Context

MAX_CLUSTERED = 100_000
"""Items that `divcon.evaluate` clusters, at most. With as many clusters as classes, time grows with the square of their
number: 60,502 items of 11,316 classes take 24 seconds of one core a seed, this many about a minute."""


def clustering_metrics(
    embeddings: object,
    labels: object,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    iterations: int = 25,
    max_items: int | None = None,
    context: Context = DEFAULT,
) -> dict[str, Any]:
    """NMI and AMI between the labels and k-means with as many clusters as there are classes.

    k-means is faiss's, as in the published numbers: on the CPU, euclidean, on all points, from k points that the seed
    draws. It stops when nothing changes any more.

    Args:
        embeddings: (N, D) numbers, array or tensor.
        labels: (N,) ints or strings.
        seeds: of k-means, which runs once a seed.
        iterations: the most that k-means takes.
        max_items: of more items, cluster a sample: all items of some of the classes, drawn with a fixed seed, at most
            so many (and at least one class). Fewer classes are easier to tell apart: compare with scores of the same
            sample only. None: all.
        context: the processes of its group call this at once, with the same arguments, and share out the seeds; each
            gets the scores that one process alone would have.

    Returns:
        ``nmi`` and ``ami``, means over the seeds (``nmi`` divides by the mean of both entropies), and
        ``nmi_std`` and ``ami_std``, their sample standard deviations, 0 for one seed. Of a sample also ``clustered``:
        its ``num_items`` and ``num_classes``, and the ``num_items_total`` that it is of.

    Raises:
        ValueError: wrong shapes, lengths that differ, empty input, no seed, ``max_items`` below 1.
        NonFiniteError: an embedding holds NaN or infinite values; the message names the rows.
    """
    vectors, names = as_vectors(embeddings, "embeddings"), column(labels, "labels")
    if len(vectors) != len(names):
        raise ValueError(f"labels has {len(names)} entries for {len(vectors)} embeddings")
    if not len(seeds):
        raise ValueError("clustering_metrics needs at least one seed")
    if max_items is not None and max_items < 1:
        raise ValueError(f"max_items must be at least 1, not {max_items}")
    codes, total = np.unique(names, return_inverse=True)[1], len(names)
    if max_items is not None and total > max_items:
        rows = _whole_classes(codes, max_items)
        vectors, codes = vectors[rows], np.unique(codes[rows], return_inverse=True)[1]
    num_classes = int(codes.max()) + 1
    points, group = vectors.astype(np.float32), context.group
    # A row a seed; that of another rank's seed is zero, so that the sum over ranks is exact.
    scores = np.zeros((len(seeds), 2))
    for i in range(group.rank, len(seeds), group.world_size):
        assignment = _clusters(points, num_classes, seeds[i], iterations)
        nmi = normalized_mutual_info_score(codes, assignment)
        scores[i] = nmi, adjusted_mutual_information(codes, assignment)
    scores = group.all_reduce(scores)
    result: dict[str, Any] = {}
    for name, values in zip(("nmi", "ami"), scores.T.tolist(), strict=True):
        result |= {name: float(np.mean(values)), f"{name}_std": _std(values)}
    if len(codes) < total:
        result["clustered"] = {"num_items": len(codes), "num_classes": num_classes, "num_items_total": total}
    return result


def _whole_classes(codes: np.ndarray, most: int) -> np.ndarray:
    """The rows of classes in random order, ascending, as many as stay within ``most`` rows, but of one at least."""
    sizes = np.bincount(codes)
    order = np.random.default_rng(0x0EE5).permutation(len(sizes))
    number = max(1, int(np.searchsorted(np.cumsum(sizes[order]), most, side="right")))
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[:number]] = True
    return np.flatnonzero(chosen[codes])


def adjusted_mutual_information(labels: np.ndarray, clusters: np.ndarray) -> float:
    """scikit-learn's ``adjusted_mutual_info_score`` of two (N,) int labelings, fast for many classes.

    The expected information of a class and a cluster depends only on their sizes, so it is computed once for
    each pair of sizes and not for each class and cluster (at 4,773 of each: 0.1 s in place of 8 s).
    """
    sizes = [np.bincount(labeling) for labeling in (labels, clusters)]
    sizes = [counts[counts > 0] for counts in sizes]
    if len(sizes[0]) == 1 or len(sizes[1]) == 1:
        return float(len(sizes[0]) == len(sizes[1]))
    expected = _expected_mutual_information(*sizes)
    shares = [counts / len(labels) for counts in sizes]
    entropy = float(np.mean([-(share * np.log(share)).sum() for share in shares]))
    smallest = np.finfo(np.float64).eps  # a perfect match of singletons is 1, not 0 / 0
    over_chance = mutual_info_score(labels, clusters) - expected
    return float(_away_from_zero(over_chance, smallest) / _away_from_zero(entropy - expected, smallest))


def _away_from_zero(value: float, least: float) -> float:
    return min(value, -least) if value < 0 else max(value, least)


def _expected_mutual_information(class_sizes: np.ndarray, cluster_sizes: np.ndarray) -> float:
    """The expected mutual information of random labelings with these sizes, (C,) and (K,) ints above zero (Vinh, Epps,
    Bailey 2010)."""
    n = int(class_sizes.sum())
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    expected = 0.0
    clusters = list(zip(*np.unique(cluster_sizes, return_counts=True), strict=True))
    for a, num_a in zip(*np.unique(class_sizes, return_counts=True), strict=True):
        for b, num_b in clusters:
            shared = np.arange(max(1, a + b - n), min(a, b) + 1)
            log_chance = (
                log_factorial[[a, b, n - a, n - b]].sum()
                - log_factorial[n]
                - log_factorial[shared]
                - log_factorial[a - shared]
                - log_factorial[b - shared]
                - log_factorial[n - a - b + shared]
            )
            information = shared / n * np.log(n * shared / (a * b))
            expected += float(num_a * num_b * (information * np.exp(log_chance)).sum())
    return expected


def _clusters(points: np.ndarray, k: int, seed: int, iterations: int) -> np.ndarray:
    """(N,) int64: which of k clusters of faiss's k-means each of the (N, D) float32 points is in."""
    kmeans = faiss.Kmeans(
        points.shape[1],
        k,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,  # classes are small, and faiss would warn
        max_points_per_centroid=len(points),  # else faiss samples the points
    )
    kmeans.train(points)
    return kmeans.assign(points)[1]


def _std(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
