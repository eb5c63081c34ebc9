"""Tables of images or vectors: CSV or parquet, in divcon's columns or open-metric-learning's."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.data.image_set import NO_PATH, Benchmark, ImageSet, where_in
from divcon.data.split import checked_benchmark, counted, sorted_names
from divcon.data.table_columns import boxes_of, codes_of, encoded_of, reject, texts_of
from divcon.data.table_file import has_vectors, load_table, require_columns
from divcon.data.table_parts import parts_of
from divcon.data.vectors_reader import read_vectors
from divcon.errors import DataError

pc: Any = pyarrow.compute
"""Any, because its functions are made at import and type checkers see none."""


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
    - ``embedding`` (parquet): vectors in place of images (``read_vectors``), and no file is looked for; ``path`` may
      then be missing or empty.

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
    need = ["label"] if _needs_no_path(path, table) else ["path", "label"]
    require_columns(path, table, need, "a table needs the columns path and label")
    images = replace(_image_set(path, table, root), flip=flip)
    if check_files:
        check_paths(images)
    *parts, notes = parts_of(path, table, images.labels)
    if images.encoded is None:
        first_rows = _first_rows(images)
        once = [_once(part, first_rows) for part in parts]
        repeated = np.any([part & ~kept for part, kept in zip(parts, once, strict=True)], axis=0).sum()
        if repeated:
            what = "image" if images.vectors is None else "path"
            notes.append(f"left out: {counted(repeated, 'row')} with the {what} of an earlier row")
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
    """All images or vectors of a CSV or parquet, whose labels, if it has any, are kept, and whose split is ignored.

    Raises:
        DataError: as ``read_table``.
    """
    path = Path(path)
    table = load_table(path)
    if not _needs_no_path(path, table):
        require_columns(path, table, ["path"], "a table of images needs the column path")
    images = _image_set(path, table, root)
    if check_files:
        check_paths(images)
    return images


def check_paths(images: ImageSet) -> None:
    """Raise DataError if files are missing: which comes first, and how many do."""
    if images.encoded is not None or images.vectors is not None:
        return
    exists = os.path.exists
    missing = [i for i, p in enumerate(images.paths.to_pylist()) if not exists(os.path.join(images.root, p))]  # noqa: PTH118
    if missing:
        raise DataError(
            f"{images.where(missing[0])}: there is no such file ({len(missing):,} of {len(images):,} are "
            f"missing); relative paths start from {images.root or '.'}: another folder can be given as the root"
        )


def _needs_no_path(path: Path, table: pa.Table) -> bool:
    return "image" in table.column_names or has_vectors(path)


def _image_set(path: Path, table: pa.Table, root: str | os.PathLike[str] | None) -> ImageSet:
    source, n = str(path), len(table)
    vectors = read_vectors(path) if has_vectors(path) else None
    encoded, inner_paths = encoded_of(table, source) if "image" in table.column_names else (None, None)
    paths = texts_of(table["path"]) if "path" in table.column_names else inner_paths
    if paths is None:
        paths = pa.nulls(n, pa.string())
    if vectors is not None:
        paths = _paths_or_rows(paths)
    elif encoded is None:
        reject(source, _empty(paths), "the path is empty", "name the image's file")
    else:
        paths = pc.fill_null(paths, NO_PATH)
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
        vectors=vectors,
        boxes=boxes_of(path, table),
        cameras=cameras,
        groups=groups,
    )


def _paths_or_rows(paths: pa.Array) -> pa.Array:
    """The paths, and the number of the row in place of those that are empty."""
    empty = _empty(paths)
    if not empty.any():
        return paths
    rows = pc.binary_join_element_wise("row", pa.array(np.arange(len(paths))).cast(pa.string()), " ")
    return pc.if_else(pa.array(empty), rows, paths)


def _empty(texts: pa.Array) -> np.ndarray:
    return pc.equal(pc.utf8_trim_whitespace(pc.fill_null(texts, "")), "").to_numpy(zero_copy_only=False)


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
