"""`Store`: the base class of every vector store; a store of your own implements five of its methods."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.data.readers.table import pc
from divcon.errors import StoreError
from divcon.search.about import About, Column
from divcon.search.columns import TYPES
from divcon.search.filters import Condition, matches

BLOCK = 1 << 16
"""Rows that a scan yields at a time."""
FIXED_COLUMNS = ("id", "key", "path", "box", "label", "content", "details")
"""The columns of every row beside its embedding and the user's."""
NO_INDEX = 'there is no index here; build one with divcon.Index.build, or "divcon index"'
"""What a message says where a store is empty."""


@dataclass(frozen=True)
class StoredItem:
    """The id and the digests of an item in a store."""

    id: int
    content: str
    """The digest of the image's bytes and box, or of the vector."""
    details: str
    """The digest of label and columns."""


class Store(ABC):
    """Base class of vector stores: rows of an embedding, a path, a label and the user's columns, under an integer
    ``id`` that never changes.

    A store of your own implements `read_about`, `write_about`, `read`, `write` and `delete`. Everything else works on
    top of these five: searches are exact and compare every row, and filters are evaluated in Python. Override what your
    database does better: `lookup`, `rows`, `embeddings`, `ids` and `scan` for speed, `writing` if several processes
    write, `write_values` and `drop_columns` for changes of a column's type, and `optimize`, `efforts` and `approximate`
    if it has an approximate index.

    Several threads may read at once. Only one writes at a time, inside `writing`. Raise
    `divcon.errors.StoreError` where the data cannot be read or written.
    """

    uri: str = ""
    """How messages name the store: its address without a password; the class's name unless you set it."""

    folder: Path | None = None
    """The folder that holds the store, where files about it may lie too; None: it is in no folder."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "uri" not in vars(cls):
            cls.uri = cls.__name__

    # ------------------------------------------------------------------------------------------- implement these five

    @abstractmethod
    def read_about(self) -> Mapping[str, Any] | None:
        """Return what `write_about` saved last; None if it was never called, for then there is no index here."""

    @abstractmethod
    def write_about(self, about: dict[str, Any]) -> None:
        """Save a small dictionary that JSON can hold, in place of the one before."""

    @abstractmethod
    def read(self, columns: Sequence[str]) -> Iterable[pa.Table]:
        """Yield every row, in any order, some thousand at a time.

        Args:
            columns: the names of the columns that are needed; more do no harm. A row that was written without one of
                them has no value in it.
        """

    @abstractmethod
    def write(self, rows: pa.Table) -> None:
        """Write rows, in place of those with the same ``id``: all of them or, if it fails, none.

        Args:
            rows: the columns ``id`` (integer), ``embedding`` (D float32 numbers each), ``key``, ``path``, ``box``,
                ``label``, ``content``, ``details`` (text or None), and one for each of the user's, which are text,
                integers, floats or booleans, and may be None (dates, decimals and lists are text here, see
                `divcon.search.columns`). A missing value is not an empty text.
        """

    @abstractmethod
    def delete(self, ids: np.ndarray) -> None:
        """Delete the rows with these ids; ids that are not there are skipped.

        Args:
            ids: (n,) int64.
        """

    # ------------------------------------------------------------------------------------------------ about the index

    def exists(self) -> bool:
        """Whether there is an index in the store."""
        return self.read_about() is not None

    def create(self, about: About) -> None:
        """Make an empty index; rows that an interrupted `create` left are dropped."""
        self.write_about(about.to_dict())

    def about(self) -> About:
        """The model, the columns and the search settings of the index, as they are now.

        Raises:
            StoreError: there is no index in the store.
        """
        return About.from_dict({k: v for k, v in self._saved().items() if k != "changes"}, self.uri)

    def set_about(self, about: About) -> None:
        """Save these; columns that are new have no values yet."""
        self.write_about({**about.to_dict(), "changes": self._saved().get("changes", 0)})

    def _saved(self) -> Mapping[str, Any]:
        saved = self.read_about()
        if saved is None:
            raise StoreError(f"{self.uri}: {NO_INDEX}")
        return saved

    def schema(self) -> pa.Schema:
        """The Arrow types of all columns."""
        return schema_of(self.about())

    def close(self) -> None:  # noqa: B027
        """Close connections; the next use opens new ones."""

    # -------------------------------------------------------------------------------------------------------- writing

    def writing(self) -> AbstractContextManager[None]:
        """Be the only writer inside the block. The default excludes other threads of this process.

        Raises:
            StoreError: another thread or process is writing.
        """
        return self._only_thread(vars(self).setdefault("_writing", threading.Lock()))

    @contextmanager
    def _only_thread(self, lock: threading.Lock) -> Iterator[None]:
        if not lock.acquire(blocking=False):
            raise StoreError(f"{self.uri}: another process is writing to it; wait until it has ended")
        try:
            yield
        finally:
            lock.release()

    def version(self) -> str:
        """A text that changes with every write, by this process or another: searches reload their embeddings then."""
        saved = self._saved()
        return f"{saved.get('made')} {saved.get('changes', 0)}"

    def changing(self) -> AbstractContextManager[None]:
        """Change `version`, around every call of `append`, `write` and `delete`; return ``nullcontext()`` if your
        `version` changes by itself."""
        return self._counted()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._count_change()
        try:
            yield
        finally:
            self._count_change()

    def _count_change(self) -> None:
        saved = self._saved()
        self.write_about({**saved, "changes": saved.get("changes", 0) + 1})

    def append(self, rows: pa.Table) -> None:
        """`write` for rows whose ids are all new."""
        self.write(rows)

    commit_bytes: int = 2**26
    """New and changed rows are collected in memory until they have so many bytes, and then written as one change."""

    streams: bool = False
    """Whether `append_all` writes rows as they come, and may be called in a thread of its own."""

    def append_all(self, tables: Iterable[pa.Table]) -> None:
        """`append` for tables that come one after the other, and may be more than fit into memory: all of them as one
        change, or, if writing fails or the iterator raises, none."""
        if tables := list(tables):
            self.append(pa.concat_tables(tables))

    def retype(self, types: Mapping[str, str], values: pa.Table) -> None:
        """Give columns another type, with new values for all rows: as one change that a search sees at once, and that
        leaves the old values where it is interrupted.

        Args:
            types: the new type of each column, by the user's name.
            values: ``id`` and ``details``, and for each of these columns its values under its stored name.
        """
        before = self.about()
        kept = tuple(column for column in before.columns if not column.unfinished)
        about = replace(before, columns=kept)
        renamed: dict[str, Column] = {}
        for name, type_ in types.items():
            # Also those that were interrupted keep their names: the store may have them with another type.
            taken = [*before.columns, *renamed.values()]
            renamed[name] = Column(name, about.free_name(name, taken), type_, unfinished=True)
        self.set_about(replace(about, columns=(*kept, *renamed.values())))
        old = {column.stored: renamed[column.name].stored for column in kept if column.name in renamed}
        with self.changing():
            self.write_values(values.rename_columns([old.get(name, name) for name in values.column_names]))
        done = {name: replace(column, unfinished=False) for name, column in renamed.items()}
        self.set_about(replace(about, columns=tuple(done.get(column.name, column) for column in kept)))
        self.drop_columns([*old, *(column.stored for column in before.columns if column.unfinished)])

    def write_values(self, rows: pa.Table) -> None:
        """Write some columns of rows that are there.

        Args:
            rows: ``id``, and the columns to write.
        """
        order = np.argsort(rows["id"].to_numpy())
        ids = rows["id"].to_numpy()[order]
        for block in list(self.read_columns(self.schema().names)):  # all are read before any is written
            there = np.isin(block["id"].to_numpy(), ids)
            block = block.filter(pa.array(there))
            new = rows.take(pa.array(order[np.searchsorted(ids, block["id"].to_numpy())]))
            for name in rows.column_names:
                block = block.set_column(block.column_names.index(name), block.schema.field(name), new[name])
            self.write(block)

    def drop_columns(self, names: Sequence[str]) -> None:  # noqa: B027
        """Columns that are needed no more, by their stored names; a store may keep them."""

    # -------------------------------------------------------------------------------------------------------- reading

    def count(self) -> int:
        """The number of rows."""
        return len(self.ids())

    def next_id(self) -> int:
        """An id above all that are there."""
        ids = self.ids()
        return int(ids[-1]) + 1 if len(ids) else 0

    def ids(self, conditions: Sequence[Condition] = ()) -> np.ndarray:
        """(n,) int64 ids of the rows that fulfil the conditions, ascending."""
        blocks = self._matching(["id"], conditions)
        return np.sort(np.concatenate([np.empty(0, np.int64), *(block["id"].to_numpy() for block in blocks)]))

    def lookup(self, keys: Sequence[str]) -> dict[str, StoredItem]:
        """The items of these keys that are there."""
        items: dict[str, StoredItem] = {}
        for block in self._having("key", pa.array(keys, pa.string()), ["id", "key", "content", "details"]):
            items |= {row.pop("key"): StoredItem(**row) for row in block.to_pylist()}
        return items

    def rows(self, ids: np.ndarray) -> pa.Table:
        """The rows of these ids that are there, in any order, without their embeddings."""
        columns = [name for name in self.schema().names if name != "embedding"]
        schema = pa.schema([self.schema().field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *self._having("id", pa.array(ids, pa.int64()), columns)])

    def embeddings(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 ids of those that are there, in any order, and their (n, D) float32 embeddings."""
        blocks = self._having("id", pa.array(ids, pa.int64()), ["id", "embedding"])
        return joined([ids_and_embeddings(block) for block in blocks], self.about().dims)

    def scan(self, conditions: Sequence[Condition] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows that fulfil the conditions, some thousand at a time: (n,) int64 ids and (n, D) float32."""
        yield from map(ids_and_embeddings, self._matching(["id", "embedding"], conditions))

    def _having(self, column: str, values: pa.Array, columns: list[str]) -> Iterator[pa.Table]:
        """Blocks of the rows whose value in a column is one of these."""
        if len(values):
            for block in self.read_columns(columns):
                yield block.filter(pc.is_in(block[column], values))

    def _matching(self, columns: list[str], conditions: Sequence[Condition]) -> Iterator[pa.Table]:
        for block in self.read_columns(list(dict.fromkeys([*columns, *(c.stored for c in conditions)]))):
            yield block.filter(matches(block, conditions)) if conditions else block

    def read_columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """What `read` yields, with exactly these columns, of the types that they have."""
        full = self.schema()
        schema = pa.schema([full.field(name) for name in columns])
        for block in self.read(columns):
            if len(block):
                there = set(block.column_names)
                arrays = [
                    block[f.name].cast(f.type) if f.name in there else pa.nulls(len(block), f.type) for f in schema
                ]
                yield pa.table(arrays, schema=schema)

    # ---------------------------------------------------------------------------------------------- approximate index

    max_k: int = 0
    """The largest k of a search of the approximate index."""

    def optimize(self, ann: bool) -> bool:
        """Tidy up after writing, and with ``ann`` build the approximate index, or bring it up to date.

        Returns:
            Whether there is an approximate index now.
        """
        return False

    def efforts(self) -> list[int]:
        """The efforts that a search of the approximate index can take, ascending."""
        return []

    def approximate(self, vector: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to k rows near a (D,) vector, from the approximate index: (n,) int64 ids and (n, D) float32."""
        raise NotImplementedError


def schema_of(about: About) -> pa.Schema:
    """The Arrow types of the columns of an index."""
    fixed = [pa.field(name, pa.int64() if name == "id" else pa.string()) for name in FIXED_COLUMNS]
    embedding = pa.field("embedding", pa.list_(pa.float32(), about.dims))
    return pa.schema([*fixed, embedding, *map(field_of, about.columns)])


def field_of(column: Column) -> pa.Field:
    """The Arrow type of one of the user's columns."""
    return pa.field(column.stored, TYPES[column.type])


def ids_and_embeddings(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The columns ``id`` and ``embedding`` as (n,) int64 and (n, D) float32."""
    return rows["id"].to_numpy(), as_array(rows["embedding"])


def joined(blocks: Sequence[tuple[np.ndarray, np.ndarray]], dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of ids and embeddings as one; there may be none."""
    ids = np.concatenate([np.empty(0, np.int64), *(block[0] for block in blocks)])
    return ids, np.concatenate([np.empty((0, dims), np.float32), *(block[1] for block in blocks)])


def as_array(embeddings: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of embeddings as (n, D) float32."""
    if isinstance(embeddings, pa.ChunkedArray):
        embeddings = embeddings.combine_chunks()
    return embeddings.flatten().to_numpy(zero_copy_only=False).reshape(-1, embeddings.type.list_size)
