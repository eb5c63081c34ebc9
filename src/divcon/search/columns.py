"""The user's columns: their types, how a store keeps the values of each, and how a value changes from one to another.

A column has one of `TYPES`. Values are kept as what every store has (text, integers, floats, booleans):

===============  ==================================  =====================================================
type             in a store                          in `Hit.metadata`
===============  ==================================  =====================================================
``text``         text                                ``str``
``int``          integer of 64 bits                  ``int``
``float``        float of 64 bits                    ``float``
``bool``         boolean                             ``bool``
``date``         text, ``2024-05-31``                ``datetime.date``
``datetime``     text, ``2024-05-31T08:30:00.000000``  ``datetime.datetime`` without a time zone
``datetime-utc`` text, as above with ``Z``           ``datetime.datetime`` in UTC
``decimal``      text, ``1.10``                      ``decimal.Decimal``
``json``         text                                lists and dicts
===============  ==================================  =====================================================

A missing value is None everywhere, and never an empty text.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from divcon.data.tables import NumberText, metadata_of, where_in
from divcon.errors import ConfigError, DataError, unknown

TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.string(),
    "datetime": pa.string(),
    "datetime-utc": pa.string(),
    "decimal": pa.string(),
    "json": pa.string(),
}
"""The types of columns, and the Arrow type of each in a store."""
UNTYPED = "untyped"
"""Text of a file without types (CSV): it becomes what a column of the index holds, and else stays text."""

Where = Callable[[int], str]
"""Names row i in messages: ``products.csv line 17``."""

_TYPE = b"divcon type"
"""The metadata of an Arrow field that has the column's type, where its values are as in a store."""


class Unfit(ValueError):
    """A value that a type cannot hold; the message says why."""


def check_column_types(types: Mapping[str, str] | None) -> dict[str, str]:
    """Column types that a user passed.

    Raises:
        ConfigError: they are no mapping of names to types.
    """
    if types is None:
        return {}
    if not isinstance(types, Mapping):
        raise ConfigError(
            f"`column_types`: pass names and types, such as {{'price': 'float'}}, not {types!r}", field="column_types"
        )
    for name, type_ in types.items():
        if not isinstance(type_, str) or type_ not in TYPES:
            words = unknown("type", str(type_), TYPES)
            raise ConfigError(
                f"`column_types` {name}={type_}: {words}; types are {', '.join(TYPES)}", field="column_types"
            )
    return {str(name): type_ for name, type_ in types.items()}


# ------------------------------------------------------------------------------------------------- columns of a table


def columns_of_source(
    source: str, declared: Mapping[str, str] | None = None, warn: Callable[[str], None] | None = None
) -> pa.Table | None:
    """The columns of the table, or of the tables of a folder, that a set was read from, row for row, as `typed`; None
    where it has none.

    Raises:
        DataError: as `typed`; or a column is of several types in several tables.
    """
    files = metadata_of(source)
    if files is None:
        return None
    tables = [(file, columns_of(columns, declared, _rows_of(str(file)), warn=warn)) for file, columns in files]
    return _joined(tables)


def _rows_of(table: str) -> Where:
    return lambda row: where_in(table, row)


def _joined(tables: Sequence[tuple[Path, pa.Table]]) -> pa.Table | None:
    """Tables one below the other; a column that one lacks has no values there."""
    types: dict[str, tuple[str, Path]] = {}
    for file, table in tables:
        for name, type_ in types_in(table).items():
            other, first = types.setdefault(name, (type_, file))
            if UNTYPED in (other, type_) and _is_empty(table if type_ == UNTYPED else dict(tables)[first], name):
                types[name] = (type_, file) if other == UNTYPED else (other, first)
            elif other != type_:
                both = ["text" if kind == UNTYPED else kind for kind in (other, type_)]
                raise DataError(
                    f"the column {name!r} is {both[0]} in {first}, and {both[1]} in {file}; declare its type: "
                    f"`column_types` {name}={both[0]}"
                )
    fields = [field_of_type(name, type_) for name, (type_, _) in types.items()]
    if not fields:
        return None
    columns = []
    for field in fields:
        parts = [
            table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
            for _, table in tables
        ]
        chunks = [chunk for part in parts for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])]
        columns.append(pa.chunked_array(chunks, field.type))
    return pa.table(columns, schema=pa.schema(fields))


def _is_empty(table: pa.Table, name: str) -> bool:
    return table[name].null_count == len(table)


