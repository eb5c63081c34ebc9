"""Columns of a table to arrays, with errors that name the line; no loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.data.source import where_in
from divcon.data.table_file import BOX_COLUMNS
from divcon.data.tables import Tables
from divcon.errors import DataError

pc: Any = pyarrow.compute
"""Any, because its functions are made at import and type checkers see none."""

_TRUE = ("true", "1", "1.0")
_FALSE = ("false", "0", "0.0")
_NONE = ("", "none", "nan", "null", "<na>")
"""How writers of tables put an empty number or flag."""
_MOST_BYTES = 1 << 30
"""Of the texts that Arrow's type `string` is asked to hold; it can hold twice that."""


def reject(source: str, bad: np.ndarray, problem: str, advice: str) -> None:
    """Raise DataError for the first of the ``bad`` rows, (N,) bool, if there are any."""
    rows = np.flatnonzero(bad)
    if len(rows):
        more = f" (in {len(rows):,} rows)" if len(rows) > 1 else ""
        raise DataError(f"{where_in(source, int(rows[0]))}{problem}{more}; {advice}")


def texts_of(column: pa.ChunkedArray) -> pa.Array:
    """The values as text, in one piece; whole numbers without a decimal point."""
    chunks = [text_chunk(chunk) for chunk in column.chunks]
    kind = pa.large_string() if sum(chunk.nbytes for chunk in chunks) > _MOST_BYTES else pa.string()
    return pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind).combine_chunks()


def text_chunk(chunk: pa.Array) -> pa.Array:
    """The values of one piece of a column as text."""
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.cast(chunk.type.value_type)
    is_text = pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)
    return chunk if is_text else chunk.cast(pa.string())


def coded_texts(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """The different texts, and the place among them of every value: (N,) int64, -1 where there is none."""
    offsets, values, codes = 0, [], []
    for chunk in column.chunks:
        coded = text_chunk(chunk).dictionary_encode()
        values.append(coded.dictionary.cast(pa.large_string()))
        codes.append((offsets, pc.fill_null(coded.indices, -1).to_numpy()))
        offsets += len(coded.dictionary)
    joined = pa.chunked_array(values, pa.large_string()).combine_chunks().dictionary_encode()
    # The last place is for -1.
    place = np.append(joined.indices.to_numpy(), -1).astype(np.int64)
    parts = [place[np.where(part < 0, -1, part + start)] for start, part in codes]
    return np.concatenate([np.empty(0, np.int64), *parts]), joined.dictionary


def codes_of(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) int64, equal where the texts are; -1 where there is none."""
    return coded_texts(column)[0]


def is_empty(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) bool, whether there is no text but spaces."""
    chunks = [pc.equal(pc.utf8_trim_whitespace(pc.fill_null(text_chunk(part), "")), "") for part in _pieces(column)]
    return np.concatenate([np.empty(0, bool), *(chunk.to_numpy(zero_copy_only=False) for chunk in chunks)])


def places_among(column: pa.ChunkedArray, known: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """The place of every value among the ``known`` texts, (N,) int8, spaces and case aside and no value as "", or
    -1; and the first value that is not among them."""
    codes, texts = coded_texts(column)
    places = pc.fill_null(pc.index_in(_plain(texts), pa.array(known, pa.large_string())), -1).to_numpy()
    of_none = known.index("") if "" in known else -1
    found = np.append(places, of_none).astype(np.int8)[codes]
    bad = found < 0
    if not bad.any():
        return found, None
    code = codes[np.argmax(bad)]
    return found, "" if code < 0 else texts[int(code)].as_py()


def flags_of(tables: Tables, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The flag, False where empty, and whether it is there: (N,) bool each."""
    places, unknown = places_among(tables.rows[name], _TRUE + _FALSE + _NONE)
    reject(tables.source, places < 0, f"{name} is {unknown!r}", "write True or False")
    return places < len(_TRUE), places < len(_TRUE) + len(_FALSE)


def boxes_of(tables: Tables) -> np.ndarray | None:
    """(N, 4) int64 boxes, -1 where empty; None where the table has none at all."""
    if not set(BOX_COLUMNS) & set(tables.rows.column_names):
        return None
    tables.require(BOX_COLUMNS, f"a box needs {', '.join(BOX_COLUMNS)}")
    source = tables.source
    boxes = np.stack([_numbers(tables.rows[name], name, source) for name in BOX_COLUMNS], 1)
    empty = np.isnan(boxes)
    if empty.all():
        return None
    whole = np.all(empty, axis=1)
    reject(source, np.any(empty, axis=1) & ~whole, "the box has an empty side", "fill in all four or none")
    left, top, right, bottom = boxes.T
    wrong = (left < 0) | (top < 0) | (left >= right) | (top >= bottom) | (boxes != np.rint(boxes)).any(1)
    bad = np.logical_and(~whole, wrong)
    if bad.any():
        sides_text = ", ".join(f"{n} {v:g}" for n, v in zip(BOX_COLUMNS, boxes[int(np.argmax(bad))], strict=True))
        reject(
            source,
            bad,
            f"the box is {sides_text}",
            "give whole pixels with 0 <= x_1 < x_2 and 0 <= y_1 < y_2",
        )
    return np.where(whole[:, None], -1, boxes).astype(np.int64)


def _numbers(column: pa.ChunkedArray, name: str, source: str) -> np.ndarray:
    codes, texts = coded_texts(column)
    plain = _plain(texts)
    plain = pc.if_else(pc.is_in(plain, pa.array(_NONE, plain.type)), None, plain)
    numeric = pc.fill_null(pc.match_substring_regex(plain, r"^[-+]?\d+(\.\d*)?(e[-+]?\d+)?$"), True)
    bad = np.append(~numeric.to_numpy(zero_copy_only=False), False)[codes]
    if bad.any():
        reject(source, bad, f"{name} is {plain[int(codes[np.argmax(bad)])].as_py()!r}", "write a number of pixels")
    return np.append(plain.cast(pa.float64()).to_numpy(zero_copy_only=False), np.nan)[codes]


def _plain(texts: pa.Array) -> pa.Array:
    return pc.utf8_lower(pc.utf8_trim_whitespace(texts))


def _pieces(column: pa.ChunkedArray) -> list[pa.Array]:
    """The column in pieces of no more than a million rows, so that what is made of one takes little memory."""
    size = 1 << 20
    return [chunk[start : start + size] for chunk in column.chunks for start in range(0, len(chunk), size)]
