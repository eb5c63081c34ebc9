"""The gradient of a step over all processes.

The network (backbone and pooling, nearly all of the weights) is wrapped in PyTorch's DistributedDataParallel: its
gradients are reduced in buckets, each as soon as the backward pass has computed it, while the pass goes on. Two things
are reduced after the backward pass, together, by `ProcessGroup.all_reduce_gradients`:

- the head and the losses' own parameters. DistributedDataParallel reduces what the outputs of one forward pass lead to;
  these have gradients from outside of it, too (the penalty on masks, the losses), differ by rank (each trains other
  learners), and with ``across=batch`` are averaged, not summed;
- the network's, in a step that has fewer batches than there are ranks (the last of an epoch): a rank without a batch
  has no backward pass that could take part.

The model keeps its object and the names of its weights: what is wrapped holds the same modules.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from divcon.models import EmbeddingModel
from divcon.runtime.distributed import ProcessGroup


class Gradients:
    """Reduces the gradients of a model in training over the ranks of a group.

    Args:
        model: in training; its weights are equal on all ranks.
    """

    def __init__(self, model: EmbeddingModel, group: ProcessGroup) -> None:
        self._model, self._group = model, group
        self._network = nn.ModuleList([model.backbone, model.pooling])
        self._trained: list[nn.Parameter] = []
        self._wrapped: DistributedDataParallel | None = None
        self._reduced: frozenset[int] = frozenset()

    def network(self, step: range, number: int) -> nn.Module:
        """What to call in place of the model, for one forward and one backward pass.

        Args:
            step: the numbers of the step's batches; this rank passes its own in order.
            number: of the batch.
        """
        wrapped, own = self._for(step), self._group.batches(step)
        if wrapped is None:
            self._reduced = frozenset()
            return self._model
        # The gradients of several batches add up, and are reduced in the backward pass of the last.
        wrapped.require_backward_grad_sync = number == own[-1]
        self._reduced = frozenset(map(id, self._trained))
        return wrapped

    def all_reduce(self, optimizer: torch.optim.Optimizer) -> None:
        """Reduce what no backward pass of the step has; call it after the last one."""
        self._group.all_reduce_gradients(optimizer, self._network, self._reduced)
        self._reduced = frozenset()

    def _for(self, step: range) -> DistributedDataParallel | None:
        """The wrapped network; None where each rank passes its batches through the bare model."""
        group = self._group
        if group.alone or (group.across == "learners" and len(step) < group.world_size):
            return None
        trained = [p for p in self._network.parameters() if p.requires_grad]
        if [*map(id, trained)] != [*map(id, self._trained)]:
            self._trained, self._wrapped = trained, _wrapped(self._model) if trained else None
        return self._wrapped


class _Network(nn.Module):
    """A model of whose weights only those of backbone and pooling are known to who wraps it."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.backbone, self.pooling = model.backbone, model.pooling
        self._model = (model,)  # in a tuple, so that its other weights are not registered
        # PyTorch warns on stderr where it looks for weights that no pass uses, and there are none.
        self.unused = nn.Parameter(torch.zeros(1, device=model.device))

    def forward(self, *inputs: Tensor, **options: Any) -> Any:
        return self._model[0](*inputs, **options)


def _wrapped(model: EmbeddingModel) -> DistributedDataParallel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a new name for broadcast_buffers, which older PyTorch lacks
        wrapped = DistributedDataParallel(
            _Network(model),
            init_sync=False,  # the weights are equal already
            broadcast_buffers=False,  # each rank's BatchNorm has its own images; see ProcessGroup.average_statistics
            find_unused_parameters=True,  # a backbone may leave layers out, at random, say
            gradient_as_bucket_view=True,
        )
    wrapped.register_comm_hook(None, lambda _, bucket: _summed(bucket))  # which refuses annotations as text
    return wrapped


def _summed(bucket: Any) -> torch.futures.Future[Tensor]:
    """The sum over ranks, where DistributedDataParallel's own is the mean: each rank's loss is divided by all batches
    of the step, or is of its own images alone."""
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
