"""How features are computed where nothing is trained: in less time than by the network as it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import torch
from torch import Tensor, nn

from divcon.models.folding import folded

_PIXELS = 2**18
"""So many pixels of images for each thread of a CPU: what a network makes of more does not stay in its caches, and is
so large that the system gives new memory for each layer."""


def computed(
    backbone: nn.Module, pooling: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pooled features of each batch, (B, F), by a backbone in eval mode; within `torch.inference_mode`. Each is
    given when the next is asked of the device, so that reading it leaves an accelerator something to do.

    Args:
        batches: (B, ...) as the backbone sees them, on its device, and what comes along with each.
    """
    batches = iter(batches)
    first = list(islice(batches, 2))
    before: list[tuple[Tensor, Tensor]] = []
    for number, (seen, along) in enumerate(chain(first, batches)):
        if number == 0 and len(first) > 1:  # a single batch is done before it would be folded
            backbone = folded(backbone, seen[:1])
        pooled = torch.cat([pooling(backbone(some)) for some in seen.tensor_split(_parts(seen))])
        yield from before
        before = [(pooled, along)]
    yield from before


def _parts(seen: Tensor) -> int:
    """In how many parts a batch is computed."""
    if seen.device.type != "cpu" or seen.ndim != 4:
        return 1
    pixels = len(seen) * seen.shape[2] * seen.shape[3]
    return min(len(seen), -(-pixels // (_PIXELS * torch.get_num_threads())))
