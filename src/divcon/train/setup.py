"""What training stands on: the device, the objectives, the optimiser, the random numbers; checked before it begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn

from divcon.config import TrainConfig
from divcon.data.image_set import ImageSet
from divcon.errors import ConfigError, DataError
from divcon.models import EmbeddingModel
from divcon.train.device import resolve_device
from divcon.train.losses import create_objectives

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def check(model: EmbeddingModel, images: ImageSet, config: TrainConfig) -> tuple[Fabric, nn.ModuleList]:
    """Fabric on one device, and the objectives: all that can be refused before the first image is decoded.

    Raises:
        ConfigError: the device is not there or cannot compute in that precision; a loss or miner is unknown.
        DataError: too few classes or images.
    """
    if images.num_classes < 2:
        raise DataError(f"{images.source}: {images.num_classes} class to train on; metric learning needs two at least")
    parts, what = (images.num_classes, "classes") if config.divide_by == "class" else (len(images), "images")
    if model.num_learners > parts:
        raise DataError(
            f"--learners {model.num_learners}: the {parts} training {what} cannot be divided among so many learners"
        )
    device = resolve_device(config.device)
    if config.precision == "fp16" and device != "cuda":
        raise ConfigError(f"--precision fp16 needs CUDA, and this runs on {device}; use bf16 or fp32")
    fabric = Fabric(accelerator=device, devices=1, precision=_PRECISION[config.precision])  # type: ignore[arg-type]
    return fabric, create_objectives(config, model.head, images.num_classes)


def set_up(
    fabric: Fabric, model: EmbeddingModel, objectives: nn.ModuleList, config: TrainConfig
) -> tuple[Any, Any, nn.ModuleList]:
    """The model and Adam over it and its objectives, wrapped by Fabric, on Fabric's device."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = [p for p in objectives.parameters() if p.requires_grad]
    groups = [
        {"params": list(model.backbone.parameters()), "lr": config.lr},
        {"params": list(model.head.parameters()) + own, "lr": config.head_lr},
    ]
    objectives.to(fabric.device)
    optimizer = torch.optim.Adam(groups, weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    network, optimizer = fabric.setup(model, optimizer)
    return network, optimizer, objectives


def seed_epoch(seed: int, epoch: int) -> None:
    """Dropout and mining draw from the global generator: started anew, an epoch depends on no epoch before it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]))
