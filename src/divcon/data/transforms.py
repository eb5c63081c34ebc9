"""Transforms from a decoded image to (3, H, W) uint8 pixels, which the model normalises: those of the papers, and
your own.

A transform of your own (`create_transform`) is any callable on a PIL image, on a uint8 tensor (3, H, W) or on an array
(H, W, 3), as its first parameter is annotated: a pipeline of ``torchvision.transforms.v2``, one of albumentations, or a
function. It returns a PIL image, an array (H, W, 3) or a tensor (3, H, W), of uint8 or of floats from 0 to 1.
"""

from __future__ import annotations

import inspect
import math
import random
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from divcon.config.augment import Augment
from divcon.config.image_size import ImageSize, height_width, size_in_words
from divcon.config.pixel_range import PixelRange
from divcon.errors import ConfigError
from divcon.runtime.importing import load_part, name_of

Transform = Callable[[Any], torch.Tensor]
"""From a `Picture` to (C, H, W) uint8 pixels."""
Picture = Image.Image | torch.Tensor
"""A decoded image: of three channels a PIL image, of other numbers (C, H, W) uint8."""

EVAL_RESIZE = 256 / 224
"""The ratio of the resized shorter side to the crop (2019: 256 for crops of 224)."""

FITS = ("crop", "squash", "pad")
"""How an image comes into the size of the backbone's input; see `divcon.ModelConfig.fit`."""
Fit = Literal["crop", "squash", "pad"]

_MEAN = (124, 116, 104)
"""ImageNet's mean colour."""
_RATIO = (3 / 4, 4 / 3)
"""The range of a training crop's aspect ratio."""
_LONG = 32
"""If an image's longer side is more than this many times the shorter one, only the middle is resized."""


class TrainTransform:
    """A random crop of ``min_scale`` to all of the area, resized, and mirrored half of the time if ``flip``; draws from
    torch's global generator.

    Args:
        size: height and width of the result, or (height, width).
        fit: how the whole image would come into that size. With ``crop``, a crop has the shape of the size, times 3/4
            to 4/3; with ``squash``, the shape of the image, times 3/4 to 4/3; with ``pad``, it is cropped from the
            image with its border.
        fill: the colour of that border, red, green, blue.
        augment: what is done to a crop after that (see `divcon.data.augmentation`).
        pixel_range, channels: with which images are decoded (see `divcon.data.decode`).

    Raises:
        ConfigError: an augmentation does not take its arguments.
    """

    def __init__(
        self,
        size: ImageSize,
        *,
        interpolation: str = "bilinear",
        min_scale: float = 0.08,
        flip: bool = True,
        fit: Fit = "crop",
        fill: tuple[int, ...] = _MEAN,
        augment: Augment | None = None,
        pixel_range: PixelRange = "full",
        channels: int = 3,
    ) -> None:
        self.pixel_range = pixel_range
        self.channels = channels
        self._size = height, width = height_width(size)
        # Here: what is embedded needs no torchvision, whose import takes as long as that of PyTorch.
        from torchvision.transforms import InterpolationMode, v2

        self._interpolation = InterpolationMode(interpolation)
        self._scale = (min_scale, 1.0)
        self._fit = fit
        self._fill = fill
        of_size = width / height if fit != "squash" else 1.0
        self._ratio = (_RATIO[0] * of_size, _RATIO[1] * of_size)
        self._crop = v2.RandomResizedCrop(
            [height, width], scale=self._scale, ratio=self._ratio, interpolation=self._interpolation
        )
        steps: list[torch.nn.Module] = [v2.RandomHorizontalFlip()] if flip else []
        steps.append(v2.PILToTensor())
        if augment:
            from divcon.data.augmentation import Augmented

            steps.append(Augmented(augment, fill))
        self._after = v2.Compose(steps)
        self.needs = math.ceil(max(height, width) / math.sqrt(min_scale * _RATIO[0]))
        """The pixels that the shorter side must have for the smallest crop to have the size in each direction."""

    def __call__(self, image: Picture) -> torch.Tensor:
        if self._fit == "squash":
            from torchvision.transforms import RandomResizedCrop
            from torchvision.transforms.v2 import functional

            # Any: torchvision's types say that only tensors come out.
            whole: Any = image
            height, width = sides_of(image)
            ratio = [of_size * width / height for of_size in self._ratio]
            top, left, height, width = RandomResizedCrop.get_params(whole, list(self._scale), ratio)
            return self._after(
                functional.resized_crop(
                    whole, top, left, height, width, size=list(self._size), interpolation=self._interpolation
                )
            )
        if self._fit == "pad":
            image = self._padded(image)
        return self._after(self._crop(image))

    def _padded(self, image: Picture) -> Picture:
        """The image with a border that gives it the shape of the size; made smaller first where that would be larger
        than any crop needs."""
        height, width = self._size
        high, wide = sides_of(image)
        scale = max(high / height, wide / width)
        most = 1 / math.sqrt(self._scale[0] * _RATIO[0])
        if scale > most:
            sides = (max(1, round(high * most / scale)), max(1, round(wide * most / scale)))
            image, scale = _resized(image, sides, self._interpolation.value), most
        return _on_canvas(image, (max(1, round(height * scale)), max(1, round(width * scale))), self._fill)


