"""Where to compute."""

from __future__ import annotations

import torch
from torch import Tensor

from divcon.errors import ConfigError


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


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """What a step needs of the host, on the device: the host does not wait for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Of memory that may be paged out, CUDA waits for all that was asked of it before, and then copies.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
