"""Re-ranking by k-reciprocal encoding: items that share neighbours come nearer.

Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017 (arXiv 1701.08398).
The authors' released code, which gave the published numbers and which later code copies, differs from the text. This
follows the code:

- queries are neighbours of each other, and of the gallery: N = Q + G items;
- an item is the first of its own neighbours, before its k1 nearest, and one of its k2;
- distances are squared euclidean, divided by the largest from the same item;
- an item's encoding sums to 1;
- a set joins a set of neighbours if more than two thirds of it, not two thirds, are in that set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from divcon.errors import ConfigError
from divcon.evaluation.nearness import as_vectors
from divcon.evaluation.task import Exclusion

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Float32, Float64, Int64
    from scipy.sparse import csr_array

_BYTES = 32
"""Memory for an entry of a sparse matrix, with the copies that its products and transposes take."""


@dataclass(frozen=True)
class ReRanking:
    """Settings of re-ranking by k-reciprocal encoding.

    Raises:
        ConfigError: k1 or k2 below 1, or a weight that is not from 0 to 1.
    """

    k1: int = 20
    """Number of nearest neighbours among which mutual ones are looked for (section 3.2)."""
    k2: int = 6
    """Number of nearest items, itself the first, whose mean is an item's encoding (section 3.4); 1: its own alone."""
    weight: float = 0.3
    """Lambda, the weight of the original distance beside the Jaccard distance (section 3.5); 1: the original alone."""

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1:
            raise ConfigError(f"re-ranking: k1 and k2 must be at least 1, not {self.k1} and {self.k2}")
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"re-ranking: weight must be from 0 to 1, not {self.weight}")


def reranked_distances(
    query: object,
    gallery: object = None,
    rerank: ReRanking = ReRanking(),
    *,
    metric: str = "euclidean",
    memory_mb: float = 1024,
    device: str | torch.device = "cpu",
) -> Float32[np.ndarray, "Q G"]:
    """Distances of queries to gallery items after re-ranking by k-reciprocal encoding.

    ``weight`` * d + (1 - ``weight``) * the Jaccard distance of the encodings, where d is the squared distance divided
    by the query's largest: from 0 to 1. Queries and gallery are each other's neighbours, and no label is used (Zhong
    et al., CVPR 2017, sections 3.2 to 3.5; where their released code, which gave the published numbers, differs from
    the text, this follows the code).

    Args:
        query: (Q, D) numbers, array or tensor.
        gallery: (G, D), likewise. Without it each item is a query whose gallery is all the others, with the
            distances of a search for it alone; an item's distance to itself, on the diagonal, means nothing.
        rerank: k1, k2 and the weight.
        metric: "euclidean", or "cosine", which is euclidean on vectors of length one.
        memory_mb: limit on the memory beyond the input, with the result.
        device: where neighbours are searched.

    Raises:
        ValueError: wrong shapes, an empty input, another metric.
        NonFiniteError: a vector holds NaN or infinite values.
        ConfigError: ``memory_mb`` is too little for the number of items, k1 and k2; raised before it is allocated.
    """
    queries = as_vectors(query, "query")
    items = queries if gallery is None else as_vectors(gallery, "gallery")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, gallery items {items.shape[1]}")
    _check_memory(f"{len(queries):,} x {len(items):,} distances", 4 * len(queries) * len(items), memory_mb)
    rows = np.arange(len(queries))
    columns = rows if gallery is None else len(queries) + np.arange(len(items))
    everything = queries if gallery is None else np.concatenate([queries, items])
    reranked = Reranked(everything, columns, rerank, metric=metric, memory_mb=memory_mb, device=device)
    out = np.empty((len(rows), len(columns)), dtype=np.float32)
    for i in range(0, len(rows), step := reranked.queries_at_once):
        out[i : i + step] = reranked.distances(rows[i : i + step])
    return out


