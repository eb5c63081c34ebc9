"""Line charts as SVG, drawn by hand: the report of every training must not need a plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from divcon.runs.report.html import Child, Html, element, fold

if TYPE_CHECKING:
    from divcon.division import Division

COLORS = 10
"""Number of colors in the style sheet; further learners reuse them with another dash."""
MAX_LABELED = 8
"""Lines that are labeled at their ends; of more, there is a legend."""
_OPEN_LEGEND = 8
"""Lines whose legend is shown without a click."""
_DASHES = (None, "6 3", "2 3", "8 3 2 3", "1 2")
_WIDTH, _HEIGHT = 380.0, 222.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 10.0, 20.0, 38.0
_LETTER, _LINE = 7.4, 14.0
"""Width of a letter of a label, at most on average, and height of a line of text, in the chart's units."""
_BESIDE = 9.0
"""Between the end of a line and its label."""
_MARKERS = 9
"""Markers on a line of more points than `_ALL_MARKED`."""
_ALL_MARKED = 16
_At = Callable[[float, float], tuple[float, float]]
"""From data coordinates to SVG coordinates."""
MAX_POINTS = 200
"""Points of a line; more are thinned evenly."""


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dash: str | None = None
    band: Sequence[tuple[float, float]] = field(default=())
    """Low and high of each point."""
    breaks: frozenset[float] = frozenset()
    """The x before which the line begins anew."""
    marker: int | None = 0
    """Which shape marks its points, so that lines differ without colors; None: no shape."""


def learner_style(learner: int) -> tuple[str, str | None]:
    """Color and dash of a learner, the same in all charts; no two of the first 50 learners have the same."""
    return f"var(--c{learner % COLORS})", _DASHES[(learner + learner // COLORS) % len(_DASHES)]


def thinned(points: Sequence, most: int = MAX_POINTS) -> list:
    """At most ``most`` of the points, the first and the last among them, evenly spread."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def spread_apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart, as near to the wanted ones as that allows, in the same order, and between
    ``low`` and ``high`` where there is room for all of them."""
    order = np.argsort(wanted, kind="stable").tolist()
    sums: list[float] = []  # of what each label of a run, whose labels touch, would have the first of them be
    counts: list[int] = []
    for place in order:
        sums.append(wanted[place])
        counts.append(1)
        while len(sums) > 1 and sums[-2] / counts[-2] + gap * counts[-2] > sums[-1] / counts[-1]:
            total, count = sums.pop(), counts.pop()
            sums[-1] += total - gap * counts[-1] * count
            counts[-1] += count
    spread = [total / count + gap * i for total, count in zip(sums, counts, strict=True) for i in range(count)]
    result = [0.0] * len(spread)
    for i, (place, position) in enumerate(zip(order, spread, strict=True)):
        result[place] = max(min(position, high - gap * (len(spread) - 1 - i)), low + gap * i)
    return result


def line_chart(
    title: str,
    about: str,
    lines: Sequence[Line],
    *,
    y_label: str,
    caption: Child = None,
    marks: Sequence[tuple[float, str]] = (),
    kept: float | None = None,
    levels: Sequence[tuple[str, float, str]] = (),
) -> Html:
    """A figure of lines over epochs. Up to `MAX_LABELED` lines are labeled at their ends, more in a legend.

    Args:
        about: the chart in words, for screen readers.
        caption: what the lines are, shown under the title.
        marks: epochs at which a phase begins, and its name.
        kept: the epoch whose model is kept, to be marked.
        levels: values to compare with, each a name, the value and a color: dotted lines across the chart.
    """
    xs = [x for line in lines for x, _ in line.points]
    if not xs:
        return Html()
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for pair in line.band for y in pair]
    ys += [value for _, value, _ in levels]
    low_x, high_x = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    y_ticks = _ticks(min(ys), max(ys), 5)
    low_y, high_y = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))
    across = [Line(name, [(low_x, value), (high_x, value)], color, "1 4", marker=None) for name, value, color in levels]
    labeled = [*lines, *across] if 1 < len(lines) + len(across) <= MAX_LABELED else across
    at_the_end = [line for line in labeled if line.points[-1][0] > low_x + 0.8 * (high_x - low_x)]
    right = _RIGHT + max((_BESIDE + _LETTER * len(line.name) for line in at_the_end), default=0.0)

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - right)
        return across, _TOP + (high_y - y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)

    drawn = []
    for tick in y_ticks:
        y = at(low_x, tick)[1]
        drawn.append(_stroke(_LEFT, y, _WIDTH - right, y, "grid"))
        drawn.append(element("text", f"{tick:.6g}", x=_LEFT - 6, y=_fmt(y + 4), text_anchor="end"))
    for tick in _whole_ticks(low_x, high_x):
        x = at(tick, low_y)[0]
        drawn.append(element("text", f"{tick:g}", x=_fmt(x), y=_HEIGHT - _BOTTOM + 16, text_anchor="middle"))
    for x, what in marks:
        left = at(x, low_y)[0]
        drawn.append(_stroke(left, _TOP, left, _HEIGHT - _BOTTOM, "mark"))
        before = left + 4 + _LETTER * len(what) > _WIDTH
        drawn.append(
            element(
                "text",
                what,
                x=_fmt(left + (-4 if before else 4)),
                y=_TOP - 6,
                text_anchor="end" if before else None,
                class_="dim",
            )
        )
    drawn += [_band(line, at) for line in lines if line.band]
    for line in [*across, *lines]:
        drawn += _line_shapes(line, at)
    if kept is not None:
        y = next((y for line in lines for x, y in line.points if x == kept), None)
        if y is not None:
            x, y = at(kept, y)
            drawn.append(element("circle", cx=_fmt(x), cy=_fmt(y), r=7, class_="kept"))
    drawn += _labels(labeled, at)
    middle = _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    drawn.append(element("text", "epoch", x=_fmt(_WIDTH - right), y=_HEIGHT - 6, text_anchor="end", class_="dim"))
    drawn.append(
        element("text", y_label, transform=f"translate(12 {middle:g}) rotate(-90)", text_anchor="middle", class_="dim")
    )
    svg = element("svg", drawn, viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}", role="img", aria_label=f"{title}. {about}")
    words = None if caption is None else element("span", caption)
    legend = _legend([line for line in lines if line not in labeled and len(lines) > 1], lines, kept)
    return element("figure", element("figcaption", element("strong", title), words), svg, legend, class_="chart")


