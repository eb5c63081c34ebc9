"""The parts of a table: which rows train, validate, are searched with and searched among."""

from __future__ import annotations

import numpy as np

from divcon.data.split import counted, first_half
from divcon.data.table_columns import flags_of, places_among, reject
from divcon.data.tables import Tables
from divcon.errors import DataError

SPLITS = ("train", "test", "validation", "val", "query", "gallery")
_TRAIN, _TEST, _VALIDATION, _VAL, _QUERY, _GALLERY = range(len(SPLITS))


def parts_of(tables: Tables, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Which rows are train, validation, query and gallery, (N,) bool each; and notes."""
    source, columns = tables.source, tables.rows.column_names
    flags = {"is_query", "is_gallery"} & set(columns)
    if flags:
        tables.require(["is_query", "is_gallery"], "give both is_query and is_gallery, or neither")
    if "split" not in columns and not flags:
        train = first_half(labels, source)
        counts = f"{np.count_nonzero(np.bincount(labels[train])):,} train, the other "
        counts += f"{np.count_nonzero(np.bincount(labels[~train])):,} test"
        note = f"the table has no split: the first half of the sorted classes, {counts}"
        return train, np.zeros_like(train), ~train, ~train, [note]

    query = gallery = known = np.zeros(len(labels), bool)
    if flags:
        query, query_known = flags_of(tables, "is_query")
        gallery, gallery_known = flags_of(tables, "is_gallery")
        known = query_known & gallery_known
    if "split" not in columns:
        test = query | gallery
        return ~test, np.zeros_like(test), query, gallery, []

    split = _splits(tables)
    train, validation = split == _TRAIN, (split == _VALIDATION) | (split == _VAL)
    test = ~train & ~validation
    if not test.any():
        test, validation = validation, np.zeros_like(validation)
    if not test.any():
        raise DataError(
            f"{source}: all rows are train, so there is nothing to judge the embedding on; mark rows as test, "
            "or leave the column split out and half of the classes are"
        )
    plain = test & (split != _QUERY) & (split != _GALLERY)
    notes = []
    if flags:
        reject(source, plain & ~known, "is_query or is_gallery is empty in a test row", "write True or False")
        neither = plain & ~query & ~gallery
        if neither.any():
            notes.append(f"left out: {counted(neither.sum(), 'test row')}, neither query nor gallery")
    else:
        query = gallery = plain
    query, gallery = (plain & query) | (split == _QUERY), (plain & gallery) | (split == _GALLERY)
    return train, validation, query, gallery, notes


def _splits(tables: Tables) -> np.ndarray:
    """The place of every row's split in SPLITS, (N,) int8."""
    places, unknown = places_among(tables.rows["split"], SPLITS)
    what = f"the split is {unknown!r}" if (unknown or "").strip() else "the split is empty"
    reject(tables.source, places < 0, what, f"write one of {', '.join(SPLITS)}")
    return places
