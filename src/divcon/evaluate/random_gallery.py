"""VehicleID's own protocol: one random gallery image a class, over several draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from divcon.errors import DataError
from divcon.evaluate.exclusion import column
from divcon.evaluate.neighbours import as_vectors
from divcon.evaluate.retrieval import match_characteristic

_COMPARED_AT_ONCE = 2**24


def random_gallery_metrics(
    embeddings: object,
    labels: object,
    *,
    draws: int = 10,
    recall_at: Sequence[int] = (1, 5),
    cmc: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Retrieval metrics where one image of each class, drawn by lot, is the gallery, and all others are queries (Liu et
    al. 2016, "Deep Relative Distance Learning"). A query has one match, so that Recall@k is the cumulative match
    characteristic at k, and average precision is one over the match's rank: the neighbours need not be sorted.

    Args:
        embeddings: (N, D) numbers, array or tensor; near is what is near by Euclid.
        labels: (N,) ints or strings.
        draws: how many galleries are drawn.
        recall_at: the k.
        cmc: the last rank of the cumulative match characteristic; None: leave it out.
        seed: draw number i is the same for the same seed and labels.
        device: where distances are computed.

    Returns:
        ``recall_at_k`` for each k and ``map``, the mean over draws of the mean over queries, each with its sample
        standard deviation over the draws, ``recall_at_k_std`` (0 for one draw); ``cmc``, where asked for, a list of
        the mean Recall@1, Recall@2 ... Recall@``cmc``; ``draws``, ``num_queries``, ``num_gallery``.

    Raises:
        ValueError: lengths that differ, ``draws``, ``cmc`` or a k below 1.
        NonFiniteError: an embedding holds NaN or infinite values.
        DataError: no class has two images.
    """
    if draws < 1 or any(k < 1 for k in recall_at):
        raise ValueError(f"draws and recall_at must be at least 1, not {draws} and {tuple(recall_at)}")
    if cmc is not None and cmc < 1:
        raise ValueError(f"cmc, the last rank, must be at least 1, not {cmc}")
    vectors, names = as_vectors(embeddings, "embeddings"), column(labels, "labels")
    if len(vectors) != len(names):
        raise ValueError(f"labels has {len(names)} entries for {len(vectors)} embeddings")
    code = np.unique(names, return_inverse=True)[1]
    num_classes = int(code.max(initial=-1)) + 1
    if len(code) == num_classes:
        raise DataError("no class has two images, one for the gallery and one to ask with")
    found: dict[str, list[float]] = {}
    curves = []
    for draw in range(draws):
        gallery = drawn_gallery(code, seed, draw)
        query = np.setdiff1d(np.arange(len(code)), gallery)
        rank = _ranks(vectors[query], vectors[gallery], code[query], device)
        for k in recall_at:
            found.setdefault(f"recall_at_{k}", []).append(float((rank <= k).mean()))
        found.setdefault("map", []).append(float((1 / rank).mean()))
        if cmc is not None:
            curves.append(match_characteristic(rank, cmc))
    result: dict[str, Any] = {}
    for name, values in found.items():
        result[name] = float(np.mean(values))
        result[f"{name}_std"] = float(np.std(values, ddof=1)) if draws > 1 else 0.0
    if curves:
        result["cmc"] = np.mean(curves, axis=0).tolist()
    return result | {"draws": draws, "num_queries": len(code) - num_classes, "num_gallery": num_classes}


def drawn_gallery(code: Int64[np.ndarray, "N"], seed: int, draw: int) -> Int64[np.ndarray, "C"]:
    """One image of each of C classes, which ``code`` numbers from 0 on: that of class c at place c, each image of a
    class as likely as another."""
    order = np.random.default_rng([seed, draw]).permutation(len(code))
    return order[np.unique(code[order], return_index=True)[1]]


def _ranks(
    query: Float[np.ndarray, "Q D"],
    gallery: Float[np.ndarray, "C D"],
    match: Int64[np.ndarray, "Q"],
    device: str | torch.device,
) -> Int64[np.ndarray, "Q"]:
    """The place of each query's match in its ranking, from 1 on; of equally near ones the lower class comes first."""
    items = torch.from_numpy(gallery).to(device)
    places = torch.arange(len(gallery), device=device)
    step = max(1, _COMPARED_AT_ONCE // len(gallery))
    ranks = []
    for start in range(0, len(query), step):
        right = torch.from_numpy(match[start : start + step]).to(device)[:, None]
        # Less the query's own square, which is the same for all items.
        far = items.square().sum(1) - 2 * torch.from_numpy(query[start : start + step]).to(device) @ items.T
        limit = far.gather(1, right)
        before = (far < limit) | ((far == limit) & (places < right))
        ranks.append(1 + before.sum(1).cpu().numpy())
    return np.concatenate(ranks)
