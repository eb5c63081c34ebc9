"""Sources: where blocks of items come from, in one process or on a cluster."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.data.columns import GUESS, Columns
from divcon.data.labeled_set import LabeledSet
from divcon.data.readers.vectors import paths_to_write
from divcon.data.table_format import format_of, is_table
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here, opened
from divcon.search.columns import columns_of_source
from divcon.search.items import (
    Items,
    chunks_of,
    count_lines,
    items_of,
    labels_of,
    listed_sets,
    read_rows,
    streamed_sets,
)


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
        root = self.root or None
        if not is_table(self.path):
            sets = listed_sets(self.path, self.root, rows)
            yield from (items_to_encode(images) if self.to_encode else items_of(images)[0] for images in sets)
        elif self.to_encode:
            for images, own in streamed_sets(self.path, root, {}, chosen=self.columns, size=rows):
                yield items_to_encode(images, own)
        else:
            yield from read_rows(self.path, root, self.column_types, chosen=self.columns, size=rows)

    def count(self) -> int | None:
        if self.path == "-" or not here(self.path).is_file():
            return None  # or not on this machine: a worker says what is wrong with it
        if not is_table(self.path):
            return count_lines(self.path)
        if format_of(self.path) != "parquet":
            return None
        with pq.ParquetFile(opened(self.path)) as parquet:
            return parquet.metadata.num_rows


def items_to_encode(images: LabeledSet, columns: pa.Table | None = None) -> Items:
    """The items of a set as a table of their embeddings has them: one for each row, also of a repeated image, under the
    path that `divcon.data.readers.vectors.paths_to_write` says; labels only if the set has any.

    Args:
        columns: the user's columns, row for row.
    """
    labels: list[str | None] = labels_of(images) if images.label_names != ("",) else [None] * len(images)
    return Items(images, paths_to_write(images).to_pylist(), labels, columns)


def user_columns(images: LabeledSet, context: Context = DEFAULT) -> pa.Table | None:
    """The columns of the table that a set was read from, row for row; a warning names those that are left out."""
    try:
        own = columns_of_source(images.source, warn=context.warn)
    except DataError as error:
        context.warn(f"left out: the other columns of the table ({error})")
        return None
    return None if own is None or not own.num_columns else own.take(pa.array(images.rows))


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
