"""Which item of a map has which colour."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from divcon.maps.items import MapItems

HUES = ("#1f6fb4", "#c4501b", "#1e8a4f", "#8e44ad", "#8a6d00", "#c2185b", "#00838f", "#795548", "#546e7a", "#d32f2f")
INK, PAPER, MISSING = "#1b1f24", "#ffffff", "#9aa4ae"
SCALE = ("#1f6fb4", "#8a6d00", "#c4501b")
"""Of numbers, from the least to the largest."""
NAMED = 14
"""Entries of a legend."""


@dataclass(frozen=True)
class Colours:
    """The colours of a map's items, as ``#rrggbb``."""

    of: list[str]
    """The colour of each item."""
    legend: list[tuple[str, str]]
    """Colours and what they stand for, the most frequent first."""
    more: str = ""
    """What the legend leaves out."""


def mixed(one: str, other: str, share: float) -> str:
    """A colour between two."""
    a, b = (tuple(int(text[i : i + 2], 16) for i in (1, 3, 5)) for text in (one, other))
    return "#" + "".join(f"{round(x * (1 - share) + y * share):02x}" for x, y in zip(a, b, strict=True))


PALETTE = (*HUES, *(mixed(hue, INK, 0.4) for hue in HUES), *(mixed(hue, PAPER, 0.45) for hue in HUES))


def colours_of(items: MapItems) -> Colours:
    """Colours by value: numbers of a column by a scale, all else by a palette of 30, which repeats."""
    numbers = [v for v in items.values if isinstance(v, int | float) and v == v]
    if items.colour != "learner" and numbers and all(isinstance(v, int | float | None) for v in items.values):
        return _by_scale(items, min(numbers), max(numbers))
    counts = Counter(value for value in items.values if value is not None)
    learners = items.colour == "learner"
    order = sorted(counts, key=lambda v: (isinstance(v, str), v)) if learners else [v for v, _ in counts.most_common()]
    turn = {value: PALETTE[i % len(PALETTE)] for i, value in enumerate(order)}
    turn |= {value: PALETTE[value % len(PALETTE)] for value in order if learners and isinstance(value, int)}
    if learners:
        turn["left out"] = MISSING
    names = [(turn[v], f"{_name(items.colour, v)} ({counts[v]:,})") for v in order[:NAMED]]
    missing = len(items) - counts.total()
    if missing:
        names.append((MISSING, f"no {items.colour} ({missing:,})"))
    more = len(order) - NAMED
    text = f"and {more:,} more" + ("; colours repeat" if len(order) > len(PALETTE) else "") if more > 0 else ""
    return Colours([MISSING if v is None else turn[v] for v in items.values], names, text)


def _name(colour: str, value: Any) -> str:
    return f"learner {value}" if colour == "learner" and isinstance(value, int) else str(value)


def _by_scale(items: MapItems, low: float, high: float) -> Colours:
    def at(value: Any) -> str:
        if value is None or value != value:
            return MISSING
        place = 2 * (value - low) / (high - low) if high > low else 0.0
        return mixed(SCALE[0], SCALE[1], place) if place < 1 else mixed(SCALE[1], SCALE[2], place - 1)

    steps = [low, (low + high) / 2, high] if high > low else [low]
    return Colours([at(v) for v in items.values], [(at(v), f"{items.colour} {v:,.4g}") for v in steps])