def field_of_type(name: str, type_: str) -> pa.Field:
    """The Arrow field of a column whose values are as in a store."""
    return pa.field(name, TYPES.get(type_, pa.string()), metadata={_TYPE: type_.encode()})


def type_of(field: pa.Field) -> str:
    """The type of a column of an Arrow table; `UNTYPED` for text of a file without types, or without any value.

    Raises:
        DataError: divcon has no type for its values.
    """
    marked = (field.metadata or {}).get(_TYPE)
    if marked is not None:
        return marked.decode()
    kind, is_ = _inner(field.type), pa.types
    if is_.is_null(kind):
        return UNTYPED
    if is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind):
        return "text"
    if is_.is_boolean(kind):
        return "bool"
    if is_.is_integer(kind):
        return "int"
    if is_.is_floating(kind):
        return "float"
    if is_.is_date(kind):
        return "date"
    if is_.is_timestamp(kind):
        return "datetime" if kind.tz is None else "datetime-utc"
    if is_.is_decimal(kind):
        return "decimal"
    if is_.is_nested(kind):
        return "json"
    if is_.is_time(kind):
        return "text"
    raise DataError(f"the column {field.name!r} holds {field.type}, which is no type of metadata; use {_USED}")


def _inner(kind: pa.DataType) -> pa.DataType:
    """The type of the values, behind a dictionary or an extension."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


_USED = "text, a number, a boolean, a date or time, or lists of these"


def types_in(table: pa.Table) -> dict[str, str]:
    """The type of each column; see `type_of`."""
    return {field.name: type_of(field) for field in table.schema}


def is_vector(kind: pa.DataType) -> bool:
    """Whether values are lists of floats."""
    is_ = pa.types
    lists = is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind)
    return lists and is_.is_floating(kind.value_type)


def typed(
    table: pa.Table,
    where: Where,
    declared: Mapping[str, str] | None = None,
    warn: Callable[[str], None] | None = None,
) -> pa.Table:
    """The columns of a table with their types, and values as in a store.

    Text of a file without types is marked `UNTYPED` (see `divcon.data.tables.metadata_of`). Columns of bytes, of lists
    of floats (vectors) and of durations are left out, unless they are declared.

    Args:
        where: names a row.
        declared: the type that a column is to have; others have that of the table.
        warn: called with each column that is left out.

    Raises:
        DataError: a value is not of its column's declared type, or outside of what its type holds; or two columns have
            one name.
    """
    declared = declared or {}
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"there are two columns {twice!r}; rename one")
    fields, arrays = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        wanted = declared.get(field.name)
        if wanted is None and (reason := _left_out(field)):
            if warn is not None:
                warn(f"left out: the column {field.name!r}, which holds {reason}")
            continue
        own = type_of(field)
        fields.append(field_of_type(field.name, wanted or own))
        arrays.append(_as_in_store(field, column, own, wanted or own, where))
    if not fields:
        return pa.table({"": pa.nulls(len(table))}).select([])
    return pa.table(arrays, schema=pa.schema(fields))


def _left_out(field: pa.Field) -> str | None:
    """What a column holds that is no metadata; None where it is."""
    if _TYPE in (field.metadata or {}):
        return None
    kind = _inner(field.type)
    if is_vector(kind):
        return f"vectors ({kind}); declare it json to keep it"
    if _has_bytes(kind) or pa.types.is_duration(kind) or pa.types.is_interval(kind):
        return f"{kind}"
    return None


def _has_bytes(kind: pa.DataType) -> bool:
    is_, kind = pa.types, _inner(kind)
    if is_.is_map(kind):
        return _has_bytes(kind.key_type) or _has_bytes(kind.item_type)
    if is_.is_nested(kind):
        return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return (
        is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_binary_view(kind) or is_.is_fixed_size_binary(kind)
    )


def _as_in_store(
    field: pa.Field, column: pa.ChunkedArray, own: str, wanted: str, where: Where
) -> pa.ChunkedArray | pa.Array:
    """The values of a column as a store keeps those of the type that is wanted."""
    if _TYPE in (field.metadata or {}):
        return column if own == wanted else converted(column, field.name, own, wanted, where)
    kind = _inner(field.type)
    if pa.types.is_dictionary(field.type):
        column = column.cast(field.type.value_type)
    if isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind)
    if own == wanted and own in ("text", UNTYPED, "bool", "int") and kind != pa.uint64() and not pa.types.is_time(kind):
        return column.cast(TYPES.get(own, pa.string()))
    if own == "float":
        values = column.cast(pa.float64()).to_numpy()
        column = pa.chunked_array([pa.array(values, mask=np.isnan(values))])
        if wanted == "float":
            return column
    return _each(column, field.name, lambda value: convert(stored_value(value, own), own, wanted), wanted, where)


def _each(
    column: pa.ChunkedArray | pa.Array, name: str, change: Callable[[Any], Any], type_: str, where: Where
) -> pa.Array:
    """The result of a function of each value that is not missing, as a column of a type.

    Raises:
        DataError: it raises Unfit of a value; the message has the first such row, and their number.
    """
    values = _values_of(column, name, where)
    first, unfit = None, 0
    for i, value in enumerate(values):
        if value is None:
            continue
        try:
            values[i] = change(value)
        except Unfit as error:
            first, unfit, values[i] = first or (i, str(error)), unfit + 1, None
    if first is not None:
        more = f" (and {unfit - 1:,} more rows)" if unfit > 1 else ""
        raise DataError(f"{_row(where, first[0])}the column {name!r}: {first[1]}{more}")
    return pa.array(values, TYPES.get(type_, pa.string()))


def _values_of(column: pa.ChunkedArray | pa.Array, name: str, where: Where) -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind):
        # Python's have microseconds, and no more.
        try:
            column = column.cast(pa.timestamp("us", kind.tz and "UTC"))
        except pa.ArrowException:
            for i, value in enumerate(column):
                try:
                    value.cast(pa.timestamp("us", kind.tz and "UTC"))
                except pa.ArrowException:
                    text = value.cast(pa.string())
                    raise DataError(
                        f"{_row(where, i)}the column {name!r}: {text} is finer than microseconds, or out of range; "
                        "round it, or save it as text"
                    ) from None
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        for i, value in enumerate(column):
            try:
                value.as_py()
            except (ValueError, OverflowError, pa.ArrowException):
                raise DataError(
                    f"{_row(where, i)}the column {name!r}: a {kind} out of range (years go from 1 to 9999); take it "
                    "out, or save it as text"
                ) from None
        raise


def _row(where: Where, row: int) -> str:
    name = where(row)
    return f"{name.removesuffix(': ')}: " if name else f"row {row}: "


# --------------------------------------------------------------------------------------- columns as an index has them


def as_in_index(table: pa.Table, columns: Mapping[str, tuple[str, bool]], where: Where) -> pa.Table:
    """The columns of a table as those of an index.

    Args:
        table: as of `typed`.
        columns: the type of each column of the index, and whether an earlier version guessed it.

    Raises:
        DataError: a value does not fit the type; the message has the first such row.
    """
    fields, arrays = [], []
    for field, values in zip(table.schema, table.columns, strict=True):
        own = type_of(field)
        new, guessed = columns.get(field.name, ("text" if own == UNTYPED else own, False))
        if own != new:
            values = converted(values, field.name, own, new, where, change=_as_guessed(own, new) if guessed else None)
        fields.append(field_of_type(field.name, new))
        arrays.append(values)
    return pa.table(arrays, schema=pa.schema(fields)) if fields else table


def _as_guessed(old: str, new: str) -> Callable[[Any], Any] | None:
    """The conversion for a column whose type an earlier version guessed: as that version read a CSV."""
    if new == "text":
        return lambda value: value.replace("T", " ") if old.startswith("datetime") else value
    if old in ("text", UNTYPED):
        return lambda value: None if value.strip() in _ARROWS_MISSING else convert(value, old, new)
    return None


_ARROWS_MISSING = frozenset(pyarrow.csv.ConvertOptions().null_values)
"""What an earlier version read as a missing value."""


# ------------------------------------------------------------------------------------------- columns of Python values


def columns_of(
    columns: Any, declared: Mapping[str, str] | None = None, where: Where | None = None, **options: Any
) -> pa.Table:
    """Columns of Python values, arrays or an Arrow table, with their types and values as in a store.

    Args:
        columns: an Arrow table, a data frame, or a mapping of names to lists or arrays.
        declared, options: see `typed`.
        where: names a row; None: as one of the argument ``columns``.

    Raises:
        DataError: it is no table, or a column's values are of several types; or as `typed`.
    """
    where = where or _argument_row
    if isinstance(columns, pa.Table) or hasattr(columns, "__arrow_c_stream__"):
        return typed(columns if isinstance(columns, pa.Table) else pa.table(columns), where, declared, **options)
    try:
        columns = dict(columns)
    except (TypeError, ValueError):
        kind = type(columns).__name__
        raise DataError(f"`columns` is of type {kind}: pass names and lists, or a table of columns") from None
    fields, arrays = [], []
    for key, values in columns.items():
        if str(key) not in (declared or {}) and _are_vectors(values):
            if (warn := options.get("warn")) is not None:
                warn(f"left out: the column {str(key)!r}, which holds vectors; declare it json to keep it")
            continue
        field, array = _column_of(values, str(key), where, (declared or {}).get(str(key)))
        fields.append(field)
        arrays.append(array)
    lengths = {field.name: len(array) for field, array in zip(fields, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"`columns` are not of one length: {', '.join(f'{n} has {c:,}' for n, c in lengths.items())}")
    if not fields:
        return pa.table({})
    return typed(pa.table(arrays, schema=pa.schema(fields)), where, declared, **options)


def _are_vectors(values: Any) -> bool:
    """Whether all values are lists of numbers, with a float among them."""
    if not isinstance(values, (list, tuple)):
        return False
    there = [value for value in values if value is not None]
    numbers = (float, int)
    return (
        bool(there)
        and all(isinstance(value, (list, tuple)) and value for value in there)
        and all(isinstance(one, numbers) and not isinstance(one, bool) for value in there for one in value)
        and any(isinstance(one, float) for value in there for one in value)
    )


def _argument_row(row: int) -> str:
    return f"`columns` row {row}"


def _column_of(values: Any, name: str, where: Where, declared: str | None) -> tuple[pa.Field, Any]:
    """A column of Arrow's types, or of a type of `TYPES` with its values as in a store."""
    if hasattr(values, "__array__") and not isinstance(values, (pa.Array, pa.ChunkedArray)):
        array = np.asarray(values)
        if array.ndim != 1:
            raise DataError(f"`columns`: {name!r} is an array of shape {array.shape}; pass one value a row")
        if array.dtype != object:
            try:
                values = pa.array(array)
            except (pa.ArrowException, ValueError) as error:
                raise DataError(f"`columns`: {name!r} cannot be read ({error})") from None
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return pa.field(name, values.type), values
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise DataError(f"`columns`: {name!r} is {values!r}; pass one value a row")
    plain = [_python_value(value) for value in values]
    types = [None if value is None else _python_type(value, name, where, i) for i, value in enumerate(plain)]
    type_ = declared or _common_type(plain, types, name, where)
    for i, (value, own) in enumerate(zip(plain, types, strict=True)):
        if own is not None:
            try:
                plain[i] = convert(stored_value(value, own), own, type_, value)
            except Unfit as error:
                raise DataError(f"{_row(where, i)}the column {name!r}: {error}") from None
    return field_of_type(name, type_), pa.array(plain, TYPES.get(type_, pa.string()))


