"""A CSV, parquet or JSON Lines file as an Arrow table of the columns that describe images, and errors that name the
line."""

from __future__ import annotations

import csv
import difflib
import itertools
from array import array
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from divcon.data.hugging_face import named_labels
from divcon.errors import DataError

CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = CSV_SUFFIXES + PARQUET_SUFFIXES + JSON_SUFFIXES

BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
"""Left, top, right, bottom, under open-metric-learning's names."""
COLUMNS = ("path", "label", "split", "is_query", "is_gallery", "camera", "sequence", *BOX_COLUMNS)
"""All that is read as it is; other columns may be there."""
FILE_NAME = "file_name"
"""The column path under the name that Hugging Face's metadata files give it."""
IMAGE_COLUMN = "image"
"""Encoded images in place of files, in a parquet; ``encoded_images`` reads it."""
VECTOR_COLUMN = "embedding"
"""Vectors in place of images, in a parquet; ``vectors_reader`` reads it."""

_MIXED_UP = "a table is a CSV in UTF-8, a parquet file, or JSON Lines"


def load_table(path: Path) -> pa.Table:
    """The columns among COLUMNS that the file has, row for row; of a CSV as text, with null for empty fields.

    A CSV may be separated by commas, semicolons or tabs, and start with a byte order mark. The column ``file_name`` is
    ``path`` where there is no other. Labels that a parquet of Hugging Face's ``datasets`` numbers are given their
    names.

    Raises:
        DataError: no such file, not such a table, no rows, rows of unequal length, text that is not UTF-8, vectors
            that are not in a parquet.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    suffix = path.suffix.lower()
    load = _load_csv if suffix in CSV_SUFFIXES else _load_json if suffix in JSON_SUFFIXES else _load_parquet
    table = load(path)
    if not len(table):
        raise DataError(f"{path}: the table has no rows")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_nested(column.type):
            raise DataError(f"{path}: the column {name!r} holds {column.type}; give it one text or number a row")
        try:
            column.validate(full=True)  # Arrow reads text without looking whether it is UTF-8, but for that of a CSV
        except pa.ArrowException as error:
            raise DataError(f"{path}: the column {name!r} is damaged ({first_line(error)}); save it as UTF-8") from None
    return table.rename_columns({FILE_NAME: "path"}) if FILE_NAME in table.column_names else table


def is_parquet(path: Path) -> bool:
    """Whether the file is taken for a parquet."""
    return path.suffix.lower() not in CSV_SUFFIXES + JSON_SUFFIXES


def require_columns(path: Path, read: Collection[str], names: Iterable[str], hint: str) -> None:
    """Raise DataError if one of the ``names`` is not among the columns ``read``, naming those the file has."""
    missing = [name for name in names if name not in read]
    if not missing:
        return
    present = column_names(path)
    by_fold = {name.strip().casefold(): name for name in present}
    near = difflib.get_close_matches(missing[0], by_fold, n=1, cutoff=0.5)
    advice = f"rename {by_fold[near[0]]!r}, if that is it" if near else hint
    raise DataError(f"{path}: there is no column {missing[0]!r} among {', '.join(map(repr, present[:20]))}; {advice}")


def column_names(path: Path) -> list[str]:
    """The names of all columns of the file."""
    if path.suffix.lower() in CSV_SUFFIXES:
        return _header(path)
    return pq.read_schema(path).names if is_parquet(path) else _read_json(path).column_names


def csv_line(source: str | Path, row: int) -> int:
    """The line (from 1) on which record ``row`` (from 0, after the header) of a CSV ends; quoted newlines are
    counted, blank lines are no records."""
    lines = _record_lines(str(source), Path(source).stat().st_mtime_ns)
    return lines[row] if row < len(lines) else row + 2


@lru_cache(maxsize=8)
def _record_lines(source: str, changed: int) -> array[int]:
    """The lines of all records; kept, because whoever names one row of a table often names thousands."""
    with Path(source).open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file, delimiter=delimiter(Path(source)))
        lines = array("q", (reader.line_num for record in reader if record))
    return lines[1:]


def json_line(source: str | Path, row: int) -> int:
    """The line (from 1) of object ``row`` (from 0) of a JSON Lines file; blank lines are no objects."""
    with Path(source).open("rb") as file:
        lines = (number for number, line in enumerate(file, 1) if line.strip())
        return next(itertools.islice(lines, row, None), row + 1)


def _load_csv(path: Path) -> pa.Table:
    with path.open("rb") as file:
        start = file.read(8192)
    if not start.strip():
        raise DataError(f"{path}: the file is empty")
    if b"\0" in start:
        raise DataError(f"{path}: this is not text in UTF-8, so no CSV; {_MIXED_UP}")
    header = _header(path)
    _no_vectors(path, header)
    wanted = _wanted(header)
    twice = next((name for name in wanted if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: there are two columns {twice!r}; keep one")
    if not wanted:
        # Arrow reads every column when none is named.
        wanted = header
    try:
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter(path), newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowException as error:
        raise DataError(_what_is_wrong(path, error)) from None


def _load_parquet(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as parquet:
            schema = parquet.schema_arrow
            table = parquet.read(columns=_wanted(schema.names))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: this is not a parquet file ({first_line(error)}); {_MIXED_UP}") from None
    return named_labels(path, schema, table)


def _load_json(path: Path) -> pa.Table:
    table = _read_json(path)
    _no_vectors(path, table.column_names)
    return table.select(_wanted(table.column_names))


def _read_json(path: Path) -> pa.Table:
    if not path.stat().st_size:
        raise DataError(f"{path}: the file is empty")
    try:
        table = pyarrow.json.read_json(path)
        table.column_names  # noqa: B018 — raises where a name is not UTF-8
        return table
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: this is not JSON Lines, one object a line ({first_line(error)})") from None


def _wanted(names: list[str]) -> list[str]:
    other = FILE_NAME if "path" not in names and FILE_NAME in names else "path"
    return [name for name in (other, *COLUMNS[1:]) if name in names]


def _no_vectors(path: Path, names: list[str]) -> None:
    if VECTOR_COLUMN in names:
        raise DataError(
            f"{path}: vectors are read from a parquet, and this has the column {VECTOR_COLUMN!r}; write it as parquet, "
            "or take the column out to use the images"
        )


def _header(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            records = csv.reader(file, delimiter=delimiter(path))
            return next((record for record in records if record), [])
    except UnicodeDecodeError as error:
        raise DataError(_what_is_wrong(path, error)) from None
    except csv.Error as error:
        raise DataError(f"{path}: this is not a CSV ({error}); {_MIXED_UP}") from None


def delimiter(path: Path) -> str:
    """Comma, semicolon or tab: what the header has most of."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = next((line for line in file if line.strip()), "")
    return max(",;\t", key=header.count)


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Where a CSV cannot be read and why; Arrow's own message counts in its blocks."""
    content = path.read_bytes()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        line = content.count(b"\n", 0, bad.start) + 1
        return f"{path} line {line}: this is not UTF-8 (byte 0x{content[bad.start]:02x}); save the file as UTF-8"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter(path), strict=True)
            records = (record for record in reader if record)
            width = len(next(records, []))
            for record in records:
                if len(record) != width:
                    return (
                        f"{path} line {reader.line_num}: {len(record)} fields, where the header has {width}; "
                        "put a field that contains the separator in double quotes"
                    )
    except csv.Error as bad:
        return f"{path}: this is not a CSV ({bad})"
    return f"{path}: this is not a CSV that can be read ({first_line(error)})"


def first_line(error: Exception) -> str:
    """What an error of Arrow's says, without the stack of its own that may follow."""
    return (str(error).splitlines() or [type(error).__name__])[0]
