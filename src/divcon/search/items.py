"""Items: the images or vectors to index, with key, path, label, the user's columns, and digests of all that."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.data.benchmark import Benchmark
from divcon.data.columns import GUESS, Columns
from divcon.data.finite import unusable
from divcon.data.image_files import check_name
from divcon.data.in_memory import is_image
from divcon.data.inputs import as_benchmark
from divcon.data.labeled_set import NO_PATH, LabeledSet, row_name
from divcon.data.python_values import is_value
from divcon.data.read import is_dataset_name, read
from divcon.data.readers.folder import images_of, label_in
from divcon.data.readers.table import images_of_tables, pc
from divcon.data.table_format import format_of
from divcon.data.table_stream import stream_table
from divcon.errors import ConfigError, DataError, ImageError, unknown
from divcon.models.inputs import as_set
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here, opened, read_file
from divcon.runtime.places import joined, place, text_of
from divcon.search.columns import as_in_index, check_column_types, columns_of, columns_of_source, is_vector, typed
from divcon.search.digests import digests_of, keys_of

CHUNK = 1024
"""Images that are embedded at once."""
VECTORS = 16_384
"""Vectors that are embedded at once."""


@dataclass(frozen=True, eq=False)
class Items:
    """N images or vectors to index."""

    images: LabeledSet
    names: list[str]
    """What identifies each: its path, and its box or row if several share a path."""
    labels: list[str | None]
    columns: pa.Table | None = None
    """The user's columns, N rows; of Arrow's types, or as `divcon.search.columns.typed` returns them."""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> Items:
        """The items at ``indices``."""
        if len(indices) and (np.diff(indices) == 1).all():
            if len(indices) == len(self) and indices[0] == 0:
                return self
            run = slice(int(indices[0]), int(indices[-1]) + 1)
            columns = None if self.columns is None else self.columns.slice(run.start, len(indices))
            return Items(self.images.subset(indices), self.names[run], self.labels[run], columns)
        return Items(
            self.images.subset(indices),
            [self.names[i] for i in indices],
            [self.labels[i] for i in indices],
            None if self.columns is None else self.columns.take(pa.array(indices, pa.int64())),
        )

    def paths(self) -> list[str]:
        """The file of each; for encoded images and vectors, their names in their table."""
        files = self.images.encoded is None and self.images.vectors is None
        paths = self.images.paths.to_pylist()
        return [absolute(self.images.root, path) for path in paths] if files else self.names

    def boxes(self) -> list[str | None]:
        """``left,top,right,bottom`` of each image's crop, in pixels; None: the whole image."""
        boxes = self.images.boxes
        return [_box(box) for box in boxes] if boxes is not None else [None] * len(self)

    def keys(self) -> pa.Array:
        """The digest of each name, as text."""
        return self._keys

    @cached_property
    def _keys(self) -> pa.Array:
        return keys_of(self.names)

    def details(self) -> pa.Array:
        """A digest of each label and its columns, whose values are as in a store."""
        return self._details

    @cached_property
    def _details(self) -> pa.Array:
        return details_of(self.labels, self.columns)

    def where(self, i: int) -> str:
        """The name of item i for messages."""
        return self.images.where(i)

    def checked(self, columns: Mapping[str, tuple[str, bool]] | None = None) -> Items:
        """The same with columns as an index has them (see `divcon.search.columns.as_in_index`).

        Args:
            columns: the columns of the index; None: there is no index yet.

        Raises:
            DataError: a value does not fit its column's type, or a vector is not finite.
        """
        if self.images.vectors is not None and (found := unusable(self.images.vectors)) is not None:
            raise DataError(f"{self.where(found[0])}: the vector {found[1]}")
        if self.columns is None:
            return self
        own = typed(self.columns, self.where)
        return replace(self, columns=own if columns is None else as_in_index(own, columns, self.where))

    def content(self, i: int) -> str:
        """The digest of the bytes and box of image i, or of vector i.

        Raises:
            ImageError: its file cannot be read; the message names it.
        """
        return digests_of([self._content(i)])[0].as_py()

    def contents(self, on_unread: Callable[[ImageError], None] | None = None) -> pa.Array:
        """The digest of each image or vector, as text; null if its file cannot be read.

        Args:
            on_unread: called with the error of each file that cannot be read; None: it is raised.

        Raises:
            ImageError: a file cannot be read; the message names it.
        """
        vectors = self.images.vectors
        if vectors is not None:
            whole = memoryview(np.ascontiguousarray(vectors).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            width = len(whole) // max(1, len(self))
            return digests_of(whole[start : start + width] for start in range(0, len(whole), width or 1))
        unread: list[int] = []

        def content(i: int) -> bytes:
            try:
                return self._content(i)
            except ImageError as error:
                if on_unread is None:
                    raise
                on_unread(error)
                unread.append(i)
                return b""

        digests = digests_of(content(i) for i in range(len(self)))
        return pc.if_else(pa.array(~np.isin(np.arange(len(self)), unread)), digests, pa.scalar(None, pa.string()))

    def _content(self, i: int) -> bytes:
        images = self.images
        if images.vectors is not None:
            return np.ascontiguousarray(images.vectors[i]).tobytes()
        if images.encoded is not None:
            content = images.encoded[int(images.rows[i])].as_py()
        else:
            try:
                content = read_file(images.file(i))
            except OSError as error:
                raise ImageError(f"{images.where(i)}: this image cannot be read ({error.strerror or error})") from None
        has_box = images.boxes is not None and images.boxes[i][0] >= 0
        return content + _box(images.boxes[i]).encode() if has_box else content  # type: ignore[index, union-attr]


def details_of(labels: Sequence[str | None] | pa.ChunkedArray, columns: pa.Table | None) -> pa.Array:
    """A digest of each label and its columns, whose values are as in a store, as text."""
    names = [] if columns is None else sorted(columns.column_names)
    texts = [_as_json(columns[name], f"[{json.dumps(name)}, ", "]") for name in names if columns is not None]
    label = _as_json(labels if isinstance(labels, pa.ChunkedArray) else pa.array(labels, pa.string()))
    values = pc.binary_join_element_wise(*texts, ", ") if texts else ""
    encoded = pc.dictionary_encode(pc.binary_join_element_wise("[", label, ", [", values, "]]", ""))
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return keys_of(encoded.dictionary.to_pylist()).take(encoded.indices)


def _as_json(values: pa.Array | pa.ChunkedArray, before: str = "", after: str = "") -> pa.Array:
    """Each value as a text of JSON, between two texts; each different value is encoded once."""
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    floats = pa.types.is_float64(values.type)  # whose bits are compared: 0.0 is not -0.0
    encoded = pc.dictionary_encode(values.view(pa.int64()) if floats else values, null_encoding="encode")
    different = encoded.dictionary.view(pa.float64()) if floats else encoded.dictionary
    texts = [f"{before}{json.dumps(value)}{after}" for value in different.to_pylist()]
    return pa.array(texts, pa.string()).take(encoded.indices)


def absolute(root: str, path: str) -> str:
    """The absolute path, without ``..``; links are not resolved. An address is itself."""
    if "://" in path or "://" in root:
        return os.fspath(joined(root, path))
    return os.path.abspath(os.path.join(root, path))  # noqa: PTH100, PTH118


Data = LabeledSet | Benchmark | np.ndarray | tuple[Any, Any] | str | Path | Sequence[str | Path] | Any
"""Images or vectors: a set, a benchmark (its gallery), an (N, F) array, ``(vectors, labels)``, a name that
`divcon.read` takes (its gallery), a file, folder or table, a list of files and folders, or what `EmbeddingModel.encode`
takes: images in memory, a frame, a dict, a Dataset."""


def set_of(data: Data, root: str | Path | None = None, context: Context = DEFAULT) -> LabeledSet:
    """The images or vectors to index.

    Args:
        data: see `Data`.
        root: the folder that the relative paths of a table start from, in place of its own; or the folder of a named
            data set.

    Raises:
        DataError: nothing of that kind, or nothing there.
    """
    if isinstance(data, LabeledSet):
        return data
    if isinstance(data, Benchmark):
        return data.gallery
    if isinstance(data, str) and is_dataset_name(data) and not Path(data).exists():
        return read(data, root, context=context).gallery
    if isinstance(data, np.ndarray) or hasattr(data, "detach"):
        return as_set(data)
    if isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "shape"):
        images = as_benchmark(data).gallery
        return replace(images, paths=pa.array([str(i) for i in range(len(images))], pa.string()), source="")
    if isinstance(data, str | Path) or (
        isinstance(data, Sequence) and all(isinstance(path, str | Path) for path in data)
    ):
        return images_of(data, root, context=context)
    if is_value(data) or is_image(data):
        return as_set(data)
    raise DataError(
        f"`data` is of type {type(data).__name__}: pass a file, folder or table, a list of them, a set, a benchmark, "
        "an array of vectors, or (vectors, labels)"
    )


