"""VehicleID's own protocol: one random gallery image a class, over several draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from divcon.errors import DataError
from divcon.evaluate.exclusion import column
from divcon.evaluate.neighbours import as_vectors
from divcon.evaluate.retrieval import retrieval_metrics


def random_gallery_metrics(
    embeddings: object,
    labels: object,
    *,
    draws: int = 10,
    recall_at: Sequence[int] = (1, 5),
    seed: int = 0,
    metric: str = "euclidean",
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Retrieval metrics where one image of each class, drawn by lot, is the gallery, and all others are queries (Liu et
    al. 2016, "Deep Relative Distance Learning"). A query has one match, so that Recall@k is the cumulative match
    characteristic at k.

    Args:
        embeddings: (N, D) numbers, array or tensor.
        labels: (N,) ints or strings.
        draws: how many galleries are drawn.
        recall_at: the k.
        seed: draw number i is the same for the same seed and labels.
        metric: as in `divcon.evaluate.retrieval_metrics`.
        device: where torch searches; faiss does on the CPU.

    Returns:
        ``recall_at_k`` for each k and ``map``, the mean over draws of the mean over queries, each with its sample
        standard deviation over the draws, ``recall_at_k_std`` (0 for one draw); ``draws``, ``num_queries``,
        ``num_gallery``.

    Raises:
        ValueError: as `divcon.evaluate.retrieval_metrics`, and for ``draws`` below 1.
        NonFiniteError: an embedding holds NaN or infinite values.
        DataError: no class has two images.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    vectors, names = as_vectors(embeddings, "embeddings"), column(labels, "labels")
    if len(vectors) != len(names):
        raise ValueError(f"labels has {len(names)} entries for {len(vectors)} embeddings")
    code = np.unique(names, return_inverse=True)[1]
    if len(code) == code.max(initial=-1) + 1:
        raise DataError("no class has two images, one for the gallery and one to ask with")
    found: dict[str, list[float]] = {}
    gallery = np.empty(0, np.int64)
    for draw in range(draws):
        # The first image of each class in a random order.
        order = np.random.default_rng([seed, draw]).permutation(len(code))
        gallery = np.sort(order[np.unique(code[order], return_index=True)[1]])
        query = np.setdiff1d(np.arange(len(code)), gallery)
        scores = retrieval_metrics(
            vectors[query],
            code[query],
            gallery_embeddings=vectors[gallery],
            gallery_labels=code[gallery],
            recall_at=recall_at,
            map=True,
            metric=metric,
            device=device,
        )
        for name in (*(f"recall_at_{k}" for k in recall_at), "map"):
            found.setdefault(name, []).append(scores[name])
    result: dict[str, Any] = {}
    for name, values in found.items():
        result[name] = float(np.mean(values))
        result[f"{name}_std"] = float(np.std(values, ddof=1)) if draws > 1 else 0.0
    return result | {"draws": draws, "num_queries": len(code) - len(gallery), "num_gallery": len(gallery)}
