"""One random gallery image a class: against the protocol's text, followed one query at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import divcon as dc
from divcon.errors import DataError
from divcon.evaluation import random_gallery_metrics, retrieval_metrics
from divcon.evaluation.retrieval import drawn_gallery

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(np.arange(15), [1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9]))
POINTS = (RNG.normal(size=(15, 6))[LABELS] + RNG.normal(size=(len(LABELS), 6))).astype(np.float32)


def slow(gallery: list[int]) -> dict[str, float]:
    """Each image that is not in the gallery asks for the one of its class."""
    ranks = []
    for i in range(len(LABELS)):
        if i in gallery:
            continue
        ranking = sorted(gallery, key=lambda j: (float(((POINTS[i] - POINTS[j]) ** 2).sum()), j))
        ranks.append(1 + [int(LABELS[j]) for j in ranking].index(int(LABELS[i])))
    return {
        "recall_at_1": sum(rank <= 1 for rank in ranks) / len(ranks),
        "recall_at_5": sum(rank <= 5 for rank in ranks) / len(ranks),
        "map": sum(1 / rank for rank in ranks) / len(ranks),
    }


def test_the_mean_and_spread_of_what_the_protocol_says() -> None:
    result = random_gallery_metrics(POINTS, LABELS)
    galleries = [drawn_gallery(LABELS, 0, draw).tolist() for draw in range(10)]
    assert result["draws"] == len({tuple(gallery) for gallery in galleries}) == 10
    for gallery in galleries:
        assert LABELS[gallery].tolist() == list(range(15))  # one image of each class, also of that which has but one
    expected = [slow(gallery) for gallery in galleries]
    for name in ("recall_at_1", "recall_at_5", "map"):
        values = [scores[name] for scores in expected]
        assert result[name] == pytest.approx(np.mean(values))
        assert result[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    assert (result["num_queries"], result["num_gallery"]) == (len(LABELS) - 15, 15)
    assert 0.1 < result["recall_at_1"] < 0.9


def test_the_characteristic_is_the_mean_of_the_draws() -> None:
    result = random_gallery_metrics(POINTS, LABELS, recall_at=(1, 4, 15), cmc=20)
    galleries = [drawn_gallery(LABELS, 0, draw).tolist() for draw in range(10)]
    curves = []
    for gallery in galleries:
        query = [i for i in range(len(LABELS)) if i not in gallery]
        orders = [sorted(gallery, key=lambda j, i=i: float(((POINTS[i] - POINTS[j]) ** 2).sum())) for i in query]
        hits = np.array([[LABELS[j] == LABELS[i] for j in order] for i, order in zip(query, orders, strict=True)])
        curves.append([hits[:, : rank + 1].any(axis=1).mean() for rank in range(20)])
    assert result["cmc"] == pytest.approx(np.mean(curves, axis=0).tolist())
    assert result["cmc"] == sorted(result["cmc"]) and result["cmc"][14:] == [1.0] * 6
    for k in (1, 4, 15):
        assert result["cmc"][k - 1] == pytest.approx(result[f"recall_at_{k}"])
    assert "cmc" not in random_gallery_metrics(POINTS, LABELS)


def test_retrieval_metrics_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    # A few queries at a time, and equally near items among them.
    monkeypatch.setattr("divcon.evaluation.retrieval._COMPARED_AT_ONCE", 40)
    points = np.round(POINTS)
    result = random_gallery_metrics(points, LABELS, draws=1, recall_at=(1, 2, 5))
    gallery = drawn_gallery(LABELS, 0, 0)
    query = np.setdiff1d(np.arange(len(LABELS)), gallery)
    sides = {"gallery_embeddings": points[gallery], "gallery_labels": LABELS[gallery]}
    expected = retrieval_metrics(points[query], LABELS[query], **sides, recall_at=(1, 2, 5), map=True)
    for name in ("recall_at_1", "recall_at_2", "recall_at_5", "map"):
        assert result[name] == pytest.approx(expected[name])


def test_every_image_is_drawn_as_often_as_another() -> None:
    galleries = [drawn_gallery(LABELS, 0, draw) for draw in range(600)]
    times = np.bincount(np.concatenate(galleries), minlength=len(LABELS))
    for label in range(15):
        of_class = times[label == LABELS]
        share = 600 / len(of_class)
        assert of_class.sum() == 600
        assert np.abs(of_class - share).max() <= 5 * (share * (1 - 1 / len(of_class))) ** 0.5


def test_seeds_and_single_draws() -> None:
    one = random_gallery_metrics(POINTS, LABELS, draws=1, recall_at=(1,))
    assert one == random_gallery_metrics(POINTS, [f"c{label:02}" for label in LABELS], draws=1, recall_at=(1,))
    assert one["recall_at_1_std"] == 0
    assert list(one) == ["recall_at_1", "recall_at_1_std", "map", "map_std", "draws", "num_queries", "num_gallery"]
    many = [random_gallery_metrics(POINTS, LABELS, seed=seed)["map"] for seed in (0, 1)]
    assert many[0] != many[1]


def test_what_cannot_be_asked() -> None:
    with pytest.raises(DataError, match="no class has two images"):
        random_gallery_metrics(POINTS[:4], [0, 1, 2, 3])
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        random_gallery_metrics(POINTS, LABELS, draws=0)
    with pytest.raises(ValueError, match="cmc, the last rank, must be at least 1, not 0"):
        random_gallery_metrics(POINTS, LABELS, cmc=0)
    with pytest.raises(ValueError, match="3 entries for 4"):
        random_gallery_metrics(POINTS[:4], [0, 1, 1])


def test_vehicleid_is_scored_both_ways(trees, tmp_path, capsys) -> None:
    from rich.console import Console

    from divcon.runs.display import print_scores

    trees.write_vehicleid(tmp_path, **trees.SMALL["vehicleid"], put=trees.draw)
    data = dc.read("vehicleid-small", tmp_path)
    model = dc.EmbeddingModel("test_resnet", 8, pretrained=False, image_size=32)
    scores = dc.evaluate(model, data, cmc=3, clustering=False)
    embeddings = model.encode(data.query)
    names = np.array(data.query.label_names)[data.query.labels]
    assert scores["random_gallery"] == random_gallery_metrics(embeddings, names, recall_at=data.recall_at, cmc=3)
    assert scores["protocol"] == "leave-one-out"
    assert "random_gallery" not in dc.evaluate(model, replace(data, random_galleries=0), clustering=False)
    print_scores(scores, Console(width=200))
    printed = capsys.readouterr().out
    assert "one random gallery image a class, 10 draws of" in printed
    for curve in (scores["cmc"], scores["random_gallery"]["cmc"]):
        assert "cmc, %, ranks 1 to 3: " + " ".join(f"{100 * share:5.1f}" for share in curve) in printed


def test_some_queries_of_each_draw() -> None:
    some = random_gallery_metrics(POINTS, LABELS, max_queries=20)
    assert (some["num_queries"], some["num_queries_total"]) == (20, len(LABELS) - 15)
    means = [random_gallery_metrics(POINTS, LABELS, max_queries=20, seed=seed)["map"] for seed in range(40)]
    every = [random_gallery_metrics(POINTS, LABELS, seed=seed) for seed in range(40)]
    assert "num_queries_total" not in every[0]
    assert np.mean(means) == pytest.approx(np.mean([each["map"] for each in every]), abs=0.01)
    assert random_gallery_metrics(POINTS, LABELS, max_queries=len(LABELS)) == random_gallery_metrics(POINTS, LABELS)
