"""Splits of data that come without one, drawn by hashes of names: whole classes for an open test, images of each class
for a closed set, and validation images.

A hash does not depend on what else is in the data, so that a class or an image stays on its side when others are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from divcon.config.settings import TEST_FRACTION, Protocol, check_splitting
from divcon.errors import ConfigError, DataError


@dataclass(frozen=True)
class Splitting:
    """How data is split that comes without a split, and what a split of the data's own means."""

    test_fraction: float | None = TEST_FRACTION
    """Share of the classes to test on (of the images of each class, in a closed set); None: the last half of the sorted
    classes."""
    group: str | None = None
    """A column: classes with a common value are never divided among train, validation and test."""
    protocol: Protocol = "auto"
    ignore_split: bool = False
    """Draw a split, though the data has one."""

    def __post_init__(self) -> None:
        check_splitting(self.test_fraction, self.group, self.protocol)

    def check_own(self, source: str, what: str) -> None:
        """Check that what is set makes sense for data with a split of its own.

        Args:
            what: what the split is, for the message: ``the column split``.

        Raises:
            ConfigError: a ``test_fraction`` is set.
        """
        if self.test_fraction not in (None, TEST_FRACTION):
            raise ConfigError(
                f"`test_fraction` {self.test_fraction:g}: {source} has a split of its own ({what}); leave it out, or "
                "draw a new split of all images with `ignore_split=True`",
                field=("test_fraction", "ignore_split"),
            )


def place_of(name: str) -> float:
    """A number in [0, 1) that depends on a name alone, uniform over names."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8, person=b"divcon split")
    return int.from_bytes(digest.digest(), "big") / 2**64


def classes_in_groups(labels: np.ndarray, codes: np.ndarray, num_classes: int) -> np.ndarray:
    """Which classes must stay together: (C,) int64, equal for classes that a chain of common values joins.

    Args:
        labels: (N,) int64 in [0, C).
        codes: (N,) int64, equal for equal values; -1 for none.
    """
    some = codes >= 0
    size = num_classes + int(codes.max(initial=-1)) + 1
    from scipy.sparse import coo_array  # here: it takes as long as all else that reading imports
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(some.sum(), bool), (labels[some], num_classes + codes[some])), shape=(size, size))
    return connected_components(edges, directed=False)[1][:num_classes].astype(np.int64)


def drawn_classes(
    labels: np.ndarray, class_groups: np.ndarray | None, names: Sequence[str], fraction: float, source: str
) -> np.ndarray:
    """Draw the classes to test on, by a hash of their names, or of their groups': (C,) bool.

    A class (or group) is a test class where its hash is below the fraction, whatever other classes there are; but both
    sides have at least two classes with two images, the ones with the lowest and the highest hashes.

    Args:
        labels: (N,) int64 in [0, C).
        class_groups: (C,) int64, classes of equal number stay together; None: each class is a group.
        names: C names, of the classes or of their groups.
        fraction: share of classes to test on.

    Raises:
        DataError: there are too few classes, or groups, for both sides.
    """
    sizes = np.bincount(labels, minlength=len(names))
    groups = np.arange(len(names)) if class_groups is None else np.unique(class_groups, return_inverse=True)[1]
    num_groups = int(groups.max(initial=-1)) + 1
    places = np.empty(num_groups)
    # The first of a group's names, so that a class more changes it only where it has another group's value too.
    by_group: dict[int, str] = {}
    for group, name in zip(groups.tolist(), names, strict=True):
        by_group[group] = min(name, by_group.get(group, name))
    for group, name in by_group.items():
        places[group] = place_of(name)
    pairs = np.bincount(groups, weights=sizes >= 2, minlength=num_groups).astype(np.int64)
    order = np.argsort(places, kind="stable")
    before = np.concatenate([[0], np.cumsum(pairs[order])])
    possible = np.flatnonzero((before >= 2) & (before[-1] - before >= 2))
    if not len(possible):
        raise DataError(_too_few(sizes, pairs, class_groups is not None, source))
    drawn = int(np.clip((places < fraction).sum(), possible[0], possible[-1]))
    return np.isin(groups, order[:drawn])


def _too_few(sizes: np.ndarray, pairs: np.ndarray, grouped: bool, source: str) -> str:
    with_pairs, classes = int((sizes >= 2).sum()), int((sizes >= 1).sum())
    number = f"{classes:,} class{'' if classes == 1 else 'es'}"
    need = "without a split, train and test need two classes each of two images or more"
    if with_pairs < 4:
        have = "has" if with_pairs == 1 else "have"
        return f"{source}: {number}; {need}, and {with_pairs} {have} them: give at least four, or a split"
    assert grouped
    return (
        f"{source}: {number} in {len(pairs):,} group{'' if len(pairs) == 1 else 's'}, the largest of {pairs.max():,} "
        f"classes; {need}, and a group is not divided: use a `group` with more values, or give a split"
    )


def drawn_images(labels: np.ndarray, names: Sequence[str], fraction: float) -> np.ndarray:
    """Draw the images to test on in a closed set, by a hash of their names: (N,) bool.

    Of each class with three images or more at least one is drawn, and at least two are left to train on; of smaller
    classes none.

    Args:
        labels: (N,) int64.
        names: N paths.
    """
    places = np.array([place_of(name) for name in names])
    ranks, sizes = _ranks(labels, places), np.bincount(labels)
    wanted = np.bincount(labels, weights=places < fraction, minlength=len(sizes)).astype(np.int64)
    number = np.where(sizes >= 3, np.clip(wanted, 1, np.maximum(1, sizes - 2)), 0)
    return ranks < number[labels]


def held_out_images(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a share of the images for validation, at least two of each class staying: (N,) bool."""
    order = rng.permutation(len(labels))
    ranks, sizes = _ranks(labels, np.argsort(order)), np.bincount(labels)
    eligible = order[(ranks < sizes[labels] - 2)[order]]
    chosen = np.zeros(len(labels), bool)
    chosen[eligible[: max(1, round(fraction * len(labels)))]] = True
    return chosen


def folds_of_images(labels: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Divide the images of each class among folds, so that two of a class are outside of each: ``count`` arrays (N,)
    bool. Images of classes of fewer than three are in none."""
    ranks, sizes = _ranks(labels, rng.permutation(len(labels))), np.bincount(labels)
    # Shifted by class, so that small classes do not all fall into the first folds.
    fold = (ranks + rng.integers(count, size=len(sizes))[labels]) % count
    eligible = ranks // count < sizes[labels] - 2
    return [eligible & (fold == number) for number in range(count)]


def _ranks(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(N,) int64: the place of each image among those of its class, by key."""
    order = np.lexsort((keys, labels))
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])[:-1]
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - starts[labels[order]]
    return ranks
