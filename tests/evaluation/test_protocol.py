"""A model on a benchmark: which protocol, which scores, and what they are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import divcon as dc
from divcon.cli.evaluate import evaluate as command
from divcon.data.benchmark import Benchmark
from divcon.data.clean import write_table
from divcon.errors import DataError
from divcon.evaluation import ReRanking, clustering_metrics, retrieval_metrics
from divcon.evaluation.clustering import MAX_CLUSTERED

Make = Callable[..., dc.EmbeddingModel]


def test_leave_one_out_equals_the_metrics_of_its_embeddings(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    result = dc.evaluate(model, few)
    embeddings = model.encode(few.query)
    expected = retrieval_metrics(embeddings, few.query.labels) | clustering_metrics(embeddings, few.query.labels)
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert result["protocol"] == "leave-one-out"
    assert result["split_hash"] == few.split_hash
    assert (result["benchmark"], result["num_queries"], result["num_gallery"]) == (
        "few",
        len(few.query),
        len(few.query),
    )
    low, high = result["recall_at_1_interval"]
    assert low <= result["recall_at_1"] <= high
    json.dumps(result)


def test_parts_are_each_learner_s_subspace_and_the_features(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model(num_learners=3)
    result = dc.evaluate(model, few, parts=True, clustering=False)
    assert "nmi" not in result
    for k, scores in enumerate(result["learners"]):
        expected = retrieval_metrics(model.encode(few.query, learner=k), few.query.labels)
        assert scores["recall_at_1"] == pytest.approx(expected["recall_at_1"])
    features = model.features(few.query)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = retrieval_metrics(features, few.query.labels)
    assert result["features"]["map_at_r"] == pytest.approx(expected["map_at_r"])


def test_an_image_never_finds_itself_whatever_the_protocol(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    # The gallery holds the queries too, as another set: the scores are those of leave-one-out.
    as_gallery = replace(few, gallery=few.query.subset(np.arange(len(few.query))[::-1]))
    assert as_gallery.protocol == "query-gallery"
    one, two = (dc.evaluate(model, data, clustering=False) for data in (few, as_gallery))
    assert two["recall_at_1"] == pytest.approx(one["recall_at_1"], abs=0.02)  # ties fall to another order
    assert two["map_at_r"] == pytest.approx(one["map_at_r"], abs=0.02)
    assert one["split_hash"] != two["split_hash"]


def test_an_image_is_re_ranked_alike_whatever_the_protocol(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    as_gallery = replace(few, gallery=few.query.subset(np.arange(len(few.query))[::-1]))
    one, two = (
        dc.evaluate(model, data, clustering=False, rerank=ReRanking())["reranked"] for data in (few, as_gallery)
    )
    for name in ("recall_at_1", "map"):
        assert two[name] == pytest.approx(one[name], abs=0.02)
    assert one["recall_at_1"] < 1  # else each would retrieve itself


def test_each_query_is_named_with_its_scores(tiny_model: Make, few: Benchmark) -> None:
    images = few.query.subset(np.r_[0:30])
    alone = images.of_classes(images.classes[-1:]).subset(np.array([0]))
    rest = np.flatnonzero(images.labels != images.classes[-1])
    mixed = images.subset(np.r_[rest, len(images) - 1])
    result = dc.evaluate(tiny_model(), mixed, per_query=True, clustering=False)
    each = result["per_query"]
    assert each["path"] == [mixed.path(i) for i in range(len(mixed))]
    assert each["label"][-1] == alone.label_name(0)
    assert each["recall_at_1"][-1] is None
    assert result["num_queries_without_match"] == 1
    assert np.mean(each["recall_at_1"][:-1]) == pytest.approx(result["recall_at_1"])
    json.dumps(result)


def test_cameras_and_groups_are_left_out(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    images = few.query.subset(np.arange(40))
    cameras = np.arange(40) % 2
    result = dc.evaluate(model, replace(images, cameras=cameras), clustering=False)
    expected = retrieval_metrics(model.encode(images), images.labels, cameras=cameras)
    assert result["recall_at_1"] == expected["recall_at_1"]
    groups = np.arange(40) // 4
    result = dc.evaluate(model, replace(images, groups=groups), clustering=False)
    expected = retrieval_metrics(model.encode(images), images.labels, groups=groups)
    assert result["recall_at_1"] == expected["recall_at_1"]


def test_batches_and_workers_change_nothing(tiny_model: Make, few: Benchmark, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    model = tiny_model()
    context = dc.Context(2, lambda p: progress.append((p.done, p.total)))
    one = dc.evaluate(model, few, clustering=False)
    two = dc.evaluate(model, few, clustering=False, batch_size=17, context=context)
    assert two["map_at_r"] == pytest.approx(one["map_at_r"], abs=1e-3)
    assert progress[-1] == (len(few.query), len(few.query))


def test_nothing_to_evaluate_is_reported(tiny_model: Make, few: Benchmark) -> None:
    nothing = few.query.subset(np.empty(0, np.int64))
    with pytest.raises(DataError, match="no test images to evaluate on"):
        dc.evaluate(tiny_model(), Benchmark("few", few.train, nothing, nothing))


class TestJunk:
    """Gallery images of the group that all queries are of: neither hit nor miss, as Market-1501 has them."""

    @pytest.fixture
    def market(self, trees: ModuleType, tmp_path: Path) -> Benchmark:
        sizes = {"train": [4, 4], "test": [(2, 5), (3, 7), (1, 4)], "distractors": 9, "junk": 11}
        return dc.read("market1501", trees.write_market1501(tmp_path / "market", **sizes, put=trees.draw))

    def test_the_scores_are_those_of_a_walk_down_each_ranking(self, tiny_model: Make, market: Benchmark) -> None:
        model = tiny_model()
        result = dc.evaluate(model, market, map=True, clustering=False, per_query=True)
        query, gallery = model.encode(market.query), model.encode(market.gallery)
        names = [[images.label_name(i) for i in range(len(images))] for images in (market.query, market.gallery)]
        for i, name in enumerate(names[0]):
            # As Market-1501's own evaluation walks: what is junk is stepped over, and does not count as a rank.
            rank = right = 0
            precisions, first = [], None
            for j in sorted(range(len(gallery)), key=lambda j: (((query[i] - gallery[j]) ** 2).sum(), j)):
                if names[1][j] == "-1" or (
                    names[1][j] == name and market.gallery.cameras[j] == market.query.cameras[i]
                ):
                    continue
                rank += 1
                if names[1][j] == name:
                    right += 1
                    first = first or rank
                    precisions.append(right / rank)
            for k in (1, 5, 10):
                assert result["per_query"][f"recall_at_{k}"][i] == (first is not None and first <= k)
            assert result["per_query"]["map"][i] == pytest.approx(np.mean(precisions))
        assert result["num_gallery"] == 16 + 9 + 11

    def test_re_ranked_scores_stand_beside_the_others(self, tiny_model: Make, market: Benchmark) -> None:
        model = tiny_model()
        result = dc.evaluate(model, market, clustering=False, cmc=12, rerank=ReRanking(4, 2), per_query=True)
        plain = dc.evaluate(model, market, clustering=False, cmc=12, map=True, per_query=True)
        again = result.pop("reranked")
        assert result == plain
        assert again["recall_at_1"] == again["cmc"][0] and result["recall_at_5"] == result["cmc"][4]
        # Junk is no neighbour either: it is not there.
        gallery = market.gallery.subset(market.gallery.groups < 0)
        expected = retrieval_metrics(
            model.encode(market.query),
            np.array(market.query.label_names)[market.query.labels],
            gallery_embeddings=model.encode(gallery),
            gallery_labels=np.array(gallery.label_names)[gallery.labels],
            cameras=market.query.cameras,
            gallery_cameras=gallery.cameras,
            recall_at=market.recall_at,
            cmc=12,
            rerank=ReRanking(4, 2),
        )["reranked"]
        assert again.pop("cmc") == pytest.approx(expected.pop("cmc"))
        assert again == pytest.approx(expected, abs=1e-6)

    def test_it_is_no_cluster_and_not_encoded(self, tiny_model: Make, market: Benchmark) -> None:
        model = tiny_model()
        progress: list[tuple[int, int]] = []
        result = dc.evaluate(
            model, market, context=dc.Context(on_progress=lambda p: progress.append((p.done, p.total)))
        )
        without = market.gallery.subset(market.gallery.groups < 0)
        assert progress[-1] == (6 + 25, 6 + 25) and len(without) == 25
        expected = dc.evaluate(model, replace(market, gallery=replace(without, groups=None)))
        assert {name: result[name] for name in ("nmi", "recall_at_1", "map_at_r")} == {
            name: expected[name] for name in ("nmi", "recall_at_1", "map_at_r")
        }

    def test_one_query_of_another_group_and_nothing_is_junk_for_all(self, tiny_model: Make, market: Benchmark) -> None:
        model = tiny_model()
        groups = np.where(np.arange(len(market.query)) == 0, 7, 0)
        result = dc.evaluate(model, replace(market, query=replace(market.query, groups=groups)), clustering=False)
        expected = retrieval_metrics(
            model.encode(market.query),
            market.query.labels,
            gallery_embeddings=model.encode(market.gallery),
            gallery_labels=market.gallery.labels,
            cameras=market.query.cameras,
            gallery_cameras=market.gallery.cameras,
            groups=groups,
            gallery_groups=market.gallery.groups,
        )
        assert result["map_at_r"] == expected["map_at_r"]

    def test_a_table_keeps_it(self, tiny_model: Make, market: Benchmark, tmp_path: Path) -> None:
        model = tiny_model()
        write_table(tmp_path / "market.csv", market)
        again = dc.read(tmp_path / "market.csv")
        names = ("recall_at_1", "map_at_r", "num_gallery", "nmi")
        one, two = (dc.evaluate(model, data) for data in (market, again))
        assert {name: two[name] for name in names} == pytest.approx({name: one[name] for name in names})


def test_a_budget_holds_for_all_scores(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model(num_learners=2, method="slices")
    options = {"per_query": True, "parts": True, "baselines": ("pooled_features",), "clustering": False}
    every = dc.evaluate(model, few, **options)
    some = dc.evaluate(model, few, max_queries=12, seed=3, **options)
    assert (some["num_queries"], some["num_queries_total"]) == (12, len(few.query))
    assert some["num_gallery"] == len(few.query)
    paths = some["per_query"]["path"]
    assert len(paths) == 12
    at = [every["per_query"]["path"].index(path) for path in paths]
    for name in ("label", "recall_at_1", "map_at_r", "num_matches"):
        assert some["per_query"][name] == [every["per_query"][name][i] for i in at]
    low, high = some["recall_at_1_interval"]
    assert low <= some["recall_at_1"] <= high
    for scores in (*some["learners"], *some["without"], some["features"], some["baselines"]["pooled_features"]):
        assert (scores["num_queries"], scores["num_queries_total"]) == (12, len(few.query))
    # The same queries, so that two models compare.
    other = dc.evaluate(tiny_model(seed=1), few, max_queries=12, seed=3, per_query=True, clustering=False)
    assert dc.compare({"one": some, "other": other})[1].difference is not None
    assert signature(command).parameters["max_clustered"].default == MAX_CLUSTERED
    for name in ("max_queries", "max_clustered"):
        with pytest.raises(dc.errors.ConfigError, match=f"`{name}` 0: must be at least 1, or None"):
            dc.evaluate(model, few, **{name: 0})
