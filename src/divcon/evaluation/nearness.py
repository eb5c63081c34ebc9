"""How near two vectors are, in float64 and pair by pair: the order that every search of this package gives, with NumPy
alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from divcon.data.in_memory import is_tensor
from divcon.errors import NonFiniteError

METRICS = ("euclidean", "cosine", "inner")

COSINE_DIGITS = 12
"""Cosines that agree to this many digits tie: normalising rounds, and parallel vectors of any length should tie."""


def exact_nearness(
    query: np.ndarray, gallery: np.ndarray, rows: np.ndarray, items: np.ndarray, metric: str, budget: int = 2**28
) -> np.ndarray:
    """The nearness of n pairs: squared euclidean distance, or minus the cosine or inner product, so that it is smaller
    for what is nearer. Summed in one fixed order, so that equal pairs give equal numbers.

    Args:
        query: (Q, D).
        gallery: (G, D).
        rows: (n,) positions in the queries.
        items: (n,) positions in the gallery.
        metric: one of `METRICS`.
        budget: bytes that the pairs of a block may take.

    Returns:
        (n,) float64.
    """
    out = np.empty(len(rows), dtype=np.float64)
    step = max(1, min(budget // 8, 2**25) // (32 * query.shape[1]))
    for i in range(0, len(rows), step):
        one = query[rows[i : i + step]].astype(np.float64)
        other = gallery[items[i : i + step]]
        if metric == "euclidean":
            one -= other
            out[i : i + step] = np.square(one, out=one).sum(axis=1)
            continue
        lengths = lengths_of(one) * lengths_of(other) if metric == "cosine" else None
        one *= other
        product = one.sum(axis=1)
        if lengths is not None:
            product = np.round(product / np.where(lengths > 0, lengths, 1), COSINE_DIGITS)
        out[i : i + step] = -product
    return out


def lengths_of(vectors: np.ndarray) -> np.ndarray:
    """(n,) float64 lengths of (n, D) vectors."""
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))


def as_vectors(values: object, name: str) -> np.ndarray:
    """N vectors as a (N, D) array of float32, or of float64 where they are float64 or whole numbers.

    Args:
        values: (N, D) array, tensor or nested sequence of numbers.
        name: what they are, for messages.

    Raises:
        ValueError: not two-dimensional, empty, or not numbers.
        NonFiniteError: a value is NaN or infinite; the message names the rows.
    """
    if is_tensor(values):
        tensor: Any = values
        tensor = tensor.detach().cpu()
        values = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    vectors = np.asarray(values)
    if vectors.ndim != 2:
        raise ValueError(f"{name}: an array of shape (N, D) is needed, not one of shape {vectors.shape}")
    if not vectors.size:
        raise ValueError(f"{name}: there are no vectors in an array of shape {vectors.shape}")
    if vectors.dtype.kind not in "fiub":
        raise ValueError(f"{name}: numbers are needed, not {vectors.dtype}")
    if vectors.dtype.kind != "f":
        vectors = vectors.astype(np.float64)
    elif vectors.dtype.itemsize < 4:
        vectors = vectors.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        shown = ", ".join(str(row) for row in broken[:10]) + (", ..." if len(broken) > 10 else "")
        raise NonFiniteError(f"{name}: {len(broken)} of {len(vectors)} rows hold NaN or infinite values: {shown}")
    return np.ascontiguousarray(vectors)