def _common_type(values: Sequence[Any], types: Sequence[str | None], name: str, where: Where) -> str:
    first: dict[str, int] = {}
    for i, type_ in enumerate(types):
        if type_ is not None:
            first.setdefault(type_, i)
    if set(first) == {"int", "float"}:  # JSON writes 3.0 as 3
        return "float"
    if len(first) > 1:
        (one, row), (other, other_row) = sorted(first.items(), key=lambda item: item[1])[:2]
        raise DataError(
            f"{_row(where, other_row)}the column {name!r} is {other} here ({_short(values[other_row])}), and {one} in "
            f"{where(row) or f'row {row}'} ({_short(values[row])}); declare the type of the column, or write one type: "
            f"`column_types` {name}=text"
        )
    return next(iter(first), UNTYPED)


def _python_value(value: Any) -> Any:
    """NumPy's and pandas' values as Python's, and what they have for missing values as None."""
    if type(value).__module__.startswith("numpy") and hasattr(value, "item"):
        value = value.item()
    if type(value).__name__ in ("NaTType", "NAType") or (isinstance(value, float) and value != value):
        return None
    return value


def _python_type(value: Any, name: str, where: Where, row: int) -> str:
    if isinstance(value, datetime.datetime):
        return "datetime" if value.tzinfo is None else "datetime-utc"
    for kind, type_ in _PYTHON:
        if isinstance(value, kind):
            return type_
    kind = type(value).__name__
    raise DataError(f"{_row(where, row)}the column {name!r} holds a value of type {kind}; use {_USED}")


