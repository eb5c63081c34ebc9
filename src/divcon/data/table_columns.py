"""Columns of a table to arrays, with errors that name the line; no loop over rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.data.image_set import where_in
from divcon.data.table_file import BOX_COLUMNS, require_columns
from divcon.errors import DataError

pc: Any = pyarrow.compute
"""Any, because its functions are made at import and type checkers see none."""

_TRUE = ("true", "1", "1.0")
_FALSE = ("false", "0", "0.0")
_NONE = ("", "none", "nan", "null", "<na>")
"""How writers of tables put an empty number or flag."""


def reject(source: str, bad: np.ndarray, problem: str, advice: str) -> None:
    """Raise DataError for the first of the ``bad`` rows, (N,) bool, if there are any."""
    rows = np.flatnonzero(bad)
    if len(rows):
        more = f" (in {len(rows):,} rows)" if len(rows) > 1 else ""
        raise DataError(f"{where_in(source, int(rows[0]))}{problem}{more}; {advice}")


def texts_of(column: pa.ChunkedArray) -> pa.Array:
    """The values as text, in one piece; whole numbers without a decimal point."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return pa.chunked_array([chunk.cast(pa.string()) for chunk in column.chunks], pa.string()).combine_chunks()


def codes_of(texts: pa.Array) -> np.ndarray:
    """(N,) int64, equal where the texts are; -1 where there is none."""
    return pc.fill_null(texts.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def flags_of(table: pa.Table, name: str, source: str) -> tuple[np.ndarray, np.ndarray]:
    """The flag, False where empty, and whether it is there: (N,) bool each."""
    texts = _lowered(table[name])
    places = pc.fill_null(pc.index_in(texts, pa.array(_TRUE + _FALSE + _NONE)), -1).to_numpy()
    bad = places < 0
    if bad.any():
        value = table[name][int(np.argmax(bad))].as_py()
        reject(source, bad, f"{name} is {value!r}", "write True or False")
    return places < len(_TRUE), places < len(_TRUE) + len(_FALSE)


def boxes_of(path: Path, table: pa.Table) -> np.ndarray | None:
    """(N, 4) int64 boxes, -1 where empty; None where the table has none at all."""
    if not set(BOX_COLUMNS) & set(table.column_names):
        return None
    require_columns(path, table, BOX_COLUMNS, f"a box needs {', '.join(BOX_COLUMNS)}")
    source = str(path)
    sides = [_numbers(table[name], name, source) for name in BOX_COLUMNS]
    boxes = np.stack(sides, 1)
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


def encoded_of(table: pa.Table, source: str) -> tuple[pa.ChunkedArray, pa.Array | None]:
    """The column of encoded images, and the paths that come with them, if any do.

    Raises:
        DataError: the column holds something else, or a row has no bytes.
    """
    column, paths = table["image"], None
    if pa.types.is_struct(column.type):
        fields = [column.type.field(i).name for i in range(column.type.num_fields)]
        if "path" in fields:
            paths = texts_of(pc.struct_field(column, "path"))
        if "bytes" in fields:
            column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(
            f"{source}: the column 'image' holds {column.type}, not encoded images (bytes of PNG, JPEG, ...); "
            "files are named in the column 'path'"
        )
    reject(source, column.is_null().to_numpy(), "the image has no bytes", "take the row out")
    return column, paths


def _numbers(column: pa.ChunkedArray, name: str, source: str) -> np.ndarray:
    texts = _lowered(column)
    texts = pc.if_else(pc.is_in(texts, pa.array(_NONE)), None, texts)
    numeric = pc.fill_null(pc.match_substring_regex(texts, r"^[-+]?\d+(\.\d*)?(e[-+]?\d+)?$"), True)
    bad = ~numeric.to_numpy(zero_copy_only=False)
    if bad.any():
        reject(source, bad, f"{name} is {texts[int(np.argmax(bad))].as_py()!r}", "write a number of pixels")
    return texts.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _lowered(column: pa.ChunkedArray) -> pa.Array:
    return pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(texts_of(column), "")))
