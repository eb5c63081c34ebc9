"""Scores of each class, against a loop over the queries."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.evaluation import class_scores

Command = Callable[..., tuple[int, str, str]]


def test_each_class_has_the_means_of_its_queries_and_the_worst_comes_first() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 200)
    hits, precision = rng.integers(0, 2, 200).astype(float), rng.random(200)
    missing = labels == 4
    hits[missing] = precision[missing] = np.nan
    hits[labels == 7] = 0.0
    hits[labels == 8] = 0.0
    scores = class_scores(labels, hits, precision)
    for of in scores:
        mine = [i for i in range(200) if labels[i] == of["label"] and not np.isnan(hits[i])]
        assert of["num_queries"] == len(mine)
        if mine:
            assert of["recall_at_1"] == pytest.approx(sum(hits[i] for i in mine) / len(mine))
            assert of["map_at_r"] == pytest.approx(sum(precision[i] for i in mine) / len(mine))
    assert scores[-1] == {"label": 4, "num_queries": 0, "recall_at_1": None, "map_at_r": None}
    ranked = [(of["recall_at_1"], of["map_at_r"]) for of in scores[:-1]]
    assert ranked == sorted(ranked)
    assert {scores[0]["label"], scores[1]["label"]} == {7, 8}
    with pytest.raises(ValueError, match="3 labels"):
        class_scores([0, 1, 2], [0.0], [0.0])


@pytest.mark.heavy
def test_evaluate_writes_them_and_the_json_has_them(command: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(16), 5)
    vectors = rng.normal(size=(16, 8))[labels] + rng.normal(size=(80, 8))
    names = [f"class {label:02}, say" for label in labels]
    pq.write_table(pa.table({"embedding": list(vectors.astype(np.float32)), "label": names}), tmp_path / "v.parquet")
    model = dc.EmbeddingModel("none", 4, vector_dim=8)
    model.save(tmp_path / "model")
    asked = ("evaluate", tmp_path / "model", tmp_path / "v.parquet", "--no-baselines", "--no-clustering")
    files = (tmp_path / "classes.csv", tmp_path / "scores.json")
    code, _, err = command(*asked, "--per-class", files[0], "--json", files[1])
    assert code == 0, err
    scores = json.loads(files[1].read_text())
    rows = list(csv.DictReader(files[0].open()))
    assert [row["label"] for row in rows] == [of["label"] for of in scores["per_class"]]
    for row, of in zip(rows, scores["per_class"], strict=True):
        assert (int(row["num_queries"]), float(row["map_at_r"])) == (of["num_queries"], of["map_at_r"])
    each = scores["per_query"]
    assert scores["per_class"] == class_scores(each["label"], each["recall_at_1"], each["map_at_r"])
    of_all = sum(of["recall_at_1"] * of["num_queries"] for of in scores["per_class"]) / scores["num_queries"]
    assert of_all == pytest.approx(scores["recall_at_1"])
    code, _, err = command(*asked, "--per-class", tmp_path / "classes.txt")
    assert code == 2 and "the scores of classes are written as .csv" in err
