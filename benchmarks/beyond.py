"""Ideas that neither paper has, on validation classes: does any of them help?

    python benchmarks/beyond.py data/vectors-2000.parquet --out docs/results/beyond-vectors-2000.json
    python benchmarks/beyond.py icons data/icons-2000 --size 32 --epochs 60 --folds 1 --workers 0 \
        --ideas single masks "masks, full weight 1.0" --out docs/results/beyond-icons-2000.json

One idea is now in divcon, a loss on the full embedding beside the learner's (``--full-weight``); ideas that do not name
it are without it. For the others, the training loop is ``divcon/training/loop.py`` with the ideas in
it: several learners a step, each with its part of the batch; images, or classes, that belong to their two nearest
clusters; learners' losses, or a distillation of their similarities, in the finetune phase. With none of them it trains
what divcon trains (``single``, ``slices``, ``masks``), bit for bit. Every idea trains on the same number of images and
is evaluated on the same folds of the train classes; the test classes are not used. Results that exist are not computed
again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import divcon as dc
from divcon.data.benchmark import folds_of
from divcon.division import Division, divide
from divcon.training.feature_bank import FeatureBank
from divcon.training.loader import create_loader
from divcon.training.sampler import Batch, EpochPlan, plan_epoch
from divcon.training.schedule import Phase, learning_rates, phase_at
from divcon.training.setup import check, seed_batch, set_classes, set_up, training_device


@dataclass(frozen=True)
class Idea:
    """A method with its settings, and what is added to it."""

    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    learners_per_step: int = 1
    """M: a batch is of M clusters, B / M images each, and every learner's loss sees its own."""
    clusters_each: int = 1
    """2: an image (by class: a class) belongs to its two nearest clusters."""
    learners_weight: float = 0.0
    """Finetune phase: of the mean of all learners' losses on the batch."""
    distil_weight: float = 0.0
    """Finetune phase: of the mean squared difference of the full embedding's cosines from the mean of the learners'."""


# Without what the default has had since: distillation, averaged weights.
PLAIN = {"batch_size": 80, "images_per_class": 4, "distill_weight": 0.0, "ema_decay": 0.0}
MASKS, BY_CLASS = {"method": "masks"}, {"divide_by": "class"}
ALONE, FULL = {"full_weight": 0.0}, {"full_weight": 1.0}
# A phase begins at a share of the epochs.
JOINT, EARLY = {"joint_epoch": 0.0, "finetune_epoch": 1.0}, {"finetune_epoch": 1 / 3}
IDEAS = {
    "single": Idea({"method": "single"}),
    "slices": Idea(),
    "slices, by class": Idea({}, BY_CLASS),
    "masks": Idea(MASKS),
    **{f"slices, full weight {w}": Idea({}, {"full_weight": w}) for w in (0.3, 1.0, 3.0)},
    "slices, by class, full weight 1.0": Idea({}, BY_CLASS | FULL),
    "masks, full weight 1.0": Idea(MASKS, FULL),
    **{f"slices, {m} learners a step": Idea(learners_per_step=m) for m in (2, 4)},
    "slices, 4 learners a step, full weight 1.0": Idea({}, FULL, learners_per_step=4),
    "slices, by class, 4 learners a step, full weight 1.0": Idea({}, BY_CLASS | FULL, learners_per_step=4),
    # A batch of four small clusters under one loss: hard negatives within each, and contrast between them.
    **{
        f"grouped by {by}, {k} clusters, 4 a batch": Idea(
            MASKS | {"num_learners": k}, JOINT | {"divide_by": by}, learners_per_step=4
        )
        for by, k in (("class", 16), ("class", 32), ("image", 16))
    },
    "slices, two clusters an image": Idea(clusters_each=2),
    "slices, two clusters a class": Idea({}, BY_CLASS, clusters_each=2),
    "masks, two clusters an image": Idea(MASKS, clusters_each=2),
    "slices, two clusters an image, full weight 1.0": Idea({}, FULL, clusters_each=2),
    "slices, learners beside finetuning": Idea(learners_weight=1.0),
    **{f"slices, distilled {w}": Idea(distil_weight=w) for w in (10.0, 100.0)},
    **{f"masks, distilled {w}": Idea(MASKS, distil_weight=w) for w in (10.0, 100.0)},
    # Dimensions are free for vectors: a learner with 128 of them, as single has.
    "single, D 512": Idea({"method": "single", "embedding_dim": 512}),
    "slices, D 512": Idea({"embedding_dim": 512}),
    "masks, D 512": Idea(MASKS | {"embedding_dim": 512}),
    "slices, finetune from a third": Idea({}, EARLY),
    "slices, D 512, finetune from a third": Idea({"embedding_dim": 512}, EARLY),
    "slices, K 2": Idea({"num_learners": 2}),
    "slices, D 512, K 8": Idea({"embedding_dim": 512, "num_learners": 8}),
    "slices, D 512, all data": Idea({"embedding_dim": 512}, {"divide_by": "none"}),
    "slices, D 512, full weight 1.0": Idea({"embedding_dim": 512}, FULL),
    "masks, D 512, full weight 1.0": Idea(MASKS | {"embedding_dim": 512}, FULL),
    "masks, K 8, full weight 1.0": Idea(MASKS | {"num_learners": 8}, FULL),
    "masks, divided once, full weight 1.0": Idea(MASKS, FULL | {"redivide_every": 10**6}),
    "masks, two clusters an image, full weight 1.0": Idea(MASKS, FULL, clusters_each=2),
    "masks, all data, full weight 1.0": Idea(MASKS, FULL | {"divide_by": "none"}),
    "masks, images at random, full weight 1.0": Idea(MASKS, FULL | {"divide_by": "random"}),
}


