"""Line charts with matplotlib: lines that differ without colors, labelled at their ends."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divcon.errors import ConfigError
from divcon.runs.report.charts import spread_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of different lightness next to each other, so that they differ in grey print too.
_COLORS = ("#12508a", "#d9601e", "#2a8f5a", "#7a2f8f", "#b58a00", "#a01f45", "#3f9fb5", "#5a4a42")
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "0.35"
FONT = 9.0
"""Points of the text of labels."""


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise ConfigError('the picture is drawn with matplotlib: pip install "divcon[demo]"') from None
    return matplotlib.figure.Figure(figsize=(width, height), facecolor="white")


def style(number: int) -> dict[str, Any]:
    """Color, dash and marker of a line, for ``Axes.plot``; no two of the first 280 have the same, nor of the first 35
    the same dash and marker."""
    return {
        "color": _COLORS[number % len(_COLORS)],
        "linestyle": _DASHES[number % len(_DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1.8,
    }


def label_inches(names: Sequence[str]) -> float:
    """The width that the labels of lines take beside the axes."""
    return 0.7 + max((len(name) for name in names), default=0) * FONT * 0.62 / 72


@dataclass(frozen=True)
class End:
    """The last point of a line, its label, and what `style` gives for it."""

    text: str
    x: float
    y: float
    style: dict[str, Any]


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write the labels to the right of the axes, each at the height of its line's end as far as none covers another,
    with a sample of the line and a thin line from its end to it. Call it when the limits and the place of the axes are
    final."""
    box = axes.get_window_extent()
    width, height = (pixels * 72 / axes.figure.dpi for pixels in (box.width, box.height))
    low, high = axes.get_ylim()
    gap = min(1.35 * FONT, height / max(1, len(ends)))
    wanted = [(end.y - low) / (high - low) * height for end in ends]
    for end, y in zip(ends, spread_apart(wanted, gap, 0, height), strict=True):
        color, sample = end.style["color"], [1 + points / width for points in (22, 31, 40)]
        axes.annotate(
            "",
            (end.x, end.y),
            (1 + 20 / width, y / height),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        axes.plot(sample, [y / height] * 3, **end.style, markevery=[1], transform=axes.transAxes, clip_on=False)
        size = {"fontsize": min(FONT, gap / 1.2), "fontweight": "bold"}
        place = {"transform": axes.transAxes, "va": "center"}
        axes.text(1 + 44 / width, y / height, end.text, color=color, **size, **place)
    axes.set_ylim(low, high)


def finish(axes: Axes, x_label: str, y_label: str = "") -> None:
    """A grid, the names of the axes, and no frame where there is no scale."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def title(of: Figure, text: str, below: str) -> None:
    """A title at the top left, and smaller words below it, on at most two lines for the words of this package; 0.75
    inches in all."""
    height = of.get_figheight()
    below = textwrap.fill(below, int((of.get_figwidth() - 0.3) * 72 / (FONT * 0.56)))
    of.text(0.12 / of.get_figwidth(), 1 - 0.12 / height, text, va="top", fontsize=12, fontweight="bold")
    of.text(0.12 / of.get_figwidth(), 1 - 0.40 / height, below, va="top", fontsize=FONT, color=GREY)
