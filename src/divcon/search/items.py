"""Items: the images or vectors to index, with key, path, label, the user's columns, and digests of all that."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.data.benchmark import Benchmark
from divcon.data.in_memory import is_image
from divcon.data.inputs import as_benchmark
from divcon.data.labeled_set import NO_PATH, LabeledSet, row_name
from divcon.data.python_values import is_value
from divcon.data.read import is_dataset_name, read
from divcon.data.readers.folder import SPLIT_FOLDERS, images_of
from divcon.data.tables import metadata_of, plain
from divcon.errors import DataError, ImageError
from divcon.models.inputs import as_set
from divcon.runtime.context import DEFAULT, Context

CHUNK = 1024
"""Items that are embedded and written at once: what an interruption can lose."""


@dataclass(frozen=True, eq=False)
class Items:
    """N images or vectors to index."""

    images: LabeledSet
    names: list[str]
    """What identifies each: its path, and its box or row if several share a path."""
    labels: list[str | None]
    columns: pa.Table | None = None
    """The user's columns, N rows of text, integers, floats or booleans."""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> Items:
        """The items at ``indices``."""
        return Items(
            self.images.subset(indices),
            [self.names[i] for i in indices],
            [self.labels[i] for i in indices],
            None if self.columns is None else self.columns.take(pa.array(indices, pa.int64())),
        )

    def paths(self) -> list[str]:
        """The file of each; for encoded images and vectors, their names in their table."""
        files = self.images.encoded is None and self.images.vectors is None
        paths = self.images.paths.to_pylist()
        return [absolute(self.images.root, path) for path in paths] if files else self.names

    def boxes(self) -> list[str | None]:
        """``left,top,right,bottom`` of each image's crop, in pixels; None: the whole image."""
        boxes = self.images.boxes
        return [_box(box) for box in boxes] if boxes is not None else [None] * len(self)

    def keys(self) -> list[str]:
        """The digest of each name."""
        return [key_of(name) for name in self.names]

    def details(self) -> list[str]:
        """A digest of each label and its columns."""
        rows = self.columns.to_pylist() if self.columns is not None else [{}] * len(self)
        texts = (json.dumps([label, sorted(row.items())]) for label, row in zip(self.labels, rows, strict=True))
        return [key_of(text) for text in texts]

    def content(self, i: int) -> str:
        """The digest of the bytes and box of image i, or of vector i.

        Raises:
            ImageError: its file cannot be read; the message names it.
        """
        images = self.images
        if images.vectors is not None:
            return hashlib.blake2b(np.ascontiguousarray(images.vectors[i]).tobytes(), digest_size=16).hexdigest()
        if images.encoded is not None:
            content = images.encoded[int(images.rows[i])].as_py()
        else:
            try:
                content = Path(images.root, images.path(i)).read_bytes()
            except OSError as error:
                raise ImageError(f"{images.where(i)}: this image cannot be read ({error.strerror or error})") from None
        digest = hashlib.blake2b(content, digest_size=16)
        if images.boxes is not None and images.boxes[i][0] >= 0:
            digest.update(_box(images.boxes[i]).encode())  # type: ignore[union-attr]
        return digest.hexdigest()


