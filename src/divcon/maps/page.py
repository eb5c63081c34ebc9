"""A map as an HTML page that stands alone: everything is in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import divcon.serve
from divcon.evaluation.layout import NAMES
from divcon.maps.colours import colours_of
from divcon.maps.items import MapItems, Panel
from divcon.maps.picture import snapped
from divcon.runtime.files import atomic_write

_SERVED = Path(divcon.serve.__file__).parent / "page"
_OWN = Path(__file__).parent
THUMBNAILS = 2_000
"""At most; they are most of the file."""


def write_page(out: Path, items: MapItems, panels: list[Panel]) -> None:
    """Write the page.

    Raises:
        OutputError: the file cannot be written.
    """
    script = (_SERVED / "scatter.js").read_text().replace("export ", "") + (_OWN / "alone.js").read_text()
    style = (
        "".join((_SERVED / name).read_text() for name in ("page.css", "views.css")) + (_OWN / "alone.css").read_text()
    )
    title = f"Map of {', '.join(panel.title for panel in panels)}"
    page = (_OWN / "alone.html").read_text()
    parts = {"title": escape(title), "style": style, "data": _data(items, panels), "script": script}
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text)
    with atomic_write(out) as beside:
        beside.write_text(page, encoding="utf-8")


def _data(items: MapItems, panels: list[Panel]) -> str:
    colours = colours_of(items)
    hues = list(dict.fromkeys(colours.of))
    place = {hue: i for i, hue in enumerate(hues)}
    labels = _in_kinds(items.labels)
    data: dict[str, Any] = {
        "panels": [
            {
                "title": panel.title,
                "about": f"{NAMES[panel.layout.by]} of {len(items):,} items, coloured by {items.colour}.",
                "note": panel.layout.note,
                "x": [round(x, 5) for x in panel.layout.xy[:, 0].tolist()],
                "y": [round(y, 5) for y in panel.layout.xy[:, 1].tolist()],
            }
            for panel in panels
        ],
        "labels": labels,
        "paths": [Path(path).name for path in items.paths],
        "colours": hues,
        "of": [place[colour] for colour in colours.of],
        "legend": colours.legend,
        "more": colours.more,
        "images": {} if items.thumbnails is None else _images(items, panels[0]),
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _in_kinds(values: Sequence[str | None]) -> dict[str, Any]:
    names: dict[str, int] = {}
    of = [-1 if value is None else names.setdefault(value, len(names)) for value in values]
    return {"names": list(names), "of": of}


def _images(items: MapItems, panel: Panel) -> dict[int, str]:
    """Thumbnails of items that are spread over the map, by their number."""
    assert items.thumbnails is not None
    wanted = list(range(len(items)))
    if len(wanted) > THUMBNAILS:
        xy = panel.layout.xy.astype(np.float64)
        side = 2 / 128
        while len(wanted) > THUMBNAILS:
            wanted = sorted(snapped(xy[:, 0], xy[:, 1], side))
            side *= 1.1
    made = zip(wanted, items.thumbnails(wanted), strict=True)
    return {
        i: f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
        for i, content in made
        if content is not None
    }
