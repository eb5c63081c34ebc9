"""Cross-batch memory: against loops over what it holds, what it refuses, and that a resume restores all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from torch.nn import functional as F

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.models import create_head
from divcon.training.cross_batch_memory import memory_losses
from divcon.training.losses import Objective, create_objectives, loss_names

DIM = 6


def objective(loss: str = "ContrastiveLoss", memory_size: int = 20, **config: Any) -> Objective:
    settings = TrainConfig(loss=loss, memory_size=memory_size, batch_size=8, images_per_class=2, **config)
    return create_objectives(settings, create_head("single", 5, DIM, 1), 5)[-1]  # type: ignore[return-value]


def batch(seed: int, classes: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(2 * len(classes), DIM, generator=generator), dim=1)
    return embeddings.requires_grad_(), torch.tensor(classes).repeat_interleave(2)


@pytest.mark.parametrize("name", memory_losses())
def test_the_first_batch_is_compared_with_itself(name: str) -> None:
    embeddings, labels = batch(0)
    plain = objective(name, 0, miner="none")(embeddings, labels)
    torch.testing.assert_close(objective(name, miner="none")(embeddings, labels), plain)


@pytest.mark.parametrize("name", memory_losses())
def test_where_in_the_memory_an_embedding_is_changes_nothing(name: str) -> None:
    """A loss that took places in the memory for places in the batch would change; LiftedStructureLoss does."""

    def moved(loss: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        (embeddings, labels), (memory, others) = batch(0), batch(1, (2, 1, 0, 3, 4))
        same = labels[:, None] == others[None, :]
        tuples = (*torch.where(same), *torch.where(~same))
        order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
        a1, p, a2, n = tuples
        place = order.argsort()
        there = loss(embeddings, labels, tuples, memory, others)
        return there, loss(embeddings, labels, (a1, place[p], a2, place[n]), memory[order], others[order])

    torch.testing.assert_close(*moved(getattr(pml_losses, name)()))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(*moved(pml_losses.LiftedStructureLoss()))


def test_contrastive_loss_equals_a_loop_over_the_last_embeddings() -> None:
    created = objective(memory_size=20)
    held: list[tuple[torch.Tensor, int, int]] = []
    for number in range(6):  # 20 is no multiple of 8: the memory begins anew in the midst of a batch
        embeddings, labels = batch(number, (0, 1, 2, 4) if number % 2 else (1, 2, 3, 4))
        value = created(embeddings, labels)
        held += [(e.detach(), int(c), number) for e, c in zip(embeddings, labels, strict=True)]
        held = held[-20:]
        positive, negative = [], []
        for i, (anchor, label) in enumerate(zip(F.normalize(embeddings, dim=1), labels, strict=True)):
            for j, (other, c, when) in enumerate(held):
                own = when == number and j == len(held) - 8 + i
                distance = (anchor - other).norm()
                if c != label:
                    negative.append((1 - distance).relu())
                elif not own:
                    positive.append(distance)
        expected = sum(
            torch.stack([t for t in terms if t > 0]).mean() if any(t > 0 for t in terms) else torch.zeros(())
            for terms in (positive, negative)
        )
        torch.testing.assert_close(value, expected)
        gradients = torch.autograd.grad(value, embeddings)[0], torch.autograd.grad(expected, embeddings)[0]
        torch.testing.assert_close(*gradients)


def test_our_miners_look_in_the_memory_and_never_pair_an_image_with_its_copy() -> None:
    for miner in ("distance-weighted", "nearest-negatives"):
        created = objective("MarginLoss", miner=miner)
        calls: list[tuple] = []
        created.loss.miner.register_forward_hook(
            lambda module, args, output, calls=calls: calls.append(([part.clone() for part in args], output))
        )
        for number in range(4):
            created(*batch(number))
        for number, (inputs, (anchors, positives, negatives)) in enumerate(calls):
            _, labels, memory, others = inputs[:4]
            size = min(8 * (number + 1), 20)
            assert len(memory) == len(others) == size
            own = [(8 * number + i) % 20 for i in range(8)]
            expected = [(i, j) for i in range(8) for j in range(size) if labels[i] == others[j] and j != own[i]]
            assert list(zip(anchors.tolist(), positives.tolist(), strict=True)) == expected
            assert (others[negatives] != labels[anchors]).all()


@pytest.mark.parametrize("name", ["MarginLoss", "ContrastiveLoss", "MultiSimilarityLoss", "CircleLoss"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_it_is_the_same_bit_for_bit(name: str, stop: int) -> None:
    def steps(created: Objective, numbers: range) -> list[float]:
        values = []
        for number in numbers:
            torch.manual_seed(number)
            values.append(float(created(*batch(number)).detach()))
        return values

    straight = objective(name)
    expected = steps(straight, range(6))
    stopped = objective(name)
    steps(stopped, range(stop))
    resumed = objective(name)
    resumed.load_state_dict(stopped.state_dict())
    assert steps(resumed, range(stop, 6)) == expected[stop:]
    assert len(set(expected)) == 6


def test_a_checkpoint_of_it_is_tensors_and_plain_values(tmp_path: Any) -> None:
    created = objective()
    for number in range(4):
        created(*batch(number))
    torch.save(created.state_dict(), tmp_path / "state")
    resumed = objective()
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(resumed(*batch(9)), created(*batch(9)))


def test_after_a_reset_it_is_as_new() -> None:
    created, new = objective(), objective()
    for number in range(4):
        created(*batch(number))
    created.set_classes(torch.tensor([0, 1, 2, 3]))
    assert not torch.equal(created(*batch(5)), new(*batch(5)))
    created.reset_memory()
    new.reset_memory()
    for number in range(6, 10):
        assert torch.equal(created(*batch(number)), new(*batch(number)))
    objective(memory_size=0).reset_memory()


def test_each_objective_has_a_memory_of_its_own_dimension() -> None:
    head = create_head("slices", 5, 11, 2)
    created = create_objectives(TrainConfig(memory_size=100), head, 5)
    assert [tuple(o.loss.embedding_memory.shape) for o in created] == [(100, 6), (100, 5), (100, 11)]
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(8, 6, generator=generator), dim=1)
    created[0](embeddings, torch.arange(4).repeat_interleave(2))
    assert [o.loss.queue_idx for o in created] == [8, 0, 0]


def test_one_beta_a_class_with_a_memory() -> None:
    options = {"learn_beta": True, "num_classes": 5}
    created = objective("MarginLoss", miner="nearest-negatives", loss_options=options)
    plain = objective("MarginLoss", miner="nearest-negatives")
    for objective_ in (created, plain):
        objective_.set_classes(torch.tensor([1, 3, 4]))
    for number in range(4):
        arguments = batch(number, (4, 1, 3))
        torch.testing.assert_close(created(*arguments), plain(*arguments))
    created(*batch(5, (4, 3))).backward()
    gradient = next(created.parameters()).grad
    assert (gradient[:3] == 0).all()
    assert (gradient[3:] != 0).any()


def test_what_cannot_have_a_memory_says_why() -> None:
    for name in loss_names():
        if name not in memory_losses():
            with pytest.raises(ConfigError, match=rf"is 20, and {name} cannot have a memory \(.*AngularLoss"):
                objective(name, loss_options={"margin": 0.4, "Tn": 10} if name == "RankedListLoss" else {})
    with pytest.raises(ConfigError, match=r"is 7, and the memory must hold at least a batch: `batch_size` is 8"):
        objective(memory_size=7)
    objective(memory_size=8)
    with pytest.raises(ConfigError, match="swap compares positives with negatives"):
        objective("TripletMarginLoss", loss_options={"swap": True})
    with pytest.raises(ConfigError, match="an image's own copy in the memory"):
        objective("TripletMarginLoss", miner="BatchEasyHardMiner")
    created = objective("TripletMarginLoss", miner="BatchEasyHardMiner", miner_options={"pos_strategy": "hard"})
    assert torch.isfinite(created(*batch(0)))
