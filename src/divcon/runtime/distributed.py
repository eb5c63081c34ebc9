"""The process group of distributed training, and its collectives: one process a device."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from divcon.errors import ConfigError


class ProcessGroup:
    """The ranks that train one model, and this process's place among them; by default one process alone.

    All ranks run the same code on the same data and hold the same weights after each step. A collective (`all_gather`,
    `all_reduce`, `broadcast`, `barrier`) must be called by all ranks at the same place; with one rank it does nothing.

    Args:
        rank: of this process, from 0. Rank 0 writes files and reports progress.
        world_size: number of processes.
        across: what the ranks share: ``learners``, the batches of a step, each of another learner; or ``batch``, the
            images of each batch.
        cpu_group: of PyTorch, for tensors on the CPU; None: the default one.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, across: str = "learners", cpu_group: Any = None) -> None:
        self.rank = rank
        self.world_size = world_size
        self.across = across
        self._cpu_group = cpu_group

    @property
    def cpu_group(self) -> Any:
        """The group of PyTorch for tensors on the CPU; None: the default one."""
        return self._cpu_group

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    def batches(self, step: range) -> range:
        """The numbers of a step's batches that this rank trains on."""
        if self.across == "batch":
            return step
        return step[self.rank :: self.world_size]

    def images(self, size: int) -> slice:
        """The images of a batch that this rank decodes and passes through the backbone.

        Raises:
            ConfigError: the batch has fewer images than there are ranks.
        """
        if self.across != "batch":
            return slice(0, size)
        if size < self.world_size:
            raise ConfigError(
                f"`devices` {self.world_size} with `across=batch`: a small cluster gives a batch of {size} images, too "
                "few to share; use fewer `devices`, fewer `num_learners`, or `across=learners`",
                field=("devices", "across", "num_learners"),
            )
        return self.shard(size)

    def shard(self, size: int) -> slice:
        """The rows, of ``size``, that this rank works on. Shards are in the order of ranks, as even as possible."""
        bounds = [size * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def all_gather(self, shard: Float[Tensor, "n ..."], size: int) -> Float[Tensor, "N ..."]:
        """Gather all ``size`` rows from the `shard` of each rank. Without gradients."""
        if self.alone:
            return shard
        longest = -(-size // self.world_size)
        padded = torch.zeros(longest, *shard.shape[1:], dtype=shard.dtype, device=shard.device)
        padded[: len(shard)] = shard
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded)
        places = [ProcessGroup(rank, self.world_size).shard(size) for rank in range(self.world_size)]
        return torch.cat([rows[: place.stop - place.start] for rows, place in zip(gathered, places, strict=True)])

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        self.all_reduce(np.zeros(1))

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """The sum over the arrays of all ranks, float64."""
        total = torch.from_numpy(np.array(values, np.float64))
        if not self.alone:
            dist.all_reduce(total, group=self._cpu_group)
        return total.numpy()

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """The array of rank 0; shape and dtype must be the same on all ranks."""
        if self.alone:
            return values
        sent = torch.from_numpy(np.array(values))
        dist.broadcast(sent, 0, group=self._cpu_group)
        return sent.numpy()

    @torch.no_grad()
    def broadcast_parameters(self, *modules: nn.Module) -> None:
        """Copy the parameters and buffers of rank 0 to all ranks, in place."""
        if not self.alone:
            for module in modules:
                for value in (*module.parameters(), *module.buffers()):
                    sent = value.detach().contiguous()  # channels-last weights are not
                    dist.broadcast(sent, 0)
                    value.copy_(sent)

    @torch.no_grad()
    def all_reduce_gradients(
        self, optimizer: torch.optim.Optimizer, backbone: nn.Module, already: Collection[int] = ()
    ) -> None:
        """Give all ranks the gradient of the whole step; call it after the last backward pass.

        With ``across=learners`` each rank holds the gradient of its own batches, and they are summed. With
        ``across=batch`` the backbone's gradients are those of the rank's own images, and are summed. The layers after
        the backbone process the images of all ranks: their gradients are equal but for rounding, and are averaged.

        Args:
            backbone: the modules whose input is the rank's own images alone under ``across=batch``.
            already: ids of the parameters whose gradients are those of the whole step already.
        """
        if self.alone:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in already]
        # A parameter that has no gradient on any rank must keep none: the optimiser then leaves it alone.
        ranks_with_gradient = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        dist.all_reduce(ranks_with_gradient, group=self._cpu_group)
        summed = {id(p) for p in backbone.parameters()}
        buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for parameter, count in zip(parameters, ranks_with_gradient.tolist(), strict=True):
            if count:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                if self.across == "batch" and id(parameter) not in summed:
                    gradient = gradient / self.world_size
                parameter.grad = gradient
                buckets.setdefault((gradient.dtype, gradient.device), []).append(gradient)
        for gradients in buckets.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, reduced in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(reduced.view_as(gradient))

    @torch.no_grad()
    def average_statistics(self, backbone: nn.Module) -> None:
        """Give all ranks the mean of their BatchNorm statistics, where these are trained; call it after a step."""
        if self.alone:
            return
        norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        norms = [m for m in norms if m.running_mean is not None]
        statistics: list[Any] = [value for m in norms for value in (m.running_mean, m.running_var)]
        if statistics:
            flat = torch.cat(statistics) / self.world_size
            dist.all_reduce(flat)
            for value, mean in zip(statistics, flat.split([len(v) for v in statistics]), strict=True):
                value.copy_(mean)

    @contextmanager
    def gathered_batch(self, pooling: nn.Module) -> Iterator[None]:
        """With ``across=batch``, inside of the block: in training ``pooling`` returns the features of the whole batch,
        (B, F), gathered from all ranks. The gradient flows back to the images of this rank."""

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
    def forward(ctx: Any, features: Tensor, group: ProcessGroup) -> Tensor:
        size = int(group.all_reduce(np.array([len(features)]))[0])
        ctx.shard = group.shard(size)
        return group.all_gather(features.contiguous(), size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.shard], None


ALONE = ProcessGroup()
"""One process alone."""
