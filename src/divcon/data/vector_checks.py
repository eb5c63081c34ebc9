"""The check of every vector that enters: finite, and short enough that float32 holds its squared length."""

from __future__ import annotations

import numpy as np

MAX_SQUARED_LENGTH = float(np.finfo(np.float32).max)
"""From here on the squared length of a vector is infinite in float32, and its cosines are NaN."""
_ROWS = 8192


def unusable_vector(vectors: np.ndarray) -> tuple[int, str] | None:
    """The first vector that nothing can be computed from, and what is wrong with it; None if all are fine.

    Args:
        vectors: (N, F) floats or integers.

    Returns:
        The row, and a text such as ``holds NaN at index 3`` that follows the name of the vector.
    """
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        # In float32 the sum of squares is finite for nearly all data, and one pass over it is enough.
        with np.errstate(over="ignore", invalid="ignore"):
            short = np.asarray(block, np.float32)
            if np.isfinite(np.einsum("nf,nf->", short, short)):
                continue
            wide = np.asarray(block, np.float64)
            bad = ~(np.einsum("nf,nf->n", wide, wide) <= MAX_SQUARED_LENGTH)
        if bad.any():
            row = int(np.argmax(bad))
            return start + row, _reason(wide[row])
    return None


def _reason(vector: np.ndarray) -> str:
    wrong = np.flatnonzero(~np.isfinite(vector))
    if len(wrong):
        what = "NaN" if np.isnan(vector[wrong[0]]) else "an infinite number"
        return f"holds {what} at index {wrong[0]}"
    largest = int(np.abs(vector).argmax())
    return (
        f"is too long: its largest number is {vector[largest]:.3g}, at index {largest}, and its squared length "
        "overflows float32; divide all vectors by one number"
    )
