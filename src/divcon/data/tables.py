"""Load a CSV, parquet or JSON Lines file as an Arrow table of the columns that describe images."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from divcon.errors import DataError

pc: Any = pyarrow.compute
"""Any: pyarrow creates its functions at import, so type checkers do not know them."""

METADATA = b"huggingface"
"""The key of the schema's metadata: JSON, of which ``info.features`` describes the columns."""


def named_labels(path: Path, schema: pa.Schema, table: pa.Table) -> pa.Table:
    """The table with names instead of numbers in its column ``label``, if the schema has them (``ClassLabel``).

    Raises:
        DataError: a number has no name (``datasets`` writes -1 for an unknown label); the message has the row.
    """
    names = _names_of(schema)
    if names is None or "label" not in table.column_names or not pa.types.is_integer(table["label"].type):
        return table
    labels = table["label"]
    inside = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))
    bad = ~pc.fill_null(inside, True).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        more = f" (in {bad.sum():,} rows)" if bad.sum() > 1 else ""
        raise DataError(
            f"{path} row {row}: the label is {labels[row].as_py()}, and the file's metadata names 0 to "
            f"{len(names) - 1}{more}; take such rows out, or give them a label"
        )
    indices = pa.chunked_array([chunk.cast(pa.int32()) for chunk in labels.chunks], pa.int32())
    values = pa.array(names, pa.string())
    chunks = [pa.DictionaryArray.from_arrays(chunk, values) for chunk in indices.chunks]
    column = pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))
    return table.set_column(table.column_names.index("label"), "label", column)


def _names_of(schema: pa.Schema) -> list[str] | None:
    try:
        feature = json.loads((schema.metadata or {})[METADATA])["info"]["features"]["label"]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
JSON_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = CSV_SUFFIXES + PARQUET_SUFFIXES + JSON_SUFFIXES

BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
"""Left, top, right, bottom, under open-metric-learning's names."""
COLUMNS = ("path", "label", "split", "is_query", "is_gallery", "camera", "sequence", *BOX_COLUMNS)
"""The columns that are read; a table may have more."""
FILE_NAME = "file_name"
"""The name of the column path in Hugging Face's metadata files."""
IMAGE_COLUMN = "image"
"""The column of encoded images in a parquet; `divcon.data.encoded` reads it."""
VECTOR_COLUMN = "embedding"
"""The column of vectors in a parquet; `divcon.data.readers.vectors` reads it."""

_MIXED_UP = "a table is a CSV in UTF-8, a parquet file, or JSON Lines"


