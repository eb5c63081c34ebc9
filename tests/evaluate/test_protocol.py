"""A model on a benchmark: which protocol, which scores, and what they are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import divcon as dc
from divcon.data.image_set import Benchmark
from divcon.errors import DataError
from divcon.evaluate import clustering_metrics, retrieval_metrics

Make = Callable[..., dc.EmbeddingModel]


def test_leave_one_out_equals_the_metrics_of_its_embeddings(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    found = dc.evaluate(model, few)
    embeddings = model.encode(few.query)
    expected = retrieval_metrics(embeddings, few.query.labels) | clustering_metrics(embeddings, few.query.labels)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["protocol"] == "leave-one-out"
    assert found["split_hash"] == few.split_hash
    assert (found["benchmark"], found["num_queries"], found["num_gallery"]) == ("few", len(few.query), len(few.query))
    low, high = found["recall_at_1_interval"]
    assert low <= found["recall_at_1"] <= high
    json.dumps(found)


def test_parts_are_each_learner_s_subspace_and_the_features(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model(num_learners=3)
    found = dc.evaluate(model, few, parts=True, clustering=False)
    assert "nmi" not in found
    for k, scores in enumerate(found["learners"]):
        expected = retrieval_metrics(model.encode(few.query, learner=k), few.query.labels)
        assert scores["recall_at_1"] == pytest.approx(expected["recall_at_1"])
    features = model.features(few.query)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = retrieval_metrics(features, few.query.labels)
    assert found["features"]["map_at_r"] == pytest.approx(expected["map_at_r"])


def test_an_image_never_finds_itself_whatever_the_protocol(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    # The gallery holds the queries too, as another set: the scores are those of leave-one-out.
    as_gallery = replace(few, gallery=few.query.subset(np.arange(len(few.query))[::-1]))
    assert as_gallery.protocol == "query-gallery"
    one, two = (dc.evaluate(model, data, clustering=False) for data in (few, as_gallery))
    assert two["recall_at_1"] == pytest.approx(one["recall_at_1"], abs=0.02)  # ties fall to another order
    assert two["map_at_r"] == pytest.approx(one["map_at_r"], abs=0.02)
    assert one["split_hash"] != two["split_hash"]


def test_each_query_is_named_with_its_scores(tiny_model: Make, few: Benchmark) -> None:
    images = few.query.subset(np.r_[0:30])
    alone = images.of_classes(images.classes[-1:]).subset(np.array([0]))
    rest = np.flatnonzero(images.labels != images.classes[-1])
    mixed = images.subset(np.r_[rest, len(images) - 1])
    found = dc.evaluate(tiny_model(), mixed, per_query=True, clustering=False)
    each = found["per_query"]
    assert each["path"] == [mixed.path(i) for i in range(len(mixed))]
    assert each["label"][-1] == alone.label_name(0)
    assert each["recall_at_1"][-1] is None
    assert found["num_queries_without_match"] == 1
    assert np.mean(each["recall_at_1"][:-1]) == pytest.approx(found["recall_at_1"])
    json.dumps(found)


def test_cameras_and_groups_are_left_out(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    images = few.query.subset(np.arange(40))
    cameras = np.arange(40) % 2
    found = dc.evaluate(model, replace(images, cameras=cameras), clustering=False)
    expected = retrieval_metrics(model.encode(images), images.labels, cameras=cameras)
    assert found["recall_at_1"] == expected["recall_at_1"]
    groups = np.arange(40) // 4
    found = dc.evaluate(model, replace(images, groups=groups), clustering=False)
    expected = retrieval_metrics(model.encode(images), images.labels, groups=groups)
    assert found["recall_at_1"] == expected["recall_at_1"]


def test_batches_and_workers_change_nothing(tiny_model: Make, few: Benchmark, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    model = tiny_model()
    one = dc.evaluate(model, few, clustering=False)
    two = dc.evaluate(model, few, clustering=False, batch_size=17, workers=2, on_progress=lambda *p: told.append(p))
    assert two["map_at_r"] == pytest.approx(one["map_at_r"], abs=1e-3)
    assert told[-1] == (len(few.query), len(few.query))


def test_nothing_to_evaluate_is_said(tiny_model: Make, few: Benchmark) -> None:
    nothing = few.query.subset(np.empty(0, np.int64))
    with pytest.raises(DataError, match="no test images to evaluate on"):
        dc.evaluate(tiny_model(), Benchmark("few", few.train, nothing, nothing))
