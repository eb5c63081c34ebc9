"""A map as a picture: PNG, drawn by Pillow, or SVG."""

from __future__ import annotations

import base64
import io
import math
from abc import ABC, abstractmethod
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from divcon.evaluation.layout import NAMES
from divcon.maps.colours import INK, PAPER, Colours, colours_of
from divcon.maps.items import MapItems, Panel
from divcon.runtime.files import atomic_write

_WIDTH = 1600
"""Pixels of a panel; of two, each has three quarters of it."""
_MARGIN, _TITLE, _LINE = 40, 40, 30
_SOFT = "#5a6572"


class _Paper(ABC):
    """What marks are drawn on."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height

    @abstractmethod
    def dot(self, x: float, y: float, radius: float, colour: str, about: str) -> None:
        """A point."""

    @abstractmethod
    def image(self, x: float, y: float, side: float, content: bytes, colour: str, about: str) -> None:
        """A thumbnail in the middle of a square, with a border."""

    @abstractmethod
    def text(self, x: float, y: float, words: str, size: int, colour: str = INK) -> None:
        """A line of text; ``y`` is its top."""

    @abstractmethod
    def content(self) -> bytes:
        """The file."""


class _Png(_Paper):
    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._sheet = Image.new("RGB", (width, height), PAPER)
        self._pen = ImageDraw.Draw(self._sheet)
        self._discs: dict[tuple[float, str], Image.Image] = {}

    def dot(self, x: float, y: float, radius: float, colour: str, about: str) -> None:
        disc = self._discs.get((radius, colour))
        if disc is None:
            side = 4 * math.ceil(2 * radius + 2)
            mask = Image.new("L", (side, side), 0)
            reach = 4 * radius
            ImageDraw.Draw(mask).ellipse((side / 2 - reach, side / 2 - reach, side / 2 + reach, side / 2 + reach), 217)
            disc = self._discs[radius, colour] = mask.resize((side // 4, side // 4), Image.Resampling.LANCZOS)
        self._sheet.paste(colour, (round(x - disc.width / 2), round(y - disc.height / 2)), disc)

    def image(self, x: float, y: float, side: float, content: bytes, colour: str, about: str) -> None:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
        inside = max(4, round(side) - 6)
        share = inside / max(image.size)
        image = image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))))
        left, top = round(x - image.width / 2), round(y - image.height / 2)
        self._pen.rectangle(
            (left - 2, top - 2, left + image.width + 1, top + image.height + 1), outline=colour, width=2
        )
        self._sheet.paste(image, (left, top))

    def text(self, x: float, y: float, words: str, size: int, colour: str = INK) -> None:
        self._pen.text((x, y), words, fill=colour, font=_font(size))

    def content(self) -> bytes:
        file = io.BytesIO()
        self._sheet.save(file, "PNG", optimize=True)
        return file.getvalue()


class _Svg(_Paper):
    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._marks: list[str] = []

    def dot(self, x: float, y: float, radius: float, colour: str, about: str) -> None:
        self._marks.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.85">'
            f"<title>{_xml(about)}</title></circle>"
        )

    def image(self, x: float, y: float, side: float, content: bytes, colour: str, about: str) -> None:
        with Image.open(io.BytesIO(content)) as opened:
            share = max(4, side - 6) / max(opened.size)
            wide, high = opened.width * share, opened.height * share
        left, top = x - wide / 2, y - high / 2
        source = f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
        self._marks.append(
            f'<g><title>{_xml(about)}</title><image x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" '
            f'height="{high:.1f}" href="{source}"/><rect x="{left - 1:.1f}" y="{top - 1:.1f}" width="{wide + 2:.1f}" '
            f'height="{high + 2:.1f}" fill="none" stroke="{colour}" stroke-width="2"/></g>'
        )

    def text(self, x: float, y: float, words: str, size: int, colour: str = INK) -> None:
        self._marks.append(
            f'<text x="{x:.1f}" y="{y + size:.1f}" font-size="{size}" fill="{colour}">{_xml(words)}</text>'
        )

    def content(self) -> bytes:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="system-ui, sans-serif">'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>'
        )
        return "\n".join([head, *self._marks, "</svg>\n"]).encode()


def _xml(text: str) -> str:
    """Text for XML, which has no control characters."""
    return escape("".join(c if c.isprintable() else "�" for c in text))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def write_picture(out: Path, items: MapItems, panels: list[Panel]) -> None:
    """Draw panels side by side, with a title above each and a legend below all.

    Raises:
        OutputError: the file cannot be written.
    """
    colours = colours_of(items)
    wide = _WIDTH if len(panels) == 1 else 3 * _WIDTH // 4
    extents = [np.ptp(panel.layout.xy, axis=0) for panel in panels]
    high = round(wide * min(1.0, max(0.5, *(float(y) / max(float(x), 1e-9) for x, y in extents))))
    width = len(panels) * wide + (len(panels) + 1) * _MARGIN
    lines = _legend_lines(colours, width - 2 * _MARGIN)
    top = _MARGIN + _TITLE + _LINE
    height = top + high + _MARGIN + _LINE * len(lines) + _MARGIN
    paper = (_Svg if out.suffix.lower() == ".svg" else _Png)(width, height)
    for place, panel in enumerate(panels):
        left = _MARGIN + place * (wide + _MARGIN)
        drawn = _draw(paper, items, colours, panel, (left, top, wide, high))
        by = NAMES[panel.layout.by]
        shown = f"{by} of {len(items):,} items" + (f", {drawn:,} of them as images" if drawn else "")
        paper.text(left, _MARGIN - 10, panel.title, 28)
        paper.text(left, _MARGIN - 10 + _TITLE, f"{shown}; coloured by {items.colour}", 18, _SOFT)
    for row, line in enumerate(lines):
        y = top + high + _MARGIN + row * _LINE
        for x, colour, words in line:
            if colour:
                paper.dot(_MARGIN + x + 8, y + 12, 8, colour, words)
            paper.text(_MARGIN + x + (22 if colour else 0), y, words, 18, INK if colour else _SOFT)
    with atomic_write(out) as beside:
        beside.write_bytes(paper.content())


def _draw(paper: _Paper, items: MapItems, colours: Colours, panel: Panel, box: tuple[int, int, int, int]) -> int:
    """Draw the items into a box; the number of thumbnails."""
    left, top, wide, high = box
    xy = panel.layout.xy.astype(np.float64)
    low, span = xy.min(0), np.maximum(np.ptp(xy, axis=0), 1e-9)
    scale = min((wide - 40) / span[0], (high - 40) / span[1])
    middle = low + span / 2
    x = left + wide / 2 + (xy[:, 0] - middle[0]) * scale
    y = top + high / 2 - (xy[:, 1] - middle[1]) * scale
    cells: dict[int, tuple[float, float]] = {}
    side = 0.0
    if items.thumbnails is not None:
        across = int(min(34, max(8, math.sqrt(2.5 * len(items)))))
        side = wide / across
        cells = snapped(x - left, y - top, side)
    pictures = dict(zip(cells, items.thumbnails(list(cells)), strict=True)) if items.thumbnails is not None else {}
    radius = min(7.0, max(2.0, 140 / math.sqrt(len(items))))
    for i in range(len(items)):
        if pictures.get(i) is None:
            paper.dot(float(x[i]), float(y[i]), radius, colours.of[i], items.labels[i] or "no label")
    drawn = 0
    for i, (cx, cy) in cells.items():
        content = pictures[i]
        if content is not None:
            paper.image(left + cx, top + cy, side, content, colours.of[i], items.labels[i] or "no label")
            drawn += 1
    return drawn


def snapped(x: np.ndarray, y: np.ndarray, side: float) -> dict[int, tuple[float, float]]:
    """One item for each cell of a grid that has any, the nearest to its middle; and that middle.

    Args:
        x, y: (N,) float64.
        side: of a cell.
    """
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for i, (px, py) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        cell = (math.floor(px / side), math.floor(py / side))
        far = math.hypot(px - (cell[0] + 0.5) * side, py - (cell[1] + 0.5) * side)
        best[cell] = min(best.get(cell, (math.inf, -1)), (far, i))
    return {i: ((column + 0.5) * side, (row + 0.5) * side) for (column, row), (_, i) in best.items()}


def _legend_lines(colours: Colours, width: int) -> list[list[tuple[float, str, str]]]:
    """The entries of the legend in lines: where each begins, its colour (none: text alone) and its words."""
    entries = [(colour, words if len(words) < 40 else f"{words[:38]}…") for colour, words in colours.legend]
    entries += [("", colours.more)] if colours.more else []
    lines: list[list[tuple[float, str, str]]] = [[]]
    at = 0.0
    for colour, words in entries:
        needed = _font(18).getlength(words) + 50
        if lines[-1] and at + needed > width:
            lines.append([])
            at = 0.0
        lines[-1].append((at, colour, words))
        at += needed
    return lines