_PYTHON: tuple[tuple[Any, str], ...] = (
    (str, "text"),
    (bool, "bool"),
    (int, "int"),
    (float, "float"),
    (datetime.date, "date"),
    (datetime.time, "text"),
    (Decimal, "decimal"),
    ((list, tuple, dict), "json"),
)


# -------------------------------------------------------------------------------------------------------------- values


def stored_value(value: Any, type_: str) -> Any:
    """A Python value of a type as a store keeps it.

    Raises:
        Unfit: the store cannot hold it.
    """
    if type_ == "int" and not -(2**63) <= value < 2**63:
        return value  # `convert` refuses it, unless it becomes text or decimal
    if type_ == "text":
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Unfit(f"{text!r} is no text in UTF-8") from None
        return text
    if type_ == "date":
        return value.isoformat()
    if type_ == "datetime":
        return value.isoformat(timespec="microseconds")
    if type_ == "datetime-utc":
        return value.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if type_ == "decimal":
        if not value.is_finite():
            raise Unfit(f"{value} is no finite number")
        return str(value)
    if type_ == "json":
        try:
            return json.dumps(value, ensure_ascii=False, default=_in_nested)
        except (TypeError, ValueError, RecursionError) as error:
            raise Unfit(f"is no JSON ({error})") from None
    return value


