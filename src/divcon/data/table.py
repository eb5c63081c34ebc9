"""Tables of images: CSV or parquet, in divcon's columns or open-metric-learning's."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.data.image_set import Benchmark, ImageSet, where_in
from divcon.data.split import checked_benchmark, counted, first_half, sorted_names
from divcon.data.table_columns import boxes_of, codes_of, encoded_of, flags_of, reject, texts_of
from divcon.data.table_file import load_table, require_columns
from divcon.errors import DataError

pc: Any = pyarrow.compute
"""Any, because its functions are made at import and type checkers see none."""

SPLITS = ("train", "test", "validation", "val", "query", "gallery")


def read_table(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    check_files: bool = True,
    flip: bool = True,
) -> Benchmark:
    """A benchmark from a CSV or parquet with the columns
    ``path,label[,split][,is_query,is_gallery][,camera]``.

    - ``split``: train, test, validation (or val), query, gallery. Validation rows are the test part where
      there is no other, as open-metric-learning means them; otherwise they are for model selection. Without
      ``split``, the rows that are query or gallery are the test part; without those columns too, the first
      half of the sorted classes trains.
    - ``is_query``, ``is_gallery``: true, false, 1 or 0, for test rows. Where all are both, the protocol is
      leave-one-out.
    - ``x_1,y_1,x_2,y_2``: the part of the image to use: left, top, right, bottom in pixels; empty: all of it.
    - ``sequence``: a query ignores gallery images of its own sequence; ``camera``: those of its own class and
      camera.
    - ``image`` (parquet): encoded images in place of files, as bytes or as a struct with the field ``bytes``.

    A row that repeats an earlier row's image (path and box) in the same part is left out, and a note says so.

    Args:
        root: the folder that relative paths start from, in place of the table's own.
        check_files: look for every file now, not when it is first used.
        flip: whether a mirrored image is still of its class, so that training may flip.

    Raises:
        DataError: with the table's name and line, for what is missing, empty, unknown or contradictory.
    """
    path = Path(path)
    table = load_table(path)
    has_images = "image" in table.column_names
    require_columns(
        path,
        table,
        ["label"] if has_images else ["path", "label"],
        "a table needs the columns path and label",
    )
    images = replace(_image_set(path, table, root), flip=flip)
    if check_files:
        check_paths(images)
    *parts, notes = _parts(path, table, images.labels)
    if not has_images:
        first_rows = _first_rows(images)
        once = [_once(part, first_rows) for part in parts]
        repeated = np.any([part & ~kept for part, kept in zip(parts, once, strict=True)], axis=0).sum()
        if repeated:
            notes.append(f"left out: {counted(repeated, 'row')} with the image of an earlier row")
        # An image that is a query in one row and in the gallery in another must not find itself.
        parts, images = once, replace(images, rows=first_rows)
    train, validation, query, gallery = parts
    query_set = images.subset(query)
    gallery_set = query_set if (query == gallery).all() else images.subset(gallery)
    return checked_benchmark(
        path.stem,
        images.subset(train),
        query_set,
        gallery_set,
        validation=images.subset(validation) if validation.any() else None,
        notes=notes,
    )


def images_in_table(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, *, check_files: bool = True
) -> ImageSet:
    """All images of a CSV or parquet, whose labels, if it has any, are kept, and whose split is ignored.

    Raises:
        DataError: as ``read_table``.
    """
    path = Path(path)
    table = load_table(path)
    if "image" not in table.column_names:
        require_columns(path, table, ["path"], "a table of images needs the column path")
    images = _image_set(path, table, root)
    if check_files:
        check_paths(images)
    return images


def check_paths(images: ImageSet) -> None:
    """Raise DataError if files are missing: which comes first, and how many do."""
    if images.encoded is not None:
        return
    exists = os.path.exists
    missing = [i for i, p in enumerate(images.paths.to_pylist()) if not exists(os.path.join(images.root, p))]  # noqa: PTH118
    if missing:
        raise DataError(
            f"{images.where(missing[0])}: there is no such file ({len(missing):,} of {len(images):,} are "
            f"missing); relative paths start from {images.root or '.'}: another folder can be given as the root"
        )


def _image_set(path: Path, table: pa.Table, root: str | os.PathLike[str] | None) -> ImageSet:
    source, n = str(path), len(table)
    encoded, inner_paths = encoded_of(table, source) if "image" in table.column_names else (None, None)
    paths = texts_of(table["path"]) if "path" in table.column_names else inner_paths
    if paths is None:
        paths = pa.nulls(n, pa.string())
    if encoded is None:
        reject(source, _empty(paths), "the path is empty", "name the image's file")
    else:
        paths = pc.fill_null(paths, "(no path)")
    label_names, labels = ("",), np.zeros(n, np.int64)
    if "label" in table.column_names:
        texts = texts_of(table["label"])
        reject(source, _empty(texts), "the label is empty", "give the row a label or take it out")
        coded = texts.dictionary_encode()
        names = coded.dictionary.to_pylist()
        label_names = sorted_names(names)
        place = {name: i for i, name in enumerate(label_names)}
        labels = np.array([place[name] for name in names], np.int64)[coded.indices.to_numpy()]
    groups = cameras = None
    if "sequence" in table.column_names:
        groups = codes_of(texts_of(table["sequence"]))
    if "camera" in table.column_names:
        cameras = codes_of(texts_of(table["camera"]))
        # An unknown camera is not the same as another unknown one.
        cameras = np.where(cameras < 0, -1 - np.arange(n), cameras)
    return ImageSet(
        labels=labels,
        label_names=label_names,
        paths=paths,
        rows=np.arange(n, dtype=np.int64),
        source=source,
        root=str(path.parent if root is None else root),
        encoded=encoded,
        boxes=boxes_of(path, table),
        cameras=cameras,
        groups=groups,
    )


def _empty(texts: pa.Array) -> np.ndarray:
    return pc.equal(pc.utf8_trim_whitespace(pc.fill_null(texts, "")), "").to_numpy(zero_copy_only=False)


def _parts(
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


def _first_rows(images: ImageSet) -> np.ndarray:
    """(N,) int64: the first row that has the same path and box as row i.

    Raises:
        DataError: an image has two labels.
    """
    codes = codes_of(images.paths)
    if images.boxes is not None:
        codes = np.unique(np.column_stack([codes, images.boxes]), axis=0, return_inverse=True)[1].reshape(-1)
    _, first, of_row = np.unique(codes, return_index=True, return_inverse=True)
    first_rows = first[of_row]
    clash = images.labels != images.labels[first_rows]
    if clash.any():
        row = int(np.argmax(clash))
        other = int(first_rows[row])
        raise DataError(
            f"{images.where(row)} has the label {images.label_name(row)!r}, and "
            f"{images.label_name(other)!r} in {where_in(images.source, other).rstrip(': ')}; give each image "
            "one label"
        )
    return first_rows


def _once(part: np.ndarray, first_rows: np.ndarray) -> np.ndarray:
    """The part, (N,) bool, without the rows whose image an earlier row of it has."""
    rows = np.flatnonzero(part)
    once = np.zeros_like(part)
    once[rows[np.unique(first_rows[rows], return_index=True)[1]]] = True
    return once
