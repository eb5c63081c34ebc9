"""Read tables of images or vectors: CSV, parquet or JSON Lines, with divcon's columns or open-metric-learning's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlparse

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.config.settings import TEST_FRACTION, Protocol
from divcon.data.benchmark import Benchmark, checked_benchmark, counted, labelled
from divcon.data.columns import GUESS, Columns, split_flag
from divcon.data.encoded import encoded_in, read_encoded
from divcon.data.image_files import entries_of, is_system_folder
from divcon.data.labeled_set import NO_PATH, LabeledSet
from divcon.data.labels import label_text, read_labels
from divcon.data.readers.splits import drawn_benchmark
from divcon.data.readers.vectors import read_vectors, vectors_in
from divcon.data.split_names import split_role
from divcon.data.splitting import Splitting, classes_in_groups
from divcon.data.table_folders import saved_files, tree_files
from divcon.data.table_format import stem_of
from divcon.data.tables import (
    BOX_COLUMNS,
    CSV_SUFFIXES,
    PARQUET_SUFFIXES,
    TableFile,
    Tables,
    is_in_memory,
    load_tables,
    metadata_of,
    tables_in_memory,
    where_in,
)
from divcon.errors import ConfigError, DataError, first_line
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.places import is_url, text_of, without_secrets

pc: Any = pyarrow.compute
"""Any: pyarrow creates its functions at import, so type checkers do not know them."""

_TRUE = ("true", "1", "1.0")
_FALSE = ("false", "0", "0.0")
_NONE = ("", "none", "nan", "null", "<na>")
"""How tables write an empty number or flag."""
OnMissingLabel = Literal["stop", "skip"]
"""What to do with a row without a label: stop and name it, or leave it out."""
_MOST_BYTES = 1 << 30
"""The most bytes of text that are stored as Arrow's type `string`, which can hold twice as many."""


def reject(source: str, bad: np.ndarray, problem: str, advice: str) -> None:
    """Raise DataError for the first of the ``bad`` rows, (N,) bool; none: return."""
    rows = np.flatnonzero(bad)
    if len(rows):
        more = f" (in {len(rows):,} rows)" if len(rows) > 1 else ""
        raise DataError(f"{where_in(source, int(rows[0]))}{problem}{more}; {advice}")


def texts_of(column: pa.ChunkedArray) -> pa.Array:
    """The values as text, in one piece; whole numbers without a decimal point."""
    chunks = [text_chunk(chunk) for chunk in column.chunks]
    kind = pa.large_string() if sum(chunk.nbytes for chunk in chunks) > _MOST_BYTES else pa.string()
    chunks = [chunk.cast(kind) for chunk in chunks]
    return chunks[0] if len(chunks) == 1 else pa.chunked_array(chunks, kind).combine_chunks()


def text_chunk(chunk: pa.Array) -> pa.Array:
    """The values of one piece of a column as text."""
    if pa.types.is_dictionary(chunk.type):
        chunk = chunk.cast(chunk.type.value_type)
    is_text = pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)
    return chunk if is_text else chunk.cast(pa.string())


