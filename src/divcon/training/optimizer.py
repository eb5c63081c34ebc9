"""The optimiser: groups of weights with learning rate and weight decay of their own, and a step over all processes.

It is ``adam`` or ``adamw``, or one of your own: ``module:Name``, a class, or a function of the groups.
"""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import param_groups_weight_decay  # type: ignore[reportPrivateImportUsage]
from torch import nn

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.models import EmbeddingModel
from divcon.runtime.context import Context
from divcon.training.gradients import Gradients
from divcon.training.own import name_in_words, resolve
from divcon.training.precision import Precision
from divcon.training.proxies import ClusterProxies

_BUILT_IN = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_NUMBERS = re.compile(r"\s*[-+.\de]+(\s*,\s*[-+.\de]+)+\s*")
"""``0.9,0.95``: how the command line and files write several numbers, such as betas."""


def create_optimizer(model: EmbeddingModel, objectives: nn.ModuleList, config: TrainConfig) -> torch.optim.Optimizer:
    """Create the optimiser of a model and its objectives.

    Its groups have a ``name``, by which `set_learning_rates` sets their learning rates before each step.

    Raises:
        ConfigError: there is no such optimiser, or it takes no such options or groups.
    """
    return _create(parameter_groups(model, objectives, config), config)


def check_optimizer(config: TrainConfig) -> None:
    """Check that the optimiser can be created, takes steps, and can be saved, on two weights.

    Raises:
        ConfigError: it cannot; the message says why.
    """
    name = config.optimizer if isinstance(config.optimizer, str) else name_in_words(config.optimizer)
    weights = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [p], "weight_decay": config.weight_decay, "name": "head"} for p in weights]
    optimizer = _create(groups, config)
    for parameter in weights:
        parameter.grad = torch.ones_like(parameter)
    set_learning_rates(optimizer, {"head": config.lr})
    try:
        optimizer.step()
    except Exception as error:
        raise ConfigError(
            f"optimizer {name!r} cannot take a step as divcon takes it, `optimizer.step()` after the backward pass "
            f"({type(error).__name__}: {error})",
            field="optimizer",
        ) from error
    saved = io.BytesIO()
    try:
        torch.save(optimizer.state_dict(), saved)
        saved.seek(0)
        torch.load(saved, weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"optimizer {name!r} has a state that a checkpoint cannot hold, which holds tensors and plain values "
            f"({type(error).__name__}: {error})",
            field="optimizer",
        ) from error


def _create(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    for name, setting in (("lr", "`lr`, `head_lr` and `mask_lr`"), ("weight_decay", "`weight_decay`")):
        if name in config.optimizer_options:
            raise ConfigError(f"`optimizer_options` cannot have {name}: it is set by {setting}", field=name)
    options = {name: _value(value) for name, value in config.optimizer_options.items()}
    kind: Any = config.optimizer
    if isinstance(kind, str) and kind in _BUILT_IN:
        kind = _BUILT_IN[kind]
        options = {"weight_decay": config.weight_decay, "fused": config.fused or None, **options}
    else:
        kind = resolve(kind, "optimizer")
        options = _options_of_own(kind, options, config)
    try:
        optimizer = kind(groups, **options)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"optimizer {name_in_words(kind)!r} cannot be created with groups of weights and {options} ({error}); pass "
            "its arguments as `optimizer_options`",
            field=("optimizer_options", "optimizer"),
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer {name_in_words(kind)!r} returns {type(optimizer).__name__}, and divcon needs a "
            "torch.optim.Optimizer",
            field="optimizer",
        )
    return optimizer


def _options_of_own(kind: Any, options: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    if not callable(kind) or isinstance(kind, torch.optim.Optimizer):
        raise ConfigError(
            f"`optimizer` is {kind!r}: pass adam, adamw, or your own as module:Name, a class of torch.optim.Optimizer, "
            "or a function that creates one from groups of weights",
            field="optimizer",
        )
    if config.fused:
        raise ConfigError(
            "`fused` is for the optimizers adam and adamw; one of your own takes it in `optimizer_options`",
            field=("fused", "optimizer"),
        )
    parameters = _parameters(kind)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if config.weight_decay and not takes_any and "weight_decay" not in parameters:
        raise ConfigError(
            f"optimizer {name_in_words(kind)!r} has no weight decay, and `weight_decay` is {config.weight_decay}: set "
            "`weight_decay=0`",
            field=("weight_decay", "optimizer"),
        )
    return {"lr": config.lr, **options} if "lr" in parameters else options


def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(kind).parameters
    except ValueError:  # of a built-in class, which has none that Python can read
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}


def _value(value: Any) -> Any:
    if isinstance(value, str) and _NUMBERS.fullmatch(value):
        return tuple(float(number) for number in value.split(","))
    return value


def parameter_groups(model: EmbeddingModel, objectives: nn.ModuleList, config: TrainConfig) -> list[dict[str, Any]]:
    """Everything that is trained, in groups of one learning rate and weight decay; those of the backbone first."""
    masks = model.head.subspace_parameters()
    head = nn.ModuleList([model.head, objectives])
    # Masks have a group of their own; a loss may have constants that are not trained.
    excluded = {id(p) for p in (*masks, *(p for p in head.parameters() if not p.requires_grad))}
    groups: list[dict[str, Any]] = []
    for name, module in (("backbone", model.backbone), ("head", head)):
        for group in _by_decay(module, config):
            groups.append({**group, "name": name, "params": [p for p in group["params"] if id(p) not in excluded]})
    groups.append({"name": "masks", "params": masks, "weight_decay": config.mask_weight_decay})
    # As in the authors' code: ten times the backbone's learning rate, which is the head's by default, and no decay.
    groups.append({"name": "head", "params": list(model.pooling.parameters()), "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _by_decay(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """With AdamW, weights with and without decay, by timm's rule; with any other optimiser, all together."""
    if config.optimizer != "adamw":
        return [{"params": list(module.parameters()), "weight_decay": config.weight_decay}]
    without = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()  # type: ignore[operator]
    return param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=without)


def set_learning_rates(optimizer: Any, rates: Mapping[str, float]) -> None:
    """Set the learning rate of each group of weights by its ``name``."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]


def take_step(
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    objectives: nn.ModuleList,
    model: EmbeddingModel,
    gradients: Gradients,
    context: Context,
) -> None:
    """Take a step of the optimiser, on the gradients of all processes."""
    group = context.group
    if not group.alone:
        for module in objectives.modules():
            if isinstance(module, ClusterProxies):
                module.restore()  # as the process that computed with it has done
        gradients.all_reduce(optimizer)
    precision.step(optimizer)
    if not group.alone:
        group.average_statistics(model.backbone)
