"""`LanceStore`: a store in a folder or in object storage, of LanceDB's files and ``divcon.json``; and, in a folder, a
copy of a small store's rows, so that reading it needs no LanceDB, whose import takes a second."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.errors import ConfigError, OutputError, RemoteError, StoreError
from divcon.runtime.files import atomic_write
from divcon.runtime.lock import LOCK_FILE
from divcon.runtime.places import is_url
from divcon.search.about import About
from divcon.search.filters import Condition
from divcon.search.stores.base import (
    BLOCK,
    FIXED_COLUMNS,
    Store,
    StoredItem,
    as_array,
    field_of,
    ids_and_embeddings,
    joined,
    schema_of,
)
from divcon.search.stores.places import ABOUT_FILE, BucketPlace, FolderPlace, Place

_TABLE = "items"
_ANN = "embedding_idx"
COPY_FILE = "rows.arrow"
"""All rows of a small store, as an Arrow file."""
_COPIED = b"divcon copied"
"""The metadata of that file: which version of the table it has."""
_LARGEST_COPY = 2**28
"""Bytes of embeddings, above which there is no copy."""
_AT_ONCE = 2048
"""Ids or keys in one filter."""
_DELETED_AT_ONCE = 65_536
_FRAGMENTS = 16
"""Files of fewer than 100,000 rows, from which on they are rewritten as one."""
_UNINDEXED = 0.05
"""The fraction of rows that the approximate index may lack: a search compares them one by one."""
_KEPT_FOR = timedelta(hours=1)
"""Files of earlier versions stay that long, for those who read them."""


class LanceStore(Store):
    """LanceDB in a folder, or in object storage. Its approximate index is IVF_FLAT; the effort is the number of
    partitions searched."""

    max_k = 10_000
    streams = True

    def __init__(self, place: Path | str) -> None:
        """
        Args:
            place: a folder, or an address such as ``s3://bucket/index``.

        Raises:
            ConfigError: LanceDB is not installed.
        """
        if importlib.util.find_spec("lancedb") is None:
            raise ConfigError('an index in a folder needs LanceDB: pip install "divcon[search]"')
        self._place: Place = BucketPlace(str(place)) if is_url(str(place)) else FolderPlace(Path(place))
        self.folder = self._place.folder
        self.uri = self._place.uri
        self._copy_file = None if self.folder is None else self.folder / COPY_FILE
        self._open_table: Any = None
        self._opening = threading.Lock()

    # ------------------------------------------------------------------------------------------------ about the index

    def exists(self) -> bool:
        return self._place.exists()

    def create(self, about: About) -> None:
        def make() -> None:
            database = self._connect()
            if f"{_TABLE}.lance" in self._place.names():
                database.drop_table(_TABLE)
            database.create_table(_TABLE, schema=schema_of(about))

        self._run(make)
        super().create(about)

    def read_about(self) -> dict[str, Any] | None:
        try:
            content = self._place.read_about()
            return None if content is None else json.loads(content)
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{self.uri}/{ABOUT_FILE}: damaged ({error}); index again into another `store`") from None

    def write_about(self, about: dict[str, Any]) -> None:
        self._place.write_about(json.dumps(about, indent=1).encode() + b"\n")

    def set_about(self, about: About) -> None:
        names = set(self._run(lambda: self._table().schema.names))
        new = [field_of(column) for column in about.columns if column.stored not in names]
        if new:
            self._run(lambda: self._table().add_columns(pa.schema(new)))
        self.write_about(about.to_dict())

    # -------------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        known = {f"{_TABLE}.lance", LOCK_FILE, COPY_FILE}
        if not self.exists() and (self._place.is_file() or not self._place.names() <= known):
            raise StoreError(f"{self.uri}: there are other files; pass a `store` that is empty or not there yet")
        with self._place.lock():
            yield
            self._write_copy()

    def version(self) -> str:
        copied = self._copied()
        version = self._run(lambda: self._table().version) if copied is None else copied["version"]
        return f"{self.about().created} {version}"

    def changing(self) -> nullcontext[None]:
        return nullcontext()

    def append(self, rows: pa.Table) -> None:
        self._place.check_lock()
        if len(rows):
            self._run(lambda: self._table().add(rows))

    def append_all(self, tables: Iterable[pa.Table]) -> None:
        tables = iter(tables)
        first = next(tables, None)
        if first is not None:
            batches = (batch for table in itertools.chain([first], tables) for batch in table.to_batches())
            reader = pa.RecordBatchReader.from_batches(first.schema, self._checked(batches))
            self._run(lambda: self._table().add(reader))

    def _checked(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from batches
        self._place.check_lock()  # an error here, before the commit, leaves the table as it was

    def write(self, rows: pa.Table) -> None:
        def merge() -> None:
            how = self._table().merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            how.execute(rows)

        self._place.check_lock()
        if len(rows):
            self._run(merge)

    def write_values(self, rows: pa.Table) -> None:
        self._run(lambda: self._table().merge_insert("id").when_matched_update_all().execute(rows))

    def drop_columns(self, names: Sequence[str]) -> None:
        there = [name for name in names if name in set(self._run(lambda: self._table().schema.names))]
        if there:
            self._run(lambda: self._table().drop_columns(there))

    def delete(self, ids: np.ndarray) -> None:
        self._place.check_lock()
        for expression in _any_of("id", ids, _DELETED_AT_ONCE):
            self._run(lambda expression=expression: self._table().delete(expression))

    # -------------------------------------------------------------------------------------------------------- reading

    def count(self) -> int:
        if (copied := self._copied()) is not None:
            return copied["rows"]
        return self._run(lambda: self._table().count_rows())

    def ids(self, conditions: Sequence[Condition] = ()) -> np.ndarray:
        # Decimals are text to LanceDB, in another order.
        if self._copied() is not None or any(condition.type == "decimal" for condition in conditions):
            return super().ids(conditions)
        return np.sort(self._select(_expression(conditions), ["id"])["id"].to_numpy())

    def lookup(self, keys: Sequence[str]) -> dict[str, StoredItem]:
        if self._copied() is not None:
            return super().lookup(keys)
        items: dict[str, StoredItem] = {}
        for expression in _any_of("key", keys):
            rows = self._select(expression, ["id", "key", "content", "details"])
            items |= {row.pop("key"): StoredItem(**row) for row in rows.to_pylist()}
        return items

    def rows(self, ids: np.ndarray) -> pa.Table:
        if self._copied() is not None:
            return super().rows(ids)
        about = self.about()
        columns = [*FIXED_COLUMNS, *(column.stored for column in about.columns)]
        parts = [self._select(expression, columns) for expression in _any_of("id", ids)]
        return pa.concat_tables(parts) if parts else schema_of(about).empty_table().select(columns)

    def embeddings(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._copied() is not None:
            return super().embeddings(ids)
        blocks = [self._select(expression, ["id", "embedding"]) for expression in _any_of("id", ids)]
        return joined([ids_and_embeddings(block) for block in blocks], self.about().dims)

    def scan(self, conditions: Sequence[Condition] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._copied() is not None or any(condition.type == "decimal" for condition in conditions):
            yield from super().scan(conditions)
            return
        yield from map(ids_and_embeddings, self._scan(_expression(conditions), ["id", "embedding"]))

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        if self._copied() is not None:
            # What is damaged, or was replaced by a store that is too large, is read from LanceDB's files.
            with suppress(OSError, pa.ArrowException):
                return iter([self._read_copy(columns)])
        return self._scan(None, list(columns))

    def _scan(self, expression: Any, columns: list[str]) -> Iterator[pa.Table]:
        batches = iter(self._run(lambda: self._query(expression, columns).to_batches(BLOCK)))
        block: list[pa.RecordBatch] = []
        while True:
            batch = self._run(lambda: next(batches, None))
            if batch is not None:
                block.append(batch)
            if block and (batch is None or sum(map(len, block)) >= BLOCK):
                yield pa.Table.from_batches(block)
                block = []
            if batch is None:
                return

    def _select(self, expression: Any, columns: list[str]) -> pa.Table:
        return self._run(lambda: self._query(expression, columns).to_arrow())

    def _query(self, expression: Any, columns: list[str]) -> Any:
        query = self._table().search().select(columns)
        return query if expression is None else query.where(expression)

    # ------------------------------------------------------------------------------------------------ copy of the rows

    def _copied(self) -> dict[str, Any] | None:
        """``version`` and ``rows`` of the copy; None where there is none of the table as it is now, or where LanceDB is
        open anyway."""
        return self._current_copy() if self._open_table is None and self._copy_file is not None else None

    def _current_copy(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            with pa.OSFile(str(self._copy_file)) as file:
                copied = json.loads(pa.ipc.open_file(file).schema.metadata[_COPIED])
            return copied if copied["of"] == self._state() else None
        return None

    def _state(self) -> str:
        """A digest that changes with every write to the table: LanceDB keeps a file for each of its versions."""
        assert self.folder is not None
        names = sorted(entry.name for entry in (self.folder / f"{_TABLE}.lance" / "_versions").iterdir())
        return hashlib.blake2b("\n".join([self.about().created, *names]).encode(), digest_size=16).hexdigest()

    def _read_copy(self, columns: Sequence[str]) -> pa.Table:
        with pa.OSFile(str(self._copy_file)) as file:
            names = pa.ipc.open_file(file).schema.names
            there = [names.index(name) for name in columns if name in names]
            return pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=there)).read_all()

    def _write_copy(self) -> None:
        """Copy the rows, where the store is small and has changed. Without a copy, everything works, but starts later:
        a disk that is full is no error here."""
        if self._copy_file is None or self._open_table is None or not self.exists():
            return
        if self._current_copy() is not None:
            return  # nothing was written
        about, rows = self.about(), self.count()
        if rows >= about.ann_from or 4 * rows * about.dims > _LARGEST_COPY:
            with suppress(OSError):
                self._copy_file.unlink(missing_ok=True)
            return
        with suppress(OSError, OutputError):
            copied = {"of": self._state(), "rows": rows, "version": self._run(lambda: self._table().version)}
            schema = schema_of(about)
            marked = schema.with_metadata({_COPIED: json.dumps(copied).encode()})
            with atomic_write(self._copy_file) as beside, pa.ipc.new_file(beside, marked) as writer:
                for block in self.read_columns(schema.names):
                    writer.write_table(block)

    # ---------------------------------------------------------------------------------------------- approximate index

    def optimize(self, ann: bool) -> bool:
        from lancedb.index import BTree, IvfFlat

        def make() -> bool:
            table = self._table()
            names = {index.name for index in table.list_indices()}
            rows = table.count_rows()
            if rows > BLOCK:
                for column in ("id", "key"):
                    if f"{column}_idx" not in names:
                        table.create_index(column, config=BTree())
            has_ann = _ANN in names
            if ann and not has_ann:
                table.create_index("embedding", config=IvfFlat(distance_type="cosine"))
                has_ann = True
            # It rewrites files, up to a million rows of them, and so not after each small change.
            small = table.stats()["fragment_stats"]["num_small_fragments"]
            if small >= _FRAGMENTS or (has_ann and table.index_stats(_ANN).num_unindexed_rows > _UNINDEXED * rows):
                table.optimize(cleanup_older_than=_KEPT_FOR)
            return has_ann

        return self._run(make)

    def efforts(self) -> list[int]:
        partitions = max(32, self.count() // 8192 * 2)  # LanceDB makes one of about 8,192 rows
        return [2**n for n in range(3, partitions.bit_length() + 1)]

    def approximate(self, vector: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        def nearest() -> pa.Table:
            query = self._table().search(vector, vector_column_name="embedding").distance_type("cosine")
            return query.nprobes(effort).select(["id", "embedding", "_distance"]).limit(k).to_arrow()

        rows = self._run(nearest)
        return rows["id"].to_numpy(), as_array(rows["embedding"])

    # ------------------------------------------------------------------------------------------------------- LanceDB

    def close(self) -> None:
        self._open_table = None

    def _connect(self) -> Any:
        import lancedb

        # Processes that decode images are forked from this one, and use nothing of LanceDB's.
        warnings.filterwarnings("ignore", "lancedb fork support is experimental", RuntimeWarning)
        place = self._place
        return lancedb.connect(
            place.address, read_consistency_interval=place.consistency, storage_options=place.options
        )

    def _table(self) -> Any:
        with self._opening:
            if self._open_table is None:
                if not self._place.is_there():  # LanceDB would create it
                    raise FileNotFoundError(self.uri)
                self._open_table = self._connect().open_table(_TABLE)
            return self._open_table

    def _run(self, act: Callable[[], Any]) -> Any:
        """The result of ``act``; LanceDB's errors become StoreErrors."""
        try:
            return act()
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            self._open_table = None
            if isinstance(error, RemoteError):
                raise StoreError(str(error)) from None
            if not self._place.is_there():
                raise StoreError(f"{self.uri}: there is no such folder any more; index again") from None
            reason = _in_short(error)
            raise StoreError(f"{self.uri}: cannot be used ({reason}); index again into another `store`") from None


def _in_short(error: BaseException) -> str:
    """One line of LanceDB's error: of object storage, what the server says."""
    text = str(error)
    if (message := re.search(r"<Message>(.*?)</Message>", text)) is not None:
        return message[1]
    if "RetryError" in text:
        return "the storage does not answer"
    return (text.splitlines() or [repr(error)])[0]


def _any_of(column: str, values: np.ndarray | Sequence[str], at_once: int = _AT_ONCE) -> Iterator[Any]:
    """Expressions of the rows that have one of these values, of so many values each."""
    from lancedb.expr import col

    values = list(values.tolist() if isinstance(values, np.ndarray) else values)
    for start in range(0, len(values), at_once):
        yield col(column).isin(values[start : start + at_once])


def _expression(conditions: Sequence[Condition]) -> Any:
    """The conditions as LanceDB's expression: values are literals of it, and never part of a text that is parsed."""
    from lancedb.expr import col, lit

    compare = {"=": "eq", "!=": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
    parts = []
    for condition in conditions:
        column = col(condition.stored)
        each = [getattr(column, compare[condition.operator])(lit(value)) for value in condition.values]
        parts.append(reduce(lambda a, b: a | b, each))
    return reduce(lambda a, b: a & b, parts) if parts else None
