"""`Benchmark`: sets to train on and to test on; and helpers of all readers for classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from divcon.data.digests import SPELLINGS, digest_of_split, from_root
from divcon.data.image_files import Skipped
from divcon.data.labeled_set import LabeledSet
from divcon.data.labels import clean_label, label_notes
from divcon.errors import DataError


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: by number where all are whole numbers, by their text otherwise."""
    names = set(names)
    if all(re.fullmatch(r"-?\d+", name, re.ASCII) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def labelled(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The class names in the order of `sorted_names`, and the index into them of each of N names, (N,) int64; names
    are read by the rule of labels (`divcon.data.labels`)."""
    clean = {name: clean_label(name) for name in set(names)}
    names = [clean[name] for name in names]
    label_names = sorted_names(names)
    place = {name: i for i, name in enumerate(label_names)}
    return label_names, np.array([place[name] for name in names], np.int64)


def first_half(labels: np.ndarray, source: str) -> np.ndarray:
    """Whether each image is of the first half of the classes, the middle one included: (N,) bool.

    Raises:
        DataError: fewer than four classes.
    """
    classes = np.flatnonzero(np.bincount(labels))
    if len(classes) < 4:
        raise DataError(
            f"{source}: {_classes(len(classes))}; without a split, half of the classes train and half test, "
            "and both need two: give at least four, or a split"
        )
    return np.isin(labels, classes[: (len(classes) + 1) // 2])


def checked_benchmark(
    name: str,
    train: LabeledSet,
    query: LabeledSet,
    gallery: LabeledSet,
    *,
    validation: LabeledSet | None = None,
    notes: Sequence[str] = (),
) -> Benchmark:
    """A benchmark, with notes on classes without a positive pair or a match.

    Raises:
        DataError: a class is in two splits, or train or test has too few classes with a pair of images.
    """
    notes = [*notes, *label_notes(query.label_names, query.spellings)]
    if len(train):
        notes += _check_pairs(train, "train", "have no positive pair and sit out of training")
    else:
        notes.append("no image is in train: it serves for evaluation, not for training")
    if query is gallery:
        notes += _check_pairs(query, "test", "have no match, and as queries they are left out of the means")
    else:
        notes += _check_matches(query, gallery)
    return Benchmark(name, train, query, gallery, validation=validation, notes=tuple(notes))


def _check_pairs(images: LabeledSet, part: str, consequence: str) -> list[str]:
    classes, sizes = images.classes, np.bincount(images.labels)[images.classes]
    if (sizes >= 2).sum() < 2:
        raise DataError(
            f"{images.source}: {part} has {_classes(len(classes))}, {(sizes >= 2).sum()} of them with two "
            "images or more; it needs at least two such classes"
        )
    single = classes[sizes == 1]
    if not len(single):
        return []
    first = ", ".join(repr(images.label_names[c]) for c in single[:3])
    more = ", ..." if len(single) > 3 else ""
    return [f"{part}: {_classes(len(single))} of one image ({first}{more}) {consequence}"]


def _check_matches(query: LabeledSet, gallery: LabeledSet) -> list[str]:
    if not len(query) or not len(gallery):
        raise DataError(
            f"{query.source}: test has {len(query):,} queries and {len(gallery):,} gallery images; it needs both"
        )
    unmatched = ~np.isin(query.labels, gallery.labels)
    if unmatched.all():
        raise DataError(f"{query.source}: no query has an image of its class in the gallery")
    if unmatched.any():
        number = counted(unmatched.sum(), "query", "queries")
        return [f"test: {number} without a match in the gallery, left out of the means"]
    return []


def counted(n: int, one: str, many: str = "") -> str:
    """``1 image``, ``1,200 images``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _classes(n: int) -> str:
    return counted(n, "class", "classes")


LEAVE_ONE_OUT = "leave-one-out"
QUERY_GALLERY = "query-gallery"


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Images to train on, and queries and a gallery of other classes to test on.

    ``query is gallery`` means leave-one-out: each image is a query against all other images.
    """

    name: str
    train: LabeledSet
    query: LabeledSet
    gallery: LabeledSet
    recall_at: tuple[int, ...] = (1, 2, 4, 8, 10)
    validation: LabeledSet | None = None
    """Images for model selection, if the source has them; without, classes are held out of train."""
    random_galleries: int = 0
    """The number of galleries with one random image per class that are also evaluated, as in VehicleID's own
    protocol."""
    notes: tuple[str, ...] = field(default=())
    """Messages of the reader that a person should read."""
    packed: str = ""
    """For a packed benchmark: its source, and how it was packed (see `divcon.data.pack`)."""
    skipped: tuple[Skipped, ...] = ()
    """Of a folder: the files and folders that are not read, by kind; the notes have them too."""

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
    def parts(self) -> dict[str, LabeledSet]:
        """The splits by name: train, validation if there is one, and test, or query and gallery if they are two."""
        parts = {"train": self.train}
        if self.validation is not None:
            parts["validation"] = self.validation
        if self.query is self.gallery:
            return parts | {"test": self.query}
        return parts | {"query": self.query, "gallery": self.gallery}

    @cached_property
    def split_hash(self) -> str:
        """16 hexadecimal digits of the test: every query and gallery image with its label. Two results can be compared
        where protocol and hash are the same. It is the same wherever the files are, and whether paths are relative or
        absolute (see `divcon.data.digests`)."""
        return digest_of_split(self.protocol, self.query, self.gallery, from_root)

    def has_split(self, recorded: str | None) -> bool:
        """Whether a split hash that was recorded is of this test: today's, or an older version's."""
        if recorded is None or recorded == self.split_hash:
            return recorded is not None
        sets = (self.query, self.gallery)
        return any(digest_of_split(self.protocol, *sets, spelling) == recorded for spelling in SPELLINGS[1:])

    @property
    def train_fingerprint(self) -> str:
        """The fingerprints of the images to train on and to validate on."""
        return "-".join(part.fingerprint for part in self._trained_on)

    def has_train_fingerprint(self, recorded: str) -> bool:
        """Whether a `train_fingerprint` that was recorded is of these images: today's, or an older version's."""
        then = recorded.split("-")
        return len(then) == len(self._trained_on) and all(
            part.has_fingerprint(fingerprint) for part, fingerprint in zip(self._trained_on, then, strict=True)
        )

    @property
    def _trained_on(self) -> list[LabeledSet]:
        return [part for part in (self.train, self.validation) if part is not None]

    def with_validation(self, fraction: float = 0.1, seed: int = 0) -> Benchmark:
        """The benchmark with validation classes: those of the source, or a ``fraction`` of the train classes, sampled
        by ``seed`` and taken out of ``train``.

        Raises:
            DataError: there are too few classes to hold any out.
        """
        if self.validation is not None:
            return self
        # A class of one image has no match.
        classes = np.flatnonzero(np.bincount(self.train.labels) >= 2)
        num_held_out = max(2, round(fraction * len(classes)))
        if len(classes) - num_held_out < 2:
            raise DataError(
                f"{self.train.source}: {len(classes)} train classes of two images and more are too few to hold "
                f"{num_held_out} out for validation; train without (`validation=False`)"
            )
        chosen = np.random.default_rng([seed, 0x5EED]).permutation(classes)[:num_held_out]
        held_out = np.isin(self.train.labels, chosen)
        return replace(self, train=self.train.subset(~held_out), validation=self.train.subset(held_out))

    def without_validation(self) -> Benchmark:
        """The benchmark with the validation classes of the source in ``train``."""
        if self.validation is None:
            return self
        return replace(self, train=self.train.joined(self.validation), validation=None)


def folds_of(data: Benchmark, count: int, seed: int, setting: str = "folds") -> list[Benchmark]:
    """Cross-validation folds of the train classes: ``count`` benchmarks, each with another fold as validation classes.
    Folds differ by at most one class. Classes of one image, which have no match, are never held out.

    Args:
        setting: the setting that ``count`` is of, for the message.

    Raises:
        DataError: fewer than two classes of at least two images for each fold.
    """
    sizes = np.bincount(data.train.labels)
    classes = np.flatnonzero(sizes >= 2)
    if len(classes) < 2 * count:
        raise DataError(
            f"{data.train.source}: {len(classes)} train classes of two images and more are too few for {count} folds "
            f"of two classes; use fewer `{setting}`, or more classes"
        )
    folds = []
    for fold in np.array_split(np.random.default_rng([seed, 0xF01D]).permutation(classes), count):
        held_out = np.isin(data.train.labels, fold)
        train, validation = data.train.subset(~held_out), data.train.subset(held_out)
        folds.append(replace(data, train=train, validation=validation, notes=()))
    return folds


def _check_disjoint(part: LabeledSet, name: str, other: LabeledSet, other_name: str) -> None:
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
        f"{other.where(j)}): the test is on classes that are not trained on, so give each class one split"
    )
