"""A model's scores on a benchmark, under the benchmark's own protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from divcon.data.image_set import Benchmark, ImageSet
from divcon.errors import DataError
from divcon.evaluate.clustering import clustering_metrics
from divcon.evaluate.intervals import bootstrap_interval
from divcon.evaluate.retrieval import retrieval_metrics
from divcon.models import EmbeddingModel


def evaluate(
    model: EmbeddingModel,
    data: Benchmark | ImageSet,
    *,
    clustering: bool = True,
    parts: bool = False,
    per_query: bool = False,
    map: bool = False,
    recall_at: Sequence[int] | None = None,
    batch_size: int = 128,
    workers: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Scores of a model on classes that it was not trained on.

    Args:
        data: a benchmark, or a set of images of which each searches among all the others.
        clustering: also NMI and AMI of k-means at the number of classes (on query and gallery together), mean and
            spread over three seeds. It costs more than all the rest.
        parts: also the scores of each learner's subspace alone (``learners``) and of the pooled features before the
            head, L2-normalised (``features``).
        per_query: also ``per_query``: for each query its path, label, and scores.
        map: also mean average precision over the full ranking.
        recall_at: the k of Recall@k, beside 1; None: the benchmark's.

    Returns:
        ``recall_at_1`` ..., ``precision_at_1``, ``r_precision``, ``map_at_r`` (see
        `divcon.evaluate.retrieval_metrics`), ``recall_at_1_interval`` (95 %, bootstrap over classes), and what they are
        of: ``benchmark``, ``protocol``, ``split_hash``, ``num_queries``, ``num_gallery``, ``num_classes``.

    Raises:
        DataError: there are no queries, or none has a match.
        ImageError: an image does not decode; the message names it.
        NonFiniteError: an embedding is NaN or infinite.
    """
    if isinstance(data, ImageSet):
        data = Benchmark(data.source, data.subset(np.empty(0, np.int64)), data, data)
    query, gallery = data.query, data.gallery
    if not len(query) or not len(gallery):
        raise DataError(f"{query.source}: there are no test images to evaluate on")
    total = len(query) + (0 if gallery is query else len(gallery))

    def pooled(images: ImageSet, before: int) -> np.ndarray:
        return model.features(
            images,
            batch_size=batch_size,
            workers=workers,
            on_progress=lambda done, _: on_progress(before + done, total),
        )

    query_features = pooled(query, 0)
    gallery_features = query_features if gallery is query else pooled(gallery, len(query))

    def scores(embed: Callable[[np.ndarray], np.ndarray], **more: Any) -> dict[str, Any]:
        queries = embed(query_features)
        items = queries if gallery is query else embed(gallery_features)
        return retrieval_metrics(
            queries,
            _label_names(query),
            **({} if gallery is query else {"gallery_embeddings": items, "gallery_labels": _label_names(gallery)}),
            **_identities(query, gallery),
            recall_at=sorted({1, *(recall_at or data.recall_at)}),
            device=model.device,
            **more,
        )

    result = scores(model.embed, per_query=True, map=map)
    each = result.pop("per_query")
    low, high = bootstrap_interval(each["recall_at_1"], query.labels)
    result["recall_at_1_interval"] = [low, high]
    if clustering:
        both = [query_features] if gallery is query else [query_features, gallery_features]
        labels = np.concatenate([_label_names(query)] + ([] if gallery is query else [_label_names(gallery)]))
        result |= clustering_metrics(model.embed(np.concatenate(both)), labels)
    if parts:
        result["learners"] = [scores(lambda f, k=k: model.embed(f, k)) for k in range(model.num_learners)]
        result["features"] = scores(normalized)
    result |= {
        "benchmark": data.name,
        "protocol": data.protocol,
        "split_hash": data.split_hash,
        "num_gallery": len(gallery),
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


def _label_names(images: ImageSet) -> np.ndarray:
    return np.array(images.label_names)[images.labels]


def _identities(query: ImageSet, gallery: ImageSet) -> dict[str, Any]:
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


def normalized(features: np.ndarray) -> np.ndarray:
    """(N, F) features, each row of length one."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
