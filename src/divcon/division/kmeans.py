"""k-means on all points, seeded; the same code on every device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from divcon.errors import DataError, NonFiniteError
from divcon.runtime.context import DEFAULT, Context

BLOCK_ELEMENTS = 1 << 24  # floats of a block's points, distances or one-hot assignment: 64 MB each
CACHED_ELEMENTS = 1 << 20  # floats of a block that stays in a processor's last cache: 4 MB
ROUNDING = 2e-5
"""The relative rounding error of squared distances, as a share of the squared lengths that they are computed from."""


SEEDING_POINTS = 1 << 14
"""The starting centroids are chosen among this many points, or 256 per cluster."""
FAR = 4.0
"""Points are centred first if the squared length of their mean is more than this many times their variance."""


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
    context: Context = DEFAULT,
) -> KMeans:
    """Lloyd's algorithm on all points, with a greedy k-means++ start (Arthur and Vassilvitskii 2007) on 16,384 of them,
    or 256 per cluster if that is more.

    Points whose nearest centroid cannot have changed are not compared again (Elkan 2003). A cluster that becomes empty
    restarts at the point that is farthest from its centroid.

    Args:
        points: (N, F) float.
        num_clusters: K.
        seed: of the start; the same seed gives the same clustering on the same device.
        context: the processes of its group call this at once with the same points, and share the distances.
        tolerance: stop when the squared moves of the centroids sum to less than this share of the mean variance.

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
    nearest = Nearest(x, norms, num_clusters, context)
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
    """The points, (N, F), minus their mean if that is far from zero, where distances would lose digits; their squared
    lengths, (N,); what was subtracted, (F,); and their variance, the mean squared distance from their mean."""
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
    # A copy as large as the points; it costs about as much as an iteration or two.
    centred = torch.empty_like(points)
    for rows, block in blocks(points, CACHED_ELEMENTS):
        moved = torch.sub(block, mean.float(), out=centred[rows])
        torch.linalg.vecdot(moved, moved, out=norms[rows])
    return centred, norms, mean.float(), float(norms.double().mean())


def _start(x: torch.Tensor, norms: torch.Tensor, num_clusters: int, rng: np.random.Generator) -> torch.Tensor:
    """Starting centroids, (K, F), by greedy k-means++.

    Raises:
        DataError: fewer distinct points than clusters.
    """
    enough = max(SEEDING_POINTS, 256 * num_clusters)
    if len(x) > enough:
        # Each centroid costs a pass over the points; for many clusters that is more than all iterations.
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
    """Greedy k-means++: each centroid is the best of a few points, drawn in proportion to their squared distance from
    the centroids so far. Fewer than K if there are fewer distinct points."""
    trials = 2 + int(math.log(num_clusters))
    chosen = [int(rng.integers(len(x)))]
    nearest = squared_distances(x, norms, x[chosen])[:, 0]
    # Rounding leaves a little distance between equal points.
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