def items_of(
    images: LabeledSet,
    columns: Any = None,
    column_types: Mapping[str, str] | None = None,
    context: Context = DEFAULT,
) -> tuple[Items, int]:
    """The items of a set, and the number of its rows that are left out because an earlier row has the same image (path
    and box).

    Labels are the set's. If it has none and its images are in folders below one, the name of the first of these folders
    (below those of splits, and one called ``images`` or the like) is the label.

    Args:
        columns: the user's columns, one row per image: an Arrow table, a data frame, or names and lists; None: those of
            the table that the set was read from.
        column_types: the types of columns by name, see `divcon.search.columns`; others have those of the table, and
            text if it has none (CSV).
        context: warns of each column that is left out.

    Raises:
        ConfigError: a type, or a name of ``column_types``, is unknown.
        DataError: the number of rows is not the number of images; a value is not of its column's type; or a column
            holds several types.
    """
    declared = check_column_types(column_types)
    if columns is None:
        table = columns_of_source(images.source, declared, context.warn)
        own = None if table is None else table.take(pa.array(images.rows))
    else:
        own = columns_of(columns, declared, warn=context.warn)
    if own is not None and len(own) != len(images):
        raise DataError(f"`columns` has {len(own):,} rows for {len(images):,} images; pass one row per image")
    _check_declared(declared, own)
    return _once(Items(images, _names(images), labels_of(images), own if own is not None and own.num_columns else None))


