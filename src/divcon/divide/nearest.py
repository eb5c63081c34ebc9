"""The nearest centroid of every point: in blocks, and again as the centroids move."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from divcon.processes import Processes

BLOCK_ELEMENTS = 1 << 24  # floats of a block's points, distances or one-hot assignment: 64 MB each
CACHED_ELEMENTS = 1 << 20  # floats of a block that stays in a processor's last cache: 4 MB
ROUNDING = 2e-5
"""Squared distances are wrong by less than this many times the squared lengths that they are computed from."""


def squared_distances(
    x: torch.Tensor, norms: torch.Tensor, centroids: torch.Tensor, points: torch.Tensor | None = None
) -> torch.Tensor:
    """Of all points, or of those at these positions, to each centroid: (n, K)."""
    constants = (centroids * centroids).sum(dim=1)[None]
    if points is None:
        squared = torch.addmm(constants, x, centroids.T, alpha=-2)
    else:
        squared, norms = x.new_empty(len(points), len(centroids)), norms[points]
        for rows, block in picked(x, points):
            torch.addmm(constants, block, centroids.T, alpha=-2, out=squared[rows])
    return squared.add_(norms[:, None]).clamp_(min=0)


class Nearest:
    """Each point's nearest centroid, as the centroids move.

    Only points whose nearest may have changed are compared again (Elkan 2003): the distance to a centroid grows or
    shrinks by at most what it moved. The bounds allow for rounding, so that the answer is that of comparing all.
    """

    def __init__(self, x: torch.Tensor, norms: torch.Tensor, num_clusters: int, processes: Processes) -> None:
        mine = processes.share(len(x))
        self._n, self._processes = len(x), processes
        self._x, self._norms = x[mine], norms[mine]
        self._nearest = self._norms.new_zeros(len(self._x), dtype=torch.int64)
        self._squared = torch.empty_like(self._norms)
        # More bounds than the points have values would be too many to keep.
        bounds = num_clusters if num_clusters <= x.shape[1] else 0
        self._upper = self._norms.new_empty(len(self._x))  # of the distance to the nearest
        self._lower = self._norms.new_empty(len(self._x), bounds)  # of those to the others
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
        return self._processes.gathered(self._nearest.clone(), self._n)

    def distances(self) -> torch.Tensor:
        """The squared distance of each point to its nearest centroid, (N,)."""
        assert self._centroids is not None, "no centroids yet"
        self._compare(self._centroids, None)
        return self._processes.gathered(self._squared, self._n)

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


def if_few(chosen: torch.Tensor) -> torch.Tensor | None:
    """The positions of what is chosen, (n,) int64; None where all is as fast, since some are copied first."""
    positions = torch.nonzero(chosen).flatten()
    return positions if 4 * len(positions) < 3 * len(chosen) else None


def blocks(x: torch.Tensor, elements: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows, in blocks of so many values: where they are, and they."""
    size = max(1, elements // x.shape[1])
    for i in range(0, len(x), size):
        yield slice(i, i + size), x[i : i + size]


def picked(x: torch.Tensor, points: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows at these positions, in blocks: which of the positions they are of, and they, until the next is asked
    for. On a CPU what is copied stays in its cache."""
    elements = CACHED_ELEMENTS if x.device.type == "cpu" else BLOCK_ELEMENTS
    size = max(1, elements // x.shape[1])
    copied = x.new_empty(min(size, len(points)), x.shape[1])
    for i in range(0, len(points), size):
        at = points[i : i + size]
        yield slice(i, i + size), torch.index_select(x, 0, at, out=copied[: len(at)])
