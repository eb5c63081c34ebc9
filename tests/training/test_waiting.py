"""A step never waits for an accelerator, so that the host can run ahead of it. PyTorch's meta device stands in for an
accelerator: it has no values, so whatever waits for one raises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode

import divcon as dc
from divcon.config.settings import TrainConfig
from divcon.data.benchmark import Benchmark
from divcon.models import create_head
from divcon.training.feature_bank import FeatureBank
from divcon.training.losses import create_objectives, loss_names
from divcon.training.miners import DistanceWeightedMiner
from divcon.training.report import LossRecord

META = torch.device("meta")
NEVER_WAIT = ["MarginLoss", "NormalizedSoftmaxLoss", "SmoothAPLoss", "SoftTripleLoss"]
"""As docs/losses.md says."""


class Copies(TorchDispatchMode):
    """Raises where a copy to the accelerator waits until it is there, unless that is ``allowed``."""

    def __init__(self, *, allowed: bool) -> None:
        super().__init__()
        self.allowed = allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        copies = func is torch.ops.aten._to_copy.default and kwargs.get("device") == META
        if copies and not self.allowed and args[0].device != META and not kwargs.get("non_blocking"):
            raise AssertionError(f"a copy of {tuple(args[0].shape)} waits")
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def meta_in_place_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divcon.training.loop.training_device", lambda config: META)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # meta has none


@contextlib.contextmanager
def no_copy_in_training(model: nn.Module) -> Iterator[list[int]]:
    """From the first forward pass on no copy may wait; yields the number of steps of the optimiser."""
    copies, steps = Copies(allowed=True), [0]

    def begins(module: nn.Module, inputs: Any) -> None:
        copies.allowed = copies.allowed and not module.training

    def ends(*arguments: Any) -> None:
        steps[0] += 1

    hooks = [model.register_forward_pre_hook(begins), register_optimizer_step_post_hook(ends)]
    try:
        with copies:
            yield steps
    finally:
        for hook in hooks:
            hook.remove()
    assert not copies.allowed


@pytest.mark.parametrize("vectors", [False, True], ids=["images", "vectors"])
@pytest.mark.parametrize("method", ["single", "slices", "masks"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        *(
            pytest.param(more, marks=pytest.mark.heavy)
            for more in (
                {"miner": "nearest-negatives"},
                {"full_weight": 0.0},
                {"finetune_epoch": 0},
                {"distill_weight": 50.0},
            )
        ),
    ],
)
def test_no_step_of_an_epoch_waits(
    method: str, more: dict[str, Any], vectors: bool, few: Benchmark, tiny_model: Any
) -> None:
    learners, images = 1 if method == "single" else 2, few.train
    if vectors:
        images = replace(images, vectors=np.random.default_rng(0).normal(size=(len(images), 8)).astype(np.float32))
        model = dc.EmbeddingModel("none", 16, learners, method=method, vector_dim=8)
    else:
        model = tiny_model(learners, method=method)
    settings = {"finetune_epoch": 2, "divide_by": "none", **more}
    config = TrainConfig(epochs=2, batch_size=16, images_per_class=2, workers=0, device="mps", **settings)
    expected = len(images) // 16
    assert 1 < expected <= LossRecord.EVERY
    # The losses of the epoch are the first values that anybody waits for, at its end.
    epochs = dc.train(model, images, config)
    with pytest.raises(NotImplementedError, match="meta"), no_copy_in_training(model) as steps:
        next(epochs)
    assert steps == [expected]


def test_the_feature_bank_does_not_wait() -> None:
    bank = FeatureBank(9, 4, META, enabled=True)
    with Copies(allowed=False):
        bank.update(np.array([3, 1, 3]), torch.randn(3, 4, device=META))


def test_the_losses_that_never_wait() -> None:
    labels = torch.arange(20) // 4 + 1
    free = []
    for loss in loss_names():
        options = {"margin": 0.4, "Tn": 10} if loss == "RankedListLoss" else {}
        head = create_head("single", 5, 16, 1)
        objective: Any = create_objectives(TrainConfig(loss=loss, loss_options=options), head, 6)[-1].to(META)
        objective.set_classes(np.arange(1, 6))  # the learner's cluster lacks a class
        embeddings = F.normalize(torch.randn(20, 16, device=META), dim=1).requires_grad_()
        with contextlib.suppress(Exception), Copies(allowed=False):
            objective(embeddings, labels).backward()
            free.append(loss)
    assert free == NEVER_WAIT


def test_negatives_are_drawn_as_multinomial_draws_them() -> None:
    labels = torch.arange(80) // 4
    embeddings = F.normalize(torch.randn(80, 8), dim=1)
    miner = DistanceWeightedMiner()
    torch.manual_seed(3)
    anchors, _, negatives = miner(embeddings, labels)
    torch.manual_seed(3)
    assert torch.equal(negatives, torch.multinomial(miner.weights(embeddings, labels)[anchors], 1).flatten())