def _once(items: Items) -> tuple[Items, int]:
    """The items without those whose name an earlier one has, and the number of these."""
    if len(set(items.names)) == len(items):
        return items, 0
    first = {name: i for i, name in reversed(list(enumerate(items.names)))}
    return items.take(np.sort(np.fromiter(first.values(), np.int64))), len(items) - len(first)


def _check_declared(declared: Mapping[str, str], own: pa.Table | None) -> None:
    for name in declared:
        if own is None or name not in own.column_names:
            there = unknown("column", name, [] if own is None else own.column_names)
            raise ConfigError(f"`column_types`: {there}" if own is not None else _NO_COLUMNS, field="column_types")


_NO_COLUMNS = "`column_types`: this data has no columns; they come from a table, or from the argument `columns`"


def chunks_of(items: Items, size: int | None = None) -> Iterator[Items]:
    """The items in order, ``size`` at a time; None: 1,024 images, or 16,384 vectors."""
    size = size or (CHUNK if items.images.vectors is None else VECTORS)
    for start in range(0, len(items), size):
        yield items.take(np.arange(start, min(start + size, len(items))))


def read_rows(
    table: str | Path,
    root: str | Path | None = None,
    column_types: Mapping[str, str] | None = None,
    *,
    chosen: Columns = GUESS,
    size: int | None = None,
    context: Context = DEFAULT,
) -> Iterator[Items]:
    """The images or vectors of a CSV or parquet as `items_of` has them, some at a time: the table is never in memory as
    a whole. An image that an earlier row has is left out where both rows are in memory together.

    Args:
        root: the folder that relative paths start from, instead of the table's own.
        column_types: as of `items_of`.
        chosen: the names of columns.
        size: the most rows at a time; None: as `chunks_of` takes of images, or of vectors.
        context: warns of what is guessed or left out.

    Raises:
        DataError, ConfigError: as `items_of`, or as `divcon.data.table_stream.stream_table`.
    """
    sets = streamed_sets(table, root, check_column_types(column_types), chosen=chosen, size=size, context=context)
    for images, own in sets:
        yield _once(Items(images, _names(images), labels_of(images), own))[0]


