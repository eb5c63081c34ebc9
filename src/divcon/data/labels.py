"""The one rule for reading labels, for folders, tables of every format and Python values; and names that look alike."""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

_MARKS = "\ufeff\u200b"
"""A byte order mark and a zero-width space: invisible at the ends of a name, and no white space for Python."""


def clean_label(text: str) -> str:
    """The text of a label: in Unicode's composed form (NFC), without white space at either end. It stays text: ``01``
    is not ``1``."""
    text = unicodedata.normalize("NFC", text)
    while (shorter := text.strip().strip(_MARKS)) != text:
        text = shorter
    return text


def label_text(value: Any) -> str | None:
    """The name of the class that a value stands for; None where it is missing.

    - Text is cleaned (`clean_label`); empty text is missing.
    - A whole number is its digits, whether it is stored as an integer or not: 1 and 1.0 are ``1``, 2.5 is ``2.5``.
    - True and False are ``true`` and ``false``; bytes are text in UTF-8; dates and times are as ISO 8601 writes them.
    - None, NaN, and what pandas has for missing values are missing.

    Raises:
        ValueError: bytes that are not UTF-8, or a value that is no single text or number, such as a list.
    """
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, str):
        return clean_label(value) or None
    if isinstance(value, bytes):
        return clean_label(value.decode("utf-8")) or None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        if np.isnan(value):
            return None
        return str(int(value)) if np.isfinite(value) and value == np.floor(value) else str(value)
    if isinstance(value, Decimal):
        if value.is_nan():
            return None
        return str(int(value)) if value.is_finite() and value == value.to_integral_value() else str(value.normalize())
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if hasattr(value, "item") and getattr(value, "shape", None) in ((), (1,)):
        return label_text(value.item())  # a tensor of one number
    raise ValueError(f"a label is one text or number, and this is of type {type(value).__name__}")


@dataclass(frozen=True)
class Labels:
    """N labels as they were read."""

    names: tuple[str, ...]
    """The classes, in the order of their first row."""
    codes: np.ndarray
    """(N,) int64, the class of each row; -1 where the label is missing."""
    spellings: tuple[tuple[str, ...], ...] = ()
    """For each class that is written in several ways, its name and the ways."""


def read_labels(column: pa.ChunkedArray | Iterable[Any], *, untyped: bool = False) -> Labels:
    """Read a column of labels by the rule of `label_text`.

    Args:
        column: an Arrow column of any type, or values.
        untyped: whether the format has text alone, as CSV: where every label is written as a number writes itself, it
            is a number (``1.0`` is ``1``), and where every label is true or false it is that.

    Raises:
        ValueError: as of `label_text`.
    """
    codes, values = _coded(column) if isinstance(column, pa.ChunkedArray) else _coded_values(column)
    texts = [label_text(value) for value in values]
    if untyped:
        texts = _typed(texts)
    names: dict[str, int] = {}
    places = np.full(len(values) + 1, -1, np.int64)  # the last is for -1
    ways: dict[str, set[str]] = {}  # of names that some value is written in another way than
    for i, (value, text) in enumerate(zip(values, texts, strict=True)):
        if text is not None:
            places[i] = names.setdefault(text, len(names))
            if isinstance(value, str) and value != text:
                ways.setdefault(text, set()).add(value)
    for value, text in zip(values, texts, strict=True) if ways else ():
        if text in ways:
            ways[text].add(value if isinstance(value, str) else text)
    return Labels(tuple(names), places[codes], _several(ways))


