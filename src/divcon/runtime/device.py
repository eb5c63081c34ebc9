"""The device to compute on."""

from __future__ import annotations

import torch
from torch import Tensor

from divcon.errors import ConfigError


def resolve_device(device: str) -> str:
    """Resolve ``auto`` to the first of cuda, mps and cpu that is available.

    Raises:
        ConfigError: there is no such device here.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in present.items() if there)
    if device not in present:
        raise ConfigError(f"`device` {device!r}: must be auto, cuda, mps or cpu", field="device")
    if not present[device]:
        available = ", ".join(name for name, is_there in present.items() if is_there)
        raise ConfigError(
            f"`device` {device}: PyTorch finds no such device here; available: {available}", field="device"
        )
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for the work that is queued there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # A copy from memory that is not pinned waits until the device has done all that is queued.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
