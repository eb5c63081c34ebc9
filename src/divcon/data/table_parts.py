"""The parts of a table: which rows train, validate, are searched with and searched among."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.data.split import counted, first_half
from divcon.data.table_columns import flags_of, reject, texts_of
from divcon.data.table_file import require_columns
from divcon.errors import DataError

pc: Any = pyarrow.compute
"""Any, because its functions are made at import and type checkers see none."""

SPLITS = ("train", "test", "validation", "val", "query", "gallery")


def parts_of(
    path: Path, table: pa.Table, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Which rows are train, validation, query and gallery, (N,) bool each; and notes."""
    source, columns = str(path), table.column_names
    flags = {"is_query", "is_gallery"} & set(columns)
    if len(flags) == 1:
        require_columns(path, table, ["is_query", "is_gallery"], "give both is_query and is_gallery, or neither")
    if "split" not in columns and not flags:
        train = first_half(labels, source)
        counts = f"{len(np.unique(labels[train])):,} train, the other {len(np.unique(labels[~train])):,} test"
        note = f"the table has no split: the first half of the sorted classes, {counts}"
        return train, np.zeros_like(train), ~train, ~train, [note]

    query = gallery = known = np.zeros(len(table), bool)
    if flags:
        query, query_known = flags_of(table, "is_query", source)
        gallery, gallery_known = flags_of(table, "is_gallery", source)
        known = query_known & gallery_known
    if "split" not in columns:
        test = query | gallery
        return ~test, np.zeros_like(test), query, gallery, []

    split = _splits(table, source)
    train, validation = split == "train", (split == "validation") | (split == "val")
    test = ~train & ~validation
    if not test.any():
        test, validation = validation, np.zeros_like(validation)
    if not test.any():
        raise DataError(
            f"{source}: all rows are train, so there is nothing to judge the embedding on; mark rows as test, "
            "or leave the column split out and half of the classes are"
        )
    plain = test & (split != "query") & (split != "gallery")
    notes = []
    if flags:
        reject(source, plain & ~known, "is_query or is_gallery is empty in a test row", "write True or False")
        neither = plain & ~query & ~gallery
        if neither.any():
            notes.append(f"left out: {counted(neither.sum(), 'test row')}, neither query nor gallery")
    else:
        query = gallery = plain
    query, gallery = (plain & query) | (split == "query"), (plain & gallery) | (split == "gallery")
    return train, validation, query, gallery, notes


def _splits(table: pa.Table, source: str) -> np.ndarray:
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(pc.fill_null(texts_of(table["split"]), "")))
    places = pc.index_in(texts, pa.array(SPLITS))
    unknown = pc.is_null(places).to_numpy(zero_copy_only=False)
    if unknown.any():
        value = texts[int(np.argmax(unknown))].as_py()
        what = f"the split is {value!r}" if value else "the split is empty"
        reject(source, unknown, what, f"write one of {', '.join(SPLITS)}")
    return np.array(SPLITS)[places.to_numpy()]
