"""`Division` of the training images among the learners, and `divide`, which computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.optimize import linear_sum_assignment

from divcon.division.kmeans import kmeans
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.files import DamagedTensorsError, checked_tensors, write_tensors
from divcon.runtime.places import place

DivideBy = Literal["image", "class", "random", "random-class"]
Clusters = tuple[np.ndarray, np.ndarray]
"""The cluster of each image, (N,) int64, and the centroids, (K, F) float32."""


@dataclass(frozen=True, eq=False)
class Division:
    """N images divided among K learners. Frozen: methods return a new division."""

    learner: np.ndarray
    """(N,) int64: the learner of each image; -1 for images that sit out until the next division."""
    centroids: np.ndarray
    """(K, F) float32: row k is the centroid of learner k's cluster."""
    sample: int | None = None
    """The number of images (by class: of classes) that k-means was fitted on; None: all."""

    def __post_init__(self) -> None:
        learner = np.asarray(self.learner, dtype=np.int64)
        object.__setattr__(self, "learner", learner)
        object.__setattr__(self, "centroids", np.asarray(self.centroids, dtype=np.float32))
        if learner.ndim != 1 or self.centroids.ndim != 2:
            raise ValueError("Division: learner must be (N,) and centroids (K, F)")
        if len(learner) and not (learner.min() >= -1 and learner.max() < self.num_learners):
            raise ValueError(f"Division: a learner is outside -1 .. {self.num_learners - 1}")

    @classmethod
    def whole(cls, labels: np.ndarray) -> Division:
        """All images with one learner, without those that have no positive pair."""
        return cls(np.zeros(len(labels), np.int64), np.zeros((1, 0), np.float32)).without_singletons(labels)

    @property
    def num_learners(self) -> int:
        return len(self.centroids)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of images of each learner."""
        return tuple(np.bincount(self.learner[self.learner >= 0], minlength=self.num_learners).tolist())

    @property
    def num_left_out(self) -> int:
        return int((self.learner < 0).sum())

    def indices(self, learner: int) -> np.ndarray:
        """The positions of learner k's images, ascending, (n,) int64. Where there is one cluster, it is every
        learner's."""
        return np.flatnonzero(self.learner == (learner if self.num_learners > 1 else 0))

    def overlap(self, other: Division) -> Int64[np.ndarray, "K K2"]:
        """(K, K') int64: the number of images with learner k here and with learner k' in ``other``."""
        if len(self.learner) != len(other.learner):
            raise ValueError(f"divisions of {len(self.learner)} and of {len(other.learner)} images do not compare")
        both = (self.learner >= 0) & (other.learner >= 0)
        pairs = self.learner[both] * other.num_learners + other.learner[both]
        counts = np.bincount(pairs, minlength=self.num_learners * other.num_learners)
        return counts.reshape(self.num_learners, other.num_learners)

    def matched_to(self, previous: Division) -> Division:
        """The same clusters, numbered so that each learner keeps as many of its previous images as a one-to-one
        numbering allows (linear assignment; 2019, section 3.2, "to maintain consistency")."""
        if self.num_learners != previous.num_learners:
            raise ValueError(f"{self.num_learners} clusters cannot be matched to {previous.num_learners} learners")
        clusters, learners = linear_sum_assignment(self.overlap(previous), maximize=True)
        # new_number[c] is the learner that cluster c goes to: the assignment itself, not its inverse.
        new_number = np.empty(self.num_learners, np.int64)
        new_number[clusters] = learners
        return self.renumbered(new_number)

    def renumbered(self, new_number: np.ndarray) -> Division:
        """The same clusters, with cluster c as ``new_number[c]``, (K,) int64, a permutation."""
        centroids = np.empty_like(self.centroids)
        centroids[new_number] = self.centroids
        return replace(self, learner=np.where(self.learner >= 0, new_number[self.learner], -1), centroids=centroids)

    def without_singletons(self, labels: np.ndarray) -> Division:
        """This division without the images that have no positive pair: each is the only one of its class in its
        cluster."""
        return replace(self, learner=np.where(has_pair(self.learner, labels), self.learner, -1))

    def kept_pairs(self, labels: np.ndarray) -> float:
        """The share of all positive pairs (two images of one class) that are with one learner."""
        learner, count = groups(self.learner, labels)
        within = (count * (count - 1) / 2)[learner >= 0].sum()
        sizes = np.bincount(labels)
        pairs = (sizes * (sizes - 1) / 2).sum()
        return float(within / pairs) if pairs else 0.0

    def classes_per_learner(self, labels: np.ndarray) -> tuple[int, ...]:
        """The number of classes of each learner."""
        learner, _ = groups(self.learner, labels)
        return tuple(np.bincount(learner[learner >= 0], minlength=self.num_learners).tolist())

    def doubled(
        self,
        features: Float[np.ndarray, "N F"],
        labels: Int64[np.ndarray, "N"],
        *,
        by: DivideBy = "image",
        seed: int | tuple[int, ...] = 0,
        tries: int = 30,
        device: str | torch.device = "cpu",
    ) -> Division:
        """Split each cluster k by 2-means into 2k and 2k + 1, each with at least two classes with a positive pair
        (2021, hierarchy). `merged` is the inverse.

        Args:
            features: (N, F) float; L2-normalised here.
            by: as in `divide`.
            tries: the number of seeds to try for each cluster.

        Raises:
            DataError: a cluster cannot be split this way; the message names it.
        """
        seed = (seed,) if isinstance(seed, int) else seed
        return doubled(self, normalized(features), labels, by, seed, tries, device)

    def merged(self) -> Division:
        """Merge clusters 2k and 2k + 1 into k: the inverse of `doubled`. Centroids are weighted by size."""
        sizes = np.array(self.sizes, np.float64).reshape(-1, 2, 1)
        weights = np.where(sizes.sum(1, keepdims=True) > 0, sizes / np.maximum(sizes.sum(1, keepdims=True), 1), 0.5)
        centroids = (self.centroids.reshape(len(sizes), 2, -1) * weights).sum(1)
        return replace(self, learner=np.where(self.learner >= 0, self.learner // 2, -1), centroids=centroids)

    def tensors(self) -> dict[str, np.ndarray]:
        """What files keep; `of_tensors` is the inverse."""
        sample = {} if self.sample is None else {"sample": np.array([self.sample], np.int64)}
        return {"learner": self.learner, "centroids": self.centroids, **sample}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Division:
        """
        Raises:
            TypeError, ValueError: these are no division's.
        """
        values = {name: np.asarray(value) for name, value in tensors.items()}
        sample = values.pop("sample", None)
        return cls(**values, sample=None if sample is None else int(sample[0]))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically.

        Raises:
            OutputError: the file cannot be written.
        """
        write_tensors(place(path), save(self.tensors()))

    @classmethod
    def load(cls, path: str | Path) -> Division:
        """Read a file of `save`.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            return cls.of_tensors(load(checked_tensors(here(path))))
        except (OSError, SafetensorError, DamagedTensorsError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: this division cannot be read ({error}); the run's report leaves it out, and training does "
                "not need it"
            ) from None


def divide(
    features: Float[np.ndarray, "N F"],
    labels: Int64[np.ndarray, "N"],
    num_learners: int,
    *,
    by: DivideBy = "image",
    seed: int | tuple[int, ...] = 0,
    tries: int = 30,
    previous: Division | None = None,
    double: bool = False,
    device: str | torch.device = "cpu",
    context: Context = DEFAULT,
) -> Division:
    """Divide the training images among the learners (2019, section 3.1): cluster, match to the previous division,
    leave out what has no positive pair.

    Args:
        features: (N, F) float, the backbone's pooled features; L2-normalised here.
        labels: (N,) int.
        by: ``image``: k-means on the images. ``class``: k-means on the class means, so that a class stays whole.
            ``random``: the same number of random images each. ``random-class``: the same number of random whole
            classes each.
        tries: the number of k-means seeds to try until each cluster has two classes with a positive pair (2021).
        previous: a division to match the new one to.
        double: then split each cluster in two, for 2 K learners (see `Division.doubled`).
        context: the processes of its group call this at once with the same features; they share the work, and get the
            same division.

    Raises:
        DataError: more learners than distinct images (or classes, by class); a cluster that cannot be split.
        NonFiniteError: a feature is NaN or infinite.
    """
    seed = (seed,) if isinstance(seed, int) else seed
    features = normalized(features)
    division = matched_clusters(
        features, labels, num_learners, by=by, seed=seed, tries=tries, previous=previous, device=device, context=context
    )
    if double:
        division = doubled(division, features, labels, by, seed, tries, device, context)
    return shared(division, context).without_singletons(labels)


def matched_clusters(
    features: np.ndarray,
    labels: np.ndarray,
    num_learners: int,
    *,
    by: DivideBy,
    seed: tuple[int, ...],
    tries: int,
    previous: Division | None,
    device: str | torch.device,
    context: Context,
) -> Division:
    """The first two steps of `divide`, for features of length one: cluster, and match to the previous division."""
    (learner, centroids), _ = cluster(
        features, labels, num_learners, by=by, seed=seed, tries=tries, device=device, context=context
    )
    division = Division(learner, centroids)
    return division if previous is None else division.matched_to(previous)


def shared(division: Division, context: Context) -> Division:
    """The division of rank 0, on all ranks of the context's group."""
    group = context.group
    return replace(division, learner=group.broadcast(division.learner), centroids=group.broadcast(division.centroids))


def cluster(
    features: np.ndarray,
    labels: np.ndarray,
    num_clusters: int,
    *,
    by: DivideBy,
    seed: tuple[int, ...],
    tries: int,
    device: object = "cpu",
    context: Context = DEFAULT,
) -> tuple[Clusters, bool]:
    """Cluster images, or the means of their classes. Tries one seed after the other until each cluster has two classes
    with a positive pair (2021); otherwise returns the first of the best.

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
            raise DataError(
                f"{len(means)} classes cannot be divided among {num_clusters} learners by class; use fewer "
                "`num_learners`, or divide by image (`divide_by=image`)"
            )
        if 2 * num_clusters > len(means):
            tries = 1  # no seed can give each cluster two classes
    elif by == "random" and num_clusters > len(features):
        raise DataError(
            f"{len(features)} images cannot be divided among {num_clusters} learners; use fewer `num_learners`"
        )

    def attempt(seed: tuple[int, ...]) -> Clusters:
        if by == "random":
            assignment = np.random.default_rng(seed).permutation(len(features)) % num_clusters
            return assignment, class_means(features, assignment)[0]
        if by == "random-class":
            of = np.random.default_rng(seed).permutation(len(means)) % num_clusters
            return of[class_of], class_means(features, of[class_of])[0]
        points = features if by == "image" else means
        result = kmeans(points, num_clusters, seed=seed, device=device, context=context)  # type: ignore[arg-type]
        return (result.assignment if by == "image" else result.assignment[class_of]), result.centroids

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


def doubled(
    division: Division,
    features: np.ndarray,
    labels: np.ndarray,
    by: DivideBy,
    seed: tuple[int, ...],
    tries: int,
    device: str | torch.device,
    context: Context = DEFAULT,
    *,
    in_pairs: bool = True,
) -> Division:
    """`Division.doubled`, for features of length one.

    Args:
        in_pairs: False: halves without two classes with a positive pair are no error, if no seed gives better ones.
    """
    learner = np.full_like(division.learner, -1)
    centroids = np.zeros((2 * division.num_learners, features.shape[1]), np.float32)
    for k in range(division.num_learners):
        indices = division.indices(k)
        split, halves, centres = False, None, None
        if len(indices) > 1:
            with suppress(DataError):  # fewer than two distinct images or classes
                (halves, centres), split = cluster(
                    features[indices],
                    labels[indices],
                    2,
                    by=by,
                    seed=(*seed, 2, k),
                    tries=tries,
                    device=device,
                    context=context,
                )
        if halves is None or (in_pairs and not split):
            raise DataError(cannot_split(k, division, labels, tries, by))
        learner[indices] = 2 * k + halves
        centroids[2 * k : 2 * k + 2] = centres
    return replace(division, learner=learner, centroids=centroids)


def cannot_split(k: int, division: Division, labels: np.ndarray, tries: int, by: str) -> str:
    """Why `doubled` cannot split learner k's cluster, and what to do."""
    classes = int(classes_with_pairs(division.learner, labels, division.num_learners)[k])
    advice = "" if by.endswith("class") else ", divide by class (`divide_by=class`)"
    return (
        f"the hierarchy cannot split learner {k} of {division.num_learners}: of its {division.sizes[k]} images, "
        f"{classes} classes with a positive pair, 2-means returned no two clusters with two such classes each "
        f"({tries} {'seed' if tries == 1 else 'seeds'} tried); use `num_learners={division.num_learners}`, try more "
        f"seeds (`division_tries`){advice}, or leave `hierarchy` out; another run can start from this model (`init`)"
    )


DENSE = 4
"""Counts of all groups that there could be take less memory than sorting, up to so many groups an image."""


def groups(learner: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups of images with one learner and one class: the learner of each group and its number of images, (G,)
    int64 each."""
    keys, width, dense = _keys(learner, labels)
    if dense:
        counts = np.bincount(keys)
        present = np.flatnonzero(counts)
        return present // width - 1, counts[present]
    present, counts = np.unique(keys, return_counts=True)
    return present // width - 1, counts


def has_pair(learner: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether another image has the learner and the class of each, (N,) bool."""
    keys, _, dense = _keys(learner, labels)
    if dense:
        return (np.bincount(keys) >= 2)[keys]
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return (counts >= 2)[group]


def _keys(learner: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int, bool]:
    """The number of each image's group, (N,) int64; the number of classes; and whether so few groups are possible that
    counts of all of them take little memory."""
    width = int(labels.max()) + 1 if len(labels) else 1
    keys = learner + np.int64(1)
    keys *= width
    keys += labels
    return keys, width, len(keys) > 0 and int(keys.max()) < DENSE * len(keys)


def classes_with_pairs(learner: np.ndarray, labels: np.ndarray, num_learners: int) -> np.ndarray:
    """The number of classes of which each learner has at least two images, (K,) int64."""
    of, count = groups(learner, labels)
    return np.bincount(of[(count >= 2) & (of >= 0)], minlength=num_learners)


def class_means(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean feature of each class, (C, F), and the class of each image, (N,)."""
    _, class_of, count = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(class_of, kind="stable")
    sums = np.add.reduceat(features[order], np.cumsum(count) - count, axis=0, dtype=np.float64)
    return (sums / count[:, None]).astype(np.float32), class_of


def normalized(features: np.ndarray) -> np.ndarray:
    """(N, F) features, each row of length one."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