@dataclass(frozen=True)
class EvalTransform:
    """An image to exactly ``size``, height and width or (height, width), by its ``fit``.

    ``crop``: resize until height and width are at least 256/224 of ``size``, then crop the centre. ``squash``: resize
    to ``size``. ``pad``: resize to fit within ``size``, and add a border of the colour ``fill`` around it. An image of
    exactly ``size`` is used as it is, since cropping would only lose its border.
    """

    size: ImageSize
    interpolation: str = field(default="bilinear", kw_only=True)
    fit: Fit = field(default="crop", kw_only=True)
    fill: tuple[int, ...] = field(default=_MEAN, kw_only=True)
    pixel_range: PixelRange = field(default="full", kw_only=True)
    channels: int = field(default=3, kw_only=True)
    """With which images are decoded, as ``pixel_range``."""

    @property
    def needs(self) -> int:
        """The pixels that the shorter side must have, so that decoding at a smaller scale loses no detail."""
        longer = max(height_width(self.size))
        return 2 * (round(longer * EVAL_RESIZE) if self.fit == "crop" else longer)

    def __call__(self, image: Picture) -> torch.Tensor:
        result = image
        height, width = height_width(self.size)
        high, wide = sides_of(image)
        if (high, wide) == (height, width):
            return _as_tensor(result)
        if self.fit == "squash":
            result = _resized(result, (height, width), self.interpolation)
        elif self.fit == "pad":
            scale = min(height / high, width / wide)
            sides = (min(height, max(1, round(high * scale))), min(width, max(1, round(wide * scale))))
            result = _resized(result, sides, self.interpolation)
            result = _on_canvas(result, (height, width), self.fill)
        else:
            short, long = min(high, wide), max(high, wide)
            if long > _LONG * short:
                # Resizing a line of pixels would take gigabytes, of which the crop keeps the middle.
                result = _centre_crop(result, (min(high, _LONG * short), min(wide, _LONG * short)))
            result = _resized(result, _covering(result, resize_sides(self.size)), self.interpolation)
            result = _centre_crop(result, (height, width))
        return _as_tensor(result)


def sides_of(image: Picture) -> tuple[int, int]:
    """Height and width."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[1], image.shape[2])


def _resized(image: Picture, sides: tuple[int, int], interpolation: str) -> Picture:
    """An image at this height and width, as torchvision's ``resize`` has it, bit for bit."""
    if isinstance(image, Image.Image):
        height, width = sides
        same = image.size == (width, height)
        return image if same else image.resize((width, height), Image.Resampling[interpolation.upper()])
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    return functional.resize(image, list(sides), interpolation=InterpolationMode(interpolation))


def _centre_crop(image: Picture, sides: tuple[int, int]) -> Picture:
    """The middle of an image, which is no smaller than ``sides``, height and width; as torchvision's ``center_crop``
    has it."""
    height, width = sides
    high, wide = sides_of(image)
    top, left = round((high - height) / 2.0), round((wide - width) / 2.0)
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + width, top + height))
    return image[..., top : top + height, left : left + width]


