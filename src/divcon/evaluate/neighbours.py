"""Exact nearest neighbours, in blocks of queries under a memory budget.

A fast search proposes candidates (faiss or torch, whichever is faster here); whatever it cannot tell apart within
its rounding is computed again pair by pair in float64. So the answer depends neither on the device nor on the
size of the blocks, and equal distances are told apart by index alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from divcon.errors import NonFiniteError
from divcon.evaluate.exclusion import Exclusion
from divcon.evaluate.space import METRICS, Space

_MOST_QUERIES = 4096
"""faiss itself works in blocks of so many."""


@dataclass(frozen=True, eq=False)
class Block:
    """The neighbours of q consecutive queries."""

    start: int
    """The position of the first query."""
    indices: np.ndarray
    """(q, k) int64, positions in the gallery, nearest first; -1 beyond the last admissible item."""
    distances: np.ndarray | None
    """(q, k) float32: euclidean distances, rising; or cosines or inner products, falling. Infinite, or minus
    infinite for the latter two, where the index is -1. None where they were not asked for."""


def as_vectors(values: object, name: str) -> np.ndarray:
    """N vectors as a (N, D) array of float32, or of float64 where they came as such or as whole numbers.

    Args:
        values: (N, D) array, tensor or nested sequence of numbers.
        name: what they are, for messages.

    Raises:
        ValueError: not two-dimensional, empty, or not numbers.
        NonFiniteError: a value is NaN or infinite; the message names the rows.
    """
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        values = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    vectors = np.asarray(values)
    if vectors.ndim != 2:
        raise ValueError(f"{name}: an array of shape (N, D) is needed, one of shape {vectors.shape} was given")
    if not vectors.size:
        raise ValueError(f"{name}: there are no vectors in an array of shape {vectors.shape}")
    if vectors.dtype.kind not in "fiub":
        raise ValueError(f"{name}: numbers are needed, not {vectors.dtype}")
    if vectors.dtype.kind != "f":
        vectors = vectors.astype(np.float64)
    elif vectors.dtype.itemsize < 4:
        vectors = vectors.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        shown = ", ".join(str(row) for row in broken[:10]) + (", ..." if len(broken) > 10 else "")
        raise NonFiniteError(f"{name}: {len(broken)} of {len(vectors)} rows hold NaN or infinite values: {shown}")
    return np.ascontiguousarray(vectors)


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
    """The k nearest admissible gallery items of each query, block after block; of a tie, the lower index.

    Args:
        query: (Q, D) array or tensor of numbers.
        gallery: (G, D), likewise.
        k: how many; rows with fewer admissible items are padded with -1.
        metric: "euclidean" (nothing is normalised), "cosine" (equal to twelve digits is a tie; a vector of
            zeros has cosine 0 with everything) or "inner".
        exclude: what a query may not retrieve; ``Exclusion.itself(N)`` where the queries are the gallery.
        memory_mb: bounds what a block needs beyond the vectors and one copy of the gallery in float32: blocks
            become smaller, down to one query.
        device: where torch searches.
        backend: "faiss" or "torch"; None: both begin on the CPU and the faster of them goes on, elsewhere torch.
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
    """``neighbour_blocks`` put together: (Q, k) int64 indices and (Q, k) float32 distances or scores."""
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
    """As `neighbour_blocks`, where the distances are given, not the vectors.

    Args:
        distances: of the queries at these positions, to all of the gallery: (q, G).
        queries: (Q,) positions of the queries that are asked.
        k: how many.
        exclude: what they may not retrieve.
        at_once: of how many queries distances are asked for at a time.
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
        reach = min(num_gallery, k + int(excluded[start : start + _MOST_QUERIES].max()) + spare)
        stop = min(num_queries, start + min(_MOST_QUERIES, space.queries_at_once(max(reach, k))))
        rows = np.arange(start, stop)
        indices = _search(space, rows, k, reach, exclude, excluded)
        yield Block(start, indices, _distances(space, rows, indices) if distances else None)
        start = stop


def _search(space: Space, rows: np.ndarray, k: int, reach: int, exclude: Exclusion, excluded: np.ndarray) -> np.ndarray:
    """(q, k): the neighbours of the queries at ``rows`` from ``reach`` candidates each; where these leave the
    k-th place open, because a tie may run on beyond them, from the whole gallery."""
    values, items, error = space.quick(rows, reach)
    blurred = np.diff(values) <= error[:, 1:] + error[:, :-1]
    allowed = ~exclude.mask(rows, items)
    if reach == len(space.gallery):
        settled = np.ones(len(rows), dtype=bool)
    else:
        # What was not fetched may be as near as the last item, and as whatever is not told apart from it.
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
        # Runs that begin beyond the reach matter to nobody, and may be most of the gallery.
        beyond = np.logical_or.accumulate(~blurred[:, reach - 1 :], axis=1)
        blurred[:, reach - 1 :] &= ~beyond
        _settle(space, some, items, np.ones_like(items, dtype=bool), blurred)
        ranked[i : i + step] = items[:, :reach]
    return ranked


def _settle(space: Space, rows: np.ndarray, items: np.ndarray, allowed: np.ndarray, blurred: np.ndarray) -> None:
    """Puts each run of items that were not told apart into its exact order, equal ones by index; in place.

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
