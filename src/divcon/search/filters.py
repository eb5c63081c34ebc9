"""Filters: a column, a comparison and a value, checked against what the store has. Never SQL."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from divcon.errors import ConfigError, unknown
from divcon.search.about import About

Where = Mapping[str, Any] | Sequence[str] | str | None
"""``{"label": "mug", "price": ("<", 10), "colour": ["red", "blue"]}``, or texts such as ``price<10``; all must hold."""

OPERATORS = ("<=", ">=", "!=", "=", "<", ">")
FIXED = {"path": "text", "label": "text"}
"""The columns that every store has to filter by."""

_TEXT = re.compile(r"\s*(?P<name>.+?)\s*(?P<operator><=|>=|!=|=|<|>)\s*(?P<value>.*?)\s*", re.DOTALL)
_LIKE_SQL = re.compile(
    r"""^['"]|;|--|/\*|['")\s](or|and|union|where|is|in|like|between)\b|\b(select|drop|delete|insert|update)\s""",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Condition:
    """What a row must be like; one without a value in the column is not."""

    stored: str
    """The column, as the store calls it."""
    kind: str
    """The column's kind: text, integer, number or boolean."""
    operator: str
    """One of `OPERATORS`."""
    values: tuple[str | int | float | bool, ...]
    """Of the column's kind; with ``=`` one of several, else a single one."""


def conditions_of(where: Where, about: About) -> tuple[Condition, ...]:
    """The conditions that are meant.

    Args:
        where: see `Where`. A text is ``COLUMN OPERATOR VALUE`` with one of =, !=, <, <=, > and >=; text compares by its
            characters' code points.

    Raises:
        ConfigError: not of that form (SQL is not taken), an unknown column (the nearest are suggested), or a value that
            the column cannot have.
    """
    if where is None:
        return ()
    if isinstance(where, Mapping):
        return tuple(_of_pair(str(name), value, about) for name, value in where.items())
    texts = [where] if isinstance(where, str) else where
    return tuple(_of_text(text, about) for text in texts)


def _of_pair(name: str, value: Any, about: About) -> Condition:
    if isinstance(value, tuple):
        if len(value) != 2 or value[0] not in OPERATORS:
            raise ConfigError(f"where {name}: {value!r} is not (operator, value), operators {', '.join(OPERATORS)}")
        return _condition(name, value[0], [value[1]], about)
    return _condition(name, "=", value if isinstance(value, list) else [value], about)


def _of_text(text: str, about: About) -> Condition:
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ConfigError(f"where {text!r}: write COLUMN=VALUE (or !=, <, <=, >, >=), such as label=mug or price<10")
    if _LIKE_SQL.search(found["value"]) or _LIKE_SQL.search(found["name"]):
        raise ConfigError(
            f"where {text!r}: this looks like SQL, which is not taken: write COLUMN=VALUE without quotes, and one such "
            "condition for each column; all must hold (from Python, a dict takes any value)"
        )
    return _condition(found["name"], found["operator"], [found["value"]], about)


def _condition(name: str, operator: str, values: Sequence[Any], about: About) -> Condition:
    column = about.column(name)
    if name in FIXED:
        stored, kind = name, FIXED[name]
    elif column is not None:
        stored, kind = column.stored, column.kind
    else:
        raise ConfigError(f"where: {unknown('column', name, [*FIXED, *(c.name for c in about.columns)])}")
    if not values:
        raise ConfigError(f"where {name}: there is no value to compare with")
    return Condition(stored, kind, operator, tuple(_value(name, kind, value) for value in values))


def _value(name: str, kind: str, value: Any) -> str | int | float | bool:
    text = str(value)
    try:
        if kind == "text":
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
    raise ConfigError(f"where {name}: {value!r} cannot be a value of this column, which holds {kind} values")
