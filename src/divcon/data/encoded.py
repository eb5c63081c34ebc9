"""The encoded images of a parquet: read at once if they are few, else one row group at a time."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from divcon.data.tables import IMAGE_COLUMN, SourceName, where_in
from divcon.data.tar_members import TarMembers
from divcon.errors import DataError, ImageError, first_line
from divcon.runtime.copies import opened, read_file

pc: Any = pyarrow.compute
"""Any: pyarrow creates its functions at import, so type checkers do not know them."""

IN_MEMORY = 1 << 30
"""Bytes of images up to which all are read at once."""
LARGEST_GROUP = 64 << 20
"""The largest row group, in bytes, that is read for one image. With larger ones all images are read at once, since
every process that decodes would soon hold several of them."""
_GROUPS_KEPT = 2
_FILES_OPEN = 32


@dataclass(frozen=True, eq=False)
class RowGroups:
    """The encoded images of parquet files, indexed like an Arrow column, by rows numbered through all files.

    Each process keeps the last row groups in memory, so that reading images in order reads each group once.
    """

    groups: tuple[tuple[Path, int], ...]
    """The file and number of each row group."""
    starts: tuple[int, ...]
    """The first row of each row group."""
    leaf: str
    _kept: OrderedDict[tuple[int, int], pa.ChunkedArray] = field(default_factory=OrderedDict)
    _opened: OrderedDict[tuple[int, Path], pq.ParquetFile] = field(default_factory=OrderedDict)

    def __getitem__(self, row: int) -> pa.Scalar:
        """The image of the row, a binary scalar.

        Raises:
            ImageError: its file cannot be read any more.
        """
        number = bisect_right(self.starts, row) - 1
        return self.group(number)[row - self.starts[number]]

    def __reduce__(self) -> tuple[Any, ...]:
        return RowGroups, (self.groups, self.starts, self.leaf)

    def group(self, number: int) -> pa.ChunkedArray:
        """All images of a row group."""
        # A forked process needs its own.
        key = (os.getpid(), number)
        if key not in self._kept:
            file, place = self.groups[number]
            try:
                table = self._file(file).read_row_group(place, [self.leaf], use_threads=False)
                self._kept[key] = _bytes_in(table)
            except (pa.ArrowException, OSError) as error:
                raise ImageError(f"{file}: cannot be read any more ({error}); has it changed?") from None
            while len(self._kept) > _GROUPS_KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def _file(self, path: Path) -> pq.ParquetFile:
        """Files stay open: reading their metadata takes longer than reading a row group."""
        key = (os.getpid(), path)
        if key not in self._opened:
            self._opened[key] = pq.ParquetFile(opened(path), page_checksum_verification=True)
            while len(self._opened) > _FILES_OPEN:
                self._opened.popitem(last=False)
        return self._opened[key]


Encoded = pa.Array | pa.ChunkedArray | RowGroups | TarMembers


def read_encoded(
    files: Sequence[Path], source: SourceName, name: str = IMAGE_COLUMN
) -> tuple[Encoded, pa.Array | None]:
    """The encoded images in the files' columns of that name, and their paths if the column has them.

    Raises:
        DataError: the column holds something else, or a row has no bytes.
    """
    leaves = {_leaf(file, name) for file in files}
    if len(leaves) > 1:
        raise DataError(f"{source}: its files have two kinds of column {name!r}; write them alike")
    leaf = leaves.pop()
    metadata = [pq.read_metadata(opened(file)) for file in files]
    groups = [(file, g) for file, about in zip(files, metadata, strict=True) for g in range(about.num_row_groups)]
    counts = [about.row_group(g).num_rows for about in metadata for g in range(about.num_row_groups)]
    starts = tuple(accumulate(counts, initial=0))[:-1]
    lazy = RowGroups(tuple(groups), starts, leaf)
    columns = []
    # PyArrow aborts on damaged column statistics, where a read raises: ask for them only if the size requires it.
    if sum(about.row_group(g).total_byte_size for about in metadata for g in range(about.num_row_groups)) > IN_MEMORY:
        columns = [
            _chunk(about.row_group(g), leaf, file)
            for file, about in zip(files, metadata, strict=True)
            for g in range(about.num_row_groups)
        ]
    sizes = [column.total_uncompressed_size for column in columns]
    encoded: Encoded = lazy
    if sum(sizes) <= IN_MEMORY or max(sizes) > LARGEST_GROUP:
        encoded = pa.chunked_array([chunk for file in files for chunk in _read(file, leaf).chunks], pa.large_binary())
        _reject_empty(encoded, 0, source)
    else:
        for number, column in enumerate(columns):
            if column.statistics is None or not column.statistics.has_null_count or column.statistics.null_count:
                _reject_empty(lazy.group(number), starts[number], source)
    return encoded, _paths(files, name) if leaf != name else None


def encoded_in(table: pa.Table, source: SourceName) -> tuple[Encoded, pa.Array | None]:
    """The encoded images in the column ``image`` of a table in memory, and their paths if the column has them. Where
    the column has a path and no bytes, the file is read.

    Raises:
        DataError: the column holds something else, or a row has no bytes.
    """
    column = table[IMAGE_COLUMN]
    kind, paths = column.type, None
    if pa.types.is_struct(kind) and (index := kind.get_field_index("bytes")) >= 0:
        if kind.get_field_index("path") >= 0:
            chunks = [chunk.cast(pa.string()) for chunk in pc.struct_field(column, "path").chunks]
            paths = pa.chunked_array(chunks, pa.string()).combine_chunks()
        kind = kind.field(index).type
    if not (_is_bytes(kind) or (pa.types.is_null(kind) and paths is not None)):
        raise DataError(_not_encoded(source, column.type, IMAGE_COLUMN))
    images = _bytes_in(table.select([IMAGE_COLUMN]))
    if images.null_count and paths is not None:
        content = [image if image is not None else _content(path) for image, path in _pairs(images, paths)]
        images = pa.chunked_array([pa.array(content, pa.large_binary())])
    _reject_empty(images, 0, source)
    return images, paths


def _pairs(images: pa.ChunkedArray, paths: pa.Array) -> Iterator[tuple[bytes | None, str | None]]:
    return zip(images.to_pylist(), paths.to_pylist(), strict=True)


def _content(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return read_file(path)
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}); a row has this path and no bytes"
        raise DataError(message) from None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _not_encoded(source: object, kind: object, name: str) -> str:
    advice = "" if name != IMAGE_COLUMN else "; files are named in the column 'path'"
    return f"{source}: the column {name!r} holds {kind}, not encoded images (bytes of PNG, JPEG, ...){advice}"


def _leaf(file: Path, name: str) -> str:
    """The path of the column of bytes in the file's schema."""
    kind = pq.read_schema(opened(file)).field(name).type
    leaf, value = name, kind
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        leaf, value = f"{name}.bytes", kind.field("bytes").type
    if _is_bytes(value):
        return leaf
    raise DataError(_not_encoded(file, kind, name))


