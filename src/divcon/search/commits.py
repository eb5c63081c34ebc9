"""`Commits`: rows are written to a store many at once, so that an index of any size is a few changes of it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import pyarrow as pa

from divcon.search.stores.base import Store

COMMIT_ROWS = 2**20
"""New rows that are one change at most."""
COMMIT_SECONDS = 60.0
"""Rows are written after so many seconds at the latest: what a killed process loses. One that is interrupted, or that
stops at an error, loses none."""
_AHEAD = 4
"""Tables that wait while others are written."""


class Commits:
    """Collects new and changed rows of a store, and writes them.

    Args:
        stream: write new rows in a thread while more come, where the store can (`Store.streams`).
    """

    def __init__(self, store: Store, stream: bool) -> None:
        self._store = store
        self._stream = stream and store.streams
        self._new: list[pa.Table] = []
        self._changed: list[pa.Table] = []
        self._writing: _Writing | None = None
        self._rows = self._bytes = 0
        self._since = time.monotonic()

    def append(self, rows: pa.Table) -> bool:
        """Append rows of new ids, with the next commit; whether all rows are written now."""
        if self._stream:
            if self._writing is None:
                self._writing = _Writing(self._store)
            self._writing.put(rows)
        else:
            self._new.append(rows)
        return self._collected(rows)

    def write(self, rows: pa.Table) -> bool:
        """Write rows in place of those of their ids, with the next commit; whether all rows are written now."""
        self._changed.append(rows)
        return self._collected(rows)

    def _collected(self, rows: pa.Table) -> bool:
        if not self._rows:
            self._since = time.monotonic()
        self._rows += len(rows)
        self._bytes += rows.nbytes
        of_memory = not self._stream or bool(self._changed)
        largest = self._store.commit_bytes if of_memory else 8 * self._store.commit_bytes
        seconds = time.monotonic() - self._since
        if self._rows < COMMIT_ROWS and self._bytes < largest and seconds < COMMIT_SECONDS:
            return False
        self.commit()
        return True

    def commit(self) -> None:
        """Write all rows that were passed.

        Raises:
            StoreError: they cannot be written.
        """
        writing, new, changed = self._writing, self._new, self._changed
        self._writing, self._new, self._changed = None, [], []
        self._rows = self._bytes = 0
        if writing is not None:
            writing.end()
        if changed or new:
            with self._store.changing():
                if changed:
                    self._store.write(pa.concat_tables([*new, *changed]))
                else:
                    self._store.append(pa.concat_tables(new))


class _Writing:
    """One `Store.append_all` in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: queue.Queue[pa.Table | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="divcon-writing", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._store.changing():
                self._store.append_all(self._come())
        except BaseException as error:  # raised where the rows come from
            self._error = error

    def _come(self) -> Iterator[pa.Table]:
        while (table := self._tables.get()) is not None:
            yield table

    def put(self, table: pa.Table | None) -> None:
        while True:
            if not self._thread.is_alive():
                self.end()
            try:
                return self._tables.put(table, timeout=0.2)
            except queue.Full:
                continue

    def end(self) -> None:
        if self._thread.is_alive():
            self.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error
