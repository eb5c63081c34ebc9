"""The page in a browser: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from divcon.search import Index
from divcon.serve import create_app
from tests.serve.conftest import serving

pytestmark = pytest.mark.heavy

WIDTHS = (360, 1600)

Opened = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, served: Any) -> Iterator[Opened]:
    """``opened("/?id=3", width=360)``: a page of the server, which must neither fail nor ask elsewhere."""
    contexts, wrong = [], []

    def open_page(
        path: str = "/",
        width: int = 1600,
        scheme: Any = "light",
        url: str = served.url,
        before: Callable[[Page], object] = lambda page: None,
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if not _own(request.url, url) else None)
        before(page)
        page.goto(url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def _own(address: str, url: str) -> bool:
    return address.startswith((url, "blob:", "data:"))


def shot(page: Page, name: str) -> None:
    """Keep a picture of the page where DIVCON_SHOTS says so."""
    if folder := os.environ.get("DIVCON_SHOTS"):
        page.wait_for_load_state("networkidle")
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def labels(page: Page) -> list[str]:
    return page.locator("#results .label").all_inner_texts()


@pytest.mark.parametrize("width", WIDTHS)
def test_an_upload_gives_neighbours_and_a_row_a_learner(opened: Opened, photos: Path, width: int) -> None:
    page = opened(width=width)
    expect(page.locator("#results .item")).to_have_count(40)
    shot(page, f"items-{width}")
    page.set_input_files("#file", photos / "0-1.png")
    expect(page.locator("#status")).to_contain_text("24 items found")
    assert labels(page)[0] == "<b>mug</b> & 0"  # a name is no markup
    assert page.locator("#results .score").first.inner_text() == "1.000"
    expect(page.locator(".learner")).to_have_count(2)
    expect(page.locator(".learner").first.locator(".item")).to_have_count(8)
    assert page.locator("#results img:not([alt])").count() == 0
    assert page.locator("#results img").first.get_attribute("alt") == "<b>mug</b> & 0"
    expect(page.locator("#query img")).to_have_js_property("naturalWidth", 48)
    assert fits(page)
    shot(page, f"search-{width}")


def test_a_click_searches_on_and_back_goes_back(opened: Opened, photos: Path) -> None:
    page = opened()
    page.set_input_files("#file", photos / "3-1.png")
    expect(page.locator("#status")).to_contain_text("items found")
    first = labels(page)
    page.locator("#results .item").nth(3).click()
    page.wait_for_url(re.compile(r"\?id=\d+"))
    expect(page.locator("#query")).to_contain_text("Path")
    expect(page.locator("#query")).to_be_focused()
    page.go_back()
    expect(page.locator("#query")).to_contain_text("3-1.png")
    expect(page.locator("#status")).to_contain_text("items found")
    assert labels(page) == first
    page.go_back()
    expect(page.locator("#results-title")).to_have_text("Items")


def test_a_filter_holds_for_all(opened: Opened) -> None:
    page = opened("/?id=2")
    expect(page.locator("#status")).to_contain_text("items found")
    page.select_option("#column", "price")
    page.select_option("#operator", "<")
    page.fill("#value", "2")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("10 items found")
    page.select_option("#column", "colour")
    page.select_option("#operator", "=")
    page.fill("#value", "red")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("6 items found")
    page.reload()
    expect(page.locator("#status")).to_contain_text("6 items found")
    page.get_by_role("button", name="Remove the filter price < 2").click()
    expect(page.locator("#status")).to_contain_text("24 items found")
    page.select_option("#column", "price")
    page.fill("#value", "cheap")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("holds float values")
    page.get_by_role("button", name="Remove the filter price = cheap").click()
    page.select_option("#column", "colour")
    page.select_option("#operator", "<")
    page.fill("#value", "3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("column 'colour' holds text values")


def test_a_smallest_similarity_holds_for_all(opened: Opened, index: Index) -> None:
    scores = [hit.score for hit in index.search(2, 24)]
    page = opened("/?id=2")
    expect(page.locator("#status")).to_contain_text("24 items found")
    page.get_by_label("Smallest similarity").fill(f"{(scores[4] + scores[5]) / 2:.6f}")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("5 items found")
    page.reload()
    expect(page.locator("#status")).to_contain_text("5 items found")
    page.get_by_label("Smallest similarity").fill("")
    page.keyboard.press("Tab")
    expect(page.locator("#status")).to_contain_text("24 items found")


def test_columns_have_their_types_and_values_their_digits(
    index: Index, photos: Path, opened: Opened, tmp_path: Path
) -> None:
    numbers = [2**53 + 1 + i for i in range(40)]
    columns = {"number": numbers, "day": [date(2024, 5, 1 + i % 28) for i in range(40)]}
    own = Index.build(index.model, photos, tmp_path / "store", columns=columns)
    with serving(create_app(own)) as url:
        page = opened("/?id=1", url=url)
        expect(page.locator("#status")).to_contain_text("24 items found")
        options = page.locator("#column option").all_inner_texts()
        assert options == ["label (text)", "path (text)", "number (int)", "day (date)"]
        # A number of JavaScript would be rounded to 9007199254740992.
        assert own.item(1).metadata["number"] == 9007199254740994
        page.goto(url + "/?id=2")
        expect(page.locator("#query")).to_contain_text("number: 9007199254740995")
        expect(page.locator("#query")).to_contain_text("day: 2024-05-03")
        for value, count in (("9007199254740995", 1), ("9007199254740994", 1)):
            page.select_option("#column", "number")
            page.fill("#value", value)
            page.keyboard.press("Enter")
            expect(page.locator("#conditions")).to_contain_text(value)
            expect(page.locator("#status")).to_contain_text(f"{count} items found")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_file_that_is_no_image_is_reported(opened: Opened, tmp_path: Path, width: int) -> None:
    text = tmp_path / "photo.jpg"
    text.write_text("this is a text")
    page = opened(width=width)
    page.set_input_files("#file", text)
    expect(page.get_by_role("alert")).to_contain_text("does not decode")
    expect(page.get_by_role("alert")).to_contain_text("text")
    shot(page, f"no-image-{width}")
    page.go_back()
    expect(page.locator("#results .item")).to_have_count(40)
    expect(page.locator("#problem")).to_be_hidden()


def test_an_image_that_is_chosen_while_the_page_begins_is_searched(opened: Opened, photos: Path) -> None:
    held: list[Any] = []
    page = opened(before=lambda page: page.route("**/about", lambda route: held.append(route)))
    while not held:
        page.wait_for_timeout(10)
    page.set_input_files("#file", photos / "4-0.png")
    held[0].continue_()
    expect(page.locator("#query")).to_contain_text("4-0.png")
    expect(page.locator("#learners .learner")).to_have_count(2)


def test_an_image_is_dropped_and_pasted(opened: Opened, photos: Path) -> None:
    page = opened()
    expect(page.locator("#results .item")).to_have_count(40)
    content = list((photos / "4-0.png").read_bytes())
    for kind, target in (("drop", "DragEvent"), ("paste", "ClipboardEvent")):
        page.evaluate(
            """([content, kind, target]) => {
                const carried = new DataTransfer();
                carried.items.add(new File([new Uint8Array(content)], `${kind}.png`, { type: "image/png" }));
                const name = kind === "drop" ? "dataTransfer" : "clipboardData";
                const event = new window[target](kind, { bubbles: true, cancelable: true, [name]: carried });
                document.body.dispatchEvent(event);
            }""",
            [content, kind, target],
        )
        expect(page.locator("#query")).to_contain_text(f"{kind}.png")
        expect(page.locator("#status")).to_contain_text("items found")
        assert labels(page)[0] == "mug 4"


def test_the_keyboard_alone_is_enough(opened: Opened) -> None:
    page = opened()
    expect(page.locator("#results .item")).to_have_count(40)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert order.index("file") < order.index("column") < order.index("value") < order.index("k") < order.index("item")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("items found")


def test_dark_is_dark(opened: Opened) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page = opened("/?id=5", scheme=scheme)
        expect(page.locator("#status")).to_contain_text("items found")
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        shot(page, f"search-{scheme}")
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_divisions_through_time(opened: Opened, width: int) -> None:
    page = opened("/?view=divisions", width=width)
    expect(page.locator("#status")).to_contain_text("4 divisions shown")
    assert page.locator("svg.flow rect").count() >= 6
    rows = page.locator("#divisions-content table").first.locator("tbody tr")
    assert rows.count() == 4
    for row in rows.all():
        numbers = [int(text or 0) for text in row.locator("td").all_inner_texts()[2:]]
        assert sum(numbers) == 25
    assert page.locator("#sheets img").count() > 0
    assert fits(page)
    shot(page, f"divisions-{width}")


def test_a_token_is_asked_for_once(opened: Opened, locked: Any) -> None:
    page = opened(url=locked.url)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#login-problem")).to_contain_text("Wrong token")
    page.fill("#token", locked.token)
    page.keyboard.press("Enter")
    expect(page.locator("#results .item")).to_have_count(40)
    expect(page.locator("#results img").first).to_have_js_property("naturalWidth", 48)
    page.reload()
    expect(page.locator("#results .item")).to_have_count(40)
    again = opened(f"/#token={locked.token}", url=locked.url)
    expect(again.locator("#results .item")).to_have_count(40)
    assert locked.token not in again.url


def test_a_server_that_is_down_is_reported(opened: Opened) -> None:
    page = opened()
    expect(page.locator("#results .item")).to_have_count(40)
    page.route("**/search", lambda route: route.abort())
    page.locator("#results .item").first.click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
