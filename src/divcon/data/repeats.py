"""Rows of a table that stand for the same image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from divcon.data.image_set import ImageSet
from divcon.data.source import where_in
from divcon.errors import DataError


def first_rows(images: ImageSet) -> np.ndarray:
    """(N,) int64: the first row that has the same path and box as row i.

    Raises:
        DataError: an image has two labels.
    """
    codes = images.paths.dictionary_encode().indices.to_numpy()
    if images.boxes is not None:
        for side in images.boxes.T:
            codes = _paired(codes, _coded(side))
    first = _first_of(codes, np.arange(len(codes)))[codes]
    clash = images.labels != images.labels[first]
    if clash.any():
        row = int(np.argmax(clash))
        other = int(first[row])
        raise DataError(
            f"{images.where(row)} has the label {images.label_name(row)!r}, and "
            f"{images.label_name(other)!r} in {where_in(images.source, other).rstrip(': ')}; give each image "
            "one label"
        )
    return first


def once(part: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The part, (N,) bool, without the rows whose image an earlier row of it has; ``first`` is ``first_rows``'."""
    rows = np.flatnonzero(part)
    kept = np.zeros_like(part)
    kept[rows] = _first_of(first[rows], rows, len(part))[first[rows]] == rows
    return kept


def _first_of(codes: np.ndarray, rows: np.ndarray, num_codes: int | None = None) -> np.ndarray:
    """(num_codes,) int64: for each code the first of the ascending ``rows`` that has it."""
    size = (int(codes.max()) + 1 if len(codes) else 0) if num_codes is None else num_codes
    first = np.empty(size, np.int64)
    # Of what is written to one place, the last stays.
    first[codes[::-1]] = rows[::-1]
    return first


def _paired(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) codes of the pairs of two codes."""
    return _coded(codes.astype(np.int64) * (int(others.max(initial=0)) + 1) + others)


def _coded(numbers: np.ndarray) -> np.ndarray:
    return pa.array(numbers).dictionary_encode().indices.to_numpy()
