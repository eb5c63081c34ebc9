"""The device to compute on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from divcon.errors import ConfigError
from divcon.runtime.launchers import started_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def resolve_device(device: str) -> str:
    """Resolve ``auto`` to the first of cuda, mps and cpu that is available.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch  # here, as below: it takes a second, and what only names a device does not need it

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, is_available in available.items() if is_available)
    if device not in available:
        raise ConfigError(f"`device` {device!r}: must be auto, cuda, mps or cpu", field="device")
    if not available[device]:
        names = ", ".join(name for name, is_available in available.items() if is_available)
        raise ConfigError(f"`device` {device}: PyTorch finds no such device here; available: {names}", field="device")
    return device


@contextmanager
def torch_threads(number: int | None, devices: int = 1) -> Iterator[None]:
    """Let PyTorch use this number of CPU threads inside the block; None: as many as before.

    Args:
        devices: the number of processes that share them; those that torchrun has started each enter this block.
    """
    import torch

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(max(1, number // devices if started_size() else number))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for the work that is queued there."""
    if tensor.device.type != "cpu" or device.type in ("cpu", "mps"):
        return tensor.to(device)
    if device.type == "cuda":
        # A copy from memory that is not pinned waits until the device has done all that is queued.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
