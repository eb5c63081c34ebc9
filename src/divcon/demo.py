"""The demo: one metric and divide and conquer on the bundled icons, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from divcon.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from divcon.data.image_set import Benchmark
from divcon.data.read import read
from divcon.display import Bar
from divcon.divide import Division
from divcon.evaluate.intervals import bootstrap_difference, bootstrap_interval
from divcon.evaluate.retrieval import retrieval_metrics
from divcon.evaluate.subspaces import normalized
from divcon.models import EmbeddingModel
from divcon.report.pictures import cluster_sheet, neighbour_sheet, recall_curve
from divcon.run import run
from divcon.run_folder import RunFolder

BACKBONE = "tf_efficientnet_lite0"
METHODS = {"single": 1, "slices": 4}
"""The methods that are compared, and the number of learners of each."""


def demo(out: Path, *, epochs: int, seed: int, workers: int, notes: Console) -> dict[str, Any]:
    """Train both methods for ``epochs``, keep each one's best epoch on validation classes, and score both and the
    untrained features on the test classes; pictures go to ``out``. One that was stopped goes on.

    Returns:
        By name, ``recall_at_1``, its 95 % interval, ``r_precision``, ``map_at_r``; and under ``difference`` the
        interval of Recall@1 of slices less single, over the same classes.

    Raises:
        RunError: ``out`` holds something else, or a demo with other settings.
        WeightsError: the backbone's weights are not installed.
    """
    data = read("demo")
    untrained = EmbeddingModel(BACKBONE, image_size=64)
    features = normalized(untrained.features(data.query))
    scores = {"untrained features": _scores(features, data)}
    out.mkdir(parents=True, exist_ok=True)

    embeddings: dict[str, np.ndarray] = {}
    for method, learners in METHODS.items():
        config = RunConfig(
            ModelConfig(method=method, num_learners=learners, backbone=BACKBONE, image_size=64),  # type: ignore[arg-type]
            TrainConfig(epochs=epochs, seed=seed, workers=workers),
            DataConfig(validation_fraction=0.2),
        )
        notes.rule(f"{method}: {learners} learner{'s' * (learners > 1)}")
        with Bar(notes) as bar:
            model = run(data, out / method, config, resume=True, source={"data": "demo", "root": None}, display=bar)
        embeddings[method] = model.encode(data.query)
        scores[method] = _scores(embeddings[method], data)

    held = data.with_validation(0.2, seed)
    assert held.validation is not None
    judged = Benchmark("validation", held.train, held.validation, held.validation)
    validation = _scores(normalized(untrained.features(judged.query)), judged)
    lines = {method: RunFolder(out / method).lines() for method in METHODS}
    recall_curve(out / "recall_by_epoch.png", lines, validation["recall_at_1"])
    divided = [line["epoch"] for line in lines["slices"] if line["redivided"] and line["phase"] != "finetune"]
    if divided:
        division = Division.load(out / "slices" / "divisions" / f"epoch_{divided[-1]:04d}.safetensors")
        cluster_sheet(out / "clusters.png", held.train, division)
    shown = np.random.default_rng(seed).choice(len(data.query), 12, replace=False)
    neighbour_sheet(out / "neighbours.png", data.query, embeddings["slices"], shown.tolist())

    hits = {name: np.array(result.pop("hits")) for name, result in scores.items()}
    low, high = bootstrap_difference(hits["slices"], hits["single"], data.query.labels)
    return {**scores, "difference": [low, high]}


def print_scores(result: dict[str, Any], out: Path, console: Console) -> None:
    """The demo's table, and where its pictures are."""
    table = Table(title="Classes never seen in training", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in ("Recall@1 %", "95 % interval", "R-precision %", "MAP@R %"):
        table.add_column(name, justify="right")
    for name, scores in result.items():
        if name != "difference":
            low, high = scores["interval"]
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


def _scores(embeddings: np.ndarray, data: Benchmark) -> dict[str, Any]:
    labels = data.query.labels
    result = retrieval_metrics(embeddings, labels, per_query=True)
    hits = result["per_query"]["recall_at_1"]
    return {
        **{name: result[name] for name in ("recall_at_1", "r_precision", "map_at_r")},
        "interval": list(bootstrap_interval(hits, labels)),
        "hits": hits,
    }
