"""Contact sheets: what each learner trains on, queries with their neighbours, and how images move among learners."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from divcon.data.labeled_set import LabeledSet
from divcon.division import Division
from divcon.evaluation.neighbours import nearest
from divcon.evaluation.retrieval import retrieval_metrics
from divcon.evaluation.task import Exclusion
from divcon.runs.report.charts import flows

RIGHT, WRONG, QUERY = (30, 150, 70), (205, 45, 45), (90, 90, 90)
DIM = (90, 98, 110)
_MARGIN, _FRAME, _GAP = 12, 2, 20
"""Pixels: around a sheet, of a frame, and between blocks of neighbours."""


def cluster_sheet(
    images: LabeledSet, division: Division, *, columns: int = 12, rows: int = 4, tile: int = 48
) -> Image.Image:
    """Draw the images of each learner: a block of ``rows`` x ``columns`` images, spread evenly over its cluster in the
    data's order, under a title and a caption."""
    width, block = columns * tile, rows * tile + 26
    caption = (
        f"{len(images):,} training images, clustered by their features at the last division; up to {rows * columns} of "
        "each learner, spread evenly over its cluster."
    )
    if division.num_left_out:
        caption += f" {division.num_left_out:,} images sit out, alone of their class in a cluster."
    head = _head(f"What each of {division.num_learners} learners trains on", caption, width)
    sheet = Image.new("RGB", (width, head.height + division.num_learners * block), "white")
    sheet.paste(head)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for learner in range(division.num_learners):
        top = head.height + learner * block
        members = division.indices(learner)
        classes = len(np.unique(images.labels[members]))
        draw.text((4, top + 5), f"learner {learner}: {len(members):,} images of {classes:,} classes", "black", font)
        shown = members[np.linspace(0, len(members) - 1, min(len(members), rows * columns)).astype(int)]
        for place, index in enumerate(shown):
            position = (place % columns * tile, top + 26 + place // columns * tile)
            sheet.paste(_thumbnail(images, index, tile - 4), (position[0] + 2, position[1] + 2))
    return sheet


@dataclass(frozen=True)
class Examples:
    """Queries of a sheet, and the rule that chose them."""

    rule: str
    queries: Sequence[int]


def choose_examples(
    images: LabeledSet,
    before: np.ndarray,
    after: np.ndarray,
    *,
    learned: int = 6,
    drawn: int = 3,
    lost: int = 3,
    neighbours: int = 5,
    seed: int = 0,
) -> tuple[list[Examples], list[dict[str, np.ndarray]]]:
    """Queries that show what training has changed, by rules that a picture can state: those whose first neighbour
    became right, the largest gain in MAP@R first; some at random; and those whose first neighbour became wrong, the
    largest loss first. One query a class, and only of classes that can fill a row of neighbours.

    Args:
        before, after: (N, D) float32 of the images, each of length one; each image searches among all others.
        learned, drawn, lost: how many of each, at most.

    Returns:
        The examples (without rules that no query meets), and of before and after the values of each query by metric.
    """
    each = [
        retrieval_metrics(vectors, images.labels, recall_at=(1,), per_query=True)["per_query"]
        for vectors in (before, after)
    ]
    enough = each[0]["num_matches"] >= neighbours
    gain = np.nan_to_num(each[1]["map_at_r"] - each[0]["map_at_r"])
    was, now = (scores["recall_at_1"] > 0.5 for scores in each)
    searched = each[0]["num_matches"] > 0
    taken: set[int] = set()

    def first(order: np.ndarray, count: int) -> list[int]:
        chosen: list[int] = []
        for index in order.tolist():
            if len(chosen) < count and int(images.labels[index]) not in taken:
                taken.add(int(images.labels[index]))
                chosen.append(index)
        return chosen

    right, wrong = ~was & now & enough, was & ~now & enough
    best = first(np.flatnonzero(right)[np.argsort(-gain[right], kind="stable")], learned)
    worst = first(np.flatnonzero(wrong)[np.argsort(gain[wrong], kind="stable")], lost)
    random = first(np.random.default_rng(seed).permutation(np.flatnonzero(enough)), drawn)
    total = f"{int(searched.sum()):,} queries"
    examples = [
        Examples(
            f"Nearest neighbour wrong before, right after: {int((~was & now & searched).sum()):,} of {total}, here "
            "those whose MAP@R gains most",
            best,
        ),
        Examples(f"Drawn at random from all queries, by seed {seed}", random),
        Examples(
            f"Nearest neighbour right before, wrong after: {int((was & ~now & searched).sum()):,} of {total}, here "
            "those whose MAP@R loses most",
            worst,
        ),
    ]
    return [each for each in examples if each.queries], each


def neighbour_sheet(
    images: LabeledSet,
    embeddings: Mapping[str, np.ndarray],
    examples: Sequence[Examples],
    *,
    title: str,
    caption: str,
    words: Mapping[int, str] | None = None,
    neighbours: int = 5,
    tile: int = 60,
) -> Image.Image:
    """Draw queries, a row each, and beside each its nearest neighbours among all other images, a block of columns for
    each embedding: those of the query's class have a green frame and a tick, the others a red frame and a cross.

    Args:
        embeddings: by the title of its block, (N, D) float32, of ``images``.
        examples: indices into ``images``, each group under its rule.
        title, caption: at the top of the sheet.
        words: of each query, written below the name of its class.
    """
    rows = np.asarray([query for group in examples for query in group.queries])
    exclude = Exclusion.itself(len(images)).take(rows)
    label_width, heading, columns = 158, 26, 22
    block = neighbours * tile + _GAP
    width = label_width + tile + len(embeddings) * block + _MARGIN
    head = _head(title, caption, width)
    height = head.height + columns + sum(heading + len(group.queries) * tile + 6 for group in examples) + 6
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(head)
    draw = ImageDraw.Draw(sheet)
    font, bold, small = ImageFont.load_default(13), ImageFont.load_default(14), ImageFont.load_default(11)

    def paste(index: int, left: int, upper: int, mark: bool | None) -> None:
        color = QUERY if mark is None else RIGHT if mark else WRONG
        draw.rectangle((left + 1, upper + 1, left + tile - 2, upper + tile - 2), outline=color, width=_FRAME)
        sheet.paste(_thumbnail(images, index, tile - 12), (left + 6, upper + 6))
        if mark is not None:  # a shape beside the colour, for those who see no difference between the colours
            x, y = left + tile - 15, upper + 3
            draw.rectangle((x, y, x + 11, y + 11), fill=color)
            shape = [(x + 2, y + 6), (x + 5, y + 9), (x + 9, y + 2)] if mark else [(x + 2, y + 2), (x + 9, y + 9)]
            draw.line(shape, "white", 2)
            if not mark:
                draw.line([(x + 9, y + 2), (x + 2, y + 9)], "white", 2)

    lefts = [label_width + tile + _GAP + number * block for number in range(len(embeddings))]
    draw.text((label_width + 1, head.height + 2), "query", "black", bold)
    found = []
    for left, (name, vectors) in zip(lefts, embeddings.items(), strict=True):
        draw.text((left + 1, head.height + 2), name, "black", bold)
        found.append(nearest(vectors[rows], vectors, neighbours, exclude=exclude)[0])
    upper, row = head.height + columns, 0
    for group in examples:
        draw.line((_MARGIN, upper + 3, width - _MARGIN, upper + 3), (213, 218, 224))
        draw.text((_MARGIN, upper + 7), _fitted(draw, group.rule, font, width - 2 * _MARGIN), DIM, font)
        upper += heading
        for query in group.queries:
            below = (words or {}).get(query, "")
            name = _fitted(draw, images.label_name(query), font, label_width - _MARGIN - 8)
            draw.text((_MARGIN, upper + tile // 2 - (15 if below else 8)), name, "black", font)
            draw.text((_MARGIN, upper + tile // 2 + 3), below, DIM, small)
            paste(query, label_width, upper, None)
            for left, indices in zip(lefts, found, strict=True):
                for column, index in enumerate(indices[row].tolist()):
                    if index >= 0:
                        right = bool(images.labels[index] == images.labels[query])
                        paste(index, left + column * tile, upper, right)
            upper += tile
            row += 1
        upper += 6
    return sheet


def flow_sheet(columns: Sequence[tuple[str, Division]], *, width: int = 960, height: int = 420) -> Image.Image:
    """Draw divisions side by side, each with its name: a bar for each learner, as long as its share of the images, and
    between two divisions a band for the images that went from one learner to another. Images that are left out are
    grey, at the bottom."""
    caption = (
        "Bars: the images of each learner, 0 at the top. Bands: where they go at the next division. Grey: left out."
    )
    head = _head("Images of each learner, division by division", caption, width)
    scale = 3  # drawn larger and reduced, for smooth edges
    sheet = Image.new("RGB", (width * scale, height * scale), "white")
    draw = ImageDraw.Draw(sheet, "RGBA")
    images = max(1, len(columns[0][1].learner))
    learners = max(division.num_learners for _, division in columns)
    gap, top = min(10.0, 80 / (learners + 1)), 24.0
    unit = (height - top - 8 - gap * learners) / images
    step = (width - 2 * _MARGIN - 14) / max(1, len(columns) - 1)

    def tops(division: Division) -> np.ndarray:
        sizes = np.array([*division.sizes, division.num_left_out], np.float64)
        return top + np.concatenate([[0], np.cumsum(sizes[:-1] * unit + gap * (sizes[:-1] > 0))])

    def colour(k: int, division: Division) -> tuple[int, int, int]:
        if k == division.num_learners:
            return (150, 156, 164)
        red, green, blue = colorsys.hls_to_rgb((k * 0.381966) % 1, 0.48, 0.55)
        return int(255 * red), int(255 * green), int(255 * blue)

    places = [tops(division) for _, division in columns]
    for number, ((_, one), (_, other)) in enumerate(pairwise(columns)):
        left, right = _MARGIN + 14 + number * step, _MARGIN + (number + 1) * step
        t = np.linspace(0, 1, 24)
        bend = t * t * (3 - 2 * t)
        leave, enter = places[number].copy(), places[number + 1].copy()
        for k, row in enumerate(flows(one, other)):
            for to, count in enumerate(row.tolist()):
                if count:
                    upper = leave[k] + (enter[to] - leave[k]) * bend
                    x = left + (right - left) * t
                    edge = [*zip(x, upper, strict=True), *zip(x[::-1], (upper + count * unit)[::-1], strict=True)]
                    draw.polygon([(scale * a, scale * b) for a, b in edge], fill=(*colour(k, one), 90))
                    leave[k] += count * unit
                    enter[to] += count * unit
    font = ImageFont.load_default(12 * scale)
    for number, (name, division) in enumerate(columns):
        left = _MARGIN + number * step
        at = left if number < len(columns) - 1 else left + 14 - draw.textlength(name, font) / scale
        draw.text((scale * at, scale * 4), name, DIM, font)
        for k, size in enumerate([*division.sizes, division.num_left_out]):
            if size:
                upper = places[number][k]
                box = (left, upper, left + 14, max(upper + size * unit, upper + 1))
                draw.rectangle([scale * side for side in box], fill=colour(k, division))
    whole = Image.new("RGB", (width, head.height + height), "white")
    whole.paste(head)
    whole.paste(sheet.resize((width, height), Image.Resampling.LANCZOS), (0, head.height))
    return whole


def _head(title: str, caption: str, width: int) -> Image.Image:
    """A title with a caption below it, which is broken into lines."""
    bold, font = ImageFont.load_default(18), ImageFont.load_default(13)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > width - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    head = Image.new("RGB", (width, 40 + 18 * len(lines)), "white")
    draw = ImageDraw.Draw(head)
    draw.text((_MARGIN, 8), _fitted(draw, title, bold, width - 2 * _MARGIN), "black", bold, stroke_width=0.3)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, 34 + 18 * number), line, DIM, font)
    return head


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> str:
    """The text, cut where it is wider."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."


def _thumbnail(images: LabeledSet, index: int, size: int) -> Image.Image:
    image = images.open(int(index))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square
