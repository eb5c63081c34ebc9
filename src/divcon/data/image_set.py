"""The two values that all data comes as: a labelled set of images or vectors, and a benchmark made of such sets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from divcon.data.decode import decode
from divcon.data.digests import digest_of, digest_of_parts
from divcon.data.encoded_images import Encoded
from divcon.data.source import where_in
from divcon.errors import DataError, ImageError

LEAVE_ONE_OUT = "leave-one-out"
QUERY_GALLERY = "query-gallery"
NO_PATH = "(no path)"
"""What stands for the path of an encoded image that has none."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N labelled images, by path, as encoded bytes, or as vectors that stand for them.

    ``rows`` identifies an image within its source (the row of the table, or the place in the sorted folder):
    two sets read from the same source hold the same image where they hold the same row.
    """

    labels: np.ndarray
    """(N,) int64, each an index into ``label_names``."""
    label_names: tuple[str, ...]
    """The names of all classes of the source, those that this set has no image of included."""
    paths: pa.Array
    """(N,) strings, as the source gives them: relative to ``root``, or absolute."""
    rows: np.ndarray
    """(N,) int64, unique."""
    source: str
    """The table or folder that the rows count in, for messages."""
    root: str = ""
    """The folder that relative paths start from."""
    encoded: Encoded | None = None
    """The source's column of encoded images (PNG, JPEG, ... bytes), indexed by ``rows``; None: files are
    opened."""
    vectors: np.ndarray | None = None
    """(N, F) float32, what a model sees in place of images; such a set has nothing to open. ``paths`` are then what
    the table gives, or ``row 17`` where it has none."""
    boxes: np.ndarray | None = None
    """(N, 4) int64, the part of each image to use: left, top, right, bottom in pixels; a negative left: all
    of it."""
    cameras: np.ndarray | None = None
    """(N,) int64. A query ignores gallery images of its own label and camera."""
    groups: np.ndarray | None = None
    """(N,) int64. A query ignores gallery images of its own group (a video sequence, say); -1 has none."""
    flip: bool = True
    """Whether a mirrored image is still of its class, so that training may flip."""

    def __post_init__(self) -> None:
        n = len(self.labels)
        for name in ("paths", "rows", "vectors", "boxes", "cameras", "groups"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"ImageSet: {name} has {len(value)} entries for {n} labels")
        if n and (self.labels.min() < 0 or self.labels.max() >= len(self.label_names)):
            raise ValueError("ImageSet: a label is outside label_names")
        if self.vectors is not None and (self.vectors.ndim != 2 or self.vectors.dtype != np.float32):
            raise ValueError(
                f"ImageSet: vectors are {self.vectors.dtype} of shape {self.vectors.shape}; they need (N, F) float32"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        what = "images" if self.vectors is None else "vectors"
        return f"ImageSet({len(self)} {what}, {self.num_classes} classes, {self.source!r})"

    @cached_property
    def classes(self) -> np.ndarray:
        """The labels that have an image here, sorted, (C,) int64."""
        return np.flatnonzero(np.bincount(self.labels))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def subset(self, indices: np.ndarray) -> ImageSet:
        """The images at ``indices`` (int or bool), in that order."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        run = None
        if len(indices) and indices[0] >= 0 and (np.diff(indices) == 1).all():
            # Images that follow one another are not copied: vectors may fill the memory.
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

    def joined(self, other: ImageSet) -> ImageSet:
        """The images of both, which come from one source."""

        def both(name: str) -> np.ndarray | None:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None else np.concatenate([mine, theirs])

        names = ("labels", "rows", "vectors", "boxes", "cameras", "groups")
        paths = pa.chunked_array([self.paths, other.paths]).combine_chunks()
        return replace(self, paths=paths, **{name: both(name) for name in names})

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of every image's path and label, and of its vector if it has one, in order."""
        return digest_of(self)

    def of_classes(self, classes: np.ndarray) -> ImageSet:
        """The images whose label is among ``classes``."""
        return self.subset(np.isin(self.labels, classes))

    def path(self, i: int) -> str:
        """The path of image i as the source gives it."""
        return self.paths[int(i)].as_py()

    def label_name(self, i: int) -> str:
        return self.label_names[self.labels[i]]

    def where(self, i: int) -> str:
        """Image i in words, for messages: the table and line that name it and the path given there, or its
        whole path."""
        row, path = int(self.rows[i]), self.path(i)
        table = where_in(self.source, row)
        if self.vectors is not None and path == row_name(row):
            return table.removesuffix(": ") or path
        return f"{table}{path}" if table else str(Path(self.root, path))

    def content(self, i: int) -> bytes:
        """The encoded bytes of image i, of all of it where it has a box.

        Raises:
            ImageError: the file cannot be read. Or the set is of vectors.
        """
        if self.vectors is not None:
            raise ImageError(f"{self.where(i)}: this is a vector, not an image")
        if self.encoded is not None:
            return self.encoded[int(self.rows[i])].as_py()
        try:
            return Path(self.root, self.path(i)).read_bytes()
        except OSError as error:
            raise ImageError(f"{self.where(i)}: cannot be read ({error.strerror or error})") from None

    def open(self, i: int, needs: int | None = None) -> Image.Image:
        """Image i, or the part of it in its box, as RGB: see `divcon.data.decode.decode`.

        Args:
            needs: pixels that its shorter side must have at least: a JPEG may be decoded at a smaller scale.

        Raises:
            ImageError: the file is missing, or does not decode; the message names it. Or the set is of vectors.
        """
        if self.vectors is not None:
            raise ImageError(f"{self.where(i)}: this is a vector, not an image; vectors are not opened")
        box = None
        if self.boxes is not None and self.boxes[i][0] >= 0:
            left, top, right, bottom = self.boxes[i].tolist()
            box = (left, top, right, bottom)
        encoded = self.encoded
        try:
            if encoded is None:
                return decode(Path(self.root, self.path(i)), box, needs)
            return decode(encoded[int(self.rows[i])].as_py(), box, needs)
        except ImageError as error:
            raise ImageError(f"{self.where(i)}: {error}") from None


