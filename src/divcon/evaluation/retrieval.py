"""Retrieval metrics of embeddings: recall, precision, R-precision, MAP@R, and your own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from divcon.errors import DataError
from divcon.evaluation.metrics import Metric, RankedBlock, compute_metrics, default_metrics, metrics_of
from divcon.evaluation.nearness import as_vectors
from divcon.evaluation.neighbours import Block, neighbour_blocks, ranked_blocks
from divcon.evaluation.reranking import Reranked, ReRanking
from divcon.evaluation.task import Task, column
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.distributed import ALONE, ProcessGroup


def retrieval_metrics(
    embeddings: object,
    labels: object,
    *,
    gallery_embeddings: object = None,
    gallery_labels: object = None,
    recall_at: Sequence[int] = (1, 2, 4, 8, 10),
    precision_at: Sequence[int] = (1,),
    metrics: Sequence[str | Metric] = (),
    map: bool = False,
    cmc: int | None = None,
    rerank: ReRanking | None = None,
    ids: object = None,
    gallery_ids: object = None,
    cameras: object = None,
    gallery_cameras: object = None,
    groups: object = None,
    gallery_groups: object = None,
    metric: str = "euclidean",
    per_query: bool = False,
    max_queries: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    memory_mb: float = 1024,
    context: Context = DEFAULT,
) -> dict[str, Any]:
    """Retrieval metrics of N queries, each searched among the N - 1 other items (leave-one-out) or in a gallery of G.

    A query's ranking holds the *admissible* gallery items, nearest first; ties are ordered by position. Admissible is
    every item but the query itself (in leave-one-out the item at its position; else items of its
    id), items of its label *and* camera, and items of its group. R is the number of admissible items that have the
    query's label. Queries whose R is 0 are left out of every mean. The result holds means over the other queries:

    - ``recall_at_k``: 1 where any of the first k items has the query's label, else 0.
    - ``precision_at_k``: the share of the first k items that have it.
    - ``r_precision``: the share of the first R.
    - ``map_at_r``: (1 / R) * the sum of the precision at i over the ranks i <= R whose item has the query's label
      (Musgrave et al. 2020, "A Metric Learning Reality Check").
    - ``map``, with ``map=True``: the same over the whole ranking, as in fast-reid and most other code. Slow: it sorts
      the gallery for each query.
    - ``map_trapezoidal``, with ``map=True``: the area under each query's precision-recall curve by trapezoids, as in
      the evaluation code of Oxford buildings and of Market-1501. Each hit counts the mean of the precision just before
      it (1 for the first item) and at it, so that it is never higher than ``map``: equal where the hits come first,
      usually some points lower.
    - each of ``metrics``, by its name; and under ``metrics``, how each of your own is shown.
    - ``cmc``, with ``cmc=K``: the cumulative match characteristic, a list of Recall@1, Recall@2 ... Recall@K. What
      papers on re-identification call CMC at rank k, or rank-k accuracy, is Recall@k under their protocol.
    - ``reranked``, with ``rerank``: a dict with the parameters of the re-ranking and all of the above for its
      ranking (see `divcon.evaluation.reranked_distances`). Items that are not admissible are excluded from that
      ranking too, but count as neighbours before, since re-ranking uses no labels.
    - ``num_queries``: N. ``num_queries_without_match``: how many of them were left out.
    - ``num_queries_total``, where ``max_queries`` left some out: N. There ``num_queries`` is the number of those that
      were drawn, each of which has a match.

    Args:
        embeddings: (N, D) numbers, array or tensor.
        labels: (N,) ints or strings.
        gallery_embeddings, gallery_labels: (G, D) and (G,). Leave-one-out without them, or where
            ``gallery_embeddings`` is the same object as ``embeddings``.
        recall_at, precision_at: each k of Recall@k and Precision@k.
        metrics: more metrics: names of built-in ones (``"recall_at_100"``), ``"module:Name"`` of your own, or
            `divcon.evaluation.Metric` objects. The search goes only as deep as the deepest of all metrics needs.
        map: add both mean average precisions over the whole ranking.
        cmc: the last rank of the cumulative match characteristic; None: leave it out.
        rerank: add the metrics after re-ranking with these parameters; implies ``map``.
        ids, gallery_ids: (N,) and (G,) ints or strings; items of a query's id are the query itself.
        cameras, gallery_cameras: (N,) and (G,) ints or strings.
        groups, gallery_groups: (N,) and (G,) ints; a negative number is no group.
        metric: "euclidean" (nothing is normalised), "cosine" or "inner". Or "precomputed": ``embeddings`` are
            distances, (Q, G) with ``gallery_labels``, or (N, N) without them for leave-one-out.
        per_query: add ``per_query``: the metrics of each query as (N,) float64 in input order, NaN for those left out,
            and ``num_matches``, R, (N,) int64. Where some were drawn, these have their entries alone, and ``position``,
            (n,) int64 ascending, says which they are.
        max_queries: search for at most so many of the queries that have a match, drawn at random, among all items: the
            time then grows with the number of items, not with its square. None: all.
        seed: of that draw, which depends on nothing else but the number of queries with a match.
        device: where torch searches; on the CPU faiss may.
        memory_mb: a limit on the memory of the search beyond its input.
        context: the processes of its group call this at once, with the same arguments, and share out the queries; each
            gets the scores that one process alone would have. Only rank 0 re-ranks, and has ``reranked``.

    Raises:
        ValueError: shapes or lengths that do not fit, empty input, a k below 1, one side without the other, ``rerank``
            with a metric other than euclidean or cosine.
        NonFiniteError: an embedding holds NaN or infinite values; the message names the rows.
        DataError: no query has a match.
        ConfigError: an unknown metric, or ``memory_mb`` is too little for ``rerank``.
    """
    if any(k < 1 for k in (*recall_at, *precision_at)):
        raise ValueError(f"recall_at and precision_at must be at least 1: {tuple(recall_at)}, {tuple(precision_at)}")
    if cmc is not None and cmc < 1:
        raise ValueError(f"cmc, the last rank, must be at least 1, not {cmc}")
    if max_queries is not None and max_queries < 1:
        raise ValueError(f"max_queries must be at least 1, not {max_queries}")
    rows = metrics_of([*default_metrics(recall_at, precision_at, map or rerank is not None), *metrics_of(metrics)])
    query = as_vectors(embeddings, "embeddings")
    if metric == "precomputed":
        apart = gallery_labels is not None
        gallery, num_gallery = query, query.shape[1]
        if gallery_embeddings is not None or (not apart and len(query) != num_gallery):
            raise ValueError(
                f"precomputed distances of shape {query.shape}: pass (Q, G) with gallery_labels and no "
                "gallery_embeddings, or (N, N) for leave-one-out"
            )
    else:
        apart = gallery_embeddings is not None and gallery_embeddings is not embeddings
        gallery = as_vectors(gallery_embeddings, "gallery_embeddings") if apart else query
        num_gallery = len(gallery)
    task = Task.of(
        len(query),
        num_gallery if apart else None,
        {
            "labels": (labels, gallery_labels),
            "ids": (ids, gallery_ids),
            "cameras": (cameras, gallery_cameras),
            "groups": (groups, gallery_groups),
        },
    )
    matches = task.exclude.admissible(task.query_labels, task.gallery_labels)
    if not matches.any():
        raise DataError(f"none of the {len(matches)} queries has a match: the gallery has no other item of its class")
    queries = drawn_queries(matches, max_queries, seed)
    search = {"metric": metric, "memory_mb": memory_mb, "device": device}
    group = context.group
    reranked = _reranked(task, query, gallery, rerank, **search) if rerank is not None and group.is_main else None

    def nearest(queries: np.ndarray, k: int) -> Iterator[Block]:
        exclude = task.exclude.take(queries)
        if metric == "precomputed":
            at_once = max(1, int(memory_mb * 2**20) // (128 * num_gallery))
            return ranked_blocks(lambda rows: query[rows], queries, k, exclude=exclude, at_once=at_once)
        return neighbour_blocks(taken(query, queries), gallery, k, exclude=exclude, distances=False, **search)

    result, scores = _scores(task, matches, queries, rows, cmc, nearest, group)
    if reranked is not None and rerank is not None:
        result["reranked"] = asdict(rerank) | _scores(task, matches, queries, rows, cmc, reranked)[0]
    without_match = int((matches == 0).sum())
    drawn = len(queries) + without_match < len(matches)
    result["num_queries"] = len(queries) if drawn else len(matches)
    result["num_queries_without_match"] = without_match
    if drawn:
        result["num_queries_total"] = len(matches)
    if per_query:
        if drawn:
            scores = {name: values[queries] for name, values in scores.items()}
            scores |= {"num_matches": matches[queries], "position": queries}
        else:
            scores["num_matches"] = matches
        result["per_query"] = scores
    return result


def drawn_queries(matches: Int64[np.ndarray, "Q"], most: int | None, seed: int) -> Int64[np.ndarray, "q"]:
    """The positions of the queries that have a match, ascending; of more than ``most``, so many drawn at random.

    Args:
        matches: each query's R.
    """
    with_match = np.flatnonzero(matches)
    if most is None or len(with_match) <= most:
        return with_match
    return np.sort(np.random.default_rng([seed, 0x0EE5]).choice(with_match, most, replace=False))


def taken(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The vectors at ascending rows; no copy where these are all."""
    return vectors if len(rows) == len(vectors) else vectors[rows]


