"""Load tables: CSV, parquet, JSON Lines and Arrow files, as Arrow tables of the columns that describe images."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq

from divcon.data.columns import (
    BOX_COLUMNS,
    COLUMNS,
    FILE_NAME,
    GUESS,
    IMAGE_COLUMN,
    VECTOR_COLUMN,
    Columns,
    Kind,
    Roles,
    is_image_name,
    kind_of,
    kinds_of,
    missing_column,
    roles_of,
    split_flag,
)
from divcon.data.labels import label_text, read_labels
from divcon.data.table_format import (
    ARROW_SUFFIXES,
    CSV_SUFFIXES,
    JSON_SUFFIXES,
    PARQUET_SUFFIXES,
    TABLE_SUFFIXES,
    Format,
    content_of,
    format_of,
    is_table,
    open_bytes,
    open_text,
    source_for_arrow,
    table_suffix,
)
from divcon.errors import DataError, first_line
from divcon.runtime.copies import open_binary, opened, size_of
from divcon.runtime.places import text_of

__all__ = [
    "BOX_COLUMNS",
    "COLUMNS",
    "CSV_SUFFIXES",
    "FILE_NAME",
    "IMAGE_COLUMN",
    "JSON_SUFFIXES",
    "METADATA",
    "PARQUET_SUFFIXES",
    "TABLE_SUFFIXES",
    "VECTOR_COLUMN",
    "VECTOR_SUFFIXES",
    "Columns",
    "SourceName",
    "TableFile",
    "Tables",
    "array_column",
    "is_in_memory",
    "is_parquet",
    "is_table",
    "load_file",
    "load_table",
    "load_tables",
    "metadata_of",
    "require_columns",
    "tables_in_memory",
    "where_in",
]

pc: Any = pyarrow.compute
"""Any: pyarrow creates its functions at import, so type checkers do not know them."""

METADATA = b"huggingface"
"""The key of the schema's metadata: JSON, of which ``info.features`` describes the columns."""


def named_labels(
    path: str | Path, column: pa.ChunkedArray, names: Sequence[str] | None, *, unknown_is_missing: bool = False
) -> pa.ChunkedArray:
    """The names of the labels in place of their numbers, if there are names (of a ``ClassLabel``).

    Args:
        unknown_is_missing: take -1, which ``datasets`` writes for an unknown label, for a missing one.

    Raises:
        DataError: a number has no name; the message has the row.
    """
    if names is None or not pa.types.is_integer(column.type):
        return column
    if unknown_is_missing:
        column = pc.if_else(pc.equal(column, -1), pa.scalar(None, column.type), column)
    inside = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
    bad = ~pc.fill_null(inside, True).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        more = f" (in {bad.sum():,} rows)" if bad.sum() > 1 else ""
        raise DataError(
            f"{path} row {row}: the label is {column[row].as_py()}, and the file's metadata names 0 to "
            f"{len(names) - 1}{more}; take such rows out, give them a label, or leave out those of -1 "
            "(`on_missing_label=skip`)"
        )
    indices = pa.chunked_array([chunk.cast(pa.int32()) for chunk in column.chunks], pa.int32())
    values = pa.array(names, pa.string())
    chunks = [pa.DictionaryArray.from_arrays(chunk, values) for chunk in indices.chunks]
    return pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a column's numbers, if the schema's metadata has them (``ClassLabel``)."""
    try:
        feature = json.loads((schema.metadata or {})[METADATA])["info"]["features"][column]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


_MIXED_UP = "a table is a CSV in UTF-8, a parquet file, or JSON Lines"


@dataclass(frozen=True)
class Loaded:
    """One loaded file."""

    path: Path
    format: Format
    rows: pa.Table
    """The columns among COLUMNS, under these names; a CSV's as text, with null for empty fields."""
    present: tuple[str, ...]
    """The names of all columns."""
    roles: Roles
    whole: pa.Table | None = None
    """All columns, if the file is not a parquet, whose images and vectors are read later."""

    @property
    def as_said(self) -> bool:
        """Whether the format is the one that the file's name says."""
        suffixes = {
            "csv": CSV_SUFFIXES,
            "json": JSON_SUFFIXES,
            "parquet": PARQUET_SUFFIXES,
            "arrow": ARROW_SUFFIXES,
        }
        return table_suffix(self.path) in suffixes[self.format]


def load_table(path: Path, chosen: Columns = GUESS) -> pa.Table:
    """The columns among COLUMNS that the file has (see `load_file`)."""
    return load_file(path, chosen).rows


