"""Images in memory, as PIL images, arrays or the bytes of files: the same pixels as from a file, as near as can be."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
from PIL import Image, ImageFile

from divcon.data.decode import is_deep, to_rgb, upright
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ImageError

ImageLike = Image.Image | np.ndarray | bytes | Any
"""A PIL image, the bytes of a file (or a file opened for reading bytes), or an array or tensor: (H, W), (H, W, C) or
(C, H, W) with C 1, 3 or 4, of uint8, of uint16, of truth values, or of floats from 0 to 1 or from 0 to 255."""

_OF_JPEG = ("jfif", "progressive", "progression", "adobe")
"""What Pillow notes of a JPEG, and passes on to converted and resized copies."""


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of PyTorch, without importing it. (Files have a method ``detach`` too.)"""
    return hasattr(value, "detach") and hasattr(value, "dtype")


def is_image(value: object) -> TypeGuard[ImageLike]:
    """Whether it is an `ImageLike`, other than an (H, W) array, which may be vectors."""
    if isinstance(value, np.ndarray) or is_tensor(value):
        shape = tuple(value.shape)  # type: ignore[union-attr]
        return len(shape) == 3 and (shape[2] in _CHANNELS or shape[0] in _CHANNELS)
    if isinstance(value, (Image.Image, bytes, bytearray, memoryview)):
        return True
    return isinstance(value, (io.BytesIO, io.BufferedReader))


def set_of_images(images: Sequence[ImageLike], names: Sequence[str], needs: int | None = None) -> LabeledSet:
    """Images in memory as a set without labels.

    Args:
        names: what they are called in messages.
        needs: as `encoded` takes it.

    Raises:
        ImageError: one has pixels that are none.
    """
    contents = []
    for image, name in zip(images, names, strict=True):
        try:
            contents.append(encoded(image, needs))
        except (ValueError, OSError) as error:
            raise ImageError(f"{name}: this image does not decode ({error})") from None
    n = len(contents)
    return LabeledSet(
        labels=np.zeros(n, np.int64),
        label_names=("",),
        paths=pa.array(names, pa.string()),
        rows=np.arange(n),
        source="",
        encoded=pa.array(contents, pa.large_binary()),
    )


def arrays_as_files(inputs: Any) -> Any:
    """Inputs of a model whose images have another number of channels than three: arrays (H, W), (H, W, C) or (C, H, W),
    alone, in a list, or an array (N, H, W, C) or (N, C, H, W), as the bytes of ``.npy`` files; others as they are."""
    if isinstance(inputs, np.ndarray) and inputs.ndim == 4:
        return [npy_bytes(image) for image in inputs]
    if isinstance(inputs, np.ndarray) and inputs.ndim == 3:
        return npy_bytes(inputs)
    if isinstance(inputs, (list, tuple)):
        return [npy_bytes(value) if isinstance(value, np.ndarray) else value for value in inputs]
    return inputs


def npy_bytes(array: np.ndarray) -> bytes:
    """The bytes of a ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def encoded(image: ImageLike, needs: int | None = None) -> bytes:
    """The bytes of a file that decodes to the image, as if it were read from one.

    For a PIL image that was opened from a file and not changed, these are the bytes of that file. For a changed copy
    (``convert``, ``crop``), its pixels are encoded, turned upright by EXIF. A file of a large JPEG is decoded at a
    half, quarter or eighth of its size (`divcon.data.decode.decode`); the pixels of a changed copy are averaged in
    blocks of that size, which is nearly the same: embeddings differ in the fourth decimal. An array is encoded as it
    is.

    Args:
        needs: pixels that the shorter side must have; a PIL image that comes from a JPEG is reduced, if as many are
            left.

    Raises:
        ValueError, OSError: the pixels are not colours, or cannot be read.
    """
    if isinstance(image, np.ndarray) or is_tensor(image):
        pixels = _of_array(image)
        return _tiff(pixels) if is_deep(pixels) else _png(pixels)
    if isinstance(image, (io.BytesIO, io.BufferedReader)):
        image.seek(0)
        return image.read()
    if not isinstance(image, Image.Image):
        return bytes(image)
    if (content := _its_file(image)) is not None:
        return content
    if is_deep(image):  # of any range, which the model has
        return _tiff(upright(image, image))
    pixels = upright(to_rgb(image), image)
    if needs is not None and (getattr(image, "format", None) == "JPEG" or any(key in image.info for key in _OF_JPEG)):
        factor = next((k for k in (8, 4, 2) if min(pixels.size) // k >= needs), 1)
        pixels = pixels.reduce(factor) if factor > 1 else pixels
    return _png(pixels)


def _tiff(image: Image.Image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(file, "TIFF")
    return file.getvalue()


_CHANNELS = (1, 3, 4)


def _of_array(array: Any) -> Image.Image:
    """The image of an array or tensor.

    Raises:
        ValueError: its shape or its numbers are none of an image.
    """
    tensor = is_tensor(array)
    if tensor:
        array = array.detach().cpu()
        array = array.float() if str(array.dtype) == "torch.bfloat16" else array
    pixels = np.asarray(array)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3:
        raise ValueError(f"an array of shape {pixels.shape} is no image: (H, W, C) or (C, H, W)")
    # Tensors have the channels first, arrays last; where only one can be, it is that.
    first, last = pixels.shape[0] in _CHANNELS, pixels.shape[2] in _CHANNELS
    if first and (tensor or not last) and not (tensor and array.ndim == 2):
        pixels = pixels.transpose(1, 2, 0)
    elif not last:
        raise ValueError(f"an array of shape {pixels.shape} has no 1, 3 or 4 channels")
    if pixels.dtype == np.uint16 and pixels.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0]))  # of any range, which the model has
    pixels = _bytes_of(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def _bytes_of(pixels: np.ndarray) -> np.ndarray:
    """The pixels as uint8."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint16:
        return (pixels // 257).astype(np.uint8)
    if pixels.dtype.kind not in "fiu":
        raise ValueError(f"its pixels are {pixels.dtype}, not numbers")
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise ValueError(
            f"its pixels are from {low:.3g} to {high:.3g}; pass them from 0 to 1 or from 0 to 255, before they are "
            "normalised"
        )
    scale = 255 if pixels.dtype.kind == "f" and high <= 1 else 1
    return np.rint(pixels.astype(np.float32) * scale).astype(np.uint8)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _its_file(image: Image.Image) -> bytes | None:
    """The content of the file that a PIL image was opened from, where its pixels are those of the file."""
    if not isinstance(image, ImageFile.ImageFile) or (image.tell() if hasattr(image, "tell") else 0):
        return None
    file: Any = image.fp
    if getattr(image, "decoderconfig", None):  # it is to be decoded at another size
        return None
    if image.tile and file is not None:  # its pixels are still to be read
        try:
            position = file.tell()
            file.seek(0)
            content = file.read()
            file.seek(position)
        except (OSError, ValueError):
            return None
        return content
    path = getattr(image, "filename", "")
    if image.format != "JPEG" or not path:  # of other formats all pixels are read in any case
        return None
    try:
        with Image.open(path) as again:
            same = (again.mode, again.size) == (image.mode, image.size) and again.tobytes() == image.tobytes()
        return Path(path).read_bytes() if same else None
    except (OSError, ValueError):
        return None
