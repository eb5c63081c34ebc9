"""BatchNorm folded into the convolutions before it: what a backbone computes in evaluation, in less time."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import get_same_padding
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

log = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)
_ROUNDING = 0.05
"""How far, relative to its length, a feature may be from the backbone's: half precision rounds by less."""


def folded(backbone: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a backbone in eval mode whose BatchNorms are folded into the convolutions that only they follow; the
    same but for rounding, for images of one size. The backbone itself where there is none or folding fails.

    All other tensors are the backbone's own: the copy is for use before the backbone is trained further.

    Args:
        example: (B, 3, H, W), an image or more as the backbone takes them, by which the order of its layers shows.
    """
    try:
        return _folded(backbone, example)
    except Exception as error:  # a backbone may be any module, and fail in any way where it is copied or taken apart
        log.debug("BatchNorm is not folded into %s (%r)", type(backbone).__name__, error)
        return backbone


def _folded(backbone: nn.Module, example: Tensor) -> nn.Module:
    if not any(type(module) in _NORMS for module in backbone.modules()):
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
        if type(fused) is Conv2dSame:
            fused = _padded_alike(fused, size)
        if example.device.type in ("cpu", "cuda"):
            fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        folding.set_submodule(convolution, fused)
        rest = [old.get_submodule(name) for name in ("drop", "act") if isinstance(old, BatchNormAct2d)]
        folding.set_submodule(norm, nn.Sequential(*rest))
    # A backbone that reads attributes of a norm fails here, since the norm is gone.
    wrong = (folding(example) - features).norm() > _ROUNDING * features.norm()
    return backbone if wrong else folding


def _copy(module: nn.Module) -> nn.Module:
    """A copy that shares the tensors."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


def _padded_alike(convolution: Any, size: torch.Size) -> nn.Conv2d:
    """What pads its (h, w) input more at the end than at the beginning, as one that pads both alike: its kernel begins
    with zeros instead. The input is then not copied, which takes longer than the convolution itself."""
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
        device="meta",  # where making it draws no random numbers
    )
    alike.weight, alike.bias = nn.Parameter(weight, requires_grad=False), convolution.bias
    return alike


class _Uses(TorchDispatchMode):
    """Watches a network compute: how many operations take in each tensor.

    In this thread alone: while torch.fx traces, the modules of all threads are called by it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of: Counter[int] = Counter()
        self._calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
        self._alive: list[Any] = []  # no two tensors may have one id

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._of.update(map(id, tensors))
        self._alive.append(tensors)
        return func(*args, **(kwargs or {}))

    def of_modules(self, network: nn.Module, example: Tensor) -> Tensor:
        """The network's output for the example; its convolutions and BatchNorms are recorded."""
        for name, module in network.named_modules():
            # Exact types: another kind of convolution may compute its weights, and another norm more than a BatchNorm.
            if type(module) in (*_CONVOLUTIONS, *_NORMS):
                module.register_forward_hook(partial(self._called, name))
        return network(example)

    def _called(self, name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if args:  # or it was called by keyword, and stays as it is
            self._calls.append((name, module, args[0], output))

    def pairs(self) -> list[tuple[str, str, torch.Size]]:
        """The names of each convolution whose output goes into a BatchNorm alone, and of that BatchNorm; and the (h, w)
        of the convolution's input."""
        times = Counter(name for name, *_ in self._calls)
        outputs = {id(call[-1]): call for call in self._calls if type(call[1]) in _CONVOLUTIONS}
        pairs = []
        for norm, module, taken, _ in self._calls:
            if type(module) not in _NORMS or id(taken) not in outputs:
                continue
            name, convolution, inputs, _ = outputs[id(taken)]
            tensors = [taken, *convolution.parameters(), *module.parameters(), *module.buffers()]
            once = times[name] == times[norm] == 1 and all(self._of[id(tensor)] <= 1 for tensor in tensors)
            if once and not module.training and module.running_mean is not None:
                pairs.append((name, norm, inputs.shape[2:]))
        return pairs


_PIXELS = 2**18
"""So many pixels of images for each thread of a CPU: what a network makes of more does not stay in its caches, and is
so large that the system gives new memory for each layer."""


def computed(
    backbone: nn.Module, pooling: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pooled features of each batch, (B, F), by a backbone in eval mode; within `torch.inference_mode`. Each is
    yielded once the next is queued on the device, so that an accelerator is busy while it is read.

    Args:
        batches: (B, ...) as the backbone takes them, on its device, and the tensor that goes with each.
    """
    batches = iter(batches)
    first = list(islice(batches, 2))
    before: list[tuple[Tensor, Tensor]] = []
    for number, (inputs, along) in enumerate(chain(first, batches)):
        if number == 0 and len(first) > 1:  # a single batch is done before it would be folded
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
