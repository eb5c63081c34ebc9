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

ImageLike = Image.Image | np.ndarray | bytes
"""A PIL image, an array (H, W, 3) of uint8, or the bytes of a file."""

_OF_JPEG = ("jfif", "progressive", "progression", "adobe")
"""What Pillow notes of a JPEG, and passes on to converted and resized copies."""


def is_image(value: object) -> TypeGuard[ImageLike]:
    """Whether it is an `ImageLike`."""
    if isinstance(value, np.ndarray):
        return value.ndim == 3 and value.shape[2] == 3 and value.dtype == np.uint8
    return isinstance(value, (Image.Image, bytes, bytearray, memoryview))


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
    if isinstance(image, np.ndarray):
        return _png(Image.fromarray(np.ascontiguousarray(image)))
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
