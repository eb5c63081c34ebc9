"""Nearest neighbours in a store: exact, or by its approximate index; and how well the two agree."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from divcon.evaluation.nearness import as_vectors, exact_nearness
from divcon.search.about import METRIC
from divcon.search.filters import Condition
from divcon.search.stores.base import Store, joined

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

_MARGIN = 1e-3
"""An upper bound of the rounding error of a cosine in float32, at any dimension."""


TopK: TypeAlias = "tuple[Int64[np.ndarray, ' k'], Float32[np.ndarray, ' k']]"
"""The ids and cosines of the nearest rows, nearest first; fewer than k if there are fewer rows."""


def at_least(neighbours: TopK, score: float) -> TopK:
    """The neighbours whose cosine is at least this number, as float32 has it."""
    ids, cosines = neighbours
    kept = cosines >= np.float32(score)
    return ids[kept], cosines[kept]


@dataclass(frozen=True, eq=False)
class _Snapshot:
    version: str
    ids: np.ndarray
    vectors: np.ndarray


class Neighbours:
    """Searches the rows of a store.

    The embeddings of a store of fewer than ``in_memory`` rows stay in memory until the store changes; those of a larger
    one are read block by block at every search.
    """

    def __init__(self, store: Store, in_memory: int) -> None:
        self._store = store
        self._in_memory = in_memory
        self._snapshot: _Snapshot | None = None
        self._loading = threading.Lock()

    def exact(
        self,
        queries: Float32[np.ndarray, "Q D"],
        k: int,
        conditions: Sequence[Condition] = (),
        weights: Float32[np.ndarray, " D"] | None = None,
    ) -> list[TopK]:
        """For each query, the k rows of the largest cosine among those that fulfil the conditions. The ranking is that
        of `divcon.evaluation.neighbours.nearest`: of equal cosines, the lower id comes first.

        Args:
            weights: every vector is multiplied with them first, see `subspace_weights`.
        """
        dims = slice(None) if weights is None else np.flatnonzero(weights)
        factors = None if weights is None else weights[dims]
        queries = queries if factors is None else queries[:, dims] * factors
        candidates: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
        for ids, vectors in self._blocks(conditions):
            if factors is not None:
                vectors = vectors[:, dims] * factors
            for of_query, rows in zip(candidates, _candidates(queries, vectors, k), strict=True):
                of_query.append((ids[rows], vectors[rows]))
        return [_top_k(query, of_query, k) for query, of_query in zip(queries, candidates, strict=True)]

    def approximate(self, queries: Float32[np.ndarray, "Q D"], k: int, effort: int) -> list[TopK]:
        """As `exact`, among the rows that the approximate index returns: it may miss some, cosines and order are
        exact."""
        return [_top_k(query, [self._store.approximate(query, k, effort)], k) for query in queries]

    def _blocks(self, conditions: Sequence[Condition]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        snapshot = self._current()
        if snapshot is None:
            yield from self._store.scan(conditions)
        elif conditions:
            rows = np.flatnonzero(np.isin(snapshot.ids, self._store.ids(conditions)))
            yield snapshot.ids[rows], snapshot.vectors[rows]
        else:
            yield snapshot.ids, snapshot.vectors

    def _current(self) -> _Snapshot | None:
        """All embeddings of the store's current version; None if there are too many."""
        version = self._store.version()
        snapshot = self._snapshot
        if snapshot is not None and snapshot.version == version:
            return snapshot
        with self._loading:
            snapshot = self._snapshot
            if snapshot is not None and snapshot.version == version:
                return snapshot
            self._snapshot = None
            if self._store.count() >= self._in_memory:
                return None
            ids, vectors = joined(list(self._store.scan()), self._store.about().dims)
            order = np.argsort(ids, kind="stable")
            snapshot = _Snapshot(version, ids[order], vectors[order])
            self._snapshot = snapshot
            return snapshot


