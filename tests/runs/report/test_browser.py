"""A report as a person sees it: in Chromium, on a phone and on a wide screen, in the light and in the dark."""

from __future__ import annotations

import itertools
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


def test_nothing_of_the_page_is_white_in_the_dark(page: Any) -> None:
    if page.scheme == "light":
        return
    colors = page.evaluate("[...document.querySelectorAll('*')].map(e => getComputedStyle(e).backgroundColor)")
    assert all(color.endswith(", 0)") or luminance(color) < 0.05 for color in set(colors))


@pytest.fixture(scope="module")
def long_page(browser: Any, long_run: Path) -> Any:
    """The report of a run of four learners over 60 epochs, with test scores, 1,400 px wide."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.goto((long_run / "report.html").as_uri())
    yield page
    context.close()


def test_a_long_run_is_below_3000_pixels(long_page: Any) -> None:
    assert long_page.locator("#learners h3").count() == 4
    assert long_page.locator("#scores caption").count() >= 2
    assert 1500 < long_page.evaluate("document.documentElement.scrollHeight") < 3000


BOXES = """[...document.querySelectorAll('.chart > svg')].map(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].map(text => {
    const box = text.getBoundingClientRect();
    return [text.textContent, text.classList.contains('end'),
            box.left - frame.left, box.top - frame.top, box.right - frame.left, box.bottom - frame.top,
            frame.width, frame.height];
  });
})"""


@pytest.mark.parametrize("width", [390, 1400])
def test_labels_of_charts_do_not_overlap(long_page: Any, width: int) -> None:
    long_page.set_viewport_size({"width": width, "height": 900})
    wide = long_page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]
    charts = long_page.evaluate(BOXES)
    assert len(charts) == 4
    named = {text for chart in charts for text, at_end, *_ in chart if at_end}
    assert {"learner 0", "learner 3", "full", "Recall@1", "MAP@R", "Recall@1 before", "pairs kept"} <= named
    for chart in charts:
        assert {"epoch"} < {text for text, *_ in chart}
        for text, _, left, top, right, bottom, wide, high in chart:
            assert -1 <= left < right <= wide + 1, text
            assert -1 <= top < bottom <= high + 1, text
        for (one, first, *a), (other, second, *b) in itertools.combinations(chart, 2):
            if first or second:  # a line's label and any other text; of a box, the letters fill about the middle
                across = min(a[2], b[2]) - max(a[0], b[0])
                down = min(a[3], b[3]) - max(a[1], b[1])
                assert across <= 1 or down <= 0.3 * (a[3] - a[1]), (one, other)


def test_labels_of_charts_hide_no_line(long_page: Any) -> None:
    hidden = long_page.evaluate(
        """[...document.querySelectorAll('.chart > svg')].flatMap(svg => [...svg.querySelectorAll('text.end')].map(
        text => {
          const box = text.getBBox();
          const over = [...svg.querySelectorAll('.line')].filter(line => {
            for (let at = 0; at < line.getTotalLength(); at += 1) {
              const {x, y} = line.getPointAtLength(at);
              if (x > box.x && x < box.x + box.width && y > box.y + 3 && y < box.y + box.height - 3) return true;
            }
            return false;
          });
          return over.length ? text.textContent : null;
        })).filter(Boolean)"""
    )
    assert hidden == []


def test_lines_differ_without_colors(long_page: Any) -> None:
    of_lines = long_page.evaluate(
        """[...document.querySelectorAll('.chart > svg')].map(svg => [...svg.querySelectorAll('.line')].map(
        e => [getComputedStyle(e).stroke, getComputedStyle(e).strokeDasharray]))"""
    )
    assert len(of_lines[0]) == 5
    for lines in of_lines:
        solid = [dash for _, dash in lines if not dash.startswith("1px, 4px")]
        assert len(set(solid)) == len(solid)


def test_printed_it_is_black_on_white_and_within_the_paper(long_page: Any) -> None:
    long_page.set_viewport_size({"width": 718, "height": 1000})  # A4 without its margins
    long_page.emulate_media(media="print", color_scheme="dark")
    try:
        assert luminance(long_page.evaluate("getComputedStyle(document.body).color")) < 0.05
        assert (
            luminance(
                long_page.evaluate(
                    "getComputedStyle(document.documentElement).getPropertyValue('--paper')"
                    ".replace('#ffffff', 'rgb(255, 255, 255)')"
                )
            )
            == 1
        )
        assert not long_page.locator("nav").is_visible()
        beyond = long_page.evaluate(
            """[...document.querySelectorAll('main *')].filter(e => e.getClientRects().length &&
            e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert beyond == []
    finally:
        long_page.emulate_media(media="screen", color_scheme="light")


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