def load_file(
    path: Path,
    chosen: Columns = GUESS,
    *,
    unknown_is_missing: bool = False,
    constants: Sequence[tuple[str, str | None]] = (),
    one_of_several: bool = False,
) -> Loaded:
    """Load a file's columns that describe images (see `divcon.data.columns.roles_of`).

    The format is that of the content, whatever the name says; compressed files and text in UTF-16 are read. A CSV may
    be separated by commas, semicolons, tabs or bars, and start with a byte order mark. JSON may be one object a line, a
    list of objects, or an object of columns. Numbers of labels become names where the file has them (``ClassLabel``).

    Args:
        constants: more columns, with the one value of all rows.
        one_of_several: a file without rows is no error.

    Raises:
        DataError: there is no such file, or it is no table (the message says what it is), has no rows, rows of unequal
            length, or text that is not UTF-8.
        ConfigError: there is no column of a chosen name.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    kind = content_of(path).format
    if kind == "csv":
        loaded = _load_csv(path, chosen, constants)
    elif kind == "parquet":
        loaded = _load_parquet(path, chosen, constants)
    else:
        whole = _with(_read_json(path) if kind == "json" else _read_arrow(path), constants)
        roles = roles_of(str(path), list(kinds_of(whole.schema).items()), chosen, first=partial(_first, whole))
        loaded = Loaded(path, kind, _renamed(whole, roles), tuple(whole.column_names), roles, whole)
    rows = loaded.rows
    if not len(rows) and not one_of_several:
        raise DataError(f"{path}: the table has no rows")
    if "label" in loaded.roles.names and loaded.format in ("parquet", "arrow"):
        schema = loaded.whole.schema if loaded.whole is not None else pq.read_schema(opened(path))
        names = class_names(schema, loaded.roles.names["label"])
        labels = named_labels(path, rows["label"], names, unknown_is_missing=unknown_is_missing)
        rows = rows.set_column(rows.column_names.index("label"), "label", labels)
    _check_columns(str(path), rows, loaded.roles)
    loaded = replace(loaded, rows=rows)
    if loaded.roles.kind == "encoded" and (paths := _paths_alone(loaded)) is not None:
        rows, roles = _with_paths(rows, loaded.roles, paths)
        loaded = replace(loaded, rows=rows, roles=roles)
    return loaded


def _paths_alone(loaded: Loaded) -> pa.ChunkedArray | None:
    """The paths in a column of encoded images that has no bytes, as ``datasets`` writes it for images in files."""
    name = loaded.roles.names["image"]
    if loaded.whole is not None:
        return paths_alone(loaded.whole[name])
    with pq.ParquetFile(opened(loaded.path)) as parquet:
        kind = parquet.schema_arrow.field(name).type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return None
        # Stops at the first image, so that images are not read to know that they are there. The sizes in the metadata
        # would say it too, but PyArrow aborts on damaged statistics, where a read raises.
        batches = []
        try:
            for batch in parquet.iter_batches(batch_size=64, columns=[name]):
                if paths_alone(column := pa.chunked_array([batch.column(0)])) is None:
                    return None
                batches += column.chunks
        except (pa.ArrowException, OSError):
            return None  # which the reader of images reports
        return paths_alone(pa.chunked_array(batches, kind))


def paths_alone(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The paths in a column of structs of bytes and path, if all have a path and none has bytes."""
    kind = column.type
    if not pa.types.is_struct(kind) or min(kind.get_field_index("bytes"), kind.get_field_index("path")) < 0:
        return None
    if pc.struct_field(column, "bytes").null_count < len(column) or not len(column):
        return None
    paths = pc.struct_field(column, "path")
    return None if paths.null_count else paths.cast(pa.string())


def _with_paths(rows: pa.Table, roles: Roles, paths: pa.ChunkedArray) -> tuple[pa.Table, Roles]:
    """The rows as names of files."""
    names = {role: name for role, name in roles.names.items() if role != "image"}
    names["path"] = roles.names["image"]
    if "path" in rows.column_names:
        rows = rows.drop_columns(["path"])
    rows = rows.append_column("path", paths)
    guessed = tuple(dict.fromkeys("path" if role == "image" else role for role in roles.guessed))
    return rows, replace(roles, names=names, guessed=guessed)


def _with(table: pa.Table, constants: Sequence[tuple[str, str | None]]) -> pa.Table:
    """The table with more columns, each of one value, unless it has them."""
    for name, value in constants:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * len(table), pa.string()))
    return table


def _check_columns(where: str, rows: pa.Table, roles: Roles) -> None:
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        actual = roles.names.get(name, name)
        if pa.types.is_nested(column.type):
            several = "; of several labels a row, choose or make a column that has one" if name == "label" else ""
            message = f"{where}: the column {actual!r} holds {column.type}; give it one text or number a row{several}"
            raise DataError(message)
        try:
            column.validate(full=True)  # Arrow reads text without looking whether it is UTF-8, but for that of a CSV
        except pa.ArrowException as error:
            message = f"{where}: the column {actual!r} is damaged ({first_line(error)}); save it as UTF-8"
            raise DataError(message) from None


def _renamed(table: pa.Table, roles: Roles) -> pa.Table:
    """The columns among COLUMNS, under these names; truth values that stand for a split, as its names."""
    names = [role for role in COLUMNS if role in roles.names]
    rows = table.select([table.column_names.index(roles.names[role]) for role in names])
    if not names:
        return table.select([])
    rows = rows.rename_columns(names)
    if (sides := split_flag(roles.names.get("split", ""))) is not None:
        flags = {"true": sides[0], "1": sides[0], "1.0": sides[0], "false": sides[1], "0": sides[1], "0.0": sides[1]}
        values = [flags.get(str(value).strip().lower(), value) for value in rows["split"].to_pylist()]
        texts = pa.array([None if value is None else str(value) for value in values], pa.string())
        rows = rows.set_column(names.index("split"), "split", texts)
    return rows


