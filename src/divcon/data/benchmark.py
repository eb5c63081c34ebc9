"""`Benchmark`: sets to train on and to test on; and helpers of all readers for classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from divcon.config.settings import Protocol
from divcon.data.digests import SPELLINGS, digest_of_split, from_root
from divcon.data.image_files import Skipped
from divcon.data.labeled_set import LabeledSet
from divcon.data.labels import clean_label, label_notes
from divcon.data.splitting import folds_of_images, held_out_images
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
    protocol: Protocol | None = None,
) -> Benchmark:
    """A benchmark, with notes on classes without a positive pair or a match.

    Args:
        protocol: what to do where train and test share classes. None: refuse, as for published data. auto: a closed
            set where train has every test class. open: leave the shared classes out of test. closed: a closed set,
            whatever they share.

    Raises:
        DataError: a class is in two splits, or train or test has too few classes with a pair of images.
    """
    notes = [*notes, *label_notes(query.label_names, query.spellings)]
    if len(train):
        notes += _check_pairs(train, "train", "have no positive pair and sit out of training")
    else:
        notes.append("no image is in train: it serves for evaluation, not for training")
    closed = False
    if protocol is not None and len(train):
        closed = _is_closed(train, query, protocol)
        if protocol == "auto" and not closed and validation is not None:
            _check_validation(train, validation)
        if protocol == "open":
            query, gallery, validation, more = _without_shared(train, query, gallery, validation)
            notes += more
    if closed:
        whole = gallery is query
        gallery = train if whole else gallery
        notes.append(_closed_note(train, query, whole=whole))
    if query is gallery:
        notes += _check_pairs(query, "test", "have no match, and as queries they are left out of the means")
    else:
        notes += _check_matches(query, gallery)
    return Benchmark(name, train, query, gallery, validation=validation, notes=tuple(notes), closed=closed)


def _is_closed(train: LabeledSet, query: LabeledSet, protocol: Protocol) -> bool:
    """Whether train and test are a closed set.

    Raises:
        DataError: they share some classes, and it is not said what to do about that; or none, in a closed set.
    """
    known = {train.label_names[c] for c in train.classes}
    classes = [query.label_names[c] for c in query.classes]
    shared = [name for name in classes if name in known]
    if protocol == "closed" and classes and not shared:
        raise DataError(
            f"{query.source}: train and test share no class, so that it is no closed set; leave `protocol=closed` out"
        )
    if protocol == "open" or not shared:
        return False
    if protocol == "auto" and len(shared) < len(classes):
        where = int(np.flatnonzero(query.labels == query.label_names.index(shared[0]))[0])
        other = int(np.flatnonzero(train.labels == train.label_names.index(shared[0]))[0])
        raise DataError(
            f"{query.source}: {_are(len(shared), 'class')} both in train and in test, of {len(classes):,} test classes "
            f"and {len(known):,} train classes, for example {shared[0]!r} ({train.where(other)}; {query.where(where)})"
            ". To test on classes that are not trained on, leave their images out of test with `protocol=open`; to "
            "test on other images of the classes that are trained on, use `protocol=closed` (test images of the rest "
            "are then queries without a match)"
        )
    return True


def _check_validation(train: LabeledSet, validation: LabeledSet) -> None:
    """
    Raises:
        DataError: train and validation share classes, though train and test share none.
    """
    known = {train.label_names[c] for c in train.classes}
    shared = [validation.label_names[c] for c in validation.classes if validation.label_names[c] in known]
    if shared:
        raise DataError(
            f"{validation.source}: {_are(len(shared), 'class')} both in validation and in train, for example "
            f"{shared[0]!r}, and the test is on classes that are not trained on, as validation must be: leave their "
            "images out of validation with `protocol=open`, or give each class one split"
        )


def _closed_note(train: LabeledSet, query: LabeledSet, *, whole: bool) -> str:
    gallery = f"{counted(len(train), 'training image')}" if whole else "its gallery images"
    return (
        f"a closed set: train and test have the same classes; {counted(len(query), 'test image')} search among "
        f"{gallery}, and scores do not compare with those on classes that are not trained on"
    )


def _without_shared(
    train: LabeledSet, query: LabeledSet, gallery: LabeledSet, validation: LabeledSet | None
) -> tuple[LabeledSet, LabeledSet, LabeledSet | None, list[str]]:
    """The test and validation sets without the images whose class an earlier set has, and notes that count them.

    Raises:
        DataError: no test image is left.
    """
    known, notes = {train.label_names[c] for c in train.classes}, []

    def rest_of(images: LabeledSet, name: str) -> LabeledSet:
        shared = np.array([label in known for label in images.label_names], bool)
        out = shared[images.labels] if len(images) else np.zeros(0, bool)
        if out.any():
            number = len(np.unique(images.labels[out]))
            notes.append(
                f"left out of {name}: {counted(int(out.sum()), 'image')} of {_classes(number)} that train, by "
                "`protocol=open`"
            )
        return images.subset(~out) if out.any() else images

    left = rest_of(query, "test")
    if len(query) and not len(left):
        raise DataError(
            f"{query.source}: all {_classes(query.num_classes)} of test are in train too, so that `protocol=open` "
            "leaves no test image; draw test classes from all images with `ignore_split=True`, or test on other images "
            "of the same classes with `protocol=closed`"
        )
    others = left if gallery is query else rest_of(gallery, "the gallery")
    if validation is not None:
        known |= {images.label_names[c] for images in (left, others) for c in images.classes}
        validation = rest_of(validation, "validation")
    return left, others, validation if validation is not None and len(validation) else None, notes


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


def _are(n: int, one: str) -> str:
    return f"1 {one} is" if n == 1 else f"{n:,} {one}es are"


LEAVE_ONE_OUT = "leave-one-out"
QUERY_GALLERY = "query-gallery"
CLOSED_SET = "closed-set"


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Images to train on, and queries and a gallery of other classes to test on.

    ``query is gallery`` means leave-one-out: each image is a query against all other images.

    A *closed set* is about new images of known classes: queries are images that are not trained on, of classes that
    are, and search among the training images.
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
    no_classes: tuple[str, ...] = ()
    """Labels of the gallery that are no class, such as those of distractors."""
    closed: bool = False
    """Whether it is a closed set. Its validation images are of train classes too."""
    for_use: bool = False
    """Whether train has the test images too (see `on_all`), so that no score on them is one."""
    splitting: Mapping[str, Any] = field(default_factory=dict)
    """The options of `divcon.read` that it was split with: ``test_fraction`` where its test was drawn, and those of
    ``group``, ``protocol`` and ``ignore_split`` that are not at their defaults."""

    def __post_init__(self) -> None:
        if self.for_use:
            return
        test = (("query", self.query), ("gallery", self.gallery))
        if self.closed:
            self._check_closed()
            return
        for name, other in test:
            _check_disjoint(self.train, "train", other, name)
        if self.validation is not None:
            for name, other in (("train", self.train), *test):
                _check_disjoint(self.validation, "validation", other, name)

    def _check_closed(self) -> None:
        sets = [("train", self.train), ("validation", self.validation), ("test", self.query)]
        for i, (name, images) in enumerate(sets):
            for other_name, other in sets[i + 1 :]:
                if images is None or other is None or images.source != other.source:
                    continue
                if len(again := np.intersect1d(images.rows, other.rows)):
                    where = other.where(int(np.flatnonzero(other.rows == again[0])[0]))
                    raise DataError(
                        f"{counted(len(again), 'image is', 'images are')} both in {name} and in {other_name}, for "
                        f"example {where}: give each image one split"
                    )

    @property
    def protocol(self) -> str:
        """How its test searches: leave-one-out, query-gallery or closed-set. Scores of two protocols do not compare."""
        if self.closed:
            return CLOSED_SET
        return LEAVE_ONE_OUT if self.query is self.gallery else QUERY_GALLERY

    @property
    def validation_task(self) -> LabeledSet | Benchmark | None:
        """What `divcon.evaluate` scores an epoch on: the validation images, each searching among the others; in a
        closed set among the training images. None without validation images."""
        if self.validation is None or not self.closed:
            return self.validation
        return replace(self, query=self.validation, gallery=self.train, validation=None, random_galleries=0)

    @cached_property
    def _searches_train(self) -> bool:
        """Whether the gallery is of training images."""
        known = [images for images in self._trained_on if images.source == self.gallery.source]
        return self.closed and any(np.isin(self.gallery.rows, images.rows).any() for images in known)

    @property
    def parts(self) -> dict[str, LabeledSet]:
        """The splits by name: train, validation if there is one, and test, or query and gallery if they are two. In a
        closed set whose gallery is the training images, test is the queries. After `on_all`, train alone."""
        parts = {"train": self.train}
        if self.for_use:
            return parts
        if self.validation is not None:
            parts["validation"] = self.validation
        if self.query is self.gallery or self._searches_train:
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
        by ``seed`` and taken out of ``train``. Classes of one group (`LabeledSet.class_groups`) stay together.

        In a closed set, with validation images of the train classes: a ``fraction`` of them; at least two of each class
        stay in ``train``.

        Raises:
            DataError: there are too few classes, or images, to hold any out.
        """
        if self.validation is not None:
            return self
        if self.closed:
            held_out = held_out_images(self.train.labels, fraction, np.random.default_rng([seed, 0x5EED]))
            if not held_out.any():
                raise DataError(
                    f"{self.train.source}: no train class has three images or more, one to hold out for validation and "
                    "two to train on; train without (`validation=False`)"
                )
            return replace(self, train=self.train.subset(~held_out), validation=self.train.subset(held_out))
        # A class of one image has no match.
        classes = np.flatnonzero(np.bincount(self.train.labels) >= 2)
        num_held_out = max(2, round(fraction * len(classes)))
        if len(classes) - num_held_out < 2:
            raise DataError(
                f"{self.train.source}: {len(classes)} train classes of two images and more are too few to hold "
                f"{num_held_out} out for validation; train without (`validation=False`)"
            )
        order = np.random.default_rng([seed, 0x5EED]).permutation(classes)
        groups = self.train.class_groups
        chosen = order[:num_held_out] if groups is None else self._whole_groups(order, groups, num_held_out)
        held_out = np.isin(self.train.labels, chosen)
        return replace(self, train=self.train.subset(~held_out), validation=self.train.subset(held_out))

    def _whole_groups(self, order: np.ndarray, groups: np.ndarray, wanted: int) -> np.ndarray:
        """The classes of the groups of the first classes in ``order``, at least ``wanted`` of them, with those of one
        image; a group that would leave fewer than two to train on is passed over.

        Raises:
            DataError: the groups are too large to hold any out.
        """
        chosen: list[int] = []
        count = 0
        for group in dict.fromkeys(groups[order].tolist()):
            size = int((groups[order] == group).sum())
            if count < wanted and len(order) - count - size >= 2:
                chosen.append(group)
                count += size
        if count < 2:
            number = len(np.unique(groups[order]))
            raise DataError(
                f"{self.train.source}: the {len(order)} train classes of two images and more are in {number} "
                f"group{'' if number == 1 else 's'}, too few to hold two classes out for validation and leave two to "
                "train on; group by a column with more values, or train without (`validation=False`)"
            )
        return np.flatnonzero(np.isin(groups, chosen))

    def without_validation(self) -> Benchmark:
        """The benchmark with the validation classes of the source in ``train``."""
        if self.validation is None:
            return self
        return replace(self, train=self.train.joined(self.validation), validation=None)

    def on_all(self) -> Benchmark:
        """The benchmark with every labelled image in ``train``, those of test too: to train a model for use. Images
        that the test ignores for every query (junk), and those of ``no_classes``, stay out. Its test is the same as
        before, and no test any more.

        Raises:
            DataError: the sets come from several sources, which cannot be numbered as one.
        """
        data = self.without_validation()
        train = data.train
        for images in [data.query] if data.query is data.gallery else [data.query, data.gallery]:
            if images.source != train.source or images.label_names != train.label_names:
                raise DataError(
                    f"{self.name}: train is from {train.source} and test from {images.source}; `train_on=all` needs "
                    "one table or folder that has all images"
                )
            wanted = ~np.isin(images.rows, train.rows)
            wanted &= ~np.isin(np.array(images.label_names)[images.labels], self.no_classes)
            if images is not data.query and len(data.query):
                wanted &= ~ignored_by_all(data.query, images)
            images = images.subset(wanted)
            if train.groups is None or images.groups is None:
                train, images = replace(train, groups=None), replace(images, groups=None)
            train = train.joined(images)
        return replace(data, train=train, for_use=True)


