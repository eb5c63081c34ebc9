"""One arm on one validation fold of the train classes: its embedding and its pooled features, with and without averaged
weights, after every few epochs. Settings are chosen by this; the test classes are never read.

    python benchmarks/folds.py slices-distilled icons data/icons-2000 --size 32 --epochs 60 \
        --train '{"distill_weight": 50}' --out docs/results/folds.json
    python benchmarks/folds.py single icons data/icons-2000 --size 32 --epochs 60 --model '{"method": "single"}' \
        --out docs/results/folds.json
    python benchmarks/folds.py --table docs/results/folds.json

Without other settings an arm is ``slices`` with K 4, D 512 and a loss on the full embedding, no distillation, a head of
random weights. The averages are moving averages over epochs, beside the training, which they do not change. A result
that is in the file is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import divcon as dc
from divcon.data.benchmark import folds_of
from divcon.models import start_as_pca
from divcon.runtime.files import atomic_write
from divcon.training.averaging import WeightAverage

KEYS = ("arm", "data", "fold", "seed", "epochs", "size")


def scores(model: dc.EmbeddingModel, images: dc.LabeledSet) -> dict[str, list[float]]:
    """Recall@1 and MAP@R, in percent, of the embedding and of the pooled features."""
    features = model.features(images)
    lengths = np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    both = {"embedding": model.embed(features), "features": features / lengths}
    results = {name: dc.retrieval_metrics(embeddings, images.labels) for name, embeddings in both.items()}
    return {name: [round(100 * r[metric], 2) for metric in ("recall_at_1", "map_at_r")] for name, r in results.items()}


def train(data: dc.Benchmark, options: argparse.Namespace) -> dict[str, Any]:
    """The curve of an arm."""
    fold = folds_of(data, 3, 0)[options.fold]
    assert fold.validation is not None
    vectors = fold.train.vectors
    settings = {"method": "slices", "num_learners": 4, "embedding_dim": 512} | json.loads(options.model)
    if settings["method"] == "single":
        settings["num_learners"] = 1
    torch.manual_seed(options.seed)
    if vectors is None:
        model = dc.EmbeddingModel(options.backbone, image_size=options.size, **settings)
    else:
        model = dc.EmbeddingModel("none", vector_dim=vectors.shape[1], **settings)
    if options.head_init == "pca":
        start_as_pca(model, fold.train, seed=options.seed)
    more = {"distill_weight": 0.0, "batch_size": 80, "images_per_class": 4} | json.loads(options.train)
    config = dc.TrainConfig(epochs=options.epochs, seed=options.seed, workers=0, ema_decay=0.0, **more)
    average, seconds = WeightAverage(model, 0.8), 0.0
    curve: list[dict[str, Any]] = [{"epochs": 0, **scores(model, fold.validation)}]
    for epoch in dc.train(model, fold.train, config):
        average.update()
        seconds += epoch.seconds_dividing + epoch.seconds_training
        done = epoch.number + 1
        if done % options.every == 0 or done == options.epochs:
            point = {"epochs": done, **scores(model, fold.validation)}
            with average.in_model():
                point |= {f"averaged_{name}": value for name, value in scores(model, fold.validation).items()}
            curve.append(point)
            print(options.arm, point, flush=True)
    return {"curve": curve, "seconds": round(seconds), "model": settings, "train": more, "head_init": options.head_init}


def table(runs: list[dict[str, Any]]) -> str:
    """Recall@1 / MAP@R, means over the last three points of each curve and over folds, as Markdown."""
    names = ("embedding", "features", "averaged_embedding", "averaged_features")
    lines = ["| data | arm | folds | embedding | its features | averaged: embedding | features |", "|---" * 7 + "|"]
    for data, arm in dict.fromkeys((run["data"], run["arm"]) for run in runs):
        these = [run for run in runs if (run["data"], run["arm"]) == (data, arm)]
        cells = []
        for name in names:
            ends = [np.mean([point[name] for point in run["curve"][1:][-3:]], axis=0) for run in these]
            cells.append(" / ".join(f"{value:.1f}" for value in np.mean(ends, axis=0)))
        lines.append(f"| {data} | {arm} | {len(these)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", nargs="?", help="its name in the results")
    parser.add_argument("data", nargs="*", help="what `divcon train` takes")
    parser.add_argument("--model", default="{}", help="settings of divcon.ModelConfig, as JSON")
    parser.add_argument("--train", default="{}", help="settings of divcon.TrainConfig, as JSON")
    parser.add_argument("--head-init", choices=("random", "pca"), default="random")
    parser.add_argument("--fold", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--every", type=int, default=4, help="epochs between two points of the curve (default: 4)")
    parser.add_argument("--size", type=int, default=64, help="of images, in pixels (default: 64)")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--out", type=Path, help="the results, as JSON")
    parser.add_argument("--table", type=Path, help="print the table of these results, and train nothing")
    options = parser.parse_args()
    if options.table is not None:
        print(table(json.loads(options.table.read_text())["runs"]))
        return
    if options.arm is None or not options.data or options.out is None:
        parser.error("an arm, data and --out are needed")
    key = {"arm": options.arm, "data": Path(options.data[-1]).name} | {
        name: getattr(options, name) for name in KEYS if name not in ("arm", "data")
    }
    runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    if any(all(run[name] == value for name, value in key.items()) for run in runs):
        return
    result = key | train(dc.read(*options.data), options)
    runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else []  # others may have written
    with atomic_write(options.out) as beside:
        beside.write_text(json.dumps({"runs": [*runs, result]}) + "\n")


if __name__ == "__main__":
    main()
