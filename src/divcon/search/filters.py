"""Filters: conditions on columns, checked against the columns of the index and their types. Values are never parsed as
SQL."""

from __future__ import annotations

import datetime
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any

import pyarrow as pa

from divcon.data.readers.table import pc
from divcon.errors import ConfigError, unknown
from divcon.search.about import About
from divcon.search.columns import NUMBER, Unfit, convert, is_exact_float, stored_value

Where = Mapping[str, Any] | Sequence[str] | str | None
"""``{"label": "mug", "price": ("<", 10), "colour": ["red", "blue"]}``, or texts such as ``price<10``; all must hold."""

OPERATORS = ("<=", ">=", "!=", "=", "<", ">")
FIXED = {"path": "text", "label": "text"}
"""The columns that every index has, and their kinds."""

_TEXT = re.compile(r"\s*(?P<name>.+?)\s*(?P<operator><=|>=|!=|=|<|>)\s*(?P<value>.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """A condition on one column; a row without a value in the column does not fulfil it."""

    stored: str
    """The column, by its name in the store."""
    type: str
    """The column's type, one of `divcon.search.columns.TYPES`."""
    operator: str
    """One of `OPERATORS`."""
    values: tuple[str | int | float | bool | Decimal, ...]
    """As the store keeps those of the type: dates and times are text, whose order is that of time; an int column may be
    compared with a float. Those of a decimal column are decimals, and its stored values are text, see `matches`.
    Several: one of them must fit."""


def conditions_of(where: Where, about: About) -> tuple[Condition, ...]:
    """Parse filters.

    Args:
        where: see `Where`. A text is ``COLUMN OPERATOR VALUE`` with one of =, !=, <, <=, > and >=. The value is all
            that follows, without quotes, read as a value of the column's type. In a mapping a value is of the column's
            type itself, or for dates, times and decimals also text. Text is ordered by the code points of its
            characters.

    Raises:
        ConfigError: a filter of another form, an unknown column, or a value of another type than the column's, such as
            a number for a column of text.
    """
    if where is None:
        return ()
    if isinstance(where, Mapping):
        return tuple(_of_pair(str(name), value, about) for name, value in where.items())
    texts = [where] if isinstance(where, str) else where
    return tuple(_of_text(text, about) for text in texts)


def matches(rows: pa.Table, conditions: Sequence[Condition]) -> pa.Array | pa.ChunkedArray:
    """Which rows fulfil the conditions: (n,) booleans, or null where a column has no value, which counts as false.

    Args:
        rows: with the columns that the conditions name.
        conditions: one or more.
    """
    each = []
    for condition in conditions:
        column = rows[condition.stored]
        if condition.type == "decimal":
            each.append(_matching_decimals(column, condition))
            continue
        compared = [_compare(column, condition.operator, value) for value in condition.values]
        each.append(reduce(pc.or_, compared))
    return reduce(pc.and_, each)


def _matching_decimals(column: pa.ChunkedArray, condition: Condition) -> pa.ChunkedArray:
    compare = _OPERATOR[condition.operator]
    stored = [None if text is None else Decimal(text) for text in column.to_pylist()]
    fits = [None if one is None else any(compare(one, value) for value in condition.values) for one in stored]
    return pa.chunked_array([pa.array(fits, pa.bool_())])


_OPERATOR = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


_COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def _compare(column: pa.ChunkedArray, sign: str, value: Any) -> Any:
    if pa.types.is_integer(column.type) and isinstance(value, float):
        if sign in ("=", "!=") and value != int(value):
            return pc.if_else(pc.is_valid(column), sign == "!=", pa.scalar(None, pa.bool_()))
        # Not as floats, in which large integers are equal to their neighbours.
        value = math.floor(value) if sign in ("<=", ">") else math.ceil(value)
    return _COMPARE[sign](column, pa.scalar(value, column.type))


def _of_pair(name: str, value: Any, about: About) -> Condition:
    if isinstance(value, tuple):
        if len(value) != 2 or value[0] not in OPERATORS:
            raise _error(
                f"{name!r} has {value!r}, which is not (operator, value) with an operator of {', '.join(OPERATORS)}"
            )
        sign, values = value[0], value[1] if isinstance(value[1], list) else [value[1]]
    else:
        sign, values = "=", value if isinstance(value, list) else [value]
    stored, type_ = _column(name, about)
    if not values:
        raise _error(f"there is no value to compare {name!r} with")
    return Condition(stored, type_, sign, tuple(_value(name, type_, each) for each in values))


def _of_text(text: str, about: About) -> Condition:
    name, sign, value = _split(text, about)
    stored, type_ = _column(name, about)
    return Condition(stored, type_, sign, (_read(name, type_, sign, value),))


def _split(text: Any, about: About) -> tuple[str, str, str]:
    """Column, operator and value of ``COLUMN OPERATOR VALUE``. A column's name may have operators in it, too."""
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise _error(
            f"{text!r} is no condition; write COLUMN=VALUE (or !=, <, <=, >, >=), such as label=mug or price<10"
        )
    names = sorted((column.name for column in about.user_columns), key=len, reverse=True)
    for name in names:
        if any(sign in name for sign in OPERATORS) and text.lstrip().startswith(name):
            rest = re.fullmatch(r"\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", text.lstrip()[len(name) :], re.DOTALL)
            if rest is not None:
                return name, rest[1], rest[2]
    return match["name"], match["operator"], match["value"]


def _column(name: str, about: About) -> tuple[str, str]:
    """The name in the store and the type of a column."""
    column = about.column(name)
    if name in FIXED:
        return name, FIXED[name]
    if column is None:
        raise _error(unknown("column", name, [*FIXED, *(c.name for c in about.user_columns)]))
    if column.type == "json":
        raise _error(f"column {name!r} holds json values (lists and objects), which cannot be compared")
    return column.stored, column.type


def _read(name: str, type_: str, sign: str, text: str) -> Any:
    """The value of a condition that is a text as a whole."""
    if type_ == "text":
        if sign not in ("=", "!=") and NUMBER.fullmatch(text):
            raise _error(
                f"column {name!r} holds text values, whose order is that of letters ('9' comes after '10'), and {text} "
                f"is a number; make numbers of the column first (`change_types`, `column_types` {name}=float)"
            )
        return _text(name, text)
    if type_ == "int" and re.fullmatch(r"\s*[-+]?\d+\s*", text):
        return _value(name, type_, int(text))
    if type_ in ("int", "float"):
        if not NUMBER.fullmatch(text):
            raise _unlike(name, type_, text)
        whole = re.fullmatch(r"\s*[-+]?\d+\s*", text)
        return _value(name, type_, int(text) if whole else float(text))
    try:
        value = convert(text, "text", type_)
    except Unfit as error:
        raise _error(f"column {name!r} holds {type_} values, and {error}") from None
    return Decimal(value) if type_ == "decimal" else value


def _value(name: str, type_: str, value: Any) -> Any:
    """A value of Python's for a column of a type."""
    if type(value).__module__.startswith("numpy") and hasattr(value, "item"):
        value = value.item()
    is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if is_number and not math.isfinite(value):
        raise _unlike(name, type_, value)
    if type_ == "text" and isinstance(value, str):
        return _text(name, value)
    if type_ == "bool" and isinstance(value, bool):
        return value
    if type_ == "int" and is_number and (isinstance(value, int) or value == int(value)):
        # An integer beyond int64, or a float beyond the integers that floats hold, is in no such column.
        if isinstance(value, int) and abs(value) < 2**63:
            return value
        if abs(value) < 2**53:
            return int(value) if isinstance(value, Decimal) else value
    elif type_ == "int" and is_number and abs(value) < 2**53:
        return float(value)
    elif type_ == "float" and is_number:
        if isinstance(value, (float, Decimal)) or is_exact_float(value):
            return float(value)
    elif type_ == "decimal" and is_number:
        return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    elif type_ in ("date", "datetime", "datetime-utc", "decimal"):
        return _time_or_decimal(name, type_, value)
    raise _unlike(name, type_, value)


def _time_or_decimal(name: str, type_: str, value: Any) -> Any:
    if isinstance(value, str):
        return _read(name, type_, "=", value)
    is_time = isinstance(value, datetime.datetime)
    if type_ == "date" and isinstance(value, datetime.date) and not is_time:
        return value.isoformat()
    if is_time and type_ == ("datetime" if value.tzinfo is None else "datetime-utc"):
        return stored_value(value, type_)
    raise _unlike(name, type_, value)


def _text(name: str, text: str) -> str:
    try:
        text.encode()  # lone surrogates are no text that a store can hold
    except UnicodeEncodeError:
        raise _unlike(name, "text", text) from None
    if "\0" in text:
        raise _unlike(name, "text", text)
    return text


def _unlike(name: str, type_: str, value: Any) -> ConfigError:
    """The error for a value that cannot be one of the column's."""
    advice = ""
    if type_ == "text" and isinstance(value, str):
        advice = ": it has a character that text in a store cannot have"
    elif type_ == "text" and isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        numbers = (
            f", or make numbers of the column first (`change_types`, `column_types` {name}=float)"
            if name not in FIXED
            else ""
        )
        advice = f"; pass text ({str(value)!r}){numbers}"
    elif type_ in ("int", "float") and isinstance(value, str):
        advice = "; pass a number"
    return _error(f"{value!r} cannot be a value of column {name!r}, which holds {type_} values{advice}")


def _error(message: str) -> ConfigError:
    return ConfigError(f"`where`: {message}", field="where")
