"""Optimisers and schedules of a user's own, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import divcon as dc
from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.models import EmbeddingModel
from divcon.training.losses import create_objectives
from divcon.training.optimizer import check_optimizer, create_optimizer, set_learning_rates
from divcon.training.schedule import check_schedule, learning_rates, lr_factor, phase_at


def created(**config: Any) -> torch.optim.Optimizer:
    settings = TrainConfig(**config)
    check_optimizer(settings)
    model = EmbeddingModel("mlp", 8, 2, vector_dim=6)
    return create_optimizer(model, create_objectives(settings, model.head, 4), settings)


def half_sgd(groups: Any, momentum: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=momentum)


def test_an_optimizer_in_every_form_has_the_groups_and_options() -> None:
    for optimizer in ("torch.optim:SGD", torch.optim.SGD):
        built = created(optimizer=optimizer, optimizer_options={"momentum": 0.9, "nesterov": True}, weight_decay=0.02)
        assert type(built) is torch.optim.SGD
        assert [group["name"] for group in built.param_groups] == ["backbone", "head", "masks"]
        assert {group["momentum"] for group in built.param_groups} == {0.9}
        assert [group["weight_decay"] for group in built.param_groups] == [0.02, 0.02, 1e-4]
    built = created(optimizer=half_sgd, optimizer_options={"momentum": 0.5}, weight_decay=0.0)
    assert built.param_groups[0]["momentum"] == 0.5
    set_learning_rates(built, {"backbone": 1.0, "head": 2.0, "masks": 3.0})
    assert [group["lr"] for group in built.param_groups] == [1.0, 2.0, 3.0]


def test_options_of_the_built_in_optimizers() -> None:
    built = created(optimizer_options={"betas": "0.8,0.95", "amsgrad": True})
    assert built.param_groups[0]["betas"] == (0.8, 0.95)
    assert built.param_groups[0]["amsgrad"] is True
    assert created(optimizer="adamw", optimizer_options={"betas": (0.7, 0.9)}).param_groups[0]["betas"] == (0.7, 0.9)


class Functions(torch.optim.SGD):
    """Keeps in its state what no checkpoint can hold."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            group["log"] = print


class NoDecay(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad, alpha=-group["lr"])


@pytest.mark.parametrize(
    ("settings", "message", "field"),
    [
        ({"optimizer": "sgd"}, "unknown `optimizer` 'sgd'", "optimizer"),
        ({"optimizer": "torch.optim:SDG"}, "unknown name in torch.optim 'SDG'; did you mean 'SGD'", "optimizer"),
        ({"optimizer": "torch.optim:lr_scheduler"}, "pass adam, adamw, or your own", "optimizer"),
        ({"optimizer": "torch.optim:LBFGS", "weight_decay": 0.0}, "LBFGS.*per-parameter options", "optimizer_options"),
        ({"optimizer": dict}, "'dict' cannot be created|returns dict", None),
        ({"optimizer": lambda groups: groups, "weight_decay": 0.0}, "returns list", "optimizer"),
        ({"optimizer": NoDecay}, "has no weight decay, and `weight_decay` is 0.0001", "weight_decay"),
        ({"optimizer": Functions}, "a state that a checkpoint cannot hold", "optimizer"),
        ({"optimizer": "torch.optim:SGD", "fused": True}, "`fused` is for the optimizers adam and adamw", "fused"),
        ({"optimizer_options": {"lr": 1.0}}, "`optimizer_options` cannot have lr", "lr"),
        ({"optimizer_options": {"eps": -1.0}}, "Invalid epsilon", "optimizer_options"),
        ({"optimizer_options": {"momentum": 0.9}}, "unexpected keyword argument 'momentum'", "optimizer_options"),
    ],
)
def test_what_is_no_optimizer_says_why(settings: dict[str, Any], message: str, field: str | None) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        created(**settings)
    assert field is None or refused.value.field == field


def test_an_optimizer_without_weight_decay() -> None:
    assert isinstance(created(optimizer=NoDecay, weight_decay=0.0), NoDecay)


def falling(epochs_done: float, config: dc.TrainConfig) -> float:
    return 1 / (1 + epochs_done)


def test_a_schedule_of_one_s_own_and_the_warmup() -> None:
    name = f"{__name__}:falling"
    for schedule in (falling, name):
        config = TrainConfig(epochs=4, lr_schedule=schedule, lr=0.1, warmup_epochs=1.0)
        check_schedule(config)
        assert [lr_factor(e, config) for e in (0.0, 0.5, 1.0, 3.0)] == [0.0, 0.5 / 1.5, 0.5, 0.25]
        assert learning_rates(3.0, phase_at(3, config, 2), config)["backbone"] == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("linear", "unknown `lr_schedule` 'linear'"),
        ("divcon.training.schedule:nothing", "unknown name in divcon.training.schedule 'nothing'"),
        (lambda epochs_done: 1.0, "called as schedule.epochs_done, config"),
        (lambda epochs_done, config: math.nan, "returns nan after 0 epochs"),
        (lambda epochs_done, config: 2.0 - epochs_done, "returns -1.0 after 3 epochs"),
        (torch.optim.lr_scheduler.StepLR, "called as schedule"),
    ],
)
def test_what_is_no_schedule_says_why(schedule: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        check_schedule(TrainConfig(epochs=4, lr_schedule=schedule))
    assert refused.value.field == "lr_schedule"


def test_moments_of_any_optimizer_are_copied_to_children() -> None:
    from divcon.training.setup import double_learners

    settings = TrainConfig(optimizer="torch.optim:SGD", optimizer_options={"momentum": 0.9}, hierarchy=True)
    settings = TrainConfig(**{**vars(settings), "loss": "MarginLoss", "loss_options": {"learn_beta": True}})
    model = EmbeddingModel("none", 8, 2, vector_dim=6, method="masks")
    model.head.start_with_one()  # type: ignore[operator, union-attr]
    objectives = create_objectives(settings, model.head, 4)
    optimizer = create_optimizer(model, objectives, settings)
    set_learning_rates(optimizer, dict.fromkeys(("backbone", "head", "masks"), 0.1))
    for parameter in (model.head.masks, objectives[0].loss.beta):  # type: ignore[union-attr]
        parameter.grad = torch.ones_like(parameter)  # type: ignore[union-attr, arg-type]
    optimizer.step()
    double_learners(model, objectives, optimizer)
    assert isinstance(objectives[1], nn.Module)
    assert torch.equal(objectives[0].loss.beta, objectives[1].loss.beta)  # type: ignore[union-attr, arg-type]
    moments = [optimizer.state[objective.loss.beta]["momentum_buffer"] for objective in objectives[:2]]  # type: ignore
    assert torch.equal(*moments)
    assert moments[0].data_ptr() != moments[1].data_ptr()
    masks = optimizer.state[model.head.masks]["momentum_buffer"]  # type: ignore[index]
    assert torch.equal(masks[0], masks[1])
