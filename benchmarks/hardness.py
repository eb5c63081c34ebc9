"""How much harder dividing makes the negatives: batches of all data against batches of one cluster.

    python benchmarks/hardness.py runs/single runs/masks --data icons data/icons-2000 --json hardness.json

The classes that each run was trained on are embedded whole, without augmentation, by the trained model, its features
are divided anew, and batches are drawn as in training. `nearest negative` is the mean cosine between an image and the
most similar one of another class in its batch; `active` is the share of negative pairs that the default margin loss
still pushes apart (distance below beta + margin = 1.4, cosine above 0.02); `positive` is the mean cosine of positive
pairs in the batch, and `pairs kept` the share of all positive pairs that any batch can hold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import divcon as dc
from divcon.division import Division, divide
from divcon.runs.folder import RunFolder
from divcon.training.sampler import plan_epoch

WAYS = [("all data", 1), *((by, k) for by in ("image", "class") for k in (4, 8, 16))]
ACTIVE = 1 - 1.4**2 / 2


def of_batches(embeddings: torch.Tensor, labels: np.ndarray, division: Division, seed: int) -> dict[str, float]:
    """Means over an epoch's batches; ``embeddings`` (N, D) of length one, ``labels`` (N,) from 0 on."""
    plan = plan_epoch(division, labels, batch_size=80, images_per_class=4, seed=seed, epoch=0)
    nearest, active, positive = [], [], []
    for batch in plan.batches:
        chosen = np.unique(batch.indices)
        cosines = (embeddings[chosen] @ embeddings[chosen].T).numpy()
        same = labels[chosen, None] == labels[chosen]
        nearest.append(np.where(same, -1, cosines).max(1).mean())
        active.append((cosines[~same] > ACTIVE).mean())
        positive.append(cosines[same & ~np.eye(len(chosen), dtype=bool)].mean())
    means = (float(np.mean(values)) for values in (nearest, active, positive))
    return dict(zip(("nearest_negative", "active", "positive"), means, strict=True))


def measure(run: Path, data: dc.Benchmark, seed: int) -> list[dict]:
    held_out = set(RunFolder(run).classes_of("validation"))
    images = data.without_validation().train
    images = images.subset(np.array([name not in held_out for name in images.label_names])[images.labels])
    model = dc.EmbeddingModel.load(run)
    features = model.features(images)
    embeddings = torch.from_numpy(model.embed(features))
    labels = np.unique(images.labels, return_inverse=True)[1].astype(np.int64)
    rows = []
    for by, k in WAYS:
        division = Division.whole(labels) if k == 1 else divide(features, labels, k, by=by, seed=seed)
        values = of_batches(embeddings, labels, division, seed)
        rows.append({"run": str(run), "by": by, "k": k, "kept_pairs": division.kept_pairs(labels)} | values)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument(
        "--data", nargs="+", required=True, help="the data that they were trained on, as in `divcon train`"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of divisions and batches (default: 0)")
    options = parser.parse_args()

    data = dc.read(*options.data)
    rows = [row for run in options.runs for row in measure(run, data, options.seed)]
    table = Table("run", "batches of", "pairs kept", "nearest negative", "active", "positive")
    for row in rows:
        of = "all data" if row["k"] == 1 else f"{row['k']} clusters by {row['by']}"
        numbers = (f"{row[name]:.2f}" for name in ("nearest_negative", "active", "positive"))
        table.add_row(row["run"], of, f"{100 * row['kept_pairs']:.0f} %", *numbers)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
