"""The vectors of a table: a parquet's column of lists of numbers as one array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.data.source import where_in
from divcon.data.table_file import VECTOR_COLUMN
from divcon.errors import DataError

_ROWS_AT_A_TIME = 8192
_WANTED = "the column 'embedding' needs a list of numbers a row"


def read_vectors(files: Sequence[Path], source: str, num_rows: int) -> np.ndarray:
    """The column ``embedding`` of the rows of one parquet or several, (N, F) float32.

    It may be a list, large list, list of fixed size, or tensor of one dimension, of floats or integers of any width.
    It is read some thousand rows at a time: in memory is the array, and little more.

    Args:
        num_rows: N, as many as the files' other columns have.

    Raises:
        DataError: with the row, for a vector that is missing, empty, of another length than the first, or not finite
            in float32; or the column holds something else, or has another number of rows.
    """
    width, row = 0, 0
    vectors = np.empty((num_rows, 0), np.float32)
    for column in itertools.chain.from_iterable(map(_columns, files)):
        lengths = _lengths(column)
        if not row:
            width = int(lengths[0])
            # A vector that is missing or empty is the first of the bad ones.
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


def _columns(file: Path) -> Iterator[pa.Array]:
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as parquet:
        _check_type(parquet.schema_arrow.field(VECTOR_COLUMN).type, file)
        for batch in parquet.iter_batches(_ROWS_AT_A_TIME, columns=[VECTOR_COLUMN]):
            column = batch.column(0)
            if len(column):
                yield column.storage if isinstance(column, pa.ExtensionArray) else column


def _check_type(kind: pa.DataType, file: Path) -> None:
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if pa.types.is_list(storage) or pa.types.is_large_list(storage) or pa.types.is_fixed_size_list(storage):
        value, tensor = storage.value_type, getattr(kind, "shape", [1])
        if (pa.types.is_floating(value) or pa.types.is_integer(value)) and len(tensor) == 1:
            return
    raise DataError(f"{file}: the column 'embedding' holds {kind}, not vectors; {_WANTED}")


def _lengths(column: pa.Array) -> np.ndarray:
    """(n,) int64 lengths of the lists; -1 where there is none."""
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
    # The sum is finite where all numbers are, unless it overflows; only then is every number looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(block.sum()):
            return
    bad = ~np.isfinite(block)
    if bad.any():
        i, place = (int(at) for at in np.argwhere(bad)[0])
        value = values[i * block.shape[1] + place].as_py()
        what = "no number" if value is None else f"{value:g}"
        raise DataError(
            f"{where_in(source, row + i)}the vector has {what} in place {place}; every number must be finite in "
            "float32: leave such rows out, or make their vectors again"
        )