@dataclass(frozen=True, eq=False)
class Overlapping(Division):
    """A division whose images belong to their second cluster too."""

    second: np.ndarray = field(kw_only=True)

    def indices(self, learner: int) -> np.ndarray:
        return np.flatnonzero((self.learner == learner) | (self.second == learner))

    @classmethod
    def of(cls, division: Division, features: np.ndarray, labels: np.ndarray, by: str) -> Overlapping:
        """Of a division by image or by class; ``features`` (N, F), ``labels`` (N,) from 0 on."""
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        if by == "class":
            unit = np.stack([unit[labels == c].mean(0) for c in range(labels.max() + 1)])[labels]
        far = torch.cdist(torch.from_numpy(unit), torch.from_numpy(division.centroids)).numpy()
        first, second = np.argsort(far, axis=1, kind="stable")[:, :2].T
        return cls(first, division.centroids, second=second)


def parted(plan: EpochPlan, parts: int) -> tuple[EpochPlan, list[list[tuple[int, slice]]]]:
    """The batches of a plan joined by ``parts``, and which images of each are whose."""
    batches, owners = [], []
    for start in range(0, len(plan.batches) // parts * parts, parts):
        some = plan.batches[start : start + parts]
        ends = np.cumsum([0, *(len(batch.indices) for batch in some)])
        batches.append(Batch(some[0].learner, np.concatenate([batch.indices for batch in some])))
        owners.append([(b.learner, slice(int(i), int(j))) for b, i, j in zip(some, ends[:-1], ends[1:], strict=True)])
    return EpochPlan(batches, plan.warnings, plan.num_learners), owners


def loss_of(
    idea: Idea,
    full_weight: float,
    phase: Phase,
    head: Any,
    objectives: Any,
    features: Tensor,
    labels: Tensor,
    owners: list,
) -> Tensor:
    """Of a batch of M clusters; ``features`` (B, F) before dropout, ``labels`` (B,), ``owners`` as of `parted`."""
    features = head.dropout(features)
    full = head.full(features)
    if phase is Phase.SUBSPACE:
        loss = sum(objectives[k](head.subspace(features[part], k), labels[part]) for k, part in owners) / len(owners)
        return loss + full_weight * objectives[-1](full, labels) if full_weight else loss
    loss = objectives[-1](full, labels)
    if phase is Phase.FINETUNE and (idea.learners_weight or idea.distil_weight):
        each = [head.subspace(features, k) for k in range(head.num_learners)]
        if idea.learners_weight:
            losses = [objectives[k](embedding, labels) for k, embedding in enumerate(each)]
            loss = loss + idea.learners_weight * sum(losses) / len(losses)
        if idea.distil_weight:
            taught = torch.stack([embedding @ embedding.T for embedding in each]).mean(0).detach()
            loss = loss + idea.distil_weight * (full @ full.T - taught).square().mean()
    return loss


def train(model: dc.EmbeddingModel, images: dc.LabeledSet, config: dc.TrainConfig, idea: Idea) -> Iterator[Division]:
    """The loop of divcon, with the idea in it; yields the division after each epoch."""
    objectives = check(model, images, config)
    device = training_device(config)
    labels = np.unique(images.labels, return_inverse=True)[1].astype(np.int64)
    optimizer = set_up(model, objectives, config, device)
    division = None
    bank = FeatureBank(len(images), model.num_features, device, enabled=False)
    with create_loader(model, images, config, device, dc.Context(config.workers)) as loader:
        for epoch in range(config.epochs):
            phase, previous = phase_at(epoch, config, model.head.max_learners), division
            whole = phase is Phase.FINETUNE or config.divide_by == "none"
            if whole:
                division = Division.whole(labels)
            elif previous is None or epoch % config.redivide_every == 0:
                features = bank.features_to_divide(model, loader, epoch)
                division = divide(
                    features,
                    labels,
                    model.num_learners,
                    by=config.divide_by,
                    seed=(config.seed, epoch),
                    previous=previous,
                )
                if idea.clusters_each == 2:
                    division = Overlapping.of(division, features, labels, config.divide_by)
            learners = 1 if phase is Phase.FINETUNE else model.num_learners
            parts = 1 if phase is Phase.FINETUNE else min(idea.learners_per_step, learners)
            set_classes(objectives, division, labels, learners, redivided=division is not previous)
            plan, owners = parted(
                plan_epoch(
                    division,
                    labels,
                    num_learners=learners,
                    batch_size=config.batch_size // parts,
                    images_per_class=config.images_per_class,
                    seed=config.seed,
                    epoch=epoch,
                ),
                parts,
            )
            model.train()
            for number, _, pixels, targets in loader.training_batches(plan, epoch, labels, range(len(plan.batches))):
                seed_batch(config.seed, epoch, number)
                rates = learning_rates(epoch + number / len(plan.batches), phase, config)
                for group in optimizer.param_groups:
                    group["lr"] = rates[group["name"]]
                features = model.backbone(pixels)
                loss = loss_of(
                    idea, config.full_weight, phase, model.head, objectives, features, targets, owners[number]
                )
                if phase is Phase.SUBSPACE:
                    loss = loss + config.mask_penalty * model.head.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            yield division


def validate(idea: Idea, data: dc.Benchmark, options: argparse.Namespace, fold: int) -> dict:
    """Recall@1 on a fold's held-out classes after every second epoch."""
    part = folds_of(data, 3, 0)[fold]
    vectors = part.train.vectors
    model_settings: dict[str, Any] = {"method": "slices", "num_learners": 4, "embedding_dim": 128} | idea.model
    if model_settings["method"] == "single":
        model_settings["num_learners"] = 1
    torch.manual_seed(options.seed)
    if vectors is None:
        model = dc.EmbeddingModel(options.backbone, image_size=options.size, **model_settings)
    else:
        model = dc.EmbeddingModel("none", vector_dim=vectors.shape[1], dropout=0.3, **model_settings)
    train_settings = {
        k: round(v * options.epochs) if k.endswith("_epoch") else v for k, v in (PLAIN | ALONE | idea.train).items()
    }
    config = dc.TrainConfig(epochs=options.epochs, seed=options.seed, workers=options.workers, **train_settings)
    curve, started, evaluating = [], time.perf_counter(), 0.0
    for epoch, _ in enumerate(train(model, part.train, config, idea)):
        if epoch % 2 or epoch == options.epochs - 1:
            began = time.perf_counter()
            curve.append(dc.evaluate(model, part.validation, clustering=False)["recall_at_1"])
            evaluating += time.perf_counter() - began
    return {"recall_at_1": curve, "seconds": time.perf_counter() - started - evaluating}


def table(runs: list[dict]) -> str:
    """A row an idea, as Markdown: Recall@1 in percent of each fold after the last epoch, their mean, and the difference
    from single's mean on the same folds and seeds."""
    ends = {}
    for run in runs:
        ends.setdefault(run["idea"], {})[run["seed"], run["fold"]] = 100 * run["recall_at_1"][-1]
    lines = ["| idea | folds | **mean** | - single |", "|---" * 4 + "|"]
    for name, scores in ends.items():
        alike = [key for key in scores if key in ends.get("single", {})]
        less = f"{np.mean([scores[key] - ends['single'][key] for key in alike]):+.1f}" if alike else ""
        each = " ".join(f"{scores[key]:.1f}" for key in sorted(scores))
        lines.append(f"| {name} | {each} | **{np.mean(list(scores.values())):.1f}** | {less} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="what `divcon train` takes")
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--ideas", nargs="+", choices=IDEAS, default=list(IDEAS), metavar="IDEA", help="some of them")
    parser.add_argument("--folds", type=int, default=3, choices=(1, 2, 3), help="how many of the three (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="decides initial weights and batches")
    parser.add_argument("--epochs", type=int, default=20, help="(default: 20)")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="of images")
    parser.add_argument("--size", type=int, default=64, help="of images, in pixels")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode images")
    options = parser.parse_args()

    data = dc.read(*options.data)
    record = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.ideas:
        for fold in range(options.folds):
            key = {"idea": name, "fold": fold, "seed": options.seed, "epochs": options.epochs}
            key |= {} if data.train.vectors is not None else {"backbone": options.backbone, "size": options.size}
            if any(key.items() <= run.items() for run in record["runs"]):
                continue
            run = key | validate(IDEAS[name], data, options, fold) | {"settings": asdict(IDEAS[name])}
            record["runs"].append(run)
            options.out.write_text(json.dumps(record) + "\n")
            print(f"{name}, fold {fold}: {100 * run['recall_at_1'][-1]:.1f} ({run['seconds']:.0f} s)", flush=True)
    asked = {"epochs": options.epochs} | ({} if data.train.vectors is not None else {"size": options.size})
    print(table([run for run in record["runs"] if asked.items() <= run.items()]))


if __name__ == "__main__":
    main()
