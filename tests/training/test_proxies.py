"""Proxies of the cluster's classes alone: against losses made for those classes, and what becomes of the others."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from divcon.config.settings import TrainConfig
from divcon.models import create_head
from divcon.training.losses import Objective, create_objectives
from divcon.training.proxies import ClusterProxies

PER_CLASS: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "ArcFaceLoss": ({}, "W", 1, 1),
    "CosFaceLoss": ({}, "W", 1, 1),
    "LargeMarginSoftmaxLoss": ({}, "W", 1, 1),
    "SphereFaceLoss": ({}, "W", 1, 1),
    "SubCenterArcFaceLoss": ({}, "W", 1, 3),
    "NormalizedSoftmaxLoss": ({}, "W", 1, 1),
    "P2SGradLoss": ({}, "weight", 1, 1),
    "ProxyAnchorLoss": ({}, "proxies", 0, 1),
    "ProxyNCALoss": ({}, "proxies", 0, 1),
    "SoftTripleLoss": ({"centers_per_class": 4}, "fc", 1, 4),
    "MarginLoss": ({"learn_beta": True, "num_classes": 7, "nu": 0.1}, "beta", 0, 1),
}
"""Of each loss with parameters a class: options, the parameter's name, the dimension and the rows a class it has."""
C, DIM = 7, 6


def objective(name: str, num_classes: int = C, seed: int = 0, **config: Any) -> Objective:
    options = {**PER_CLASS.get(name, ({},))[0], **config.pop("loss_options", {})}
    if "num_classes" in options:
        options["num_classes"] = num_classes
    settings = TrainConfig(loss=name, loss_options=options, seed=seed, batch_size=8, images_per_class=2, **config)
    return create_objectives(settings, create_head("single", 5, DIM, 1), num_classes)[-1]  # type: ignore[return-value]


def batch(classes: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes).repeat_interleave(4)
    return F.normalize(torch.randn(len(labels), DIM, generator=generator), dim=1).requires_grad_(), labels


def columns(parameter: torch.Tensor, dim: int, each: int, classes: list[int]) -> torch.Tensor:
    """What a parameter holds of these classes: a block a class."""
    blocks = parameter.detach().split(each, dim=dim)
    return torch.cat([blocks[c] for c in classes], dim=dim)


def beta_spread(created: Objective) -> None:
    """Betas begin alike; tell them apart."""
    with torch.no_grad():
        for name, parameter in created.named_parameters():
            if name.endswith("beta"):
                parameter.copy_(torch.linspace(0.8, 1.3, len(parameter)))


def test_these_are_all_losses_with_parameters_of_their_own() -> None:
    from divcon.training.losses import loss_names

    options = {"RankedListLoss": {"margin": 0.4, "Tn": 10}}
    for name in loss_names():
        created = objective(name, loss_options=options.get(name, {}))
        assert isinstance(created.loss, ClusterProxies) == bool(list(created.parameters())) == (name in PER_CLASS)


@pytest.mark.parametrize("name", PER_CLASS)
@pytest.mark.parametrize("classes", [[1, 4, 5], [6, 0]])
def test_it_equals_the_loss_of_these_classes_alone(name: str, classes: list[int]) -> None:
    _, parameter_name, dim, each = PER_CLASS[name]
    created = objective(name)
    beta_spread(created)
    parameter = created.loss.loss.get_parameter(parameter_name)
    fresh = objective(name, len(classes), seed=3)
    with torch.no_grad():
        next(fresh.parameters()).copy_(columns(parameter, dim, each, classes))

    created.set_classes(torch.tensor(classes))
    embeddings, labels = batch(classes)
    torch.manual_seed(0)
    value = created(embeddings, labels)
    value.backward()
    alone, _ = batch(classes)
    torch.manual_seed(0)
    expected = fresh(alone, torch.tensor([classes.index(label) for label in labels.tolist()]))
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(embeddings.grad, alone.grad)
    torch.testing.assert_close(columns(parameter.grad, dim, each, classes), next(fresh.parameters()).grad)
    absent = [c for c in range(C) if c not in classes]
    assert (columns(parameter.grad, dim, each, absent) == 0).all()
    assert (columns(parameter.grad, dim, each, classes) != 0).any()


@pytest.mark.parametrize("name", PER_CLASS)
def test_the_order_in_which_classes_are_named_changes_nothing(name: str) -> None:
    """All classes in another order is what the loss computes undivided: each class has its own block of rows."""
    created = objective(name)
    beta_spread(created)
    embeddings, labels = batch(list(range(C)))
    torch.manual_seed(0)
    expected = created(embeddings, labels)
    created.set_classes(torch.tensor([3, 0, 6, 1, 5, 2, 4]))
    torch.manual_seed(0)
    torch.testing.assert_close(created(embeddings, labels), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PER_CLASS)
