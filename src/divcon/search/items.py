"""What is to be indexed: images or vectors with a key, a path, a label and the user's columns; and what changed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.data.labeled_set import NO_PATH, LabeledSet, row_name
from divcon.data.readers.folder import SPLIT_FOLDERS
from divcon.data.tables import metadata_of, plain
from divcon.errors import DataError, ImageError

AT_A_TIME = 1024
"""Items that are embedded and written together: what an interruption can lose."""


@dataclass(frozen=True, eq=False)
class Items:
    """N images or vectors to be indexed."""

    images: LabeledSet
    names: list[str]
    """What each is known by: its path, and its box or row where several share a path."""
    labels: list[str | None]
    columns: pa.Table | None = None
    """The user's, N rows of text, whole numbers, numbers or booleans."""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> Items:
        """Those at ``indices``."""
        return Items(
            self.images.subset(indices),
            [self.names[i] for i in indices],
            [self.labels[i] for i in indices],
            None if self.columns is None else self.columns.take(pa.array(indices, pa.int64())),
        )

    def paths(self) -> list[str]:
        """Where each can be opened; for encoded images and vectors, what their table calls them."""
        files = self.images.encoded is None and self.images.vectors is None
        paths = self.images.paths.to_pylist()
        return [absolute(self.images.root, path) for path in paths] if files else self.names

    def boxes(self) -> list[str | None]:
        """``left,top,right,bottom`` of the part that is used, in pixels; None: all of it."""
        boxes = self.images.boxes
        return [_box(box) for box in boxes] if boxes is not None else [None] * len(self)

    def keys(self) -> list[str]:
        """32 hexadecimal digits of each name."""
        return [key_of(name) for name in self.names]

    def details(self) -> list[str]:
        """A digest of each label and its columns."""
        rows = self.columns.to_pylist() if self.columns is not None else [{}] * len(self)
        texts = (json.dumps([label, sorted(row.items())]) for label, row in zip(self.labels, rows, strict=True))
        return [key_of(text) for text in texts]

    def content(self, i: int) -> str:
        """32 hexadecimal digits of the bytes and box of image i, or of vector i.

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
    """32 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def absolute(root: str, path: str) -> str:
    """The path as it can be opened from anywhere, without ``..``; links are kept."""
    return os.path.abspath(os.path.join(root, path))  # noqa: PTH100, PTH118


def items_of(images: LabeledSet, columns: pa.Table | Mapping[str, Sequence[Any]] | None = None) -> tuple[Items, int]:
    """The items of a set, and how many of its rows were left out because an earlier one is the same image (path and
    box).

    Labels are the set's; where it has none and its images lie in folders below one, the first of these folders (below
    train, test or validation) is.

    Args:
        columns: the user's, row for row; None: those of the table that the set was read from.

    Raises:
        DataError: there are not as many rows of columns as images.
    """
    if columns is None:
        table = metadata_of(images.source)
        columns = None if table is None else table.take(pa.array(images.rows))
    else:
        columns = plain(columns if isinstance(columns, pa.Table) else pa.table(dict(columns)))
    if columns is not None and len(columns) != len(images):
        raise DataError(f"there are {len(columns):,} rows of columns for {len(images):,} images; give one an image")
    items = Items(images, _names(images), _labels(images), columns)
    first = {name: i for i, name in reversed(list(enumerate(items.names)))}
    if len(first) == len(items):
        return items, 0
    return items.take(np.sort(np.fromiter(first.values(), np.int64))), len(items) - len(first)


def chunks_of(items: Items, size: int = AT_A_TIME) -> Iterator[Items]:
    """The items in order, some at a time."""
    for start in range(0, len(items), size):
        yield items.take(np.arange(start, min(start + size, len(items))))


def listed(listing: str, root: str = "") -> Iterator[Items]:
    """The images whose paths a text file lists, one a line (``-``: standard input), some at a time: the listing is
    never in memory whole. Empty lines are skipped.

    Args:
        root: what relative paths start from.

    Raises:
        DataError: there is no such file, or it is not text in UTF-8.
    """
    try:
        with nullcontext(sys.stdin) if listing == "-" else Path(listing).open(encoding="utf-8-sig") as file:
            lines = (line.rstrip("\r\n") for line in file)
            yield from _in_sets((line for line in lines if line.strip()), root)
    except UnicodeDecodeError as error:
        raise DataError(f"{listing}: this is not a listing of paths in UTF-8 ({error})") from None
    except OSError as error:
        raise DataError(f"{listing}: cannot be read ({error.strerror or error})") from None


def _in_sets(paths: Iterable[str], root: str) -> Iterator[Items]:
    paths = iter(paths)
    while some := list(itertools.islice(paths, AT_A_TIME)):
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
        return [images.label_names[label] for label in images.labels]
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
