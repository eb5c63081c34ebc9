"""What training stands on: the device, the objectives, the optimiser, the random numbers; checked before it begins."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from timm.optim import param_groups_weight_decay  # type: ignore[reportPrivateImportUsage]
from torch import nn

from divcon.config.settings import TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.division import Division
from divcon.errors import ConfigError, DataError
from divcon.models import EmbeddingModel
from divcon.models.inputs import check_sees
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.device import resolve_device
from divcon.training.losses import create_objectives, keeps_state
from divcon.training.proxies import ClusterProxies

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_COMPILERS = (os.environ.get("CXX", "c++"), "g++", "clang++")
_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def check(
    model: EmbeddingModel, images: LabeledSet, config: TrainConfig, context: Context = DEFAULT
) -> tuple[Fabric, nn.ModuleList]:
    """Fabric on this process's device, and the objectives: all that can be refused before the first image is decoded.

    Raises:
        ConfigError: the device is not there or cannot compute in that precision; a loss or miner is unknown; what is to
            be trained cannot be shared out among several devices so.
        DataError: too few classes or images, or images where the model sees vectors.
    """
    check_sees(images, model.vector_dim)
    if images.num_classes < 2:
        raise DataError(f"{images.source}: {images.num_classes} class to train on; metric learning needs two at least")
    parts, what = (images.num_classes, "classes") if config.divide_by.endswith("class") else (len(images), "images")
    if model.num_learners > parts:
        raise DataError(
            f"--learners {model.num_learners}: the {parts} training {what} cannot be divided among so many learners"
        )
    device = resolve_device(config.device)
    if config.precision == "fp16" and device != "cuda":
        raise ConfigError(f"--precision fp16 needs CUDA, and this runs on {device}; use bf16 or fp32")
    if config.compile and device == "cpu" and not any(map(shutil.which, _COMPILERS)):
        raise ConfigError(f"--compile needs a C++ compiler on the CPU ({', '.join(_COMPILERS)}); leave it out")
    devices: Any = [context.group.rank] if device == "cuda" and not context.group.alone else 1
    fabric = Fabric(accelerator=device, devices=devices, precision=_PRECISION[config.precision])  # type: ignore[arg-type]
    if config.hierarchy and config.divide_by == "none":
        raise ConfigError("--hierarchy splits clusters, and --divide-by none makes none; leave one of them out")
    if config.hierarchy:
        _check_hierarchy(model, config)
    objectives = create_objectives(config, model.head, images.num_classes)
    if config.num_devices > 1 and config.across == "learners":
        _check_shared_out(objectives[-1], model.embedding_dim, config)
    return fabric, objectives


def _check_shared_out(objective: nn.Module, dim: int, config: TrainConfig) -> None:
    """Learners that train at once know nothing of each other's batches."""
    what = "--divide-on bank" if config.divide_on == "bank" else "--memory-size" if config.memory_size else None
    if what is None and keeps_state(objective, dim, config):
        what = f"--loss {config.loss}"
    if what is not None:
        raise ConfigError(
            f"{what} keeps something of each batch, which processes of other learners would not know; share out the "
            "images of each batch (--across batch), or leave --devices out"
        )


def _check_hierarchy(model: EmbeddingModel, config: TrainConfig) -> None:
    learners = model.head.max_learners
    if not model.head.can_double:
        raise model.head.no_hierarchy()
    if learners < 2 or learners & (learners - 1):
        raise ConfigError(
            f"--hierarchy doubles the learners at each division: give --learners 2, 4, 8, ..., not {learners}"
        )
    joint = config.phase_starts[0]
    needed = config.redivide_every * (learners.bit_length() - 1)
    if joint <= needed:
        raise ConfigError(
            f"--hierarchy has all {learners} learners from epoch {needed} on, and the subspace phase ends before epoch "
            f"{joint}; give more --epochs, a later --joint-epoch or --finetune-epoch, a smaller --redivide-every, or "
            "fewer --learners"
        )


