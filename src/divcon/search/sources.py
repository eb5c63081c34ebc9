"""Sources: where blocks of items come from, in one process or on a cluster."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from divcon.data.columns import GUESS, Columns
from divcon.data.labeled_set import LabeledSet
from divcon.data.readers.stream import stream_table, table_rows
from divcon.data.readers.table import images_of_tables
from divcon.data.readers.vectors import paths_to_write
from divcon.data.table_format import is_table
from divcon.data.tables import tables_in_memory
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.places import place, text_of
from divcon.search.columns import columns_of_source
from divcon.search.items import Items, chunks_of, count_lines, items_of, labels_of, listed_sets


class Source(Protocol):
    """All items of a data set, block by block, the same each time; picklable."""

    def blocks(self, rows: int) -> Iterator[Items]:
        """The items in order, ``rows`` at a time."""
        ...

    def count(self) -> int | None:
        """The number of items; None: unknown."""
        ...


@dataclass(frozen=True)
class ItemSource:
    """Items that this program has read."""

    items: Items

    def blocks(self, rows: int) -> Iterator[Items]:
        return chunks_of(self.items, rows)

    def count(self) -> int | None:
        return len(self.items)


@dataclass(frozen=True)
class StreamSource:
    """A text file with a path per line, or a CSV or parquet, that is read some rows at a time. No file that it names is
    looked for before its block is embedded."""

    path: str
    root: str = ""
    """The folder that relative paths start from; empty: of a table its own, else the current one."""
    columns: Columns = GUESS
    column_types: Mapping[str, str] = field(default_factory=dict)
    to_encode: bool = False
    """Whether the items are to be encoded, and not indexed (see `items_to_encode`)."""

    def blocks(self, rows: int) -> Iterator[Items]:
        for images in self._sets(rows):
            if self.to_encode:
                yield items_to_encode(images)
            else:
                yield items_of(images, column_types=self.column_types)[0]

    def count(self) -> int | None:
        if self.path == "-" or not here(self.path).is_file():
            return None  # or not on this machine: a worker says what is wrong with it
        return table_rows(self.path) if is_table(self.path) else count_lines(self.path)

    def _sets(self, rows: int) -> Iterator[LabeledSet]:
        if not is_table(self.path):
            yield from listed_sets(self.path, self.root, rows)
            return
        done = 0
        root = self.root or text_of(place(self.path).parent)
        for table in stream_table(self.path, rows):
            tables = tables_in_memory(self.path, table, root, self.columns, unknown_is_missing=True)
            images = images_of_tables(tables, check_files=False)
            if images.encoded is None:  # there rows are places in the block
                images = replace(images, rows=images.rows + done)
            yield images
            done += len(table)


def items_to_encode(images: LabeledSet, context: Context = DEFAULT) -> Items:
    """The items of a set as a table of their embeddings has them: one for each row, also of a repeated image, under the
    path that `divcon.data.readers.vectors.paths_to_write` says; labels only if the set has any.

    Args:
        context: warns of columns that are left out.
    """
    labels: list[str | None] = labels_of(images) if images.label_names != ("",) else [None] * len(images)
    try:
        own = columns_of_source(images.source, warn=context.warn)
    except DataError as error:
        context.warn(f"left out: the other columns of the table ({error})")
        own = None
    columns = None if own is None or not own.num_columns else own.take(pa.array(images.rows))
    return Items(images, paths_to_write(images).to_pylist(), labels, columns)


@dataclass(frozen=True)
class _Picked:
    """Encoded images by row, without those of other blocks."""

    content: dict[int, bytes] = field(repr=False)

    def __getitem__(self, row: int) -> Any:
        return pa.scalar(self.content[int(row)], pa.large_binary())


def packed(items: Items) -> bytes:
    """A block as bytes to send to a worker, without the data set that it is a part of."""
    images = items.images
    encoded: Any = images.encoded
    if encoded is not None and isinstance(encoded, (pa.Array, pa.ChunkedArray)):
        encoded = _Picked({int(row): encoded[int(row)].as_py() for row in images.rows})
    # A slice of an array would be pickled with the whole of it.
    images = replace(
        images,
        labels=np.zeros(len(images), np.int64),
        label_names=("",),
        class_groups=None,
        spellings=(),
        paths=pa.array(images.paths.to_pylist(), pa.string()),
        encoded=encoded,
    )
    columns = items.columns
    if columns is not None:
        columns = columns.take(pa.array(np.arange(len(items))))
    return pickle.dumps(replace(items, images=images, columns=columns), protocol=5)


def unpacked(content: bytes) -> Items:
    """The block that `packed` made bytes of."""
    return pickle.loads(content)
