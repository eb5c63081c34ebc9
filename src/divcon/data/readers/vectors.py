"""Write and read vectors as a parquet: path, label if there is one, embedding; and a benchmark with its splits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from divcon.data.benchmark import Benchmark
from divcon.data.digests import names_of
from divcon.data.finite import unusable
from divcon.data.labeled_set import NO_PATH, LabeledSet
from divcon.data.tables import BOX_COLUMNS, VECTOR_COLUMN, where_in
from divcon.errors import DataError
from divcon.runtime.copies import opened
from divcon.runtime.files import atomic_write
from divcon.runtime.places import joined

pc: Any = pyarrow.compute
"""Any: pyarrow creates its functions at import, so type checkers do not know them."""

Features = Callable[[LabeledSet], np.ndarray] | Mapping[str, np.ndarray]

_ROWS_AT_A_TIME = 8192


def write_vectors(path: str | Path, images: LabeledSet, embeddings: np.ndarray) -> None:
    """Write the (N, D) embeddings of N images as float32, atomically; paths open from the working directory.

    ``divcon.read`` and ``images_of`` read the file back, as vectors.

    Raises:
        DataError: the embeddings are not N vectors.
        OutputError: the file cannot be written.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(images):
        raise DataError(f"embeddings of shape {embeddings.shape} are not one vector for each of {len(images):,} images")
    columns = {"path": paths_to_write(images)}
    if images.label_names != ("",):
        columns["label"] = _labels(images)
    blocks = (embeddings[start : start + _ROWS_AT_A_TIME] for start in range(0, len(images), _ROWS_AT_A_TIME))
    _write(path, pa.table(columns), blocks, embeddings.shape[1])


def paths_to_write(images: LabeledSet) -> pa.Array:
    """The paths as a table of their vectors has them: they open from the working directory; encoded images that share
    one are numbered by their row."""
    paths = _numbered(images.paths, [images])
    return _under(images.root, paths) if images.encoded is None and images.root else paths