def _in_nested(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (Decimal, np.generic)):
        return str(value) if isinstance(value, Decimal) else value.item()
    raise TypeError(f"a value of type {type(value).__name__}")


def python_value(value: Any, type_: str) -> Any:
    """A stored value as `Hit.metadata` has it."""
    if value is None:
        return None
    if type_ == "date":
        return datetime.date.fromisoformat(value)
    if type_ in ("datetime", "datetime-utc"):
        return datetime.datetime.fromisoformat(value)
    if type_ == "decimal":
        return Decimal(value)
    return json.loads(value) if type_ == "json" else value


def json_value(value: Any) -> Any:
    """A value of `Hit.metadata` for JSON: dates, times and decimals become text, and so do infinite floats."""
    if isinstance(value, (datetime.date, Decimal)):
        return value.isoformat() if isinstance(value, datetime.date) else str(value)
    return str(value) if isinstance(value, float) and value in (float("inf"), float("-inf")) else value


def convert(value: Any, old: str, new: str, written: Any = None, *, exact: bool = False) -> Any:
    """A stored value of one type as that of another.

    Args:
        written: what the value was read from, if that has digits that it lost (see `NumberText`).
        exact: refuse also what a change back would not return: leading zeros, and digits that a float does not hold.

    Raises:
        Unfit: the type cannot hold it.
    """
    if old == new:
        if old == "int" and not -(2**63) <= value < 2**63:
            raise Unfit(
                f"{value} is larger than int holds ({2**63 - 1} at most); declare the column `column_types` NAME=text "
                "or NAME=decimal"
            )
        return value
    if old == UNTYPED:
        old = "text"
    if new in ("text", UNTYPED):
        return _as_text(value, written)
    if old == "json" or new == "json":
        return _as_json(value, old, new)
    if old == "text":
        return _parse(value, new, exact)
    if isinstance(written, NumberText) and new == "decimal":
        return _parse(written.text, new, exact)
    return _from_value(value, old, new)


def _as_text(value: Any, written: Any) -> str:
    if isinstance(written, NumberText):
        return written.text
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def _as_json(value: Any, old: str, new: str) -> Any:
    if old == "text":
        try:
            json.loads(value)
        except ValueError:
            raise Unfit(f"{_short(value)} is no JSON") from None
        return value
    if new == "json":
        return value if old == "decimal" else json.dumps(value, ensure_ascii=False)
    inner = json.loads(value)
    own = next((type_ for kind, type_ in _PYTHON if isinstance(inner, kind)), "json")
    if own == "json":
        raise Unfit(f"{_short(value)} is json, and {new} cannot hold it")
    return convert(inner, own, new, exact=True)


_BOOLEANS: dict[str, bool] = {
    "true": True,
    "yes": True,
    "t": True,
    "y": True,
    "1": True,
    "false": False,
    "no": False,
    "f": False,
    "n": False,
    "0": False,
}
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DATETIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,6}0*)?)?\s?(?P<zone>Z|[+-]\d\d:?\d\d|UTC)?")
_INT = re.compile(r"[-+]?\d+")
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
"""Text that is a number."""
_PADDED = re.compile(r"\s|[-+]?0\d|\+")
"""A number with zeros, blanks or a plus in front, which a number does not keep."""
_FORMS = {
    "date": "write it as 2024-05-31",
    "datetime": "write it as 2024-05-31T08:30:00",
    "datetime-utc": "write it with its time zone, as 2024-05-31T08:30:00+02:00",
    "bool": "write true or false",
}


