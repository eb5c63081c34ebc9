"""A report as a person sees it: in Chromium, on a phone and on a wide screen, in the light and in the dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

SIZES = {360: 740, 1600: 900}


@pytest.fixture(
    scope="module", params=[(w, s) for w in SIZES for s in ("light", "dark")], ids=lambda p: f"{p[0]}-{p[1]}"
)
def page(request: pytest.FixtureRequest, browser: Any, report_run: Path) -> Any:
    """The page, with what it fetched and what went wrong in it."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme)
    page = context.new_page()
    page.fetched, page.wrong, page.scheme = [], [], scheme
    page.on("request", lambda sent: page.fetched.append(sent.url))
    page.on("console", lambda message: page.wrong.append(message.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto((report_run / "report.html").as_uri())
    yield page
    context.close()


def luminance(color: str) -> float:
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3])
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_nothing_is_fetched_and_nothing_goes_wrong(page: Any) -> None:
    assert not page.wrong
    assert [url.partition(":")[0] for url in page.fetched if not url.startswith("data:image/webp")] == ["file"]
    assert page.title() == "Run the <b>run"


def test_the_page_fits_its_width(page: Any) -> None:
    for _ in range(2):
        wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1]
        # Only what scrolls in itself reaches beyond the edge.
        beyond = page.evaluate(
            """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip') &&
            e.getBoundingClientRect().right > window.innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert beyond == []
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")


def test_every_picture_is_there(page: Any) -> None:
    widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) > 30
    assert min(widths) > 0


def test_text_stands_out_from_the_page(page: Any) -> None:
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.05) == (page.scheme == "dark")
    names = ("h2", "p", "dt", ".dim", "a", "figcaption", "td", "th", ".hit .mark", ".miss .mark", ".label")
    for name in names:
        ink = luminance(page.evaluate(f"getComputedStyle(document.querySelector('main {name}, nav {name}')).color"))
        contrast = (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)
        assert contrast >= 4.5, name
    for line in page.evaluate("[...document.querySelectorAll('.chart .line')].map(e => getComputedStyle(e).stroke)"):
        ink = luminance(line)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 3, line


def test_charts_can_be_read(page: Any) -> None:
    sizes = page.evaluate(
        "[...document.querySelectorAll('.chart > svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(sizes) > 20
    heights = sorted(sizes)
    assert heights[0] >= 9  # pixels, descenders included


def test_the_keyboard_reaches_what_opens_and_scrolls(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    reached = set()
    for _ in range(30):
        reached.add(page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
        page.keyboard.press("Tab")
    assert {"SUMMARY.", "DIV.scroll"} <= reached
    page.locator("summary").first.focus()
    opened = page.evaluate("document.querySelector('details').open")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open") != opened
