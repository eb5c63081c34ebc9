"""What all readers do with classes: order their names, share them out, and check that they can be trained and
judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from divcon.data.image_set import Benchmark, ImageSet
from divcon.errors import DataError


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: by number where all are whole numbers, by their text otherwise."""
    names = set(names)
    if all(re.fullmatch(r"-?\d+", name, re.ASCII) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def labelled(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The class names in order, see `sorted_names`, and the number among them of each of N names, (N,) int64."""
    label_names = sorted_names(names)
    place = {name: i for i, name in enumerate(label_names)}
    return label_names, np.array([place[name] for name in names], np.int64)


def first_half(labels: np.ndarray, source: str) -> np.ndarray:
    """Which images are of the first half of the classes, the middle one included: (N,) bool for (N,) int64
    labels.

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
    train: ImageSet,
    query: ImageSet,
    gallery: ImageSet,
    *,
    validation: ImageSet | None = None,
    notes: Sequence[str] = (),
) -> Benchmark:
    """The benchmark, with notes on the classes that cannot take part fully.

    Raises:
        DataError: a class is in two parts, or train or test has too few classes with a pair of images.
    """
    notes = list(notes)
    if len(train):
        notes += _check_pairs(train, "train", "have no positive pair and sit out of training")
    else:
        notes.append("no image is in train: this can be evaluated on, not trained on")
    if query is gallery:
        notes += _check_pairs(query, "test", "have no match and are left out of the means as queries")
    else:
        notes += _check_matches(query, gallery)
    return Benchmark(name, train, query, gallery, validation=validation, notes=tuple(notes))


def _check_pairs(images: ImageSet, part: str, consequence: str) -> list[str]:
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


def _check_matches(query: ImageSet, gallery: ImageSet) -> list[str]:
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
