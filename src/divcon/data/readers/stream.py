"""Read a table some rows at a time: one of any length is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from divcon.data.table_format import format_of, is_table
from divcon.data.tables import UNTYPED, delimiter, first_line
from divcon.errors import DataError
from divcon.runtime.copies import here, opened
from divcon.runtime.places import place


def table_rows(path: str | Path) -> int | None:
    """The number of rows of a parquet; None of other tables, which say it nowhere."""
    path = place(path)
    if format_of(path) != "parquet":
        return None
    try:
        return pq.read_metadata(opened(path)).num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from None


def stream_table(path: str | Path, rows: int) -> Iterator[pa.Table]:
    """All columns of a CSV or parquet, ``rows`` rows at a time; those of a CSV are text, with the metadata `UNTYPED`.

    Raises:
        DataError: it is no table of these kinds, or damaged.
    """
    path = place(path)
    if not is_table(path) or format_of(path) not in ("csv", "parquet"):
        raise DataError(f"{path}: only a CSV or parquet is read some rows at a time")
    try:
        kept: list[pa.Table] = []
        there = 0
        for batch in _parquet(path, rows) if format_of(path) == "parquet" else _csv(path):
            kept.append(batch)
            there += len(batch)
            if there < rows:
                continue
            whole = pa.concat_tables(kept)
            full = there // rows * rows
            for start in range(0, full, rows):
                yield whole.slice(start, rows)
            kept, there = [whole.slice(full)], there - full
        if there:
            yield pa.concat_tables(kept)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from None


def _parquet(path: Path, rows: int) -> Iterator[pa.Table]:
    with pq.ParquetFile(opened(path)) as parquet:
        for batch in parquet.iter_batches(rows):
            yield pa.Table.from_batches([batch])


def _csv(path: Path) -> Iterator[pa.Table]:
    separator: Any = {"delimiter": delimiter(path), "newlines_in_values": True}
    parse = pyarrow.csv.ParseOptions(**separator)
    with pyarrow.csv.open_csv(here(path), parse_options=parse) as reader:
        names = reader.schema.names
    texts = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    schema = pa.schema([pa.field(name, pa.string(), metadata=UNTYPED) for name in names])
    with pyarrow.csv.open_csv(here(path), parse_options=parse, convert_options=texts) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch]).cast(schema)