def _read(file: Path, leaf: str) -> pa.ChunkedArray:
    try:
        with pq.ParquetFile(opened(file), page_checksum_verification=True) as parquet:
            return _bytes_in(parquet.read(columns=[leaf]))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: its images are damaged ({first_line(error)}); make the file again") from None


def _bytes_in(table: pa.Table) -> pa.ChunkedArray:
    column = table.column(0)
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    return pa.chunked_array([chunk.cast(pa.large_binary()) for chunk in column.chunks], pa.large_binary())


def _paths(files: Sequence[Path], name: str) -> pa.Array | None:
    parts = []
    for file in files:
        with pq.ParquetFile(opened(file)) as parquet:
            if parquet.schema_arrow.field(name).type.get_field_index("path") < 0:
                return None
            column = parquet.read(columns=[f"{name}.path"]).column(0)
            parts += [chunk.cast(pa.string()) for chunk in pc.struct_field(column, "path").chunks]
    return pa.chunked_array(parts, pa.string()).combine_chunks()


def _chunk(group: Any, leaf: str, file: Path) -> Any:
    for i in range(group.num_columns):
        if group.column(i).path_in_schema == leaf:
            return group.column(i)
    raise DataError(f"{file}: its images are damaged (rows without a column {leaf!r}); make the file again")


def _reject_empty(images: pa.ChunkedArray, start: int, source: SourceName) -> None:
    if images.null_count:
        row = start + int(np.argmax(images.is_null().to_numpy()))
        more = f" (in {images.null_count:,} rows)" if images.null_count > 1 else ""
        raise DataError(f"{where_in(source, row)}the image has no bytes{more}; take the row out")
