"""Clusters of the training images, tried with several seeds until every learner can learn from its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from divcon.divide.kmeans import kmeans
from divcon.errors import DataError
from divcon.processes import ALONE, Processes

DivideBy = Literal["image", "class", "random", "random-class"]
Clusters = tuple[np.ndarray, np.ndarray]
"""The cluster of each image, (N,) int64, and the centroids, (K, F) float32."""


def cluster(
    features: np.ndarray,
    labels: np.ndarray,
    num_clusters: int,
    *,
    by: DivideBy,
    seed: tuple[int, ...],
    tries: int,
    device: object = "cpu",
    processes: Processes = ALONE,
) -> tuple[Clusters, bool]:
    """Cluster images, or the means of their classes, with one seed after the other until each cluster has two classes
    with a positive pair (2021); the first of the best where none does.

    Args:
        features: (N, F) float, L2-normalised.
        labels: (N,) int.

    Returns:
        The clusters, and whether each has two classes with a positive pair.

    Raises:
        DataError: more clusters than distinct images (or classes, by class).
        NonFiniteError: a feature is NaN or infinite.
    """
    if by in ("class", "random-class"):
        means, class_of = class_means(features, labels)
        if num_clusters > len(means):
            raise DataError(f"{len(means)} classes cannot be divided among {num_clusters} learners by class")
        if 2 * num_clusters > len(means):
            tries = 1  # no seed can give each cluster two classes
    elif by == "random" and num_clusters > len(features):
        raise DataError(f"{len(features)} images cannot be divided among {num_clusters} learners")

    def attempt(seed: tuple[int, ...]) -> Clusters:
        if by == "random":
            assignment = np.random.default_rng(seed).permutation(len(features)) % num_clusters
            return assignment, class_means(features, assignment)[0]
        if by == "random-class":
            of = np.random.default_rng(seed).permutation(len(means)) % num_clusters
            return of[class_of], class_means(features, of[class_of])[0]
        points = features if by == "image" else means
        found = kmeans(points, num_clusters, seed=seed, device=device, processes=processes)  # type: ignore[arg-type]
        return (found.assignment if by == "image" else found.assignment[class_of]), found.centroids

    return _best(attempt, labels, num_clusters, seed, tries)


def _best(
    attempt: Callable[[tuple[int, ...]], Clusters],
    labels: np.ndarray,
    num_clusters: int,
    seed: tuple[int, ...],
    tries: int,
) -> tuple[Clusters, bool]:
    best, most = None, -1
    for number in range(tries):
        clusters = attempt(seed if number == 0 else (*seed, number))
        good = int((classes_with_pairs(clusters[0], labels, num_clusters) >= 2).sum())
        if good > most:
            best, most = clusters, good
        if good == num_clusters:
            break
    assert best is not None
    return best, most == num_clusters


def classes_with_pairs(learner: np.ndarray, labels: np.ndarray, num_learners: int) -> np.ndarray:
    """How many classes each learner has two images of at least, (K,) int64."""
    of, _, count = groups(learner, labels)
    return np.bincount(of[(count >= 2) & (of >= 0)], minlength=num_learners)


def groups(learner: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The (learner, class) groups: the learner of each group (G,), the group of each image (N,), its images (G,)."""
    width = int(labels.max()) + 1 if len(labels) else 1
    keys, group, count = np.unique((learner + 1) * width + labels, return_inverse=True, return_counts=True)
    return keys // width - 1, group, count


def class_means(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean feature of each class, (C, F), and the class of each image, (N,)."""
    _, class_of, count = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(class_of, kind="stable")
    sums = np.add.reduceat(features[order], np.cumsum(count) - count, axis=0, dtype=np.float64)
    return (sums / count[:, None]).astype(np.float32), class_of


def normalized(features: np.ndarray) -> np.ndarray:
    """(N, F) features, each row of length one."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
