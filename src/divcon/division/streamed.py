"""Divide images whose features do not fit into memory: k-means on a sample, the others assigned as they are embedded.

What is clustered is a *point*: an image, or by class the mean of a class. `divide_streamed` holds the features of the
points of the sample, and a number for each image. Where all points fit, as the means of a million classes may, all of
them are clustered, as in `divide`.

A sample bounds the memory of one process as of many, and costs no message but the sample's features. The alternative,
k-means on the shares of the processes, would need N / R features in each of R processes, and a reduction in each
iteration, for an inertia that is lower by less than a percent (`docs/scale.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from divcon.division.division import (
    DivideBy,
    Division,
    cannot_split,
    classes_with_pairs,
    divide,
    doubled,
    matched_clusters,
    normalized,
    shared,
)
from divcon.division.kmeans import nearest_centroids
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context

Embed = Callable[[np.ndarray], Iterator[np.ndarray]]
"""From the positions of images, (n,) int64, to their features in that order, in batches of any size, (b, F) float."""

POINTS_PER_CLUSTER = 256
"""A sample has at least so many points for each cluster, or all."""


def bytes_of_points(num_points: int, num_features: int, num_clusters: int) -> int:
    """The memory that `divide` and `divide_streamed` take for so many points: their features as embedded, of length
    one and centred, and a bound for each cluster, all float32."""
    return 4 * num_points * (3 * num_features + num_clusters)


def points_within(budget: int, num_features: int, num_clusters: int) -> int:
    """The number of points whose `bytes_of_points` fit into so many bytes."""
    return budget // bytes_of_points(1, num_features, num_clusters)


def divide_streamed(
    embed: Embed,
    labels: np.ndarray,
    num_learners: int,
    *,
    max_points: int,
    by: DivideBy = "image",
    seed: int | tuple[int, ...] = 0,
    tries: int = 30,
    previous: Division | None = None,
    double: bool = False,
    device: str | torch.device = "cpu",
    context: Context = DEFAULT,
) -> Division:
    """`divide` in the memory of ``max_points`` features and N integers. Each image is embedded once; at random, none.

    Seeds are tried on the sample: what has two classes with a positive pair in the sample has them among all images.

    Args:
        embed: called with the positions of images, by each process with others.
        labels: (N,) int.
        max_points: the number of images, or by class of classes, whose features may be in memory.
        by, seed, tries, previous, double, device, context: as of `divide`.

    Returns:
        The division; `Division.sample` is the number of points that k-means was fitted on, None where these are all.

    Raises:
        DataError, NonFiniteError: as `divide`.
    """
    seed = (seed,) if isinstance(seed, int) else seed
    if by.startswith("random"):  # no features, so that a million classes take nothing
        nothing = np.empty((len(labels), 0), np.float32)
        options = {"by": by, "seed": seed, "tries": tries, "previous": previous, "double": double}
        return divide(nothing, labels, num_learners, **options, context=context)
    points = _Points.of(labels, by)
    if num_learners > len(points.counts):
        what = "classes" if by == "class" else "images"
        raise DataError(
            f"{len(points.counts)} {what} cannot be divided among {num_learners} learners; use fewer `num_learners`"
        )
    group, sample = context.group, np.arange(len(points.counts))
    if len(sample) > max_points:
        sample = np.sort(np.random.default_rng([*seed, 0x5A3]).choice(len(sample), max_points, replace=False))
    own = list(_means(embed, points, sample[group.shard(len(sample))]))
    features = np.concatenate(own) if own else np.empty((0, 0), np.float32)
    if not group.alone:
        width = int(group.all_reduce(np.array([features.shape[1] * (group.rank == 0)]))[0])
        features = features.reshape(len(features), width)
        features = group.all_gather(torch.from_numpy(features), len(sample)).numpy()

    # By class a row for the class, and one more where it has a pair, so that pairs count as among its images.
    rows = np.repeat(np.arange(len(sample)), np.minimum(points.counts[sample], 2)) if by == "class" else None
    images = points.first_images(sample, rows)
    of_rows = features if rows is None else features[rows]
    before = None if previous is None else replace(previous, learner=previous.learner[images])
    clusters = matched_clusters(
        of_rows,
        labels[images],
        num_learners,
        by=by,
        seed=seed,
        tries=tries,
        previous=before,
        device=device,
        context=context,
    )
    halves = None
    if double:
        halves = doubled(clusters, of_rows, labels[images], by, seed, tries, device, context, in_pairs=False)
        halves = shared(halves, context)
    clusters = shared(clusters, context)
    fitted = clusters if halves is None else halves

    # The points of the sample are where k-means has them; the others go to the nearest centroid.
    learner = np.empty(len(points.counts), np.int64)
    of_point = slice(None) if rows is None else np.unique(rows, return_index=True)[1]
    learner[sample] = fitted.learner[of_point]
    rest = np.setdiff1d(np.arange(len(learner)), sample, assume_unique=True)
    if len(rest):
        assigned = [
            assign(means, clusters.centroids, None if halves is None else halves.centroids)
            for means in _means(embed, points, rest[group.shard(len(rest))])
        ]
        own_rest = np.concatenate(assigned) if assigned else np.empty(0, np.int64)
        learner[rest] = group.all_gather(torch.from_numpy(own_rest), len(rest)).numpy()
    division = Division(points.of_images(learner), fitted.centroids, len(sample) if len(rest) else None)
    if previous is not None and len(rest):
        division = _matched(division, previous, double=double)
    division = shared(division, context)
    if double:
        having = classes_with_pairs(division.learner, labels, division.num_learners)
        for k in np.flatnonzero((having.reshape(-1, 2) < 2).any(axis=1))[:1].tolist():
            raise DataError(cannot_split(k, division.merged(), labels, tries, by))
    return division.without_singletons(labels)


def assign(features: np.ndarray, centroids: np.ndarray, halves: np.ndarray | None = None) -> np.ndarray:
    """The nearest of (K, F) centroids to each of (n, F) features, (n,) int64; with the (2 K, F) centroids of their
    halves, the nearer half of the nearest: 2 k or 2 k + 1."""
    nearest = nearest_centroids(features, centroids)
    if halves is None:
        return nearest
    result = 2 * nearest
    for k in np.unique(nearest).tolist():
        of = np.flatnonzero(nearest == k)
        result[of] += nearest_centroids(features[of], halves[2 * k : 2 * k + 2])
    return result


def _matched(division: Division, previous: Division, *, double: bool) -> Division:
    """The clusters numbered by what all images were before, and not only the sample; two halves stay together."""
    if not double:
        return division.matched_to(previous)
    parents = division.merged()
    parents = replace(parents, centroids=np.arange(parents.num_learners, dtype=np.float32)[:, None])
    old_number = parents.matched_to(previous).centroids[:, 0].astype(np.int64)
    new_number = np.argsort(old_number)
    return division.renumbered((2 * new_number[:, None] + np.arange(2)).ravel())


@dataclass(frozen=True, eq=False)
class _Points:
    """What is clustered, and the images of each."""

    counts: np.ndarray
    """(P,) int64: the images of each point."""
    order: np.ndarray | None
    """(N,) int64: the images, point by point; None: each image is a point."""
    point: np.ndarray | None
    """(N,) int64: the point of each image; None likewise."""

    @classmethod
    def of(cls, labels: np.ndarray, by: DivideBy) -> _Points:
        if by != "class":
            return cls(np.ones(len(labels), np.int64), None, None)
        _, point, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return cls(counts, np.argsort(point, kind="stable"), point)

    def images(self, points: np.ndarray) -> np.ndarray:
        """The images of these points, one point after the other."""
        if self.order is None:
            return points
        counts = self.counts[points]
        starts = (np.cumsum(self.counts) - self.counts)[points]
        return self.order[np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())]

    def first_images(self, points: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        """An image for each row: the first of the point where it has one row, the first two where it has two."""
        if self.order is None or rows is None:
            return points
        second = np.concatenate([[False], rows[1:] == rows[:-1]])
        return self.order[(np.cumsum(self.counts) - self.counts)[points][rows] + second]

    def of_images(self, learner: np.ndarray) -> np.ndarray:
        """The learner of each image, (N,), from that of each point."""
        return learner if self.point is None else learner[self.point]


def _means(embed: Embed, points: _Points, some: np.ndarray) -> Iterator[np.ndarray]:
    """The features of these points, of length one or the means of such, (n, F) float32, in batches."""
    if not len(some):
        return
    if points.order is None:
        for features in embed(some):
            yield normalized(features)
        return
    ends = np.cumsum(points.counts[some])
    done, point = 0, 0
    carried: np.ndarray | float = 0.0
    for features in embed(points.images(some)):
        stop = done + len(features)
        last = int(np.searchsorted(ends, stop - 1, side="right"))  # the point of the batch's last image
        starts = np.maximum(np.concatenate([[0], ends])[point : last + 1] - done, 0)
        sums = np.add.reduceat(normalized(features), starts, axis=0, dtype=np.float64)
        sums[0] += carried
        full = ends[last] == stop
        complete = sums if full else sums[:-1]
        carried = 0.0 if full else sums[-1]
        if len(complete):
            counts = points.counts[some[point : point + len(complete)]]
            yield (complete / counts[:, None]).astype(np.float32)
        point, done = point + len(complete), stop
