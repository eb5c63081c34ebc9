"""Build a benchmark of a published data set's lists, with the same checks and notes for all data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from divcon.data.benchmark import Benchmark, checked_benchmark, counted
from divcon.data.labeled_set import LabeledSet
from divcon.data.published.counts import PUBLISHED_COUNTS, differences, swapped
from divcon.data.published.tree import compare_files, first_few, missing_text
from divcon.errors import DataError


def build(
    name: str,
    root: Path,
    *,
    paths: Sequence[str],
    labels: np.ndarray,
    label_names: Sequence[str],
    parts: Mapping[str, np.ndarray],
    folders: Sequence[str],
    cameras: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    others: bool = False,
    check_files: bool = True,
) -> Benchmark:
    """Build the benchmark of a published data set.

    Args:
        name: of the benchmark; its published counts, if `PUBLISHED_COUNTS` has them, are compared.
        paths: N images, relative to ``root`` with forward slashes.
        labels: (N,) int64, indices into ``label_names``.
        parts: whether each image is of train, and of test, or of query and gallery: (N,) bool each.
        folders: the folders of its images, below ``root``.
        cameras, groups: (N,) int64, of images of query and gallery; see `LabeledSet`.
        others: whether the folders are expected to have images that no list names; else a note counts them.
        check_files: refuse missing images, and note numbers that differ from the published ones.

    Raises:
        DataError: an image is missing, or named twice with two classes or in two splits; two splits are swapped;
            or as in `checked_benchmark`.
    """
    again = _named_again(name, root, paths, labels, parts)
    parts = {part: chosen & ~again for part, chosen in parts.items()}
    files = compare_files(root, folders, paths)
    if files.missing and check_files:
        raise DataError(missing_text(root, files.missing, len(paths)))
    images = LabeledSet(
        labels=labels,
        label_names=tuple(label_names),
        paths=pa.array(paths, pa.string()),
        rows=np.arange(len(paths), dtype=np.int64),
        source=str(root),
        root=str(root),
        cameras=cameras,
        groups=groups,
    )
    train = replace(images.subset(parts["train"]), groups=None)
    query = images.subset(parts.get("query", parts.get("test", np.empty(0, np.int64))))
    gallery = images.subset(parts["gallery"]) if "gallery" in parts else query
    benchmark = checked_benchmark(name, train, query, gallery)
    published = PUBLISHED_COUNTS.get(name)
    if published and (crosswise := swapped(benchmark, published)):
        raise swapped_error(root, *crosswise, "each has the published numbers of classes and images of the other")
    notes = list(benchmark.notes)
    if again.any():
        notes.append(
            f"left out: {counted(again.sum(), 'line')} of the lists of {name} with an image of an earlier line"
        )
    if files.unlisted and not others:
        what = counted(len(files.unlisted), "image is", "images are")
        notes.append(f"{what} there that no list of {name} names, and left out ({first_few(files.unlisted)})")
    if published is None:
        return replace(benchmark, notes=tuple(notes))
    if check_files:
        notes += map(str, differences(benchmark, published))
    return replace(
        benchmark,
        recall_at=published.recall_at,
        random_galleries=published.random_galleries,
        notes=tuple(notes),
    )


def _named_again(
    name: str, root: Path, paths: Sequence[str], labels: np.ndarray, parts: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Whether each image was named before, with the same class and in the same split, (N,) bool.

    Raises:
        DataError: it was named with another class, or in another split.
    """
    first: dict[str, int] = {}
    again = np.zeros(len(paths), bool)
    for i, path in enumerate(paths):
        j = first.setdefault(path, i)
        again[i] = j != i
        if j != i and (labels[i] != labels[j] or any(chosen[i] != chosen[j] for chosen in parts.values())):
            raise DataError(
                f"{root}: the lists of {name} name {path} twice, with two classes or in two splits; unpack the "
                "original archive again"
            )
    return again


def swapped_error(root: Path, one: str, other: str, why: str) -> DataError:
    """The error that two splits are swapped."""
    return DataError(f"{root}: {one} and {other} are swapped: {why}; unpack the original archive again")
