"""Pictures of a run: its scores by epoch, what the learners were given, and what queries find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from divcon.data.image_set import ImageSet
from divcon.divide import Division
from divcon.errors import ConfigError
from divcon.evaluate.exclusion import Exclusion
from divcon.evaluate.neighbours import nearest

RIGHT, WRONG, QUERY = (30, 150, 70), (205, 45, 45), (90, 90, 90)


def recall_curve(path: str | Path, runs: dict[str, list[dict[str, Any]]], untrained: float) -> None:
    """Draw Recall@1 on validation classes by epoch, a line a run, as PNG or SVG.

    Args:
        runs: the lines of ``metrics.jsonl`` by the run's name.
        untrained: Recall@1 of the backbone's features on the same classes.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ConfigError('the curve is drawn with matplotlib: pip install "divcon[demo]"') from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(100 * untrained, color="0.5", linestyle="--", label="untrained features")
    for color, (name, lines) in zip(("#1f6fb4", "#d9541e", "#2a9d5c", "#8e44ad"), runs.items(), strict=False):
        judged = [line for line in lines if "validation" in line]
        epochs = [line["epoch"] + 1 for line in judged]
        axes.plot(epochs, [100 * line["validation"]["recall_at_1"] for line in judged], "o-", color=color, label=name)
        conquered = [line["epoch"] for line in lines if line["phase"] == "finetune"]
        if conquered and conquered[0] > 0:
            axes.axvline(conquered[0] + 0.5, color=color, linestyle=":", label=f"{name} conquers")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("Recall@1 on validation classes, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=140)


def cluster_sheet(
    path: str | Path, images: ImageSet, division: Division, *, columns: int = 12, rows: int = 4, tile: int = 48
) -> None:
    """Draw what each learner was given: a block of ``rows`` x ``columns`` images, spread evenly over its cluster in the
    data's order."""
    font = ImageFont.load_default(14)
    block = rows * tile + 26
    sheet = Image.new("RGB", (columns * tile, division.num_learners * block), "white")
    draw = ImageDraw.Draw(sheet)
    for learner in range(division.num_learners):
        top = learner * block
        members = division.indices(learner)
        classes = len(np.unique(images.labels[members]))
        draw.text((4, top + 5), f"learner {learner}: {len(members):,} images of {classes:,} classes", "black", font)
        shown = members[np.linspace(0, len(members) - 1, min(len(members), rows * columns)).astype(int)]
        for place, index in enumerate(shown):
            position = (place % columns * tile, top + 26 + place // columns * tile)
            sheet.paste(_thumbnail(images, index, tile - 4), (position[0] + 2, position[1] + 2))
    sheet.save(path)


def neighbour_sheet(
    path: str | Path,
    images: ImageSet,
    embeddings: np.ndarray,
    queries: Sequence[int],
    *,
    neighbours: int = 8,
    tile: int = 64,
) -> None:
    """Draw queries, a row each, with their nearest neighbours among all the other images: those of the query's class
    framed green, the others red.

    Args:
        embeddings: (N, D) float32, of ``images``.
        queries: indices into ``images``.
    """
    rows = np.asarray(queries)
    exclude = Exclusion.itself(len(images)).take(rows)
    found, _ = nearest(embeddings[rows], embeddings, neighbours, exclude=exclude)
    label_width, frame = 150, 3
    sheet = Image.new("RGB", (label_width + (neighbours + 1) * tile + 10, len(queries) * tile), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for row, query in enumerate(queries):
        draw.text((6, row * tile + tile // 2 - 7), images.label_name(query)[:22], "black", font)
        for column, index in enumerate([query, *found[row].tolist()]):
            if index < 0:
                continue
            left = label_width + column * tile + (10 if column else 0)
            right = images.labels[index] == images.labels[query]
            color = QUERY if column == 0 else RIGHT if right else WRONG
            draw.rectangle(
                (left + 1, row * tile + 1, left + tile - 2, row * tile + tile - 2), outline=color, width=frame
            )
            sheet.paste(_thumbnail(images, index, tile - 12), (left + 6, row * tile + 6))
    sheet.save(path)


def _thumbnail(images: ImageSet, index: int, size: int) -> Image.Image:
    image = images.open(int(index))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square