def row_name(row: int) -> str:
    """What stands for the path of a vector that has none: ``row 17``."""
    return f"row {row}"


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What a model is trained on and what it is then asked: train classes, and queries against a gallery of
    others.

    ``query is gallery`` means leave-one-out: each image searches among all the others.
    """

    name: str
    train: ImageSet
    query: ImageSet
    gallery: ImageSet
    recall_at: tuple[int, ...] = (1, 2, 4, 8, 10)
    validation: ImageSet | None = None
    """Images of classes kept for model selection, where the source names them; otherwise they are held out of
    train."""
    random_galleries: int = 0
    """Galleries of one random image a class that it is scored with besides, as VehicleID's own protocol has it; 0:
    none."""
    notes: tuple[str, ...] = field(default=())
    """What the reader found that the user should know."""
    packed: str = ""
    """Of what it was packed, and how, in words (see `divcon.data.pack`); else empty."""

    def __post_init__(self) -> None:
        test = (("query", self.query), ("gallery", self.gallery))
        for name, other in test:
            _check_disjoint(self.train, "train", other, name)
        if self.validation is not None:
            for name, other in (("train", self.train), *test):
                _check_disjoint(self.validation, "validation", other, name)

    @property
    def protocol(self) -> str:
        return LEAVE_ONE_OUT if self.query is self.gallery else QUERY_GALLERY

    @property
    def parts(self) -> dict[str, ImageSet]:
        """Its sets by name: train, validation if it has one, and test, or query and gallery where they are two."""
        parts = {"train": self.train}
        if self.validation is not None:
            parts["validation"] = self.validation
        if self.query is self.gallery:
            return parts | {"test": self.query}
        return parts | {"query": self.query, "gallery": self.gallery}

    @cached_property
    def split_hash(self) -> str:
        """16 hexadecimal digits of what is asked of a model: every query and gallery image with its label.
        Two results can be compared where protocol and hash are the same."""
        return digest_of_parts(self.protocol, self.query, self.gallery)

    def with_validation(self, fraction: float = 0.1, seed: int = 0) -> Benchmark:
        """The same with validation classes: those that the source names, or else ``fraction`` of the train
        classes, drawn by ``seed`` and taken out of ``train``.

        Raises:
            DataError: too few classes to hold any out.
        """
        if self.validation is not None:
            return self
        # A class of one image has no match to be judged by.
        classes = np.flatnonzero(np.bincount(self.train.labels) >= 2)
        held = max(2, round(fraction * len(classes)))
        if len(classes) - held < 2:
            raise DataError(
                f"{self.train.source}: {len(classes)} train classes of two images and more are too few to hold "
                f"{held} out for validation; train without validation classes (--no-validation)"
            )
        chosen = np.random.default_rng([seed, 0x5EED]).permutation(classes)[:held]
        out = np.isin(self.train.labels, chosen)
        return replace(self, train=self.train.subset(~out), validation=self.train.subset(out))

    def without_validation(self) -> Benchmark:
        """The same with the validation classes that the source names among those to train on."""
        if self.validation is None:
            return self
        return replace(self, train=self.train.joined(self.validation), validation=None)


def _check_disjoint(part: ImageSet, name: str, other: ImageSet, other_name: str) -> None:
    label_of = {other.label_names[c]: c for c in other.classes}
    shared = [c for c in part.classes if part.label_names[c] in label_of]
    if not shared:
        return
    label = part.label_names[shared[0]]
    i = int(np.flatnonzero(part.labels == shared[0])[0])
    j = int(np.flatnonzero(other.labels == label_of[label])[0])
    number = "1 class is" if len(shared) == 1 else f"{len(shared):,} classes are"
    raise DataError(
        f"{number} both in {name} and in {other_name}, for example {label!r} ({part.where(i)}; "
        f"{other.where(j)}): an embedding is judged on classes never seen in training, so give each class one "
        "split"
    )
