"""The demo: the default settings on the bundled icons, and four learners beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from divcon.config.settings import ModelConfig, RunConfig, TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.data.read import read
from divcon.division import Division
from divcon.evaluation.baselines import pretrained_features
from divcon.evaluation.bootstrap import bootstrap_difference
from divcon.evaluation.metrics import queries_in_words
from divcon.evaluation.neighbours import nearest
from divcon.evaluation.protocol import evaluate
from divcon.evaluation.retrieval import retrieval_metrics
from divcon.evaluation.subspaces import normalized
from divcon.evaluation.task import Exclusion
from divcon.experiments import drawing
from divcon.models import EmbeddingModel
from divcon.runs.display import Bar, print_table
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.report import add_test_scores
from divcon.runs.run import run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, QUERY = (30, 150, 70), (205, 45, 45), (90, 90, 90)
DIM = (90, 98, 110)
_MARGIN, _FRAME, _GAP = 12, 2, 20
"""Pixels: around a sheet, of a frame, and between blocks of neighbours."""


def recall_curve(path: str | Path, runs: dict[str, list[dict[str, Any]]], untrained: float | None) -> None:
    """Draw Recall@1 on validation classes by epoch, a line a run, as PNG or SVG.

    Args:
        runs: the lines of ``metrics.jsonl`` by the run's name.
        untrained: Recall@1 of the backbone's features on the same classes; None draws no line.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    _recall_figure(runs, untrained).savefig(path, dpi=140)


def _recall_figure(runs: dict[str, list[dict[str, Any]]], untrained: float | None) -> Figure:
    wide, height, labels = 7.6, 4.4, drawing.label_inches(["pretrained features 00.0"])
    figure = drawing.figure(wide, height)
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_axes((0.78 / wide, 0.55 / height, (wide - 0.78 - labels) / wide, (height - 1.45) / height))
    drawing.finish(axes, "epoch", "Recall@1 on validation classes, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends, counts, conquers, bands = [], {}, {}, False
    for number, (name, lines) in enumerate(runs.items()):
        validated = [line for line in lines if "validation" in line]
        if not validated:
            continue
        style = drawing.style(number)
        epochs = [line["epoch"] for line in validated]
        scores = [100 * line["validation"]["recall_at_1"] for line in validated]
        axes.plot(epochs, scores, **style, markevery=max(1, len(epochs) // 12))
        if all("recall_at_1_interval" in line["validation"] for line in validated):
            low, high = (100 * np.array([line["validation"]["recall_at_1_interval"] for line in validated])).T
            axes.fill_between(epochs, low, high, color=style["color"], alpha=0.12, linewidth=0)
            bands = True
        ends.append(drawing.End(f"{name} {scores[-1]:.1f}", epochs[-1], scores[-1], style))
        counts = validated[-1]["validation"]
        conquered = [line["epoch"] for line in lines if line["phase"] == "finetune"]
        if conquered and conquered[0] > 0:
            conquers[name] = conquered[0] - 0.5
            axes.axvline(conquered[0] - 0.5, color=style["color"], linestyle=(0, (1, 2)), linewidth=1)
    if untrained is not None:
        last = max((end.x for end in ends), default=0)
        style = {"color": drawing.GREY, "linestyle": (0, (1, 2)), "linewidth": 1.4}
        axes.plot([0, last], [100 * untrained] * 2, **style)
        ends.append(drawing.End(f"pretrained features {100 * untrained:.1f}", last, 100 * untrained, style))
    drawing.label_ends(axes, ends)
    for name, epoch in conquers.items():
        axes.annotate(
            f"{name} conquers", (epoch, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8,
            color=drawing.GREY, xytext=(0, 2), textcoords="offset points",
        )  # fmt: skip
    queries = (
        f"{queries_in_words(counts)} queries in {counts['num_classes']:,} classes" if "num_classes" in counts else ""
    )
    about = [f"{queries} that are not trained on." if queries else "", "A band is the 95 % interval." if bands else ""]
    about.append("The number is the score at the end, in percent.")
    drawing.title(figure, "Recall@1 on validation classes, as training goes on", " ".join(filter(None, about)))
    return figure


def cluster_sheet(
    path: str | Path, images: LabeledSet, division: Division, *, columns: int = 12, rows: int = 4, tile: int = 48
) -> None:
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
    sheet.save(path)


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
    path: str | Path,
    images: LabeledSet,
    embeddings: Mapping[str, np.ndarray],
    examples: Sequence[Examples],
    *,
    title: str,
    caption: str,
    words: Mapping[int, str] | None = None,
    neighbours: int = 5,
    tile: int = 60,
) -> None:
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
    sheet.save(path)


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
        scores[name] = evaluate(models[name], data, clustering=False, per_query=True, baselines=True)
        add_test_scores(out / name, scores[name])
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
    _draw_neighbours(out / "neighbours.png", data.query, models[TRAINED], seed)

    shown_of = ("recall_at_1", "recall_at_1_interval", "r_precision", "map_at_r")
    result: dict[str, Any] = {name: {score: of[score] for score in shown_of} for name, of in scores.items()}
    if compare:
        hits = {name: np.array(scores[name]["per_query"]["recall_at_1"]) for name in arms}
        result["difference"] = list(bootstrap_difference(hits[DIVIDED], hits[TRAINED], data.query.labels))
    return result


def _draw_neighbours(path: Path, images: LabeledSet, model: EmbeddingModel, seed: int) -> None:
    before, after = normalized(pretrained_features(model, [images])[0]), model.encode(images)
    examples, (was, now) = choose_examples(images, before, after, seed=seed)
    words = {
        query: f"MAP@R {100 * was['map_at_r'][query]:.1f} to {100 * now['map_at_r'][query]:.1f} %"
        for group in examples
        for query in group.queries
    }
    recalls = [100 * float(np.nanmean(scores["recall_at_1"])) for scores in (was, now)]
    sheets = {
        f"before training: Recall@1 {recalls[0]:.1f} %": before,
        f"after training: Recall@1 {recalls[1]:.1f} %": after,
    }
    caption = (
        f"{len(images):,} test images of {len(images.classes):,} classes, none of which was trained on. Each query "
        "searches among all other images: its five nearest with the pretrained features, and with the trained "
        "embedding. Green and tick: of the query's class; red and cross: of another. One query a class, of classes "
        "with more than five images."
    )
    title = "What training has learned: five nearest neighbours before and after"
    neighbour_sheet(path, images, sheets, examples, title=title, caption=caption, words=words)


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
