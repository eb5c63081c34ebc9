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
from divcon.evaluation.clustering import MAX_CLUSTERED, clustering_metrics
from divcon.evaluation.metrics import Metric, metrics_of
from divcon.evaluation.per_class import class_scores
from divcon.evaluation.reranking import ReRanking
from divcon.evaluation.retrieval import random_gallery_metrics, retrieval_metrics
from divcon.evaluation.subspaces import (
    MAX_COMPARED,
    MAX_MONITORED,
    learner_similarity,
    normalized,
    ordering_split,
    similarity_correlations,
    some_rows,
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
    per_class: bool = False,
    map: bool = False,
    cmc: int | None = None,
    rerank: ReRanking | None = None,
    recall_at: Sequence[int] | None = None,
    metrics: Sequence[str | Metric] = (),
    threshold: float | Literal["best"] | None = None,
    max_queries: int | None = None,
    max_clustered: int | None = MAX_CLUSTERED,
    seed: int = 0,
    batch_size: int = 128,
    context: Context = DEFAULT,
) -> dict[str, Any]:
    """Score a model on classes that it was not trained on.

    Args:
        model: a model, or the folder of a run or model.
        data: a benchmark; a path or name that `divcon.read` takes; or a labelled set, or ``(vectors, labels)``, in
            which each item searches among all others.
        clustering: add NMI and AMI of k-means with as many clusters as classes, on query and gallery together: mean and
            standard deviation over three seeds. They take most of the time. See ``max_clustered``.
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
        per_class: add ``per_class``, the scores of the queries of each class, the worst class first (see
            `divcon.evaluation.class_scores`).
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
        max_queries: search for at most so many of the queries that have a match, drawn at random, among the whole
            gallery, so that time grows with the gallery and not with its square. It holds for all scores but NMI and
            AMI; ``num_queries_total`` is then how many queries there are. None: all.
        max_clustered: of more images, NMI and AMI are of all images of some of the classes, at most so many, and
            ``clustered`` says of how many (see `divcon.evaluation.clustering_metrics`). None: all, whose time grows
            with the square of the number of classes.
        seed: draws the queries; the same for the same data.
        batch_size: images that are embedded at once.
        context: the processes of its group call this at once, and share the images and the queries; only rank 0 gets
            the scores, the others an empty dict. Rank 0 alone re-ranks.

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
    for name, most in (("max_queries", max_queries), ("max_clustered", max_clustered)):
        if most is not None and most < 1:
            raise ConfigError(f"`{name}` {most}: must be at least 1, or None for all", field=name)
    if isinstance(threshold, str) and threshold != "best":
        raise ConfigError(f"`threshold` {threshold!r}: must be a similarity (cosine), or best", field="threshold")
    if threshold is None and isinstance(model, (str, Path)):
        threshold = (read_threshold(model) or {}).get("min_score")
    embedder, data = as_model(model), as_benchmark(data, context)
    recall_at = sorted({1, *(recall_at or data.recall_at)})
    search = _Search.of(data, recall_at, rows, embedder.device, max_queries, seed, context)
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
    keep = parts or "pooled_features" in wanted
    of_images = _Embedded(embedder, search, data.name, batch_size, total, keep=keep, context=context)
    embeddings = of_images.embeddings
    result = search.scores(embeddings, per_query=True, map=map, cmc=cmc, rerank=rerank)
    each = result.pop("per_query")
    asked = each.pop("position", np.arange(len(search.query)))
    labels = search.query.labels[asked]
    *interval, method = share_interval(each["recall_at_1"], labels)
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
            max_queries=max_queries,
            device=embedder.device,
            context=context,
        )
    if clustering:
        names = [search.query_labels] + ([] if search.leave_one_out else [search.gallery_labels])
        result |= clustering_metrics(
            np.concatenate(embeddings), np.concatenate(names), max_items=max_clustered, context=context
        )
    if wanted:
        within = context.subtask("evaluate", before=search.num_images, total=total)
        options: dict[str, Any] = {"batch_size": batch_size, "context": within}
        pooled, score = partial(of_images.embedded, normalized), partial(search.scores, map=map)
        result["baselines"], advice = baseline_scores(
            embedder, search.sides, pooled, each, labels, score, wanted, **options
        )
        result |= {"advice": advice} if advice else {}
    if similarity:
        result["learner_similarity"] = learner_similarity(embedder, of_images.some[:MAX_MONITORED])
    if parts:
        result |= _scores_of_parts(embedder, search, of_images)
    if divided:
        order = None
        if ordering is not None:
            result["ordered_on"], images = ordering
            within = context.subtask("evaluate", before=own_total, total=total)
            features = shared_features(embedder, images, batch_size=batch_size, context=within)
            # By rank 0, so that another rank's rounding cannot give another order.
            order = np.zeros(embedder.num_learners, np.int64)
            if context.group.is_main:
                order[:] = subspace_order(embedder, images, features=features)
            order = context.group.broadcast(order).tolist()
        result |= subspace_scores(embedder.head.dimensions(), embeddings, search.scores, order)
    if not context.group.is_main:
        return {}
    result |= {
        "benchmark": data.name,
        "protocol": data.protocol,
        "split_hash": data.split_hash,
        "num_gallery": len(data.gallery),
        "num_classes": search.query.num_classes,
    }
    if per_class:
        names = [search.query.label_name(i) for i in asked.tolist()]
        result["per_class"] = class_scores(names, each["recall_at_1"], each["map_at_r"])
    if per_query:
        query = search.query
        result["per_query"] = {
            "path": [query.path(i) for i in asked.tolist()],
            "label": [query.label_name(i) for i in asked.tolist()],
            # Queries that are left out of a mean have no score.
            **{name: [None if np.isnan(v) else v for v in values.tolist()] for name, values in each.items()},
        }
    return result


def chosen_threshold(
    model: EmbeddingModel,
    data: LabeledData,
    *,
    max_queries: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    context: Context = DEFAULT,
) -> dict[str, Any] | None:
    """The threshold with the highest F1 on validation images, and the scores at it (see `divcon.evaluation.threshold`);
    None where there are too few classes.

    Args:
        data: as of `evaluate`; no test classes.
        max_queries, seed, context: as of `evaluate`; all processes of the group get the threshold.

    Raises:
        DataError: there are no images.
        ImageError: an image does not decode; the message names it.
    """
    data = as_benchmark(data, context)
    search = _Search.of(data, (1,), (), model.device, max_queries, seed, context)
    of_images = _Embedded(model, search, data.name, batch_size, search.num_images, keep=False, context=context)
    found = search.nearest_items(of_images.embeddings)
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
    max_queries: int | None
    seed: int
    context: Context

    @classmethod
    def of(
        cls,
        data: Benchmark,
        recall_at: Sequence[int],
        rows: Sequence[Metric],
        device: torch.device,
        max_queries: int | None,
        seed: int,
        context: Context,
    ) -> _Search:
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
        return cls(query, gallery, recall_at, rows, device, max_queries, seed, context)

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
            **self._options,
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
                **self._options,
            )
        except DataError:
            return None

    @property
    def _options(self) -> dict[str, Any]:
        """How each search runs: it is of the same queries, and the ranks share them."""
        fields = ("max_queries", "seed", "device", "context")
        return {name: getattr(self, name) for name in fields}

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


_AT_ONCE = 2**16
"""Images whose pooled features a process holds before it embeds them, where only the embeddings are needed."""


class _Embedded:
    """The embeddings of the queries and of the gallery, from one pass over the images. Each process of the group passes
    a shard of them through the network."""

    embeddings: list[np.ndarray]
    """Of each side all of its images, (N, D) float32."""
    some: np.ndarray
    """(n, F) float32: the pooled features of at most `MAX_COMPARED` queries."""

    def __init__(
        self,
        model: EmbeddingModel,
        search: _Search,
        name: str,
        batch_size: int,
        total: int,
        *,
        keep: bool,
        context: Context,
    ) -> None:
        """
        Args:
            name: of the benchmark, for messages.
            total: images of the whole work, for its progress.
            keep: keep this process's shard of the pooled features, for `embedded`.

        Raises:
            ImageError: an image does not decode.
            NonFiniteError: the features of an image are NaN or infinite; all processes raise it.
        """
        group = context.group
        self._group, self._sizes = group, [len(side) for side in search.sides]
        self._shards: list[np.ndarray] = []
        self.embeddings = []
        done = 0
        for number, images in enumerate(search.sides):
            shard = group.shard(len(images))
            at_once = max(1, shard.stop - shard.start) if keep else _AT_ONCE
            vectors: list[np.ndarray] = []
            finite = np.zeros(shard.stop - shard.start, np.float32)  # NaN for an image whose features are not
            rows = some_rows(len(images), MAX_COMPARED)
            if not number:
                some = np.zeros((len(rows), model.num_features))
            for start in range(shard.start, shard.stop, at_once):
                stop = min(start + at_once, shard.stop)
                before = done + group.world_size * (start - shard.start)
                within = context.subtask("evaluate", before=before, total=total, times=group.world_size)
                own = images if stop - start == len(images) else images.subset(np.arange(start, stop))
                features = model.features(own, batch_size=batch_size, context=within)
                finite[start - shard.start : stop - shard.start] = np.where(
                    np.isfinite(features).all(axis=1), 0, np.nan
                )
                vectors.append(model.embed(features))
                if not number:
                    here = (rows >= start) & (rows < stop)
                    some[here] = features[rows[here] - start]
                if keep:
                    self._shards.append(features)
            if keep and shard.stop == shard.start:
                self._shards.append(np.zeros((0, model.num_features), np.float32))
            of_all = group.all_gather(torch.from_numpy(finite), len(images)).numpy()
            check_finite(of_all[:, None], images, f"evaluating {name}")
            own_vectors = np.concatenate(vectors) if vectors else np.zeros((0, model.embedding_dim), np.float32)
            self.embeddings.append(self._all(own_vectors, len(images)))
            if not number:
                self.some = group.all_reduce(some).astype(np.float32)
            done += len(images)

    def embedded(self, embed: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        """What ``embed`` makes of the pooled features, (n, F) to (n, d), of all images of each side."""
        return [self._all(embed(own), size) for own, size in zip(self._shards, self._sizes, strict=True)]

    def _all(self, own: np.ndarray, size: int) -> np.ndarray:
        return self._group.all_gather(torch.from_numpy(own), size).numpy()


def _scores_of_parts(model: EmbeddingModel, search: _Search, of_images: _Embedded) -> dict[str, Any]:
    """The scores of each learner's subspace alone and of the pooled features, and how similar the subspaces are."""

    def scores(embed: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        return search.scores(of_images.embedded(embed))

    learners = range(model.num_learners)
    result: dict[str, Any] = {"learners": [scores(lambda f, k=k: model.embed(f, k)) for k in learners]}
    result["features"] = scores(normalized)
    if len(learners) > 1:
        result["similarity_correlations"] = similarity_correlations([model.embed(of_images.some, k) for k in learners])
    return result
