"""k-means on all points, seeded, in blocks; the same code on every device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from divcon.divide.nearest import BLOCK_ELEMENTS, CACHED_ELEMENTS, Nearest, blocks, if_few, picked, squared_distances
from divcon.errors import DataError, NonFiniteError
from divcon.processes import ALONE, Processes

SEEDING_POINTS = 1 << 14
"""The start is chosen among this many points, or 256 a cluster."""
FAR = 4.0
"""Points whose mean's squared length is more than this many times their variance are centred first."""


@dataclass(frozen=True, eq=False)
class KMeans:
    """A clustering of N points of F features into K clusters."""

    assignment: np.ndarray
    """(N,) int64, each point's nearest centroid."""
    centroids: np.ndarray
    """(K, F) float32."""
    inertia: float
    """Sum over the points of the squared distance to their centroid."""
    iterations: int


def kmeans(
    points: np.ndarray | torch.Tensor,
    num_clusters: int,
    *,
    seed: int | tuple[int, ...] = 0,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    device: str | torch.device = "cpu",
    processes: Processes = ALONE,
) -> KMeans:
    """Lloyd's algorithm over all points, from a greedy k-means++ start (Arthur and Vassilvitskii 2007) among 16,384 of
    them, or 256 a cluster where that is more.

    Points whose nearest centroid cannot have changed are not compared again (Elkan 2003). A cluster that empties starts
    again at the point that is farthest from its centroid.

    Args:
        points: (N, F) float.
        num_clusters: K.
        seed: decides the start; the same seed gives the same clustering on the same device.
        processes: those that call this at once with the same points; they share out the distances.
        tolerance: stop when the centroids' squared moves add up to less than this share of the points' mean variance.

    Raises:
        DataError: fewer distinct points than clusters.
        NonFiniteError: a point has a NaN or an infinite value (the message names the rows), or one whose square is.
    """
    if torch.device(device).type == "mps":
        device = "cpu"  # MPS has no float64, which the sums below need
    x = torch.as_tensor(points, dtype=torch.float32, device=device)
    n = len(x)
    if num_clusters > n:
        raise DataError(f"k-means: {n} points cannot be divided into {num_clusters} clusters")

    x, norms, mean, variance = _centred(x)
    centroids = _start(x, norms, num_clusters, np.random.default_rng(seed))
    threshold = tolerance * variance / x.shape[1]

    iterations = 0
    nearest = Nearest(x, norms, num_clusters, processes)
    assignment = nearest(centroids)
    sums = _sums(x, assignment, num_clusters)
    while iterations < max_iterations:
        iterations += 1
        moved = _means(x, assignment, sums, nearest.distances)
        shift = float(((moved - centroids).double() ** 2).sum())
        centroids = moved
        previous = assignment
        assignment = nearest(centroids)
        sums = _moved_sums(x, assignment, previous, sums)
        if shift <= threshold or torch.equal(assignment, previous):
            break
    counts = torch.bincount(assignment, minlength=num_clusters)
    exact = centroids.double()
    inertia = float(norms.double().sum() - 2 * (sums * exact).sum() + (counts * (exact * exact).sum(dim=1)).sum())
    return KMeans(
        assignment=assignment.cpu().numpy(),
        centroids=(centroids + mean).cpu().numpy(),
        inertia=max(inertia, 0.0),
        iterations=iterations,
    )