def coded_texts(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """The index of every value among the distinct texts, (N,) int64, -1 for null; and these texts."""
    offsets, values, codes = 0, [], []
    for chunk in column.chunks:
        coded = text_chunk(chunk).dictionary_encode()
        values.append(coded.dictionary.cast(pa.large_string()))
        codes.append((offsets, pc.fill_null(coded.indices, -1).to_numpy()))
        offsets += len(coded.dictionary)
    joined = pa.chunked_array(values, pa.large_string()).combine_chunks().dictionary_encode()
    # The last index is for -1.
    place = np.append(joined.indices.to_numpy(), -1).astype(np.int64)
    parts = [place[np.where(part < 0, -1, part + start)] for start, part in codes]
    return np.concatenate([np.empty(0, np.int64), *parts]), joined.dictionary


def codes_of(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) int64, equal for equal texts; -1 for null."""
    return coded_texts(column)[0]


def is_empty(column: pa.ChunkedArray) -> np.ndarray:
    """Whether each value is null or only spaces, (N,) bool."""
    chunks = [pc.equal(pc.utf8_trim_whitespace(pc.fill_null(text_chunk(part), "")), "") for part in _pieces(column)]
    return np.concatenate([np.empty(0, bool), *(chunk.to_numpy(zero_copy_only=False) for chunk in chunks)])


def places_among(column: pa.ChunkedArray, known: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """The index of every value among the ``known`` texts, (N,) int8, ignoring spaces and case (null is "", unknown -1);
    and the first unknown value."""
    codes, texts = coded_texts(column)
    places = pc.fill_null(pc.index_in(_plain(texts), pa.array(known, pa.large_string())), -1).to_numpy()
    of_none = known.index("") if "" in known else -1
    indices = np.append(places, of_none).astype(np.int8)[codes]
    bad = indices < 0
    if not bad.any():
        return indices, None
    code = codes[np.argmax(bad)]
    return indices, "" if code < 0 else texts[int(code)].as_py()


def flags_of(tables: Tables, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The flags, False if empty, and whether they are set: (N,) bool each."""
    places, unknown = places_among(tables.rows[name], _TRUE + _FALSE + _NONE)
    reject(tables.source, places < 0, f"{name} is {unknown!r}", "write True or False")
    return places < len(_TRUE), places < len(_TRUE) + len(_FALSE)


def boxes_of(tables: Tables) -> np.ndarray | None:
    """(N, 4) int64 boxes, -1 if empty; None if the table has no box."""
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
    """The column in pieces of at most a million rows, to save memory."""
    size = 1 << 20
    return [chunk[start : start + size] for chunk in column.chunks for start in range(0, len(chunk), size)]


SPLITS = ("train", "test", "validation", "val", "query", "gallery")
_TRAIN, _TEST, _VALIDATION, _VAL, _QUERY, _GALLERY = range(len(SPLITS))


def has_split(tables: Tables) -> bool:
    """Whether the table says which rows are train, and which are test."""
    return bool({"split", "is_query", "is_gallery"} & set(tables.rows.column_names))


def parts_of(tables: Tables, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Whether each row of a table with a split is train, validation, query and gallery, (N,) bool each; and notes."""
    source, columns = tables.source, tables.rows.column_names
    flags = {"is_query", "is_gallery"} & set(columns)
    if flags:
        tables.require(["is_query", "is_gallery"], "give both is_query and is_gallery, or neither")
    query = gallery = known = np.zeros(len(labels), bool)
    if flags:
        query, query_known = flags_of(tables, "is_query")
        gallery, gallery_known = flags_of(tables, "is_gallery")
        known = query_known & gallery_known
    if "split" not in columns:
        test = query | gallery
        return ~test, np.zeros_like(test), query, gallery, []

    split, notes = _splits(tables)
    train, validation = split == _TRAIN, (split == _VALIDATION) | (split == _VAL)
    test = ~train & ~validation
    if not test.any():
        test, validation = validation, np.zeros_like(validation)
    if not test.any():
        raise DataError(
            f"{source}: all rows are train, so there is no test set; mark rows as test, or draw test classes with "
            "`ignore_split=True`"
        )
    plain = test & (split != _QUERY) & (split != _GALLERY)
    if flags:
        reject(source, plain & ~known, "is_query or is_gallery is empty in a test row", "write True or False")
        neither = plain & ~query & ~gallery
        if neither.any():
            notes.append(f"left out: {counted(neither.sum(), 'test row')}, neither query nor gallery")
    else:
        query = gallery = plain
    query, gallery = (plain & query) | (split == _QUERY), (plain & gallery) | (split == _GALLERY)
    return train, validation, query, gallery, notes


_MOST_NAMES = 1000
"""The most names of splits that are compared one by one: a column of more is no split."""


def _splits(tables: Tables) -> tuple[np.ndarray, list[str]]:
    """The index of every row's split in SPLITS, (N,) int8; and a note on other names that are read as these."""
    column, notes = tables.rows["split"], []
    places, unknown = places_among(column, SPLITS)
    if unknown is not None:
        codes, texts = coded_texts(column)
        names = texts.to_pylist() if len(texts) <= _MOST_NAMES else []
        roles = {name: role for name in names if (role := split_role(name, weak=True))}
        by_code = [SPLITS.index(roles[name]) if name in roles else -1 for name in names] or [-1] * len(texts)
        places = np.where(places < 0, np.array([*by_code, -1], np.int8)[codes], places)
        others = (f"{name!r} is {role}" for name, role in roles.items() if name.strip().casefold() not in SPLITS)
        notes = [f"splits: {', '.join(others)}"]
        bad = codes[places < 0][:1]
        unknown = texts[int(bad[0])].as_py() if len(bad) and bad[0] >= 0 else ""
    what = f"the split is {unknown!r}" if (unknown or "").strip() else "the split is empty"
    reject(tables.source, places < 0, what, f"write one of {', '.join(SPLITS)}")
    return places, notes


def first_rows(images: LabeledSet) -> np.ndarray:
    """For each row the first row with the same path and box, (N,) int64.

    Raises:
        DataError: an image has two labels.
    """
    if _is_ascending(images.paths):
        return np.arange(len(images))
    codes = images.paths.dictionary_encode().indices.to_numpy()
    if images.boxes is not None:
        for side in images.boxes.T:
            codes = _paired(codes, _coded(side))
    first = _first_of(codes, np.arange(len(codes)))[codes]
    clash = images.labels != images.labels[first]
    if clash.any():
        row = int(np.argmax(clash))
        other = int(first[row])
        raise DataError(
            f"{images.where(row)} has the label {images.label_name(row)!r}, and "
            f"{images.label_name(other)!r} in {where_in(images.source, other).rstrip(': ')}; give each image "
            "one label"
        )
    return first


def _is_ascending(texts: pa.Array) -> bool:
    """Whether each text is greater than the one before, so that none comes twice. Tables are often sorted, and a table
    of all texts takes as much memory as they do."""
    size = 1 << 20
    for start in range(0, len(texts) - 1, size):
        before, after = texts[start : start + size + 1][:-1], texts[start + 1 : start + size + 1]
        if not pc.all(pc.less(before, after), skip_nulls=False).as_py():
            return False
    return not texts.null_count


def once(part: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The split, (N,) bool, without rows that repeat an image of it; ``first`` is of ``first_rows``."""
    rows = np.flatnonzero(part)
    kept = np.zeros_like(part)
    kept[rows] = _first_of(first[rows], rows, len(part))[first[rows]] == rows
    return kept


def _first_of(codes: np.ndarray, rows: np.ndarray, num_codes: int | None = None) -> np.ndarray:
    """For each code the first of the ascending ``rows`` with it, (num_codes,) int64."""
    size = (int(codes.max()) + 1 if len(codes) else 0) if num_codes is None else num_codes
    first = np.empty(size, np.int64)
    # Of several rows that are assigned to one index, the last stays.
    first[codes[::-1]] = rows[::-1]
    return first


def _paired(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) codes of the pairs of two codes."""
    return _coded(codes.astype(np.int64) * (int(others.max(initial=0)) + 1) + others)


def _coded(numbers: np.ndarray) -> np.ndarray:
    return pa.array(numbers).dictionary_encode().indices.to_numpy()


def read_table(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    check_files: bool = True,
    flip: bool = True,
    on_missing_label: OnMissingLabel = "stop",
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    vector_column: str | None = None,
    test_fraction: float | None = TEST_FRACTION,
    group: str | None = None,
    protocol: Protocol = "auto",
    ignore_split: bool = False,
) -> Benchmark:
    """Read a CSV, parquet or JSON Lines file with the columns
    ``path,label[,split][,is_query,is_gallery][,camera]`` (or ``file_name`` instead of ``path``).

    - ``split``: train, test, validation (val, and other names as of ``read_folder``), query, gallery. Validation rows
      are for model selection; in a table without test rows they are the test set, as in open-metric-learning. Without
      ``split``, rows that are query or gallery are the test set; without those columns, a fifth of the classes is test,
      drawn by a hash of their names. Where train has every class of test, they are a closed set.
    - ``is_query``, ``is_gallery``: true, false, 1 or 0, for test rows. If all are both, the protocol is leave-one-out.
    - ``x_1,y_1,x_2,y_2``: the crop of the image to use: left, top, right, bottom in pixels; empty: all of it.
    - ``sequence``: a query ignores gallery images of its own sequence; ``camera``: those of its own class and camera.
    - ``image`` (parquet): encoded images instead of files, as bytes or as a struct with the field ``bytes``.
    - ``embedding`` (parquet): vectors instead of images (``read_vectors``); ``path`` may be missing or empty.

    A row that repeats the image (path and box) of an earlier row in the same split is left out, and a note says so.

    Args:
        root: the folder that relative paths start from, instead of the table's own.
        check_files: look for every file now, not when it is first used.
        flip: whether a mirrored image is still of its class, so that training may mirror images.
        on_missing_label: what to do with a row without a label: ``"stop"`` and name it, or ``"skip"`` and count it.
        image_column, label_column, split_column, vector_column: the names of these columns; None: guessed from the
            usual names (see `divcon.data.columns`), and a note says which.
        test_fraction, group, protocol, ignore_split: as in `divcon.read`.

    Raises:
        DataError: something is missing, empty, unknown or contradictory; the message has the table's name and line.
        ConfigError: an option has an unknown value, there is no column of a chosen name, or ``test_fraction`` is set,
            and the table has a split.
    """
    chosen = Columns(image_column, label_column, split_column, vector_column)
    splitting = Splitting(test_fraction, group, protocol, ignore_split)
    return benchmark_of(
        _one(path, root, chosen, on_missing_label),  # no name for it here, so that it is freed there
        check_files=check_files,
        flip=flip,
        on_missing_label=on_missing_label,
        splitting=splitting,
    )


def read_columns(
    columns: Any,
    root: str | os.PathLike[str] | None = None,
    *,
    name: str = "table",
    check_files: bool = True,
    flip: bool = True,
    on_missing_label: OnMissingLabel = "stop",
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    vector_column: str | None = None,
    test_fraction: float | None = TEST_FRACTION,
    group: str | None = None,
    protocol: Protocol = "auto",
    ignore_split: bool = False,
) -> Benchmark:
    """Make a benchmark of columns in memory, with the names and meaning as in ``read_table``: for readers of your own.

    Args:
        columns: a dict of lists or arrays, a pyarrow table, or a data frame of pandas or polars. ``image`` holds the
            bytes of encoded images, ``embedding`` an (N, F) array or a list of numbers per row.
        root: the folder that relative paths start from; None: the current one.
        name: of the benchmark, in results and messages.
        check_files, flip, on_missing_label, image_column, label_column, split_column, vector_column: as in
            ``read_table``.
        test_fraction, group, protocol, ignore_split: as in `divcon.read`.

    Raises:
        DataError: something is missing, empty, unknown or contradictory; the message has the row.
        ConfigError: ``test_fraction`` is set, and the table has a split.
    """
    chosen = Columns(image_column, label_column, split_column, vector_column)
    splitting = Splitting(test_fraction, group, protocol, ignore_split)
    tables = tables_in_memory(
        name, columns, "" if root is None else os.fspath(root), chosen, unknown_is_missing=on_missing_label == "skip"
    )
    return benchmark_of(
        tables, check_files=check_files, flip=flip, on_missing_label=on_missing_label, splitting=splitting
    )


def set_of_columns(
    columns: Any, *, name: str = "table", need_labels: bool = True, context: Context = DEFAULT
) -> LabeledSet:
    """All rows of columns in memory, whatever their split.

    Args:
        columns: as in ``read_columns``.
        need_labels: raise for a table or row without a label.

    Raises:
        DataError: as of ``read_columns``.
    """
    tables = tables_in_memory(name, columns, "", unknown_is_missing=not need_labels)
    if need_labels:
        tables.require(["label"], "labels are in the column label")
    return images_of_tables(tables, need_labels=need_labels, context=context)


def images_in_table(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    check_files: bool = True,
    chosen: Columns = GUESS,
    context: Context = DEFAULT,
) -> LabeledSet:
    """All images or vectors of a table, with their labels if it has any; the split is ignored. A row without a label is
    of the class without a name.

    Args:
        context: warned of what was guessed.

    Raises:
        DataError, ConfigError: as ``read_table``.
    """
    return images_of_tables(_one(path, root, chosen, "none"), check_files=check_files, context=context)


def _one(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None,
    chosen: Columns,
    on_missing_label: str,
) -> Tables:
    path = Path(path)
    return load_tables(
        stem_of(path),
        str(path),
        [TableFile(path)],
        text_of(path.parent if root is None else root),
        chosen,
        unknown_is_missing=on_missing_label != "stop",
    )


def benchmark_of(
    tables: Tables,
    *,
    check_files: bool = True,
    flip: bool = True,
    on_missing_label: OnMissingLabel = "stop",
    splitting: Splitting | None = None,
) -> Benchmark:
    """``read_table`` for loaded tables.

    Raises:
        DataError, ConfigError: as of ``read_table``.
    """
    splitting = splitting or Splitting()
    if on_missing_label not in get_args(OnMissingLabel):
        raise ConfigError(f"`on_missing_label` {on_missing_label!r}: must be stop or skip", field="on_missing_label")
    need = ["path", "label"] if tables.kind == "files" else ["label"]
    tables.require(need, "a table needs the columns path and label")
    tables = _without_odd_split(tables)
    images, missing = _image_set(tables, on_missing_label)
    images = replace(images, flip=flip)
    if check_files:
        check_paths(images.subset(~missing) if missing.any() else images)
    group_names = None
    if splitting.group is not None:
        images, group_names = _with_groups(tables, images, splitting.group)
    name, own = tables.name, has_split(tables) and not splitting.ignore_split
    if own:
        splitting.check_own(tables.source, _split_columns(tables))
    (*parts, more) = parts_of(tables, images.labels) if own else (np.ones(len(images), bool), [])
    notes = [*tables.notes(), *more]
    # Free the rows: there may be ten million.
    del tables
    if missing.any():
        notes.append(f"left out: {counted(missing.sum(), 'row')} without a label")
        images, parts = images.subset(~missing), [part[~missing] for part in parts]
    if images.encoded is None:
        first = first_rows(images)
        kept = [once(part, first) for part in parts]
        repeated = np.any([part & ~rest for part, rest in zip(parts, kept, strict=True)], axis=0).sum()
        if repeated:
            what = "image" if images.vectors is None else "path"
            notes.append(f"left out: {counted(repeated, 'row')} with the {what} of an earlier row")
        # An image that is a query in one row and in the gallery in another must not retrieve itself.
        parts, images = kept, replace(images, rows=images.rows[first])
    if not own:
        return drawn_benchmark(name, images.subset(parts[0]), splitting, notes, "the table has no split", group_names)
    train, validation, query, gallery = parts
    query_set = images.subset(query)
    gallery_set = query_set if (query == gallery).all() else images.subset(gallery)
    return checked_benchmark(
        name,
        images.subset(train),
        query_set,
        gallery_set,
        validation=images.subset(validation) if validation.any() else None,
        notes=[*notes, *_divided_groups(images, group_names, (train | validation, query | gallery))],
        protocol=splitting.protocol,
    )


def _split_columns(tables: Tables) -> str:
    names = [name for name in ("split", "is_query", "is_gallery") if name in tables.rows.column_names]
    files = not tables.columns or all("split" not in columns for columns in tables.columns)
    return "its files" if names == ["split"] and files and not is_in_memory(tables.source) else f"the column {names[0]}"


def _column_of_texts(tables: Tables, name: str) -> tuple[pa.ChunkedArray | None, list[str]]:
    """A column as text, row for row, null where a table lacks it, and the names of all columns; None where there is no
    such column, or it holds lists, objects or bytes."""
    if is_in_memory(tables.source):
        parts: list[Any] = [tables.in_memory]
    elif name in tables.rows.column_names:
        parts = [tables.rows]
    else:
        parts = [columns for _, columns in metadata_of(tables.source) or []]
    names = list(dict.fromkeys(each for part in parts for each in _names_in(part)))
    if name not in names:
        return None, names
    texts = []
    for part in parts:
        if isinstance(part, pa.Table) and name in part.column_names:
            kind = part[name].type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return None, names
            codes, values = coded_texts(part[name])
            texts.append(values.take(pa.array(codes, mask=codes < 0)))
        elif name in _names_in(part):
            try:
                values = [label_text(value) for value in part[name]]
            except ValueError:
                return None, names
            texts.append(pa.array(values, pa.string()))
        else:
            rows = len(part) if isinstance(part, pa.Table) else len(next(iter(part.values()), []))
            texts.append(pa.nulls(rows, pa.string()))
    return pa.chunked_array([chunk.cast(pa.string()) for chunk in texts], pa.string()), names


def _names_in(columns: Any) -> list[str]:
    return columns.column_names if isinstance(columns, pa.Table) else list(columns)


def _with_groups(tables: Tables, images: LabeledSet, group: str) -> tuple[LabeledSet, list[str]]:
    """The images with the groups of their classes, by a column; and the name of each class's group: the first of the
    column's values that it is joined by, or of a class without a value, its own.

    Raises:
        DataError: there is no such column, or it has no value in any row.
    """
    column, names = _column_of_texts(tables, group)
    if column is None:
        known = ", ".join(name for name in names if name not in ("split", "is_query", "is_gallery")) or "none"
        raise DataError(
            f"{tables.source}: `group` {group}: there is no such column of texts or numbers; there are: {known}"
        )
    codes, texts = coded_texts(column)
    empty = np.array([not text.strip() for text in texts.to_pylist()] + [True])
    codes = np.where(empty[codes], -1, codes)
    if (codes < 0).all():
        raise DataError(f"{tables.source}: `group` {group}: the column is empty in all rows")
    groups = classes_in_groups(images.labels, codes, len(images.label_names))
    values, first = texts.to_pylist(), {}
    some = codes >= 0
    for component, code in set(zip(groups[images.labels[some]].tolist(), codes[some].tolist(), strict=True)):
        first[component] = min(values[code], first.get(component, values[code]))
    names = [first.get(component, name) for component, name in zip(groups.tolist(), images.label_names, strict=True)]
    return replace(images, class_groups=groups), names


def _divided_groups(images: LabeledSet, names: Sequence[str] | None, sides: tuple[np.ndarray, np.ndarray]) -> list[str]:
    """A note on groups that the table's own split divides."""
    if images.class_groups is None or names is None:
        return []
    here, there = (np.unique(images.class_groups[images.labels[side]]) for side in sides)
    both = np.intersect1d(here, there)
    if not len(both):
        return []
    name = names[int(np.flatnonzero(images.class_groups == both[0])[0])]
    return [f"the split divides {counted(len(both), 'group')} between train and test, for example {name!r}"]


def _without_odd_split(tables: Tables) -> Tables:
    """The tables without a column that was taken for the split by its name, and holds other words than splits, or is a
    truth value that is the same in all rows; with a note where some rows have a split in it."""
    if "split" not in tables.guessed:
        return tables
    is_flag = all(split_flag(roles.names.get("split", "")) for roles in tables.roles)
    is_same = is_flag and pc.count_distinct(tables.rows["split"]).as_py() < 2
    places, unknown = places_among(tables.rows["split"], SPLITS)
    if not is_same and unknown is None:
        return tables
    columns = tuple(names - {"split"} for names in tables.columns)
    notes, odd = tables.odd, places < 0
    if odd.any() and not odd.all():
        column, row = tables.roles[0].names.get("split", "split"), int(np.argmax(odd))
        value = "is empty" if not unknown else f"is {unknown!r}"
        notes += (
            f"{where_in(tables.source, row)}the column {column!r} {value} here, so it is not taken for the split "
            f"({counted(odd.sum(), 'row')} of {len(odd):,} say no split); fill in all rows, or choose another with "
            "`split_column`",
        )
    guessed = tables.guessed - {"split"}
    return replace(tables, rows=tables.rows.drop_columns(["split"]), columns=columns, guessed=guessed, odd=notes)


def images_of_tables(
    tables: Tables, *, check_files: bool = True, need_labels: bool = False, context: Context = DEFAULT
) -> LabeledSet:
    """``images_in_table`` for loaded tables."""
    for note in tables.notes():
        context.warn(note)
    if tables.kind == "files":
        tables.require(["path"], "a table of images needs the column path")
    images, _ = _image_set(tables, "stop" if need_labels else "none")
    if check_files:
        check_paths(images)
    return images


def check_paths(images: LabeledSet) -> None:
    """Raise DataError if files are missing, with the first and their number."""
    if images.encoded is not None or images.vectors is not None:
        return
    if images.addresses([0] if len(images) else []):
        _check_addresses(images)
        return
    exists, join, root = os.path.exists, os.path.join, images.root
    first, missing = 0, 0
    for start in range(0, len(images), 1 << 16):
        paths = images.paths[start : start + (1 << 16)].to_pylist()
        gone = [start + i for i, path in enumerate(paths) if not (exists(join(root, path)) or is_url(path))]
        if gone and not missing:
            first = gone[0]
        missing += len(gone)
    if missing:
        raise DataError(
            f"{images.where(first)}: there is no such file ({missing:,} of {len(images):,} are "
            f"missing); {advice_on_path(images.path(first), images.root)}"
        )


def advice_on_path(path: str, root: str) -> str:
    """What to do about the path of an image that is not there: the file that it may mean, or where paths start from.

    Args:
        root: the folder that relative paths start from; "": the current one.
    """
    there = Path(root or ".")
    plain = path.strip()
    if plain != path and (there / plain).exists():
        return f"without the spaces around it, {plain!r} is there: take them out of the table"
    parts = [part for part in re.split(r"[/\\]+", plain) if part not in (".", "")]
    for start in range(len(parts)):
        below = Path(*parts[start:])
        if (start or len(parts) > 1) and (there / below).is_file() and below != Path(plain):
            return f"{below} is in {root or '.'}: write the paths in the table like this"
    if plain.startswith("~"):
        return "'~' is not replaced in a table: write whole paths, or paths that start from the table's folder"
    if re.match(r"[A-Za-z]:[/\\]", plain) or plain.startswith("/"):
        return (
            "write the paths as they are on this computer, or from the table's folder; `root` is the folder that "
            "relative paths start from"
        )
    folder = there / Path(*parts[:-1])
    try:
        names = {entry.name for entry in os.scandir(folder)} if parts else set()
    except OSError:
        names = set()
    stem = Path(parts[-1]).stem.casefold() if parts else ""
    like = sorted(name for name in names if Path(name).stem.casefold() == stem)
    starts = f"relative paths start from {root or '.'}: `root` sets another folder"
    if like and not Path(parts[-1]).suffix:
        return f"{like[0]!r} is there: add the ending to the paths of the table"
    if like:
        return f"{like[0]!r} is there: write the name as the file has it"
    ending = "" if not parts or Path(parts[-1]).suffix else "; the path has no ending such as .jpg"
    return starts + ending


_LOOKED_AT = 16
"""Images at addresses that are looked for when a table is read: a request for each of a million would take hours."""


def _check_addresses(images: LabeledSet) -> None:
    """Look for some of the images, from the first to the last.

    Raises:
        DataError: one is missing. RemoteError: the storage cannot be reached, or refuses.
    """
    from divcon.runtime import remote

    places = np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(np.int64)).tolist()

    def is_there(i: int) -> bool:
        file = images.file(i)
        return remote.exists(file) if isinstance(file, str) else file.exists()

    if not is_there(places[0]):
        gone = 0
    else:
        with ThreadPoolExecutor(8) as threads:
            gone = next((i for i, there in zip(places, threads.map(is_there, places), strict=True) if not there), None)
    if gone is not None:
        raise DataError(
            f"{images.where(gone)}: there is no such file ({without_secrets(str(images.file(gone)))}); relative paths "
            f"start from {images.root or '.'}: `root` sets another folder"
        )


def _image_set(tables: Tables, on_missing_label: OnMissingLabel | Literal["none"]) -> tuple[LabeledSet, np.ndarray]:
    """All rows, and which of them have no label and are to be left out, (N,) bool. ``none``: the rows without a label
    are of a class without a name."""
    source, rows, n = tables.source, tables.rows, len(tables.rows)
    try:
        vectors = encoded = inner = None
        if tables.in_memory is not None and tables.kind == "vectors":
            vectors = vectors_in(tables.in_memory, source)
        elif tables.in_memory is not None and tables.kind == "encoded":
            encoded, inner = encoded_in(tables.in_memory, source)
        elif tables.kind == "vectors":
            vectors = read_vectors(tables.files, source, n, tables.value_column)
        elif tables.kind == "encoded":
            encoded, inner = read_encoded(tables.files, source, tables.value_column)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: a column is damaged ({first_line(error)}); make the file again") from None
    if tables.kind == "files":
        reject(source, is_empty(rows["path"]), "the path is empty", "name the image's file")
    paths = texts_of(rows["path"]) if "path" in rows.column_names else inner
    if paths is not None and tables.kind == "files":
        paths = _local(paths, tables.root)
    if paths is None:
        paths = pa.nulls(n, pa.string())
    if len(paths) != n:  # the end of a parquet file says how many rows each column has, and may be damaged
        damaged = "a column is damaged: it has another number of rows than the others"
        raise DataError(f"{source}: {damaged}; make the file again")
    if tables.kind == "vectors":
        paths = _paths_or_rows(paths)
    elif tables.kind == "encoded":
        paths = pc.fill_null(paths, NO_PATH)
    label_names, labels, missing = ("",), np.zeros(n, np.int64), np.zeros(n, bool)
    spellings: tuple[tuple[str, ...], ...] = ()
    if "label" in rows.column_names:
        label_names, labels, spellings = _labels(tables)
        missing = labels < 0
        if missing.any() and (on_missing_label == "stop" or missing.all()):
            advice = "give the row a label, take it out, or leave such rows out (`on_missing_label=skip`)"
            reject(source, missing, "the label is empty", advice)
        if missing.any() and on_missing_label == "none":
            label_names, labels = (*label_names, ""), np.where(missing, len(label_names), labels)
            missing[:] = False
    groups = cameras = None
    if "sequence" in rows.column_names:
        groups = codes_of(rows["sequence"])
    if "camera" in rows.column_names:
        cameras = codes_of(rows["camera"])
        # An unknown camera is not the same as another unknown one.
        cameras = np.where(cameras < 0, -1 - np.arange(n), cameras)
    images = LabeledSet(
        labels=np.maximum(labels, 0),
        label_names=label_names,
        paths=paths,
        rows=np.arange(n, dtype=np.int64),
        source=source,
        root=tables.root,
        encoded=encoded,
        vectors=vectors,
        boxes=boxes_of(tables),
        cameras=cameras,
        groups=groups,
        spellings=spellings,
    )
    return images, missing


def _local(paths: pa.Array, root: str) -> pa.Array:
    """The paths, those of ``file:`` addresses and of Windows as this system writes them."""
    first = paths[0].as_py() if len(paths) else ""
    if first.lower().startswith("file:"):
        return pa.array(
            [unquote(urlparse(path).path) if path.lower().startswith("file:") else path for path in paths.to_pylist()],
            paths.type,
        )
    if os.sep == "/" and "\\" in first and not Path(root, first).exists():
        others = pc.replace_substring(paths, "\\", "/")
        some = others[:_LOOKED_AT].to_pylist()  # the first may be missing
        return others if any(Path(root, path).exists() for path in some) else paths
    return paths


def _labels(tables: Tables) -> tuple[tuple[str, ...], np.ndarray, tuple[tuple[str, ...], ...]]:
    """The classes, the class of each row, (N,) int64, -1 where the label is missing, and the classes' spellings."""
    try:
        labels = read_labels(tables.rows["label"], untyped=tables.untyped)
    except ValueError as error:
        raise DataError(f"{tables.source}: the column 'label' cannot be read ({error})") from None
    label_names, places = labelled(labels.names)
    return label_names, np.append(places, -1)[labels.codes], labels.spellings


def _paths_or_rows(paths: pa.Array) -> pa.Array:
    """The paths, with ``row N`` instead of empty ones."""
    empty = is_empty(pa.chunked_array([paths]))
    if not empty.any():
        return paths
    rows = pc.binary_join_element_wise("row", pa.array(np.arange(len(paths))).cast(pa.string()), " ")
    return pc.if_else(pa.array(empty), rows, paths)


ABOUT = "pack.json"
_MOST = 100_000


def as_packed(benchmark: Benchmark, folder: Path) -> Benchmark:
    """The benchmark of a folder of parquet files with the name and settings in its ``pack.json``, if there is one.

    Raises:
        DataError: ``pack.json`` is damaged, or of other files.
    """
    path = folder / ABOUT
    if not path.exists():
        return benchmark
    try:
        about = json.loads(path.read_text())
        recall_at, galleries = tuple(int(k) for k in about["recall_at"]), int(about["random_galleries"])
        if not recall_at or not all(1 <= k <= _MOST for k in recall_at) or not 0 <= galleries <= _MOST:
            raise ValueError("recall_at or random_galleries is no number of images")
        packed = replace(
            benchmark,
            name=str(about["name"]),
            recall_at=recall_at,
            random_galleries=galleries,
            notes=(*map(str, about["notes"]), str(about["packed"])),
            packed=str(about["packed"]),
        )
        parts = {name: replace(images, flip=bool(about["flip"])) for name, images in packed.parts.items()}
        then = about["split_hash"]
    except (ValueError, KeyError, TypeError, OSError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({error!r}); pack again") from None
    if not packed.has_split(then):
        raise DataError(f"{path}: its split is {then}, and that of the files beside it {packed.split_hash}; pack again")
    query = parts["test"] if "test" in parts else parts["query"]
    return replace(
        packed,
        train=parts["train"],
        validation=parts.get("validation"),
        query=query,
        gallery=parts.get("gallery", parts["train"] if packed.closed else query),
    )


_METADATA = tuple(f"metadata{suffix}" for suffix in (*CSV_SUFFIXES, *PARQUET_SUFFIXES, ".jsonl", ".ndjson"))
_SHARD = re.compile(
    rf"(?P<split>{'|'.join(SPLITS)})(-(?P<number>\d+)-of-(?P<count>\d+))?(-[0-9a-f]+)?({'|'.join(PARQUET_SUFFIXES)})"
)


def table_files(folder: str | os.PathLike[str]) -> list[TableFile]:
    """The tables that a folder is read from; none for a folder of images alone.

    - ``metadata.csv`` (or .tsv, .parquet, .pq, .jsonl, .ndjson) in it, or one in each of its folders ``train``,
      ``test``, ``validation``, ``query``, ``gallery`` (or another name of a split, see ``read_folder``);
    - parquet files named by their split, ``train.parquet`` or ``train-00000-of-00002.parquet``, in it or in its
      folder ``data``;
    - what ``save_to_disk`` of ``datasets`` writes;
    - tables and no images, in folders of any depth: as Spark writes them, ``label=cat/part-00000.parquet``, where
      ``label`` is a column; or by split, ``train/0000.parquet``.

    A file's own column ``split`` overrides its name. If all files are of one split, they have no split.

    Raises:
        DataError: two metadata files in one folder; one split's folder has one, and another's has none; of files
            numbered "of N" one is missing; several data sets, or one that is not written to its end.
    """
    root = Path(folder)
    files = saved_files(root) or _metadata_in(root) or _metadata_by_split(root)
    files = files or _shards_in(root) or _shards_in(root / "data", "data") or tree_files(root, SPLITS)
    splits = {file.split for file in files}
    if len(splits) == 1:
        files = [replace(file, split=None) for file in files]
    return files


def read_table_folder(
    root: str | os.PathLike[str],
    *,
    check_files: bool = True,
    flip: bool = True,
    on_missing_label: OnMissingLabel = "stop",
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    vector_column: str | None = None,
    test_fraction: float | None = TEST_FRACTION,
    group: str | None = None,
    protocol: Protocol = "auto",
    ignore_split: bool = False,
) -> Benchmark:
    """Read the tables in a folder (``table_files``), with the columns as in ``read_table``; paths start from the folder
    of the table that names them.

    Raises:
        DataError: as ``read_table`` and ``table_files``; there are none.
        ConfigError: as ``read_table``.
    """
    chosen = Columns(image_column, label_column, split_column, vector_column)
    splitting = Splitting(test_fraction, group, packed_protocol(Path(root), protocol), ignore_split)
    tables = _loaded(root, chosen, on_missing_label)
    benchmark = benchmark_of(
        tables, check_files=check_files, flip=flip, on_missing_label=on_missing_label, splitting=splitting
    )
    return benchmark if ignore_split else as_packed(benchmark, Path(root))


def packed_protocol(folder: Path, protocol: Protocol) -> Protocol:
    """The protocol to read a folder of tables under: of a packed closed set, that."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        return "closed" if protocol == "auto" and about.get("closed") is True else protocol
    except (OSError, ValueError, AttributeError, RecursionError):
        return protocol  # there is none, or it is damaged, which `as_packed` reports


def images_in_table_folder(
    root: str | os.PathLike[str], *, chosen: Columns = GUESS, context: Context = DEFAULT
) -> LabeledSet:
    """All images or vectors of the tables in a folder, with their labels if they have any.

    Raises:
        DataError, ConfigError: as ``read_table_folder``.
    """
    return images_of_tables(_loaded(root, chosen, "none"), context=context)


def _loaded(root: str | os.PathLike[str], chosen: Columns, on_missing_label: str) -> Tables:
    files = table_files(root)
    if not files:
        raise DataError(f"{root}: there are no tables in it ({', '.join(_METADATA)}, or parquet files of each split)")
    missing = on_missing_label != "stop"
    name, start = Path(root).resolve().name, text_of(root)
    return load_tables(name, str(root), files, start, chosen, unknown_is_missing=missing)


def _metadata_in(folder: Path, split: str | None = None) -> list[TableFile]:
    paths = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(paths) > 1:
        raise DataError(f"{folder}: there are {' and '.join(path.name for path in paths)}; keep one")
    return [TableFile(path, split, split or "") for path in paths]


def _metadata_by_split(root: Path) -> list[TableFile]:
    folders = [entry.name for entry in entries_of(root) if entry.is_dir()] if root.is_dir() else []
    roles = {name: name if name in SPLITS else role for name in folders if (role := split_role(name))}
    names = sorted(roles, key=lambda name: SPLITS.index(roles[name]))
    by_split = [
        [replace(file, split=roles[name], folder=name) for file in _metadata_in(root / name, name)] for name in names
    ]
    if any(by_split) and not all(by_split):
        without = names[[bool(files) for files in by_split].index(False)]
        raise DataError(f"{root / without}: there is no metadata file, and another split has one; write it here too")
    return [file for files in by_split for file in files]


def _shards_in(folder: Path, below: str = "") -> list[TableFile]:
    """The files named by their split, in order; none if there are other folders than ``data``, which may be classes."""
    if not folder.is_dir():
        return []
    entries = entries_of(folder)
    if any(entry.is_dir() and not is_system_folder(entry.name) and entry.name != "data" for entry in entries):
        # Folders of classes, beside which a table may lie.
        return []
    names = [match for entry in entries if (match := _SHARD.fullmatch(entry.name))]
    _check_complete(folder, names)
    names.sort(key=lambda match: (SPLITS.index(match["split"]), match.string))
    return [TableFile(folder / match.string, match["split"], below) for match in names]


def _check_complete(folder: Path, names: Iterable[re.Match[str]]) -> None:
    numbers: dict[tuple[str, int], set[int]] = {}
    for match in names:
        if match["count"]:
            numbers.setdefault((match["split"], int(match["count"])), set()).add(int(match["number"]))
    for (split, count), there in numbers.items():
        missing = [number for number in range(count) if number not in there]
        if missing:
            raise DataError(
                f"{folder}: of the {count} files of {split}, number {missing[0]:05d} is missing"
                f"{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; fetch it, or rename those there are"
            )