def grow(model: EmbeddingModel, objectives: nn.ModuleList, optimizer: torch.optim.Optimizer) -> None:
    """Double the learners: each child begins with its parent's mask and its loss's own parameters, and with what the
    optimiser has gathered for both (2021, hierarchy)."""
    head = model.head
    moments = [
        value
        for parameter in head.subspace_parameters()
        for value in optimizer.state.get(parameter, {}).values()
        if value.shape == parameter.shape
    ]
    # From the last on, so that no parent is overwritten before its children are born.
    for child in reversed(range(2 * head.num_learners)):
        _inherit(objectives[child], objectives[child // 2], optimizer)
    head.double(moments)


def _inherit(child: nn.Module, parent: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if child is parent:
        return
    child.load_state_dict(parent.state_dict())
    for mine, theirs in zip(child.parameters(), parent.parameters(), strict=True):
        if theirs in optimizer.state:
            optimizer.state[mine] = {name: value.clone() for name, value in optimizer.state[theirs].items()}


def set_up(
    fabric: Fabric, model: EmbeddingModel, objectives: nn.ModuleList, config: TrainConfig
) -> tuple[Any, Any, nn.ModuleList]:
    """The model and the optimiser over it and its objectives, wrapped by Fabric, on Fabric's device; the learning rates
    of its groups, by their ``name``, are `divcon.training.schedule.learning_rates`."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.hierarchy:
        model.head.start_with_one()
    groups = _groups(model, objectives, config)
    objectives.to(fabric.device)
    optimizer = _OPTIMIZERS[config.optimizer](groups, weight_decay=config.weight_decay, fused=config.fused or None)
    if config.compile:
        # In place, so that weights keep their names; what comes after it branches by learner.
        model.backbone.compile()
    network, optimizer = fabric.setup(model, optimizer)
    return network, optimizer, objectives


def _groups(model: EmbeddingModel, objectives: nn.ModuleList, config: TrainConfig) -> list[dict[str, Any]]:
    """What is trained, in groups of one learning rate and weight decay; those of the backbone first."""
    masks = model.head.subspace_parameters()
    head = nn.ModuleList([model.head, objectives])
    # Masks have a group of their own; a loss may have constants that are not trained.
    apart = {id(p) for p in (*masks, *(p for p in head.parameters() if not p.requires_grad))}
    groups: list[dict[str, Any]] = []
    for name, module in (("backbone", model.backbone), ("head", head)):
        for group in _by_decay(module, config):
            groups.append({**group, "name": name, "params": [p for p in group["params"] if id(p) not in apart]})
    groups.append({"name": "masks", "params": masks, "weight_decay": config.mask_weight_decay})
    # As in the authors' code: ten times the backbone's learning rate, which the head's is by default, and no decay.
    groups.append({"name": "head", "params": list(model.pooling.parameters()), "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _by_decay(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Under AdamW, what decays and what does not, by timm's rule; under Adam, all together."""
    if config.optimizer == "adam":
        return [{"params": list(module.parameters()), "weight_decay": config.weight_decay}]
    left_out = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()  # type: ignore[operator]
    return param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=left_out)


def seed_batch(seed: int, epoch: int, number: int) -> None:
    """Dropout and mining draw from the global generator: started anew, a batch depends neither on the batches before it
    nor on the process that trains on it."""
    drawn = int(np.random.SeedSequence([seed, epoch, number]).generate_state(1, np.uint64)[0])
    # torch.manual_seed formats the stack for every device not yet started, which takes as long as a step on vectors.
    torch.default_generator.manual_seed(drawn)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(drawn)
    if torch.mps.is_available():
        torch.mps.manual_seed(drawn)


def set_rates(optimizer: Any, rates: Mapping[str, float]) -> None:
    """Give each group of parameters the learning rate of its ``name``."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]


def take_step(optimizer: Any, objectives: nn.ModuleList, model: EmbeddingModel, context: Context) -> None:
    """A step of the optimiser on the batches of all processes."""
    group = context.group
    if not group.alone:
        backbone = nn.ModuleList([model.backbone, model.pooling])
        for module in objectives.modules():
            if isinstance(module, ClusterProxies):
                module.restore()  # as the process has done that computed with it
        group.all_reduce_gradients(optimizer, backbone)
    optimizer.step()
    if not group.alone:
        group.average_statistics(model.backbone)


def tell(objectives: nn.ModuleList, division: Division, labels: np.ndarray, num_learners: int, *, new: bool) -> None:
    """Tell each learner's objective which classes its cluster has; what it remembers of another cluster's images is
    forgotten when the division is ``new``."""
    for learner in range(num_learners):
        objective: Any = objectives[learner]
        objective.set_classes(torch.from_numpy(np.unique(labels[division.indices(learner)])))
        if new:
            objective.reset_memory()
