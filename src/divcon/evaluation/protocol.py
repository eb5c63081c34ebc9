"""Evaluate a model on a benchmark, under the benchmark's own protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from divcon.data.benchmark import Benchmark, ignored_by_all
from divcon.data.inputs import LabeledData, as_benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError, unknown
from divcon.evaluation.baselines import BASELINES, Baseline, baseline_scores
from divcon.evaluation.bootstrap import share_interval
from divcon.evaluation.clustering import clustering_metrics
from divcon.evaluation.metrics import Metric, metrics_of
from divcon.evaluation.reranking import ReRanking
from divcon.evaluation.retrieval import random_gallery_metrics, retrieval_metrics
from divcon.evaluation.subspaces import (
    MAX_COMPARED,
    learner_similarity,
    normalized,
    ordering_split,
    similarity_correlations,
    subspace_order,
    subspace_scores,
)
from divcon.evaluation.threshold import NearestItems, nearest_items, read_threshold
from divcon.models import EmbeddingModel, as_model
from divcon.models.embedding_model import shared_features
from divcon.models.inputs import check_finite
from divcon.runtime.context import DEFAULT, Context


def evaluate(
    model: EmbeddingModel | str | Path,
    data: LabeledData,
    *,
    clustering: bool = True,
    parts: bool = False,
    baselines: bool | Sequence[Baseline] = False,
    similarity: bool = False,
    order_by: Benchmark | None = None,
    per_query: bool = False,
    map: bool = False,
    cmc: int | None = None,
    rerank: ReRanking | None = None,
    recall_at: Sequence[int] | None = None,
    metrics: Sequence[str | Metric] = (),
    threshold: float | Literal["best"] | None = None,
    batch_size: int = 128,
    context: Context = DEFAULT,
) -> dict[str, Any]:
    """Score a model on classes that it was not trained on.

    Args:
        model: a model, or the folder of a run or model.
        data: a benchmark; a path or name that `divcon.read` takes; or a labelled set, or ``(vectors, labels)``, in
            which each item searches among all others.
        clustering: add NMI and AMI of k-means with as many clusters as classes, on query and gallery together: mean and
            standard deviation over three seeds. They take most of the time.
        parts: add the scores of each learner's subspace alone (``learners``) and of the pooled features before the
            head, L2-normalised (``features``). With several learners, add how similar their subspaces are
            (``similarity_correlations``, see `divcon.evaluation.similarity_correlations`). Where each has dimensions to
            itself, add the scores of the embedding without each (``without``) and of the best 1, 2 ... K subspaces
            (``by_size``, each with its ``learners`` and ``dims``). The best are chosen on images of other classes
            (``ordered_on``: validation or train; see `divcon.evaluation.subspace_order`); where there are none,
            ``by_size`` is left out.
        baselines: add ``baselines``, the scores of what needs no training: ``pooled_features`` of this network, without
            its head, and ``pretrained_features`` of the network as it was before training (the weights that its run
            started from, or timm's of the backbone), both L2-normalised; each with ``of``, what the features are of,
            and ``difference``, the embedding's Recall@1 and MAP@R minus the baseline's (``value``, and a paired 95 %
            ``interval``). Where there were no pretrained weights, or they cannot be loaded, ``note`` says so. Of
            vectors without a network the two are the same, and ``pretrained_features`` stands for both. ``advice`` has
            a line for each baseline that the embedding is below by more than the interval. They take a second pass over
            the images, and two more searches. Or the names of those to add.
        similarity: add ``learner_similarity``, how alike the learners are on a sample of the queries (see
            `divcon.evaluation.learner_similarity`); None of one learner.
        order_by: the benchmark whose validation classes, or train classes where it has none, choose the best subspaces;
            None: ``data``.
        per_query: add ``per_query``: path, label and scores of each query.
        map: add mean average precision over the full ranking, ``map`` and ``map_trapezoidal``.
        cmc: add the cumulative match characteristic, ``cmc``: a list of Recall@1, Recall@2 ... up to this rank.
        rerank: add the scores after re-ranking by k-reciprocal encoding, ``reranked``, and ``map`` and
            ``map_trapezoidal`` before and after. Random galleries and ``parts`` are not re-ranked.
        recall_at: each k of Recall@k, beside 1; None: the benchmark's.
        metrics: more metrics of the ranking, beside the built-in ones: ``"module:Name"`` or `divcon.evaluation.Metric`
            objects of your own, or names of built-in ones (``"recall_at_100"``). They are added wherever scores are:
            to ``per_query``, ``learners`` and ``reranked``, to the report and to `divcon.compare`.
        threshold: add ``threshold``, how well a nearest neighbour of this similarity (cosine) or more is of the query's
            class, where half of the classes are not in the gallery: ``min_score``, ``precision``, ``recall``, ``f1``,
            ``unknown_rejected``, ``num_known``, ``num_unknown`` (see `divcon.evaluation.threshold`). best: at the
            one with the highest F1 on this data, which must be no test classes. None: that of the folder, where
            ``model`` is one and its run has chosen one on validation classes.
        batch_size: images that are embedded at once.
        context: the processes of its group call this at once and share the images; only rank 0 gets the scores, the
            others an empty dict.

    Returns:
        ``recall_at_1`` ..., ``precision_at_1``, ``r_precision``, ``map_at_r`` (see
        `divcon.evaluation.retrieval_metrics`), ``recall_at_1_interval`` (95 %) and ``recall_at_1_interval_method`` (see
        `divcon.evaluation.share_interval`), for VehicleID also ``random_gallery`` (see
        `divcon.evaluation.random_gallery_metrics`), and what was evaluated: ``benchmark``,
        ``protocol``, ``split_hash``, ``num_queries``, ``num_gallery``, ``num_classes``.

    Raises:
        DataError: ``data`` is none of these or has no queries, or no query has a match.
        ImageError: an image does not decode; the message names it.
        NonFiniteError: an embedding is NaN or infinite.
        ConfigError: there is no such metric or baseline, or there are too many images to re-rank at these k1 and k2.
        WeightsError: there is no model in the folder.
    """
    rows = metrics_of(metrics)
    if isinstance(threshold, str) and threshold != "best":
        raise ConfigError(f"`threshold` {threshold!r}: must be a similarity (cosine), or best", field="threshold")
    if threshold is None and isinstance(model, (str, Path)):
        threshold = (read_threshold(model) or {}).get("min_score")
    embedder, data = as_model(model), as_benchmark(data, context)
    search = _Search.of(data, sorted({1, *(recall_at or data.recall_at)}), rows, embedder.device)
    divided = parts and len(embedder.head.dimensions()) > 1
    ordering = ordering_split(order_by or data) if divided else None
    wanted: Sequence[Baseline] = ()
    if baselines:
        wanted = list(BASELINES) if isinstance(baselines, bool) else baselines
    if unknown_names := set(wanted) - set(BASELINES):
        raise ConfigError(unknown("baseline", min(unknown_names), BASELINES), field="baselines")
    twice = "pretrained_features" in wanted and (embedder.vector_dim is None or embedder.start.init is not None)
    own_total = search.num_images * (1 + twice)
    total = own_total + (len(ordering[1]) if ordering else 0)
    features = _features(embedder, search, data.name, batch_size, total, context)
    if not context.group.is_main:
        return {}

    embeddings = [embedder.embed(side) for side in features]
    result = search.scores(embeddings, per_query=True, map=map, cmc=cmc, rerank=rerank)
    each = result.pop("per_query")
    *interval, method = share_interval(each["recall_at_1"], search.query.labels)
    result |= {"recall_at_1_interval": interval, "recall_at_1_interval_method": method}
    if threshold is not None and (found := search.nearest_items(embeddings)) is not None:
        result["threshold"] = found.at(found.best() if threshold == "best" else threshold)
    if data.random_galleries:
        result["random_gallery"] = random_gallery_metrics(
            embeddings[0],
            search.query_labels,
            draws=data.random_galleries,
            recall_at=search.recall_at,
            cmc=cmc,
            device=embedder.device,
        )
    if clustering:
        labels = [search.query_labels] + ([] if search.leave_one_out else [search.gallery_labels])
        result |= clustering_metrics(np.concatenate(embeddings), np.concatenate(labels))
    if wanted:
        within = context.alone().subtask("evaluate", before=search.num_images, total=total)
        options: dict[str, Any] = {"batch_size": batch_size, "context": within}
        score = partial(search.scores, map=map)
        result["baselines"], advice = baseline_scores(embedder, search.sides, features, each, score, wanted, **options)
        result |= {"advice": advice} if advice else {}
    if similarity:
        result["learner_similarity"] = learner_similarity(embedder, features[0])
    if parts:
        result |= _scores_of_parts(embedder, search, features)
    if divided:
        order = None
        if ordering is not None:
            result["ordered_on"], images = ordering
            within = context.alone().subtask("evaluate", before=own_total, total=total)
            order = subspace_order(embedder, images, batch_size=batch_size, context=within)
        result |= subspace_scores(embedder.head.dimensions(), embeddings, search.scores, order)
    result |= {
        "benchmark": data.name,
        "protocol": data.protocol,
        "split_hash": data.split_hash,
        "num_gallery": len(data.gallery),
        "num_classes": search.query.num_classes,
    }
    if per_query:
        query = search.query
        result["per_query"] = {
            "path": [query.path(i) for i in range(len(query))],
            "label": [query.label_name(i) for i in range(len(query))],
            # Queries that are left out of a mean have no score.
            **{name: [None if np.isnan(v) else v for v in values.tolist()] for name, values in each.items()},
        }
    return result


def chosen_threshold(
    model: EmbeddingModel, data: LabeledData, *, batch_size: int = 128, context: Context = DEFAULT
) -> dict[str, Any] | None:
    """The threshold with the highest F1 on validation images, and the scores at it (see `divcon.evaluation.threshold`);
    None where there are too few classes.

    Args:
        data: as of `evaluate`; no test classes.

    Raises:
        DataError: there are no images.
        ImageError: an image does not decode; the message names it.
    """
    data = as_benchmark(data, context)
    search = _Search.of(data, (1,), (), model.device)
    embeddings = [model.encode(side, batch_size=batch_size, context=context) for side in search.sides]
    found = search.nearest_items(embeddings)
    return None if found is None else found.at(found.best())


@dataclass(frozen=True)
class _Search:
    """The queries and the gallery of a benchmark, and the metrics of their rankings."""

    query: LabeledSet
    gallery: LabeledSet
    """The same object in leave-one-out."""
    recall_at: Sequence[int]
    rows: Sequence[Metric]
    device: torch.device

    @classmethod
    def of(cls, data: Benchmark, recall_at: Sequence[int], rows: Sequence[Metric], device: torch.device) -> _Search:
        """
        Raises:
            DataError: there are no queries, or there is no gallery.
        """
        query, gallery = data.query, data.gallery
        if not len(query) or not len(gallery):
            raise DataError(f"{query.source}: there are no test images to evaluate on")
        # Junk is neither hit nor miss for any query: rankings are the same without it, and it is no cluster.
        junk = ignored_by_all(query, gallery)
        if junk.any() and not junk.all():
            gallery = gallery.subset(~junk)
        return cls(query, gallery, recall_at, rows, device)

    @property
    def leave_one_out(self) -> bool:
        return self.gallery is self.query

    @property
    def sides(self) -> list[LabeledSet]:
        return [self.query] if self.leave_one_out else [self.query, self.gallery]

    @property
    def num_images(self) -> int:
        return sum(map(len, self.sides))

    @cached_property
    def query_labels(self) -> np.ndarray:
        return np.array(self.query.label_names)[self.query.labels]

    @cached_property
    def gallery_labels(self) -> np.ndarray:
        return np.array(self.gallery.label_names)[self.gallery.labels]

    def scores(self, embeddings: Sequence[np.ndarray], **more: Any) -> dict[str, Any]:
        """Retrieval metrics of the embeddings of the queries, and of the gallery where it is another set."""
        queries, *items = embeddings
        return retrieval_metrics(
            queries,
            self.query_labels,
            **({"gallery_embeddings": items[0], "gallery_labels": self.gallery_labels} if items else {}),
            **self._excluded,
            recall_at=self.recall_at,
            metrics=self.rows,
            device=self.device,
            **more,
        )

    def nearest_items(self, embeddings: Sequence[np.ndarray]) -> NearestItems | None:
        """The nearest neighbour of each query where half of the classes are in the gallery; None where there are too
        few classes."""
        queries, *items = embeddings
        try:
            return nearest_items(
                queries,
                self.query_labels,
                **({"gallery_embeddings": items[0], "gallery_labels": self.gallery_labels} if items else {}),
                **self._excluded,
                device=self.device,
            )
        except DataError:
            return None

    @cached_property
    def _excluded(self) -> dict[str, Any]:
        """What a query must not retrieve: itself, by its row in a common source; its own camera and group."""
        query, gallery, columns = self.query, self.gallery, {}
        if not self.leave_one_out and query.source == gallery.source:
            columns["ids"], columns["gallery_ids"] = query.rows, gallery.rows
        for name in ("cameras", "groups"):
            if getattr(query, name) is not None and getattr(gallery, name) is not None:
                columns[name] = getattr(query, name)
                if not self.leave_one_out:
                    columns[f"gallery_{name}"] = getattr(gallery, name)
        return columns


def _features(
    model: EmbeddingModel, search: _Search, name: str, batch_size: int, total: int, context: Context
) -> list[np.ndarray]:
    """The pooled features of each side, (N, F) float32; each process of the group computes a shard and gets all."""
    done, features = 0, []
    for images in search.sides:
        within = context.subtask("evaluate", before=done, total=total)
        features.append(shared_features(model, images, batch_size=batch_size, context=within))
        check_finite(features[-1], images, f"evaluating {name}")
        done += len(images)
    return features


def _scores_of_parts(model: EmbeddingModel, search: _Search, features: Sequence[np.ndarray]) -> dict[str, Any]:
    """The scores of each learner's subspace alone and of the pooled features, and how similar the subspaces are."""

    def scores(embed: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        return search.scores([embed(side) for side in features])

    learners = range(model.num_learners)
    result: dict[str, Any] = {"learners": [scores(lambda f, k=k: model.embed(f, k)) for k in learners]}
    result["features"] = scores(normalized)
    if len(learners) > 1:
        some = features[0][np.random.default_rng(0).permutation(len(features[0]))[:MAX_COMPARED]]
        result["similarity_correlations"] = similarity_correlations([model.embed(some, k) for k in learners])
    return result