def streamed_sets(
    table: str | Path,
    root: str | Path | None,
    declared: dict[str, str],
    *,
    chosen: Columns = GUESS,
    size: int | None = None,
    context: Context = DEFAULT,
) -> Iterator[tuple[LabeledSet, pa.Table | None]]:
    """As `read_rows`, sets with the user's columns."""
    path = here(table)
    said: set[str] = set()

    def warn(message: str) -> None:
        if message not in said:
            said.add(message)
            context.warn(message)

    once = replace(context, on_warning=warn)
    folder = text_of(place(table).parent if root is None else root)
    for start, tables in stream_table(path, folder, chosen, size=size or _rows_at_once(path)):
        images = images_of_tables(tables, check_files=False, context=once)
        own = columns_of_source(images.source, declared, warn)
        if not start:
            _check_declared(declared, own)
        rows = images.rows + start
        if images.vectors is not None:
            local = pa.array([row_name(row) for row in images.rows.tolist()])
            named = pa.array([row_name(row) for row in rows.tolist()])
            images = replace(images, paths=pc.if_else(pc.equal(images.paths, local), named, images.paths))
        images = replace(images, rows=rows)
        yield images, own if own is not None and own.num_columns else None


def _rows_at_once(path: Path) -> int:
    """As many as `chunks_of` takes of images, or of vectors."""
    if format_of(path) != "parquet":
        return CHUNK
    with pq.ParquetFile(opened(path)) as parquet:
        kinds = parquet.schema_arrow.types
    return VECTORS if any(map(is_vector, kinds)) else CHUNK


def listed_sets(listing: str, root: str = "", size: int = CHUNK) -> Iterator[LabeledSet]:
    """The images whose paths are in a text file, one per line (``-``: standard input), ``size`` at a time, as sets
    without labels: the file is never in memory as a whole. Empty lines are skipped.

    Args:
        root: the folder that relative paths start from.

    Raises:
        DataError: there is no such file, or it is not text in UTF-8.
    """
    try:
        if listing != "-":
            listing = str(here(listing))
            Path(listing).stat()  # now, and not when the first item is asked for; a pipe cannot be opened twice
    except OSError as error:
        raise DataError(f"{listing}: cannot be read ({error.strerror or error})") from None
    return _listed_sets(listing, root, size)


def count_lines(listing: str) -> int:
    """The number of lines of a file that are not empty.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with here(listing).open("rb") as file:
            return sum(not line.isspace() for line in file)
    except OSError as error:
        raise DataError(f"{listing}: cannot be read ({error.strerror or error})") from None


def _listed_sets(listing: str, root: str, size: int) -> Iterator[LabeledSet]:
    try:
        with nullcontext(sys.stdin) if listing == "-" else Path(listing).open(encoding="utf-8-sig") as file:
            lines = (line.rstrip("\r\n") for line in file)
            yield from _sets((line for line in lines if line.strip()), root, size)
    except UnicodeDecodeError as error:
        raise DataError(f"{listing}: this is not a listing of paths in UTF-8 ({error})") from None
    except OSError as error:
        raise DataError(f"{listing}: cannot be read ({error.strerror or error})") from None


def _sets(paths: Iterable[str], root: str, size: int) -> Iterator[LabeledSet]:
    paths = iter(paths)
    done = 0
    while some := list(itertools.islice(paths, size)):
        for path in some:
            check_name(path)
        yield LabeledSet(
            labels=np.zeros(len(some), np.int64),
            label_names=("",),
            paths=pa.array(some, pa.string()),
            rows=np.arange(done, done + len(some)),
            source="",
            root=root,
        )
        done += len(some)


def _names(images: LabeledSet) -> list[str]:
    paths = images.paths.to_pylist()
    if images.encoded is None and images.vectors is None:
        boxes = images.boxes if images.boxes is not None else itertools.repeat(None)
        pairs = zip(paths, boxes, strict=False)
        return [f"{absolute(images.root, path)}{f' {box}' if (box := _box(b)) else ''}" for path, b in pairs]
    often = Counter(paths) if images.encoded is not None else {}
    source = absolute("", images.source) if images.source else ""
    names = []
    for path, row in zip(paths, images.rows.tolist(), strict=True):
        if path == NO_PATH or (path.startswith("row ") and path == row_name(row)):
            path = f"{source} {row_name(row)}".strip()
        elif often and often[path] > 1:
            path = f"{path} {row_name(row)}"
        names.append(path)
    return names


def labels_of(images: LabeledSet) -> list[str | None]:
    """The label of each: the set's, or if it has none, by the folders below its own."""
    if images.label_names != ("",):
        return [images.label_names[label] or None for label in images.labels]  # a row of a table may have no label
    if not images.root or images.encoded is not None or images.vectors is not None:
        return [None] * len(images)
    return [label_in(path) for path in images.paths.to_pylist()]


def _box(box: np.ndarray | None) -> str | None:
    return None if box is None or box[0] < 0 else ",".join(map(str, box.tolist()))