def is_parquet(path: Path) -> bool:
    """Whether the file is a parquet."""
    return format_of(path) == "parquet"


def require_columns(
    path: str | Path, read: Collection[str], names: Iterable[str], hint: str, present: Sequence[str] | None = None
) -> None:
    """Raise DataError if one of the ``names`` is not among the columns ``read``, naming those the table has.

    Args:
        present: the names of all columns; None: as the file has them.
    """
    missing = [name for name in names if name not in read]
    if missing:
        raise missing_column(path, missing[0], column_names(Path(path)) if present is None else present, hint)


def column_names(path: Path) -> list[str]:
    """The names of all columns of the file."""
    kind = content_of(path).format
    if kind == "csv":
        return _header(path)
    return list(pq.read_schema(opened(path)).names if kind == "parquet" else load_file(path).present)


def csv_line(source: str | Path, row: int) -> int:
    """The line (from 1) on which record ``row`` (from 0, after the header) of a CSV ends; quoted newlines are
    counted, blank lines are no records."""
    lines = _record_lines(str(source), Path(source).stat().st_mtime_ns)
    return lines[row] if row < len(lines) else row + 2


@lru_cache(maxsize=8)
def _record_lines(source: str, changed: int) -> array[int]:
    """The lines of all records; cached, because messages that name one row of a table often name thousands."""
    path = Path(source)
    with open_text(path, "replace") as file:
        reader = csv.reader(file, delimiter=delimiter(path))
        lines = array("q", (reader.line_num for record in reader if record))
    return lines[1 + lines_before_header(path) :]


def json_line(source: str | Path, row: int) -> int | None:
    """The line (from 1) of object ``row`` (from 0) of a JSON Lines file; blank lines are no objects. None: the file is
    one list or object."""
    with open_bytes(Path(source)) as file:
        lines = ((number, line.strip()) for number, line in enumerate(file, 1) if line.strip())
        number, line = next(itertools.islice(lines, row, None), (0, b""))
    return number if line.startswith(b"{") and line.endswith(b"}") else None


