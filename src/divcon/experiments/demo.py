"""The demo: the default settings on the bundled icons, and four learners beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from divcon.config.settings import ModelConfig, RunConfig, TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.data.read import read
from divcon.division import Division
from divcon.errors import ConfigError
from divcon.evaluation.baselines import pretrained_features
from divcon.evaluation.bootstrap import bootstrap_difference
from divcon.evaluation.neighbours import nearest
from divcon.evaluation.protocol import evaluate
from divcon.evaluation.subspaces import normalized
from divcon.evaluation.task import Exclusion
from divcon.models import EmbeddingModel
from divcon.runs.display import Bar, print_table
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
    axes.set_title("On validation classes, as training goes on", loc="left", fontsize=11)
    label: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    last = max((line["epoch"] for lines in runs.values() for line in lines), default=0)
    if untrained is not None:
        axes.plot([0, last], [100 * untrained] * 2, color="0.45", linestyle=(0, (1, 2)))
        axes.annotate("pretrained\nfeatures", (last, 100 * untrained), color="0.45", **label)
    styles = (("#1f6fb4", "-"), ("#d9541e", "--"), ("#2a9d5c", "-."), ("#8e44ad", (0, (5, 1, 1, 1, 1, 1))))
    for (color, style), (name, lines) in zip(styles, runs.items(), strict=False):
        validated = [line for line in lines if "validation" in line]
        if not validated:
            continue
        epochs = [line["epoch"] for line in validated]
        scores = [100 * line["validation"]["recall_at_1"] for line in validated]
        axes.plot(epochs, scores, color=color, linestyle=style)
        axes.annotate(name, (epochs[-1], scores[-1]), color=color, **label)
        conquered = [line["epoch"] for line in lines if line["phase"] == "finetune"]
        if conquered and conquered[0] > 0:
            axes.axvline(conquered[0] - 0.5, color=color, linestyle=":", linewidth=1)
            axes.annotate(
                f"{name} conquers", (conquered[0] - 0.5, 0.02), xycoords=("data", "axes fraction"), color=color,
                xytext=(4, 0), textcoords="offset points",
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("Recall@1, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.25)
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
    embeddings: Mapping[str, np.ndarray],
    queries: Sequence[int],
    *,
    neighbours: int = 5,
    tile: int = 56,
) -> None:
    """Draw queries, a row each, and beside each its nearest neighbours among all other images, a block of columns for
    each embedding: those of the query's class have a green frame and a tick, the others a red frame and a cross.

    Args:
        embeddings: by the title of its block, (N, D) float32, of ``images``.
        queries: indices into ``images``.
    """
    rows = np.asarray(queries)
    exclude = Exclusion.itself(len(images)).take(rows)
    label_width, top, gap, frame = 130, 24, 16, 2
    block = neighbours * tile + gap
    sheet = Image.new("RGB", (label_width + tile + len(embeddings) * block, top + len(queries) * tile), "white")
    draw = ImageDraw.Draw(sheet)
    font, bold = ImageFont.load_default(12), ImageFont.load_default(14)

    def paste(index: int, left: int, row: int, mark: bool | None) -> None:
        color = QUERY if mark is None else RIGHT if mark else WRONG
        upper = top + row * tile
        draw.rectangle((left + 1, upper + 1, left + tile - 2, upper + tile - 2), outline=color, width=frame)
        sheet.paste(_thumbnail(images, index, tile - 12), (left + 6, upper + 6))
        if mark is not None:  # a shape beside the colour, for those who see no difference between the colours
            x, y = left + tile - 15, upper + 3
            draw.rectangle((x, y, x + 11, y + 11), fill=color)
            shape = [(x + 2, y + 6), (x + 5, y + 9), (x + 9, y + 2)] if mark else [(x + 2, y + 2), (x + 9, y + 9)]
            draw.line(shape, "white", 2)
            if not mark:
                draw.line([(x + 9, y + 2), (x + 2, y + 9)], "white", 2)

    for row, query in enumerate(queries):
        draw.text((6, top + row * tile + tile // 2 - 7), images.label_name(query)[:19], "black", font)
        paste(query, label_width, row, None)
    for number, (title, vectors) in enumerate(embeddings.items()):
        left = label_width + tile + number * block + gap
        draw.text((left + 1, 4), title, "black", bold)
        indices, _ = nearest(vectors[rows], vectors, neighbours, exclude=exclude)
        for row, query in enumerate(queries):
            for column, index in enumerate(indices[row].tolist()):
                if index >= 0:
                    paste(index, left + column * tile, row, bool(images.labels[index] == images.labels[query]))
    sheet.save(path)


def _thumbnail(images: LabeledSet, index: int, size: int) -> Image.Image:
    image = images.open(int(index))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


BACKBONE, SIZE = "tf_efficientnet_lite0", 32
TRAINED, DIVIDED = "trained", "divided"
ARMS: dict[str, dict[str, Any]] = {TRAINED: {}, DIVIDED: {"method": "slices", "num_learners": 4}}
"""The runs, by name of their folders, with the settings of the model that are not left to the default."""


def demo(
    out: Path,
    *,
    epochs: int = 0,
    seed: int = 0,
    compare: bool = False,
    workers: int = 0,
    notes: Console,
    reword: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Train with the default settings, evaluate on the test classes, and draw pictures to ``out``. A demo that was
    stopped resumes.

    Args:
        epochs: 0: as many as the data give, as in `divcon train`.
        compare: also train four learners, at the same budget.
        reword: applied to each line about settings before it is printed.

    Returns:
        By name, ``recall_at_1``, ``recall_at_1_interval`` (95 %), ``r_precision``, ``map_at_r``; with ``compare`` also
        under ``difference`` the 95 % interval of Recall@1 of the four learners less the default, over the same classes.

    Raises:
        RunError: ``out`` holds something else, or a demo with other settings.
        WeightsError: the backbone's weights are not installed.
    """
    data = read("demo")
    out.mkdir(parents=True, exist_ok=True)
    arms = {name: settings for name, settings in ARMS.items() if compare or name == TRAINED}
    scores: dict[str, dict[str, Any]] = {}
    models: dict[str, EmbeddingModel] = {}
    for name, settings in arms.items():
        config = RunConfig(
            ModelConfig(**settings, backbone=BACKBONE, image_size=SIZE),
            TrainConfig(epochs=epochs, seed=seed, workers=workers),
        )
        notes.rule("the default settings" if name == TRAINED else "four learners, at the same budget")
        source = {"data": "demo", "root": None}
        with Bar(notes, reword) as bar:
            models[name] = run(data, out / name, config, resume=True, source=source, display=bar)
        scores[name] = evaluate(models[name], data, clustering=False, per_query=True, baselines=name == TRAINED)
    scores = {"pretrained features": scores[TRAINED]["baselines"]["pretrained_features"], **scores}

    lines = {name: RunFolder(out / name).lines() for name in arms}
    validated = RunFolder(out / TRAINED).baselines_of(kept_epoch(lines[TRAINED])) or {}
    pretrained = validated.get("baselines", {}).get("pretrained_features", {})
    recall_curve(out / "recall_by_epoch.png", lines, pretrained.get("recall_at_1"))
    for name in arms:
        divided = [line["epoch"] for line in lines[name] if line["redivided"] and line["phase"] != "finetune"]
        if divided:
            division = Division.load(out / name / "divisions" / f"epoch_{divided[-1]:04d}.safetensors")
            saved = RunFolder(out / name).read()
            assert saved is not None
            held = data.with_validation(saved[0].data.validation_fraction, seed)
            cluster_sheet(out / "clusters.png", held.train, division)
    sizes = np.bincount(data.query.labels)
    enough = np.flatnonzero(sizes[data.query.labels] > 5)  # of their class to fill a row
    shown = np.random.default_rng(seed).choice(enough, 12, replace=False)
    before = pretrained_features(models[TRAINED], [data.query])[0]
    after = models[TRAINED].encode(data.query)
    sheets = {"before training": normalized(before), "after training": after}
    neighbour_sheet(out / "neighbours.png", data.query, sheets, shown.tolist())

    shown_of = ("recall_at_1", "recall_at_1_interval", "r_precision", "map_at_r")
    result: dict[str, Any] = {name: {score: of[score] for score in shown_of} for name, of in scores.items()}
    if compare:
        hits = {name: np.array(scores[name]["per_query"]["recall_at_1"]) for name in arms}
        result["difference"] = list(bootstrap_difference(hits[DIVIDED], hits[TRAINED], data.query.labels))
    return result


def print_scores(result: dict[str, Any], out: Path, console: Console) -> None:
    """The demo's table, and where its pictures are."""
    rows = []
    for name, scores in result.items():
        if name != "difference":
            low, high = (f"{100 * end:.1f}" for end in scores["recall_at_1_interval"])
            recall, precision, mean = (
                f"{100 * scores[score]:.1f}" for score in ("recall_at_1", "r_precision", "map_at_r")
            )
            rows.append([name, recall, f"{low} to {high}", precision, mean])
    console.print("Classes that training did not use, in percent:", markup=False)
    print_table(console, ["", "Recall@1", "95 % interval", "R-precision", "MAP@R"], rows)
    if "difference" in result:
        low, high = result["difference"]
        console.print(
            f"Recall@1 of divided less trained: {100 * low:+.1f} to {100 * high:+.1f} points (95 % interval over the "
            "test classes, one seed)"
        )
    console.print(f"pictures: {', '.join(str(path) for path in sorted(out.glob('*.png')))}")