def key_of(text: str) -> str:
    """The digest of a text: 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def absolute(root: str, path: str) -> str:
    """The absolute path, without ``..``; links are not resolved."""
    return os.path.abspath(os.path.join(root, path))  # noqa: PTH100, PTH118


Data = LabeledSet | Benchmark | np.ndarray | tuple[Any, Any] | str | Path | Sequence[str | Path] | Any
"""Images or vectors: a set, a benchmark (its gallery), an (N, F) array, ``(vectors, labels)``, a name that
`divcon.read` takes (its gallery), a file, folder or table, a list of files and folders, or what `EmbeddingModel.encode`
takes: images in memory, a frame, a dict, a Dataset."""


def set_of(data: Data, root: str | Path | None = None, context: Context = DEFAULT) -> LabeledSet:
    """The images or vectors to index.

    Args:
        data: see `Data`.
        root: the folder that the relative paths of a table start from, in place of its own; or the folder of a named
            data set.

    Raises:
        DataError: nothing of that kind, or nothing there.
    """
    if isinstance(data, LabeledSet):
        return data
    if isinstance(data, Benchmark):
        return data.gallery
    if isinstance(data, str) and is_dataset_name(data) and not Path(data).exists():
        return read(data, root, context=context).gallery
    if isinstance(data, np.ndarray) or hasattr(data, "detach"):
        return as_set(data)
    if isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "shape"):
        images = as_benchmark(data).gallery
        return replace(images, paths=pa.array([str(i) for i in range(len(images))], pa.string()), source="")
    if isinstance(data, str | Path) or (
        isinstance(data, Sequence) and all(isinstance(path, str | Path) for path in data)
    ):
        return images_of(data, root)
    if is_value(data) or is_image(data):
        return as_set(data)
    raise DataError(
        f"`data` is of type {type(data).__name__}: pass a file, folder or table, a list of them, a set, a benchmark, "
        "an array of vectors, or (vectors, labels)"
    )


def items_of(images: LabeledSet, columns: pa.Table | Mapping[str, Sequence[Any]] | None = None) -> tuple[Items, int]:
    """The items of a set, and the number of its rows that are left out because an earlier row has the same image (path
    and box).

    Labels are the set's. If it has none and its images are in folders below one, the name of the first of these folders
    (below train, test or validation) is the label.

    Args:
        columns: the user's columns, one row per image; None: those of the table that the set was read from.

    Raises:
        DataError: the number of rows is not the number of images.
    """
    if columns is None:
        table = metadata_of(images.source)
        columns = None if table is None else table.take(pa.array(images.rows))
    else:
        columns = plain(columns if isinstance(columns, pa.Table) else pa.table(dict(columns)))
    if columns is not None and len(columns) != len(images):
        raise DataError(f"`columns` has {len(columns):,} rows for {len(images):,} images; pass one row per image")
    items = Items(images, _names(images), _labels(images), columns)
    first = {name: i for i, name in reversed(list(enumerate(items.names)))}
    if len(first) == len(items):
        return items, 0
    return items.take(np.sort(np.fromiter(first.values(), np.int64))), len(items) - len(first)


def chunks_of(items: Items, size: int = CHUNK) -> Iterator[Items]:
    """The items in order, ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items.take(np.arange(start, min(start + size, len(items))))


def read_listing(listing: str, root: str = "") -> Iterator[Items]:
    """The images whose paths are in a text file, one per line (``-``: standard input), some at a time: the file is
    never in memory as a whole. Empty lines are skipped.

    Args:
        root: the folder that relative paths start from.

    Raises:
        DataError: there is no such file, or it is not text in UTF-8.
    """
    try:
        with nullcontext(sys.stdin) if listing == "-" else Path(listing).open(encoding="utf-8-sig") as file:
            lines = (line.rstrip("\r\n") for line in file)
            yield from _chunks((line for line in lines if line.strip()), root)
    except UnicodeDecodeError as error:
        raise DataError(f"{listing}: this is not a listing of paths in UTF-8 ({error})") from None
    except OSError as error:
        raise DataError(f"{listing}: cannot be read ({error.strerror or error})") from None


def _chunks(paths: Iterable[str], root: str) -> Iterator[Items]:
    paths = iter(paths)
    while some := list(itertools.islice(paths, CHUNK)):
        images = LabeledSet(
            labels=np.zeros(len(some), np.int64),
            label_names=("",),
            paths=pa.array(some, pa.string()),
            rows=np.arange(len(some)),
            source="",
            root=root,
        )
        yield items_of(images)[0]


def _names(images: LabeledSet) -> list[str]:
    paths = images.paths.to_pylist()
    if images.encoded is None and images.vectors is None:
        boxes = images.boxes if images.boxes is not None else itertools.repeat(None)
        pairs = zip(paths, boxes, strict=False)
        return [f"{absolute(images.root, path)}{f' {box}' if (box := _box(b)) else ''}" for path, b in pairs]
    often = Counter(paths)
    source = absolute("", images.source) if images.source else ""
    names = []
    for path, row in zip(paths, images.rows.tolist(), strict=True):
        if path in (NO_PATH, row_name(row)):
            path = f"{source} {row_name(row)}".strip()
        elif often[path] > 1 and images.encoded is not None:
            path = f"{path} {row_name(row)}"
        names.append(path)
    return names


def _labels(images: LabeledSet) -> list[str | None]:
    if images.label_names != ("",):
        return [images.label_names[label] or None for label in images.labels]  # a row of a table may have no label
    if not images.root or images.encoded is not None or images.vectors is not None:
        return [None] * len(images)
    return [_folder(path) for path in images.paths.to_pylist()]


def _folder(path: str) -> str | None:
    folders = [part for part in Path(path).parts[:-1] if part not in ("/", ".", "..")]
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return None
    if len(folders) > 1 and folders[0] in SPLIT_FOLDERS:
        folders = folders[1:]
    return folders[0] if folders else None


def _box(box: np.ndarray | None) -> str | None:
    return None if box is None or box[0] < 0 else ",".join(map(str, box.tolist()))
