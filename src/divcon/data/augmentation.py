"""Augmentations of training images by name: classes of ``torchvision.transforms.v2``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.transforms import AutoAugmentPolicy, v2

from divcon.config.augment import DEFAULTS, Augment
from divcon.errors import ConfigError, unknown

CLASSES: Mapping[str, type[nn.Module]] = {
    "color_jitter": v2.ColorJitter,
    "photometric_distort": v2.RandomPhotometricDistort,
    "grayscale": v2.RandomGrayscale,
    "autocontrast": v2.RandomAutocontrast,
    "equalize": v2.RandomEqualize,
    "invert": v2.RandomInvert,
    "posterize": v2.RandomPosterize,
    "solarize": v2.RandomSolarize,
    "sharpness": v2.RandomAdjustSharpness,
    "gaussian_blur": v2.GaussianBlur,
    "gaussian_noise": v2.GaussianNoise,
    "jpeg": v2.JPEG,
    "rotation": v2.RandomRotation,
    "affine": v2.RandomAffine,
    "perspective": v2.RandomPerspective,
    "elastic": v2.ElasticTransform,
    "vertical_flip": v2.RandomVerticalFlip,
    "erasing": v2.RandomErasing,
    "rand_augment": v2.RandAugment,
    "trivial_augment": v2.TrivialAugmentWide,
    "auto_augment": v2.AutoAugment,
    "augmix": v2.AugMix,
}
"""The class behind each name."""


def parameters(name: str) -> list[str]:
    """The arguments that an augmentation takes: those of its class, and ``p``, the share of images that it is applied
    to."""
    of_class = [key for key in inspect.signature(CLASSES[name].__init__).parameters if key not in ("self", "inplace")]
    return [*of_class, *(["p"] if "p" not in of_class else [])]


def create_augmentation(augment: Augment, fill: tuple[int, ...]) -> list[nn.Module]:
    """The augmentations, to be applied in their order to (C, H, W) uint8 pixels; they draw from torch's global
    generator.

    Args:
        fill: the colour, 0 to 255 for each channel, of places that come from outside of the image and of erased ones,
            unless an argument sets another.

    Raises:
        ConfigError: an augmentation does not take one of its arguments, or its value.
    """
    return [_create(name, arguments, fill) for name, arguments in augment.items()]


def _create(name: str, arguments: Mapping[str, Any], fill: tuple[int, ...]) -> nn.Module:
    known = parameters(name)
    for key in arguments:
        if key not in known:
            words = unknown(f"argument of `augment` {name}", key, known)
            raise ConfigError(f"{words} (it takes {', '.join(known)})", field="augment")
    of_class = inspect.signature(CLASSES[name].__init__).parameters
    options: dict[str, Any] = dict(DEFAULTS[name])
    if "interpolation" in of_class:
        options["interpolation"] = v2.InterpolationMode.BILINEAR
    if "fill" in of_class:
        options["fill"] = list(fill)
    if name == "erasing":
        options["value"] = list(fill)
    options |= arguments
    share = None if "p" in of_class else options.pop("p", None)
    try:
        if name == "auto_augment" and "policy" in options:
            options["policy"] = AutoAugmentPolicy(options["policy"])
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"p must be from 0 to 1, not {share}")
        created = CLASSES[name](**options)
    except (TypeError, ValueError) as error:
        # Backticks are for settings.
        raise ConfigError(f"`augment` {name}: {str(error).replace('`', '')}", field="augment") from None
    return created if share is None or share == 1 else v2.RandomApply([created], p=share)


class Augmented(nn.Module):
    """Augmentations one after the other; what one cannot do with an image is an error that names it."""

    def __init__(self, augment: Augment, fill: tuple[int, ...]) -> None:
        super().__init__()
        self._names = list(augment)
        self._steps = nn.ModuleList(create_augmentation(augment, fill))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(C, H, W) uint8 to (C, H, W) uint8.

        Raises:
            ConfigError: one cannot be applied to pixels of this size or these channels.
        """
        for name, step in zip(self._names, self._steps, strict=True):
            try:
                pixels = step(pixels)
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                shape = " x ".join(map(str, pixels.shape))
                raise ConfigError(
                    f"`augment` {name}: cannot be applied to {shape} pixels (channels x height x width): "
                    + str(error).replace("`", ""),
                    field="augment",
                ) from error
        return pixels
