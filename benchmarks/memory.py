"""How alike are divisions on remembered and on fresh features, and what does either cost?

    python benchmarks/memory.py icons data/icons-2000 --backbone tf_efficientnet_lite0 --size 32 --epochs 15 \
        --out docs/results/memory-icons-2000.json

A model is trained as ever, divided on fresh features (``--divide-on fresh``), with a memory beside that sees what
training sees. At each division after the first the images are also divided on the memory, from the same seed of
k-means, and on the fresh features from another seed: the NMI of that with the division itself is what k-means alone
leaves open. `images` is the share of images that the memory had to embed. The test classes are not looked at.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score

import divcon as dc
from divcon.division import Division, divide
from divcon.runtime.context import Context
from divcon.training import loop
from divcon.training.feature_bank import FeatureBank


def likeness(division: Division, other: Division) -> float:
    """NMI over the images that both have."""
    both = (division.learner >= 0) & (other.learner >= 0)
    return float(normalized_mutual_info_score(division.learner[both], other.learner[both]))


class Watched(FeatureBank):
    """Remembers, but gives fresh features, and notes what a division on the memory would have been."""

    labels: np.ndarray
    seed: int
    rows: list[dict[str, Any]]

    def __init__(self, num_images: int, num_features: int, device: torch.device, *, enabled: bool) -> None:
        super().__init__(num_images, num_features, device, enabled=True)

    def features_to_divide(self, model: Any, loader: Any, epoch: int, context: Context) -> np.ndarray:
        unseen = float((~self._has_feature).mean())
        began = time.perf_counter()
        remembered = super().features_to_divide(model, loader, epoch, context)
        between = time.perf_counter()
        every = np.arange(len(remembered))
        fresh = model.pool(loader.evaluation_batches(every, epoch), np.empty_like(remembered))
        ended = time.perf_counter()
        if epoch:
            learners = model.num_learners
            division = divide(fresh, self.labels, learners, seed=(self.seed, epoch))
            other = divide(fresh, self.labels, learners, seed=(self.seed + 1, epoch))
            memory = divide(remembered, self.labels, learners, seed=(self.seed, epoch))
            row = {
                "seed": self.seed,
                "epoch": epoch,
                "images": unseen,
                "nmi_memory": likeness(division, memory),
                "nmi_other_seed": likeness(division, other),
                "kept_pairs_fresh": division.kept_pairs(self.labels),
                "kept_pairs_memory": memory.kept_pairs(self.labels),
                "seconds_memory": between - began,
                "seconds_fresh": ended - between,
            }
            self.rows.append(row)
            print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
        return fresh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="what divcon.read takes")
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--size", type=int, default=224, help="of images, in pixels (default: %(default)s)")
    parser.add_argument("--learners", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    options = parser.parse_args()
    data = dc.read(*options.data)
    images = data.train
    Watched.labels, Watched.rows = np.unique(images.labels, return_inverse=True)[1], []
    loop.FeatureBank = Watched  # type: ignore[misc]
    for seed in options.seeds:
        Watched.seed = seed
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"image_size": options.size}
        if images.vectors is not None:
            sizes = {"vector_dim": images.vectors.shape[1]}
        model = dc.EmbeddingModel(options.backbone, 128, options.learners, **sizes)
        config = dc.TrainConfig(
            epochs=options.epochs, finetune_epoch=options.epochs, workers=options.workers, seed=seed
        )
        for _ in dc.train(model, images, config):
            pass
    means = {k: float(np.mean([row[k] for row in Watched.rows])) for k in Watched.rows[0] if k not in ("seed", "epoch")}
    about = {**{k: v for k, v in vars(options).items() if k not in ("out", "data")}, "data": data.name}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"settings": about, "means": means, "divisions": Watched.rows}, indent=1) + "\n")
    print("means: " + ", ".join(f"{k} {v:.3f}" for k, v in means.items()))


if __name__ == "__main__":
    main()
