"""The map, the failures and the divisions: against slow and obvious computations."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import divcon as dc
from divcon.division import Division
from divcon.errors import DivconError
from divcon.search import Index
from divcon.serve import create_app
from divcon.serve.failures import read_scores
from divcon.serve.views import coordinates


@pytest.fixture(scope="module")
def client(index: Index, run: Path, scores: dict[str, Any]) -> Iterator[TestClient]:
    with TestClient(create_app(index, run=run, scores=scores), base_url="http://127.0.0.1") as client:
        yield client


def wait_for(client: TestClient, path: str) -> dict[str, Any]:
    while (answer := client.get(path)).status_code == 202:
        time.sleep(0.05)
    assert answer.status_code == 200, answer.text
    return answer.json()


def embeddings(index: Index) -> tuple[list[int], np.ndarray]:
    ids, vectors = index.store.embeddings(index.store.ids())
    order = np.argsort(ids)
    return ids[order].tolist(), vectors[order].astype(np.float64)


def test_there_are_only_the_views_that_can_be(client: TestClient, index: Index) -> None:
    assert client.get("/about").json()["views"] == ["search", "failures", "map", "divisions"]
    with TestClient(create_app(index), base_url="http://127.0.0.1") as bare:
        assert bare.get("/about").json()["views"] == ["search", "map"]
        for path in ("/failures", "/divisions"):
            answer = bare.get(path)
            assert answer.status_code == 404 and "--" in answer.json()["error"]
        points = wait_for(bare, "/map")["points"]
        assert all(point["split"] is None and point["learner"] is None for point in points)
    assert client.get("/map", params={"by": "umap"}).status_code == 422


def test_the_map_is_the_two_directions_of_most_variance(client: TestClient, index: Index) -> None:
    ids, vectors = embeddings(index)
    points = wait_for(client, "/map")["points"]
    assert [point["id"] for point in points] == ids
    centred = vectors - vectors.mean(0)
    values, directions = np.linalg.eigh(centred.T @ centred)
    placed = np.array([[point["x"], point["y"]] for point in points])
    assert np.abs(placed).max() == 1
    for axis in (0, 1):
        ours, expected = placed[:, axis], centred @ directions[:, np.argsort(values)[-1 - axis]]
        assert abs(np.corrcoef(ours, expected)[0, 1]) > 0.9999


def test_the_map_has_split_and_learner(client: TestClient, photos: Path, run: Path) -> None:
    points = wait_for(client, "/map")["points"]
    assert Counter(point["split"] for point in points) == {"train": 25, "test": 15}
    divisions = [Division.load(path) for path in sorted((run / "divisions").iterdir())]
    division = [division for division in divisions if division.num_learners == 2][-1]
    train = dc.read(str(photos / "items.csv")).train
    expected = {str(photos / train.path(i)): int(k) for i, k in enumerate(division.learner)}
    assert {point["path"]: point["learner"] for point in points if point["learner"] is not None} == expected


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 1), (5, 1), (9, 3)])
@pytest.mark.parametrize("by", ["pca", "tsne"])
def test_few_items_have_a_map_too(shape: tuple[int, int], by: Any) -> None:
    placed = coordinates(np.random.default_rng(0).normal(size=shape), by)
    assert placed.shape == (shape[0], 2) and np.isfinite(placed).all() and np.abs(placed).max(initial=0) <= 1


def test_tsne_keeps_neighbours_together() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(3, 8)
    which = np.arange(60) % 3
    placed = coordinates(centres[which] + rng.normal(scale=0.02, size=(60, 8)), "tsne")
    far = np.linalg.norm(placed[:, None] - placed[None], axis=2) + 9 * np.eye(60)
    assert (which[far.argmin(1)] == which).all()


def test_the_failures_are_those_of_the_evaluation(
    client: TestClient, index: Index, scores: dict[str, Any], photos: Path
) -> None:
    data = wait_for(client, "/failures")
    each = scores["per_query"]
    ids, vectors = embeddings(index)
    labels = {i: index.item(i).label for i in ids}
    test = [index.item(photos / path).id for path in each["path"]]
    place = {id_: row for row, id_ in enumerate(ids)}
    expected: Counter[tuple[str, str]] = Counter()
    nearest = {}
    for id_, hit in zip(test, each["recall_at_1"], strict=True):
        cosines = {other: vectors[place[id_]] @ vectors[place[other]] for other in test if other != id_}
        nearest[id_] = sorted(cosines, key=lambda other: -cosines[other])
        assert (labels[nearest[id_][0]] == labels[id_]) == bool(hit)
        if not hit:
            expected[str(labels[id_]), str(labels[nearest[id_][0]])] += 1
    assert {(pair["label"], pair["taken_for"]): pair["queries"] for pair in data["confused"]} == expected
    assert data["summary"]["failed"] == expected.total() > 0
    assert [query["scores"]["recall_at_1"] for query in data["worst"]] == sorted(each["recall_at_1"])
    for query in data["worst"]:
        ids = [hit["id"] for hit in query["hits"]]
        assert ids == nearest[query["item"]["id"]][:6]
        assert [hit["right"] for hit in query["hits"]] == [labels[i] == query["label"] for i in ids]


def test_pairs_across_the_split_are_the_nearest(client: TestClient, index: Index, photos: Path) -> None:
    ids, vectors = embeddings(index)
    train = np.array([index.item(i).metadata["split"] == "train" for i in ids])
    cosines = vectors[~train] @ vectors[train].T
    expected = sorted((value for value in cosines.max(1) if value >= 0.95), reverse=True)[:24]
    pairs = wait_for(client, "/failures")["pairs"]
    np.testing.assert_allclose([pair["score"] for pair in pairs], expected, atol=1e-5)
    assert all(pair["test"]["metadata"]["split"] == "test" for pair in pairs)
    assert all(pair["train"]["metadata"]["split"] == "train" for pair in pairs)


def test_scores_of_other_data_are_shown_by_path(index: Index, scores: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    each = {name: values[:3] for name, values in scores["per_query"].items()}
    each["path"] = ["elsewhere/1.png", str(index.item(8).path), "<script>"]
    file.write_text(json.dumps({"per_query": each}))
    with TestClient(create_app(index, scores=read_scores(file)), base_url="http://127.0.0.1") as client:
        data = wait_for(client, "/failures")
    assert data["summary"]["in_index"] == 1 and not data["split_known"]
    items = {query["path"]: query["item"] and query["item"]["id"] for query in data["worst"]}
    assert items == {"elsewhere/1.png": None, str(index.item(8).path): 8, "<script>": None}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"per_query": {"path": [], "label": ["a"], "recall_at_1": []}}'])
def test_what_is_not_scores_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "scores.json"
    file.write_text(text)
    message = r"scores\.json: (is not JSON|holds no scores; pass|has no scores of each query; pass)"
    with pytest.raises(DivconError, match=message):
        read_scores(file)


def test_divisions_and_flows_add_up(client: TestClient, run: Path, photos: Path, index: Index) -> None:
    data = wait_for(client, "/divisions")
    assert [division["epoch"] for division in data["divisions"]] == [0, 1, 2, 3] and data["problem"] is None
    train = dc.read(str(photos / "items.csv")).train
    for place, shown in enumerate(data["divisions"]):
        division = Division.load(run / "divisions" / f"epoch_{place:04d}.safetensors")
        assert shown["sizes"] == list(division.sizes) and shown["left_out"] == division.num_left_out
        for k, sheet in enumerate(shown["sheets"]):
            expected = {str(photos / train.path(i)) for i in np.flatnonzero(division.learner == k)}
            paths = {index.item(i).path for i in sheet}
            assert paths <= expected and len(paths) == min(24, len(expected))
    for place, counts in enumerate(data["flows"]):
        for axis, at in ((1, place), (0, place + 1)):
            shown = data["divisions"][at]
            assert np.array(counts).sum(axis).tolist() == [*shown["sizes"], shown["left_out"]]


def test_a_damaged_division_or_lost_data_is_reported(run: Path, index: Index, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    (copy / "divisions" / "epoch_0001.safetensors").write_bytes(b"broken")
    record = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(record | {"source": {"data": str(tmp_path / "gone"), "root": None}}))
    with TestClient(create_app(index, run=copy), base_url="http://127.0.0.1") as client:
        data = wait_for(client, "/divisions")
        assert len(data["divisions"]) == 3 and "epoch_0001" in data["problem"]
        assert all(division["sheets"] == [] for division in data["divisions"])
        assert "cannot be read" in wait_for(client, "/map")["problem"]