def write_benchmark_vectors(
    path: str | Path, benchmark: Benchmark, features: Features, columns: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """Write a benchmark with vectors instead of its images; ``divcon.read`` reads it back.

    The columns are ``path,label,split,embedding``, with ``is_query,is_gallery`` if query and gallery differ, and
    ``camera``, ``sequence`` and the sides of the boxes if the benchmark has them. Paths are counted from the
    benchmark's root, so that its ``split_hash`` stays the same; encoded images that share a path are
    numbered by their row.

    Args:
        features: a function that returns the (n, F) vectors of a `LabeledSet`, called with some thousand images at a
            time, so that memory stays bounded; or arrays by split: train, validation, query, gallery (the vector of an
            image in both query and gallery is read from query).
        columns: more columns, with a value for each row of the benchmark's source (`LabeledSet.rows`).

    Raises:
        DataError: the features are not one vector per image, or not all of one length.
        OutputError: the file cannot be written.
    """
    parts = [part for part in table_parts(benchmark) if len(part.images)]
    if not parts:
        raise DataError(f"{benchmark.name}: there are no images to write vectors of")
    table = benchmark_table(parts)
    rows = np.concatenate([part.images.rows for part in parts])
    for name, values in (columns or {}).items():
        if name not in (*table.column_names, VECTOR_COLUMN):
            table = table.append_column(name, pa.array(values).take(pa.array(rows)))
    blocks = _blocks(parts, features)
    first = next(blocks)
    _write(path, table, itertools.chain([first], blocks), first.shape[1])


@dataclass(frozen=True)
class TablePart:
    """Images of a benchmark in consecutive rows of a table."""

    name: str
    """The split whose features they are: train, validation, query or gallery."""
    images: LabeledSet
    places: np.ndarray
    """Their rows in the features of that split, (n,) int64."""
    split: str
    paths: pa.Array
    is_query: np.ndarray | None = None
    is_gallery: np.ndarray | None = None

    def table(self) -> pa.Table:
        """Their columns, except pixels and vectors; no camera, sequence or box is null."""
        images, n = self.images, len(self.images)
        columns = {"path": self.paths, "label": _labels(images), "split": pa.repeat(self.split, n)}
        if self.is_query is not None:
            columns |= {"is_query": pa.array(self.is_query), "is_gallery": pa.array(self.is_gallery)}
        for name, codes in (("camera", images.cameras), ("sequence", images.groups)):
            if codes is not None:
                columns[name] = pa.array(codes, mask=codes < 0)
        if images.boxes is not None:
            for i, name in enumerate(BOX_COLUMNS):
                columns[name] = pa.array(images.boxes[:, i], mask=images.boxes[:, 0] < 0)
        return pa.table(columns)


def table_parts(data: Benchmark) -> Iterator[TablePart]:
    """The rows of a table that `divcon.read` reads back as this benchmark, in blocks. An image that is query and
    gallery is one row."""
    for name, images in (("train", data.train), ("validation", data.validation)):
        if images is not None:
            yield TablePart(name, images, np.arange(len(images)), name, *names_of([images]))
    query, gallery = data.query, data.gallery
    every = np.arange(len(query))
    if "test" in data.parts:  # leave-one-out, or a closed set whose gallery is the training images
        yield TablePart("query", query, every, "test", *names_of([query]))
        return
    query_names, gallery_names = names_of([query, gallery])
    # An image that is in both must be one row, or it would retrieve itself.
    one_source = query.source == gallery.source
    both = np.isin(query.rows, gallery.rows) if one_source else np.zeros(len(query), bool)
    yield TablePart("query", query, every, "test", query_names, np.ones(len(query), bool), both)
    others = np.flatnonzero(~np.isin(gallery.rows, query.rows)) if one_source else np.arange(len(gallery))
    others_set = gallery.subset(others)
    flags = (np.zeros(len(others), bool), np.ones(len(others), bool))
    yield TablePart("gallery", others_set, others, "test", gallery_names.take(pa.array(others)), *flags)


def benchmark_table(parts: Sequence[TablePart]) -> pa.Table:
    """The rows of all blocks, at least one; encoded images that share a path are numbered by their row."""
    table = pa.concat_tables([part.table() for part in parts], promote_options="default")
    paths = _numbered(table["path"].combine_chunks(), [part.images for part in parts])
    return table.set_column(table.column_names.index("path"), "path", paths)


def _blocks(parts: Iterable[TablePart], features: Features) -> Iterator[np.ndarray]:
    """The vectors of the blocks in turn, (n, F), some thousand at a time."""
    width = None
    for part in parts:
        for start in range(0, len(part.images), _ROWS_AT_A_TIME):
            rows = np.arange(start, min(start + _ROWS_AT_A_TIME, len(part.images)))
            if callable(features):
                block = features(part.images.subset(rows))
            elif part.name not in features or len(features[part.name]) <= part.places.max():
                raise DataError(f"{part.name}: there are features of {', '.join(features)}, too few for its images")
            else:
                block = features[part.name][part.places[rows]]
            if block.ndim != 2 or len(block) != len(rows) or block.shape[1] != (width or block.shape[1]):
                one = f"one vector of length {width}" if width else "one vector"
                raise DataError(f"{part.name}: features of shape {block.shape} are not {one} for each of {len(rows):,}")
            width = block.shape[1]
            yield block


def _write(path: str | Path, table: pa.Table, blocks: Iterable[np.ndarray], width: int) -> None:
    schema = table.schema.append(pa.field(VECTOR_COLUMN, pa.list_(pa.float32(), width)))
    with atomic_write(path) as beside, pq.ParquetWriter(beside, schema) as writer:
        done = 0
        for block in blocks:
            flat = pa.array(np.ascontiguousarray(block, np.float32).reshape(-1))
            rows = table.slice(done, len(block)).combine_chunks()
            done += len(block)
            vectors = pa.FixedSizeListArray.from_arrays(flat, width)
            writer.write_table(rows.append_column(schema.field(VECTOR_COLUMN), vectors))


def _labels(images: LabeledSet) -> pa.Array:
    # The class without a name is of rows without a label.
    names = pa.array([name or None for name in images.label_names], pa.string())
    return names.take(pa.array(images.labels))


def _under(root: str, paths: pa.Array) -> pa.Array:
    return pa.array([str(joined(root, path)) for path in paths.to_pylist()], pa.string())


def _numbered(paths: pa.Array, sets: Iterable[LabeledSet]) -> pa.Array:
    """The paths, with the row's number if several encoded images share one: readers take a path for one image."""
    rows = np.concatenate([images.rows if images.encoded is not None else np.full(len(images), -1) for images in sets])
    if not len(rows) or rows.max() < 0:
        return paths
    coded = paths.dictionary_encode()
    codes = coded.indices.to_numpy()
    shared = (np.bincount(codes)[codes] > 1) & (rows >= 0)
    names = pc.binary_join_element_wise(paths, pa.array(rows).cast(pa.string()), " row ")
    names = pc.replace_substring(names, f"{NO_PATH} ", "")
    return pc.if_else(pa.array(shared), names, paths)


_WANTED = "the column 'embedding' needs a list of numbers per row"


def read_vectors(files: Sequence[Path], source: str, num_rows: int, name: str = VECTOR_COLUMN) -> np.ndarray:
    """The column of that name of the rows of one parquet or several, (N, F) float32.

    It may be a list, large list, fixed-size list, or one-dimensional tensor, of floats or integers of any width. It is
    read some thousand rows at a time, so that little more than the array is in memory.

    Args:
        num_rows: N, as many as the files' other columns have.

    Raises:
        DataError: a vector is missing, empty, of another length than the first, or not finite in float32 (the message
            has the row); or the column holds something else, or has another number of rows.
    """
    return _stacked(itertools.chain.from_iterable(_columns(file, name) for file in files), source, num_rows)


def vectors_in(table: pa.Table, source: str) -> np.ndarray:
    """The column ``embedding`` of a table in memory, (N, F) float32.

    Raises:
        DataError: as of `read_vectors`.
    """
    column = table[VECTOR_COLUMN]
    _check_type(column.type, source, VECTOR_COLUMN)
    chunks = (chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in column.chunks)
    return _stacked((chunk for chunk in chunks if len(chunk)), source, len(table))


def _stacked(columns: Iterable[pa.Array], source: str, num_rows: int) -> np.ndarray:
    width, row = 0, 0
    vectors = np.empty((num_rows, 0), np.float32)
    for column in columns:
        lengths = _lengths(column)
        if not row:
            width = int(lengths[0])
            # If the first vector is missing or empty, it is reported below.
            vectors = np.empty((num_rows, max(width, 0)), np.float32)
        bad = (lengths < 1) | (lengths != width)
        if bad.any():
            i = int(np.argmax(bad))
            raise DataError(where_in(source, row + i) + _wrong_length(int(lengths[i]), width))
        if row + len(column) > num_rows:
            break
        block = vectors[row : row + len(column)]
        _fill(block, column.flatten(), source, row)
        row += len(column)
    else:
        if row == num_rows:
            return vectors
    raise DataError(f"{source}: the column 'embedding' is damaged: it has another number of rows than the others")


def _columns(file: Path, name: str) -> Iterator[pa.Array]:
    with pq.ParquetFile(opened(file), pre_buffer=False, buffer_size=1 << 20) as parquet:
        _check_type(parquet.schema_arrow.field(name).type, file, name)
        for batch in parquet.iter_batches(_ROWS_AT_A_TIME, columns=[name]):
            column = batch.column(0)
            if len(column):
                yield column.storage if isinstance(column, pa.ExtensionArray) else column


def _check_type(kind: pa.DataType, file: str | Path, name: str) -> None:
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if pa.types.is_list(storage) or pa.types.is_large_list(storage) or pa.types.is_fixed_size_list(storage):
        value, tensor = storage.value_type, getattr(kind, "shape", [1])
        if (pa.types.is_floating(value) or pa.types.is_integer(value)) and len(tensor) == 1:
            return
    raise DataError(f"{file}: the column {name!r} holds {kind}, not vectors; {_WANTED.replace(VECTOR_COLUMN, name)}")


def _lengths(column: pa.Array) -> np.ndarray:
    """The lengths of the lists, (n,) int64; -1 for null."""
    return column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _wrong_length(length: int, width: int) -> str:
    if length < 0:
        return f"the vector is missing; {_WANTED}, or take the row out"
    if length == 0:
        return f"the vector is empty; {_WANTED}"
    return f"the vector has {length:,} numbers, where the first has {width:,}; all need one length"


def _fill(block: np.ndarray, values: pa.Array, source: str, row: int) -> None:
    numbers = values.to_numpy(zero_copy_only=False).reshape(block.shape)
    with np.errstate(over="ignore"):
        block[:] = numbers
    if (found := unusable(block)) is None:
        return
    i, why = found
    here = values.slice(i * block.shape[1], block.shape[1])
    if here.null_count:
        place = int(np.argmax(here.is_null().to_numpy(zero_copy_only=False)))
        why = f"has no number in place {place}; every number must be finite in float32"
    elif (again := unusable(numbers[i : i + 1])) is not None:
        why = again[1]  # with the number as it was
    raise DataError(f"{where_in(source, row + i)}the vector {why}: remove such rows, or compute their vectors again")