def _labels(lines: Sequence[Line], at: _At) -> list[Html]:
    """The names of lines at their last points. Those that end near each other are one below the other, and where other
    lines go on beside them, above or below these, each with a thin line to its end."""
    ends = sorted(((*at(*line.points[-1]), line) for line in lines), key=lambda end: -end[0])
    columns: list[list[tuple[float, float, Line]]] = []
    for end in ends:
        if not columns or columns[-1][0][0] - end[0] > _BESIDE + _LETTER * len(end[2].name):
            columns.append([])
        columns[-1].append(end)
    labels = []
    for column in columns:
        left = column[0][0] + _BESIDE
        right = left + _LETTER * max(len(line.name) for _, _, line in column)
        ending = {id(line) for _, _, line in column}
        passing = [at(*point) for line in lines if id(line) not in ending for point in line.points]
        beside = [y for x, y in passing if left - 2 * _BESIDE <= x <= right]
        low, high, needed = _TOP + 4, _HEIGHT - _BOTTOM - 4, _LINE * len(column)
        if beside and min(beside) - low >= needed:
            high = min(beside) - _LINE
        elif beside and high - max(beside) >= needed:
            low = max(beside) + _LINE
        spread = spread_apart([y for _, y, _ in column], _LINE, low, high)
        for (x, end, line), y in zip(column, spread, strict=True):
            position = {"x": _fmt(left), "y": _fmt(y + 4)}
            if abs(y - end) > _LINE / 2 or left - x > 2 * _BESIDE:
                labels.append(_stroke(x + 3, end, left - 2, y, "leader", style=f"stroke:{line.color}"))
            labels.append(element("text", line.name, **position, style=f"fill:{line.color}", class_="end"))
    return labels