class Reranked:
    """N items with their encodings, and the re-ranked distances of any of them to G of them.

    The encodings are sparse: time and memory grow with the number of neighbours, and with N * N only in blocks.
    """

    def __init__(
        self,
        items: Float[np.ndarray, "N D"],
        gallery: Int64[np.ndarray, "G"],
        rerank: ReRanking,
        *,
        metric: str = "euclidean",
        memory_mb: float = 1024,
        device: str | torch.device = "cpu",
    ) -> None:
        """Args and errors as of `reranked_distances`; ``gallery`` holds the gallery's positions among the items."""
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"re-ranking needs distances: metric must be euclidean or cosine, not {metric!r}")
        count = len(items)
        self._rerank, self._gallery, self._memory_mb = rerank, gallery, memory_mb
        k = max(1, min(count - 1, max(rerank.k1, rerank.k2 - 1)))
        # The vectors in float64, lists of neighbours, and the graphs of the mutual ones.
        self._bytes = 8 * items.size + (12 + _BYTES) * count * (k + 1)
        what = f"the neighbours of {count:,} items at k1 {rerank.k1} and k2 {rerank.k2}"
        _check_memory(what, self._bytes, memory_mb)
        self._vectors = items.astype(np.float64)
        if metric == "cosine":
            norms = np.linalg.norm(self._vectors, axis=1, keepdims=True)
            self._vectors /= np.where(norms > 0, norms, 1)
        # Centred on one of them, less of a distance is lost where squares are subtracted; nothing where all are equal.
        self._vectors -= self._vectors[0].copy()
        self._squares = np.square(self._vectors).sum(axis=1)
        step = self.queries_at_once
        farthest = [self._squared(np.arange(i, min(i + step, count))).max(axis=1) for i in range(0, count, step)]
        self._farthest = np.concatenate(farthest)
        self._farthest[self._farthest == 0] = 1  # all items are equal
        neighbours = np.empty((count, k + 1), dtype=np.int32)
        neighbours[:, 0] = np.arange(count)
        from divcon.evaluation.neighbours import neighbour_blocks

        blocks = neighbour_blocks(
            items,
            items,
            k,
            metric=metric,
            exclude=Exclusion.itself(count),
            memory_mb=memory_mb,
            device=device,
            distances=False,
        )
        for block in blocks:
            neighbours[block.start : block.start + len(block.indices), 1:] = block.indices
        own = self._encodings(neighbours)
        self._encoding = self._expanded(own, neighbours)
        self._of_gallery = self._encoding[gallery].tocsc()

    @property
    def queries_at_once(self) -> int:
        """The number of items whose distances and rankings take a quarter of ``memory_mb``."""
        return max(1, int(self._memory_mb * 2**18) // (32 * len(self._vectors) + 128 * len(self._gallery)))

    def distances(self, rows: Int64[np.ndarray, "R"]) -> Float32[np.ndarray, "R G"]:
        """The distances of the items at these positions to the gallery (section 3.5)."""
        original = self._squared(rows)[:, self._gallery] / self._farthest[rows, None]
        out = np.empty(original.shape, dtype=np.float32)
        weight = self._rerank.weight
        for i, row in enumerate(rows):
            # Both encodings sum to 1, so that the sum of their maxima is 2 less that of their minima (section 3.3).
            shared = np.minimum(self._sum_of_minima(int(row)), 1)
            out[i] = weight * original[i] + (1 - weight) * (1 - shared / (2 - shared))
        return out

    def _sum_of_minima(self, row: int) -> Float64[np.ndarray, "G"]:
        """The item's encoding with each gallery item's: the sum over dimensions of the smaller value. Only items that
        share a dimension are computed, by the columns of the gallery's encodings."""
        encoding, gallery = self._encoding, self._of_gallery
        own = slice(encoding.indptr[row], encoding.indptr[row + 1])
        begin = gallery.indptr[encoding.indices[own]]
        length = gallery.indptr[encoding.indices[own] + 1] - begin
        at = np.repeat(begin - np.cumsum(length) + length, length) + np.arange(length.sum())
        smaller = np.minimum(gallery.data[at], np.repeat(encoding.data[own], length))
        return np.bincount(gallery.indices[at], weights=smaller, minlength=len(self._gallery))

    def _encodings(self, neighbours: np.ndarray) -> csr_array:
        """(N, N): each item's k-reciprocal encoding, before its neighbours' are added (sections 3.2 and 3.3)."""
        from scipy.sparse import csr_array, vstack

        k1, count = self._rerank.k1, len(neighbours)
        mutual = _mutual(neighbours[:, : k1 + 1])
        half = _mutual(neighbours[:, : round(k1 / 2) + 1])  # round and NumPy's around both take 2.5 to 2
        sizes = np.diff(half.indptr)
        blocks, entries = [], 0
        for rows in self._row_slices(count, np.diff(mutual.indptr).max() * (2 + sizes.max())):
            near = mutual[rows]
            # How many of j's k1 / 2 neighbours are also i's, for each mutual pair; mutual is symmetric.
            shared = near.multiply(near @ half).tocsr()
            shared.data = (3 * shared.data > 2 * sizes[shared.indices]).astype(np.int32)
            shared.eliminate_zeros()
            encoded = (near + shared @ half).tocsr()
            encoded.sort_indices()
            row = np.repeat(np.arange(rows.start, rows.start + encoded.shape[0]), np.diff(encoded.indptr))
            weight = np.exp(-self._pairs(row, encoded.indices) / self._farthest[row])
            total = np.bincount(row - rows.start, weights=weight)
            encoded.data = (weight / total[row - rows.start]).astype(np.float32)
            blocks.append(encoded)
            entries += encoded.nnz
            self._check_encodings_memory(entries)
        return csr_array(vstack(blocks, format="csr"))

    def _expanded(self, own: csr_array, neighbours: np.ndarray) -> csr_array:
        """(N, N): the mean encoding of each item's k2 nearest (section 3.4)."""
        from scipy.sparse import csr_array

        nearest = _graph(neighbours[:, : self._rerank.k2], np.float32)
        self._check_encodings_memory(int((nearest.astype(np.int64) @ np.diff(own.indptr)).sum()))
        nearest.data /= np.repeat(np.diff(nearest.indptr), np.diff(nearest.indptr)).astype(np.float32)
        return csr_array(nearest @ own)

    def _check_encodings_memory(self, entries: int) -> None:
        what = f"the encodings of {len(self._vectors):,} items at k1 {self._rerank.k1} and k2 {self._rerank.k2}"
        _check_memory(what, self._bytes + _BYTES * entries, self._memory_mb)

    def _squared(self, rows: np.ndarray) -> Float64[np.ndarray, "R N"]:
        """Squared distances of the items at these positions to all."""
        far = self._vectors[rows] @ self._vectors.T
        far *= -2
        far += self._squares
        far += self._squares[rows, None]
        return np.maximum(far, 0, out=far)

    def _pairs(self, one: np.ndarray, other: np.ndarray) -> Float64[np.ndarray, "P"]:
        """The squared distances of P pairs of items."""
        out = np.empty(len(one))
        step = max(1, min(2**22, int(self._memory_mb * 2**16)) // self._vectors.shape[1])
        for i in range(0, len(one), step):
            difference = self._vectors[one[i : i + step]] - self._vectors[other[i : i + step]]
            out[i : i + step] = np.square(difference, out=difference).sum(axis=1)
        return out

    def _row_slices(self, count: int, entries: int) -> Iterator[slice]:
        """Slices of ``count`` rows of up to ``entries`` entries, each slice in a quarter of the memory."""
        step = max(1, int(self._memory_mb * 2**18) // (_BYTES * int(entries)))
        return (slice(i, min(i + step, count)) for i in range(0, count, step))


def _graph(neighbours: np.ndarray, dtype: type) -> csr_array:
    """(N, N): ones from each item to its neighbours; -1 is no neighbour."""
    from scipy.sparse import csr_array

    there = neighbours >= 0
    begin = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    graph = csr_array((np.ones(begin[-1], dtype), neighbours[there], begin), shape=(len(neighbours), len(neighbours)))
    graph.sort_indices()
    return graph


def _mutual(neighbours: np.ndarray) -> csr_array:
    """(N, N): ones between items that are among each other's neighbours."""
    graph = _graph(neighbours, np.int32)
    return graph.multiply(graph.T).tocsr()


def _check_memory(what: str, size: int, memory_mb: float) -> None:
    """
    Raises:
        ConfigError: ``size`` bytes are more than ``memory_mb`` allows.
    """
    if size > memory_mb * 2**20:
        raise ConfigError(
            f"re-ranking: {what} would take {size / 2**20:,.0f} MB, and memory_mb allows {memory_mb:,.0f}; fewer "
            "items, or a smaller k1 or k2, take less"
        )
