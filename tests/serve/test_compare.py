"""Two models side by side: the API, and the view of the page."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock

import numpy as np
import pytest
from playwright.sync_api import Browser, expect
from starlette.testclient import TestClient

import divcon as dc
from divcon.errors import ConfigError
from divcon.runs.folder import RunFolder
from divcon.search import Index
from divcon.search.untrained import Untrained
from divcon.serve import create_app
from divcon.serve.compare import Side, names_of
from tests.serve.conftest import serving
from tests.serve.test_page import fits, shot


@pytest.fixture(scope="module")
def client(index: Index, run: Path, other: Index) -> Iterator[TestClient]:
    with TestClient(create_app(index, run=run, compare=other), base_url="http://127.0.0.1") as client:
        yield client


def overview(client: TestClient, **parameters: str) -> dict[str, Any]:
    until = time.monotonic() + 60
    while (answer := client.get("/compare", params=parameters)).status_code == 202:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(client: TestClient, **query: Any) -> dict[str, Any]:
    answer = client.post("/compare", json=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def nearest(index: Index, item: int, k: int) -> list[tuple[int, float]]:
    """By a loop over all items."""
    ids, vectors = index.store.embeddings(index.store.ids())
    cosines = vectors @ vectors[ids.tolist().index(item)]
    pairs = sorted(zip((-cosines).tolist(), ids.tolist(), strict=True))
    return [(i, -c) for c, i in pairs if i != item][:k]


def test_an_item_is_searched_in_both_indexes(client: TestClient, index: Index, other: Index) -> None:
    assert client.get("/about").json()["compare"] == ["untrained"]
    for item in (0, 7, 33):
        answer = post(client, id=item, k=5)
        assert answer["query"]["id"] == item and [model["name"] for model in answer["models"]] == ["run", "untrained"]
        label = answer["query"]["label"]
        found = [nearest(each, item, 5) for each in (index, other)]  # both have the same ids for the same images
        shared = {i for i, _ in found[0]} & {i for i, _ in found[1]}
        assert answer["shared"] == len(shared) and answer["overlap"] == len(shared) / 5
        for model, expected in zip(answer["models"], found, strict=True):
            assert [hit["id"] for hit in model["hits"]] == [i for i, _ in expected]
            for hit, (i, score) in zip(model["hits"], expected, strict=True):
                assert hit["score"] == pytest.approx(score, abs=1e-5)
                assert hit["shared"] == (i in shared) and hit["indexed"] and hit["own_id"] == i
                assert hit["right"] == (hit["label"] == label)


def test_an_upload_is_embedded_by_each_model(client: TestClient, index: Index, other: Index, photos: Path) -> None:
    content = (photos / "4-2.png").read_bytes()
    answer = client.post(
        "/compare", files={"image": ("a.png", content)}, data={"k": "4", "against": "untrained"}
    ).json()
    assert answer["query"] is None
    for model, each in zip(answer["models"], (index, other), strict=True):
        hits = each.search(content, 4)
        assert [hit["id"] for hit in model["hits"]] == [hit.id for hit in hits]
        assert model["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
        assert all(hit["right"] is None for hit in model["hits"])


def test_the_queries_that_differ_most(client: TestClient, index: Index, other: Index) -> None:
    """Against a loop over all items; k is 10."""
    data = overview(client)
    items = range(40)
    labels = [index.item(i).label for i in items]
    found = [[[i for i, _ in nearest(each, item, 10)] for item in items] for each in (index, other)]
    overlaps = [len(set(found[0][i]) & set(found[1][i])) / 10 for i in items]
    first = [[labels[of[i][0]] == labels[i] for i in items] for of in found]
    queries = data["queries"]
    assert queries["count"] == queries["among"] == queries["judged"] == 40 and not queries["test"]
    assert queries["overlap"] == pytest.approx(np.mean(overlaps), abs=1e-3)
    assert queries["right"] == pytest.approx([np.mean(each) for each in first], abs=1e-3)
    # One query of each class first: the one whose results differ most.
    least = sorted(min(overlaps[i] for i in items if labels[i] == label) for label in set(labels))
    differ = data["starts"]["differ"]
    assert [item["overlap"] for item in differ[:8]] == pytest.approx(least)
    assert len({item["label"] for item in differ[:8]}) == 8 and len({item["id"] for item in differ}) == 12
    for name, a, b in (("first", 0, 1), ("second", 1, 0)):
        alone = {i for i in items if first[a][i] and not first[b][i]}
        assert queries[f"only_{name}"] == len(alone)
        listed = {item["id"] for item in data["starts"][name]}
        assert listed <= alone and len(listed) == min(12, len(alone))
    assert data["counts"] == {"items": 40, "sampled": 40, "both": 40, "changed": 0} and data["notes"] == []
    own, another = data["models"]
    assert (own["dims"], own["method"], own["learners"], own["backbone"]) == (16, "slices", 2, "test_resnet")
    assert (another["dims"], another["method"], another["validation"]) == (8, None, None)


def test_indexes_of_other_images(index: Index, photos: Path, tmp_path: Path) -> None:
    """One has half of the images, one of them changed since; and one has none."""
    root = tmp_path / "photos"
    root.mkdir()
    half = sorted(photos.glob("*.png"))[:20]
    model = dc.EmbeddingModel("test_resnet", 8, 1, pretrained=False, image_size=32)
    changed = half[0].read_bytes()
    try:
        half[0].write_bytes(half[1].read_bytes())
        fewer = Index.build(model, [str(path) for path in half], tmp_path / "fewer")
    finally:
        half[0].write_bytes(changed)
    (root / "a.png").write_bytes(half[3].read_bytes())
    none = Index.build(model, root, tmp_path / "none")
    app = create_app(index, compare=[fewer, none])
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/about").json()["compare"] == ["fewer", "none"]
        data = overview(client, against="fewer")
        assert data["counts"] == {"items": 40, "sampled": 40, "both": 20, "changed": 1}
        assert "20 of 40 items of run are in fewer, which has 20" in data["notes"][0]
        assert "1 items have the same path" in data["notes"][1]
        # An item that the other index does not have is embedded by its model.
        missing = next(i for i in range(40) if Path(index.item(i).path) not in half)
        answer = post(client, id=missing, k=40, against="fewer")
        embedded = fewer.search(Path(index.item(missing).path).read_bytes(), 40)
        assert [hit["id"] for hit in answer["models"][1]["hits"]] == [hit.id for hit in embedded]
        assert len(answer["models"][0]["hits"]) == 39 and answer["shared"] == 20
        assert {hit["indexed"] for hit in answer["models"][0]["hits"]} == {True, False}

        data = overview(client, against="none")
        assert "no item in common" in data["notes"][0] and data["queries"] is None
        (hit,) = post(client, id=3, against="none")["models"][1]["hits"]
        assert hit["own_id"] is None and not hit["indexed"] and hit["image"] == "/compare/2/items/0/image"
        picture = client.get(hit["image"])
        assert picture.status_code == 200 and picture.headers["content-type"] == "image/webp"
        assert client.get("/compare/3/items/0/image").status_code == 404
        assert client.get("/compare/1/items/99/image").status_code == 404


def test_the_same_model_and_a_model_of_vectors(index: Index, photos: Path, tmp_path: Path) -> None:
    same = Index.build(index.model, photos / "items.csv", tmp_path / "same")
    vectors = Index.build(
        dc.EmbeddingModel(embedding_dim=4, num_learners=1, vector_dim=6),
        np.eye(6, dtype=np.float32),
        tmp_path / "vectors",
    )
    content = (photos / "1-1.png").read_bytes()
    with TestClient(create_app(index, compare=[same, vectors]), base_url="http://127.0.0.1") as client:
        data = overview(client, against="same")
        assert "of the same model" in data["notes"][0] and data["queries"]["overlap"] == 1
        assert data["starts"] == {"differ": [], "first": [], "second": []}
        notes = overview(client, against="vectors")["notes"]
        assert "nothing can be compared" in notes[0] and "model of vectors" in notes[1]
        answer = client.post("/compare", json={"id": 1, "against": "vectors"})
        assert answer.status_code == 404 and "not in the index of vectors" in answer.json()["error"]
        answer = client.post("/compare", files={"image": ("a.png", content)}, data={"against": "vectors"})
        assert answer.status_code == 400 and "vectors has a model of vectors" in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ({}, 400, "send an id or an image"),
        ({"id": 999}, 404, "no item 999"),
        ({"id": 10**30}, 404, "no item"),
        ({"id": 1, "k": 0}, 422, "k"),
        ({"id": 1, "k": 201}, 400, "maximum"),
        ({"id": 1, "against": "nobody"}, 404, "there is untrained"),
        ({"id": 1, "vector": [1]}, 422, "vector"),
        ([1], 422, "body"),
    ],
)
def test_a_bad_comparison_is_refused_with_the_reason(client: TestClient, query: Any, status: int, said: str) -> None:
    answer = client.post("/compare", json=query)
    assert answer.status_code == status and said in answer.json()["error"]


def test_the_schema_has_the_comparison_where_there_is_one(client: TestClient, index: Index) -> None:
    schema = client.get("/openapi.json").json()
    assert {"get", "post"} <= set(schema["paths"]["/compare"])
    assert "against" in schema["components"]["schemas"]["CompareRequest"]["properties"]
    assert client.get("/compare", params={"against": "nobody"}).status_code == 404
    with TestClient(create_app(index), base_url="http://127.0.0.1") as alone:
        assert alone.get("/compare").status_code == 404 and "compare" not in alone.get("/about").json()["views"]


def test_names_tell_indexes_apart() -> None:
    assert names_of(["/a/runs/x/index", "/a/runs/y/index"]) == ["x", "y"]
    assert names_of(["/a/x/index", "/b/x/index", "/b/y"]) == ["a/x", "b/x", "b/y"]
    assert names_of(["postgresql://me@host/one", "/x"]) == ["one", "x"]
    with pytest.raises(ConfigError, match="twice"):
        names_of(["/a/x/index", "/a/x"])


@pytest.mark.heavy
def test_the_view(browser: Browser, index: Index, run: Path, other: Index, photos: Path) -> None:
    """From a query that differs, to an upload, to an item among the results, and back."""
    wrong: list[str] = []
    with serving(create_app(index, run=run, compare=other)) as url:
        for width, scheme in ((390, "dark"), (1400, "light")):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            page = context.new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda ask: None if ask.url.startswith((url, "blob:")) else wrong.append(ask.url))
            page.goto(url)
            page.get_by_role("link", name="Compare").click()
            content = page.locator("#compare-content")
            expect(content).to_contain_text("40 items searched among the 40 items of both indexes")
            expect(content.locator(".model")).to_have_count(2)
            expect(content.locator(".model").nth(1)).to_contain_text("8 dimensions")
            assert fits(page)
            shot(page, f"compare-start-{width}")

            start = content.get_by_role("list", name="Results differ most").locator(".item").first
            id_ = (start.get_attribute("href") or "").rpartition("id=")[2]
            start.click()
            page.wait_for_url(f"{url}/?view=compare&id={id_}")
            expect(content.locator(".query")).to_contain_text("Query")
            expect(content.locator(".versus .item")).to_have_count(24)
            answer = page.request.post(f"{url}/compare", data={"id": int(id_)}).json()
            line = (
                f"{answer['shared']} of 12 results {'is' if answer['shared'] == 1 else 'are'} returned by both models"
            )
            expect(content.locator(".overlap")).to_contain_text(line)
            for place, model in enumerate(answer["models"]):
                items = content.locator(".versus > div").nth(place).locator(".item")
                expect(items.locator(".hit")).to_have_count(sum(hit["right"] for hit in model["hits"]))
                expect(items.locator(".miss")).to_have_count(sum(not hit["right"] for hit in model["hits"]))
                expect(items.locator(".alone")).to_have_count(12 - answer["shared"])
                expect(items.locator(".together")).to_have_count(answer["shared"])
            assert content.locator(".hit, .miss").first.inner_text() in ("✓ right", "✗ wrong")
            columns = [content.locator(".versus > div").nth(i).bounding_box() for i in (0, 1)]
            assert columns[0] and columns[1]
            assert (columns[0]["y"] == columns[1]["y"]) == (width == 1400)  # stacked on a phone
            assert fits(page)
            shot(page, f"compare-{width}")
            alone = content.locator(".versus > div").nth(1).locator(".alone")
            assert set(alone.all_inner_texts()) == {"○ only untrained"}

            page.get_by_label("Results of each").select_option("6")
            expect(content.locator(".versus .item")).to_have_count(12)
            page.set_input_files("#file", photos / "3-1.png")
            expect(content.locator(".query")).to_contain_text("3-1.png")
            expect(content.locator(".versus > div").nth(1).locator(".label").first).to_have_text("mug 3")
            content.locator(".versus > div").nth(1).locator(".item").nth(2).click()
            page.wait_for_url(lambda address: "view=compare&id=" in address)
            expect(content.locator(".query")).to_contain_text("Label")
            page.go_back()
            expect(content.locator(".query")).to_contain_text("3-1.png")
            page.get_by_role("link", name="Queries to start with").click()
            expect(content).to_contain_text("searched among")
            context.close()
    assert not wrong


def test_a_model_is_described_as_it_embeds_in_the_end(run: Path, index: Index, tmp_path: Path) -> None:
    """Not by its head, where it embeds by something else; an untrained one by its backbone."""
    own = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    lines = RunFolder(own).lines()
    scores = {"recall_at_1": 0.25, "map_at_r": 0.2, "num_queries": 8, "num_classes": 2}
    lines[-1] |= {"validation": scores, "kept": True}
    RunFolder(own).metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    side = Side("a", index, own, cast("Any", None))
    assert side.described()["validation"] == scores
    kept = {"epoch": lines[-1]["epoch"], "recall_at_1": 0.75, "baselines": {}}
    RunFolder(own).baselines.write_text(json.dumps(kept))
    described = side.described()
    assert described["validation"] == {**scores, "recall_at_1": 0.75}
    assert (described["untrained"], described["backbone"]) == (False, "test_resnet")

    Untrained("resnet18").write(tmp_path)
    about = dataclasses.replace(index.about, model=str(tmp_path))
    plain = Side("b", cast("Any", MagicMock(about=about, __len__=lambda _: 3)), None, cast("Any", None)).described()
    assert (plain["untrained"], plain["backbone"], plain["validation"]) == (True, "resnet18", None)
