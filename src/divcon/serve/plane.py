"""The embedding in two dimensions."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from divcon.report.thumbnails import sampled
from divcon.search import Index
from divcon.serve.items import rows_of
from divcon.serve.of_run import OfRun

By = Literal["pca", "tsne"]
MOST: dict[str, int] = {"pca": 5_000, "tsne": 2_000}
"""Items that are shown; of more, a sample."""


def coordinates(vectors: np.ndarray, by: By) -> np.ndarray:
    """(N, 2) float64 coordinates of (N, D) vectors, between -1 and 1: the two directions in which they vary most, or
    t-SNE (van der Maaten and Hinton, 2008), which keeps neighbours together and distorts distances."""
    wide = np.asarray(vectors, np.float64)
    if by == "tsne" and len(wide) >= 8:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(wide) - 1) / 4)
        plane = TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(wide).astype(np.float64)
    else:
        from sklearn.decomposition import PCA

        size = min(2, *wide.shape)
        plane = PCA(size, svd_solver="full").fit_transform(wide) if len(wide) > 1 else np.zeros((len(wide), size))
        plane = np.pad(plane, ((0, 0), (0, 2 - size)))
    plane = plane - (plane.max(0) + plane.min(0)) / 2 if len(plane) else plane
    return plane / (np.abs(plane).max(initial=0) or 1.0)


def plane(index: Index, by: By, of_run: OfRun | None) -> dict[str, Any]:
    """For JSON: ``points`` with id, x, y, label, learner and split; ``total`` items."""
    ids = index.store.ids()
    total = len(ids)
    there, vectors = index.store.vectors(sampled(ids, MOST[by], (0,)))
    order = np.argsort(there)
    there, vectors = there[order], vectors[order]
    rows = rows_of(index, there)
    splits, learners = (of_run.splits(), of_run.learners()) if of_run else ({}, {})
    points = [
        {
            "id": int(i),
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "label": rows[i].label,
            "path": rows[i].path,
            "learner": learners.get(i),
            "split": splits.get(i),
        }
        for i, (x, y) in zip(there.tolist(), coordinates(vectors, by), strict=True)
        if i in rows
    ]
    return {"points": points, "total": total, "problem": of_run.problem if of_run else None}
