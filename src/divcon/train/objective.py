"""A learner's objective: a loss, the miner that feeds it, and what a division means to them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from divcon.errors import ConfigError
from divcon.train.class_rows import ClassRows
from divcon.train.device import to_device
from divcon.train.memory import Memory
from divcon.train.miner import TripletMiner


class Objective(nn.Module):
    """A loss and the miner that feeds it, in float32 under any precision.

    All that training changes in it is in ``state_dict``, as tensors and plain numbers: proxies and betas, the memory
    with its position, histograms. The classes that `divided` was told are not: it is called again after a resume.

    Args:
        loss: of pytorch-metric-learning, or a `ClassRows` or `Memory` around one.
        miner: what picks the pairs or triplets of a batch. None: all of them, or those that a `Memory`'s miner picks.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        for module in self.modules():
            _tensors_to_buffers(module)

    def divided(self, classes: Int64[Tensor, "c"] | Int64[np.ndarray, "c"] | None) -> None:
        """The learner's cluster has these (c,) classes; None: all. A loss with proxies compares with theirs alone from
        now on, and leaves the others as they are; other losses know no classes, and ignore it."""
        for module in self.modules():
            if isinstance(module, ClassRows):
                module.divided(classes)

    def forget(self) -> None:
        """Empty the memory, if there is one: what is in it are images of another cluster."""
        if isinstance(self.loss, Memory):
            self.loss.forget()

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Int64[Tensor, "B"]) -> Float[Tensor, ""]:
        """The loss, a scalar, of (B, d) embeddings and their (B,) labels, which are on the CPU: what follows from them
        alone is then known there, and an accelerator need not be waited for.

        Raises:
            ConfigError: loss or miner cannot compute this batch; the message says why and what to do.
            ValueError: a label is not of the classes that `divided` was told.
        """
        known = labels.cpu()
        for module in self.modules():
            if isinstance(module, ClassRows):
                module.check(known)
        labels = to_device(known, embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            # An embedding that is zero (of a dead mask) has no direction: normalised once more in the loss, it would
            # get the gradient divided by the normalisation's epsilon, a million millions times too large.
            alive = (embeddings != 0).any(dim=1, keepdim=True)
            embeddings = torch.where(alive, embeddings, embeddings.detach())
            try:
                own = isinstance(self.miner, TripletMiner)
                tuples = self.miner(embeddings, known if own else labels) if self.miner is not None else None
                loss = self.loss(embeddings, labels, tuples)
                loss = loss.reshape(())
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:
                raise ConfigError(self._cannot(known, error)) from error
        for module in self.loss.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.requires_grad:  # DynamicSoftMarginLoss's histogram would keep the graphs of all past batches
                    setattr(module, name, buffer.detach())
        return loss

    def _cannot(self, labels: Int64[Tensor, "B"], error: Exception) -> str:
        loss = self.loss
        while isinstance(loss, (Memory, ClassRows)):
            loss = loss.loss  # type: ignore[assignment]
        miner = self.loss.miner if isinstance(self.loss, Memory) else self.miner
        names = type(loss).__name__ + ("" if miner is None else f" with miner {type(miner).__name__}")
        counts = labels.unique(return_counts=True)[1].tolist()
        reason, todo = str(error).strip().rstrip("."), "look at their arguments, or use another --loss or --miner"
        if "indices_tuple is not supported" in reason:
            reason, todo = "this loss picks its pairs itself", "use --miner none"
        elif isinstance(error, IndexError) or "out of bounds" in reason:
            reason = f"a distance or a number is outside of what it was made for: {reason}"
        elif not reason:
            reason = f"{type(error).__name__} inside the library"
        sizes = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        return (
            f"{names} cannot compute a batch of {len(labels)} images, {len(counts)} classes with {sizes} images each: "
            f"{reason}; {todo}"
        )


def _tensors_to_buffers(module: nn.Module) -> None:
    """Plain tensors of a loss, such as a histogram that grows with each batch, become buffers: saved with a checkpoint,
    and moved to the device."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and not isinstance(module, (ClassRows, Memory)):
            delattr(module, name)
            # Not every device knows float64.
            module.register_buffer(name, value.float() if value.dtype == torch.float64 else value)
