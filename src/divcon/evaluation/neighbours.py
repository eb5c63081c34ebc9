"""Exact nearest neighbours, in blocks of queries under a memory budget.

A fast search (faiss or torch, whichever is faster here) proposes candidates. Those that it cannot order within its
rounding are computed again in float64, pair by pair. So the result depends neither on the device nor on the size of the
blocks, and equal distances are ordered by index.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import torch
from torch import Tensor

from divcon.evaluation.nearness import COSINE_DIGITS, METRICS, as_vectors, exact_nearness, lengths_of
from divcon.evaluation.task import Exclusion

_CHUNK = 32
"""Products in a chunk, of which only the smallest is compared at first."""


def smallest_products(
    vectors: Tensor, parts: Iterable[tuple[int, Tensor]], k: int, buffer: Tensor
) -> tuple[Tensor, Tensor]:
    """The k smallest inner products of each vector with the vectors of a gallery, which comes in slices.

    Args:
        vectors: (q, D).
        parts: slices of the gallery, each the position of its first vector, from 0 on, and its (p, D) vectors; at
            least k vectors in all.
        k: how many.
        buffer: (m,) memory for products, of the vectors' dtype and on their device: m are computed at a time, or
            those of one vector with one slice where that is more.

    Returns:
        (q, k) products, ascending, and (q, k) int64 positions in the gallery; of equal products, any.
    """
    values = vectors.new_empty(len(vectors), 0)
    positions = torch.empty_like(values, dtype=torch.int64)
    for start, part in parts:
        width = -(-len(part) // _CHUNK) * _CHUNK
        if len(buffer) < width:
            buffer = buffer.new_empty(width)
        # Not allocated anew each time: new pages from the system cost as much as the products themselves.
        products = buffer[: min(len(buffer) // width, len(vectors)) * width].view(-1, width)
        products[:, len(part) :] = torch.inf
        smallest = []
        for queries in vectors.split(len(products)):
            torch.mm(queries, part.T, out=products[: len(queries), : len(part)])
            smallest.append(_smallest(products[: len(queries)], min(k, len(part))))
        values = torch.cat([values, torch.cat([value for value, _ in smallest])], dim=1)
        positions = torch.cat([positions, torch.cat([position for _, position in smallest]) + start], dim=1)
        if start:
            values, order = values.topk(min(k, values.shape[1]), dim=1, largest=False)
            positions = positions.gather(1, order)
    return values, positions


def _smallest(products: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row of (q, w) products, whole chunks of them, and their columns."""
    if products.shape[1] < 2 * k * _CHUNK:
        return products.topk(k, dim=1, largest=False)
    # Each of the k chunks with the smallest minima has a product that is no larger than any in the other chunks.
    minima = products.view(len(products), -1, _CHUNK).amin(dim=2)
    chunks = minima.topk(k, dim=1, largest=False, sorted=False).indices
    rows = torch.arange(len(products), device=products.device)[:, None] * minima.shape[1]
    few = products.view(-1, _CHUNK).index_select(0, (rows + chunks).view(-1)).view(len(products), -1)
    values, places = few.topk(k, dim=1, largest=False)
    return values, chunks.gather(1, places // _CHUNK) * _CHUNK + places % _CHUNK


_MAX_QUICK = 2048
"""Neighbours a query, beyond which selecting from the whole row is faster."""
_TRIAL = 512
"""Queries on which a search is timed."""
_MAX_ITEMS = 2**16
"""Gallery items that are compared at a time."""
_BUFFER_BYTES = 2**27
"""Bytes of their products with queries that are computed at a time."""


class Space:
    """Q queries and G gallery items under a metric.

    Nearness is a number that is smaller for what is nearer: squared euclidean distance, or minus the cosine
    or inner product. ``exact`` gives it in float64, summed in one fixed order, so that equal pairs give equal
    numbers. ``quick`` gives it by matrix products, with errors below ``error``, of vectors that are centred and scaled
    to lose least in float32.
    """

    def __init__(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        metric: str,
        *,
        device: torch.device,
        backend: str | None,
        budget: int,
    ) -> None:
        self.query, self.gallery, self.metric = query, gallery, metric
        self.device, self.budget = device, budget
        both = backend is None and device.type == "cpu"
        # Seconds a query, by search.
        self._seconds = dict.fromkeys(("torch", "faiss") if both else (backend or "torch",), 0.0)
        # Centring leaves distances as they are, and less is lost to rounding.
        self._centre = gallery.mean(axis=0, dtype=np.float64) if metric == "euclidean" else None
        self._extent = float(max(lengths_of(query).max(), lengths_of(gallery).max()))
        if not np.isfinite(self._extent):
            raise ValueError("the vectors are so large that their squares overflow float64")
        self._scale = float(2.0 ** -np.frexp(self._extent)[1])
        self._gallery32 = np.empty(gallery.shape, dtype=np.float32)
        self._gallery_norm = 0.0
        for items in self._slices():
            vectors = self._prepared(gallery[items])
            self._gallery32[items] = vectors
            self._gallery_norm = max(self._gallery_norm, float(lengths_of(vectors).max()))
        self._gallery: torch.Tensor | None = None
        self._buffer: torch.Tensor | None = None

    def _slices(self) -> Iterator[slice]:
        """Slices of the gallery whose float64 copies are small beside the budget."""
        step = max(1, min(self.budget // (64 * self.gallery.shape[1]), _MAX_ITEMS))
        return (slice(i, i + step) for i in range(0, len(self.gallery), step))

    def _prepared(self, vectors: np.ndarray) -> np.ndarray:
        """(n, D) float64, centred and scaled for products."""
        if self.metric == "cosine":
            norms = lengths_of(vectors)
            return vectors / np.where(norms > 0, norms, 1)[:, None]
        moved = vectors.astype(np.float64)
        if self._centre is not None:
            moved -= self._centre
        moved *= self._scale
        return moved

    def queries_at_once(self, reach: int) -> int:
        """How many queries the budget allows when each has ``reach`` candidates."""
        row = 128 * reach + 16 * self.query.shape[1]
        if reach > _MAX_QUICK:
            row += 24 * len(self.gallery)
        return max(1, self.budget // row)

    def rankings_at_once(self) -> int:
        """How many queries the budget allows when the whole gallery may tie for each."""
        return max(1, self.budget // (160 * len(self.gallery)))

    def exact(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(n,) float64: the nearness of n pairs, from the vectors as they were passed."""
        return exact_nearness(self.query, self.gallery, rows, items, self.metric, self.budget)

    def error(self, norms: np.ndarray, quick: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """Bounds on how far ``quick`` (q, m), computed in ``dtype``, may be from the exact nearness."""
        # Sums of D products err by some sqrt(D) roundings; the rest is margin (a test measures it).
        unit = torch.finfo(dtype).eps * (4 + np.sqrt(self.query.shape[1]))
        norms = norms[:, None]
        if self.metric != "euclidean":
            rounding = 4 * 10.0**-COSINE_DIGITS if self.metric == "cosine" else 0.0
            return unit * norms * self._gallery_norm + rounding + np.zeros_like(quick)
        # An item's norm is at most the query's plus the distance: a few far items do not widen the bounds of near ones.
        squared = np.minimum(self._gallery_norm**2, 2 * norms**2 + 2 * np.abs(quick))
        moving = 2.0**-50 * self._extent * self._scale * (norms + np.sqrt(squared))
        return unit * (norms**2 + squared) + moving

    def dtype(self, reach: int) -> torch.dtype:
        """Long rankings hold many near ties, which float64 tells apart at once."""
        return torch.float32 if reach <= _MAX_QUICK else torch.float64

    def quick(self, rows: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ``reach`` nearest of each query at ``rows``, by products.

        Returns:
            (q, reach) float64 nearness, ascending; (q, reach) int64 indices; (q, reach) float64 error bounds.
        """
        vectors, dtype = self._prepared(self.query[rows]), self.dtype(reach)
        if dtype == torch.float64:
            return self._top(vectors, self._products(vectors), reach)
        values, indices = (np.concatenate(arrays) for arrays in zip(*self._by_fastest(vectors, reach), strict=True))
        return values, indices, self.error(lengths_of(vectors), values, dtype)

    def _by_fastest(self, vectors: np.ndarray, reach: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Nearness and indices, a slice of queries at a time. Which search is faster depends on the
        processor, by up to three times: each is timed on some queries, and the faster one searches for the rest."""
        # With fewer queries faiss does not use matrix products, and takes several times longer for each.
        enough = max(_TRIAL, -(-faiss.cvar.distance_compute_blas_threshold // vectors.shape[1]))
        while len(vectors):
            tried = {backend: seconds for backend, seconds in self._seconds.items() if seconds}
            trial = len(tried) < len(self._seconds) and (not tried or len(vectors) >= enough)
            backend = next(b for b in self._seconds if b not in tried) if trial else min(tried, key=tried.__getitem__)
            some = vectors[: enough if trial and len(self._seconds) > 1 else None]
            started = time.perf_counter()
            search = self._by_faiss if backend == "faiss" else self._by_torch
            values, indices = search(some.astype(np.float32), reach)
            self._seconds[backend] = (time.perf_counter() - started) / len(some)
            values = values.astype(np.float64)
            if self.metric == "euclidean" and backend == "torch":
                values += lengths_of(some)[:, None] ** 2
            yield values, indices
            vectors = vectors[len(some) :]

    def _by_faiss(self, vectors: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
        if self.metric == "euclidean":
            return faiss.knn(vectors, self._gallery32, reach, metric=faiss.METRIC_L2)
        products, indices = faiss.knn(vectors, self._gallery32, reach, metric=faiss.METRIC_INNER_PRODUCT)
        return -products, indices

    def _by_torch(self, vectors: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
        if self._buffer is None or self._gallery is None:
            self._buffer = torch.empty(min(self.budget // 4, _BUFFER_BYTES) // 4, device=self.device)
            self._gallery = torch.from_numpy(self._gallery32).to(self.device)
        all_items = self._gallery
        query = torch.from_numpy(vectors).to(self.device)
        euclidean = self.metric == "euclidean"
        query = torch.cat([-2 * query, torch.ones_like(query[:, :1])], dim=1) if euclidean else -query

        def augmented(items: slice) -> torch.Tensor:
            gallery = all_items[items]
            return torch.cat([gallery, gallery.square().sum(1, keepdim=True)], dim=1) if euclidean else gallery

        slices = ((items.start, augmented(items)) for items in self._slices())
        with _full_precision(self.device):
            values, indices = smallest_products(query, slices, reach, self._buffer)
        return values.cpu().numpy(), indices.cpu().numpy()

    def thorough(self, rows: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Like ``quick`` in float64, with as many more, for all rows, as may tie with the last of any."""
        vectors = self._prepared(self.query[rows])
        products = self._products(vectors)
        values, _, error = self._top(vectors, products, reach)
        last = values[:, -1] + 3 * error[:, -1]
        if self.metric == "euclidean":
            last -= lengths_of(vectors) ** 2
        within = products <= torch.from_numpy(last).to(products.device)[:, None]
        return self._top(vectors, products, max(reach, int(within.sum(dim=1).max())))

    def _top(
        self, vectors: np.ndarray, products: torch.Tensor, reach: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        top = torch.topk(products, reach, dim=1, largest=False)
        values, norms = top.values.cpu().numpy().astype(np.float64), lengths_of(vectors)
        if self.metric == "euclidean":
            values += norms[:, None] ** 2
        return values, top.indices.cpu().numpy(), self.error(norms, values, products.dtype)

    def _products(self, vectors: np.ndarray) -> torch.Tensor:
        """(q, G) float64 nearness, less the query's own squared norm, which changes no order."""
        device = torch.device("cpu") if self.device.type == "mps" else self.device  # which has no float64
        query = torch.from_numpy(vectors).to(device)
        out = torch.empty(len(vectors), len(self.gallery), dtype=torch.float64, device=device)
        with _full_precision(device):
            for items in self._slices():
                gallery = torch.from_numpy(self._prepared(self.gallery[items])).to(device)
                if self.metric == "euclidean":
                    out[:, items] = torch.addmm(gallery.square().sum(dim=1), query, gallery.T, alpha=-2)
                else:
                    out[:, items] = (query @ gallery.T).neg_()
        return out


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products in full float32, also inside training in lower precision."""
    mkldnn = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    backends = (torch.backends.cuda.matmul, mkldnn)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


_MAX_QUERIES = 4096
"""Queries of a block, at most; faiss works in blocks of this size."""


@dataclass(frozen=True, eq=False)
class Block:
    """The neighbours of q consecutive queries."""

    start: int
    """The position of the first query."""
    indices: np.ndarray
    """(q, k) int64, positions in the gallery, nearest first; -1 beyond the last admissible item."""
    distances: np.ndarray | None
    """(q, k) float32: euclidean distances, ascending; or cosines or inner products, descending. Infinite, or minus
    infinite for the latter two, where the index is -1. None where not computed."""


def neighbour_blocks(
    query: object,
    gallery: object,
    k: int,
    *,
    metric: str = "euclidean",
    exclude: Exclusion | None = None,
    memory_mb: float = 1024,
    device: str | torch.device = "cpu",
    backend: str | None = None,
    distances: bool = True,
) -> Iterator[Block]:
    """The k nearest admissible gallery items of each query, block by block; ties are ordered by index.

    Args:
        query: (Q, D) array or tensor of numbers.
        gallery: (G, D), likewise.
        k: how many; rows with fewer admissible items are padded with -1.
        metric: "euclidean" (nothing is normalised), "cosine" (equal to twelve digits is a tie; a vector of
            zeros has cosine 0 with everything) or "inner".
        exclude: what a query may not retrieve; ``Exclusion.itself(N)`` where the queries are the gallery.
        memory_mb: limit on the memory of a block beyond the vectors and one copy of the gallery in float32: blocks
            become smaller, down to one query.
        device: where torch searches.
        backend: "faiss" or "torch"; None: on the CPU the faster of the two, elsewhere torch.
        distances: False leaves them out, which is faster for large k.

    Yields:
        Blocks of consecutive queries, in order.

    Raises:
        ValueError: wrong shapes, an empty input, k below 1, an unknown metric or backend.
        NonFiniteError: a vector holds NaN or infinite values.
    """
    query_vectors, gallery_vectors = as_vectors(query, "query"), as_vectors(gallery, "gallery")
    if query_vectors.shape[1] != gallery_vectors.shape[1]:
        raise ValueError(f"queries have {query_vectors.shape[1]} dimensions, gallery items {gallery_vectors.shape[1]}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    if backend not in (None, "faiss", "torch"):
        raise ValueError(f"backend must be faiss or torch, not {backend!r}")
    exclude = exclude or Exclusion(())
    exclude.check(len(query_vectors), len(gallery_vectors))
    space = Space(
        query_vectors,
        gallery_vectors,
        metric,
        device=torch.device(device),
        backend=backend,
        budget=int(memory_mb * 2**20),
    )
    return _blocks(space, k, exclude, distances)


def nearest(
    query: object,
    gallery: object,
    k: int,
    *,
    metric: str = "euclidean",
    exclude: Exclusion | None = None,
    memory_mb: float = 1024,
    device: str | torch.device = "cpu",
    backend: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All of ``neighbour_blocks`` concatenated: (Q, k) int64 indices and (Q, k) float32 distances or scores."""
    blocks = list(
        neighbour_blocks(
            query,
            gallery,
            k,
            metric=metric,
            exclude=exclude,
            memory_mb=memory_mb,
            device=device,
            backend=backend,
        )
    )
    distances = [block.distances for block in blocks if block.distances is not None]
    return np.concatenate([block.indices for block in blocks]), np.concatenate(distances)


def ranked_blocks(
    distances: Callable[[np.ndarray], np.ndarray],
    queries: np.ndarray,
    k: int,
    *,
    exclude: Exclusion,
    at_once: int,
) -> Iterator[Block]:
    """As `neighbour_blocks`, from distances in place of vectors.

    Args:
        distances: of the queries at these positions, to all of the gallery: (q, G).
        queries: (Q,) positions of the queries.
        k: how many.
        exclude: what they may not retrieve.
        at_once: queries whose distances are computed at a time.
    """
    for start in range(0, len(queries), at_once):
        rows = np.arange(start, min(start + at_once, len(queries)))
        ranked = np.argsort(distances(queries[rows]), axis=1, kind="stable")
        yield Block(start, _first(ranked, ~exclude.mask(rows, ranked), k), None)


def _blocks(space: Space, k: int, exclude: Exclusion, distances: bool) -> Iterator[Block]:
    num_queries, num_gallery = len(space.query), len(space.gallery)
    excluded = exclude.most(num_queries)
    spare = max(16, k // 16)  # room for ties at the k-th place
    start = 0
    while start < num_queries:
        reach = min(num_gallery, k + int(excluded[start : start + _MAX_QUERIES].max()) + spare)
        stop = min(num_queries, start + min(_MAX_QUERIES, space.queries_at_once(max(reach, k))))
        rows = np.arange(start, stop)
        indices = _search(space, rows, k, reach, exclude, excluded)
        yield Block(start, indices, _distances(space, rows, indices) if distances else None)
        start = stop


def _search(space: Space, rows: np.ndarray, k: int, reach: int, exclude: Exclusion, excluded: np.ndarray) -> np.ndarray:
    """(q, k): the neighbours of the queries at ``rows`` from ``reach`` candidates each; where these leave the
    k-th place open, because a tie may go on beyond them, from the whole gallery."""
    values, items, error = space.quick(rows, reach)
    blurred = np.diff(values) <= error[:, 1:] + error[:, :-1]
    allowed = ~exclude.mask(rows, items)
    if reach == len(space.gallery):
        settled = np.ones(len(rows), dtype=bool)
    else:
        # An item that was not fetched may be as near as the last one, and as those that cannot be ordered before it.
        allowed[:, :-1] &= np.logical_or.accumulate(~blurred[:, ::-1], axis=1)[:, ::-1]
        allowed[:, -1] = False
        settled = allowed.sum(axis=1) >= k
    _settle(space, rows, items, allowed, blurred & settled[:, None])
    indices = _first(items, allowed, k)

    open_rows = rows[~settled]
    if len(open_rows):
        # Equal vectors have equal rankings: a model that sends many images to one point costs one ranking.
        _, firsts, same = np.unique(space.query[open_rows], axis=0, return_index=True, return_inverse=True)
        reach = min(len(space.gallery), k + int(excluded[open_rows].max()))
        ranked = _ranking(space, open_rows[firsts], reach)[same.reshape(-1)]
        indices[~settled] = _first(ranked, ~exclude.mask(open_rows, ranked), k)
    return indices


def _ranking(space: Space, rows: np.ndarray, reach: int) -> np.ndarray:
    """(q, reach) int64: the nearest of the whole gallery, all ties settled, nothing excluded."""
    ranked = np.empty((len(rows), reach), dtype=np.int64)
    step = space.rankings_at_once()
    for i in range(0, len(rows), step):
        some = rows[i : i + step]
        values, items, error = space.thorough(some, reach)
        blurred = np.diff(values) <= error[:, 1:] + error[:, :-1]
        # Runs that begin beyond the reach change no result, and may be most of the gallery.
        beyond = np.logical_or.accumulate(~blurred[:, reach - 1 :], axis=1)
        blurred[:, reach - 1 :] &= ~beyond
        _settle(space, some, items, np.ones_like(items, dtype=bool), blurred)
        ranked[i : i + step] = items[:, :reach]
    return ranked


def _settle(space: Space, rows: np.ndarray, items: np.ndarray, allowed: np.ndarray, blurred: np.ndarray) -> None:
    """Sort each run of items that the fast search could not order, by exact distance, then by index; in place.

    ``blurred`` (q, m - 1): whether an item and the next of its row are in one run. ``allowed`` moves along.
    """
    follows = np.zeros(items.shape, dtype=bool)
    follows[:, 1:] = blurred
    member = follows.copy()
    member[:, :-1] |= blurred
    row, column = np.nonzero(member)
    item, keep = items[row, column], allowed[row, column]
    order = np.lexsort((item, space.exact(rows[row], item), np.cumsum(~follows[row, column])))
    items[row, column], allowed[row, column] = item[order], keep[order]


def _first(items: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
    """(q, k): the first k allowed entries of each row, then -1."""
    first = np.full((len(items), k), -1, dtype=np.int64)
    place = np.cumsum(allowed, axis=1, dtype=np.int64) - 1
    row, column = np.nonzero(allowed & (place < k))
    first[row, place[row, column]] = items[row, column]
    return first


def _distances(space: Space, rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
    row, column = np.nonzero(indices >= 0)
    exact = space.exact(rows[row], indices[row, column])
    out = np.full(indices.shape, np.inf if space.metric == "euclidean" else -np.inf, dtype=np.float32)
    out[row, column] = np.sqrt(exact) if space.metric == "euclidean" else -exact
    return out
