"""The demo: ordinary metric learning and divide and conquer on the bundled icons, compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.data.read import read
from divcon.division import Division
from divcon.errors import ConfigError
from divcon.evaluation.bootstrap import bootstrap_difference
from divcon.evaluation.neighbours import nearest
from divcon.evaluation.protocol import evaluate
from divcon.evaluation.task import Exclusion
from divcon.runs.display import Bar
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.run import run

RIGHT, WRONG, QUERY = (30, 150, 70), (205, 45, 45), (90, 90, 90)


def recall_curve(path: str | Path, runs: dict[str, list[dict[str, Any]]], untrained: float | None) -> None:
    """Draw Recall@1 on validation classes by epoch, a line a run, as PNG or SVG.

    Args:
        runs: the lines of ``metrics.jsonl`` by the run's name.
        untrained: Recall@1 of the backbone's features on the same classes; None draws no line.

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
    if untrained is not None:
        axes.axhline(100 * untrained, color="0.5", linestyle="--", label="untrained features")
    for color, (name, lines) in zip(("#1f6fb4", "#d9541e", "#2a9d5c", "#8e44ad"), runs.items(), strict=False):
        validated = [line for line in lines if "validation" in line]
        epochs = [line["epoch"] for line in validated]
        scores = [100 * line["validation"]["recall_at_1"] for line in validated]
        axes.plot(epochs, scores, "o-", color=color, label=name)
        conquered = [line["epoch"] for line in lines if line["phase"] == "finetune"]
        if conquered and conquered[0] > 0:
            axes.axvline(conquered[0] - 0.5, color=color, linestyle=":", label=f"{name} conquers")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("Recall@1 on validation classes, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=140)


def cluster_sheet(
    path: str | Path, images: LabeledSet, division: Division, *, columns: int = 12, rows: int = 4, tile: int = 48
) -> None:
    """Draw the images of each learner: a block of ``rows`` x ``columns`` images, spread evenly over its cluster in the
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
    images: LabeledSet,
    embeddings: np.ndarray,
    queries: Sequence[int],
    *,
    neighbours: int = 8,
    tile: int = 64,
) -> None:
    """Draw queries, a row each, with their nearest neighbours among all other images: green frames for those of the
    query's class, red for the others.

    Args:
        embeddings: (N, D) float32, of ``images``.
        queries: indices into ``images``.
    """
    rows = np.asarray(queries)
    exclude = Exclusion.itself(len(images)).take(rows)
    indices, _ = nearest(embeddings[rows], embeddings, neighbours, exclude=exclude)
    label_width, frame = 150, 3
    sheet = Image.new("RGB", (label_width + (neighbours + 1) * tile + 10, len(queries) * tile), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for row, query in enumerate(queries):
        draw.text((6, row * tile + tile // 2 - 7), images.label_name(query)[:22], "black", font)
        for column, index in enumerate([query, *indices[row].tolist()]):
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


def _thumbnail(images: LabeledSet, index: int, size: int) -> Image.Image:
    image = images.open(int(index))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


BACKBONE = "tf_efficientnet_lite0"
METHODS = {"single": 1, "slices": 4}
"""The methods that are compared, and the number of learners of each."""


def demo(out: Path, *, epochs: int, seed: int, workers: int, notes: Console) -> dict[str, Any]:
    """Train both methods for ``epochs``, keep the best epoch of each on validation classes, and evaluate both and the
    untrained features on the test classes; pictures go to ``out``. A demo that was stopped resumes.

    Returns:
        By name, ``recall_at_1``, ``recall_at_1_interval`` (95 %), ``r_precision``, ``map_at_r``; and under
        ``difference`` the 95 % interval of Recall@1 of slices minus single, over the same classes.

    Raises:
        RunError: ``out`` holds something else, or a demo with other settings.
        WeightsError: the backbone's weights are not installed.
    """
    data = read("demo")
    out.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, Any]] = {}
    for method, learners in METHODS.items():
        config = RunConfig(
            ModelConfig(method=method, num_learners=learners, backbone=BACKBONE, image_size=64),  # type: ignore[arg-type]
            TrainConfig(epochs=epochs, seed=seed, workers=workers),
            DataConfig(validation_fraction=0.2),
        )
        notes.rule(f"{method}: {learners} learner{'s' * (learners > 1)}")
        with Bar(notes) as bar:
            model = run(data, out / method, config, resume=True, source={"data": "demo", "root": None}, display=bar)
        scores[method] = evaluate(model, data, clustering=False, per_query=True, baselines=not scores)
        # The same for both methods, before training.
        scores.setdefault("untrained features", scores[method].get("baselines", {}).get("pretrained_features"))

    held = data.with_validation(0.2, seed)
    lines = {method: RunFolder(out / method).lines() for method in METHODS}
    validated = RunFolder(out / "single").baselines_of(kept_epoch(lines["single"])) or {}
    pretrained = validated.get("baselines", {}).get("pretrained_features", {})
    recall_curve(out / "recall_by_epoch.png", lines, pretrained.get("recall_at_1"))
    divided = [line["epoch"] for line in lines["slices"] if line["redivided"] and line["phase"] != "finetune"]
    if divided:
        division = Division.load(out / "slices" / "divisions" / f"epoch_{divided[-1]:04d}.safetensors")
        cluster_sheet(out / "clusters.png", held.train, division)
    shown = np.random.default_rng(seed).choice(len(data.query), 12, replace=False)
    # The last of the methods is slices.
    neighbour_sheet(out / "neighbours.png", data.query, model.encode(data.query), shown.tolist())

    hits = {method: np.array(scores[method]["per_query"]["recall_at_1"]) for method in METHODS}
    low, high = bootstrap_difference(hits["slices"], hits["single"], data.query.labels)
    shown_of = ("recall_at_1", "recall_at_1_interval", "r_precision", "map_at_r")
    return {
        **{name: {score: scores[name][score] for score in shown_of} for name in ("untrained features", *METHODS)},
        "difference": [low, high],
    }


def print_scores(result: dict[str, Any], out: Path, console: Console) -> None:
    """The demo's table, and where its pictures are."""
    table = Table(title="Classes never seen in training", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in ("Recall@1 %", "95 % interval", "R-precision %", "MAP@R %"):
        table.add_column(name, justify="right")
    for name, scores in result.items():
        if name != "difference":
            low, high = scores["recall_at_1_interval"]
            table.add_row(
                name,
                f"{100 * scores['recall_at_1']:.1f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                f"{100 * scores['r_precision']:.1f}",
                f"{100 * scores['map_at_r']:.1f}",
            )
    console.print(table)
    low, high = result["difference"]
    console.print(
        f"Recall@1 of slices less single: {100 * low:+.1f} to {100 * high:+.1f} points (95 % interval over the test "
        "classes, one seed)"
    )
    console.print(f"pictures: {', '.join(str(path) for path in sorted(out.glob('*.png')))}")
