"""The rows of a store that are nearest: exact, or by its approximate index."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from divcon.evaluation.neighbours import nearest
from divcon.search.about import METRIC
from divcon.search.filters import Condition
from divcon.search.stores.base import Store, joined

_MARGIN = 1e-3
"""More than float32 can be wrong by in the product of two vectors of length one, whatever their length."""


@dataclass(frozen=True, eq=False)
class _Snapshot:
    version: str
    ids: np.ndarray
    vectors: np.ndarray


class Neighbours:
    """Searches the rows of a store.

    Embeddings of a store of fewer than ``in_memory`` rows are kept in memory, until another process writes to it; of a
    larger one they are read a block at a time.
    """

    def __init__(self, store: Store, in_memory: int) -> None:
        self._store = store
        self._in_memory = in_memory
        self._snapshot: _Snapshot | None = None
        self._loading = threading.Lock()

    def exact(
        self, queries: np.ndarray, k: int, conditions: Sequence[Condition] = (), weights: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k rows of the largest cosine that fulfil the conditions, a pair a query: (up to k,) int64 ids, and
        float32 cosines, falling; of a tie, the lower id. As `divcon.evaluation.neighbours.nearest` gives them.

        Args:
            queries: (Q, D) float32.
            weights: (D,) float32 that every vector is multiplied with before: see `subspace_weights`.
        """
        dims = slice(None) if weights is None else np.flatnonzero(weights)
        factors = None if weights is None else weights[dims]
        queries = queries if factors is None else queries[:, dims] * factors
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
        for ids, vectors in self._blocks(conditions):
            if factors is not None:
                vectors = vectors[:, dims] * factors
            for candidates, rows in zip(found, _proposed(queries, vectors, k), strict=True):
                candidates.append((ids[rows], vectors[rows]))
        return [_first(query, candidates, k) for query, candidates in zip(queries, found, strict=True)]

    def approximate(self, queries: np.ndarray, k: int, effort: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """As `exact`, of the rows that the store's index finds: cosines and order are exact, rows may be missed."""
        return [_first(query, [self._store.approximate(query, k, effort)], k) for query in queries]

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
        """All embeddings, as they are in the store now; None where they are too many."""
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


def _proposed(queries: np.ndarray, vectors: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """For each query, the places of vectors among which the k nearest surely are."""
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


def _first(query: np.ndarray, candidates: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([np.empty(0, np.int64), *(part[0] for part in candidates)])
    if not len(ids):
        return ids, np.empty(0, np.float32)
    order = np.argsort(ids, kind="stable")
    vectors = np.concatenate([part[1] for part in candidates if len(part[0])])[order]
    rows, cosines = nearest(query[None], vectors, min(k, len(ids)), metric=METRIC)
    return ids[order][rows[0]], cosines[0]


GOAL = 0.99
"""Recall@10 that an effort is chosen for."""
CHECKED = 200
"""Queries that a check draws."""
_TRIED = 100


@dataclass(frozen=True)
class Recall:
    """The approximate index against exact search."""

    recall: float
    """The share of the k nearest items that it finds, mean over queries."""
    k: int
    queries: int
    effort: int
    seconds_exact: float
    """A query."""
    seconds_approximate: float
    """A query."""


def measure(store: Store, neighbours: Neighbours, effort: int, k: int, queries: int, seed: int = 0) -> Recall:
    """Recall@k of one effort, on items drawn as queries, which do not find themselves."""
    ids, vectors = _drawn(store, queries, seed)
    start = time.perf_counter()
    exact = _others(ids, neighbours.exact(vectors, k + 1), k)
    between = time.perf_counter()
    recall = _recall(exact, _others(ids, neighbours.approximate(vectors, k + 1, effort), k))
    end = time.perf_counter()
    return Recall(recall, k, len(ids), effort, (between - start) / len(ids), (end - between) / len(ids))


def choose_effort(store: Store, neighbours: Neighbours, k: int = 10, seed: int = 1) -> tuple[int, float]:
    """The smallest effort that finds `GOAL` of the k nearest, or the largest there is, and its recall."""
    ids, vectors = _drawn(store, _TRIED, seed)
    exact = _others(ids, neighbours.exact(vectors, k + 1), k)
    effort, recall = 0, 0.0
    for effort in store.efforts():
        recall = _recall(exact, _others(ids, neighbours.approximate(vectors, k + 1, effort), k))
        if recall >= GOAL:
            break
    return effort, recall


def _drawn(store: Store, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    ids = store.ids()
    return store.embeddings(np.random.default_rng(seed).permutation(ids)[:queries])


def _others(queries: np.ndarray, found: list[tuple[np.ndarray, np.ndarray]], k: int) -> list[set[int]]:
    """The ids found, the query's own taken out."""
    return [
        set([id_ for id_ in ids.tolist() if id_ != own][:k])
        for own, (ids, _) in zip(queries.tolist(), found, strict=True)
    ]


def _recall(exact: list[set[int]], found: list[set[int]]) -> float:
    return sum(len(a & b) / max(1, len(a)) for a, b in zip(exact, found, strict=True)) / max(1, len(exact))
