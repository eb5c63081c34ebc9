"""Objectives where a batch is odd: embeddings that are zero or alike, one class, classes of different sizes; precision;
and that a resume restores all that a loss remembers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from torch import nn
from torch.nn import functional as F

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.models import create_head
from divcon.training.losses import ClampedCosine, Objective, create_objectives, loss_names

NEEDED = {"RankedListLoss": {"margin": 0.4, "Tn": 10}}


def objective(name: str = "MarginLoss", dim: int = 16, seed: int = 0, **config: Any) -> Objective:
    settings = TrainConfig(
        loss=name, loss_options={**NEEDED.get(name, {}), **config.pop("loss_options", {})}, seed=seed
    )
    settings = TrainConfig(**{**vars(settings), **config})
    return create_objectives(settings, create_head("single", 5, dim, 1), 6)[-1]  # type: ignore[return-value]


def batch(dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(24, dim, generator=generator), dim=1), torch.arange(6).repeat_interleave(4)


def gradients(created: Objective, embeddings: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """Loss and gradients of a step."""
    embeddings = embeddings.clone().requires_grad_()
    loss = created(embeddings, labels)
    loss.backward()
    assert embeddings.grad is not None
    return [loss.detach(), embeddings.grad, *(p.grad for p in created.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", loss_names())
def test_odd_batches_give_finite_steps_of_finite_size(name: str) -> None:
    created = objective(name)
    embeddings, labels = batch()
    usual = gradients(copy.deepcopy(created), embeddings, labels)[1].abs().max()
    twice = embeddings.clone()
    twice[1] = twice[0]
    dead = embeddings.clone()
    dead[3] = 0
    uneven = labels.clone()
    uneven[0] = 1
    cases = {
        "all zero": (torch.zeros(24, 16), labels),
        "one zero": (dead, labels),
        "all alike": (embeddings[:1].repeat(24, 1), labels),
        "an image twice": (twice, labels),
        "one class": (embeddings, torch.zeros_like(labels)),
        "uneven": (embeddings, uneven),
    }
    for case, arguments in cases.items():
        values = gradients(copy.deepcopy(created), *arguments)
        # A dead embedding has no angle and no variance: these two divide by zero, and training stops at the loss.
        if "zero" in case and name in ("P2SGradLoss", "SignalToNoiseRatioContrastiveLoss"):
            continue
        assert all(torch.isfinite(value).all() for value in values), case
        assert values[1].abs().max() < 1e3 * max(usual, torch.tensor(1.0)), case


@pytest.mark.parametrize("dim", [1, 2, 512])
@pytest.mark.parametrize("miner", ["distance-weighted", "nearest-negatives"])
def test_our_miners_with_few_and_many_dimensions(miner: str, dim: int) -> None:
    for name in ("MarginLoss", "TripletMarginLoss", "ContrastiveLoss"):
        values = gradients(objective(name, dim, miner=miner), *batch(dim))
        assert all(torch.isfinite(value).all() for value in values)


def test_an_embedding_that_is_zero_gets_no_gradient_and_the_others_theirs() -> None:
    embeddings, labels = batch()
    embeddings[3] = 0
    created = objective("ProxyNCALoss")
    ours = gradients(created, embeddings, labels)[1]
    free = embeddings.clone().requires_grad_()
    created.loss.loss(free, labels).backward()
    assert free.grad is not None
    assert free.grad[3].abs().max() > 1e6
    assert (ours[3] == 0).all()
    others = torch.arange(24) != 3
    assert torch.equal(ours[others], free.grad[others])


@pytest.mark.parametrize("name", loss_names())
def test_a_resume_restores_all_that_a_loss_remembers(name: str) -> None:
    straight = objective(name)
    for number in range(3):
        torch.manual_seed(number)
        straight(*batch(seed=number)).detach()
    resumed = objective(name, seed=9)
    resumed.load_state_dict({key: value.clone() for key, value in straight.state_dict().items()})
    for number in range(3, 6):
        values = []
        for created in (straight, resumed):
            torch.manual_seed(number)
            values.append(created(*batch(seed=number)))
        assert torch.equal(*values)


def test_dynamic_soft_margin_loss_trains_more_than_one_step() -> None:
    """Its histogram keeps the graph of the batch before in the library, where a second step fails."""
    created, (embeddings, labels) = objective("DynamicSoftMarginLoss"), batch()
    free = embeddings.requires_grad_()
    theirs = pml_losses.DynamicSoftMarginLoss()
    first = theirs(free, labels)
    first.backward()
    free.grad = None
    with pytest.raises(RuntimeError, match="second time"):
        theirs(free, labels).backward()
    assert torch.equal(created(free, labels), first)
    for _ in range(3):
        free.grad = None
        created(free, labels).backward()
        assert torch.isfinite(free.grad).all()
    assert not created.loss.hist_.requires_grad
    # The worst triplet there is, a positive opposite and a negative on the spot, has no bin there.
    poles = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(RuntimeError, match="out of bounds"):
        pml_losses.DynamicSoftMarginLoss()(poles, labels)
    assert torch.isfinite(objective("DynamicSoftMarginLoss", 2)(poles, labels))


def test_the_clamped_cosine_is_the_cosine_but_at_its_ends() -> None:
    embeddings, labels = batch()
    cosines = ClampedCosine()(embeddings)
    expected = embeddings @ embeddings.T
    off = ~torch.eye(24, dtype=torch.bool)
    torch.testing.assert_close(cosines[off], expected[off])
    assert (cosines.diagonal() < 1).all()
    for name in ("HistogramLoss", "TupletMarginLoss"):
        torch.testing.assert_close(
            objective(name)(embeddings, labels), getattr(pml_losses, name)()(embeddings, labels), rtol=1e-4, atol=1e-6
        )
        twice = embeddings.clone()
        twice[1] = twice[0]
        created = objective(name, loss_options={"distance": "CosineSimilarity"})
        assert not isinstance(created.loss.distance, ClampedCosine)


class _Fails(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Any) -> torch.Tensor:
        raise self.error


def test_an_error_of_a_loss_or_miner_names_it_and_the_batch() -> None:
    embeddings, labels = batch()
    labels[0] = 1
    what = "_Fails cannot compute a batch of 24 images, 6 classes with 3 to 5 images each"
    for error, reason in (
        (ValueError("All classes must have the same number of elements."), "All classes must .* elements; look at"),
        (AssertionError(), "AssertionError in the loss or miner"),
        (RuntimeError("shape mismatch"), "shape mismatch"),
        (IndexError("index 9 is out of range"), "out of the range that it works for: index 9"),
        (ValueError("indices_tuple is not supported for this loss function"), "`miner=none`"),
    ):
        with pytest.raises(ConfigError, match=f"{what}: .*{reason}"):
            Objective(_Fails(error))(embeddings, labels)
    with pytest.raises(ConfigError, match="TripletMarginLoss with miner _Fails cannot compute"):
        Objective(pml_losses.TripletMarginLoss(), _Fails(ValueError("no")))(embeddings, labels)
    for error in (torch.OutOfMemoryError("full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            Objective(_Fails(error))(embeddings, labels)  # type: ignore[arg-type]


def test_under_autocast_distances_are_full_precision() -> None:
    embeddings, labels = batch()
    torch.manual_seed(0)
    plain = objective()(embeddings, labels)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = objective()(embeddings, labels)
    assert under.dtype == torch.float32
    assert torch.equal(plain, under)
    assert objective()(embeddings.bfloat16(), labels).dtype == torch.float32