def _legend(shown: Sequence[Line], lines: Sequence[Line], kept: float | None) -> Html:
    """The lines that have no label, the band and the kept epoch."""

    def sample(*shape: Html) -> Html:
        return element("svg", *shape, viewBox="0 0 26 10", width=26, height=10, aria_hidden="true")

    entries = [
        element(
            "li",
            sample(
                _stroke(0, 5, 26, 5, "line", style=_style(line)),
                *([] if line.marker is None else [_marker(line.marker, 13, 5, line.color)]),
            ),
            line.name,
        )
        for line in shown
    ]
    if any(line.band for line in lines):
        entries.append(element("li", sample(element("rect", width=26, height=10, class_="band")), "95 % interval"))
    if kept is not None:
        entries.append(element("li", sample(element("circle", cx=13, cy=5, r=4, class_="kept")), "epoch that is kept"))
    if not entries:
        return Html()
    legend = element("ul", entries, class_="legend")
    return legend if len(shown) <= _OPEN_LEGEND else fold(f"The {len(shown):,} lines", legend)


def _line_shapes(line: Line, at: _At) -> list[Html]:
    pieces: list[list[tuple[float, float]]] = []
    for x, y in line.points:
        if not pieces or x in line.breaks:
            pieces.append([])
        pieces[-1].append(at(x, y))
    shapes = []
    for piece in pieces:
        if len(piece) > 1:
            path = "M" + "L".join(f"{_fmt(x)} {_fmt(y)}" for x, y in piece)
            shapes.append(element("path", d=path, class_="line", style=_style(line)))
    if line.marker is not None:
        every = [point for piece in pieces for point in piece]
        few = every if len(every) <= _ALL_MARKED else thinned(every, _MARKERS)
        alone = [piece[0] for piece in pieces if len(piece) == 1 and piece[0] not in few]
        shapes += [_marker(line.marker, x, y, line.color) for x, y in [*few, *alone]]
    return shapes


def _marker(kind: int, x: float, y: float, color: str) -> Html:
    """A circle, square, triangle or diamond."""
    style = f"fill:{color};stroke:none"
    kind %= 4
    if kind == 0:
        return element("circle", cx=_fmt(x), cy=_fmt(y), r=2.6, style=style)
    corners = {
        1: [(-2.5, -2.5), (2.5, -2.5), (2.5, 2.5), (-2.5, 2.5)],
        2: [(0, -3.4), (3.2, 2.4), (-3.2, 2.4)],
        3: [(0, -3.6), (3.6, 0), (0, 3.6), (-3.6, 0)],
    }[kind]
    points = " ".join(f"{_fmt(x + dx)},{_fmt(y + dy)}" for dx, dy in corners)
    return element("polygon", points=points, style=style, class_="marker")


def _band(line: Line, at: _At) -> Html:
    xs = [x for x, _ in line.points]
    edge = [at(x, high) for x, (_, high) in zip(xs, line.band, strict=True)]
    edge += [at(x, low) for x, (low, _) in reversed(list(zip(xs, line.band, strict=True)))]
    return element("polygon", points=" ".join(f"{_fmt(x)},{_fmt(y)}" for x, y in edge), class_="band")


def _style(line: Line) -> str:
    return f"stroke:{line.color}" + (f";stroke-dasharray:{line.dash}" if line.dash else "")


def _stroke(x1: float, y1: float, x2: float, y2: float, class_: str, style: str | None = None) -> Html:
    return element("path", d=f"M{_fmt(x1)} {_fmt(y1)}L{_fmt(x2)} {_fmt(y2)}", class_=class_, style=style)


