"""HTML from plain values: all that is not `Html` is escaped, so that no label or path becomes a tag."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("report.css")
_VOID = {"img", "meta"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | Html | None | Iterable["Child"]


def element(name: str, /, *children: Child, **attributes: object) -> Html:
    """``<name attributes>children</name>``.

    Args:
        children: text, which is escaped; `Html`, which is taken as it is; None; or several of them.
        attributes: escaped; ``class_`` is ``class``, ``aria_label`` is ``aria-label``; None and False are left out, and
            True is the bare name.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.removesuffix("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value))}"')
    opened = f"<{' '.join(words)}>"
    return Html(opened if name in _VOID else f"{opened}{joined(*children)}</{name}>")


def joined(*children: Child) -> Html:
    """The children of `element`, one after another."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(child))
        elif child is not None:
            parts.append(joined(*child))
    return Html("".join(parts))


def number(value: float | int | None, shown: str | None = None) -> Html:
    """A number as it is shown, with all its digits in ``value`` for scripts; a dash for None."""
    if value is None:
        return Html("–")
    return element("data", f"{value:,}" if shown is None else shown, value=json.dumps(value))


def percent(value: float | None) -> Html:
    """A share of one, as a percentage with one digit."""
    return number(value, None if value is None else f"{100 * value:.1f}\u00a0%")


MAX_NUMBERS = 24
"""Numbers in one cell, one a learner."""


def numbers(values: Sequence[float | int | None], shown: Callable[[float | int], str] = "{:,}".format) -> Child:
    """The numbers of several learners, at most `MAX_NUMBERS`; a dash for a learner without one."""
    first = [[number(value, None if value is None else shown(value)), " "] for value in values[:MAX_NUMBERS]]
    return [first, f"and {len(values) - MAX_NUMBERS:,} more" if len(values) > MAX_NUMBERS else None]


def short(value: float | None) -> str | None:
    """Three decimals, or three significant digits where the value is small."""
    if value is None:
        return None
    return re.sub(r"e-0?", "e-", f"{value:.3g}") if 0 < abs(value) < 0.01 else f"{value:.3f}"


def table(caption: Child, head: Sequence[Child], rows: Iterable[Sequence[Child]], **attributes: object) -> Html:
    """A table whose first column holds row headers. A wide table scrolls by itself, also by keyboard."""
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", [element("th", cell, scope="col") for cell in head])),
            element(
                "tbody",
                (
                    element("tr", element("th", first, scope="row"), [element("td", cell) for cell in rest])
                    for first, *rest in rows
                ),
            ),
            **attributes,
        ),
        class_="scroll",
        role="region",
        aria_label=_text(caption),
        tabindex=0,
    )


def fold(summary: Child, *children: Child) -> Html:
    """``<details>``: the children show when the summary is opened."""
    return element("details", element("summary", summary), *children)


def page(title: str, sections: Sequence[tuple[str, str, Child]], lead: Child) -> Html:
    """A whole page that fetches nothing; its Content-Security-Policy forbids it, too.

    Args:
        sections: each an anchor, a heading and the content.
        lead: shown above the sections.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style()),
    )
    links = [element("li", element("a", heading, href=f"#{anchor}")) for anchor, heading, _ in sections]
    body = element(
        "body",
        element("a", "Skip to the report", href="#report", class_="skip"),
        element("header", element("h1", title), lead),
        element("nav", element("ul", links), aria_label="Sections"),
        element(
            "main",
            (section(*each) for each in sections),
            id="report",
        ),
    )
    return Html(f"<!doctype html>\n{element('html', head, body, lang='en')}\n")


def style() -> Html:
    """The style sheet of a page."""
    return Html(STYLE.read_text(encoding="utf-8"))


def section(anchor: str, heading: str, content: Child) -> Html:
    """A section of a page."""
    return element(
        "section",
        element("h2", heading, id=f"{anchor}-heading"),
        content,
        id=anchor,
        aria_labelledby=f"{anchor}-heading",
    )


def _text(child: Any) -> str:
    """A caption as plain text; captions that are HTML have no tags."""
    return html.unescape(child) if isinstance(child, Html) else str(child)
