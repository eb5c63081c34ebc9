"""How well vectors of one class find each other: recall, precision, R-precision, MAP@R."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from divcon.errors import DataError
from divcon.evaluate.exclusion import Exclusion, column, joint_codes
from divcon.evaluate.neighbours import as_vectors, neighbour_blocks


def retrieval_metrics(
    embeddings: object,
    labels: object,
    *,
    gallery_embeddings: object = None,
    gallery_labels: object = None,
    recall_at: Sequence[int] = (1, 2, 4, 8, 10),
    precision_at: Sequence[int] = (1,),
    map: bool = False,
    ids: object = None,
    gallery_ids: object = None,
    cameras: object = None,
    gallery_cameras: object = None,
    groups: object = None,
    gallery_groups: object = None,
    metric: str = "euclidean",
    per_query: bool = False,
    device: str | torch.device = "cpu",
    memory_mb: float = 1024,
) -> dict[str, Any]:
    """Retrieval metrics of N queries: among all the others (leave-one-out), or in a gallery of G items.

    A query's ranking holds the *admissible* gallery items, nearest first, equally near ones by position.
    Admissible is all but the query itself (its position in leave-one-out; items of its id), items of its
    label *and* camera, and items of its group. R is how many admissible items have the query's label. Queries
    whose R is 0 are left out of every mean. The results, each a mean over the other queries:

    - ``recall_at_k``: 1 where any of the first k items has the query's label, else 0.
    - ``precision_at_k``: the share of the first k items that have it.
    - ``r_precision``: the share of the first R.
    - ``map_at_r``: (1 / R) * the sum of precision at i over the ranks i <= R whose item has the query's label
      (Musgrave et al. 2020, "A Metric Learning Reality Check").
    - ``map``, where asked for: the same over the whole ranking, as fast-reid and most others have it. It sorts the
      gallery for each query: slow.
    - ``map_trapezoidal``, with it: the area under each query's curve of precision over recall by trapezoids, as the
      evaluation code of Oxford buildings and of Market-1501 has it, half a point to a point higher or so: each hit
      counts the mean of the precision just before it (1 where it is the first item) and at it.
    - ``num_queries``: N. ``num_queries_without_match``: how many of them were left out.

    Args:
        embeddings: (N, D) numbers, array or tensor.
        labels: (N,) ints or strings.
        gallery_embeddings, gallery_labels: (G, D) and (G,); without them, or where ``gallery_embeddings`` is
            the very object ``embeddings``, leave-one-out.
        recall_at, precision_at: the k.
        map: also both mean average precisions over the full ranking.
        ids, gallery_ids: (N,) and (G,) ints or strings; items of a query's id are the query itself.
        cameras, gallery_cameras: (N,) and (G,) ints or strings.
        groups, gallery_groups: (N,) and (G,) ints; a negative group is none.
        metric: "euclidean" (nothing is normalised), "cosine" or "inner".
        per_query: adds ``per_query``: the metrics of each query as (N,) float64 in the order given, NaN for
            those left out, and ``num_matches``, R, (N,) int64.
        device: where torch searches; faiss does on the CPU.
        memory_mb: bounds what the search needs beyond its input.

    Raises:
        ValueError: shapes or lengths that do not fit, empty input, a k below 1, one side without the other.
        NonFiniteError: an embedding holds NaN or infinite values; the message names the rows.
        DataError: no query has a match.
    """
    if any(k < 1 for k in (*recall_at, *precision_at)):
        raise ValueError(f"recall_at and precision_at must be at least 1: {tuple(recall_at)}, {tuple(precision_at)}")
    task = _Task.of(
        as_vectors(embeddings, "embeddings"),
        None
        if gallery_embeddings is None or gallery_embeddings is embeddings
        else as_vectors(gallery_embeddings, "gallery_embeddings"),
        {
            "labels": (labels, gallery_labels),
            "ids": (ids, gallery_ids),
            "cameras": (cameras, gallery_cameras),
            "groups": (groups, gallery_groups),
        },
    )
    matches = task.exclude.admissible(task.query_labels, task.gallery_labels)
    asked = np.flatnonzero(matches)
    if not len(asked):
        raise DataError(f"none of the {len(matches)} queries has a match: the gallery has no other item of its class")
    scores: dict[str, np.ndarray] = {}
    for queries, k in _by_depth(matches, asked, max((*recall_at, *precision_at, 1)), len(task.gallery), map):
        blocks = neighbour_blocks(
            task.query[queries],
            task.gallery,
            k,
            metric=metric,
            exclude=task.exclude.take(queries),
            device=device,
            memory_mb=memory_mb,
            distances=False,
        )
        for block in blocks:
            rows = queries[block.start : block.start + len(block.indices)]
            hits = task.gallery_labels[block.indices] == task.query_labels[rows, None]
            hits &= block.indices >= 0
            for name, values in _scores(hits, matches[rows], recall_at, precision_at, map).items():
                scores.setdefault(name, np.full(len(matches), np.nan))[rows] = values
    result: dict[str, Any] = {name: float(values[asked].mean()) for name, values in scores.items()}
    result["num_queries"] = len(matches)
    result["num_queries_without_match"] = len(matches) - len(asked)
    if per_query:
        result["per_query"] = {**scores, "num_matches": matches}
    return result


@dataclass(frozen=True, eq=False)
class _Task:
    """Queries, gallery, their labels as codes, and what may not be retrieved."""

    query: np.ndarray
    gallery: np.ndarray
    query_labels: np.ndarray
    gallery_labels: np.ndarray
    exclude: Exclusion

    @classmethod
    def of(cls, query: np.ndarray, gallery: np.ndarray | None, columns: dict[str, tuple[object, object]]) -> _Task:
        """From vectors (no gallery: leave-one-out) and what is known of each query and gallery item."""
        items = query if gallery is None else gallery
        if columns["labels"][0] is None:
            raise ValueError("labels are needed")
        sides = {
            name: _both_sides(name, *given, len(query), len(items), gallery is None)
            for name, given in columns.items()
            if any(side is not None for side in given)
        }
        labels = joint_codes(*sides["labels"], "labels")
        exclude = Exclusion.itself(len(query)) if gallery is None else Exclusion(())
        if "ids" in sides:
            exclude |= Exclusion.equal(*joint_codes(*sides["ids"], "ids"))
        if "cameras" in sides:
            cameras = joint_codes(*sides["cameras"], "cameras")
            width = 1 + max(cameras[0].max(), cameras[1].max())
            exclude |= Exclusion.equal(labels[0] * width + cameras[0], labels[1] * width + cameras[1])
        if "groups" in sides:
            if any(side.dtype.kind != "i" for side in sides["groups"]):
                raise ValueError("groups: whole numbers are needed, negative where an item has no group")
            exclude |= Exclusion.equal(*sides["groups"])
        return cls(query, items, *labels, exclude)


def _both_sides(
    name: str, query: object, gallery: object, num_queries: int, num_gallery: int, leave_one_out: bool
) -> tuple[np.ndarray, np.ndarray]:
    if query is None or (gallery is None and not leave_one_out):
        missing, given = (name, f"gallery_{name}") if query is None else (f"gallery_{name}", name)
        raise ValueError(f"{missing} is needed where {given} is given")
    own = column(query, name)
    other = own if gallery is None else column(gallery, f"gallery_{name}")
    for side, size, what in ((own, num_queries, name), (other, num_gallery, f"gallery_{name}")):
        if len(side) != size:
            raise ValueError(f"{what} has {len(side)} entries for {size} embeddings")
    if leave_one_out and not np.array_equal(own, other):
        raise ValueError(f"gallery_{name} differs from {name}, but the gallery is the queries themselves")
    return own, other


def _by_depth(
    matches: np.ndarray, asked: np.ndarray, least: int, num_gallery: int, full: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """The queries that are asked, by the k they need: one large class is not to deepen all searches."""
    depth = np.full(len(asked), num_gallery) if full else np.maximum(matches[asked], least)
    doubling = np.ceil(np.log2(depth / depth.min())).astype(np.int64)
    for step in np.unique(doubling):
        queries = asked[doubling == step]
        yield queries, min(num_gallery, int(depth[doubling == step].max()))


def _scores(
    hits: np.ndarray, matches: np.ndarray, recall_at: Sequence[int], precision_at: Sequence[int], full: bool
) -> dict[str, np.ndarray]:
    """Each metric of q queries from (q, k) bool hits and their (q,) numbers of matches, all above zero."""
    row, place = np.nonzero(hits)
    found = np.bincount(row, minlength=len(hits))
    first_of_row = np.concatenate([[0], np.cumsum(found)[:-1]])
    nth = np.arange(len(row)) - first_of_row[row] + 1  # this hit is its row's nth
    precision_here = nth / (place + 1)
    within = place < matches[row]

    def total(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(row[where], weights=values[where], minlength=len(hits))

    one = np.ones(len(row))
    scores = {f"recall_at_{k}": np.minimum(total(one, place < k), 1.0) for k in recall_at}
    scores |= {f"precision_at_{k}": total(one, place < k) / k for k in precision_at}
    scores["r_precision"] = total(one, within) / matches
    scores["map_at_r"] = total(precision_here, within) / matches
    if full:
        everywhere = np.ones(len(row), dtype=bool)
        precision_before = np.where(place > 0, (nth - 1) / np.maximum(place, 1), 1.0)
        scores["map"] = total(precision_here, everywhere) / matches
        scores["map_trapezoidal"] = total((precision_before + precision_here) / 2, everywhere) / matches
    return scores