def load_table(path: Path) -> pa.Table:
    """Load those of COLUMNS that the file has; a CSV's as text, with null for empty fields.

    A CSV may be separated by commas, semicolons or tabs, and start with a byte order mark. Without a column ``path``,
    ``file_name`` is used. Numbers of labels in a parquet of Hugging Face's ``datasets`` become names.

    Raises:
        DataError: there is no such file, or it is no such table, has no rows, rows of unequal length, text that is not
            UTF-8, or vectors outside of a parquet.
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
    """Whether the file is read as a parquet."""
    return path.suffix.lower() not in CSV_SUFFIXES + JSON_SUFFIXES


def require_columns(
    path: str | Path, read: Collection[str], names: Iterable[str], hint: str, present: Sequence[str] | None = None
) -> None:
    """Raise DataError if one of the ``names`` is not among the columns ``read``, naming those the table has.

    Args:
        present: the names of all columns; None: as the file has them.
    """
    missing = [name for name in names if name not in read]
    if not missing:
        return
    present = column_names(Path(path)) if present is None else present
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
    """The lines of all records; cached, because messages that name one row of a table often name thousands."""
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
    """Comma, semicolon or tab: the one that is most frequent in the header."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = next((line for line in file if line.strip()), "")
    return max(",;\t", key=header.count)


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Where and why a CSV cannot be read; Arrow's own message does not have the line."""
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
    """The first line of an error of Arrow's, without the stack trace that may follow."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class SourceName(str):
    """The name of what was read: a table, a folder, or columns in memory. For a folder of tables it also has their
    names: rows are numbered through all of them."""

    tables: tuple[tuple[str, int], ...]
    """Each table, and the number of its first row."""
    in_memory: bool
    """Whether it names columns in memory."""

    def __new__(cls, name: str, tables: tuple[tuple[str, int], ...] = (), *, in_memory: bool = False) -> SourceName:
        source = super().__new__(cls, name)
        source.tables = tables
        source.in_memory = in_memory
        return source


def where_in(source: str, row: int) -> str:
    """``products.csv line 17: `` for a row of a CSV, ``products.parquet row 15: `` of a parquet or of columns in
    memory, nothing of a folder."""
    tables = source.tables if isinstance(source, SourceName) else ()
    if isinstance(source, SourceName) and source.in_memory:
        return f"{source} row {row}: "
    if tables:
        source, start = tables[bisect_right(tables, row, key=lambda table: table[1]) - 1]
        row -= start
    suffix = Path(source).suffix.lower()
    if suffix in CSV_SUFFIXES:
        return f"{source} line {csv_line(source, row)}: "
    if suffix in JSON_SUFFIXES:
        return f"{source} line {json_line(source, row)}: "
    if suffix in PARQUET_SUFFIXES:
        return f"{source} row {row}: "
    return ""


Kind = Literal["files", "encoded", "vectors"]


@dataclass(frozen=True)
class TableFile:
    """One of several tables that are read as one."""

    path: Path
    split: str | None = None
    """The split of its rows, if it has no column ``split``."""
    folder: str = ""
    """The folder that its relative paths start from, relative to the common root."""


@dataclass(frozen=True)
class Tables:
    """The rows of all files, in order."""

    name: str
    source: SourceName
    files: tuple[Path, ...]
    kind: Kind
    """Whether rows name files, or hold encoded images (``image``) or vectors (``embedding``)."""
    rows: pa.Table
    """The columns among COLUMNS."""
    columns: tuple[frozenset[str], ...]
    """The names of each file's columns."""
    root: str
    """The folder that relative paths start from."""
    in_memory: pa.Table | None = None
    """The table itself, if it comes from no file."""

    def require(self, names: Iterable[str], hint: str) -> None:
        """Raise DataError if a table lacks a column, naming those it has."""
        if self.in_memory is not None:
            require_columns(self.name, self.in_memory.column_names, names, hint, self.in_memory.column_names)
        for path, columns in zip(self.files, self.columns, strict=True):
            require_columns(path, columns, names, hint)


def load_tables(name: str, source: str, files: Sequence[TableFile], root: str) -> Tables:
    """Load several files as one table.

    Raises:
        DataError: as in ``load_table``; or the files are of several kinds.
    """
    tables, kinds, starts, start = [], [], [], 0
    for file in files:
        table = load_table(file.path)
        kinds.append(_kind_of(file.path))
        starts.append((str(file.path), start))
        start += len(table)
        if len(files) > 1 or file.split or file.folder:
            table = _as_one_of_several(table, file)
        tables.append(table)
    for file, kind in zip(files, kinds, strict=True):
        if kind != kinds[0]:
            raise DataError(
                f"{source}: {files[0].path.name} holds {_IN_WORDS[kinds[0]]}, and {file.path.name} {_IN_WORDS[kind]}; "
                "use files of one kind"
            )
    return Tables(
        name=name,
        source=SourceName(source, tuple(starts) if len(files) > 1 or str(files[0].path) != source else ()),
        files=tuple(file.path for file in files),
        kind=kinds[0],
        rows=tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default"),
        columns=tuple(frozenset(table.column_names) for table in tables),
        root=root,
    )