def spellings_in(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """As `Labels.spellings`, of the names of folders."""
    ways: dict[str, set[str]] = {}
    for name in names:
        ways.setdefault(clean_label(name), set()).add(name)
    return _several(ways)


def _several(ways: dict[str, set[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple((name, *sorted(ways[name])) for name in sorted(ways) if len(ways[name]) > 1)


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[Any]]:
    """The index of each value among the distinct ones, (N,) int64, -1 for null; and these."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(kind):
        raise ValueError(f"a label is one text or number, and the column holds {kind}")
    if isinstance(kind, pa.BaseExtensionType):
        column, kind = column.cast(kind.storage_type), kind.storage_type
    if pa.types.is_null(kind):
        return np.full(len(column), -1, np.int64), []
    if pa.types.is_dictionary(column.type):
        column = column.cast(kind)  # its dictionaries may be too small to be joined
    if column.num_chunks > 1 and pa.types.is_string(kind):
        # A dictionary for each of many small pieces, and their union, takes longer than one for all.
        column = pa.chunked_array([column.cast(pa.large_string()).combine_chunks()])
        kind = column.type
    coded = column.dictionary_encode().unify_dictionaries()
    chunks = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in coded.chunks]
    distinct = coded.chunk(0).dictionary if coded.num_chunks else pa.array([], kind)
    # NumPy's float32 writes itself in fewer digits than the float that Arrow makes of it.
    values = list(distinct.to_numpy(zero_copy_only=False)) if pa.types.is_floating(kind) else distinct.to_pylist()
    return np.concatenate([np.empty(0, np.int64), *chunks]), values


def _coded_values(column: Iterable[Any]) -> tuple[np.ndarray, list[Any]]:
    values = list(column)
    return np.arange(len(values), dtype=np.int64), values


_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")


def _typed(texts: Sequence[str | None]) -> list[str | None]:
    """Texts of a format without types, with numbers and truth values as `label_text` names them, if all are such."""
    present = [text for text in texts if text is not None]
    if present and all(text.lower() in ("true", "false") for text in present):
        return [None if text is None else text.lower() for text in texts]
    if any("." in text for text in present) and all(map(_is_number, present)):
        return [None if text is None else label_text(Decimal(text)) for text in texts]
    return list(texts)


def _is_number(text: str) -> bool:
    """Whether the text is what a number is written as; 1.10 is not: 1.1 writes itself in another way."""
    return bool(_NUMBER.fullmatch(text)) and ("." not in text or text == repr(float(text)))


_MISSING = ("nan", "none", "null", "<na>", "n/a", "na", "nat", "undefined", "#n/a")


def label_notes(names: Sequence[str], spellings: Sequence[Sequence[str]]) -> list[str]:
    """What a person should know of how labels were read: spellings that were joined, and names that programs write for
    a missing value."""
    notes = []
    if spellings:
        shown = "; ".join(
            f"{name!r} is written {' and '.join(ascii(way) for way in ways[:3])}{', ...' if len(ways) > 3 else ''}"
            for name, *ways in spellings[:3]
        )
        more = "; ..." if len(spellings) > 3 else ""
        what = "1 label is" if len(spellings) == 1 else f"{len(spellings):,} labels are"
        notes.append(f"{what} written in several ways, each read as one class: {shown}{more}")
    for name in names:
        if name.lower() in _MISSING:
            notes.append(
                f"the label {name!r} is read as a class of that name; if it stands for a missing label, leave it empty"
            )
    return notes


_TWINS = str.maketrans("абвекмнорстухіјѕԁԛԝαβεικνορτυχ", "abbekmhopctyxijsdqwabeiknoptux")
"""Letters of Cyrillic and Greek that look like Latin ones."""


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups of different names that look alike: but for case, spaces and the signs between words, accents and
    other forms of Unicode, letters of other alphabets that look the same, or zeros before a number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_look(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _look(name: str) -> str:
    text = unicodedata.normalize("NFKD", name.casefold())
    plain = "".join(c for c in text if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")
    plain = plain.translate(_TWINS)
    number = re.fullmatch(r"0*([0-9]+)(\.0+)?", plain.strip())
    if number:
        return number[1]
    words = [word for word in re.split(r"[\s_\-./]+", plain) if word]
    # Between digits a sign says something: 1-12 is not 11-2.
    return (" " if any(c.isdigit() for c in plain) else "").join(words) or plain
