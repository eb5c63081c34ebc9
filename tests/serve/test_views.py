"""The map, the failures and the divisions: against slow and obvious computations."""

from __future__ import annotations

import json
import threading
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
from divcon.errors import ConfigError, DivconError
from divcon.evaluation.layout import has_umap, lay_out
from divcon.search import Index
from divcon.serve import create_app
from divcon.serve.failures import read_scores


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
        for path in ("/failures", "/failures/queries", "/divisions"):
            answer = bare.get(path)
            assert answer.status_code == 404 and "--" in answer.json()["error"]
        assert set(wait_for(bare, "/map?by=pca")["kinds"]) == {"label"}
    assert client.get("/map", params={"by": "mds"}).status_code == 422


def values(kind: dict[str, Any]) -> list[Any]:
    """The value of each item, of names and their places."""
    return [None if place < 0 else kind["names"][place] for place in kind["of"]]


def test_the_map_is_the_two_directions_of_most_variance(client: TestClient, index: Index) -> None:
    ids, vectors = embeddings(index)
    points = wait_for(client, "/map?by=pca")
    assert points["ids"] == ids and points["total"] == len(ids) and points["note"] is None
    centred = vectors - vectors.mean(0)
    values, directions = np.linalg.eigh(centred.T @ centred)
    placed = np.array([points["x"], points["y"]]).T
    assert np.abs(placed).max() == 1
    for axis in (0, 1):
        ours, expected = placed[:, axis], centred @ directions[:, np.argsort(values)[-1 - axis]]
        assert abs(np.corrcoef(ours, expected)[0, 1]) > 0.9999


def test_the_map_has_label_split_learner_and_columns(client: TestClient, photos: Path, run: Path, index: Index) -> None:
    points = wait_for(client, "/map?by=pca")
    items = [index.item(i) for i in points["ids"]]
    assert values(points["kinds"]["label"]) == [item.label for item in items]
    assert Counter(values(points["kinds"]["split"])) == {"train": 25, "test": 15}
    divisions = [Division.load(path) for path in sorted((run / "divisions").iterdir())]
    division = [division for division in divisions if division.num_learners == 2][-1]
    train = dc.read(str(photos / "items.csv")).train
    expected = {str(photos / train.path(i)): int(k) for i, k in enumerate(division.learner)}
    learners = dict(zip([item.path for item in items], values(points["kinds"]["learner"]), strict=True))
    assert {path: k for path, k in learners.items() if k is not None} == expected
    assert points["columns"] == ["split", "colour", "price"]
    colours = wait_for(client, "/map/column?name=colour&by=pca")
    assert values(colours) == [item.metadata["colour"] for item in items]
    assert wait_for(client, "/map/column?name=price&by=pca")["numbers"] == [item.metadata["price"] for item in items]
    assert client.get("/map/column?name=key&by=pca").status_code == 404


def test_the_map_is_kept_on_disk_until_the_store_changes(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from divcon.search import layout

    with Index.create(run, tmp_path / "index") as index:
        index.update(photos / "items.csv")
        ids, first = layout.index_layout(index, "tsne")
    assert (tmp_path / "index" / "map-tsne.npz").is_file()
    calls = []
    monkeypatch.setattr(layout, "lay_out", lambda *given: calls.append(given) or lay_out(*given))
    with Index.open(tmp_path / "index") as index:
        again = layout.index_layout(index, "tsne")
        assert not calls and again[0].tolist() == ids.tolist()
        np.testing.assert_array_equal(again[1].xy, first.xy)
        index.store.delete(ids[:1])
        assert layout.index_layout(index, "tsne")[0].tolist() == ids[1:].tolist() and len(calls) == 1
        (tmp_path / "index" / "map-tsne.npz").write_bytes(b"broken")
        assert len(layout.index_layout(index, "tsne")[0]) == len(ids) - 1 and len(calls) == 2


def test_how_far_a_layout_is_is_said(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    from divcon.serve import views

    go, laid_out = threading.Event(), views.index_layout

    def slow(index: Index, by: Any, on_step: Any) -> Any:
        on_step("UMAP", 0.25)
        go.wait(20)
        return laid_out(index, by)

    monkeypatch.setattr(views, "index_layout", slow)
    with TestClient(create_app(index), base_url="http://127.0.0.1") as client:
        while (answer := client.get("/map?by=pca").json()).get("step") is None:
            time.sleep(0.01)
        assert answer == {"state": "computing", "step": "UMAP", "done": 0.25}
        assert client.get("/map/column?name=colour&by=pca").status_code == 202
        go.set()
        assert wait_for(client, "/map?by=pca")["by"] == "pca"


LAYOUTS = ["pca", "tsne", *(["umap"] if has_umap() else [])]


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 1), (5, 1), (9, 3), (9, 1)])
@pytest.mark.parametrize("by", LAYOUTS)
def test_few_items_have_a_map_too(shape: tuple[int, int], by: Any) -> None:
    layout = lay_out(np.random.default_rng(0).normal(size=shape), by)
    assert layout.xy.shape == (shape[0], 2) and np.isfinite(layout.xy).all() and np.abs(layout.xy).max(initial=0) <= 1
    assert (layout.note is None) == (layout.by == by)