Search = Callable[[np.ndarray, int], Iterator[Block]]
"""The first k admissible items of the queries at these positions."""


def _reranked(task: Task, query: np.ndarray, gallery: np.ndarray, rerank: ReRanking, **search: Any) -> Search:
    # An item that is both query and gallery item is one item, and not its own neighbour twice.
    other = task.in_gallery < 0
    row = np.where(other, np.cumsum(other) - 1, other.sum() + task.in_gallery)
    items = np.concatenate([query[other], gallery])
    reranked = Reranked(items, other.sum() + np.arange(len(gallery)), rerank, **search)

    def ranking(queries: np.ndarray, k: int) -> Iterator[Block]:
        exclude = task.exclude.take(queries)
        return ranked_blocks(reranked.distances, row[queries], k, exclude=exclude, at_once=reranked.queries_at_once)

    return ranking


def _scores(
    task: Task,
    matches: np.ndarray,
    queries: np.ndarray,
    rows: Sequence[Metric],
    cmc: int | None,
    search: Search,
    group: ProcessGroup = ALONE,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The means over queries, and the values of each query, by metric; NaN for all other queries.

    Args:
        matches: (Q,) int64, each query's R.
        queries: positions of queries that have a match.
        rows: of the table of metrics.
        group: its processes share out the queries, and each gets all values.
    """
    table = np.zeros((len(rows) + 1, len(matches)))
    values, first_hit = dict(zip((row.name for row in rows), table, strict=False)), table[-1]
    for of_depth, k in _by_depth(matches, queries, rows, cmc or 1, len(task.gallery_labels)):
        # Every R-th, since neighbours in the order of the data may be alike in how long they take.
        own = of_depth[group.rank :: group.world_size]
        for block in search(own, k) if len(own) else ():
            at = own[block.start : block.start + len(block.indices)]
            hits = task.gallery_labels[block.indices] == task.query_labels[at, None]
            hits &= block.indices >= 0
            first_hit[at] = _first_hit(hits)
            ranked = RankedBlock(
                hits, block.indices, matches[at], task.query_labels[at], task.gallery_labels, task.label_names
            )
            for name, of_block in compute_metrics(rows, ranked).items():
                values[name][at] = of_block
    # The values of another rank's queries are zero here, so that the sum over ranks is exact.
    if not group.alone:
        table[:] = group.all_reduce(table)
    means: dict[str, Any] = {row.name: row.mean(values[row.name][queries]) for row in rows}
    if own := {row.name: row.to_dict() for row in rows if not row.built_in}:
        means["metrics"] = own
    if cmc is not None:
        means["cmc"] = match_characteristic(first_hit[queries].astype(np.int64), cmc)
    unasked = np.ones(len(matches), dtype=bool)
    unasked[queries] = False
    for of_all in values.values():
        of_all[unasked] = np.nan
    return means, values


def _by_depth(
    matches: np.ndarray, queries: np.ndarray, rows: Sequence[Metric], least: int, num_gallery: int
) -> Iterator[tuple[np.ndarray, int]]:
    """The queries in groups, each with the depth it needs: so that one large class does not deepen all searches."""
    depths = [row.depth for row in rows]
    least = max(least, *(depth for depth in depths if isinstance(depth, int)), 1)
    depth = np.full(len(queries), num_gallery if "all" in depths else least)
    if "R" in depths:
        depth = np.maximum(depth, matches[queries])
    doubling = np.ceil(np.log2(depth / depth.min())).astype(np.int64)
    for step in np.unique(doubling):
        yield queries[doubling == step], min(num_gallery, int(depth[doubling == step].max()))


def match_characteristic(first_hit: np.ndarray, last: int) -> list[float]:
    """The cumulative match characteristic at ranks 1 ... ``last``: the share of queries whose first match is there or
    before.

    Args:
        first_hit: (N,) ints, the rank of each query's first match, from 1 on.
        last: the last rank.
    """
    counts = np.bincount(np.minimum(first_hit, last + 1), minlength=last + 2)[1 : last + 1]
    return (np.cumsum(counts) / len(first_hit)).tolist()


def _first_hit(hits: np.ndarray) -> np.ndarray:
    """(q,) int64: the rank of each row's first hit in (q, k) bool hits, from 1 on; beyond all ranks without one."""
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 2**53)  # which float64 holds exactly


