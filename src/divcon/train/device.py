"""Where to compute."""

from __future__ import annotations

import torch

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
