"""Filters: conditions on columns, checked against the columns of the index. Values are never parsed as SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa

from divcon.data.readers.table import pc
from divcon.errors import ConfigError, unknown
from divcon.search.about import About

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
    kind: str
    """The column's kind: text, integer, number or boolean."""
    operator: str
    """One of `OPERATORS`."""
    values: tuple[str | int | float | bool, ...]
    """Of the column's kind (an integer column may be compared with a float). Several: one of them must fit."""


def conditions_of(where: Where, about: About) -> tuple[Condition, ...]:
    """Parse filters.

    Args:
        where: see `Where`. A text is ``COLUMN OPERATOR VALUE`` with one of =, !=, <, <=, > and >=. The value is all
            that follows, without quotes. Text is ordered by the code points of its characters.

    Raises:
        ConfigError: a filter of another form, an unknown column, or a value that the column cannot have.
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
    each = [
        reduce(pc.or_, [_compare(rows[condition.stored], condition.operator, value) for value in condition.values])
        for condition in conditions
    ]
    return reduce(pc.and_, each)


_COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def _compare(column: pa.ChunkedArray, operator: str, value: str | int | float | bool) -> Any:
    if pa.types.is_integer(column.type) and isinstance(value, float):
        if operator in ("=", "!=") and value != int(value):
            return pc.if_else(pc.is_valid(column), operator == "!=", pa.scalar(None, pa.bool_()))
        # Not as floats, in which large integers are equal to their neighbours.
        value = math.floor(value) if operator in ("<=", ">") else math.ceil(value)
    return _COMPARE[operator](column, pa.scalar(value, column.type))


def _of_pair(name: str, value: Any, about: About) -> Condition:
    if isinstance(value, tuple):
        if len(value) != 2 or value[0] not in OPERATORS:
            raise _error(
                f"{name!r} has {value!r}, which is not (operator, value) with an operator of {', '.join(OPERATORS)}"
            )
        return _condition(name, value[0], [value[1]], about)
    return _condition(name, "=", value if isinstance(value, list) else [value], about)


def _of_text(text: str, about: About) -> Condition:
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise _error(
            f"{text!r} is no condition; write COLUMN=VALUE (or !=, <, <=, >, >=), such as label=mug or price<10"
        )
    return _condition(match["name"], match["operator"], [match["value"]], about)


def _condition(name: str, operator: str, values: Sequence[Any], about: About) -> Condition:
    column = about.column(name)
    if name in FIXED:
        stored, kind = name, FIXED[name]
    elif column is not None:
        stored, kind = column.stored, column.kind
    else:
        raise _error(unknown("column", name, [*FIXED, *(c.name for c in about.columns)]))
    if not values:
        raise _error(f"there is no value to compare {name!r} with")
    return Condition(stored, kind, operator, tuple(_value(name, kind, value) for value in values))


def _value(name: str, kind: str, value: Any) -> str | int | float | bool:
    text = str(value)
    try:
        if kind == "text":
            text.encode()  # lone surrogates are no text that a store can hold
            if isinstance(value, (str, int, float)) and "\0" not in text:
                return text
        elif kind == "boolean":
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        elif kind == "integer":
            number = float(text)
            whole = int(text) if re.fullmatch(r"\s*[-+]?\d+\s*", text) else None
            if whole is not None and abs(whole) < 2**63:
                return whole
            if number == number and abs(number) < 2**53:
                return number
        elif abs(number := float(text)) != float("inf") and number == number:
            return number
    except (ValueError, KeyError, OverflowError):
        pass
    raise _error(f"{value!r} cannot be a value of column {name!r}, which holds {kind} values")


def _error(message: str) -> ConfigError:
    return ConfigError(f"`where`: {message}", field="where")
