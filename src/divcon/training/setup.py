"""Checks and set-up before the first epoch: the device, the objectives, the network, the optimiser."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from divcon.config.fields import doors
from divcon.config.settings import TrainConfig
from divcon.data.augmentation import create_augmentation
from divcon.data.labeled_set import LabeledSet
from divcon.data.transforms import create_transform
from divcon.division import Division
from divcon.errors import ConfigError, DataError
from divcon.models import EmbeddingModel
from divcon.models.inputs import check_input
from divcon.runtime.device import resolve_device
from divcon.runtime.launchers import is_restarted_alone, started_size
from divcon.training.losses import create_objectives, keeps_state
from divcon.training.optimizer import check_optimizer, create_optimizer
from divcon.training.own import name_in_words
from divcon.training.schedule import check_schedule

_COMPILERS = (os.environ.get("CXX", "c++"), "g++", "clang++")


def check(model: EmbeddingModel, images: LabeledSet, config: TrainConfig) -> nn.ModuleList:
    """Check the data and settings before the first image is decoded, and create the objectives.

    Returns:
        An objective for each learner, and one for the full embedding (see `divcon.training.losses`).

    Raises:
        ConfigError: the device does not exist or cannot compute in that precision; a loss, miner, optimizer or schedule
            cannot work; or the training cannot be distributed over several devices.
        DataError: there are too few classes or images, or the model takes other input.
    """
    check_input(images, model.vector_dim)
    if images.num_classes < 2:
        raise DataError(f"{images.source}: {images.num_classes} class to train on; metric learning needs two at least")
    by_class = config.divide_by.endswith("class")
    count, items = (images.num_classes, "classes") if by_class else (len(images), "images")
    if model.num_learners > count:
        raise DataError(
            f"the {count} training {items} cannot be divided among {model.num_learners} learners (`num_learners`)"
        )
    if config.train_transform is not None:
        if images.vectors is not None:
            raise ConfigError("`train_transform`: vectors are not transformed; leave it out", field="train_transform")
        if model.channels != 3:
            raise ConfigError(
                f"`train_transform`: takes colour images, and the model's have {model.channels} channels (`channels`); "
                "leave it out",
                field=("train_transform", "channels"),
            )
        create_transform(config.train_transform, model.image_size, "train_transform")
    if config.augment:
        if images.vectors is not None:
            raise ConfigError("`augment`: vectors are not transformed; leave it out", field="augment")
        create_augmentation(config.augment, model.preprocessing.fill)
    device = resolve_device(config.device)
    if config.precision == "fp16" and device != "cuda":
        raise ConfigError(
            f"`precision=fp16` needs CUDA, and this runs on {device}; use bf16 or fp32", field=("precision", "device")
        )
    if config.compile and device == "cpu" and not any(map(shutil.which, _COMPILERS)):
        raise ConfigError(
            f"`compile` needs a C++ compiler on the CPU ({', '.join(_COMPILERS)}); leave it out", field="compile"
        )
    model.recompute_activations(config.grad_checkpointing)
    if config.hierarchy:
        _check_hierarchy(model, config)
    check_schedule(config)
    check_optimizer(config)
    objectives = create_objectives(config, model.head, images.num_classes)
    if config.num_devices > 1:
        if started_size() is None:
            _check_importable(config)
        if config.across == "learners":
            _check_learners_across_devices(objectives[-1], model.embedding_dim, config)
    return objectives


def _check_importable(config: TrainConfig) -> None:
    """Refuse parts of your own that other processes cannot import."""
    for name in doors(TrainConfig):
        try:
            pickle.dumps(getattr(config, name))
        except Exception as error:
            raise ConfigError(
                f"`{name}` cannot be passed to other processes ({error}): with several `devices`, define it in a "
                "module that can be imported, and not within a function",
                field=(name, "devices"),
            ) from error


def _check_learners_across_devices(objective: nn.Module, dim: int, config: TrainConfig) -> None:
    """Refuse settings that need the batches of all learners in one process: here each process has those of some."""
    field = "divide_on" if config.divide_on == "bank" else "memory_size" if config.memory_size else "loss"
    if field == "loss" and not keeps_state(objective, dim, config):
        return
    value = getattr(config, field)
    value = value if isinstance(value, (str, int)) else name_in_words(value)
    raise ConfigError(
        f"`{field}={value}` keeps state of each batch, which processes that train other learners do not have; share "
        "out the images of each batch (`across=batch`), or leave `devices` out",
        field=("across", field),
    )


def _check_hierarchy(model: EmbeddingModel, config: TrainConfig) -> None:
    if config.divide_by == "none":
        raise ConfigError(
            "`hierarchy` splits clusters, and with `divide_by=none` there are none; leave one of them out",
            field=("hierarchy", "divide_by"),
        )
    learners = model.head.max_learners
    if not model.head.can_double:
        raise model.head.no_hierarchy()
    if learners < 2 or learners & (learners - 1):
        raise ConfigError(
            f"`hierarchy` doubles the learners at each division: `num_learners` must be 2, 4, 8, ..., not {learners}",
            field=("num_learners", "hierarchy"),
        )
    joint = config.phase_starts[0]
    needed = config.redivide_every * (learners.bit_length() - 1)
    if joint <= needed:
        raise ConfigError(
            f"`hierarchy` has all {learners} learners from epoch {needed} on, and the subspace phase ends before epoch "
            f"{joint}; use more `epochs`, a later `joint_epoch` or `finetune_epoch`, a smaller `redivide_every`, or "
            "fewer `num_learners`",
            field=("epochs", "joint_epoch", "finetune_epoch", "redivide_every", "num_learners"),
        )
    if config.redivide_until is not None and config.redivide_until <= needed:
        raise ConfigError(
            f"`redivide_until` {config.redivide_until}: `hierarchy` doubles to {learners} learners at the division of "
            f"epoch {needed}; use `redivide_until={needed + 1}` or later",
            field=("redivide_until", "hierarchy", "num_learners"),
        )


def on_started_group(config: TrainConfig, *, resumed: bool = False) -> TrainConfig:
    """The settings with ``devices`` as a launcher has started them, where one has: a training that is resumed may have
    more or fewer than before. What is trained stays: where there are more than ``learners_per_step``, these share out
    the images of each batch.

    Raises:
        ConfigError: the batches of a step cannot be shared out among so many, in a training that is not resumed.
    """
    size = started_size() or 1
    if size == config.num_devices or (size == 1 and not is_restarted_alone()):
        return config
    across = "batch" if resumed and size > config.batches_per_step else config.across
    return replace(config, devices=size, across=across)


def training_device(config: TrainConfig) -> torch.device:
    """The device of this process; with several on CUDA, the one that its launch has set."""
    name = resolve_device(config.device)
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def set_up(
    model: EmbeddingModel, objectives: nn.ModuleList, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Move the model and its objectives to the device, and create the optimiser over both."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.hierarchy:
        model.head.start_with_one()
    model.to(device)
    objectives.to(device)
    optimizer = create_optimizer(model, objectives, config)
    if config.compile:
        # In place, so that weights keep their names. Only the backbone: the head branches by learner.
        model.backbone.compile()
    return optimizer


def seed_batch(seed: int, epoch: int, number: int) -> None:
    """Seed the random numbers of dropout and mining, so that a batch depends neither on the batches before it nor on
    the process that trains on it."""
    value = int(np.random.SeedSequence([seed, epoch, number]).generate_state(1, np.uint64)[0])
    # torch.manual_seed formats the stack for every device that is not initialised yet, which takes as long as a step
    # on vectors.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
    if torch.mps.is_available():
        torch.mps.manual_seed(value)


def set_classes(
    objectives: nn.ModuleList, division: Division, labels: np.ndarray, num_learners: int, *, redivided: bool
) -> None:
    """Give each learner's objective the classes of its cluster; after a new division, empty its cross-batch memory."""
    for learner in range(num_learners):
        objective: Any = objectives[learner]
        objective.set_classes(torch.from_numpy(np.unique(labels[division.indices(learner)])))
        if redivided:
            objective.reset_memory()


