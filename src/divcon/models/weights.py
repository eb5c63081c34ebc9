"""A backbone's weights: from a file, from a package, from a model of another image size."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from divcon.errors import WeightsError


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
