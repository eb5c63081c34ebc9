"""The split of images that come without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from divcon.data.benchmark import Benchmark, checked_benchmark, counted, first_half
from divcon.data.digests import from_root
from divcon.data.labeled_set import NO_PATH, LabeledSet
from divcon.data.splitting import Splitting, drawn_classes, drawn_images
from divcon.errors import DataError


def drawn_benchmark(
    name: str,
    images: LabeledSet,
    splitting: Splitting,
    notes: Sequence[str],
    why: str,
    group_names: Sequence[str] | None = None,
) -> Benchmark:
    """A benchmark of images without a split, drawn as ``splitting`` says, with a note that says how.

    Args:
        why: the reason, for the note: ``the folder has no split``.
        group_names: a name of the group of each of ``images.label_names``; None: there are no groups.

    Raises:
        DataError: there are too few classes, groups or images for train and test.
    """
    if splitting.ignore_split:
        why = "the split of the data is ignored"
    test, how = drawn_test(images, splitting, group_names)
    train, queries = images.subset(~test), images.subset(test)
    if splitting.protocol == "closed":
        number = f"{len(queries):,} of {counted(len(images), 'image')}"
    else:
        number = f"{queries.num_classes:,} of {counted(images.num_classes, 'class', 'classes')}"
    note = f"{why}: {how}, {number}, {'is' if number.startswith('1 ') else 'are'} for the test"
    protocol = "closed" if splitting.protocol == "closed" else None
    benchmark = checked_benchmark(name, train, queries, queries, notes=[*notes, note], protocol=protocol)
    return replace(benchmark, splitting={"test_fraction": splitting.test_fraction})


def drawn_test(
    images: LabeledSet, splitting: Splitting, group_names: Sequence[str] | None = None
) -> tuple[np.ndarray, str]:
    """The images to test on, (N,) bool, and how they are drawn, in words.

    Raises:
        DataError: as of `drawn_benchmark`.
    """
    fraction = splitting.test_fraction
    if fraction is None:
        return ~first_half(images.labels, images.source), "the last half of the sorted classes"
    share = f"a share of {fraction:g} (`test_fraction`)"
    if splitting.protocol == "closed":
        test = drawn_images(images.labels, _names(images), fraction)
        if not test.any():
            raise DataError(
                f"{images.source}: no class has three images or more, one to test on and two to train on, as a closed "
                "set needs; leave `protocol=closed` out, to test on classes that are not trained on"
            )
        return test, f"{share} of the images of each class by a hash of their paths"
    groups = images.class_groups
    names = images.label_names if groups is None or group_names is None else group_names
    test = drawn_classes(images.labels, groups, names, fraction, images.source)
    what = "names" if groups is None else f"`group` {splitting.group}"
    return test[images.labels], f"{share} of the classes by a hash of their {what}"


def _names(images: LabeledSet) -> list[str]:
    """A name of each image, wherever the data is: its path, with its row where that names no image."""
    paths = from_root([images])[0].to_pylist()
    if images.encoded is None:
        return paths
    often = Counter(paths)
    return [
        f"{path} row {row}" if path == NO_PATH or often[path] > 1 else path
        for path, row in zip(paths, images.rows.tolist(), strict=True)
    ]