def folds_of(data: Benchmark, count: int, seed: int, setting: str = "folds") -> list[Benchmark]:
    """Cross-validation folds of the train classes: ``count`` benchmarks, each with another fold as validation classes.
    Folds differ by at most one class. Classes of one image, which have no match, are never held out.

    Args:
        setting: the setting that ``count`` is of, for the message.

    Raises:
        DataError: fewer than two classes of at least two images for each fold.
    """
    sizes = np.bincount(data.train.labels)
    if data.closed:
        held_out_of = folds_of_images(data.train.labels, count, np.random.default_rng([seed, 0xF01D]))
        if not all(held_out.any() for held_out in held_out_of):
            raise DataError(
                f"{data.train.source}: {int((sizes >= 3).sum())} train classes of three images and more are too few "
                f"for {count} folds; use fewer `{setting}`, or more images"
            )
        return [_fold(data, held_out) for held_out in held_out_of]
    classes = np.flatnonzero(sizes >= 2)
    too_few = DataError(
        f"{data.train.source}: {len(classes)} train classes of two images and more are too few for {count} folds "
        f"of two classes; use fewer `{setting}`, or more classes"
    )
    if len(classes) < 2 * count:
        raise too_few
    order = np.random.default_rng([seed, 0xF01D]).permutation(classes)
    groups = data.train.class_groups
    if groups is None:
        parts = np.array_split(order, count)
    else:
        parts = _folds_of_groups(order, groups, count)
        if min(int(np.isin(classes, part).sum()) for part in parts) < 2:
            number = len(np.unique(groups[classes]))
            raise DataError(
                f"{data.train.source}: {len(classes)} train classes of two images and more in {number} groups are too "
                f"few for {count} folds of two classes; use fewer `{setting}`, or a `group` with more values"
            )
    return [_fold(data, np.isin(data.train.labels, part)) for part in parts]


