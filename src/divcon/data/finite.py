"""Which vectors a model cannot take: NaN, infinite, or so large that their squares overflow float32."""

from __future__ import annotations

import numpy as np


def unusable(vectors: np.ndarray) -> tuple[int, str] | None:
    """The first of (N, F) vectors that cannot be compared in float32, and why; None where all can.

    Distances and lengths need sums of squares, so these must be finite too.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        block = np.asarray(vectors, np.float32)
        bad = ~np.isfinite(np.einsum("ij,ij->i", block, block))
        if not bad.any():
            return None
        row = int(np.argmax(bad))
        places = np.flatnonzero(~np.isfinite(block[row]))
        if len(places):
            place = int(places[0])
            return row, f"has {vectors[row, place]:g} in place {place}; every number must be finite in float32"
    largest = float(np.abs(np.asarray(vectors[row], np.float64)).max())
    return (
        row,
        f"has numbers up to {largest:.3g}, whose squares overflow float32; divide all vectors by one number",
    )
