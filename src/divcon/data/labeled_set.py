"""`LabeledSet`: labelled images or vectors, the form of all data in divcon."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
from PIL import Image

from divcon.config.pixel_range import PixelRange
from divcon.data.decode import decode, decode_channels
from divcon.data.digests import SPELLINGS, digest_of, from_root
from divcon.data.encoded import Encoded
from divcon.data.image_files import printable
from divcon.data.tables import where_in
from divcon.errors import ImageError
from divcon.runtime.copies import read_file
from divcon.runtime.places import is_url, joined, text_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

pc: Any = pyarrow.compute
"""Any: pyarrow creates its functions at import, so type checkers do not know them."""

NO_PATH = "(no path)"
"""The path of an encoded image that has none."""


@dataclass(frozen=True, eq=False)
class LabeledSet:
    """N labelled images, as paths or encoded bytes, or N labelled vectors.

    ``rows`` identifies an image within its source: it is the row of the table, or the index in the sorted folder. Equal
    rows of two sets from one source are the same image.
    """

    labels: np.ndarray
    """(N,) int64, each an index into ``label_names``."""
    label_names: tuple[str, ...]
    """The names of all classes of the source, including those without an image in this set."""
    paths: pa.Array
    """(N,) strings as in the source: relative to ``root``, or absolute."""
    rows: np.ndarray
    """(N,) int64, unique."""
    source: str
    """The table or folder that ``rows`` refers to; messages name it."""
    root: str = ""
    """The folder that relative paths start from."""
    encoded: Encoded | None = None
    """The encoded images of the source (bytes of PNG, JPEG, ...), indexed by ``rows``; None: ``paths`` are opened."""
    vectors: np.ndarray | None = None
    """(N, F) float32, the model's input in a set without images. ``paths`` are then names: those of the table, or
    ``row 17``."""
    boxes: np.ndarray | None = None
    """(N, 4) int64, the crop of each image to use: left, top, right, bottom in pixels; with a negative left the whole
    image."""
    cameras: np.ndarray | None = None
    """(N,) int64. A query ignores gallery images of its own label and camera."""
    groups: np.ndarray | None = None
    """(N,) int64. A query ignores gallery images of its own group (of a video sequence, for example); -1: no group."""
    class_groups: np.ndarray | None = None
    """(C,) int64, a number for each of ``label_names``: classes with the same number are never divided among train,
    validation and test, such as the variants of one product."""
    flip: bool = True
    """Whether a mirrored image is still of its class, so that training may mirror images."""
    spellings: tuple[tuple[str, ...], ...] = ()
    """For each class that the source writes in several ways, its name and the ways (see `divcon.data.labels`)."""

    def __post_init__(self) -> None:
        n = len(self.labels)
        for name in ("paths", "rows", "vectors", "boxes", "cameras", "groups"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"LabeledSet: {name} has {len(value)} entries for {n} labels")
        if self.class_groups is not None and len(self.class_groups) != len(self.label_names):
            raise ValueError(
                f"LabeledSet: class_groups has {len(self.class_groups)} entries for {len(self.label_names)} label names"
            )
        if n and (self.labels.min() < 0 or self.labels.max() >= len(self.label_names)):
            raise ValueError("LabeledSet: a label is outside label_names")
        if self.vectors is not None and (self.vectors.ndim != 2 or self.vectors.dtype != np.float32):
            raise ValueError(
                f"LabeledSet: vectors are {self.vectors.dtype} of shape {self.vectors.shape}; they need (N, F) float32"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        what = "images" if self.vectors is None else "vectors"
        return f"LabeledSet({len(self)} {what}, {self.num_classes} classes, {text_of(self.source)!r})"

    @cached_property
    def classes(self) -> np.ndarray:
        """The labels with an image in this set, sorted, (C,) int64."""
        return np.flatnonzero(np.bincount(self.labels))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def subset(self, indices: np.ndarray) -> LabeledSet:
        """The images at ``indices`` (int or bool), in that order."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        run = None
        if len(indices) and indices[0] >= 0 and (np.diff(indices) == 1).all():
            # A range is not copied: vectors may fill the memory.
            run = slice(int(indices[0]), int(indices[-1]) + 1)

        def take(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[indices if run is None else run]

        return replace(
            self,
            labels=self.labels[indices],
            rows=self.rows[indices],
            paths=self.paths.take(pa.array(indices, type=pa.int64())) if run is None else self.paths[run],
            vectors=take(self.vectors),
            boxes=take(self.boxes),
            cameras=take(self.cameras),
            groups=take(self.groups),
        )

    def joined(self, other: LabeledSet) -> LabeledSet:
        """The images of both sets, which come from one source."""

        def both(name: str) -> np.ndarray | None:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None else np.concatenate([mine, theirs])

        names = ("labels", "rows", "vectors", "boxes", "cameras", "groups")
        paths = pa.chunked_array([self.paths, other.paths]).combine_chunks()
        return replace(self, paths=paths, **{name: both(name) for name in names})

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of every image's path and label, and of its vector if it has one, in order; the same
        wherever the files are (see `divcon.data.digests`)."""
        return digest_of(self, from_root)

    def has_fingerprint(self, recorded: str | None) -> bool:
        """Whether a fingerprint that was recorded is of these images: today's, or an older version's."""
        if recorded is None or recorded == self.fingerprint:
            return recorded is not None
        return any(digest_of(self, spelling) == recorded for spelling in SPELLINGS[1:])

    def of_classes(self, classes: np.ndarray) -> LabeledSet:
        """The images whose label is among ``classes``."""
        return self.subset(np.isin(self.labels, classes))

    def path(self, i: int) -> str:
        """The path of image i, as in the source."""
        return self.paths[int(i)].as_py()

    def label_name(self, i: int) -> str:
        return self.label_names[self.labels[i]]

    def file(self, i: int) -> str | Path:
        """The file of image i: a path, or the text of an address; of a set of files."""
        return joined(self.root, self.path(i))

    def addresses(self, indices: Sequence[int]) -> list[str]:
        """The addresses among the files of these images."""
        if self.encoded is not None or self.vectors is not None or not self._has_addresses:
            return []
        return [file for i in indices if isinstance(file := self.file(i), str)]

    @cached_property
    def _has_addresses(self) -> bool:
        return is_url(self.root) or bool(pc.any(pc.match_substring(self.paths, "://")).as_py())

    def where(self, i: int) -> str:
        """The name of image i for messages: the table and line that name it, and its path there; or its full path."""
        row, path = int(self.rows[i]), self.path(i)
        table = where_in(self.source, row)
        if self.vectors is not None and path == row_name(row):
            return table.removesuffix(": ") or path
        return f"{table}{printable(path)}" if table else printable(str(joined(self.root, path)))

    def content(self, i: int) -> bytes:
        """The encoded bytes of image i, without cropping.

        Raises:
            ImageError: the file cannot be read, or the set is of vectors.
        """
        if self.vectors is not None:
            raise ImageError(f"{self.where(i)}: this is a vector, not an image")
        if self.encoded is not None:
            return self.encoded[int(self.rows[i])].as_py()
        try:
            return read_file(self.file(i))
        except OSError as error:
            raise ImageError(f"{self.where(i)}: cannot be read ({error.strerror or error})") from None

    def open(
        self, i: int, needs: int | None = None, pixel_range: PixelRange = "full", *, any_channels: bool = False
    ) -> Image.Image:
        """Decode image i, cropped to its box, as RGB (see `divcon.data.decode.decode`).

        Args:
            needs: pixels that its shorter side must have at least: a JPEG may be decoded at a smaller scale.
            pixel_range: what becomes black and white, of images with more than 8 bits a channel.
            any_channels: show arrays of any number of channels.

        Raises:
            ImageError: the file is missing or does not decode (the message names it), or the set is of vectors.
        """
        return self._decoded(i, lambda source, box: decode(source, box, needs, pixel_range, any_channels=any_channels))

    def open_channels(self, i: int, channels: int, pixel_range: PixelRange = "full") -> torch.Tensor:
        """Decode image i, cropped to its box, with another number of channels than three: (C, H, W) uint8 (see
        `divcon.data.decode.decode_channels`).

        Raises:
            ImageError: as of `open`, or the image has another number of channels.
        """
        return self._decoded(i, lambda source, box: decode_channels(source, channels, box, pixel_range))

    def _decoded(self, i: int, function: Callable[[Any, tuple[int, int, int, int] | None], T]) -> T:
        if self.vectors is not None:
            raise ImageError(f"{self.where(i)}: this is a vector, not an image; vectors are not opened")
        box = None
        if self.boxes is not None and self.boxes[i][0] >= 0:
            left, top, right, bottom = self.boxes[i].tolist()
            box = (left, top, right, bottom)
        encoded = self.encoded
        try:
            if encoded is None:
                return function(self.file(i), box)
            return function(encoded[int(self.rows[i])].as_py(), box)
        except ImageError as error:
            raise ImageError(f"{self.where(i)}: {error}") from None


def row_name(row: int) -> str:
    """The name of a vector without a path: ``row 17``."""
    return f"row {row}"


def file_sizes(images: LabeledSet) -> np.ndarray:
    """The size of each image's file in bytes, (N,) int64; -1 if there is no such file, or it is at
    an address: asking for each would take hours. Empty if no image is a file."""
    if images.vectors is not None or images.encoded is not None:
        return np.empty(0, np.int64)
    sizes = np.empty(len(images), np.int64)
    for start in range(0, len(images), 1 << 16):  # some at a time: ten million paths are gigabytes as Python's texts
        paths = images.paths[start : start + (1 << 16)].dictionary_encode()
        known = np.array([*(_file_size(images.root, path) for path in paths.dictionary.to_pylist()), -1], np.int64)
        sizes[start : start + len(paths)] = known[paths.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return sizes


def _file_size(root: str, path: str) -> int:
    if is_url(path) or (is_url(root) and not path.startswith("/")):
        return -1
    try:
        return os.stat(os.path.join(root, path)).st_size  # noqa: PTH116, PTH118 - a path takes as long to make
    except (OSError, TypeError, ValueError):
        return -1


def resized(then: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The images whose files have another size now, (n,) int64, without those that are or were missing."""
    if len(then) != len(now):
        return np.empty(0, np.int64)
    return np.flatnonzero((then != now) & (then >= 0) & (now >= 0))
