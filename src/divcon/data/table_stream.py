"""Tables of paths or vectors that are read as they are used, some rows at a time: a table of 10^8 rows is never in
memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq

from divcon.data.columns import GUESS, Columns
from divcon.data.table_format import format_of, source_for_arrow
from divcon.data.tables import (
    UNTYPED,
    SourceName,
    Tables,
    column_names,
    delimiter,
    kinds_in_csv,
    lines_before_header,
    other_columns,
    tables_in_memory,
)
from divcon.errors import DataError, first_line
from divcon.runtime.copies import opened

CSV_BLOCK = 1 << 22
"""Bytes of a CSV that are parsed at once."""


def stream_table(path: Path, root: str, chosen: Columns = GUESS, *, size: int) -> Iterator[tuple[int, Tables]]:
    """The rows of a CSV or parquet, ``size`` at a time, each time as loaded tables in memory, with the number of the
    first row.

    Labels are what the rows hold: of a CSV the text, and not the number that a whole column of numbers would be.

    Args:
        root: the folder that relative paths start from.

    Raises:
        DataError: it is no CSV or parquet, holds encoded images, or a row is damaged. ConfigError: as
            `divcon.data.tables.load_file`.
    """
    start = 0
    for batch in _batches(path, size):
        tables = tables_in_memory(str(path), batch, root, chosen, unknown_is_missing=True)
        if tables.kind == "encoded":
            raise DataError(
                f"{path}: holds encoded images, read as they are needed anyway; pass it as data, not as `stream`"
            )
        others = batch.select(other_columns(batch.column_names))
        yield start, replace(tables, source=SourceName(str(path), in_memory=True, columns=others))
        start += len(batch)
    if not start:
        raise DataError(f"{path}: the table has no rows")


def _batches(path: Path, size: int) -> Iterator[pa.Table]:
    kind = format_of(path)
    if kind not in ("csv", "parquet"):
        raise DataError(f"{path}: a CSV or parquet is read as it is indexed, and this is another kind of table")
    reading = _of_csv(path) if kind == "csv" else _of_parquet(path, size)
    try:
        for batch in reading:
            for start in range(0, len(batch), size):
                yield pa.Table.from_batches([batch.slice(start, size)])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read to its end ({first_line(error)})") from None


def _of_parquet(path: Path, size: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(opened(path)) as parquet:
        yield from parquet.iter_batches(batch_size=size)


def _of_csv(path: Path) -> Iterator[pa.RecordBatch]:
    header = column_names(path)
    if any(kind == "vector" for _, kind in kinds_in_csv(path, header)):
        raise DataError(f"{path}: vectors in a CSV are read as a whole; write them as parquet")
    with pyarrow.csv.open_csv(
        source_for_arrow(path),
        read_options=pyarrow.csv.ReadOptions(skip_rows=lines_before_header(path), block_size=CSV_BLOCK),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter(path), newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    ) as reader:
        schema = pa.schema([pa.field(name.strip(), pa.string(), metadata=UNTYPED) for name in header])
        for batch in reader:
            yield pa.RecordBatch.from_arrays(_columns(batch, header), schema=schema)


def _columns(batch: pa.RecordBatch, header: Sequence[str]) -> list[pa.Array]:
    columns = batch.columns
    if len(header) > 1 and all(name.startswith(" ") for name in header[1:]):  # a space after each separator
        return [pyarrow.compute.utf8_trim_whitespace(column) for column in columns]  # type: ignore[attr-defined]
    return columns
