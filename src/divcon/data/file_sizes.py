"""The sizes of the files of a set: enough to notice that a file has become another one, at the price of a look."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from divcon.data.image_set import ImageSet


def file_sizes(images: ImageSet) -> np.ndarray:
    """(N,) int64 bytes of each image's file; -1: there is no such file. Empty where images do not come from files."""
    if images.vectors is not None or images.encoded is not None:
        return np.empty(0, np.int64)
    known: dict[str, int] = {}
    for path in images.paths.unique().to_pylist():
        try:
            known[path] = Path(images.root, path).stat().st_size
        except (OSError, TypeError, ValueError):
            known[path] = -1
    return np.fromiter((known[path] for path in images.paths.to_pylist()), np.int64, len(images))


def resized(then: np.ndarray, now: np.ndarray) -> np.ndarray:
    """(n,) int64, the images whose files had another size then; those that are or were not there are left out."""
    if len(then) != len(now):
        return np.empty(0, np.int64)
    return np.flatnonzero((then != now) & (then >= 0) & (now >= 0))
