"""Images of other numbers of channels than three: arrays in ``.npy`` files, TIFF of several bands, grey and RGBA."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from divcon.config.pixel_range import PixelRange

if TYPE_CHECKING:
    import torch

NPY = b"\x93NUMPY"
"""The first bytes of a ``.npy`` file."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_npy_image(path: str | os.PathLike[str]) -> bool:
    """Whether a ``.npy`` file holds an array of three axes, as an image has; vectors have two."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).ndim == 3
    except Exception:  # damaged, or of Python objects
        return False


def array_in(content: bytes) -> np.ndarray | None:
    """The array in the bytes of a ``.npy`` file, or of a TIFF that Pillow does not read; None for other files.

    Raises:
        ValueError: it is damaged, has other than two or three axes, or is a TIFF that needs tifffile.
    """
    if content.startswith(NPY):
        array = np.load(io.BytesIO(content), allow_pickle=False)
    elif content.startswith(TIFF) and not _pillow_opens(content):
        try:
            import tifffile  # type: ignore[import-not-found]  # of the extra tiff
        except ImportError:
            raise ValueError(
                "it is a TIFF that Pillow does not read, of several channels, say: `pip install tifffile` to read it"
            ) from None
        array = tifffile.imread(io.BytesIO(content))
    else:
        return None
    if array.dtype.kind not in "buif":
        raise ValueError(f"its array holds {array.dtype}, and pixels are numbers")
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"its array has the shape {array.shape}; an image is (H, W), (H, W, C) or (C, H, W)")
    return array


def _pillow_opens(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)):
            return True
    except Exception:  # of any kind
        return False


def channels_last(array: np.ndarray, channels: int | None = None) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) as (H, W, C).

    Args:
        channels: C; None: the shorter of the first and the last axis, the last if they are equal.

    Raises:
        ValueError: no axis has so many channels.
    """
    if array.ndim == 2:
        array = array[..., None]
    first, last = array.shape[0], array.shape[2]
    if channels is None:
        return array if last <= first else array.transpose(1, 2, 0)
    if last == channels:
        return array
    if first == channels:
        return array.transpose(1, 2, 0)
    raise ValueError(
        f"its array has the shape {array.shape}, and the model takes images of `channels` {channels}: "
        f"(H, W, {channels}) or ({channels}, H, W)"
    )


def to_pixels(values: np.ndarray, pixel_range: PixelRange) -> np.ndarray:
    """Values as uint8: bytes as they are, true and false as white and black, others by the range (see
    `divcon.data.decode.decode`).

    Raises:
        ValueError: they are fractions, or beyond 16 bits, and the range is ``full``.
    """
    from divcon.data.decode import scaled

    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if pixel_range not in ("full", "auto"):
        return scaled(values, pixel_range)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            "its values are fractions, or beyond 0 to 65,535; set `pixel_range` (own, or the values that become black "
            "and white)"
        )
    return (values.astype(np.int64) >> 8).astype(np.uint8)


def decode_channels(
    content: bytes,
    channels: int,
    box: tuple[int, int, int, int] | None,
    pixel_range: PixelRange,
    open_image: Callable[[], Any],
) -> torch.Tensor:
    """The pixels of an image of ``channels`` channels, (C, H, W) uint8.

    Args:
        content: the bytes of its file.
        box: of arrays; ``open_image`` has cut others to it.
        open_image: opens the file by Pillow, cut and turned upright.

    Raises:
        ValueError: it has another number of channels, or its values cannot be pixels, or the box is outside.
    """
    from divcon.data.decode import is_deep, to_rgb

    array = array_in(content)
    if array is not None:
        pixels = to_pixels(channels_last(array, channels), pixel_range)
        if box is not None:
            pixels = cut(pixels, box)
    else:
        image = open_image()
        if channels == 1:
            pixels = np.asarray(to_rgb(image, pixel_range).convert("L"))[..., None]
        elif is_deep(image) or len(image.getbands()) != channels:
            has = len(image.getbands())
            raise ValueError(
                f"it has {has} channel{'s' * (has > 1)}, and the model takes images of `channels` {channels}"
            )
        else:
            pixels = np.asarray(image)
    import torch  # takes seconds, and reading data does without

    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def cut(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The box of (H, W, C) pixels.

    Raises:
        ValueError: it is outside.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= pixels.shape[1] and 0 <= top < bottom <= pixels.shape[0]):
        sides = ",".join(map(str, box))
        raise ValueError(f"the box {sides} is outside its {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return pixels[top:bottom, left:right]


def as_picture(array: np.ndarray, pixel_range: PixelRange, *, any_channels: bool) -> Image.Image:
    """An array as RGB: of one channel as grey, of three as colours; of others, to look at, the first three or one.

    Raises:
        ValueError: it has other channels, and ``any_channels`` is False; or its values cannot be pixels.
    """
    values = channels_last(array)
    count = values.shape[2]
    if count not in (1, 3) and not any_channels:
        raise ValueError(
            f"its array has the shape {array.shape}, {count} channels, and the model takes colour images: set "
            f"`channels={count}`"
        )
    shown = to_pixels(values[..., : 3 if count >= 3 else 1], pixel_range)
    return Image.fromarray(shown if shown.shape[2] == 3 else shown[..., 0]).convert("RGB")