def tables_in_memory(name: str, columns: Any, root: str) -> Tables:
    """Use columns in memory as loaded tables: a mapping of lists or arrays, a pyarrow table, a data frame.

    Raises:
        DataError: no rows, columns of several lengths, or values that are no column.
    """
    if isinstance(columns, Mapping):
        columns = {str(key): _column(name, str(key), values) for key, values in columns.items()}
    try:
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{name}: is no table of columns of one length ({first_line(error)})") from None
    if not len(table):
        raise DataError(f"{name}: the table has no rows")
    if FILE_NAME in table.column_names and "path" not in table.column_names:
        table = table.rename_columns({FILE_NAME: "path"})
    rows = table.select(_wanted(table.column_names))
    for column_name, column in zip(rows.column_names, rows.columns, strict=True):
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            raise DataError(f"{name}: the column {column_name!r} holds {column.type}; give it one text or number a row")
    kind = "vectors" if VECTOR_COLUMN in table.column_names else "files"
    return Tables(
        name=name,
        source=SourceName(name, in_memory=True),
        files=(),
        kind="encoded" if kind == "files" and IMAGE_COLUMN in table.column_names else kind,
        rows=rows,
        columns=(),
        root=root,
        in_memory=table,
    )


def _column(name: str, column_name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    try:
        if hasattr(values, "__array__") and (array := np.asarray(values)).ndim == 2:
            return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
        if column_name in ("path", FILE_NAME):
            return pa.array([None if value is None else os.fspath(value) for value in values], pa.string())
        return pa.array(np.asarray(values) if hasattr(values, "__array__") else list(values))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{name}: the column {column_name!r} cannot be read ({first_line(error)})") from None


_IN_WORDS = {"files": "names of files", "encoded": "encoded images", "vectors": "vectors"}


def _kind_of(path: Path) -> Kind:
    columns = column_names(path)
    if is_parquet(path) and VECTOR_COLUMN in columns:
        return "vectors"
    return "encoded" if IMAGE_COLUMN in columns else "files"


def _as_one_of_several(table: pa.Table, file: TableFile) -> pa.Table:
    """The columns as text, with paths relative to the common root, and the file's split."""
    for i, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
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
    """The columns of a table (or of each table of a folder) beside path, label, box, image and embedding, row for row.
    None where the source is no table.

    A parquet's columns have its types. A CSV's are text, with the metadata `UNTYPED`: an empty field is missing, a
    quoted one (``""``) is an empty text, and nothing else is changed. Those of JSON Lines are Python values; a float
    is a `NumberText`.

    Raises:
        DataError: a table cannot be read.
    """
    files = [Path(name) for name, _ in source.tables] if isinstance(source, SourceName) else []
    files = files or [Path(source)]
    if not all(file.suffix.lower() in TABLE_SUFFIXES and file.is_file() for file in files):
        return None
    try:
        return [(file, _read(file)) for file in files]
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{source}: its columns cannot be read ({first_line(error)})") from None


def _others(names: Sequence[str]) -> list[str]:
    own = [name for name in _OWN if name != FILE_NAME or "path" not in names]
    return [name for name in names if name not in own]


def _read(file: Path) -> pa.Table | dict[str, list[Any]]:
    suffix = file.suffix.lower()
    if suffix in JSON_SUFFIXES:
        return _read_objects(file)
    if suffix not in CSV_SUFFIXES:
        with pq.ParquetFile(file) as parquet:
            names = _others(parquet.schema_arrow.names)
            _no_twins(file, names)
            return parquet.read(columns=names)
    header = _header(file)
    _no_twins(file, header)
    table = pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter(file), newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    schema = pa.schema([pa.field(name, pa.string(), metadata=UNTYPED) for name in table.column_names])
    return table.cast(schema).select(_others(table.column_names))


def _no_twins(file: Path, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: there are two columns {twice!r}; rename one")


def _read_objects(file: Path) -> dict[str, list[Any]]:
    """The columns of JSON Lines as Python reads them: Arrow would make dates of text, and floats of large integers."""
    with file.open(encoding="utf-8-sig") as lines:
        rows = [json.loads(line, parse_float=NumberText) for line in lines if line.strip()]
    names = _others(list(dict.fromkeys(itertools.chain.from_iterable(rows))))
    return {name: [row.get(name) for row in rows] for name in names}
