"""The loss on the full embedding beside the learner's: what it adds, when, and how it is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.division import divide
from divcon.models.heads import create_head, methods
from divcon.training.losses import create_objectives
from divcon.training.sampler import plan_epoch

Make = Callable[..., dc.EmbeddingModel]
CONFIG = dc.TrainConfig(
    epochs=4,
    batch_size=16,
    images_per_class=2,
    joint_epoch=2,
    finetune_epoch=3,
    workers=0,
    distill_weight=0.0,
    ema_decay=0.0,
)


@pytest.mark.heavy
def test_it_is_there_in_the_subspace_phase_alone(few: Benchmark, tiny_model: Make) -> None:
    reports = list(dc.train(tiny_model(2), few.train, CONFIG))
    assert [report.full_loss is None for report in reports] == [False, False, True, True]
    assert reports[0].to_dict()["full_loss"] == reports[0].full_loss > 0
    without = next(dc.train(tiny_model(2), few.train, replace(CONFIG, full_weight=0.0)))
    assert without.full_loss is None
    single = next(dc.train(tiny_model(1), few.train, CONFIG))
    assert single.full_loss is None


@pytest.mark.parametrize("method", ["slices", "masks"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_a_step_is_on_the_learner_s_loss_and_so_much_of_the_full_embedding_s(method: str, weight: float) -> None:
    """An epoch on vectors equals the same batches through a loop written out, of weights under plain autograd."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    vectors = (rng.normal(size=(12, 10))[labels] + rng.normal(size=(72, 10))).astype(np.float32)
    names, paths, rows = tuple(map(str, range(12))), pa.array([str(row) for row in range(72)]), np.arange(72)
    images = dc.LabeledSet(labels, names, paths, rows, "data", vectors=vectors)
    config = replace(
        CONFIG, loss="TripletMarginLoss", miner="none", full_weight=weight, lr_schedule="constant", mask_penalty=0.0
    )
    made = {"vector_dim": 10, "embedding_dim": 8, "num_learners": 2, "method": method, "dropout": 0.0}
    torch.manual_seed(0)
    model = dc.EmbeddingModel("none", **made)
    torch.manual_seed(0)
    plain = dc.EmbeddingModel("none", **made)
    report = next(dc.train(model, images, config))

    features = plain.features(images)
    division = divide(features, images.labels, 2, by="image", seed=(0, 0))
    plan = plan_epoch(division, images.labels, num_learners=2, batch_size=16, images_per_class=2, seed=0, epoch=0)
    objective = create_objectives(config, plain.head, 12)[-1]
    weights = [plain.head.linear.weight, plain.head.linear.bias]
    groups = [{"params": weights, "lr": config.head_lr}]
    if method == "masks":
        groups.append({"params": [plain.head.masks], "lr": config.chosen_mask_lr})
    optimizer = torch.optim.Adam(groups, weight_decay=1e-4)
    own, full = [], []
    for batch in plan.batches:
        targets = torch.from_numpy(images.labels[batch.indices])
        linear = torch.from_numpy(features[batch.indices]) @ weights[0].T + weights[1]
        halves = torch.nn.functional.normalize(linear.reshape(-1, 2, 4), dim=2)
        if method == "slices":
            subspace, whole = halves[:, batch.learner], halves.flatten(1) / 2**0.5
        else:
            subspace = torch.nn.functional.normalize(linear * plain.head.masks[batch.learner].relu(), dim=1)
            whole = torch.nn.functional.normalize(linear, dim=1)
        losses = objective(subspace, targets), objective(whole, targets)
        optimizer.zero_grad()
        (losses[0] + weight * losses[1]).backward()
        optimizer.step()
        own.append(float(losses[0].detach()))
        full.append(float(losses[1].detach()))
    assert report.loss == pytest.approx(np.mean(own), rel=1e-5)
    assert report.full_loss == (pytest.approx(np.mean(full), rel=1e-5) if weight else None)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", methods())
def test_both_embeddings_at_once_are_those_one_at_a_time(method: str) -> None:
    head = create_head(method, 12, 8, 1 if method == "single" else 2, dropout=0.5).eval()
    features = torch.randn(5, 12)
    own, full = head(features, learner=0, with_full=True)
    torch.testing.assert_close(own, head(features, learner=0), rtol=0, atol=0)
    torch.testing.assert_close(full, head(features), rtol=0, atol=0)
    same, whole = head(features, with_full=True)
    assert same is whole
    head.train()
    own, full = head(features, learner=0, with_full=True)  # of the same dropout
    if method == "slices":
        torch.testing.assert_close(own / 2**0.5, full[:, :4])
