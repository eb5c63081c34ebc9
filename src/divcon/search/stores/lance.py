"""A store in a folder: LanceDB's files, and ``divcon.json``."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.errors import ConfigError, OutputError, StoreError
from divcon.runtime.files import atomic_write
from divcon.runtime.lock import LOCK_FILE, FolderLock
from divcon.search.about import About
from divcon.search.filters import Condition
from divcon.search.stores.base import BLOCK, FIXED_COLUMNS, Known, Store, as_array, field_of, schema

_TABLE = "items"
_AT_A_TIME = 2048
"""Ids or keys that one filter names."""


class LanceStore(Store):
    """LanceDB in a folder. Its approximate index is IVF_FLAT; the effort is the number of partitions looked at."""

    most_found = 10_000

    def __init__(self, folder: Path) -> None:
        try:
            import lancedb
        except ImportError:
            raise ConfigError('a store in a folder is LanceDB\'s: pip install "divcon[search]"') from None
        # Processes that decode images are forked from this one, and use nothing of LanceDB's.
        warnings.filterwarnings("ignore", "lancedb fork support is experimental", RuntimeWarning)
        self._lancedb: Any = lancedb
        self.folder = folder
        self.uri = str(folder)
        self._about_file = folder / "divcon.json"
        self._opened: Any = None
        self._opening = threading.Lock()

    def exists(self) -> bool:
        return self._about_file.is_file()

    def create(self, about: About) -> None:
        def make() -> None:
            database = self._connect()
            if (self.folder / f"{_TABLE}.lance").exists():
                database.drop_table(_TABLE)
            database.create_table(_TABLE, schema=schema(about))

        self._told(make)
        self._write_about(about)

    def _is_ours(self) -> bool:
        return {entry.name for entry in self.folder.iterdir()} <= {f"{_TABLE}.lance", LOCK_FILE}

    def about(self) -> About:
        try:
            return About.from_dict(json.loads(self._about_file.read_text()), self.uri)
        except FileNotFoundError:
            raise StoreError(f"{self.uri}: there is no store; make one with divcon index RUN IMAGES --store") from None
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{self._about_file}: damaged ({error}); index again into another --store") from None

    def set_about(self, about: About) -> None:
        there = set(self._told(lambda: self._table().schema.names))
        new = [field_of(column) for column in about.columns if column.stored not in there]
        if new:
            self._told(lambda: self._table().add_columns(pa.schema(new)))
        self._write_about(about)

    def _write_about(self, about: About) -> None:
        with atomic_write(self._about_file) as beside:
            beside.write_text(json.dumps(about.to_dict(), indent=1) + "\n")

    @contextmanager
    def writing(self) -> Iterator[None]:
        if not self.exists() and (self.folder.is_file() or (self.folder.is_dir() and not self._is_ours())):
            raise StoreError(f"{self.uri}: there are other files; give a --store that is empty or not there yet")
        lock = FolderLock(self.folder, "writing to it", StoreError)
        try:
            lock.acquire()
        except OutputError as error:
            raise StoreError(str(error)) from None
        try:
            yield
        finally:
            lock.release()

    def version(self) -> str:
        return f"{self.about().made} {self._told(lambda: self._table().version)}"

    def count(self) -> int:
        return self._told(lambda: self._table().count_rows())

    def next_id(self) -> int:
        ids = self.ids()
        return int(ids[-1]) + 1 if len(ids) else 0

    def known(self, keys: Sequence[str]) -> dict[str, Known]:
        from lancedb.expr import col

        found: dict[str, Known] = {}
        for start in range(0, len(keys), _AT_A_TIME):
            some = list(keys[start : start + _AT_A_TIME])
            rows = self._rows(col("key").isin(some), ["id", "key", "content", "details"])
            for row in rows.to_pylist():
                found[row["key"]] = Known(row["id"], row["content"], row["details"])
        return found

    def write(self, rows: pa.Table, new: bool) -> None:
        if new:
            self._told(lambda: self._table().add(rows))
        else:
            self._told(lambda: self._table().merge_insert("id").when_matched_update_all().execute(rows))

    def delete(self, ids: np.ndarray) -> None:
        from lancedb.expr import col

        for start in range(0, len(ids), _AT_A_TIME):
            some = ids[start : start + _AT_A_TIME].tolist()
            self._told(lambda some=some: self._table().delete(col("id").isin(some)))

    def ids(self) -> np.ndarray:
        return np.sort(self._rows(None, ["id"])["id"].to_numpy())

    def rows(self, ids: np.ndarray) -> pa.Table:
        from lancedb.expr import col

        columns = [*FIXED_COLUMNS, *(column.stored for column in self.about().columns)]
        parts = [ids[start : start + _AT_A_TIME].tolist() for start in range(0, len(ids), _AT_A_TIME)]
        return pa.concat_tables([self._rows(col("id").isin(part), columns) for part in parts])

    def vectors(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from lancedb.expr import col

        found = [self._rows(col("id").isin(ids.tolist()), ["id", "embedding"])] if len(ids) else []
        dims = self.about().dims
        if not found:
            return np.empty(0, np.int64), np.empty((0, dims), np.float32)
        return found[0]["id"].to_numpy(), as_array(found[0]["embedding"], dims)

    def scan(self, conditions: Sequence[Condition] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        dims = self.about().dims
        query = self._told(lambda: self._query(_expression(conditions), ["id", "embedding"]).to_batches(BLOCK))
        waiting: list[pa.RecordBatch] = []
        batches = iter(query)
        while True:
            batch = self._told(lambda: next(batches, None))
            if batch is not None:
                waiting.append(batch)
            if waiting and (batch is None or sum(map(len, waiting)) >= BLOCK):
                block = pa.Table.from_batches(waiting)
                waiting = []
                yield block["id"].to_numpy(), as_array(block["embedding"], dims)
            if batch is None:
                return

    def select(self, conditions: Sequence[Condition]) -> np.ndarray:
        return np.sort(self._rows(_expression(conditions), ["id"])["id"].to_numpy())

    def finish(self, ann: bool) -> bool:
        from lancedb.index import BTree, IvfFlat

        def make() -> bool:
            table = self._table()
            there = {index.name for index in table.list_indices()}
            if "key_idx" not in there and table.count_rows() > BLOCK:
                table.create_index("key", config=BTree())
            has_ann = "embedding_idx" in there
            if ann and not has_ann:
                table.create_index("embedding", config=IvfFlat(distance_type="cosine"))
                has_ann = True
            table.optimize()
            return has_ann

        return self._told(make)

    def efforts(self) -> list[int]:
        partitions = max(32, self.count() // 8192 * 2)  # LanceDB makes one of about 8,192 rows
        return [2**n for n in range(3, partitions.bit_length() + 1)]

    def approximate(self, vector: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        def nearest() -> pa.Table:
            query = self._table().search(vector, vector_column_name="embedding").distance_type("cosine")
            return query.nprobes(effort).select(["id", "embedding", "_distance"]).limit(k).to_arrow()

        found = self._told(nearest)
        return found["id"].to_numpy(), as_array(found["embedding"], len(vector))

    def close(self) -> None:
        self._opened = None

    def _rows(self, expression: Any, columns: list[str]) -> pa.Table:
        return self._told(lambda: self._query(expression, columns).to_arrow())

    def _query(self, expression: Any, columns: list[str]) -> Any:
        query = self._table().search().select(columns)
        return query if expression is None else query.where(expression)

    def _connect(self) -> Any:
        # Other processes' writes are seen at the next read.
        return self._lancedb.connect(self.uri, read_consistency_interval=timedelta(0))

    def _table(self) -> Any:
        with self._opening:
            if self._opened is None:
                self._opened = self._connect().open_table(_TABLE)
            return self._opened

    def _told(self, act: Callable[[], Any]) -> Any:
        """What ``act`` gives; what LanceDB says is wrong becomes a StoreError."""
        try:
            return act()
        except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
            self._opened = None
            if not self.folder.is_dir():
                raise StoreError(f"{self.uri}: there is no such folder any more; index again") from None
            what = (str(error).splitlines() or [repr(error)])[0]
            raise StoreError(f"{self.uri}: cannot be used ({what}); index again into another --store") from None


def _expression(conditions: Sequence[Condition]) -> Any:
    """An expression of LanceDB's, whose values are values: no text of the user's is parsed."""
    from lancedb.expr import col, lit

    compare = {"=": "eq", "!=": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
    parts = []
    for condition in conditions:
        column = col(condition.stored)
        each = [getattr(column, compare[condition.operator])(lit(value)) for value in condition.values]
        parts.append(reduce(lambda a, b: a | b, each))
    return reduce(lambda a, b: a & b, parts) if parts else None
