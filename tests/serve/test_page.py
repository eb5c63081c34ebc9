"""The page in a browser: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from divcon.evaluation.threshold import write_threshold
from divcon.search import Index
from divcon.serve import Limits, create_app
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


def test_the_smallest_similarity_dims_what_is_below(opened: Opened, index: Index, run: Path, tmp_path: Path) -> None:
    scores = [hit.score for hit in index.search(2, 24)]
    threshold = (scores[4] + scores[5]) / 2
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    write_threshold(copy / "model", {"min_score": threshold})
    with serving(create_app(index, run=copy)) as url:
        page = opened("/?id=2", url=url)
        expect(page.locator("#status")).to_contain_text("24 items found")
        assert page.get_by_text("cosine similarit").count() == 1  # the numbers' name is said once
        slider = page.get_by_label("Smallest similarity")
        expect(page.locator("#mark")).to_be_visible()
        page.get_by_role("button", name="The run's threshold").click()
        expect(page.locator("#status")).to_contain_text("5 of 24 items")
        assert page.locator("#results .below").count() == 19
        below = page.locator("#results .item").nth(5)
        assert below.get_attribute("aria-description") == "below the smallest similarity"
        page.reload()
        expect(page.locator("#status")).to_contain_text("5 of 24 items")
        slider.focus()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        above = sum(score >= 0.99 for score in scores)
        expect(page.locator("#least-value")).to_have_text("0.99")
        expect(page.locator("#status")).to_contain_text(f"{above} of 24 items")
        page.wait_for_url(re.compile("min_score=0.99"))
        page.get_by_role("button", name="Off").click()
        expect(page.locator("#status")).to_contain_text("24 items found")
        assert page.locator("#results .below").count() == 0 and "min_score" not in page.url
        page.goto(url + "/?id=2&min_score=1")
        expect(page.locator("#status")).to_contain_text(" of 24 items")
        assert fits(page)
        page.get_by_role("link", name="All items").click()
        expect(slider).to_be_hidden()


def one_line(page: Page, selector: str) -> bool:
    """Whether each such element has one line, and ends in an ellipsis where it does not fit."""
    script = """nodes => nodes.every((node) => {
        const style = getComputedStyle(node);
        return node.clientHeight < 1.7 * parseFloat(style.fontSize) && style.textOverflow === "ellipsis";
    })"""
    return page.locator(selector).evaluate_all(script)


def test_cards_have_the_columns_of_the_table(opened: Opened, index: Index, photos: Path, tmp_path: Path) -> None:
    long = "a description that no card can hold on its one line, however wide it is drawn on the screen"
    columns = {
        "price": [None if i == 3 else i / 8 for i in range(40)],
        "long": [f"{long} {i}" for i in range(40)],
        "tags": [["a", i] for i in range(40)],
    }
    own = Index.build(index.model, photos, tmp_path / "store", columns=columns)
    with serving(create_app(own)) as url:
        page = opened("/?id=2", url=url)
        expect(page.locator("#status")).to_contain_text("24 items found")
        first = page.locator("#results .item").first
        assert first.locator(".meta").all_inner_texts() == ["price 0.25", f"long {long} 2"]
        for part in ("0-2.png", "price: 0.25", f"long: {long} 2", 'tags: ["a",2]'):
            assert part in str(first.get_attribute("title"))
        assert one_line(page, "#results .meta, #results .label, #results .path")
        assert page.locator("#results .badge").all_inner_texts() == ["query"]
        expect(first.locator(".badge")).to_be_visible()
        heights = page.locator("#results .item").evaluate_all("nodes => nodes.map((node) => node.offsetHeight)")
        assert len(set(heights)) == 1
        page.get_by_text("Columns", exact=True).click()
        page.get_by_label("price", exact=True).uncheck()
        page.get_by_label("tags", exact=True).check()
        expect(first.locator(".meta")).to_have_text([f"long {long} 2", 'tags ["a",2]'])
        page.reload()
        expect(page.locator("#status")).to_contain_text("24 items found")
        expect(first.locator(".meta")).to_have_text([f"long {long} 2", 'tags ["a",2]'])
        page.get_by_text("Columns", exact=True).click()
        page.get_by_label("long", exact=True).uncheck()
        page.get_by_label("tags", exact=True).uncheck()
        expect(first.locator(".meta")).to_have_count(0)
        page.reload()
        expect(page.locator("#status")).to_contain_text("24 items found")
        assert first.locator(".meta").count() == 0
        page.goto(url + "/?id=3&show=price")
        expect(page.locator("#results .item[data-id='3'] .meta")).to_have_text(["price –"])
        assert fits(page)
        shot(page, "cards")
        narrow = opened("/?id=3", url=url, width=WIDTHS[0])
        expect(narrow.locator("#status")).to_contain_text("24 items found")
        assert one_line(narrow, "#results .meta, #results .label, #results .path") and fits(narrow)


def test_images_fill_their_cells(opened: Opened, index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "shapes" / "a"
    folder.mkdir(parents=True)
    shapes = {"0-wide": (60, 40), "1-tall": (40, 60), "2-strip": (200, 40), "3-pole": (20, 120), "4-square": (50, 50)}
    for name, size in shapes.items():
        Image.new("RGBA", size, (0, 0, 0, 0)).save(folder / f"{name}.png")  # transparent
    own = Index.build(index.model, tmp_path / "shapes", tmp_path / "store")
    with serving(create_app(own)) as url:
        page = opened("/?id=0", url=url, scheme="dark")
        images = page.locator("#results img")
        expect(images).to_have_count(5)
        page.wait_for_function("() => [...document.querySelectorAll('#results img')].every((image) => image.complete)")
        script = """node => {
            const style = getComputedStyle(node);
            return [node.alt && node.closest("a").title.split("/").at(-1), node.clientWidth === node.clientHeight,
                style.objectFit, style.backgroundColor];
        }"""
        found = {values[0]: values[1:] for values in (image.evaluate(script) for image in images.all())}
        dark = "rgb(41, 49, 58)"  # of the cell: what an image leaves free is not white
        fit = {name: "contain" if name[0] in "23" else "cover" for name in shapes}
        assert found == {f"{name}.png": [True, fit[name], dark] for name in shapes}


def test_learners_are_folded_and_left_out_where_they_agree(opened: Opened) -> None:
    page = opened("/?id=2")
    rows = page.locator(".learner .item")
    expect(page.locator("#learner-rows summary")).to_contain_text("their similarities correlate by")
    assert rows.count() == 16
    expect(rows.first).to_be_hidden()
    page.locator("#learner-rows summary").click()
    expect(rows.first).to_be_visible()
    page.locator("#results .item").nth(2).click()  # they stay open
    page.wait_for_url(re.compile(r"\?id=(?!2$)"))
    expect(page.locator("#status")).to_contain_text("items found")
    expect(rows.first).to_be_visible()

    def agree(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"agreement": 0.984})

    page.route("**/search", agree)
    page.goto(page.url)
    expect(page.locator("#agree")).to_contain_text("The 2 learners agree (0.98), rows hidden.")
    assert rows.count() == 0
    page.locator("#agree").get_by_role("button", name="Show").click()
    expect(rows).to_have_count(16)
    expect(rows.first).to_be_visible()
    expect(page.locator("#learner-rows summary")).to_be_focused()


def test_the_first_items_are_mixed_and_more_go_on(opened: Opened, index: Index) -> None:
    with serving(create_app(index, limits=Limits(most_k=16))) as url:
        page = opened(url=url)
        expect(page.locator("#results .item")).to_have_count(16)
        names = labels(page)
        assert len(set(names[:8])) == len(set(names[8:])) == 8  # one of each label, then the second
        ids = page.locator("#results .item").evaluate_all("nodes => nodes.map((node) => node.dataset.id)")
        for count in (32, 40):
            page.get_by_role("button", name="More items").click()
            expect(page.locator("#results .item")).to_have_count(count)
        expect(page.get_by_role("button", name="More items")).to_be_hidden()
        every = page.locator("#results .item").evaluate_all("nodes => nodes.map((node) => node.dataset.id)")
        assert every[:16] == ids and sorted(map(int, every)) == index.store.ids().tolist()
        page.reload()
        expect(page.locator("#results .item")).to_have_count(16)
        assert labels(page) == names


def selected(page: Page) -> int:
    return int(page.locator("#chosen").inner_text().split()[0])


@pytest.mark.parametrize("width", WIDTHS)
def test_items_are_labelled_hidden_undone_and_exported(
    opened: Opened, index: Index, tmp_path: Path, width: int
) -> None:
    file = tmp_path / "labels.csv"
    with serving(create_app(index, labels=file)) as url:
        page = opened("/?id=2", url=url, width=width)
        expect(page.locator("#status")).to_contain_text("24 items found")
        picks = page.locator("#results .pick")
        expect(picks.first).to_be_hidden()
        page.get_by_role("button", name="Label items").click()
        assert "labelling" in page.url
        shown = page.locator("#results .item").evaluate_all("nodes => nodes.map((node) => Number(node.dataset.id))")
        picks.nth(1).click()
        picks.nth(4).click(modifiers=["Shift"])
        assert selected(page) == 4
        picks.nth(2).click()
        assert selected(page) == 3
        page.get_by_role("button", name="Give label").click()
        expect(page.get_by_role("alert")).to_contain_text("Type a label")
        page.get_by_label("Label", exact=True).fill("mu")
        expect(page.locator("#label-names option")).to_have_count(8)  # what the index has
        shot(page, f"labelling-{width}")
        page.get_by_label("Label", exact=True).fill(" <i>cup</i> ")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("3 items labelled")
        given = [shown[i] for i in (1, 3, 4)]
        assert all(labels(page)[i] == "<i>cup</i>" for i in (1, 3, 4)) and labels(page)[2] != "<i>cup</i>"
        assert selected(page) == 0
        picks.nth(6).click()
        page.get_by_role("button", name="Hide", exact=True).click()
        expect(page.locator("#results .item[data-id]").nth(6)).to_be_hidden()
        expect(page.locator("#junk-line")).to_contain_text("1 of these items is hidden")
        expect(page.locator("#label-counts")).to_contain_text(
            "39 images in 9 classes labelled: export, then divcon train"
        )
        page.reload()
        expect(page.locator("#label-bar")).to_be_visible()
        expect(page.locator("#results .given")).to_have_count(3)
        page.get_by_label("with the index's own labels").uncheck()
        expect(page.locator("#label-counts")).to_contain_text("3 images in 1 class labelled; training needs 6 classes")
        with page.expect_download() as download:
            page.get_by_role("link", name="Export labels.csv").click()
        assert download.value.suggested_filename == "labels.csv"
        rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
        assert [(row["path"], row["label"]) for row in rows] == sorted(
            (index.item(i).path, "<i>cup</i>") for i in given
        )
        page.get_by_role("button", name="Show", exact=True).click()
        page.locator("#results .pick").nth(6).click()
        page.get_by_role("button", name="Reset").click()
        expect(page.locator("#junk-line")).to_be_hidden()
        page.keyboard.press("Control+z")
        expect(page.locator("#junk-line")).to_contain_text("1 of these items is hidden")
        expect(page.locator("#undo")).to_be_disabled()
        assert fits(page)
    with serving(create_app(index, labels=file)) as url:  # the server was restarted
        again = opened("/?labelling", url=url, width=width)
        expect(again.locator("#results .item")).to_have_count(40)
        expect(again.locator("#results .given")).to_have_count(3)
        expect(again.locator("#results .junk")).to_have_count(1)


def test_labelling_by_keyboard_and_with_the_threshold(opened: Opened, index: Index, tmp_path: Path) -> None:
    with serving(create_app(index, labels=tmp_path / "labels.csv")) as url:
        page = opened("/?id=2&labelling", url=url)
        expect(page.locator("#status")).to_contain_text("24 items found")
        picks = page.locator("#results .pick")
        picks.first.focus()
        page.keyboard.press("Space")
        for _ in range(3):
            page.keyboard.press("Shift+ArrowRight")
        assert selected(page) == 4
        page.keyboard.press("ArrowRight")
        assert selected(page) == 4
        expect(picks.nth(4)).to_be_focused()
        page.keyboard.press("Control+a")
        assert selected(page) == 24
        page.keyboard.press("Escape")
        assert selected(page) == 0
        scores = [hit.score for hit in index.search(2, 24)]
        page.goto(f"{url}/?id=2&labelling&min_score={(scores[5] + scores[6]) / 2}")
        expect(page.locator("#status")).to_contain_text("6 of 24 items")
        page.get_by_role("button", name="Select all").click()
        assert selected(page) == 6  # not those that are dimmed
        picks.nth(5).focus()
        page.keyboard.press("Enter")
        expect(page.get_by_label("Label", exact=True)).to_be_focused()
        page.keyboard.type("Mug-3")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("looks like the label 'mug 3'")
        expect(page.locator("#results .given")).to_have_count(6)
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("#status")).to_contain_text("Undone: 6 items")
        expect(page.locator("#results .given")).to_have_count(0)


def test_two_browsers_see_and_keep_each_others_labels(opened: Opened, index: Index, tmp_path: Path) -> None:
    with serving(create_app(index, labels=tmp_path / "labels.csv")) as url:
        pages = [opened("/?labelling", url=url) for _ in range(2)]
        for number, page in enumerate(pages):
            expect(page.locator("#results .item")).to_have_count(40)
            page.locator("#results .pick").nth(number).click()
            page.get_by_label("Label", exact=True).fill(f"of {number}")
            page.keyboard.press("Enter")
            expect(page.locator("#status")).to_contain_text("1 item labelled")
        for page in pages:  # the first sees the second's without a reload
            expect(page.locator("#results .given")).to_have_text(["of 0", "of 1"], timeout=15_000)


def test_where_labels_cannot_be_kept_it_is_said(opened: Opened, index: Index, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a folder")
    with serving(create_app(index, labels=tmp_path / "text" / "labels.csv")) as url:
        page = opened("/?labelling", url=url)
        said = 'cannot be written; to keep labels elsewhere, start "divcon serve ... --labels FILE"'
        expect(page.locator("#label-problem")).to_contain_text(said)
        expect(page.get_by_role("button", name="Give label")).to_be_disabled()


def test_what_training_needs_is_said(opened: Opened) -> None:
    training = "Untrained: features of a.b <i>c</i>. To train, label 6 classes. Then train."

    def untrained(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"untrained": True, "training": training})

    page = opened(before=lambda page: page.route("**/about", untrained))
    expect(page.locator("#training summary")).to_have_text("Untrained: features of a.b <i>c</i>.")
    page.locator("#training summary").click()
    expect(page.locator("#training p")).to_have_text("To train, label 6 classes. Then train.")
    expect(page.locator("#training p")).to_be_visible()
    plain = opened()
    expect(plain.locator("#results .item")).to_have_count(40)
    expect(plain.locator("#training")).to_be_hidden()


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
    for _ in range(16):
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
