"""What each setting of divide and conquer does, one at a time, on precomputed vectors and on validation classes alone.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz
    python tools/icons.py package --out data/icons-2000 --classes 2000 --seed 0
    divcon features icons data/icons-2000 --backbone tf_efficientnet_lite0 --size 64 --out data/vectors-2000.parquet
    python benchmarks/factors.py data/vectors-2000.parquet --out docs/results/factors-vectors-2000.json

Every setting trains on two thirds of the train classes and is evaluated on the other third, three times, with the same
three folds for all. The test classes are not used. A setting is 5 to 60 seconds a fold on one core; those
that are in the results already are not run again. Two ways of matching clusters to learners that the library does not
have are implemented here: at random, and by the inverse permutation, as in the code released in 2019. All are
without a loss on the full embedding beside the learner's (``--full-weight``), which ``beyond.py`` measures.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

import divcon as dc
from divcon.division import Division

EPOCHS = 20
DEFAULTS: dict[str, Any] = {
    "backbone": "none",
    "method": "slices",
    "num_learners": 4,
    "embedding_dim": 128,
    "dropout": 0.3,
}
MLP, SINGLE, MASKS = {"backbone": "mlp"}, {"method": "single"}, {"method": "masks"}
BY_CLASS = {"divide_by": "class"}
HARD = {"joint_epoch": 0, "finetune_epoch": EPOCHS}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "single": (SINGLE, {}),
    "slices": ({}, {}),
    "masks": (MASKS, {}),
    "hierarchy": (MASKS, {"hierarchy": True}),
    "fixed masks": (MASKS | {"head_options": {"kind": "fixed"}}, {}),
    # Controls.
    "control: slices, images at random": ({}, {"divide_by": "random"}),
    "control: slices, classes at random": ({}, {"divide_by": "random-class"}),
    "control: slices, all data": ({}, {"divide_by": "none"}),
    "control: slice head, one loss": ({}, {"finetune_epoch": 0}),
    "control: clusters of images, full embedding": (MASKS, HARD),
    "control: clusters of classes, full embedding": (MASKS, HARD | BY_CLASS),
    # What is clustered, and into how many.
    "slices, by class": ({}, BY_CLASS),
    "masks, by class": (MASKS, BY_CLASS),
    **{f"slices, by class, K {k}": ({"num_learners": k}, BY_CLASS) for k in (2, 8, 16)},
    **{f"slices, K {k}": ({"num_learners": k}, {}) for k in (2, 8, 16)},
    **{f"full embedding, clusters of classes, K {k}": (MASKS | {"num_learners": k}, HARD | BY_CLASS) for k in (8, 16)},
    # The batch, the embedding, the phases, the rounds.
    "single, 2 images a class": (SINGLE, {"images_per_class": 2}),
    "slices, 2 images a class": ({}, {"images_per_class": 2}),
    "single, batch 160": (SINGLE, {"batch_size": 160}),
    "slices, batch 160": ({}, {"batch_size": 160}),
    **{f"single, D {d}": (SINGLE | {"embedding_dim": d}, {}) for d in (64, 512)},
    **{f"slices, D {d}": ({"embedding_dim": d}, {}) for d in (64, 512)},
    "slices, finetune from epoch 6": ({}, {"finetune_epoch": 6}),
    "slices, finetune from epoch 18": ({}, {"finetune_epoch": 18}),
    "slices, joint from epoch 6": ({}, {"joint_epoch": 6}),
    "masks, joint from epoch 6": (MASKS, {"joint_epoch": 6}),
    # These two see more images, and fewer, than the others.
    "slices, rounds longest": ({}, {"rounds": "longest"}),
    "slices, rounds shortest": ({}, {"rounds": "shortest"}),
    # Learning rates.
    **{f"single, head lr {lr:g}": (SINGLE, {"head_lr": lr}) for lr in (3e-4, 3e-3)},
    **{f"slices, head lr {lr:g}": ({}, {"head_lr": lr}) for lr in (3e-4, 3e-3)},
    **{f"masks, mask lr {lr:g}": (MASKS, {"mask_lr": lr}) for lr in (0.0, 1e-1)},
    # Losses.
    **{
        f"{name}, {loss}": (model, {"loss": loss, **more})
        for name, model in (("single", SINGLE), ("slices", {}))
        for loss, more in (
            ("MultiSimilarityLoss", {}),
            ("ProxyAnchorLoss", {}),
            ("ContrastiveLoss", {"memory_size": 800}),
        )
    },
    # What re-divides: features that change.
    "mlp, single": (MLP | SINGLE, {}),
    "mlp, slices": (MLP, {}),
    "mlp, slices, redivide every epoch": (MLP, {"redivide_every": 1}),
    "mlp, slices, redivide every 4 epochs": (MLP, {"redivide_every": 4}),
    "mlp, slices, divide once": (MLP, {"redivide_every": EPOCHS}),
    "mlp, slices, matched at random": (MLP, {}),
    "mlp, slices, matched by the inverse permutation": (MLP, {}),
}


def matched_at_random(self: Division, previous: Division) -> Division:
    order = np.random.default_rng(self.sizes).permutation(self.num_learners)
    return renumbered(self, order)


def matched_by_the_inverse(self: Division, previous: Division) -> Division:
    _, learners = linear_sum_assignment(self.overlap(previous), maximize=True)
    return renumbered(self, np.argsort(learners))


def renumbered(division: Division, number: np.ndarray) -> Division:
    learner = np.where(division.learner >= 0, number[division.learner], -1)
    return Division(learner, division.centroids[np.argsort(number)])


MATCHING = {"matched at random": matched_at_random, "matched by the inverse permutation": matched_by_the_inverse}


@contextmanager
def matching(name: str):
    """Within it, divisions are matched as the end of the name says."""
    ours = Division.matched_to
    Division.matched_to = next((way for end, way in MATCHING.items() if name.endswith(end)), ours)  # type: ignore[assignment]
    try:
        yield
    finally:
        Division.matched_to = ours  # type: ignore[method-assign]


def recall_at_1(model: dc.EmbeddingModel, data: dc.LabeledSet) -> float:
    return dc.evaluate(model, data, clustering=False)["recall_at_1"]


def cross_validate(name: str, data: dc.LabeledSet, folds: int, seed: int) -> dict:
    """Recall@1 after every second epoch on each fold, and what the divisions were like."""
    model_settings, train_settings = SETTINGS[name]
    classes = np.random.default_rng(seed).permutation(data.classes)
    curves, kept, seconds = [], [], 0.0
    for fold in range(folds):
        held = np.isin(data.labels, classes[fold::folds])
        torch.manual_seed(seed)
        settings = DEFAULTS | model_settings
        if settings["method"] == "single":
            settings["num_learners"] = 1
        assert data.vectors is not None
        model = dc.EmbeddingModel(vector_dim=data.vectors.shape[1], **settings)
        config = dc.TrainConfig(
            epochs=EPOCHS, seed=seed, full_weight=0.0, distill_weight=0.0, ema_decay=0.0, **train_settings
        )
        curve = []
        for epoch in dc.train(model, data.subset(np.flatnonzero(~held)), config):
            seconds += epoch.seconds_dividing + epoch.seconds_training
            if epoch.number % 2:
                curve.append(recall_at_1(model, data.subset(np.flatnonzero(held))))
            if epoch.redivided and len(epoch.division.sizes) > 1:
                kept.append(epoch.kept_pairs)
        curves.append(curve)
    return {"name": name, "seed": seed, "folds": curves, "kept_pairs": kept, "seconds": seconds}


def table(results: list[dict]) -> str:
    """A row a setting, as Markdown: Recall@1 in percent at the last epoch (each fold, and the mean), at the best epoch
    of the mean, and the difference of the means at the last epoch from single's."""
    single = next((np.mean(r["folds"], 0) for r in results if r["name"] == "single"), None)
    lines = ["| setting | folds | **last** | best (epoch) | last - single | pairs kept | s |", "|---" * 7 + "|"]
    for result in results:
        curve = 100 * np.mean(result["folds"], 0)
        each = " ".join(f"{100 * c[-1]:.1f}" for c in result["folds"])
        best = int(curve.argmax())
        less = "" if single is None else f"{curve[-1] - 100 * single[-1]:+.1f}"
        kept = f"{100 * np.mean(result['kept_pairs']):.0f} %" if result["kept_pairs"] else ""
        lines.append(
            f"| {result['name']} | {each} | **{curve[-1]:.1f}** | {curve[best]:.1f} ({2 * best + 2}) | {less} | {kept} "
            f"| {result['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="what `divcon features` wrote")
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="some of them alone")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="decides folds, initial weights and batches")
    options = parser.parse_args()

    train = dc.read(options.data).train
    record = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.settings:
        if any((r["name"], r["seed"]) == (name, options.seed) for r in record["runs"]):
            continue
        started = time.perf_counter()
        with matching(name):
            result = cross_validate(name, train, options.folds, options.seed)
        model, config = SETTINGS[name]
        record["runs"].append({**result, "settings": {"model": model, "train": config}})
        options.out.write_text(json.dumps(record) + "\n")
        print(f"{name}: {table([result]).splitlines()[-1]} ({time.perf_counter() - started:.0f} s in all)", flush=True)
    print(table([r for r in record["runs"] if r["seed"] == options.seed]))


if __name__ == "__main__":
    main()
