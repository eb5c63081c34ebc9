"""Tables of images or vectors: CSV, parquet or JSON Lines, in divcon's columns or open-metric-learning's."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.data.encoded_images import read_encoded
from divcon.data.image_set import NO_PATH, Benchmark, ImageSet
from divcon.data.repeats import first_rows, once
from divcon.data.split import checked_benchmark, counted, labelled
from divcon.data.table_columns import boxes_of, coded_texts, codes_of, is_empty, reject, texts_of
from divcon.data.table_file import first_line
from divcon.data.table_parts import parts_of
from divcon.data.tables import TableFile, Tables, load_tables
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
    """A benchmark from a CSV, a parquet or JSON Lines with the columns
    ``path,label[,split][,is_query,is_gallery][,camera]``; ``file_name`` will do for ``path``.

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
    return benchmark_of(_one(path, root), check_files=check_files, flip=flip)


def images_in_table(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, *, check_files: bool = True
) -> ImageSet:
    """All images or vectors of a table, whose labels, if it has any, are kept, and whose split is ignored.

    Raises:
        DataError: as ``read_table``.
    """
    return images_of_tables(_one(path, root), check_files=check_files)


def _one(path: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> Tables:
    path = Path(path)
    return load_tables(path.stem, str(path), [TableFile(path)], str(path.parent if root is None else root))


def benchmark_of(tables: Tables, *, check_files: bool = True, flip: bool = True) -> Benchmark:
    """``read_table`` of tables that are loaded."""
    need = ["path", "label"] if tables.kind == "files" else ["label"]
    tables.require(need, "a table needs the columns path and label")
    images = replace(_image_set(tables), flip=flip)
    if check_files:
        check_paths(images)
    name, (*parts, notes) = tables.name, parts_of(tables, images.labels)
    # Of the rows there is no more need; of ten million it counts.
    del tables
    if images.encoded is None:
        first = first_rows(images)
        kept = [once(part, first) for part in parts]
        repeated = np.any([part & ~rest for part, rest in zip(parts, kept, strict=True)], axis=0).sum()
        if repeated:
            what = "image" if images.vectors is None else "path"
            notes.append(f"left out: {counted(repeated, 'row')} with the {what} of an earlier row")
        # An image that is a query in one row and in the gallery in another must not find itself.
        parts, images = kept, replace(images, rows=first)
    train, validation, query, gallery = parts
    query_set = images.subset(query)
    gallery_set = query_set if (query == gallery).all() else images.subset(gallery)
    return checked_benchmark(
        name,
        images.subset(train),
        query_set,
        gallery_set,
        validation=images.subset(validation) if validation.any() else None,
        notes=notes,
    )


def images_of_tables(tables: Tables, *, check_files: bool = True) -> ImageSet:
    """``images_in_table`` of tables that are loaded."""
    if tables.kind == "files":
        tables.require(["path"], "a table of images needs the column path")
    images = _image_set(tables)
    if check_files:
        check_paths(images)
    return images


def check_paths(images: ImageSet) -> None:
    """Raise DataError if files are missing: which comes first, and how many do."""
    if images.encoded is not None or images.vectors is not None:
        return
    exists, join, root = os.path.exists, os.path.join, images.root
    first, missing = 0, 0
    for start in range(0, len(images), 1 << 16):
        paths = images.paths[start : start + (1 << 16)].to_pylist()
        gone = [start + i for i, path in enumerate(paths) if not exists(join(root, path))]
        if gone and not missing:
            first = gone[0]
        missing += len(gone)
    if missing:
        raise DataError(
            f"{images.where(first)}: there is no such file ({missing:,} of {len(images):,} are "
            f"missing); relative paths start from {images.root or '.'}: another folder can be given as the root"
        )


def _image_set(tables: Tables) -> ImageSet:
    source, rows, n = tables.source, tables.rows, len(tables.rows)
    try:
        vectors = read_vectors(tables.files, source, n) if tables.kind == "vectors" else None
        encoded, inner = read_encoded(tables.files, source) if tables.kind == "encoded" else (None, None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: a column is damaged ({first_line(error)}); make the file again") from None
    if tables.kind == "files":
        reject(source, is_empty(rows["path"]), "the path is empty", "name the image's file")
    paths = texts_of(rows["path"]) if "path" in rows.column_names else inner
    if paths is None:
        paths = pa.nulls(n, pa.string())
    if len(paths) != n:  # the end of a parquet file says how many rows each column has, and may be damaged
        damaged = "a column is damaged: it has another number of rows than the others"
        raise DataError(f"{source}: {damaged}; make the file again")
    if tables.kind == "vectors":
        paths = _paths_or_rows(paths)
    elif tables.kind == "encoded":
        paths = pc.fill_null(paths, NO_PATH)
    label_names, labels = ("",), np.zeros(n, np.int64)
    if "label" in rows.column_names:
        label_names, labels = _labels(rows["label"], source)
    groups = cameras = None
    if "sequence" in rows.column_names:
        groups = codes_of(rows["sequence"])
    if "camera" in rows.column_names:
        cameras = codes_of(rows["camera"])
        # An unknown camera is not the same as another unknown one.
        cameras = np.where(cameras < 0, -1 - np.arange(n), cameras)
    return ImageSet(
        labels=labels,
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
    )


def _labels(column: pa.ChunkedArray, source: str) -> tuple[tuple[str, ...], np.ndarray]:
    codes, texts = coded_texts(column)
    names = texts.to_pylist()
    empty = np.array([not name.strip() for name in names] + [True])[codes]
    reject(source, empty, "the label is empty", "give the row a label or take it out")
    label_names, labels = labelled(names)
    return label_names, labels[codes]


def _paths_or_rows(paths: pa.Array) -> pa.Array:
    """The paths, and the number of the row in place of those that are empty."""
    empty = is_empty(pa.chunked_array([paths]))
    if not empty.any():
        return paths
    rows = pc.binary_join_element_wise("row", pa.array(np.arange(len(paths))).cast(pa.string()), " ")
    return pc.if_else(pa.array(empty), rows, paths)
