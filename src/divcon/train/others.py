"""Training with other processes that it starts itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from divcon.config import TrainConfig
from divcon.data.image_set import ImageSet
from divcon.launch import together
from divcon.models import EmbeddingModel
from divcon.processes import Processes
from divcon.train.device import resolve_device
from divcon.train.report import EpochReport
from divcon.train.setup import check

Train = Callable[..., Iterator[EpochReport]]


def with_others(
    train: Train,
    model: EmbeddingModel,
    images: ImageSet,
    config: TrainConfig,
    checkpoint: str | Path | None,
    **callbacks: Any,
) -> Iterator[EpochReport]:
    """What ``train`` yields, as the first of ``config.devices`` processes that call it."""
    if config.num_devices > 1:
        check(model, images, config)  # before any is started
    device = resolve_device(config.device)
    given = (train, model, images, config, checkpoint)
    with together(config.num_devices, config.across, device, _follow, *given) as processes:
        yield from train(model, images, config, checkpoint=checkpoint, processes=processes, **callbacks)


def _follow(
    processes: Processes,
    train: Train,
    model: EmbeddingModel,
    images: ImageSet,
    config: TrainConfig,
    checkpoint: str | Path | None,
) -> None:
    # PyTorch hands tensors to a process that is started as memory that both share.
    for _ in train(copy.deepcopy(model), images, config, checkpoint=checkpoint, processes=processes):
        pass
