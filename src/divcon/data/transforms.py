"""From a decoded image to what the backbone sees: (3, size, size) uint8; the model normalises whole batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

Transform = Callable[[Image.Image], torch.Tensor]

EVAL_RESIZE = 256 / 224
"""The shorter side is resized to this many times the crop (2019: 256 for crops of 224)."""

_RATIO = (3 / 4, 4 / 3)
"""Of a training crop's width and height."""
_LONG = 32
"""Of an image longer than this many times its width (or wider than its height), only the middle is resized."""


class TrainTransform:
    """A random crop of ``min_scale`` to all of the area, resized, and mirrored half of the time where ``flip``; draws
    from torch's global generator."""

    def __init__(
        self, size: int, *, interpolation: str = "bilinear", min_scale: float = 0.08, flip: bool = True
    ) -> None:
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(
                size, scale=(min_scale, 1.0), ratio=_RATIO, interpolation=InterpolationMode(interpolation)
            )
        ]
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        self._steps = v2.Compose([*steps, v2.PILToTensor()])
        self.needs = math.ceil(size / math.sqrt(min_scale * _RATIO[0]))
        """Of how many pixels the shorter side must be, so that the smallest crop has ``size`` of them each way."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self._steps(image)


@dataclass(frozen=True)
class EvalTransform:
    """The centre: the shorter side resized to 256/224 of ``size``, then cropped. An image that is ``size`` x ``size``
    already is taken whole, since cropping it would only lose its border."""

    size: int
    interpolation: str = field(default="bilinear", kw_only=True)

    @property
    def needs(self) -> int:
        """Of how many pixels the shorter side must be: what is resized to half or less loses nothing that is seen."""
        return 2 * round(self.size * EVAL_RESIZE)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        # Any: torchvision's types say that only tensors come out.
        seen: Any = image
        if image.size != (self.size, self.size):
            short, long = min(image.size), max(image.size)
            if long > _LONG * short:
                # Resized whole, a line of pixels would be gigabytes, all but the middle of them cut off again.
                sides = (min(image.height, _LONG * short), min(image.width, _LONG * short))
                seen = functional.center_crop(seen, list(sides))
            interpolation = InterpolationMode(self.interpolation)
            seen = functional.resize(seen, [round(self.size * EVAL_RESIZE)], interpolation=interpolation)
            seen = functional.center_crop(seen, [self.size, self.size])
        return functional.pil_to_tensor(seen)