def _sums(x: torch.Tensor, assignment: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """The sum of each cluster's points, (K, F) float64."""
    sums = torch.zeros(num_clusters, x.shape[1], dtype=torch.float64, device=x.device)
    for rows, block in blocks(x, BLOCK_ELEMENTS):
        sums += _product(_one_hot(assignment[rows], sums), block)
    return sums


def _moved_sums(x: torch.Tensor, assignment: torch.Tensor, previous: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """The sums after some points have changed clusters. After a few rounds they are few, and only those are read."""
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
    """(K, F) float64. A product adds in a fixed order on every device; scattered adds do not."""
    return (one_hot.T @ points).double()


class Nearest:
    """Each point's nearest centroid, as the centroids move.

    Only points whose nearest centroid may have changed are compared again (Elkan 2003): the distance to a centroid
    changes by no more than the centroid moves. The bounds allow for rounding, so that the result is the same as if all
    points were compared.
    """

    def __init__(self, x: torch.Tensor, norms: torch.Tensor, num_clusters: int, context: Context) -> None:
        mine = context.group.shard(len(x))
        self._n, self._group = len(x), context.group
        self._x, self._norms = x[mine], norms[mine]
        self._nearest = self._norms.new_zeros(len(self._x), dtype=torch.int64)
        self._squared = torch.empty_like(self._norms)
        # More bounds than the points have values would take too much memory.
        bounds = num_clusters if num_clusters <= x.shape[1] else 0
        self._upper = self._norms.new_empty(len(self._x))  # bound of the distance to the nearest
        self._lower = self._norms.new_empty(len(self._x), bounds)  # bounds of the distances to the other centroids
        self._centroids: torch.Tensor | None = None

    def __call__(self, centroids: torch.Tensor) -> torch.Tensor:
        """The nearest of these (K, F) centroids, (N,) int64."""
        if self._centroids is None or not self._lower.shape[1]:
            self._compare(centroids, None)
        else:
            moves = torch.linalg.vector_norm((centroids - self._centroids).double(), dim=1).float() * (1 + ROUNDING)
            self._upper += moves[self._nearest]
            self._lower -= moves
            self._compare(centroids, if_few(self._upper >= self._lower.amin(dim=1)))
        self._centroids = centroids
        return self._group.all_gather(self._nearest.clone(), self._n)

    def distances(self) -> torch.Tensor:
        """The squared distance of each point to its nearest centroid, (N,)."""
        assert self._centroids is not None, "no centroids yet"
        self._compare(self._centroids, None)
        return self._group.all_gather(self._squared, self._n)

    def _compare(self, centroids: torch.Tensor, points: torch.Tensor | None) -> None:
        """Compare all points, or those at these positions, with all centroids."""
        size = max(1, BLOCK_ELEMENTS // len(centroids))
        for i in range(0, len(self._x) if points is None else len(points), size):
            if points is None:
                at = slice(i, i + size)
                squared = squared_distances(self._x[at], self._norms[at], centroids)
            else:
                at = points[i : i + size]
                squared = squared_distances(self._x, self._norms, centroids, at)
            first = squared.min(dim=1)
            self._nearest[at], self._squared[at] = first.indices, first.values
            if self._lower.shape[1]:
                slack = ROUNDING * (self._norms[at] + (centroids * centroids).sum(dim=1).max())
                self._upper[at] = (first.values + slack).sqrt()
                others = squared.sub_(slack[:, None]).clamp_(min=0).sqrt_()
                self._lower[at] = others.scatter_(1, first.indices[:, None], math.inf)


def squared_distances(
    x: torch.Tensor, norms: torch.Tensor, centroids: torch.Tensor, points: torch.Tensor | None = None
) -> torch.Tensor:
    """The squared distances of all points, or of those at these positions, to each centroid: (n, K)."""
    constants = (centroids * centroids).sum(dim=1)[None]
    if points is None:
        squared = torch.addmm(constants, x, centroids.T, alpha=-2)
    else:
        squared, norms = x.new_empty(len(points), len(centroids)), norms[points]
        for rows, block in picked(x, points):
            torch.addmm(constants, block, centroids.T, alpha=-2, out=squared[rows])
    return squared.add_(norms[:, None]).clamp_(min=0)


def nearest_centroids(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest of (K, F) centroids to each of (N, F) points, (N,) int64; the first where several are as near."""
    # Centred on the centroids, so that points far from the origin lose no digits.
    mean = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
    shifted = torch.from_numpy(centroids - mean)
    nearest = np.empty(len(points), np.int64)
    for rows, block in blocks(torch.from_numpy(points), BLOCK_ELEMENTS):
        x = block - torch.from_numpy(mean)
        nearest[rows] = squared_distances(x, torch.linalg.vecdot(x, x), shifted).argmin(dim=1).numpy()
    return nearest


def if_few(chosen: torch.Tensor) -> torch.Tensor | None:
    """The positions of the chosen points, (n,) int64; None if they are so many that comparing all points is as fast,
    without a copy."""
    positions = torch.nonzero(chosen).flatten()
    return positions if 4 * len(positions) < 3 * len(chosen) else None


def blocks(x: torch.Tensor, elements: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows in blocks of this many values: the position of each block, and the block."""
    size = max(1, elements // x.shape[1])
    for i in range(0, len(x), size):
        yield slice(i, i + size), x[i : i + size]


def picked(x: torch.Tensor, points: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows at these positions, in blocks: the range of positions, and a copy of their rows, which the next block
    overwrites. On a CPU the copy stays in its cache."""
    elements = CACHED_ELEMENTS if x.device.type == "cpu" else BLOCK_ELEMENTS
    size = max(1, elements // x.shape[1])
    copied = x.new_empty(min(size, len(points)), x.shape[1])
    for i in range(0, len(points), size):
        at = points[i : i + size]
        yield slice(i, i + size), torch.index_select(x, 0, at, out=copied[: len(at)])