_COMPARED_AT_ONCE = 2**24


def random_gallery_metrics(
    embeddings: object,
    labels: object,
    *,
    draws: int = 10,
    recall_at: Sequence[int] = (1, 5),
    cmc: int | None = None,
    seed: int = 0,
    max_queries: int | None = None,
    device: str | torch.device = "cpu",
    context: Context = DEFAULT,
) -> dict[str, Any]:
    """Retrieval metrics where one image of each class, drawn at random, is the gallery and the rest are queries (Liu et
    al. 2016, "Deep Relative Distance Learning"). Each query has one match, so that Recall@k is the cumulative match
    characteristic at k, and average precision is one over the match's rank: the neighbours need not be sorted.

    Args:
        embeddings: (N, D) numbers, array or tensor; compared by Euclidean distance.
        labels: (N,) ints or strings.
        draws: number of galleries.
        recall_at: each k of Recall@k.
        cmc: the last rank of the cumulative match characteristic; None: leave it out.
        seed: draw number i is the same for the same seed and labels.
        max_queries: search for at most so many queries a draw, drawn at random; None: all.
        device: where distances are computed.
        context: the processes of its group call this at once, with the same arguments, and share out the draws; each
            gets the scores that one process alone would have.

    Returns:
        ``recall_at_k`` for each k and ``map``, the mean over draws of the mean over queries, each with its sample
        standard deviation over the draws, ``recall_at_k_std`` (0 for one draw); ``cmc``, where passed, a list of
        the mean Recall@1, Recall@2 ... Recall@``cmc``; ``draws``, ``num_queries`` of a draw (and where ``max_queries``
        left some out, their number before, ``num_queries_total``), ``num_gallery``.

    Raises:
        ValueError: lengths that differ, ``draws``, ``cmc`` or a k below 1.
        NonFiniteError: an embedding holds NaN or infinite values.
        DataError: no class has two images.
    """
    if draws < 1 or any(k < 1 for k in recall_at):
        raise ValueError(f"draws and recall_at must be at least 1, not {draws} and {tuple(recall_at)}")
    if cmc is not None and cmc < 1:
        raise ValueError(f"cmc, the last rank, must be at least 1, not {cmc}")
    if max_queries is not None and max_queries < 1:
        raise ValueError(f"max_queries must be at least 1, not {max_queries}")
    vectors, names = as_vectors(embeddings, "embeddings"), column(labels, "labels")
    if len(vectors) != len(names):
        raise ValueError(f"labels has {len(names)} entries for {len(vectors)} embeddings")
    code = np.unique(names, return_inverse=True)[1]
    num_classes = int(code.max(initial=-1)) + 1
    if len(code) == num_classes:
        raise DataError("no class has two images, one for the gallery and one as query")
    num_queries = len(code) - num_classes
    asked = num_queries if max_queries is None else min(num_queries, max_queries)
    group = context.group
    # One row a draw: each Recall@k, mean average precision, and the characteristic.
    values = np.zeros((draws, len(recall_at) + 1 + (cmc or 0)))
    for draw in range(group.rank, draws, group.world_size):
        gallery = drawn_gallery(code, seed, draw)
        query = np.setdiff1d(np.arange(len(code)), gallery)
        if asked < num_queries:
            query = np.sort(np.random.default_rng([seed, draw, 0x0EE5]).choice(query, asked, replace=False))
        rank = _ranks(vectors[query], vectors[gallery], code[query], device)
        curve = [] if cmc is None else match_characteristic(rank, cmc)
        values[draw] = [*((rank <= k).mean() for k in recall_at), (1 / rank).mean(), *curve]
    values = group.all_reduce(values)
    result: dict[str, Any] = {}
    for name, column_of in zip([*(f"recall_at_{k}" for k in recall_at), "map"], values.T, strict=False):
        result[name] = float(np.mean(column_of))
        result[f"{name}_std"] = float(np.std(column_of, ddof=1)) if draws > 1 else 0.0
    if cmc is not None:
        result["cmc"] = values[:, len(recall_at) + 1 :].mean(axis=0).tolist()
    result |= {"draws": draws, "num_queries": asked, "num_gallery": num_classes}
    return result | ({"num_queries_total": num_queries} if asked < num_queries else {})


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
    """The rank of each query's match, from 1 on; ties are ordered by class."""
    items = torch.from_numpy(gallery).to(device)
    places = torch.arange(len(gallery), device=device)
    step = max(1, _COMPARED_AT_ONCE // len(gallery))
    ranks = []
    for start in range(0, len(query), step):
        right = torch.from_numpy(match[start : start + step]).to(device)[:, None]
        # Without the query's own square, which is the same for all items.
        far = items.square().sum(1) - 2 * torch.from_numpy(query[start : start + step]).to(device) @ items.T
        limit = far.gather(1, right)
        before = (far < limit) | ((far == limit) & (places < right))
        ranks.append(1 + before.sum(1).cpu().numpy())
    return np.concatenate(ranks)
