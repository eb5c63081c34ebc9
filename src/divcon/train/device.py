"""Where and in which precision training runs."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric

from divcon.config import TrainConfig
from divcon.errors import ConfigError

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def resolve_device(device: str) -> str:
    """``auto`` becomes cuda, mps or cpu, whichever there is first; anything else must be there.

    Raises:
        ConfigError: the device asked for is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in present.items() if there)
    if device not in present:
        raise ConfigError(f"--device {device}: must be auto, cuda, mps or cpu")
    if not present[device]:
        there = ", ".join(name for name, is_there in present.items() if is_there)
        raise ConfigError(f"--device {device}: PyTorch finds no such device here; there is: {there}")
    return device


def create_fabric(config: TrainConfig) -> Fabric:
    """Fabric on one device.

    Raises:
        ConfigError: the device is not there, or cannot compute in that precision.
    """
    device = resolve_device(config.device)
    if config.precision == "fp16" and device != "cuda":
        raise ConfigError(f"--precision fp16 needs CUDA, and this runs on {device}; use bf16 or fp32")
    return Fabric(accelerator=device, devices=1, precision=_PRECISION[config.precision])  # type: ignore[arg-type]
