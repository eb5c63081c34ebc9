"""A model's scores on a benchmark, under the benchmark's own protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import DataError
from divcon.evaluation.bootstrap import bootstrap_interval
from divcon.evaluation.clustering import clustering_metrics
from divcon.evaluation.metrics import Metric, metrics_of
from divcon.evaluation.reranking import ReRanking
from divcon.evaluation.retrieval import random_gallery_metrics, retrieval_metrics
from divcon.evaluation.subspaces import (
    COMPARED,
    choosing_part,
    normalized,
    similarity_correlations,
    subspace_order,
    subspace_scores,
)
from divcon.models import EmbeddingModel
from divcon.models.inputs import check_finite
from divcon.runtime.context import DEFAULT, Context


def evaluate(
    model: EmbeddingModel,
    data: Benchmark | LabeledSet,
    *,
    clustering: bool = True,
    parts: bool = False,
    order_by: Benchmark | None = None,
    per_query: bool = False,
    map: bool = False,
    cmc: int | None = None,
    rerank: ReRanking | None = None,
    recall_at: Sequence[int] | None = None,
    metrics: Sequence[str | Metric] = (),
    batch_size: int = 128,
    context: Context = DEFAULT,
) -> dict[str, Any]:
    """Scores of a model on classes that it was not trained on.

    Args:
        data: a benchmark, or a set of images of which each searches among all the others.
        clustering: also NMI and AMI of k-means at the number of classes (on query and gallery together), mean and
            spread over three seeds. It costs more than all the rest.
        parts: also the scores of each learner's subspace alone (``learners``) and of the pooled features before the
            head, L2-normalised (``features``); where there are several learners, how alike their subspaces are
            (``similarity_correlations``, see `divcon.evaluation.similarity_correlations`); and where each has
            dimensions to itself, the scores of the embedding without it (``without``) and of the best 1, 2 ... K
            subspaces (``by_size``, each with its ``learners`` and ``dims``). Which are best is chosen on images of
            other classes (``ordered_on``: validation or train; see `divcon.evaluation.subspace_order`); without any,
            ``by_size`` is left out.
        order_by: whose validation classes, or train classes where it has none, say which subspaces are best; None:
            those of ``data``, where it is a benchmark.
        per_query: also ``per_query``: for each query its path, label, and scores.
        map: also mean average precision over the full ranking, ``map`` and ``map_trapezoidal``.
        cmc: also the cumulative match characteristic, ``cmc``: a list of Recall@1, Recall@2 ... up to this rank.
        rerank: also the scores after re-ranking by k-reciprocal encoding, ``reranked``, and ``map`` and
            ``map_trapezoidal`` with it and without. Random galleries and ``parts`` are not re-ranked.
        recall_at: the k of Recall@k, beside 1; None: the benchmark's.
        metrics: more metrics of the ranking, beside the built-in ones: ``"module:Name"`` or `divcon.evaluation.Metric`
            objects of your own, or names of built-in ones (``"recall_at_100"``). They stand wherever scores do: in
            ``per_query``, ``learners`` and ``reranked``, in the report and in `divcon.compare`.
        context: the processes of its group call this at once and share the images; only rank 0 gets the scores, the
            others an empty dict.

    Returns:
        ``recall_at_1`` ..., ``precision_at_1``, ``r_precision``, ``map_at_r`` (see
        `divcon.evaluation.retrieval_metrics`), ``recall_at_1_interval`` (95 %, bootstrap over classes), for VehicleID
        also ``random_gallery`` (see `divcon.evaluation.random_gallery_metrics`), and what they are
        of: ``benchmark``, ``protocol``, ``split_hash``, ``num_queries``, ``num_gallery``, ``num_classes``.

    Raises:
        DataError: there are no queries, or none has a match.
        ImageError: an image does not decode; the message names it.
        NonFiniteError: an embedding is NaN or infinite.
        ConfigError: there is no such metric, or there are too many images to re-rank at these k1 and k2.
    """
    group = context.group
    if isinstance(data, LabeledSet):
        data = Benchmark(data.source, data.subset(np.empty(0, np.int64)), data, data)
    rows = metrics_of(metrics)
    query, gallery = data.query, data.gallery
    if not len(query) or not len(gallery):
        raise DataError(f"{query.source}: there are no test images to evaluate on")
    # Neither hit nor miss for anybody: without them the ranking is the same, and they are no cluster.
    junk = _of_the_group_of_all(query, gallery)
    if junk.any() and not junk.all():
        gallery = gallery.subset(~junk)
    divided = parts and len(model.head.dimensions()) > 1
    choosing = choosing_part(order_by or data) if divided else None
    tested = len(query) + (0 if gallery is query else len(gallery))
    total = tested + (len(choosing[1]) if choosing else 0)

    def pooled(images: LabeledSet, before: int) -> np.ndarray:
        mine = group.shard(len(images))
        found = model.features(
            images if group.alone else images.subset(np.arange(mine.start, mine.stop)),
            batch_size=batch_size,
            context=context.subtask("evaluate", before=before, total=total, times=group.world_size),
        )
        found = group.all_gather(torch.from_numpy(found), len(images)).numpy()
        check_finite(found, images, f"evaluating {data.name}")
        return found

    query_features = pooled(query, 0)
    gallery_features = query_features if gallery is query else pooled(gallery, len(query))
    if not group.is_main:
        return {}

    def sides(embed: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        return [embed(query_features)] if gallery is query else [embed(query_features), embed(gallery_features)]

    asked = sorted({1, *(recall_at or data.recall_at)})

    def scores(embeddings: list[np.ndarray], **more: Any) -> dict[str, Any]:
        queries, *items = embeddings
        return retrieval_metrics(
            queries,
            _label_names(query),
            **({"gallery_embeddings": items[0], "gallery_labels": _label_names(gallery)} if items else {}),
            **_identities(query, gallery),
            recall_at=asked,
            metrics=rows,
            device=model.device,
            **more,
        )

    embeddings = sides(model.embed)
    result = scores(embeddings, per_query=True, map=map, cmc=cmc, rerank=rerank)
    each = result.pop("per_query")
    low, high = bootstrap_interval(each["recall_at_1"], query.labels)
    result["recall_at_1_interval"] = [low, high]
    if data.random_galleries:
        result["random_gallery"] = random_gallery_metrics(
            embeddings[0],
            _label_names(query),
            draws=data.random_galleries,
            recall_at=asked,
            cmc=cmc,
            device=model.device,
        )
    if clustering:
        labels = np.concatenate([_label_names(query)] + ([] if gallery is query else [_label_names(gallery)]))
        result |= clustering_metrics(np.concatenate(embeddings), labels)
    if parts:
        learners = range(model.num_learners)
        result["learners"] = [scores(sides(lambda f, k=k: model.embed(f, k))) for k in learners]
        result["features"] = scores(sides(normalized))
        if len(learners) > 1:
            some = query_features[np.random.default_rng(0).permutation(len(query))[:COMPARED]]
            result["similarity_correlations"] = similarity_correlations([model.embed(some, k) for k in learners])
    if divided:
        order = None
        if choosing is not None:
            result["ordered_on"], images = choosing
            order = subspace_order(
                model,
                images,
                batch_size=batch_size,
                context=context.subtask("evaluate", before=tested, total=total),
            )
        result |= subspace_scores(model.head.dimensions(), embeddings, scores, order)
    result |= {
        "benchmark": data.name,
        "protocol": data.protocol,
        "split_hash": data.split_hash,
        "num_gallery": len(data.gallery),
        "num_classes": query.num_classes,
    }
    if per_query:
        result["per_query"] = {
            "path": [query.path(i) for i in range(len(query))],
            "label": [query.label_name(i) for i in range(len(query))],
            # A query that is left out of the means has no scores.
            **{name: [None if np.isnan(v) else v for v in values.tolist()] for name, values in each.items()},
        }
    return result


def _of_the_group_of_all(query: LabeledSet, gallery: LabeledSet) -> np.ndarray:
    """(G,) bool: the gallery images that every query ignores, as they are of the one group that all queries are of."""
    if gallery is query or query.groups is None or gallery.groups is None:
        return np.zeros(len(gallery), bool)
    group = query.groups[0]
    return (gallery.groups == group) & bool(group >= 0 and (query.groups == group).all())


def _label_names(images: LabeledSet) -> np.ndarray:
    return np.array(images.label_names)[images.labels]


def _identities(query: LabeledSet, gallery: LabeledSet) -> dict[str, Any]:
    """What a query must not retrieve: itself, by its row in their common source; its own camera and group."""
    sides = {}
    if gallery is not query and query.source == gallery.source:
        sides["ids"], sides["gallery_ids"] = query.rows, gallery.rows
    for name in ("cameras", "groups"):
        if getattr(query, name) is not None and getattr(gallery, name) is not None:
            sides[name] = getattr(query, name)
            if gallery is not query:
                sides[f"gallery_{name}"] = getattr(gallery, name)
    return sides
