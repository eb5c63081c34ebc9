"""The columns of a user's table that divcon has no use for in training: a price, a colour, a date."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from divcon.data.source import Source
from divcon.data.table_file import (
    BOX_COLUMNS,
    CSV_SUFFIXES,
    FILE_NAME,
    IMAGE_COLUMN,
    JSON_SUFFIXES,
    TABLE_SUFFIXES,
    VECTOR_COLUMN,
    delimiter,
)
from divcon.errors import DataError

_OWN = ("path", "label", FILE_NAME, IMAGE_COLUMN, VECTOR_COLUMN, *BOX_COLUMNS)


def metadata_of(source: str) -> pa.Table | None:
    """The columns of a table (or of the tables of a folder) beside path, label, box, image and embedding, row for row:
    of type string, int64, float64 or bool. None where the source is no table, or has no such column.

    Raises:
        DataError: a column is whole numbers in one table and text in another.
    """
    files = [Path(name) for name, _ in source.tables] if isinstance(source, Source) else []
    files = files or [Path(source)]
    if not all(file.suffix.lower() in TABLE_SUFFIXES and file.is_file() for file in files):
        return None
    try:
        tables = [plain(_read(file)) for file in files]
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{source}: its columns cannot be read ({str(error).splitlines()[0]})") from None
    return table if table.num_columns else None


def plain(table: pa.Table) -> pa.Table:
    """The columns as string, int64, float64 or bool; those of lists, structs or bytes are left out, and the rest
    (dates, decimals) become text."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            continue
        if pa.types.is_integer(kind) and kind != pa.uint64():
            columns[name] = column.cast(pa.int64())
        elif pa.types.is_floating(kind):
            columns[name] = column.cast(pa.float64())
        elif pa.types.is_boolean(kind):
            columns[name] = column
        else:
            columns[name] = column.cast(pa.string())
    return pa.table(columns) if columns else table.select([])


def _others(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in _OWN]


def _read(file: Path) -> pa.Table:
    suffix = file.suffix.lower()
    if suffix in JSON_SUFFIXES:
        table = pyarrow.json.read_json(file)
        return table.select(_others(table.column_names))
    if suffix not in CSV_SUFFIXES:
        with pq.ParquetFile(file) as parquet:
            return parquet.read(columns=_others(parquet.schema_arrow.names))
    table = pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter(file), newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True),
    )
    return table.select(_others(table.column_names))
