"""What a search gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from divcon.search.about import About
from divcon.search.store import Store


@dataclass(frozen=True)
class Hit:
    """An item that a search found."""

    id: int
    """Its number in the store, which stays."""
    score: float
    """The cosine of the two embeddings, 1 where they are equal."""
    label: str | None
    path: str
    """Where it can be opened; for encoded images and vectors, what their table calls it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """The user's columns by name."""
    box: tuple[int, int, int, int] | None = None
    """The part of the image that is meant: left, top, right, bottom in pixels; None: all of it."""


def hits_of(store: Store, about: About, found: list[tuple[np.ndarray, np.ndarray]]) -> list[list[Hit]]:
    """The hits of ids and scores, a pair a query; what was deleted in the meantime is left out."""
    ids = np.unique(np.concatenate([pair[0] for pair in found]))
    rows = {row["id"]: row for row in store.rows(ids).to_pylist()} if len(ids) else {}
    return [
        [_hit(rows[i], score, about) for i, score in zip(ids.tolist(), scores.tolist(), strict=True) if i in rows]
        for ids, scores in found
    ]


def _hit(row: dict[str, Any], score: float, about: About) -> Hit:
    box = None
    if row["box"]:
        left, top, right, bottom = map(int, row["box"].split(","))
        box = (left, top, right, bottom)
    columns = {column.name: row.get(column.stored) for column in about.columns}
    return Hit(row["id"], score, row["label"], row["path"], columns, box)