def _parse(text: str, type_: str, exact: bool) -> Any:
    """The stored value of a type that a text stands for."""
    word = text.strip()
    try:
        if type_ == "bool":
            return _BOOLEANS[word.lower()]
        if type_ == "date" and _DATE.fullmatch(word):
            return datetime.date.fromisoformat(word).isoformat()
        if type_ in ("datetime", "datetime-utc") and (match := _DATETIME.fullmatch(word)):
            time = datetime.datetime.fromisoformat(re.sub(r"\s?UTC$", "Z", word))
            if (match["zone"] is not None) == (type_ == "datetime-utc"):
                return stored_value(time, type_)
            has = "has a time zone" if match["zone"] else "has no time zone"
            raise Unfit(f"{_short(text)} {has}, and {type_} {'needs one' if type_ == 'datetime-utc' else 'has none'}")
        if type_ == "int" and _INT.fullmatch(word):
            return _parsed_int(text, word, exact)
        if type_ == "float" and (NUMBER.fullmatch(word) or word.lower() in ("inf", "-inf", "infinity", "-infinity")):
            return _parsed_float(text, word, exact)
        if type_ == "decimal" and NUMBER.fullmatch(word):
            if exact and _PADDED.match(text):
                raise Unfit(f"{_short(text)} would become {Decimal(word)}")
            return str(Decimal(word))
    except (KeyError, InvalidOperation, ValueError) as error:
        if isinstance(error, Unfit):
            raise
    form = f"; {_FORMS[type_]}" if type_ in _FORMS else ""
    missing = ", and leave it empty where there is no value" if not word or word.lower() in _MISSING else ""
    raise Unfit(f"{_short(text)} is no {type_}{form}{missing}")


_MISSING = ("na", "n/a", "nan", "null", "none", "-", "?", "nil", "#n/a", "unknown")


def _parsed_int(text: str, word: str, exact: bool) -> int:
    number = int(word)
    if not -(2**63) <= number < 2**63:
        raise Unfit(f"{_short(text)} is larger than int holds; text or decimal holds it")
    if exact and text != str(number):
        raise Unfit(f"{_short(text)} would become {number}")
    return number


def _parsed_float(text: str, word: str, exact: bool) -> float:
    number = float(word)
    if number in (float("inf"), float("-inf")):
        if "n" not in word.lower():
            raise Unfit(f"{_short(text)} is larger than float holds")
        return number
    same = Decimal(repr(number)) == Decimal(word)
    if not same and (exact or _INT.fullmatch(word)):
        raise Unfit(f"{_short(text)} would become {number!r}; decimal holds it")
    if exact and _PADDED.match(text):
        raise Unfit(f"{_short(text)} would become {number!r}")
    return number


def _from_value(value: Any, old: str, new: str) -> Any:
    """A number, boolean or date as one of another type that holds it."""
    if new == "float" and old == "int":
        if not is_exact_float(value):
            raise Unfit(f"{value} would become {float(value):.0f}; decimal holds it")
        return float(value)
    if new == "int" and old == "float" and -(2**63) <= value < 2**63 and value == int(value):
        return int(value)
    if new == "int" and old == "decimal" and -(2**63) <= (number := Decimal(value)) < 2**63 and number == int(number):
        return int(number)
    if new == "float" and old == "decimal" and Decimal(repr(float(value))) == Decimal(value):
        return float(value)
    if new == "decimal" and old in ("int", "float") and abs(value) != float("inf"):
        return repr(value)
    if new == "bool" and old == "int" and value in (0, 1):
        return bool(value)
    if new == "int" and old == "bool":
        return int(value)
    if (old, new) == ("date", "datetime"):
        return f"{value}T00:00:00.000000"
    if (old, new) == ("datetime", "date") and value.endswith("T00:00:00.000000"):
        return value[:10]
    raise Unfit(f"{_short(value)} is {old}, and {new} cannot hold it")


def is_exact_float(number: int) -> bool:
    """Whether a float holds this integer."""
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def converted(
    values: pa.ChunkedArray | pa.Array, name: str, old: str, new: str, where: Where, *, change: Any = None
) -> pa.Array | pa.ChunkedArray:
    """A column of stored values of one type as one of another.

    Args:
        change: converts a value; None: `convert`.

    Raises:
        DataError: a value does not fit; the message has the first such row, and their number.
    """
    if old in ("text", UNTYPED) and new in ("text", UNTYPED):
        return values
    return _each(values, name, change or (lambda value: convert(value, old, new)), new, where)
