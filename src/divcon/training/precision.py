"""The precision that training computes in: PyTorch's autocast, and for fp16 its gradient scaler."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

_LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How a network is run and its weights are updated: in float32, or with lower precision where PyTorch's autocast
    holds it to be safe. The weights, what the network returns, and the losses are float32.

    Args:
        name: fp32, bf16 or fp16.
        device: that computes.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._dtype = _LOWER.get(name)
        self._device = device
        # Gradients of fp16 are too small for it, unless the loss is scaled.
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a pass through the network."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device.type, dtype=self._dtype)

    def forward(self, network: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Tensor, ...]:
        """Run a network that returns tensors; those of lower precision become float32."""
        with self.autocast():
            outputs = network(*inputs, **options)
        return tuple(output.float() for output in outputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step of the optimiser. In fp16 none is taken where a gradient is not finite."""
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scale of the loss in fp16; else empty."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)
