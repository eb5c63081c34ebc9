"""The processes that train one model together, each on a device of its own, and what they tell each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from divcon.errors import ConfigError


class ProcessGroup:
    """This process among those that train together; made without arguments, it is alone.

    All of them run the same code on the same data, and hold the same weights after each step. What is asked of the
    others here is asked of all at the same place; each waits for all.

    Args:
        rank: from 0; the process of rank 0 alone writes, and tells what goes on.
        world_size: how many there are.
        across: what they share out: ``learners``, the batches of a step, each of another learner; or ``batch``, the
            images of each batch.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, across: str = "learners") -> None:
        self.rank = rank
        self.world_size = world_size
        self.across = across

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def batches(self, step: range) -> range:
        """The numbers of a step's batches that this process trains on."""
        if self.across == "batch":
            return step
        return step[self.rank :: self.world_size]

    def images(self, size: int) -> slice:
        """Which of a batch's images this process decodes and passes through the backbone.

        Raises:
            ConfigError: there are fewer images than processes to share them out among.
        """
        if self.across != "batch":
            return slice(0, size)
        if size < self.world_size:
            raise ConfigError(
                f"--devices {self.world_size} cannot share out a batch of {size} images, as a small cluster has "
                "(--across batch); give fewer --devices, fewer --learners or --across learners"
            )
        return self.shard(size)

    def shard(self, size: int) -> slice:
        """Which of so many rows this process works on: in order, and as many as any other's or one fewer."""
        bounds = [size * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def all_gather(self, mine: Float[Tensor, "n ..."], size: int) -> Float[Tensor, "N ..."]:
        """All ``size`` rows, of which each process gives its `shard`. Without gradients."""
        if self.alone:
            return mine
        most = -(-size // self.world_size)
        padded = torch.zeros(most, *mine.shape[1:], dtype=mine.dtype, device=mine.device)
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        others = [ProcessGroup(rank, self.world_size).shard(size) for rank in range(self.world_size)]
        return torch.cat([part[: s.stop - s.start] for part, s in zip(parts, others, strict=True)])

    def barrier(self) -> None:
        """Until all have come here."""
        self.all_reduce(np.zeros(1))

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """The sum of all processes' arrays, float64."""
        total = torch.from_numpy(np.array(values, np.float64))
        if not self.alone:
            dist.all_reduce(total)
        return total.numpy()

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """The array of the process of rank 0, of the same shape and type in all."""
        if self.alone:
            return values
        found = torch.from_numpy(np.array(values))
        dist.broadcast(found, 0)
        return found.numpy()

    @torch.no_grad()
    def broadcast_parameters(self, *modules: nn.Module) -> None:
        """All take the state of the modules of the process of rank 0."""
        if not self.alone:
            for module in modules:
                for value in (*module.parameters(), *module.buffers()):
                    found = value.detach().contiguous()  # as channels-last weights are not
                    dist.broadcast(found, 0)
                    value.copy_(found)

    @torch.no_grad()
    def all_reduce_gradients(self, optimizer: torch.optim.Optimizer, backbone: nn.Module) -> None:
        """After the last backward pass of a step: give all processes the gradient of the whole step.

        Across learners each process has the gradient of its own batches, and the sum is that of the step. Across a
        batch each has that of its own images in the backbone, of which the sum is taken, and that of all images in
        what comes after it, of which the mean is: they are equal but for rounding.

        Args:
            backbone: what sees the images of this process alone, when they are shared out across a batch.
        """
        if self.alone:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Where no process has a gradient there is to be none: an optimiser leaves such a parameter alone.
        have = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        dist.all_reduce(have)
        apart = {id(p) for p in backbone.parameters()}
        found: dict[tuple[torch.dtype, torch.device], list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter, some in zip(parameters, have.tolist(), strict=True):
            if some:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                if self.across == "batch" and id(parameter) not in apart:
                    gradient = gradient / self.world_size
                parameter.grad = gradient
                found.setdefault((gradient.dtype, gradient.device), []).append((parameter, gradient))
        for of_a_kind in found.values():
            flat = torch.cat([gradient.reshape(-1) for _, gradient in of_a_kind])
            dist.all_reduce(flat)
            for (_, gradient), whole in zip(of_a_kind, flat.split([p.numel() for p, _ in of_a_kind]), strict=True):
                gradient.copy_(whole.view_as(gradient))

    @torch.no_grad()
    def average_statistics(self, backbone: nn.Module) -> None:
        """After a step: where batch normalisation is trained, all go on with the mean of their running statistics."""
        if self.alone:
            return
        kinds = nn.modules.batchnorm._BatchNorm
        trained = [m for m in backbone.modules() if isinstance(m, kinds) and m.training and m.running_mean is not None]
        if trained:
            values: list[Any] = [value for m in trained for value in (m.running_mean, m.running_var)]
            flat = torch.cat(values) / self.world_size
            dist.all_reduce(flat)
            for value, mean in zip(values, flat.split([len(v) for v in values]), strict=True):
                value.copy_(mean)

    @contextmanager
    def gathered_batch(self, pooling: nn.Module) -> Iterator[None]:
        """In the block, across a batch: what ``pooling`` gives in training are the features of all of the batch's
        images, (B, F), where it got those of this process; the gradient goes back to these."""

        def gather(module: nn.Module, inputs: Any, features: Tensor) -> Any:
            return _Gather.apply(features, self) if module.training else features

        if self.alone or self.across != "batch":
            yield
            return
        hook = pooling.register_forward_hook(gather)
        try:
            yield
        finally:
            hook.remove()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, processes: ProcessGroup) -> Tensor:
        size = int(processes.all_reduce(np.array([len(features)]))[0])
        ctx.mine = processes.shard(size)
        return processes.all_gather(features.contiguous(), size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.mine], None


ALONE = ProcessGroup()