def _centred(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """The points, (N, F), without their mean where that is far off, since distances would lose digits by it; their
    squared lengths, (N,); what was taken off, (F,); and their variance, the mean squared distance from their mean."""
    norms, total = points.new_empty(len(points)), points.new_zeros(points.shape[1], dtype=torch.float64)
    for rows, block in blocks(points, CACHED_ELEMENTS):
        torch.linalg.vecdot(block, block, out=norms[rows])
        total += block.sum(dim=0)
    if not torch.isfinite(norms).all():
        rows_with = torch.nonzero(~torch.isfinite(points).all(dim=1)).flatten().tolist()
        if not rows_with:
            raise NonFiniteError("k-means: the squares of these values are too large for float32; scale them down")
        raise NonFiniteError(
            f"k-means: {len(rows_with)} of {len(points)} rows hold NaN or Inf, first rows {rows_with[:5]}"
        )
    mean = total / len(points)
    off = float(mean @ mean)
    variance = float(norms.double().mean()) - off
    if off <= FAR * variance:
        return points, norms, torch.zeros_like(points[0]), variance
    # A copy as large as the points, which costs an iteration or two.
    centred = torch.empty_like(points)
    for rows, block in blocks(points, CACHED_ELEMENTS):
        moved = torch.sub(block, mean.float(), out=centred[rows])
        torch.linalg.vecdot(moved, moved, out=norms[rows])
    return centred, norms, mean.float(), float(norms.double().mean())


def _sums(x: torch.Tensor, assignment: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """The sum of each cluster's points, (K, F) float64."""
    sums = torch.zeros(num_clusters, x.shape[1], dtype=torch.float64, device=x.device)
    for rows, block in blocks(x, BLOCK_ELEMENTS):
        sums += _product(_one_hot(assignment[rows], sums), block)
    return sums


def _moved_sums(x: torch.Tensor, assignment: torch.Tensor, previous: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """The sums after some points went to another cluster: after a few rounds they are few, and the others stay
    unread."""
    moved = if_few(assignment != previous)
    if moved is None:
        return _sums(x, assignment, len(sums))
    sums = sums.clone()
    after, before = assignment[moved], previous[moved]
    for rows, block in picked(x, moved):
        sums += _product(_one_hot(after[rows], sums) - _one_hot(before[rows], sums), block)
    return sums


def _one_hot(assignment: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """(N, K) float32."""
    return torch.zeros(len(assignment), len(sums), device=sums.device).scatter_(1, assignment[:, None], 1.0)


def _product(one_hot: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(K, F) float64. A product adds in a fixed order on every device, which scattered adds do not."""
    return (one_hot.T @ points).double()


def _means(
    x: torch.Tensor, assignment: torch.Tensor, sums: torch.Tensor, distances: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """The mean of each cluster's points, (K, F); empty clusters take the points farthest from their centroids."""
    sums, num_clusters = sums.clone(), len(sums)
    counts = torch.bincount(assignment, minlength=num_clusters).double()
    empty = torch.nonzero(counts == 0).flatten()
    if len(empty):
        for cluster, point in zip(empty.tolist(), torch.topk(distances(), len(empty)).indices.tolist(), strict=True):
            donor = int(assignment[point])
            sums[donor] -= x[point]
            counts[donor] -= 1
            sums[cluster], counts[cluster] = x[point].double(), 1
    return (sums / counts.clamp(min=1)[:, None]).float()


def _start(x: torch.Tensor, norms: torch.Tensor, num_clusters: int, rng: np.random.Generator) -> torch.Tensor:
    """Starting centroids, (K, F), by greedy k-means++.

    Raises:
        DataError: fewer distinct points than clusters.
    """
    enough = max(SEEDING_POINTS, 256 * num_clusters)
    if len(x) > enough:
        # Each centroid costs a pass over the points, which for many clusters is more than all iterations.
        some = torch.from_numpy(np.sort(rng.choice(len(x), enough, replace=False))).to(x.device)
        chosen = _plus_plus(x.index_select(0, some), norms[some], num_clusters, rng)
        if len(chosen) == num_clusters:
            return chosen
    chosen = _plus_plus(x, norms, num_clusters, rng)
    if len(chosen) < num_clusters:
        raise DataError(
            f"k-means: only {len(chosen)} distinct points, which cannot be divided into {num_clusters} clusters"
        )
    return chosen


def _plus_plus(x: torch.Tensor, norms: torch.Tensor, num_clusters: int, rng: np.random.Generator) -> torch.Tensor:
    """Each the best of a few points that are drawn in proportion to their squared distance from those already chosen;
    no more of them than there are distinct points."""
    trials = 2 + int(math.log(num_clusters))
    chosen = [int(rng.integers(len(x)))]
    nearest = squared_distances(x, norms, x[chosen])[:, 0]
    # Rounding leaves a little distance between equal points: what is this near is the same point.
    floor = 1e-6 * float(norms.max())
    while len(chosen) < num_clusters:
        nearest = torch.where(nearest <= floor, 0.0, nearest)
        cumulative = np.cumsum(nearest.cpu().numpy(), dtype=np.float64)
        if cumulative[-1] == 0:
            break
        # side="right" never lands on a point of weight zero.
        drawn = np.searchsorted(cumulative, rng.random(trials) * cumulative[-1], side="right")
        candidates = np.minimum(drawn, len(x) - 1)
        distances = torch.minimum(squared_distances(x, norms, x[candidates]), nearest[:, None])
        best = int(distances.sum(dim=0).argmin())
        chosen.append(int(candidates[best]))
        nearest = distances[:, best]
    return x[chosen]
