"""`KnownItems`: what an update knows of the items in a store, in arrays: some fifty bytes an item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from divcon.search.digests import numbers_of
from divcon.search.stores.base import Store

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64, UInt64

_FEW = 1000
"""An update of this fraction of a store looks its keys up there; one of more items reads the digests of all rows."""


class KnownItems:
    """The items of a store, and those that an update adds, by key. The entry of an item is its place in ``ids``,
    ``contents``, ``details`` and ``in_data``.

    The keys are in a hash table of open addresses: finding n keys takes time that grows with n alone, whatever is in
    the store.

    Args:
        total: the number of items in the data, if it is known.
        whole: read the digests of all rows, whatever the total.
    """

    def __init__(self, store: Store, total: int | None, whole: bool) -> None:
        self._store = store
        self._size = 0
        self._keys = np.empty((0, 2), np.uint64)
        self._slots = np.empty(0, np.int32)
        self.ids: Int64[np.ndarray, " n"] = np.empty(0, np.int64)
        self.contents: UInt64[np.ndarray, " n"] = np.empty(0, np.uint64)
        """The first half of each digest: enough to see that a content is another."""
        self.details: UInt64[np.ndarray, " n"] = np.empty(0, np.uint64)
        self.in_data: Bool[np.ndarray, " n"] = np.empty(0, bool)
        """Whether it is an item of the data."""
        self.stored = store.count()
        """The number of rows in the store before the update."""
        self._complete = whole or total is None or total * _FEW >= self.stored
        self._reserve(1 + (self.stored if self._complete else 0) + (total or 0))
        if self._complete and self.stored:
            for block in store.read_columns(["id", "key", "content", "details"]):
                self._insert(numbers_of(block["key"]), block["id"].to_numpy(), *_halves(block))
            self.stored = self._size
        self.next_id = int(self.ids[: self._size].max(initial=-1)) + 1 if self._complete else store.next_id()
        """An id above all that are in the store."""

    def __len__(self) -> int:
        return self._size

    def find(self, keys: pa.Array | pa.ChunkedArray, numbers: UInt64[np.ndarray, "n 2"]) -> Int64[np.ndarray, " n"]:
        """The entry of each key; -1: it is in no store, and was not added.

        Args:
            numbers: `numbers_of` the keys.
        """
        entries = self._find(numbers)
        missing = np.flatnonzero(entries < 0)
        if not self._complete and len(missing):
            stored = self._store.lookup(keys.take(pa.array(missing)).to_pylist())
            if stored:
                ids = np.array([item.id for item in stored.values()], np.int64)
                texts = [(key, item.content, item.details) for key, item in stored.items()]
                columns = [pa.array(column, pa.string()) for column in zip(*texts, strict=True)]
                block = pa.table(columns, names=["key", "content", "details"])
                self._insert(numbers_of(block["key"]), ids, *_halves(block))
                entries = self._find(numbers)
        return entries

    def has_content(self, entries: Int64[np.ndarray, " n"], contents: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """(n,) booleans: whether the items are there, with these contents."""
        return _equal(entries, self.contents, contents)

    def has_details(self, entries: Int64[np.ndarray, " n"], details: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """(n,) booleans: whether the items are there, with these details."""
        return _equal(entries, self.details, details)

    def add(self, rows: pa.Table, numbers: UInt64[np.ndarray, "n 2"]) -> None:
        """Add items that are not among those known, and no two of one key.

        Args:
            rows: with the columns id, content and details.
            numbers: `numbers_of` their keys.
        """
        self._insert(numbers, rows["id"].to_numpy(), *_halves(rows))

    def change(self, entries: Int64[np.ndarray, " n"], rows: pa.Table) -> None:
        """Set the digests of items."""
        self.contents[entries], self.details[entries] = _halves(rows)

    def missing(self) -> Int64[np.ndarray, " n"]:
        """The ids of the rows, of the store as it was before, that are not in the data; of all, if the digests of all
        were read."""
        return self.ids[: self.stored][~self.in_data[: self.stored]]

    def num_missing(self) -> int:
        """The number of rows of the store, as it was before, that are not in the data."""
        of_store = self.ids[: self._size] < self.next_id
        return self.stored - int(self.in_data[: self._size][of_store].sum())

    def _insert(
        self,
        keys: UInt64[np.ndarray, "n 2"],
        ids: Int64[np.ndarray, " n"],
        contents: UInt64[np.ndarray, " n"],
        details: UInt64[np.ndarray, " n"],
    ) -> None:
        end = self._size + len(keys)
        self._reserve(end)
        at = slice(self._size, end)
        self._keys[at], self.ids[at], self.contents[at], self.details[at] = keys, ids, contents, details
        self.in_data[at] = False
        self._place(np.arange(self._size, end))
        self._size = end

    def _place(self, entries: np.ndarray) -> None:
        mask = len(self._slots) - 1
        slots = (self._keys[entries, 0] & np.uint64(mask)).astype(np.int64)
        while len(entries):
            free = self._slots[slots] < 0
            self._slots[slots[free]] = entries[free]
            left = self._slots[slots] != entries  # of several for one place, one has it
            entries, slots = entries[left], (slots[left] + 1) & mask

    def _find(self, keys: np.ndarray) -> np.ndarray:
        found = np.full(len(keys), -1)
        if not self._size:
            return found
        mask = len(self._slots) - 1
        slots = (keys[:, 0] & np.uint64(mask)).astype(np.int64)
        open_ = np.arange(len(keys))
        while len(open_):
            entries = self._slots[slots]
            there = entries >= 0
            same = there & (self._keys[entries] == keys[open_]).all(1)
            found[open_[same]] = entries[same]
            go_on = there & ~same
            open_, slots = open_[go_on], (slots[go_on] + 1) & mask
        return found

    def _reserve(self, size: int) -> None:
        """Make room for so many items."""
        if size > len(self.ids):
            room = max(size, 1024, len(self.ids) * 3 // 2)
            for name in ("_keys", "ids", "contents", "details", "in_data"):
                old = getattr(self, name)
                new = np.empty((room, *old.shape[1:]), old.dtype)
                new[: self._size] = old[: self._size]
                setattr(self, name, new)
        if 2 * size > len(self._slots):
            slots = 1 << max(11, (2 * size - 1).bit_length())
            self._slots = np.full(slots, -1, np.int32 if slots < 2**32 else np.int64)
            for start in range(0, self._size, 1 << 20):
                self._place(np.arange(start, min(start + (1 << 20), self._size)))


def _halves(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The first halves of the digests of content and details."""
    return _half(rows["content"]), _half(rows["details"])


def _half(digests: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return numbers_of(digests)[:, 0]


def _equal(entries: np.ndarray, known: np.ndarray, digests: pa.Array | pa.ChunkedArray) -> np.ndarray:
    there = entries >= 0
    if not there.any():
        return there
    return there & (known[entries] == _half(digests))


def first_of_each(numbers: UInt64[np.ndarray, "n 2"]) -> Int64[np.ndarray, " n"] | None:
    """The rows of keys without those whose key an earlier row has; None: there are none of these."""
    ordered = np.sort(numbers[:, 0])
    if (ordered[1:] != ordered[:-1]).all():
        return None
    first = np.sort(np.unique(numbers, axis=0, return_index=True)[1])
    return None if len(first) == len(numbers) else first