def test_a_layout_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from divcon.evaluation import layout

    monkeypatch.setattr(layout, "has_umap", lambda: False)
    assert layout.check_layout("auto") == "tsne" and layout.layouts() == ["tsne", "pca"]
    with pytest.raises(ConfigError, match=r"pip install \"divcon\[map\]\""):
        layout.lay_out(np.eye(9), "umap")
    with pytest.raises(ConfigError, match="pass tsne, umap, pca or auto"):
        layout.lay_out(np.eye(9), "mds")  # type: ignore[arg-type]


@pytest.mark.parametrize("by", LAYOUTS[1:])
def test_neighbours_stay_together(by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where t-SNE lays out a part, and places the others beside it."""
    from divcon.evaluation import layout

    monkeypatch.setattr(layout, "MAX_TSNE", 60)
    rng = np.random.default_rng(0)
    for count in (60, 150):
        which = np.arange(count) % 3
        placed = lay_out(np.eye(3, 8)[which] + rng.normal(scale=0.02, size=(count, 8)), by)
        far = np.linalg.norm(placed.xy[:, None] - placed.xy[None], axis=2) + 9 * np.eye(count)
        assert (which[far.argmin(1)] == which).all()
        assert (placed.note is not None) == (by == "tsne" and count > 60)


def test_the_failures_are_those_of_the_evaluation(
    client: TestClient, index: Index, scores: dict[str, Any], photos: Path
) -> None:
    data = wait_for(client, "/failures")
    worst = wait_for(client, "/failures/queries?limit=100")
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
    classes = {one["label"]: (one["failed"], one["queries"]) for one in data["classes"]}
    of = Counter(each["label"])
    failed = Counter(a for a, hit in zip(each["label"], each["recall_at_1"], strict=True) if not hit)
    assert classes == {name: (number, of[name]) for name, number in failed.items()}
    for pair in data["confused"]:
        for example in pair["examples"]:
            assert example["query"]["label"] == pair["label"] and example["nearest"]["label"] == pair["taken_for"]
            assert nearest[example["query"]["id"]][0] == example["nearest"]["id"]
    assert worst["total"] == len(worst["queries"]) == len(test)
    assert [query["scores"]["recall_at_1"] for query in worst["queries"]] == sorted(each["recall_at_1"])
    one = worst["queries"][0]["label"]
    part = wait_for(client, f"/failures/queries?limit=2&offset=1&label={one}")
    assert part["queries"] == [query for query in worst["queries"] if query["label"] == one][1:3]
    assert part["total"] == of[one]
    for query in worst["queries"]:
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
        queries = wait_for(client, "/failures/queries")["queries"]
    assert data["summary"]["in_index"] == 1 and not data["split_known"]
    items = {query["path"]: query["item"] and query["item"]["id"] for query in queries}
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
        assert "cannot be read" in wait_for(client, "/map?by=pca")["problem"]


def test_a_run_of_one_learner_has_no_divisions_to_show(run: Path, index: Index, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    for path in (copy / "divisions").iterdir():
        learner = Division.load(path).learner
        Division(np.where(learner < 0, -1, 0), np.zeros((1, 4), np.float32)).save(path)
    with TestClient(create_app(index, run=copy), base_url="http://127.0.0.1") as client:
        assert client.get("/about").json()["views"] == ["search", "map"]
        assert client.get("/divisions").status_code == 404
