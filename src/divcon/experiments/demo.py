"""The demo: the default settings on the bundled icons, and four learners beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from divcon.config.settings import ModelConfig, RunConfig, TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.data.read import read
from divcon.division import Division
from divcon.evaluation.baselines import pretrained_features
from divcon.evaluation.bootstrap import bootstrap_difference
from divcon.evaluation.protocol import evaluate
from divcon.evaluation.subspaces import normalized
from divcon.experiments.curves import draw_recall
from divcon.models import EmbeddingModel
from divcon.runs.display import Bar, print_table
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.report import add_test_scores
from divcon.runs.run import run
from divcon.runs.sheets import choose_examples, cluster_sheet, neighbour_sheet

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
    draw_recall(lines, out / "recall_by_epoch.png", untrained=pretrained.get("recall_at_1"))
    for name in arms:
        divided = [line["epoch"] for line in lines[name] if line["redivided"] and line["phase"] != "finetune"]
        if divided:
            division = Division.load(out / name / "divisions" / f"epoch_{divided[-1]:04d}.safetensors")
            saved = RunFolder(out / name).read()
            assert saved is not None
            held = data.with_validation(saved[0].data.validation_fraction, seed)
            cluster_sheet(held.train, division).save(out / "clusters.png")
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
    neighbour_sheet(images, sheets, examples, title=title, caption=caption, words=words).save(path)


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
