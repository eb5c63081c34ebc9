"""The divisions through time: a column a division, and the images that go from learner to learner in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divcon.divide import Division
from divcon.report.charts import learner_look
from divcon.report.html import Html, element

MOST_COLUMNS = 12
MOST_FLOWS = 64
"""Between two columns; the smallest are not drawn."""
_COLUMN, _NODE, _HEIGHT, _TOP, _GAP = 92.0, 12.0, 240.0, 26.0, 6.0
_LEFT_OUT, _TOGETHER = "var(--dim)", "var(--ink)"


def flows(one: Division, other: Division) -> np.ndarray:
    """(K + 1, K' + 1) int64: images with learner k in the one and k' in the other division; the last row and column are
    those that are left out."""
    if len(one.learner) != len(other.learner):
        raise ValueError(f"divisions of {len(one.learner)} and of {len(other.learner)} images do not compare")
    width = other.num_learners + 1
    now = np.where(one.learner < 0, one.num_learners, one.learner)
    then = np.where(other.learner < 0, other.num_learners, other.learner)
    return np.bincount(now * width + then, minlength=(one.num_learners + 1) * width).reshape(-1, width)


def flow_chart(columns: Sequence[tuple[str, Division]]) -> tuple[Html, int]:
    """The divisions side by side as SVG, each with its name; and how many flows were too small to be drawn."""
    images = len(columns[0][1].learner)
    most = max(division.num_learners for _, division in columns) + 1
    gap = min(_GAP, 80 / most)
    scale = (_HEIGHT - gap * (most - 1)) / max(1, images)
    tops = [_tops(division, scale, gap) for _, division in columns]
    ribbons, nodes, dropped = [], [], 0
    for place in range(len(columns) - 1):
        (before, one), (after, other) = columns[place], columns[place + 1]
        counts = flows(one, other)
        order = np.argsort(counts, axis=None)[::-1]
        drawn = set(order[: min(MOST_FLOWS, int((counts > 0).sum()))].tolist())
        dropped += int((counts > 0).sum()) - len(drawn)
        leave, enter = tops[place].copy(), tops[place + 1].copy()
        for k in range(counts.shape[0]):
            for l in range(counts.shape[1]):  # noqa: E741
                height = counts[k, l] * scale
                if k * counts.shape[1] + l in drawn:
                    said = f"{before} {_name(k, one)} to {after} {_name(l, other)}: {counts[k, l]:,} images"
                    ribbons.append(_ribbon(place, leave[k], enter[l], height, _color(k, one), said))
                leave[k] += height
                enter[l] += height
    for place, (name, division) in enumerate(columns):
        x = place * _COLUMN
        nodes.append(element("text", name, x=_r(x), y=12, class_="dim"))
        for k, size in enumerate([*division.sizes, division.num_left_out]):
            if not size:
                continue
            height = max(1.0, size * scale)
            nodes.append(
                element(
                    "rect",
                    element("title", f"{name}, {_name(k, division)}: {size:,} images"),
                    x=_r(x),
                    y=_r(tops[place][k]),
                    width=_NODE,
                    height=_r(height),
                    style=f"fill:{_color(k, division)}",
                )
            )
            if height >= 10:
                label = "out" if k == division.num_learners else str(k) if division.num_learners > 1 else "all"
                nodes.append(element("text", label, x=_r(x + _NODE + 3), y=_r(tops[place][k] + height / 2 + 4)))
    width, height = (len(columns) - 1) * _COLUMN + 60, _TOP + _HEIGHT + 4
    svg = element(
        "svg",
        ribbons,
        nodes,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=_words(columns),
        style=f"min-width:{width * 0.75:.0f}px;max-width:{width * 1.6:.0f}px",
    )
    return element("div", svg, class_="scroll", role="region", aria_label="Flow of images", tabindex=0), dropped


def _tops(division: Division, scale: float, gap: float) -> np.ndarray:
    """Where each learner's node begins, and that of the images left out."""
    sizes = np.array([*division.sizes, division.num_left_out], np.float64)
    return _TOP + np.concatenate([[0], np.cumsum(sizes[:-1] * scale + gap * (sizes[:-1] > 0))])


def _ribbon(place: int, y1: float, y2: float, height: float, color: str, said: str) -> Html:
    x1, x2 = place * _COLUMN + _NODE, (place + 1) * _COLUMN
    middle = (x1 + x2) / 2
    path = (
        f"M{_r(x1)} {_r(y1)}C{_r(middle)} {_r(y1)} {_r(middle)} {_r(y2)} {_r(x2)} {_r(y2)}v{_r(height)}"
        f"C{_r(middle)} {_r(y2 + height)} {_r(middle)} {_r(y1 + height)} {_r(x1)} {_r(y1 + height)}z"
    )
    return element("path", element("title", said), d=path, class_="ribbon", style=f"fill:{color}")


def _words(columns: Sequence[tuple[str, Division]]) -> str:
    words = []
    for name, division in columns:
        out = f", {division.num_left_out:,} left out" if division.num_left_out else ""
        words.append(f"{name}: {', '.join(f'{size:,}' for size in division.sizes)} images{out}")
    return f"Images of each learner at each division. {'; '.join(words)}."


def _name(k: int, division: Division) -> str:
    if k == division.num_learners:
        return "left out"
    return f"learner {k}" if division.num_learners > 1 else "all together"


def _color(k: int, division: Division) -> str:
    if k == division.num_learners:
        return _LEFT_OUT
    return learner_look(k)[0] if division.num_learners > 1 else _TOGETHER


def _r(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