def _load_csv(path: Path, chosen: Columns, constants: Sequence[tuple[str, str | None]]) -> Loaded:
    header = _header(path)
    more: list[tuple[str, Kind]] = [(name, "text") for name, _ in constants if name not in header]
    values = dict(zip(header, _first_record(path), strict=False))
    kinds = kinds_in_csv(path, header) + more
    roles = roles_of(str(path), kinds, chosen, text_alone=True, first=values.get)
    wanted = [name for name in dict.fromkeys(roles.names.values()) if name in header]
    if not wanted:
        # Arrow reads every column when none is named.
        wanted = header
    try:
        table = pyarrow.csv.read_csv(
            source_for_arrow(path),
            read_options=pyarrow.csv.ReadOptions(skip_rows=lines_before_header(path)),
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
    if _is_padded(header):
        table = pa.table({name: pc.utf8_trim_whitespace(table[name]) for name in table.column_names})
    table = _with(table, constants)
    whole = None
    if (vectors := roles.names.get("embedding")) is not None:
        column = _vectors_in_text(path, table[vectors], vectors)
        whole = table.set_column(table.column_names.index(vectors), vectors, column)
    return Loaded(path, "csv", _renamed(table, roles), tuple(header), roles, whole)


def kinds_in_csv(path: Path, header: Sequence[str]) -> list[tuple[str, Kind]]:
    """The columns; those whose first value is a list of numbers are vectors, all others text."""
    values = [*_first_record(path), *[""] * len(header)]
    return [(name, "vector" if _LIST.fullmatch(value) else "text") for name, value in zip(header, values, strict=False)]


def _first_record(path: Path) -> list[str]:
    """The values of a CSV's first row."""
    try:
        with open_text(path, "replace") as file:
            records = (record for record in csv.reader(file, delimiter=delimiter(path)) if record)
            return next(itertools.islice(records, 1 + lines_before_header(path), None), [])
    except csv.Error:
        return []  # the reader says where it is wrong


def _first(table: pa.Table, name: str) -> Any:
    """The first value of a column."""
    return next(iter(table[name].slice(0, 1).to_pylist()), None)


_LIST = re.compile(r"\s*[\[(]\s*[-+0-9.][^\])]*[\])]\s*", re.DOTALL)
"""A list of numbers as Python, NumPy and JSON write it."""


def _vectors_in_text(path: Path, column: pa.ChunkedArray, name: str) -> pa.Array:
    vectors: list[np.ndarray | None] = []
    for row, text in enumerate(column.to_pylist()):
        words = re.split(r"[\s,;]+", (text or "").strip(" \t\n[]()"))
        try:
            vectors.append(np.array([float(word) for word in words]) if text else None)
        except ValueError:
            cut = "NumPy has cut it short with '...'" if "..." in text else "it is no list of numbers"
            raise DataError(
                f"{where_in(str(path), row)}the vector in the column {name!r} cannot be read: {cut}; write vectors "
                "as parquet, or as numbers in square brackets"
            ) from None
    return pa.array(vectors, pa.list_(pa.float64()))


def _is_padded(header: Sequence[str]) -> bool:
    """Whether there is a space after each separator, which then is no part of a value."""
    return len(header) > 1 and all(name.startswith(" ") for name in header[1:])


def _load_parquet(path: Path, chosen: Columns, constants: Sequence[tuple[str, str | None]]) -> Loaded:
    try:
        with pq.ParquetFile(opened(path)) as parquet:
            schema = parquet.schema_arrow
            kinds = kinds_of(schema)
            more: list[tuple[str, Kind]] = [(name, "text") for name, _ in constants if name not in kinds]
            columns = [*((name, kinds[name]) for name in schema.names), *more]
            roles = roles_of(str(path), columns, chosen, first=partial(_first_in_parquet, parquet))
            wanted = list(dict.fromkeys(roles.names[role] for role in COLUMNS if role in roles.names))
            table = _with(parquet.read(columns=[name for name in wanted if name in kinds]), constants)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(_damaged_parquet(path, error)) from None
    return Loaded(path, "parquet", _renamed(table, roles), tuple(schema.names), roles)


def _first_in_parquet(parquet: pq.ParquetFile, name: str) -> Any:
    """The first value of a column."""
    batch = next(parquet.iter_batches(batch_size=1, columns=[name]), None)
    return None if batch is None or not len(batch) else batch.column(0)[0].as_py()


def _parquet_column(path: Path, name: str) -> pa.Table:
    with pq.ParquetFile(opened(path)) as parquet:
        return parquet.read(columns=[name])


def _damaged_parquet(path: Path, error: Exception) -> str:
    with open_binary(path) as file:
        file.seek(max(0, size_of(path) - 4))
        end = file.read()
    if end != b"PAR1":
        return f"{path}: this is not a parquet file that can be read: its end is missing: it was cut off; get it again"
    return f"{path}: this is not a parquet file that can be read ({first_line(error)}); make it again"


def _read_arrow(path: Path) -> pa.Table:
    try:
        source = pa.memory_map(str(path)) if not content_of(path).compression else source_for_arrow(path)
        with source if isinstance(source, pa.NativeFile) else pa.input_stream(source) as file:
            start = file.read(6)
            file.seek(0)
            reader = pa.ipc.open_file(file) if start == b"ARROW1" else pa.ipc.open_stream(file)
            return _with_plain_dictionaries(reader.read_all())
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: this is not an Arrow file that can be read ({first_line(error)})") from None


def _with_plain_dictionaries(table: pa.Table) -> pa.Table:
    """The table with categories as columns of the usual text: polars writes them as views, whose dictionaries Arrow
    cannot decode."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type) and pa.types.is_string_view(field.type.value_type):
            chunks = [
                pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.large_string())).cast(
                    pa.large_string()
                )
                for chunk in table.column(place).chunks
            ]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, pa.large_string()))
    return table


def _read_json(path: Path) -> pa.Table:
    with open_bytes(path) as file:
        start = file.read(256).lstrip()
    if start.startswith(b"{"):
        try:
            table = pyarrow.json.read_json(source_for_arrow(path))
            table.column_names  # noqa: B018 — raises where a name is not UTF-8
            # Arrow takes text for a time where it looks like one; and one object may hold all columns.
            if len(table) != 1 and not any(map(pa.types.is_temporal, table.schema.types)):
                return table
        except (pa.ArrowException, UnicodeDecodeError):
            pass  # Python's reader takes more, and says in which line it stops
    return _json_by_python(path)


def _json_by_python(path: Path) -> pa.Table:
    """The table in a JSON file: an object a line, a list of objects, or an object of columns."""
    with open_bytes(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} line {line}: this is not JSON Lines in UTF-8 (byte 0x{content[error.start]:02x})"
        ) from None
    try:
        return _table_of_rows(path, _json_rows(path, text))
    except RecursionError:
        raise DataError(f"{path}: this is not JSON Lines, one object a line (it is nested too deeply)") from None


def _json_rows(path: Path, text: str, parse_float: Callable[[str], float] | None = None) -> list[dict[str, Any]]:
    try:
        value = json.loads(text, parse_float=parse_float)
    except json.JSONDecodeError:
        value = None
    if isinstance(value, list):
        rows = value
    elif isinstance(value, dict) and {"images", "annotations"} <= value.keys():
        raise DataError(f"{path}: this is a file of COCO annotations, not a table; write a table of images and labels")
    elif isinstance(value, dict) and _is_answer(value):
        raise DataError(
            f"{path}: this is a server's answer, not a table: {text.strip()[:120]!r}; download the file again"
        )
    elif isinstance(value, dict):
        rows = _rows_of_columns(value)
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line, parse_float=parse_float))
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path} line {number}: this is not JSON Lines, one object a line ({error.msg} in column "
                    f"{error.colno})"
                ) from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"{path} entry {number}: this is a {type(row).__name__}, where JSON Lines has an object with the "
                "columns' names"
            )
    return rows


def _is_answer(value: dict[str, Any]) -> bool:
    """Whether it is what servers say where they do not send a file."""
    plain = all(isinstance(held, (str, int, bool, type(None))) for held in value.values())
    return plain and bool({"error", "detail", "message", "Error", "Message"} & value.keys())


def _rows_of_columns(value: dict[str, Any]) -> list[Any]:
    """The rows of an object of columns, as pandas and others write it; or of one row."""
    if len(value) > 1 and all(map(is_image_name, value)):  # the label of each file
        return [{"path": name, "label": label} for name, label in value.items()]
    if len(value) > 1 and all(isinstance(names, list) and all(map(is_image_name, names)) for names in value.values()):
        return [{"path": name, "label": label} for label, names in value.items() for name in names]  # files of each
    columns, data = value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list):  # pandas, orient="split"
        return [dict(zip(map(str, columns), row, strict=False)) for row in data]
    if len(value) == 1 and isinstance(inner := next(iter(value.values())), list) and inner[:1]:
        return inner if isinstance(inner[0], dict) else [value]  # {"data": [{...}, ...]}
    if isinstance(data, list) and data and isinstance(data[0], dict):  # pandas, orient="table"
        return data
    if value and all(isinstance(column, dict) for column in value.values()):  # pandas, orient="columns"
        keys = list(dict.fromkeys(key for column in value.values() for key in column))
        return [{name: column.get(key) for name, column in value.items()} for key in keys]
    scalars = any(not isinstance(column, list) for column in value.values())
    lengths = {len(column) for column in value.values() if isinstance(column, list)}
    if scalars or len(lengths) != 1:
        return [value]
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _table_of_rows(name: str | Path, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The table of rows that may lack some columns; a column of values of several types is text."""
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    columns = {key: _array(str(name), key, [row.get(key) for row in rows]) for key in names}
    return pa.table(columns)


def _array(name: str, column: str, values: Sequence[Any]) -> pa.Array:
    """The values as an Arrow array; None and NaN are null."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        try:
            return pa.array([label_text(value) for value in values], pa.string())
        except ValueError:
            # Lists and objects of several forms are no column of images; the metadata of an index is read apart.
            if column not in COLUMNS and all(isinstance(value, (list, dict, type(None))) for value in values):
                return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
            raise DataError(f"{name}: the column {column!r} cannot be read ({first_line(error)})") from None


def _header(path: Path) -> list[str]:
    try:
        with open_text(path) as file:
            records = csv.reader(file, delimiter=delimiter(path))
            return next(itertools.islice((record for record in records if record), lines_before_header(path), None), [])
    except UnicodeDecodeError as error:
        raise DataError(_what_is_wrong(path, error)) from None
    except csv.Error as error:
        raise DataError(f"{path}: this is not a CSV ({error}); {_MIXED_UP}") from None


_SEPARATOR_LINE = re.compile(r"(?i)\"?sep=(.)\"?")
"""The first line in which Excel says what separates the columns."""


def _first_lines(path: Path) -> list[str]:
    """The first two lines that are not empty."""
    with open_text(path, "replace") as file:
        return list(itertools.islice((line.strip("\r\n") for line in file if line.strip()), 2))


def lines_before_header(path: Path) -> int:
    """1 where the first line only says what separates the columns, else 0."""
    lines = _first_lines(path)
    return int(bool(lines) and _SEPARATOR_LINE.fullmatch(lines[0].strip()) is not None)


def delimiter(path: Path) -> str:
    """Comma, semicolon, tab or bar: what the first line says (``sep=;``), or is most frequent in the header."""
    lines = _first_lines(path) or [""]
    said = _SEPARATOR_LINE.fullmatch(lines[0].strip(" "))
    return said[1] if said else max(",;\t|", key=lines[0].count)


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Where and why a CSV cannot be read; Arrow's own message does not have the line."""
    with open_bytes(path) as file:
        content = file.read()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        line = content.count(b"\n", 0, bad.start) + 1
        return (
            f"{path} line {line}: this is not UTF-8 (byte 0x{content[bad.start]:02x}), but an older encoding such as "
            "Windows-1252; save the file as UTF-8"
        )
    try:
        with open_text(path) as file:
            reader = csv.reader(file, delimiter=delimiter(path), strict=True)
            records = (record for record in reader if record)
            width = len(next(itertools.islice(records, lines_before_header(path), None), []))
            for record in records:
                if len(record) != width:
                    return (
                        f"{path} line {reader.line_num}: {len(record)} fields, where the header has {width}; "
                        "put a field that contains the separator in double quotes"
                    )
    except csv.Error as bad:
        return f"{path}: this is not a CSV ({bad})"
    return f"{path}: this is not a CSV that can be read ({first_line(error)})"


class SourceName(str):
    """The name of what was read: a table, a folder, or columns in memory. For a folder of tables it also has their
    names: rows are numbered through all of them."""

    tables: tuple[tuple[str, int], ...]
    """Each table, and the number of its first row."""
    in_memory: bool
    """Whether it names columns in memory."""
    columns: pa.Table | None
    """Of columns in memory those that `metadata_of` returns."""

    def __new__(
        cls,
        name: str,
        tables: tuple[tuple[str, int], ...] = (),
        *,
        in_memory: bool = False,
        columns: pa.Table | None = None,
    ) -> SourceName:
        source = super().__new__(cls, name)
        source.tables = tables
        source.in_memory = in_memory
        source.columns = columns
        return source


def is_in_memory(source: str) -> bool:
    """Whether it names columns in memory, and no file."""
    return isinstance(source, SourceName) and source.in_memory


def where_in(source: str, row: int) -> str:
    """``products.csv line 17: `` for a row of a CSV, ``products.parquet row 15: `` of a parquet or of columns in
    memory, nothing of a folder."""
    tables = source.tables if isinstance(source, SourceName) else ()
    if is_in_memory(source):
        return f"{source} row {row}: "
    if tables:
        source, start = tables[bisect_right(tables, row, key=lambda table: table[1]) - 1]
        row -= start
    shown = text_of(source)
    if (not is_table(source) and table_suffix(source) not in VECTOR_SUFFIXES) or Path(source).is_dir():
        return ""
    kind = format_of(source) if is_table(source) else ""
    if kind == "csv":
        return f"{shown} line {csv_line(source, row)}: "
    if kind == "json":
        line = json_line(source, row)
        return f"{shown} line {line}: " if line is not None else f"{shown} entry {row + 1}: "
    return f"{shown} row {row}: "


VECTOR_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")
"""The endings of files of vectors, whose rows are numbered."""


TableKind = Literal["files", "encoded", "vectors"]


@dataclass(frozen=True)
class TableFile:
    """One of several tables that are read as one."""

    path: Path
    split: str | None = None
    """The split of its rows, if it has no column ``split``."""
    folder: str = ""
    """The folder that its relative paths start from, relative to the common root."""
    constants: tuple[tuple[str, str | None], ...] = ()
    """Columns that the file's folder says, as ``label=cat`` of Spark, with the value of all its rows."""


@dataclass(frozen=True)
class Tables:
    """The rows of all files, in order."""

    name: str
    source: SourceName
    files: tuple[Path, ...]
    kind: TableKind
    """Whether rows name files, or hold encoded images (``image``) or vectors (``embedding``)."""
    rows: pa.Table
    """The columns among COLUMNS."""
    columns: tuple[frozenset[str], ...]
    """The names of each file's columns among COLUMNS."""
    root: str
    """The folder that relative paths start from."""
    present: tuple[tuple[str, ...], ...] = ()
    """The names of all columns of each file, or of the table in memory."""
    in_memory: pa.Table | None = None
    """The column of images or vectors (IMAGE_COLUMN or VECTOR_COLUMN), where it is not read from parquet files (of
    columns in memory, beside all the others); empty for names of files."""
    untyped: bool = False
    """Whether all files are of a format that has text alone (CSV)."""
    value_column: str = ""
    """The name of the column of images or vectors in the parquet files."""
    guessed: frozenset[str] = frozenset()
    """The columns among COLUMNS that were guessed from a name other than divcon's."""
    roles: tuple[Roles, ...] = ()
    """Of each file, or of the table in memory."""
    odd: tuple[str, ...] = ()
    """Notes of files that hold another format than their names say, and of a column that is no split."""

    def notes(self) -> list[str]:
        """What a person should know of how the tables were read, each note once."""
        return list(dict.fromkeys([*(note for roles in self.roles for note in roles.notes(self.guessed)), *self.odd]))

    def require(self, names: Iterable[str], hint: str) -> None:
        """Raise DataError if a table lacks a column, naming those it has."""
        for where, columns, present in zip(self.files or (self.source,), self.columns, self.present, strict=True):
            require_columns(where, columns, names, hint, present)


def load_tables(
    name: str,
    source: str,
    files: Sequence[TableFile],
    root: str,
    chosen: Columns = GUESS,
    *,
    unknown_is_missing: bool = False,
) -> Tables:
    """Load several files as one table.

    Raises:
        DataError, ConfigError: as in ``load_file``; or the files are of several kinds.
    """
    loaded, tables, starts, start = [], [], [], 0
    for file in files:
        one = load_file(
            file.path,
            chosen,
            unknown_is_missing=unknown_is_missing,
            constants=file.constants,
            one_of_several=len(files) > 1,
        )
        loaded.append(one)
        starts.append((str(file.path), start))
        start += len(one.rows)
        several = len(files) > 1 or file.split or file.folder or file.constants
        tables.append(_as_one_of_several(one.rows, file) if several else one.rows)
    if not start:
        raise DataError(f"{source}: the tables have no rows")
    first = loaded[0]
    for one in loaded:
        if one.roles.kind != first.roles.kind:
            raise DataError(
                f"{source}: {first.path.name} holds {_IN_WORDS[first.roles.kind]}, and {one.path.name} "
                f"{_IN_WORDS[one.roles.kind]}; use files of one kind"
            )
    guessed = frozenset(role for one in loaded for role in one.roles.guessed)
    misnamed = [
        f"{one.path}: holds {_FORMATS[one.format]}, whatever its name says" for one in loaded if not one.as_said
    ]
    values, value_column = _values_of(loaded)
    return Tables(
        name=name,
        source=SourceName(source, tuple(starts) if len(files) > 1 or str(files[0].path) != source else ()),
        files=tuple(file.path for file in files),
        kind=first.roles.kind,
        rows=tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default"),
        columns=tuple(frozenset(table.column_names) for table in tables),
        root=root,
        present=tuple(one.present for one in loaded),
        in_memory=values,
        untyped=all(one.format == "csv" for one in loaded),
        value_column=value_column,
        guessed=guessed,
        roles=tuple(one.roles for one in loaded),
        odd=tuple(misnamed),
    )


_FORMATS = {"csv": "a CSV", "json": "JSON", "parquet": "a parquet", "arrow": "an Arrow file"}


def _values_of(loaded: Sequence[Loaded]) -> tuple[pa.Table | None, str]:
    """The column of images or vectors of all files, in memory, unless it can be read from parquet files later; and its
    name in these."""
    kind = loaded[0].roles.kind
    if kind == "files":
        return None, ""
    role, column = ("embedding", VECTOR_COLUMN) if kind == "vectors" else ("image", IMAGE_COLUMN)
    names = {one.roles.names[role] for one in loaded}
    if len(names) == 1 and all(one.whole is None for one in loaded):
        return None, names.pop()
    chunks = []
    for one in loaded:
        whole = one.whole if one.whole is not None else _parquet_column(one.path, one.roles.names[role])
        chunks += whole[one.roles.names[role]].chunks
    kinds = {chunk.type for chunk in chunks}
    if len(kinds) > 1 and kind == "vectors":
        chunks = [_plain_lists(chunk) for chunk in chunks]
    elif len(kinds) > 1:
        raise DataError(f"{loaded[0].path.parent}: its files hold images in two kinds of columns; write them alike")
    return pa.table({column: pa.chunked_array(chunks)}), column


def _plain_lists(chunk: pa.Array) -> pa.Array:
    storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    return storage.cast(pa.list_(pa.float64()))


def tables_in_memory(
    name: str,
    columns: Any,
    root: str,
    chosen: Columns = GUESS,
    *,
    unknown_is_missing: bool = False,
) -> Tables:
    """Use columns in memory as loaded tables: a mapping of lists or arrays, a pyarrow table, a data frame.

    Raises:
        DataError: no rows, columns of several lengths, or values that are no column.
        ConfigError: there is no column of a chosen name.
    """
    if isinstance(columns, Mapping):
        columns = {str(key): array_column(name, str(key), values) for key, values in columns.items()}
    try:
        table = _with_plain_dictionaries(columns if isinstance(columns, pa.Table) else pa.table(columns))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{name}: is no table of columns of one length ({first_line(error)})") from None
    if not len(table):
        raise DataError(f"{name}: the table has no rows")
    kinds = list(zip(table.column_names, _kinds(table), strict=True))
    roles = roles_of(name, kinds, chosen, first=partial(_first, table))
    rows = _renamed(table, roles)
    if "label" in roles.names:
        names = class_names(table.schema, roles.names["label"])
        labels = named_labels(name, rows["label"], names, unknown_is_missing=unknown_is_missing)
        rows = rows.set_column(rows.column_names.index("label"), "label", labels)
    _check_columns(name, rows, roles)
    if roles.kind == "encoded" and (paths := paths_alone(table[roles.names["image"]])) is not None:
        rows, roles = _with_paths(rows, roles, paths)
    whole = table
    if roles.kind != "files":
        role, column = ("embedding", VECTOR_COLUMN) if roles.kind == "vectors" else ("image", IMAGE_COLUMN)
        values = table[roles.names[role]]
        if column in whole.column_names:
            whole = whole.drop_columns([column])
        whole = whole.append_column(column, values)
    return Tables(
        name=name,
        source=SourceName(name, in_memory=True, columns=_metadata_in(table, roles)),
        files=(),
        kind=roles.kind,
        rows=rows,
        columns=(frozenset(rows.column_names),),
        root=root,
        present=(tuple(table.column_names),),
        in_memory=whole,
        guessed=frozenset(roles.guessed),
        roles=(roles,),
    )


def _kinds(table: pa.Table) -> list[Kind]:
    return [kind_of(kind) for kind in table.schema.types]


def array_column(name: str, column_name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    """A list, an array or a tensor as a column; None and NaN are null.

    Raises:
        DataError: it is none.
    """
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu().numpy()
    try:
        if hasattr(values, "__array__") and (array := np.asarray(values)).ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
        if hasattr(values, "__array__") and np.asarray(values).dtype != object:
            return pa.array(np.asarray(values), from_pandas=True)
        items: list[Any] = list(values)
        if items and all(value is None or isinstance(value, os.PathLike) for value in items):
            items = [None if value is None else os.fspath(value) for value in items]
        if items and all(hasattr(value, "detach") for value in items):
            items = [value.detach().cpu().numpy() for value in items]
        if items and all(isinstance(value, np.ndarray) and value.ndim == 0 for value in items):
            items = [value.item() for value in items]
        return _array(name, column_name, items)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{name}: the column {column_name!r} cannot be read ({first_line(error)})") from None


_IN_WORDS = {"files": "names of files", "encoded": "encoded images", "vectors": "vectors"}


def _as_one_of_several(table: pa.Table, file: TableFile) -> pa.Table:
    """The columns as text, with paths relative to the common root, and the file's split."""
    for i, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if name == "label" and not pa.types.is_string(column.type):
            read = read_labels(column)
            column = pa.chunked_array(
                [pa.array(read.names, pa.string()).take(pa.array(read.codes, mask=read.codes < 0))]
            )
        column = column.cast(pa.string())
        if name == "path" and file.folder:
            below = pc.binary_join_element_wise(file.folder, column, "/")
            column = pc.if_else(pc.match_substring_regex(column, r"^(/|\\|[A-Za-z]:)|^\s*$"), column, below)
        table = table.set_column(i, name, column)
    if file.split and "split" not in table.column_names:
        indices = pa.array(np.zeros(len(table), np.int8))
        split = pa.DictionaryArray.from_arrays(indices, pa.array([file.split])).cast(pa.string())
        table = table.append_column("split", split)
    return table


_OWN = ("path", "label", FILE_NAME, IMAGE_COLUMN, VECTOR_COLUMN, *BOX_COLUMNS)

UNTYPED = {b"divcon type": b"untyped"}
"""The metadata of the Arrow fields of a CSV, whose values are text for want of a type."""


class NumberText(float):
    """A number with the text that it was read from, which may have more digits."""

    text: str

    def __new__(cls, text: str) -> NumberText:
        number = super().__new__(cls, text)
        number.text = text
        return number


def metadata_of(source: str) -> list[tuple[Path, pa.Table | dict[str, list[Any]]]] | None:
    """The columns of a table (or of each table of a folder, or in memory) beside path, label, box, image and embedding,
    row for row. None where the source is no table.

    A parquet's columns have its types. A CSV's are text, with the metadata `UNTYPED`: an empty field is missing, a
    quoted one (``""``) is an empty text, and nothing else is changed. Those of JSON Lines are Python values; a float
    is a `NumberText`.

    Raises:
        DataError: a table cannot be read.
    """
    if isinstance(source, SourceName) and source.columns is not None:
        return [(Path(source), source.columns)]
    files = [Path(name) for name, _ in source.tables] if isinstance(source, SourceName) else []
    files = files or [Path(source)]
    if not all(is_table(file) and file.is_file() for file in files):
        return None
    try:
        return [(file, _read(file)) for file in files]
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{source}: its columns cannot be read ({first_line(error)})") from None


def _metadata_in(table: pa.Table, roles: Roles) -> pa.Table:
    """The columns in memory that are metadata."""
    used = {roles.names.get(role) for role in ("path", "image", "embedding")}
    others = set(other_columns(table.column_names)) - used
    return table.select([i for i, name in enumerate(table.column_names) if name in others])


def other_columns(names: Sequence[str]) -> list[str]:
    """The names of a table's columns that `metadata_of` returns."""
    own = [name for name in _OWN if name != FILE_NAME or "path" not in names]
    return [name for name in names if name not in own]


def whole_table(path: Path) -> pa.Table:
    """All columns of a table in one file, of a CSV as text.

    Raises:
        DataError: it cannot be read.
    """
    try:
        columns = _read(path, list)
        return columns if isinstance(columns, pa.Table) else pa.table(columns)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path}: its columns cannot be read ({first_line(error)})") from None


def is_plain_table(path: str | Path) -> bool:
    """Whether it is a table in one file."""
    return is_table(path) and Path(path).is_file()


def _read(file: Path, chosen: Callable[[Sequence[str]], list[str]] = other_columns) -> pa.Table | dict[str, list[Any]]:
    kind = format_of(file)
    if kind == "json":
        return _read_objects(file, chosen)
    if kind == "arrow":
        table = _read_arrow(file)
        names = chosen(table.column_names)
        _no_twins(file, names)
        return table.select(names)
    if kind == "parquet":
        with pq.ParquetFile(opened(file)) as parquet:
            names = chosen(parquet.schema_arrow.names)
            _no_twins(file, names)
            return parquet.read(columns=names)
    header = _header(file)
    _no_twins(file, header)
    table = pyarrow.csv.read_csv(
        source_for_arrow(file),
        read_options=pyarrow.csv.ReadOptions(skip_rows=lines_before_header(file)),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter(file), newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    roles = roles_of(str(file), kinds_in_csv(file, header), GUESS, text_alone=True)
    if (vectors := roles.names.get("embedding")) is not None:
        table = table.drop_columns([vectors])
    if _is_padded(header):
        table = pa.table({name.strip(): pc.utf8_trim_whitespace(table[name]) for name in table.column_names})
    schema = pa.schema([pa.field(name, pa.string(), metadata=UNTYPED) for name in table.column_names])
    return table.cast(schema).select(chosen(table.column_names))


def _no_twins(file: Path, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: there are two columns {twice!r}; rename one")


def _read_objects(file: Path, chosen: Callable[[Sequence[str]], list[str]]) -> dict[str, list[Any]]:
    """The columns of JSON as Python reads them: Arrow would make dates of text, and floats of large integers."""
    with open_bytes(file) as content:
        text = content.read().decode("utf-8-sig")
    rows = _json_rows(file, text, parse_float=NumberText)
    names = chosen(list(dict.fromkeys(itertools.chain.from_iterable(rows))))
    return {name: [row.get(name) for row in rows] for name in names}
