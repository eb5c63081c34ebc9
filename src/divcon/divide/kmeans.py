"""k-means on all points, seeded, in blocks; the same code on every device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from divcon.errors import DataError, NonFiniteError
from divcon.processes import ALONE, Processes

BLOCK_ELEMENTS = 1 << 24  # floats of a block's distances and one-hot assignment: 64 MB each
CACHED_ELEMENTS = 1 << 18  # floats of a block that stays in a processor's cache: 1 MB


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
    """Lloyd's algorithm from a greedy k-means++ start (Arthur and Vassilvitskii 2007), over all points.

    A cluster that empties starts again at the point that is farthest from its centroid.

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

    mean = x.mean(dim=0)
    x, norms = _centred(x, mean)
    centroids = _plus_plus(x, norms, num_clusters, np.random.default_rng(seed))
    threshold = tolerance * float(norms.double().mean()) / x.shape[1]

    iterations = 0
    assignment, distances = _assign(x, norms, centroids, processes)
    sums = _sums(x, assignment, num_clusters)
    while iterations < max_iterations:
        iterations += 1
        moved = _means(x, assignment, distances, sums)
        shift = float(((moved - centroids).double() ** 2).sum())
        centroids = moved
        previous = assignment
        assignment, distances = _assign(x, norms, centroids, processes)
        sums = _moved_sums(x, assignment, previous, sums)
        if shift <= threshold or torch.equal(assignment, previous):
            break
    return KMeans(
        assignment=assignment.cpu().numpy(),
        centroids=(centroids + mean).cpu().numpy(),
        inertia=float(distances.double().sum()),
        iterations=iterations,
    )


def _centred(points: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The points without their mean, (N, F), whose distances lose fewer digits; and their squared lengths, (N,).

    Large points are read from memory once: what reads them again and again takes as long as an iteration.
    """
    centred, norms = torch.empty_like(points), points.new_empty(len(points))
    rows = max(1, CACHED_ELEMENTS // points.shape[1])
    for i in range(0, len(points), rows):
        block = torch.sub(points[i : i + rows], mean, out=centred[i : i + rows])
        torch.linalg.vecdot(block, block, out=norms[i : i + rows])
    if not torch.isfinite(norms).all():
        rows_with = torch.nonzero(~torch.isfinite(points).all(dim=1)).flatten().tolist()
        if not rows_with:
            raise NonFiniteError("k-means: the squares of these values are too large for float32; scale them down")
        raise NonFiniteError(
            f"k-means: {len(rows_with)} of {len(points)} rows hold NaN or Inf, first rows {rows_with[:5]}"
        )
    return centred, norms


def _squared_distances(x: torch.Tensor, norms: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    squared = torch.addmm((centroids * centroids).sum(dim=1)[None], x, centroids.T, alpha=-2)
    return squared.add_(norms[:, None]).clamp_(min=0)


def _assign(
    x: torch.Tensor, norms: torch.Tensor, centroids: torch.Tensor, processes: Processes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each point's nearest centroid, (N,) int64, and the squared distance to it, (N,)."""
    rows, mine = max(1, BLOCK_ELEMENTS // len(centroids)), processes.share(len(x))
    parts = [
        _squared_distances(x[i : min(i + rows, mine.stop)], norms[i : min(i + rows, mine.stop)], centroids).min(dim=1)
        for i in range(mine.start, mine.stop, rows)
    ]
    indices = torch.cat([x.new_empty(0, dtype=torch.int64), *(p.indices for p in parts)])
    values = torch.cat([x.new_empty(0), *(p.values for p in parts)])
    return processes.gathered(indices, len(x)), processes.gathered(values, len(x))


def _sums(x: torch.Tensor, assignment: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """The sum of each cluster's points, (K, F) float64."""
    # A product with one-hot rows adds in a fixed order on every device, which scattered adds do not.
    rows = max(1, BLOCK_ELEMENTS // num_clusters)
    sums = torch.zeros(num_clusters, x.shape[1], dtype=torch.float64, device=x.device)
    for i in range(0, len(x), rows):
        one_hot = torch.nn.functional.one_hot(assignment[i : i + rows], num_clusters).to(x.dtype)
        sums += (one_hot.T @ x[i : i + rows]).double()
    return sums


def _moved_sums(x: torch.Tensor, assignment: torch.Tensor, previous: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """The sums after some points went to another cluster: after a few rounds they are few, and the others stay
    unread."""
    moved = torch.nonzero(assignment != previous).flatten()
    if 4 * len(moved) > len(x):
        return _sums(x, assignment, len(sums))
    points = x[moved]
    return sums + _sums(points, assignment[moved], len(sums)) - _sums(points, previous[moved], len(sums))


def _means(x: torch.Tensor, assignment: torch.Tensor, distances: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """The mean of each cluster's points, (K, F); empty clusters take the points farthest from their centroids."""
    sums, num_clusters = sums.clone(), len(sums)
    counts = torch.bincount(assignment, minlength=num_clusters).double()
    empty = torch.nonzero(counts == 0).flatten()
    if len(empty):
        for cluster, point in zip(empty.tolist(), torch.topk(distances, len(empty)).indices.tolist(), strict=True):
            donor = int(assignment[point])
            sums[donor] -= x[point]
            counts[donor] -= 1
            sums[cluster], counts[cluster] = x[point].double(), 1
    return (sums / counts.clamp(min=1)[:, None]).float()


def _plus_plus(x: torch.Tensor, norms: torch.Tensor, num_clusters: int, rng: np.random.Generator) -> torch.Tensor:
    """Starting centroids: each the best of a few points that are drawn in proportion to their squared distance from
    those already chosen."""
    trials = 2 + int(math.log(num_clusters))
    chosen = [int(rng.integers(len(x)))]
    nearest = _squared_distances(x, norms, x[chosen])[:, 0]
    # Rounding leaves a little distance between equal points: what is this near is the same point.
    floor = 1e-6 * float(norms.max())
    while len(chosen) < num_clusters:
        nearest = torch.where(nearest <= floor, 0.0, nearest)
        cumulative = np.cumsum(nearest.cpu().numpy(), dtype=np.float64)
        if cumulative[-1] == 0:
            raise DataError(
                f"k-means: only {len(chosen)} distinct points, which cannot be divided into {num_clusters} clusters"
            )
        # side="right" never lands on a point of weight zero.
        drawn = np.searchsorted(cumulative, rng.random(trials) * cumulative[-1], side="right")
        candidates = np.minimum(drawn, len(x) - 1)
        distances = torch.minimum(_squared_distances(x, norms, x[candidates]), nearest[:, None])
        best = int(distances.sum(dim=0).argmin())
        chosen.append(int(candidates[best]))
        nearest = distances[:, best]
    return x[chosen]
