"""A step asks an accelerator nothing, so that the host runs ahead of it. PyTorch's meta device stands in for one: it
has no values, so that whatever would wait for one raises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import divcon as dc
from divcon.config.settings import TrainConfig
from divcon.data.benchmark import Benchmark
from divcon.models import create_head
from divcon.training import loop, optimizer, sampler
from divcon.training.feature_bank import FeatureBank
from divcon.training.losses import create_objectives, loss_names
from divcon.training.miners import DistanceWeightedMiner
from divcon.training.report import LossRecord
from divcon.training.sampler import EpochPlan

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
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies as on a GPU, but for the pinning; and there is no autocast for the meta device."""
    for module in ("feature_bank", "loader", "miners", "losses"):
        monkeypatch.setattr(
            f"divcon.training.{module}.to_device", lambda tensor, device: tensor.to(device, non_blocking=True)
        )
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())


class Accelerator:
    """As much of Fabric as the loop needs."""

    device = META
    strategy = SimpleNamespace(precision=None)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def setup(self, model: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        return model, optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.fixture
def steps_before_a_wait(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """How many steps of an epoch are asked for before the device is first waited for."""

    def count(model: dc.EmbeddingModel, images: Any, config: TrainConfig) -> int:
        taken, copies = 0, Copies(allowed=True)

        def create_fabric(*_: Any) -> Accelerator:
            model.to(META)
            return Accelerator()

        def take_step(*arguments: Any) -> None:
            nonlocal taken
            optimizer.take_step(*arguments)
            taken += 1

        def plan_epoch(*arguments: Any, **options: Any) -> EpochPlan:
            copies.allowed = False  # from here on there are steps alone
            return sampler.plan_epoch(*arguments, **options)

        def features(memory: FeatureBank, model: dc.EmbeddingModel, *others: Any) -> np.ndarray:
            return np.random.default_rng(0).normal(size=(len(images), model.num_features)).astype(np.float32)

        monkeypatch.setattr(loop, "create_fabric", create_fabric)
        monkeypatch.setattr(loop, "take_step", take_step)
        monkeypatch.setattr(loop, "plan_epoch", plan_epoch)
        monkeypatch.setattr(FeatureBank, "features_to_divide", features)
        monkeypatch.setattr(loop, "divide", lambda *args, device, **options: dc.divide(*args, **options))
        with pytest.raises(NotImplementedError, match=r"meta"), copies:
            next(loop.train(model, images, config))
        return taken

    return count


@pytest.mark.parametrize("vectors", [False, True], ids=["images", "vectors"])
@pytest.mark.parametrize("method", ["single", "slices", "masks"])
@pytest.mark.parametrize("more", [{}, {"miner": "nearest-negatives"}, {"divide_on": "bank"}, {"finetune_epoch": 0}])
def test_no_step_of_an_epoch_waits(
    method: str,
    more: dict[str, Any],
    vectors: bool,
    few: Benchmark,
    tiny_model: Callable,
    steps_before_a_wait: Callable[..., int],
) -> None:
    learners, images = 1 if method == "single" else 2, few.train
    if vectors:
        images = replace(images, vectors=np.random.default_rng(0).normal(size=(len(images), 8)).astype(np.float32))
        model = dc.EmbeddingModel("none", 16, learners, method=method, vector_dim=8)
    else:
        model = tiny_model(learners, method=method)
    config = TrainConfig(epochs=2, batch_size=16, images_per_class=2, workers=0, **{"finetune_epoch": 2, **more})
    steps = len(images) // 16
    assert 1 < steps <= LossRecord.EVERY
    # The losses of the epoch are the first that anybody asks for, at its end.
    assert steps_before_a_wait(model, images, config) == steps


def test_the_losses_that_never_wait() -> None:
    labels = torch.arange(20) // 4 + 1
    free = []
    for loss in loss_names():
        options = {"margin": 0.4, "Tn": 10} if loss == "RankedListLoss" else {}
        head = create_head("single", 5, 16, 1)
        made = create_objectives(TrainConfig(loss=loss, loss_options=options), head, 6)[-1].to(META)
        made.set_classes(np.arange(1, 6))  # the learner's cluster lacks a class
        embeddings = F.normalize(torch.randn(20, 16, device=META), dim=1).requires_grad_()
        with contextlib.suppress(Exception), Copies(allowed=False):
            made(embeddings, labels).backward()
            free.append(loss)
    assert free == NEVER_WAIT


def test_drawing_is_what_multinomial_draws() -> None:
    labels = torch.arange(80) // 4
    embeddings = F.normalize(torch.randn(80, 8), dim=1)
    miner = DistanceWeightedMiner()
    torch.manual_seed(3)
    anchors, _, negatives = miner(embeddings, labels)
    torch.manual_seed(3)
    assert torch.equal(negatives, torch.multinomial(miner.weights(embeddings, labels)[anchors], 1).flatten())
