"""The smallest products of some vectors with many: nearly all are read once, and none are sorted."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 32
"""So many products are told by the smallest of them at first."""


def smallest_products(
    vectors: Tensor, parts: Iterable[tuple[int, Tensor]], k: int, room: Tensor
) -> tuple[Tensor, Tensor]:
    """The k smallest inner products of each vector with many others, which come in parts.

    Args:
        vectors: (q, D).
        parts: the position of the first, from 0 on, and (p, D) vectors; of k in all, at least.
        k: how many.
        room: (m,) memory for products, of the vectors' dtype and on their device: so many are computed at a time, or
            those of one vector with one part where that is more.

    Returns:
        (q, k) products, rising, and (q, k) int64 positions of the others; of equal products, any.
    """
    values = vectors.new_empty(len(vectors), 0)
    positions = torch.empty_like(values, dtype=torch.int64)
    for start, part in parts:
        width = -(-len(part) // _CHUNK) * _CHUNK
        if len(room) < width:
            room = room.new_empty(width)
        # Not allocated anew each time: new pages from the system cost as much as the products themselves.
        products = room[: min(len(room) // width, len(vectors)) * width].view(-1, width)
        products[:, len(part) :] = torch.inf
        found = []
        for some in vectors.split(len(products)):
            torch.mm(some, part.T, out=products[: len(some), : len(part)])
            found.append(_smallest(products[: len(some)], min(k, len(part))))
        values = torch.cat([values, torch.cat([value for value, _ in found])], dim=1)
        positions = torch.cat([positions, torch.cat([position for _, position in found]) + start], dim=1)
        if start:
            values, order = values.topk(min(k, values.shape[1]), dim=1, largest=False)
            positions = positions.gather(1, order)
    return values, positions


def _smallest(products: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row of (q, w) products, whole chunks of them, and their columns."""
    if products.shape[1] < 2 * k * _CHUNK:
        return products.topk(k, dim=1, largest=False)
    # Each of the k chunks with the least minima holds a product that is no larger than any outside of them.
    minima = products.view(len(products), -1, _CHUNK).amin(dim=2)
    chunks = minima.topk(k, dim=1, largest=False, sorted=False).indices
    rows = torch.arange(len(products), device=products.device)[:, None] * minima.shape[1]
    few = products.view(-1, _CHUNK).index_select(0, (rows + chunks).view(-1)).view(len(products), -1)
    values, places = few.topk(k, dim=1, largest=False)
    return values, chunks.gather(1, places // _CHUNK) * _CHUNK + places % _CHUNK
