"""How much of exact search the approximate index finds, and how hard it must look for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from divcon.search.neighbours import Neighbours
from divcon.search.store import Store

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
    return store.vectors(np.random.default_rng(seed).permutation(ids)[:queries])


def _others(queries: np.ndarray, found: list[tuple[np.ndarray, np.ndarray]], k: int) -> list[set[int]]:
    """The ids found, the query's own taken out."""
    return [
        set([id_ for id_ in ids.tolist() if id_ != own][:k])
        for own, (ids, _) in zip(queries.tolist(), found, strict=True)
    ]


def _recall(exact: list[set[int]], found: list[set[int]]) -> float:
    return sum(len(a & b) / max(1, len(a)) for a, b in zip(exact, found, strict=True)) / max(1, len(exact))