def _candidates(
    queries: Float32[np.ndarray, "Q D"], vectors: Float32[np.ndarray, "n D"], k: int
) -> Iterator[np.ndarray]:
    """For each query, the rows of ``vectors`` that may be among the k nearest, whatever the rounding."""
    n = len(vectors)
    reach = min(n, max(4 * k, k + 64))
    if reach == n:
        for _ in queries:
            yield np.arange(n)
        return
    lengths = np.linalg.norm(vectors, axis=1)
    lengths[lengths == 0] = 1
    for query in queries:
        cosines = vectors @ query / lengths / (np.linalg.norm(query) or 1)
        rows = np.argpartition(-cosines, reach)[:reach]
        kth = -np.partition(-cosines[rows], k - 1)[k - 1]
        if cosines[rows].min() >= kth - 2 * _MARGIN:
            rows = np.flatnonzero(cosines >= kth - 2 * _MARGIN)
        yield np.sort(rows)


def _top_k(query: Float32[np.ndarray, " D"], candidates: list[tuple[np.ndarray, np.ndarray]], k: int) -> TopK:
    ids, vectors = joined(candidates, len(query))
    if not len(ids):
        return ids, np.empty(0, np.float32)
    order = np.argsort(ids, kind="stable")
    vectors = vectors[order]
    # Few enough to compare each pair in float64, which is what `divcon.evaluation.neighbours` orders by, too.
    rows = np.arange(len(ids))
    query, vectors = as_vectors(query[None], "query"), as_vectors(vectors, "gallery")
    nearness = exact_nearness(query, vectors, np.zeros_like(rows), rows, METRIC)
    first = np.argsort(nearness, kind="stable")[:k]
    return ids[order][first], (-nearness[first]).astype(np.float32)


TARGET_RECALL = 0.99
"""The recall@10 that `choose_effort` aims at."""
CHECK_QUERIES = 200
"""The number of queries of a check."""
_TUNING_QUERIES = 100


@dataclass(frozen=True)
class Recall:
    """How well the approximate index agrees with exact search."""

    recall: float
    """The share of the k nearest items that it returns, mean over queries."""
    k: int
    queries: int
    effort: int
    seconds_exact: float
    """Per query."""
    seconds_approximate: float
    """Per query."""


def measure_recall(store: Store, neighbours: Neighbours, effort: int, k: int, queries: int, seed: int = 0) -> Recall:
    """Recall@k at one effort, with items drawn from the store as queries; an item does not count as its own
    neighbour."""
    ids, vectors = _sample(store, queries, seed)
    start = time.perf_counter()
    exact = _without_self(ids, neighbours.exact(vectors, k + 1), k)
    between = time.perf_counter()
    recall = _recall(exact, _without_self(ids, neighbours.approximate(vectors, k + 1, effort), k))
    end = time.perf_counter()
    num_queries = max(1, len(ids))
    return Recall(recall, k, len(ids), effort, (between - start) / num_queries, (end - between) / num_queries)


def choose_effort(store: Store, neighbours: Neighbours, k: int = 10, seed: int = 1) -> tuple[int, float]:
    """The smallest effort whose recall@k reaches `TARGET_RECALL`, or else the largest that the store takes; and its
    recall."""
    ids, vectors = _sample(store, _TUNING_QUERIES, seed)
    exact = _without_self(ids, neighbours.exact(vectors, k + 1), k)
    effort, recall = 0, 0.0
    for effort in store.efforts():
        recall = _recall(exact, _without_self(ids, neighbours.approximate(vectors, k + 1, effort), k))
        if recall >= TARGET_RECALL:
            break
    return effort, recall


def _sample(store: Store, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    ids = store.ids()
    return store.embeddings(np.random.default_rng(seed).permutation(ids)[:queries])


def _without_self(queries: np.ndarray, neighbours: list[TopK], k: int) -> list[set[int]]:
    """The ids of each query's k neighbours, without the query itself."""
    return [
        set([id_ for id_ in ids.tolist() if id_ != query][:k])
        for query, (ids, _) in zip(queries.tolist(), neighbours, strict=True)
    ]


def _recall(exact: list[set[int]], approximate: list[set[int]]) -> float:
    shares = [len(a & b) / max(1, len(a)) for a, b in zip(exact, approximate, strict=True)]
    return sum(shares) / max(1, len(shares))
