"""Two processes share out the queries, and get what one process gets alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import NonFiniteError
from divcon.evaluation import ReRanking, clustering_metrics, metric, random_gallery_metrics, retrieval_metrics
from divcon.evaluation.metrics import Ranking
from divcon.evaluation.protocol import chosen_threshold
from divcon.evaluation.threshold import nearest_items
from divcon.runs.embedding import choose_embedding
from divcon.runtime.context import Context
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.launch import launch

pytestmark = pytest.mark.heavy

RNG = np.random.default_rng(0)
SIZES = [1, 1, 2, 3, 4, 5, 5, 6, 6, 7, 9, 40]
LABELS = RNG.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
POINTS = (RNG.normal(size=(len(SIZES), 5))[LABELS] + 1.2 * RNG.normal(size=(len(LABELS), 5))).astype(np.float32)
VECTORS = POINTS.copy()
POINTS[10:30] = POINTS[10]  # ties, which the order of items decides
CAMERAS = RNG.integers(0, 3, len(LABELS))


@metric(depth="R")
def in_doubt(ranking: Ranking) -> np.ndarray:
    """NaN, which is left out of the mean, for some."""
    return np.where(ranking.num_matches % 2 == 0, np.nan, ranking.hits.any(axis=1))


def arrays(context: Context) -> dict[str, Any]:
    """The scores of arrays, which must be the same bit for bit."""
    options: dict[str, Any] = {"context": context, "metrics": [in_doubt], "per_query": True, "cmc": 7, "map": True}
    query, gallery = POINTS[:31], POINTS[25:]
    apart: dict[str, Any] = {"gallery_embeddings": gallery, "gallery_labels": LABELS[25:]}
    cameras = {"cameras": CAMERAS[:31], "gallery_cameras": CAMERAS[25:]}
    return {
        "leave one out": retrieval_metrics(POINTS, LABELS, **options),
        "some": retrieval_metrics(POINTS, LABELS, max_queries=13, seed=4, **options),
        "cameras": retrieval_metrics(query, LABELS[:31], **apart, **cameras, **options),
        "re-ranked": retrieval_metrics(query, LABELS[:31], rerank=ReRanking(), **apart, **options),
        "precomputed": retrieval_metrics(np.abs(POINTS[:, :1] - POINTS[:, 0]), LABELS, metric="precomputed", **options),
        "one query": retrieval_metrics(POINTS[40:41], LABELS[40:41], **apart, **options),
        "one gallery image a class": random_gallery_metrics(POINTS, LABELS, draws=3, cmc=4, context=context),
        "of some": random_gallery_metrics(POINTS, LABELS, draws=3, max_queries=11, context=context),
        "clusters": clustering_metrics(POINTS, LABELS, context=context),
        "clusters of some": clustering_metrics(POINTS, LABELS, max_items=60, context=context),
        "threshold": vars(nearest_items(POINTS, LABELS.astype(str), cameras=CAMERAS, context=context)),
        "threshold of some": vars(nearest_items(POINTS, LABELS.astype(str), max_queries=20, context=context)),
    }


def vectors(rows: np.ndarray) -> dc.LabeledSet:
    names = pa.array([f"row {row}" for row in rows])
    return dc.LabeledSet(LABELS[rows], tuple(map(str, range(len(SIZES)))), names, rows, "data", vectors=VECTORS[rows])


EVERY = np.arange(len(LABELS))


def benchmarks() -> dict[str, Benchmark]:
    everything, nothing = vectors(EVERY), vectors(EVERY[:0])
    one = Benchmark("one set", nothing, everything, everything)
    return {"one set": one, "apart": replace(one, query=vectors(EVERY[:31]), gallery=vectors(EVERY[25:]))}


def evaluations(context: Context) -> dict[str, Any]:
    """The scores of a model, whose products round in another way for another number of rows."""
    torch.manual_seed(0)
    model = dc.EmbeddingModel("mlp", 8, 3, method="slices", vector_dim=5).eval()
    results: dict[str, Any] = {}
    for name, data in benchmarks().items():
        data = replace(data, random_galleries=2) if name == "one set" else data
        options: dict[str, Any] = {"parts": True, "similarity": True, "per_query": True, "threshold": "best"}
        order_by = Benchmark("to choose by", vectors(EVERY[40:]), nothing := vectors(EVERY[:0]), nothing)
        options |= {"baselines": ("pooled_features",), "order_by": order_by, "context": context}
        results[name] = dc.evaluate(model, data, **options)
        results[f"{name}, some"] = dc.evaluate(model, data, max_queries=9, seed=2, max_clustered=60, **options)
    results["threshold"] = chosen_threshold(model, one := benchmarks()["one set"], context=context)
    results["embedding"] = choose_embedding(model, one.query, one.query, max_queries=30, context=context)[1]
    broken = replace(one, query=replace(one.query, vectors=np.where(EVERY[:, None] == 80, np.inf, VECTORS)))
    with pytest.raises(NonFiniteError, match=r"of 1 of 89 images .*row 80"):  # in the last shard
        bare = dc.EmbeddingModel("none", 8, 3, method="slices", vector_dim=5)
        dc.evaluate(bare, replace(broken, gallery=broken.query), context=context)
    return results


def both(group: ProcessGroup) -> tuple[dict[str, Any], dict[str, Any]]:
    context = Context(processes=group)
    return arrays(context), evaluations(context)


@pytest.fixture(scope="module")
def by_two() -> tuple[dict[str, Any], dict[str, Any]]:
    with launch(2, "batch", "cpu", both) as group:
        return both(group)


def test_arrays(by_two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    alone = arrays(Context(processes=ALONE))
    assert alone["leave one out"]["num_queries_without_match"] == 2
    assert np.isnan(alone["leave one out"]["per_query"]["in_doubt"]).sum() > 10
    np.testing.assert_equal(by_two[0], alone)


def assert_close(mine: Any, theirs: Any, where: str = "") -> None:
    assert type(mine) is type(theirs), where
    if isinstance(mine, (list, dict)):
        assert list(mine) == list(theirs) if isinstance(mine, dict) else len(mine) == len(theirs), where
        for key in mine if isinstance(mine, dict) else range(len(mine)):
            assert_close(mine[key], theirs[key], f"{where} {key}")
    else:
        assert mine == (pytest.approx(theirs, rel=1e-5, nan_ok=True) if isinstance(mine, float) else theirs), where


def test_a_model(by_two: tuple[dict[str, Any], dict[str, Any]]) -> None:
    alone = evaluations(Context(processes=ALONE))
    assert alone["apart, some"]["num_queries_total"] == 31 and len(alone["apart, some"]["per_query"]["path"]) == 9
    assert alone["one set, some"]["clustered"]["num_items_total"] == 89
    assert alone["embedding"]["num_queries"] == 30 and len(alone["embedding"]["scores"]) == 2
    assert_close(by_two[1], alone)