def test_parameters_of_absent_classes_stay_bit_for_bit_until_their_class_comes_back(name: str) -> None:
    _, _, dim, each = PER_CLASS[name]
    created = objective(name)
    parameter = next(created.parameters())
    # Momentum and a weight decay that would move what has no gradient.
    optimizer = torch.optim.Adam(created.parameters(), lr=0.05, weight_decay=0.1)

    def train(classes: list[int]) -> None:
        created.set_classes(np.array(classes))
        for step in range(3):
            torch.manual_seed(step)
            loss = created(*batch(classes, seed=step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    train(list(range(C)))
    begun = parameter.detach().clone()
    train([1, 4, 5])
    saved = next(iter(value for key, value in created.state_dict().items() if key.startswith("loss.loss."))).clone()
    assert torch.equal(columns(saved, dim, each, [0, 2, 3, 6]), columns(begun, dim, each, [0, 2, 3, 6]))
    for c in (1, 4, 5):
        assert not torch.equal(columns(saved, dim, each, [c]), columns(begun, dim, each, [c]))
    created.set_classes(np.array([0, 1]))
    assert torch.equal(parameter, saved)
    train([0, 1])
    created.set_classes(None)
    assert torch.equal(columns(parameter, dim, each, [2, 3, 6]), columns(begun, dim, each, [2, 3, 6]))
    assert torch.equal(columns(parameter, dim, each, [4, 5]), columns(saved, dim, each, [4, 5]))
    assert not torch.equal(columns(parameter, dim, each, [0]), columns(begun, dim, each, [0]))
    train(list(range(C)))


def test_a_loss_that_brings_its_proxies_back_to_length_one_does_so_to_those_it_has() -> None:
    created = objective("P2SGradLoss")
    weight = next(created.parameters())
    with torch.no_grad():
        weight *= 2
    created.set_classes(torch.tensor([1, 2]))
    created(*batch([1, 2]))
    torch.testing.assert_close(weight.detach().norm(dim=0), torch.tensor([2.0, 1, 1, 2, 2, 2, 2]))


@pytest.mark.parametrize("name", PER_CLASS)
def test_resumed_in_the_midst_of_a_division_it_is_the_same_bit_for_bit(name: str) -> None:
    def steps(created: Objective, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
        values = []
        for step in numbers:
            torch.manual_seed(step)
            loss = created(*batch([1, 4, 5], seed=step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        return values

    def begin(seed: int) -> tuple[Objective, torch.optim.Optimizer]:
        created = objective(name, seed=seed)
        return created, torch.optim.Adam(created.parameters(), lr=0.05, weight_decay=0.1)

    straight, optimizer = begin(0)
    straight.set_classes(torch.tensor([1, 4, 5]))
    steps(straight, optimizer, range(3))
    saved = {key: value.clone() for key, value in straight.state_dict().items()}
    resumed, again = begin(9)
    resumed.set_classes(torch.tensor([0, 2]))  # what it had set aside is not what is loaded
    resumed.load_state_dict(saved)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.set_classes(torch.tensor([1, 4, 5]))
    assert steps(resumed, again, range(3, 6)) == steps(straight, optimizer, range(3, 6))
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])


def test_a_division_draws_no_random_numbers() -> None:
    created = objective("SubCenterArcFaceLoss")
    before = torch.get_rng_state()
    created.set_classes(torch.tensor([2, 3]))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(list(created.parameters())) == 1


def test_a_label_of_another_cluster_is_an_error_of_the_program() -> None:
    created = objective("ProxyAnchorLoss")
    created.set_classes(torch.tensor([1, 4]))
    with pytest.raises(ValueError, match=r"labels \[0, 6\] are not of the 2 classes that the learner's cluster has"):
        created(*batch([0, 1, 6]))
    assert torch.isfinite(created(*batch([1, 4, 4])))
    created.set_classes(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels \[1\] are not of the 0 classes"):
        created(*batch([1]))
    created.set_classes(None)
    assert torch.isfinite(created(*batch([0, 1, 6])))


def test_losses_without_parameters_a_class_ignore_it() -> None:
    for name, options in (("TripletMarginLoss", {}), ("MarginLoss", {"num_classes": C, "learn_beta": True})):
        created = objective(name, loss_options=options)
        if name == "MarginLoss":
            created = create_objectives(
                TrainConfig(loss_options={"learn_beta": True}), create_head("single", 5, DIM, 1), C
            )[-1]
        created.set_classes(torch.tensor([5]))
        assert torch.isfinite(created(*batch([0, 1, 6])))


def test_in_float32_under_autocast() -> None:
    created = objective("NormalizedSoftmaxLoss")
    created.set_classes(torch.tensor([1, 4]))
    embeddings, labels = batch([1, 4])
    plain = created(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = created(embeddings.bfloat16().float(), labels)
        same = created(embeddings, labels)
    assert under.dtype == torch.float32
    assert torch.equal(plain, same)