def _fmt(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that span the values, of few digits also where these differ little."""
    least = 0.01 * max(abs(low), abs(high))
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    span = high - low or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _whole_ticks(low: float, high: float) -> list[int]:
    step = max(1, math.ceil((high - low) / 8))
    step = next(s * 10**p for p in range(9) for s in (1, 2, 5) if s * 10**p >= step)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


MAX_COLUMNS = 8
MAX_FLOWS = 64
"""Flows between two columns; the smallest beyond are not drawn."""
_COLUMN, _NODE, _FLOW_HEIGHT, _FLOW_TOP, _GAP = 92.0, 12.0, 250.0, 26.0, 6.0
_LEFT_OUT, _TOGETHER = "var(--dim)", "var(--ink)"


def flows(one: Division, other: Division) -> np.ndarray:
    """(K + 1, K' + 1) int64: images with learner k in one division and k' in the other; the last row and column count
    images that are left out."""
    if len(one.learner) != len(other.learner):
        raise ValueError(f"divisions of {len(one.learner)} and of {len(other.learner)} images do not compare")
    width = other.num_learners + 1
    now = np.where(one.learner < 0, one.num_learners, one.learner)
    then = np.where(other.learner < 0, other.num_learners, other.learner)
    return np.bincount(now * width + then, minlength=(one.num_learners + 1) * width).reshape(-1, width)


def flow_chart(columns: Sequence[tuple[str, Division]]) -> tuple[Html, int]:
    """The divisions side by side as SVG, each with its name; and the number of flows too small to be drawn."""
    images = len(columns[0][1].learner)
    most = max(division.num_learners for _, division in columns) + 1
    gap = min(_GAP, 80 / most)
    scale = (_FLOW_HEIGHT - gap * (most - 1)) / max(1, images)
    tops = [_tops(division, scale, gap) for _, division in columns]
    ribbons, nodes, dropped = [], [], 0
    for place in range(len(columns) - 1):
        (before, one), (after, other) = columns[place], columns[place + 1]
        counts = flows(one, other)
        order = np.argsort(counts, axis=None)[::-1]
        drawn = set(order[: min(MAX_FLOWS, int((counts > 0).sum()))].tolist())
        dropped += int((counts > 0).sum()) - len(drawn)
        leave, enter = tops[place].copy(), tops[place + 1].copy()
        for k in range(counts.shape[0]):
            for l in range(counts.shape[1]):  # noqa: E741
                height = counts[k, l] * scale
                if k * counts.shape[1] + l in drawn:
                    label = f"{before} {_name(k, one)} to {after} {_name(l, other)}: {counts[k, l]:,} images"
                    ribbons.append(_ribbon(place, leave[k], enter[l], height, _color(k, one), label))
                leave[k] += height
                enter[l] += height
    for place, (name, division) in enumerate(columns):
        x = place * _COLUMN
        nodes.append(element("text", name, x=_fmt(x), y=12, class_="dim"))
        for k, size in enumerate([*division.sizes, division.num_left_out]):
            if not size:
                continue
            height = max(1.0, size * scale)
            nodes.append(
                element(
                    "rect",
                    element("title", f"{name}, {_name(k, division)}: {size:,} images"),
                    x=_fmt(x),
                    y=_fmt(tops[place][k]),
                    width=_NODE,
                    height=_fmt(height),
                    style=f"fill:{_color(k, division)}",
                )
            )
            if height >= 10:
                label = "out" if k == division.num_learners else str(k) if division.num_learners > 1 else "all"
                nodes.append(element("text", label, x=_fmt(x + _NODE + 3), y=_fmt(tops[place][k] + height / 2 + 4)))
    width, height = (len(columns) - 1) * _COLUMN + 60, _FLOW_TOP + _FLOW_HEIGHT + 4
    svg = element(
        "svg",
        ribbons,
        nodes,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=_description(columns),
        style=f"min-width:{width * 0.75:.0f}px;max-width:{width * 1.25:.0f}px",
    )
    return element("div", svg, class_="scroll", role="region", aria_label="Flow of images", tabindex=0), dropped


def _tops(division: Division, scale: float, gap: float) -> np.ndarray:
    """The y at which each learner's node begins, then that of the images left out."""
    sizes = np.array([*division.sizes, division.num_left_out], np.float64)
    return _FLOW_TOP + np.concatenate([[0], np.cumsum(sizes[:-1] * scale + gap * (sizes[:-1] > 0))])


def _ribbon(place: int, y1: float, y2: float, height: float, color: str, label: str) -> Html:
    x1, x2 = place * _COLUMN + _NODE, (place + 1) * _COLUMN
    middle = (x1 + x2) / 2
    path = (
        f"M{_fmt(x1)} {_fmt(y1)}C{_fmt(middle)} {_fmt(y1)} {_fmt(middle)} {_fmt(y2)} {_fmt(x2)} {_fmt(y2)}"
        f"v{_fmt(height)}"
        f"C{_fmt(middle)} {_fmt(y2 + height)} {_fmt(middle)} {_fmt(y1 + height)} {_fmt(x1)} {_fmt(y1 + height)}z"
    )
    return element("path", element("title", label), d=path, class_="ribbon", style=f"fill:{color}")


def _description(columns: Sequence[tuple[str, Division]]) -> str:
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
    return learner_style(k)[0] if division.num_learners > 1 else _TOGETHER
