"""The map and the failures in a browser: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

import divcon as dc
from divcon.search import Index
from tests.serve.test_page import WIDTHS, Opened, fits, opened, shot

pytestmark = pytest.mark.heavy
__all__ = ["opened"]


def brightness(page: Page) -> dict[str, int]:
    """The number of pixels of the points by how opaque they are: ``lit`` and ``dim``."""
    return page.evaluate(
        """() => {
            const ground = document.querySelector(".chart .ground");
            const { data } = ground.getContext("2d").getImageData(0, 0, ground.width, ground.height);
            const counts = { lit: 0, dim: 0 };
            for (let i = 3; i < data.length; i += 4) if (data[i]) counts[data[i] > 180 ? "lit" : "dim"] += 1;
            return counts;
        }"""
    )


def painted(page: Page) -> None:
    """Wait until what was asked for is painted, thumbnails too."""
    page.wait_for_timeout(250)
    page.wait_for_load_state("networkidle")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def at_point(page: Page, points: dict[str, Any], place: int) -> dict[str, float]:
    box = page.locator("#map-canvas").bounding_box()
    assert box is not None
    side = min(box["width"], box["height"]) / 2 - 16
    return {
        "x": box["width"] / 2 + points["x"][place] * side,
        "y": box["height"] / 2 - points["y"][place] * side,
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_the_map_by_mouse_keyboard_and_table(opened: Opened, served: Any, width: int) -> None:
    page = opened("/?view=map", width=width)
    expect(page.locator("#status")).to_contain_text("40 items shown")
    canvas = page.locator("#map-canvas")
    painted(page)
    before = canvas.screenshot()
    tools = page.locator(".tools")
    expect(tools.get_by_label("Layout").locator("option:checked")).to_have_text(re.compile("t-SNE|UMAP"))
    tools.get_by_label("Colour by").select_option("split")
    expect(page.locator(".legend")).to_contain_text("train (25)")
    expect(page.locator(".legend")).to_contain_text("test (15)")
    painted(page)
    assert canvas.screenshot() != before
    tools.get_by_label("Colour by").select_option("learner")
    expect(page.locator(".legend")).to_contain_text("learner 1")
    tools.get_by_label("Colour by").select_option("colour")
    expect(page.locator(".legend")).to_contain_text("red (24)")
    tools.get_by_label("Colour by").select_option("price")
    expect(page.locator(".legend")).to_contain_text("price: 0")
    tools.get_by_label("Colour by").select_option("label")
    expect(page.locator(".legend")).to_contain_text("<b>mug</b> & 0 (5)")
    canvas.focus()
    page.keyboard.press("n")
    expect(page.locator(".shown .item")).to_be_visible()
    expect(page.locator("#status")).to_contain_text("Item: ")
    expect(page.locator(".shown .path")).to_contain_text(".png")
    first = page.locator(".shown .item").get_attribute("data-id")
    page.keyboard.press("n")
    assert page.locator(".shown .item").get_attribute("data-id") != first
    at_first = canvas.screenshot()
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    painted(page)
    assert canvas.screenshot() != at_first
    page.keyboard.press("0")
    page.locator("#map-list summary").click()
    expect(page.locator("#map-list tbody tr")).to_have_count(40)
    assert fits(page)
    shot(page, f"map-{width}")
    table = page.locator("#map-list tbody").inner_text()
    tools.get_by_label("Layout").select_option("pca")
    expect(page.locator("#map-list")).not_to_have_attribute("open", "")
    page.locator("#map-list summary").click()
    assert page.locator("#map-list tbody").inner_text() != table
    points = page.request.get(f"{served.url}/map?by=pca").json()
    canvas.hover(position=at_point(page, points, 7))
    expect(page.locator(".shown .item")).to_be_visible()
    page.mouse.move(0, 0)
    expect(page.locator(".shown")).to_be_hidden()
    canvas.focus()
    page.keyboard.press("p")
    chosen = page.locator(".shown .item").get_attribute("data-id")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"[?]id={chosen}$"))
    expect(page.locator("#results-title")).to_have_text("Most similar")


def test_a_point_is_searched_from_by_the_mouse(opened: Opened, served: Any) -> None:
    page = opened("/?view=map")
    expect(page.locator("#status")).to_contain_text("40 items shown")
    page.get_by_label("Thumbnails").uncheck()
    points = page.request.get(f"{served.url}/map").json()
    page.locator("#map-canvas").click(position=at_point(page, points, 3))
    page.wait_for_url(re.compile(r"[?]id=\d+$"))


def test_labels_are_found_and_lit_up_and_thumbnails_shown(opened: Opened, served: Any) -> None:
    asked: list[str] = []
    page = opened("/?view=map", before=lambda page: page.on("request", lambda r: asked.append(r.url)))
    expect(page.locator("#status")).to_contain_text("40 items shown")
    painted(page)
    assert len({url for url in asked if "/image" in url}) >= 10
    page.get_by_label("Thumbnails").uncheck()
    painted(page)
    assert brightness(page)["dim"] < brightness(page)["lit"] / 2  # their edges
    find = page.get_by_label("Find a label")
    find.fill("mug")
    expect(page.locator("#map-labels option")).to_have_count(8)
    find.fill("MUG 3")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("mug 3: 5 items lit up")
    expect(page.locator("#map-chosen li")).to_have_text(["mug 3 (5) ✕"])
    expect(page.locator(".legend [aria-pressed=true]")).to_have_text("mug 3 (5)")
    painted(page)
    lit = brightness(page)
    assert 0 < lit["lit"] < lit["dim"]
    page.locator(".legend button", has_text="mug 2").click()
    expect(page.locator("#map-chosen li")).to_have_count(2)
    find.fill("no such")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("No label contains “no such”")
    for _ in range(2):
        page.locator("#map-chosen button").first.click()
    painted(page)
    assert brightness(page)["dim"] < lit["dim"]
    points = page.request.get(f"{served.url}/map").json()
    page.locator("#map-canvas").hover(position=at_point(page, points, 0))  # lights its label up
    expect(page.locator(".shown .item")).to_be_visible()
    painted(page)
    assert brightness(page)["dim"] > brightness(page)["lit"]


def test_a_hundred_thousand_points(opened: Opened) -> None:
    """All are drawn, each label is found, and the table begins with 100 rows."""
    count, labels = 100_000, 568
    rng = np.random.default_rng(0)
    of = np.arange(count) % labels
    centres = rng.uniform(-0.9, 0.9, (labels, 2))
    xy = np.clip(centres[of] + rng.normal(scale=0.02, size=(count, 2)), -1, 1).round(5)
    answer = {"by": "umap", "layouts": ["umap", "tsne", "pca"], "note": "A note.", "total": 2 * count, "problem": None}
    answer |= {"ids": list(range(count)), "x": xy[:, 0].tolist(), "y": xy[:, 1].tolist(), "columns": []}
    answer["kinds"] = {"label": {"names": [f"label {i}" for i in range(labels)], "of": of.tolist()}}
    body, waited = json.dumps(answer), []

    def give(route: Any) -> None:
        if not waited:
            waited.append(route.fulfill(status=202, json={"state": "computing", "step": "UMAP", "done": 0.42}))
        else:
            route.fulfill(status=200, content_type="application/json", body=body)

    page = opened("/?view=map", before=lambda page: page.route("**/map?*", give))
    expect(page.locator("#status")).to_have_text("Laying the items out: UMAP, 42 % …")
    expect(page.locator("#status")).to_contain_text("100,000 items shown, a sample of 200,000")
    expect(page.locator("#map-content")).to_contain_text("A note.")
    painted(page)
    assert brightness(page)["lit"] > 50_000
    page.get_by_label("Find a label").fill("label 567")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("label 567: 176 items lit up")
    painted(page)
    lit = brightness(page)
    assert 100 < lit["lit"] < 10_000 < lit["dim"]
    page.keyboard.press("Tab")
    page.locator("#map-canvas").focus()
    page.keyboard.press("n")
    expect(page.locator(".shown .label")).to_have_text("label 567")
    page.locator("#map-list summary").click()
    expect(page.locator("#map-list tbody tr")).to_have_count(100)
    shot(page, "map-100000")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_failures_of_an_evaluated_run(opened: Opened, scores: dict[str, Any], width: int) -> None:
    page = opened(width=width)
    page.get_by_role("link", name="Failures").click()
    expect(page.locator("#status")).to_contain_text("10 queries shown")
    content = page.locator("#failures-content")
    failed = sum(value == 0 for value in scores["per_query"]["recall_at_1"])
    assert failed > 0
    expect(content).to_contain_text(f"{failed} of 15 queries")
    headings = content.locator("h3").all_inner_texts()
    assert headings[:2] == ["Most confused classes", "Worst queries"]
    pair = content.locator(".confused li").first
    expect(pair.locator(".pair").first.locator("img")).to_have_count(2)
    expect(pair).to_contain_text("taken for")
    expect(pair).to_contain_text("%")
    cases = page.locator(".case")
    assert cases.count() == 10
    assert cases.first.locator(".hit, .miss").first.inner_text() == "✗ wrong"
    assert cases.first.locator("ul .item").count() == 7
    expect(cases.first).to_contain_text("Recall@1 0.0 %")
    assert fits(page)
    assert page.evaluate("document.documentElement.scrollHeight") < (4_500 if width > 1_000 else 6_500)
    shot(page, f"failures-{width}")
    content.get_by_role("button", name="More queries (10 of 15)").click()
    expect(cases).to_have_count(15)
    expect(content.get_by_role("button", name="More queries")).to_be_hidden()
    label = cases.first.locator("p strong").inner_text()
    content.get_by_label("Class").fill(label)
    page.keyboard.press("Enter")
    expect(cases).to_have_count(5)
    assert set(cases.locator("p strong").all_inner_texts()) == {label}
    content.get_by_label("Class").fill("no such")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("No query is of the class “no such”")
    content.get_by_label("Class").fill("")
    page.keyboard.press("Enter")
    expect(cases).to_have_count(10)
    cases.first.locator(".item").first.click()
    expect(page.locator("#results-title")).to_have_text("Most similar")


def test_a_map_that_stands_alone(browser: Browser, index: Index, tmp_path: Path) -> None:
    path = dc.draw_map(index, tmp_path / "map.html", by="tsne", colour="learner")
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme="dark")
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.goto(path.as_uri())
    expect(page.locator("h1")).to_have_text("Map of run")
    expect(page.locator(".legend")).to_contain_text("learner 1")
    expect(page.locator(".legend")).to_contain_text("no learner (15)")
    page.get_by_label("Find a label").fill("mug 3")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("mug 3: 5 items lit up.")
    painted(page)
    assert brightness(page)["lit"] < brightness(page)["dim"]
    page.locator("#map-chosen button").click()
    page.locator(".map-canvas").focus()
    page.keyboard.press("n")
    expect(page.locator(".shown img")).to_have_js_property("naturalWidth", 48)
    expect(page.locator("#status")).to_contain_text("Item: ")
    assert fits(page)
    page.keyboard.press("Enter")
    expect(page.locator("#map-chosen li")).to_have_count(1)
    page.close()
    assert not wrong