_RESET = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""The state of PyTorch's optimisers that starts afresh for the masks of a hierarchy when its learners double."""


def double_learners(model: EmbeddingModel, objectives: nn.ModuleList, optimizer: torch.optim.Optimizer) -> None:
    """Double the learners of a hierarchy (2021): each child starts with its parent's mask and its loss's parameters,
    with their optimiser's state. The optimiser's moments of the masks start at zero, as in the released code: with the
    parent's moments two siblings go on in one direction, and stay alike. Other state of an optimiser of your own, such
    as a copy of the weights, is the parent's."""
    head = model.head
    inherited = []
    for parameter in head.subspace_parameters():
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if name in _RESET:
                state[name] = torch.zeros_like(value) if isinstance(value, Tensor) else 0 if name == "step" else value
            elif isinstance(value, Tensor) and value.shape == parameter.shape:
                inherited.append(value)
    # In descending order, so that no parent is overwritten before its children have copied it.
    for child in reversed(range(2 * head.num_learners)):
        _copy_objective(objectives[child // 2], objectives[child], optimizer)
    head.double(inherited)


def _copy_objective(parent: nn.Module, child: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if child is parent:
        return
    child.load_state_dict(parent.state_dict())
    for mine, theirs in zip(child.parameters(), parent.parameters(), strict=True):
        if theirs in optimizer.state:
            optimizer.state[mine] = copy.deepcopy(optimizer.state[theirs])
