"""Fold BatchNorm into the convolutions before it: the same features in evaluation, in less time."""

from __future__ import annotations

import copy
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

log = logging.getLogger(__name__)

_ROUNDING = 0.05
"""The largest difference from the backbone's features, relative to their length: half precision rounds by less."""


def folded(backbone: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a backbone in evaluation mode, with each BatchNorm folded into the convolution before it where that
    convolution has no other use. The copy is equal up to rounding, for images of one size. Returns the backbone itself
    if it has no such BatchNorm, or if folding fails.

    The copy shares all other tensors with the backbone: use it only until the backbone is trained further.

    Args:
        example: (B, 3, H, W), one or more images as the backbone takes them, to record the order of its layers.
    """
    try:
        return _folded(backbone, example)
    except Exception as error:  # a backbone may be any module, and fail in any way when it is copied or changed
        log.debug("BatchNorm is not folded into %s (%r)", type(backbone).__name__, error)
        return backbone


def _kinds() -> tuple[tuple[type[nn.Module], ...], tuple[type[nn.Module], ...]]:
    """The classes of convolutions, and of BatchNorms."""
    if "timm" not in sys.modules:  # then no module is of its classes, and importing it takes a second
        return (nn.Conv2d,), (nn.BatchNorm2d,)
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.norm_act import BatchNormAct2d

    return (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)


def _folded(backbone: nn.Module, example: Tensor) -> nn.Module:
    convolutions, norms = _kinds()
    if not any(type(module) in norms for module in backbone.modules()):
        return backbone
    with _Uses() as uses:
        features = uses.of_modules(_copy(backbone), example)
    pairs = uses.pairs()
    if not pairs:
        return backbone
    folding = _copy(backbone)
    for convolution, norm, size in pairs:
        old = backbone.get_submodule(norm)
        fused: nn.Module = fuse_conv_bn_eval(backbone.get_submodule(convolution), old)  # type: ignore[arg-type]
        if type(fused) in convolutions[1:]:
            fused = _padded_alike(fused, size)
        if example.device.type in ("cpu", "cuda"):
            fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        folding.set_submodule(convolution, fused)
        rest = [old.get_submodule(name) for name in ("drop", "act") if isinstance(old, norms[1:])]
        folding.set_submodule(norm, nn.Sequential(*rest))
    # A backbone that reads attributes of a norm fails here, since the norm is gone.
    wrong = (folding(example) - features).norm() > _ROUNDING * features.norm()
    return backbone if wrong else folding


def _copy(module: nn.Module) -> nn.Module:
    """A copy that shares the tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def _padded_alike(convolution: Any, size: torch.Size) -> nn.Conv2d:
    """A convolution that pads its (h, w) input equally on both sides, in place of one that pads more at the end; its
    kernel starts with zeros instead. This avoids a copy of the input, which takes longer than the convolution."""
    from timm.layers.padding import get_same_padding

    dims = zip(size, convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
    pads = [int(get_same_padding(*numbers)) for numbers in dims]
    if any(pad % 2 for pad in pads) and convolution.dilation != (1, 1):
        return convolution
    weight = F.pad(convolution.weight, (pads[1] % 2, 0, pads[0] % 2, 0))
    alike = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (weight.shape[2], weight.shape[3]),
        convolution.stride,
        ((pads[0] + 1) // 2, (pads[1] + 1) // 2),
        convolution.dilation,
        convolution.groups,
        device="meta",  # so that it draws no random numbers
    )
    alike.weight, alike.bias = nn.Parameter(weight, requires_grad=False), convolution.bias
    return alike


class _Uses(TorchDispatchMode):
    """Counts the operations that use each tensor while a network computes.

    In this thread only: while torch.fx traces, it calls the modules of all threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[int] = Counter()
        self._calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
        self._alive: list[Any] = []  # so that no id is used twice
        self._convolutions, self._norms = _kinds()

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._counts.update(map(id, tensors))
        self._alive.append(tensors)
        return func(*args, **(kwargs or {}))

    def of_modules(self, network: nn.Module, example: Tensor) -> Tensor:
        """The network's output for the example; its convolutions and BatchNorms are recorded."""
        for name, module in network.named_modules():
            # Exact types: a subclass may compute its weights, or do more than a BatchNorm.
            if type(module) in (*self._convolutions, *self._norms):
                module.register_forward_hook(partial(self._called, name))
        return network(example)

    def _called(self, name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if args:  # a module called by keyword is not folded
            self._calls.append((name, module, args[0], output))

    def pairs(self) -> list[tuple[str, str, torch.Size]]:
        """The names of each convolution whose output goes into a BatchNorm alone, and of that BatchNorm; and the (h, w)
        of the convolution's input."""
        times = Counter(name for name, *_ in self._calls)
        outputs = {id(call[-1]): call for call in self._calls if type(call[1]) in self._convolutions}
        pairs = []
        for norm, module, taken, _ in self._calls:
            if type(module) not in self._norms or id(taken) not in outputs:
                continue
            name, convolution, inputs, _ = outputs[id(taken)]
            tensors = [taken, *convolution.parameters(), *module.parameters(), *module.buffers()]
            once = times[name] == times[norm] == 1 and all(self._counts[id(tensor)] <= 1 for tensor in tensors)
            if once and not module.training and module.running_mean is not None:
                pairs.append((name, norm, inputs.shape[2:]))
        return pairs


_PIXELS = 2**18
"""Pixels per chunk and thread of a CPU: the activations of more do not stay in its caches, and are so large that the
system allocates new memory for each layer."""


def computed(
    backbone: nn.Module, pooling: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pooled features of each batch, (B, F), by a backbone in evaluation mode, within `torch.inference_mode`. A
    batch is yielded after the next one is queued on the device, so that an accelerator stays busy while it is read.

    Args:
        batches: (B, ...) inputs of the backbone, on its device, and a tensor to yield with each.
    """
    batches = iter(batches)
    first = list(islice(batches, 2))
    before: list[tuple[Tensor, Tensor]] = []
    for number, (inputs, along) in enumerate(chain(first, batches)):
        if number == 0 and len(first) > 1:  # for a single batch, folding takes longer than it saves
            backbone = folded(backbone, inputs[:1])
        pooled = torch.cat([pooling(backbone(chunk)) for chunk in inputs.tensor_split(_num_chunks(inputs))])
        yield from before
        before = [(pooled, along)]
    yield from before


def _num_chunks(inputs: Tensor) -> int:
    """The number of chunks that a batch is computed in."""
    if inputs.device.type != "cpu" or inputs.ndim != 4:
        return 1
    pixels = len(inputs) * inputs.shape[2] * inputs.shape[3]
    return min(len(inputs), -(-pixels // (_PIXELS * torch.get_num_threads())))