def _fold(data: Benchmark, held_out: np.ndarray) -> Benchmark:
    return replace(data, train=data.train.subset(~held_out), validation=data.train.subset(held_out), notes=())


def _folds_of_groups(order: np.ndarray, groups: np.ndarray, count: int) -> list[np.ndarray]:
    """Whole groups, the largest first, each into the fold that has the fewest classes."""
    by_group: dict[int, int] = {}
    for group in groups[order].tolist():
        by_group[group] = by_group.get(group, 0) + 1
    folds: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    for group in sorted(by_group, key=lambda group: -by_group[group]):
        smallest = int(np.argmin(sizes))
        folds[smallest].append(group)
        sizes[smallest] += by_group[group]
    return [np.flatnonzero(np.isin(groups, fold)) for fold in folds]


def ignored_by_all(query: LabeledSet, gallery: LabeledSet) -> np.ndarray:
    """(G,) bool: the gallery images that every query ignores, as all queries are of one group and these are too."""
    if gallery is query or query.groups is None or gallery.groups is None:
        return np.zeros(len(gallery), bool)
    group = query.groups[0]
    return (gallery.groups == group) & bool(group >= 0 and (query.groups == group).all())


def _check_disjoint(part: LabeledSet, name: str, other: LabeledSet, other_name: str) -> None:
    label_of = {other.label_names[c]: c for c in other.classes}
    shared = [c for c in part.classes if part.label_names[c] in label_of]
    if not shared:
        return
    label = part.label_names[shared[0]]
    i = int(np.flatnonzero(part.labels == shared[0])[0])
    j = int(np.flatnonzero(other.labels == label_of[label])[0])
    number = _are(len(shared), "class")
    raise DataError(
        f"{number} both in {name} and in {other_name}, for example {label!r} ({part.where(i)}; "
        f"{other.where(j)}): the test is on classes that are not trained on, so give each class one split"
    )
