"""A store of embeddings: what Lance's and PostgreSQL's both do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from divcon.search.about import KINDS, About, Column
from divcon.search.filters import Condition

BLOCK = 1 << 16
"""Rows that a scan gives at a time."""
FIXED_COLUMNS = ("id", "key", "path", "box", "label", "content", "details")
"""The columns of every row beside its embedding and the user's."""


@dataclass(frozen=True)
class Known:
    """What a store has of an item."""

    id: int
    content: str
    """The digest of the image's bytes and box, or of the vector."""
    details: str
    """The digest of label and columns."""


class Store(ABC):
    """Rows of an embedding, a path, a label and the user's columns, by a whole number ``id`` that stays.

    Reads may come from several threads at once. Writes need `writing`, which one process at a time can have.
    Every method raises StoreError where the store is gone, cannot be reached, or is damaged.
    """

    uri: str
    """Its address, without a password."""
    most_found: int
    """The largest k of a search of its approximate index."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a store."""

    @abstractmethod
    def create(self, about: About) -> None:
        """Make an empty store; what an interrupted `create` left is dropped."""

    @abstractmethod
    def about(self) -> About:
        """What it says of itself, now."""

    @abstractmethod
    def set_about(self, about: About) -> None:
        """Say so from now on; columns that are new are added, empty."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """The only writer, until the block ends or the process does.

        Raises:
            StoreError: another one is writing.
        """

    @abstractmethod
    def version(self) -> str:
        """What changes with every write."""

    @abstractmethod
    def count(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def next_id(self) -> int:
        """The first id that is free, and all above it are."""

    @abstractmethod
    def known(self, keys: Sequence[str]) -> dict[str, Known]:
        """What there is of these keys."""

    @abstractmethod
    def write(self, rows: pa.Table, new: bool) -> None:
        """Add rows (``new``), or put them in place of those with their ids, all or none.

        Args:
            rows: of `schema`.
        """

    @abstractmethod
    def delete(self, ids: np.ndarray) -> None:
        """Take the rows with these ids out."""

    @abstractmethod
    def ids(self) -> np.ndarray:
        """(N,) int64, rising."""

    @abstractmethod
    def rows(self, ids: np.ndarray) -> pa.Table:
        """Those rows that are there, in any order, without their embeddings."""

    @abstractmethod
    def vectors(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 ids of those that are there, in any order, and their (n, D) float32 embeddings."""

    @abstractmethod
    def scan(self, conditions: Sequence[Condition] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows that fulfil the conditions, some thousand at a time: (n,) int64 ids and (n, D) float32."""

    @abstractmethod
    def select(self, conditions: Sequence[Condition]) -> np.ndarray:
        """(n,) int64 ids of the rows that fulfil the conditions, rising."""

    @abstractmethod
    def finish(self, ann: bool) -> bool:
        """After writing: tidy up, and bring the approximate index up to date, or make it, where ``ann``.

        Returns:
            Whether there is such an index now.
        """

    @abstractmethod
    def efforts(self) -> list[int]:
        """The efforts that a search of the approximate index can take, rising."""

    @abstractmethod
    def approximate(self, vector: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to k rows near a (D,) vector, by the approximate index: (n,) int64 ids and (n, D) float32."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections; the next use makes new ones."""


def schema(about: About) -> pa.Schema:
    """The columns of a store's rows, as Arrow has them."""
    fixed = [pa.field(name, pa.int64() if name == "id" else pa.string()) for name in FIXED_COLUMNS]
    embedding = pa.field("embedding", pa.list_(pa.float32(), about.dims))
    return pa.schema([*fixed, embedding, *map(field_of, about.columns)])


def field_of(column: Column) -> pa.Field:
    """A user's column in the store."""
    return pa.field(column.stored, KINDS[column.kind])


def as_array(column: pa.ChunkedArray | pa.Array, dims: int) -> np.ndarray:
    """A column of embeddings as (n, D) float32."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dims)