def _as_tensor(image: Picture) -> torch.Tensor:
    """(C, H, W) uint8, in the memory's order of the image, as torchvision's ``pil_to_tensor`` has it: convolutions
    round by the order, too."""
    if not isinstance(image, Image.Image):
        return image
    pixels = torch.as_tensor(np.array(image, copy=True))
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


def resize_sides(size: ImageSize) -> tuple[int, int]:
    """The height and width that an image covers before its centre is cropped."""
    height, width = height_width(size)
    return round(height * EVAL_RESIZE), round(width * EVAL_RESIZE)


def _covering(image: Picture, sides: tuple[int, int]) -> tuple[int, int]:
    """The height and width to resize an image to, in its own shape, so that it just covers ``sides``."""
    height, width = sides
    high, wide = sides_of(image)
    if height * wide > width * high:
        return height, int(height * wide / high)
    return int(width * high / wide), width


def _on_canvas(image: Picture, sides: tuple[int, int], fill: tuple[int, ...]) -> Picture:
    """The image in the middle of a canvas of ``sides``, height and width."""
    height, width = sides
    if isinstance(image, torch.Tensor):
        pixels = torch.tensor(fill, dtype=torch.uint8).view(-1, 1, 1).repeat(1, height, width)
        top, left = (height - image.shape[1]) // 2, (width - image.shape[2]) // 2
        pixels[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        return pixels
    canvas = Image.new(image.mode, (width, height), fill)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


Setting = Literal["train_transform", "eval_transform"]
Own = str | Callable[..., Any]
"""A transform of your own: ``module:Name``, or the object itself."""


def create_transform(
    transform: Own, image_size: ImageSize, setting: Setting, pixel_range: PixelRange = "full"
) -> OwnTransform:
    """A transform of your own, ready to be called on decoded images.

    Args:
        transform: the callable, or its ``module:Name``. A class, or a function whose first parameter is
            ``image_size`` or that has none, is a factory: it is called, with ``image_size`` (a number, or where height
            and width differ both) if it takes it, and returns the transform.
        pixel_range: with which images are decoded (see `divcon.data.decode.decode`).

    Raises:
        ConfigError: there is no such name, or it cannot be called; or the factory fails or returns no callable.
    """
    name, own = transform if isinstance(transform, str) else name_of(transform), transform
    if isinstance(transform, str):
        try:
            own = load_part(transform, f"`{setting}`")
        except ConfigError as error:
            raise ConfigError(str(error), field=setting) from None
    if not callable(own):
        raise ConfigError(f"`{setting}` {name}: {type(own).__name__} is not callable", field=setting)
    parameters = _parameters(own)
    if isinstance(own, type) or (inspect.isroutine(own) and parameters[:1] in ([], ["image_size"])):
        try:
            own = own(image_size=image_size) if "image_size" in parameters else own()
        except Exception as error:
            raise ConfigError(
                f"`{setting}` {name}: creating it failed with {_in_words(error)}; a class, or a function that returns "
                "the transform, is called with `image_size` if it takes it, and without other arguments",
                field=setting,
            ) from error
        if not callable(own):
            raise ConfigError(
                f"`{setting}` {name}: returned {type(own).__name__}, which is not callable", field=setting
            )
    created = OwnTransform(own, name, image_size, setting)
    created.pixel_range = pixel_range
    return created


class OwnTransform:
    """Calls a transform of your own as it expects, and checks and converts its result to (3, H, W) uint8.

    Its random numbers depend only on ``seed``: torch's, Python's and NumPy's global generators are seeded for each call
    and restored after it, and so are its own generators if it has ``set_random_seed`` (albumentations).
    """

    def __init__(self, own: Callable[..., Any], name: str, size: ImageSize, setting: Setting) -> None:
        self.own = own
        self.name = name
        self.size = size
        self.setting = setting
        self.pixel_range: PixelRange = "full"
        self.needs: int | None = getattr(own, "needs", None)
        """Pixels that the shorter side must have; None: images are decoded in full."""
        self._takes_keywords = "image" in (getattr(own, "available_keys", None) or ())
        self._takes = "array" if self._takes_keywords else _first_parameter(own)

    def __repr__(self) -> str:
        return f"OwnTransform({self.name}, {self.size})"

    def __call__(self, image: Image.Image, seed: int = 0) -> torch.Tensor:
        """
        Raises:
            ConfigError: the transform fails, or does not return an image of this size.
        """
        argument: Any = image
        if self._takes == "array":
            argument = np.array(image)
        elif self._takes == "tensor":
            argument = _as_tensor(image)
        try:
            with _seeded(self.own, seed):
                result = self.own(image=argument) if self._takes_keywords else self.own(argument)
        except Exception as error:
            raise self._error(f"failed with {_in_words(error)}", image) from error
        try:
            return _pixels(result, self.size)
        except ValueError as error:
            raise self._error(str(error), image) from None

    def _error(self, problem: str, image: Image.Image) -> ConfigError:
        size = f"{size_in_words((image.height, image.width))} pixels"
        return ConfigError(f"`{self.setting}` {self.name}: {problem} (for an image of {size})", field=self.setting)


def _pixels(result: Any, size: ImageSize) -> torch.Tensor:
    """The result of the user's own transform as (3, H, W) uint8.

    Raises:
        ValueError: it is not an image, has another size, or has values that are not pixels.
    """
    if isinstance(result, Mapping) and "image" in result:
        result = result["image"]
    if isinstance(result, Image.Image):
        result = _as_tensor(result.convert("RGB"))
    elif isinstance(result, np.ndarray):
        if result.ndim != 3 or result.shape[2] != 3:
            raise ValueError(f"returned an array of shape {result.shape}; return (H, W, 3)")
        result = torch.from_numpy(np.ascontiguousarray(result.transpose(2, 0, 1)))
    if not isinstance(result, torch.Tensor):
        raise ValueError(
            f"returned {type(result).__name__}; return a PIL image, an array (H, W, 3) or a tensor (3, H, W)"
        )
    pixels = result.detach().as_subclass(torch.Tensor)
    shape, (height, width) = tuple(pixels.shape), height_width(size)
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"returned a tensor of shape {shape}; return (3, {height}, {width})")
    if shape[1:] != (height, width):
        raise ValueError(
            f"returned {size_in_words((shape[1], shape[2]))} pixels, and the model takes {size_in_words(size)}: end it "
            "with a crop or resize to that size, or set `image_size`"
        )
    if pixels.dtype == torch.uint8:
        return pixels.cpu()
    if not pixels.is_floating_point():
        raise ValueError(f"returned values of {pixels.dtype}; return uint8, or floats from 0 to 1")
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"returned floats from {low:.3g} to {high:.3g} ({pixels.dtype}); return floats from 0 to 1, or uint8. "
            "Leave out Normalize (mean and std): divcon normalises for the backbone itself"
        )
    return (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


@contextmanager
def _seeded(own: Any, seed: int) -> Iterator[None]:
    """Seed all generators that the user's own transform may use, and restore the global ones afterwards."""
    of_torch, of_python, of_numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    # torch.manual_seed formats the stack for every device that is not initialised yet, which takes as long as decoding
    # an icon.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    if hasattr(own, "set_random_seed"):
        own.set_random_seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def _parameters(own: Callable[..., Any]) -> list[str]:
    """The names of the parameters that a class or function can be called with."""
    try:
        parameters = inspect.signature(own).parameters.values()
    except (TypeError, ValueError):
        return ["*"]
    return [parameter.name for parameter in parameters]


def _first_parameter(own: Callable[..., Any]) -> Literal["image", "array", "tensor"]:
    """The type of a transform's first parameter, by its annotation; without one, a PIL image."""
    function = own if inspect.isroutine(own) else getattr(own, "forward", None) or type(own).__call__
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # an annotation that cannot be evaluated
        return "image"
    hints.pop("return", None)
    first = next(iter(hints.values()), None)
    if not isinstance(first, type):
        return "image"
    return "tensor" if issubclass(first, torch.Tensor) else "array" if issubclass(first, np.ndarray) else "image"


def _in_words(error: Exception) -> str:
    """An error of the user's own code, with the line that raised it, which a worker process would not pass on."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", in {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
