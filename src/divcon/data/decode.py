"""Decode any image file to upright RGB pixels on white, or say what is wrong with it."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, features
from PIL.JpegImagePlugin import JpegImageFile

from divcon.config.pixel_range import PixelRange
from divcon.data.channels import NPY, TIFF, array_in, as_picture, is_npy_image
from divcon.data.channels import decode_channels as read_channels
from divcon.errors import ImageError, RemoteError
from divcon.runtime.copies import read_file
from divcon.runtime.places import url_of

if TYPE_CHECKING:
    import torch  # takes seconds, and reading data does without

_NEVER = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
"""Drawings, which Pillow would run another program for; data and videos, which it recognises and does not decode."""
_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats to try first."""
_WITH_MAGIC = (*_COMMON, "AVIF", "HEIF", "JPEG2000", "JXL", "PPM", "QOI")
"""Formats that other files are not taken for: each has a header that it begins with."""
_IN_SOME_PILLOWS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""Formats that Pillow may be built without, and its names of these features."""
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": ""}
"""Modules that teach Pillow another format where they are installed, and their functions that do so; "": the import."""
_MORE_ENDINGS = {".mpo": "JPEG", ".jps": "JPEG", ".jif": "JPEG", ".jfi": "JPEG", ".pjp": "JPEG", ".pjpeg": "JPEG"}
"""Endings in use that Pillow does not register with what reads them."""
_SHARED_ENDINGS = (
    *(".pcd", ".fit", ".fits", ".gbr", ".im", ".iim", ".bw", ".rgb", ".rgba", ".ras", ".vst", ".vda", ".icb"),
    *(".fli", ".flc", ".ftc", ".ftu", ".msp", ".pxr"),
)
"""Endings that other kinds of file have as well (point clouds, activities, boards, raw pixels ...)."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns each EXIF orientation upright."""

_LOOKS_LIKE = (
    (b"<!doctype html", "an HTML page, as a failed download leaves"),
    (b"<html", "an HTML page, as a failed download leaves"),
    (b"<svg", "an SVG drawing; draw it as PNG first"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
    (b"%pdf", "a PDF"),
    (b"%!ps", "a PostScript drawing; draw it as PNG first"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript drawing; draw it as PNG first"),
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` gets the image"),
    (b"pk\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"rar!", "a RAR archive"),
    (b"\x1ae\xdf\xa3", "a video"),
    (b"\xff\x0a", "a JPEG XL image; `pip install pillow-jxl-plugin` to read it, or convert it to JPEG"),
    (b"\0\0\0\x0cjxl ", "a JPEG XL image; `pip install pillow-jxl-plugin` to read it, or convert it to JPEG"),
)
"""The first bytes, in lower case, of files that are often mistaken for images."""
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def decode(
    source: str | os.PathLike[str] | bytes,
    box: tuple[int, int, int, int] | None = None,
    needs: int | None = None,
    pixel_range: PixelRange = "full",
    *,
    any_channels: bool = False,
) -> Image.Image:
    """Decode the image in a file, or in the bytes of one, as RGB. A ``.npy`` file holds an array (H, W), (H, W, C) or
    (C, H, W).

    Transparent pixels become white, channels of more than 8 bits are scaled by ``pixel_range``, CMYK and LAB are
    converted, and colour profiles are not applied. Of an animation or a document it is the first frame or page. The
    format is detected from the content, not from the file's name. The image is turned upright as its EXIF orientation
    says.

    A JPEG of more pixels than Pillow takes (179 million, unless ``PIL.Image.MAX_IMAGE_PIXELS`` says otherwise) is
    decoded at a half, quarter or eighth of its width and height.

    Args:
        box: the crop to take, left, top, right, bottom, in the stored pixels: before EXIF turns them, as in
            open-metric-learning. (For TIFF, after: Pillow turns those itself.)
        needs: the pixels that the shorter side must have; a JPEG without a box is decoded at a half, quarter or eighth
            of its width and height, if that leaves as many.
        pixel_range: what becomes black and white, of images with more than 8 bits a channel. ``full``: 16-bit channels
            keep their upper 8 bits; floating-point numbers and values beyond 16 bits are refused. Of colours in 16 bits
            the others are read from PNG; other formats keep the upper 8 bits.
        any_channels: of an array of other than one or three channels, which is refused, take the first ones, to look
            at it.

    Raises:
        ImageError: the file is missing or empty, does not decode, has too many pixels, or the box is outside of it. The
            message does not name the file.
    """
    return _decoded(source, lambda file: _decode(file, box, needs, pixel_range, any_channels))


def decode_channels(
    source: str | os.PathLike[str] | bytes,
    channels: int,
    box: tuple[int, int, int, int] | None = None,
    pixel_range: PixelRange = "full",
) -> torch.Tensor:
    """As `decode`, of images of another number of channels than three: (C, H, W) uint8.

    One channel is grey, of any image; two and four are those of images with alpha or of CMYK, as they are stored; any
    number is of arrays in ``.npy`` files and of TIFF (with tifffile).

    Raises:
        ImageError: as `decode`, or the image has another number of channels.
    """

    def pixels(file: IO[bytes]) -> torch.Tensor:
        content = file.read()

        def opened() -> Image.Image:
            try:
                image = Image.open(io.BytesIO(content), formats=_formats())
            except Image.UnidentifiedImageError:
                raise ValueError(_unidentified(io.BytesIO(content))) from None
            turn = _turn(image)
            image.load()
            cropped = image if box is None else _cropped(image, box)
            return cropped if turn is None else cropped.transpose(turn)

        return read_channels(content, channels, box, pixel_range, opened)

    return _decoded(source, pixels)


T = TypeVar("T")


def _decoded(source: str | os.PathLike[str] | bytes, function: Callable[[IO[bytes]], T]) -> T:
    """Call a function with an open file.

    Raises:
        ImageError: whatever it raises, in words.
    """
    try:
        if isinstance(source, bytes):
            return function(io.BytesIO(source))
        if (url := url_of(source)) is not None:
            return function(io.BytesIO(read_file(url)))
        with Path(source).open("rb") as file:
            return function(file)
    except MemoryError:
        raise
    except RemoteError as error:
        raise ImageError(error.strerror) from None
    except FileNotFoundError:
        raise ImageError("there is no such file") from None
    except IsADirectoryError:
        problem = "it is a folder"
    except PermissionError:
        problem = "it may not be read: permission denied"
    except Exception as error:
        # Broken bytes raise whatever a format's reader did not expect: struct.error, IndexError, ...
        readable = isinstance(error, (OSError, ValueError, SyntaxError, Image.DecompressionBombError)) and str(error)
        problem = readable or repr(error)
    raise ImageError(f"this image does not decode ({problem})")


def _decode(
    file: IO[bytes],
    box: tuple[int, int, int, int] | None,
    needs: int | None,
    pixel_range: PixelRange,
    any_channels: bool,
) -> Image.Image:
    start = file.read(len(NPY))
    file.seek(0)
    if start == NPY:
        return _of_array(file.read(), box, pixel_range, any_channels)
    try:
        image = Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        image = _reduced(file, str(error), box)
    except Image.UnidentifiedImageError:
        if start.startswith(TIFF):
            file.seek(0)
            return _of_array(file.read(), box, pixel_range, any_channels)
        raise ValueError(_unidentified(file)) from None
    with image:
        # Before EXIF is read, for which Pillow decodes a PNG.
        is_deep_png = pixel_range != "full" and _is_deep_png(image)
        # Before the pixels are read: Pillow turns a TIFF itself, and only then removes its orientation.
        turn = _turn(image)
        if needs is not None and box is None and image.format == "JPEG" and min(image.size) >= 2 * needs:
            image.draft(None, (needs, needs))
        if is_deep_png:
            pixels = _deep_png(file, box, pixel_range)
        else:
            image.load()
            pixels = to_rgb(image if box is None else _cropped(image, box), pixel_range)
    return pixels if turn is None else pixels.transpose(turn)


def upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """The pixels of an image turned as its EXIF data says."""
    turn = _turn(image)
    return pixels if turn is None else pixels.transpose(turn)


def lies_on_its_side(image: Image.Image) -> bool:
    """Whether turning an image upright, as its EXIF data says, exchanges its width and height."""
    return image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)


def _turn(image: Image.Image) -> Image.Transpose | None:
    return None if image.format == "TIFF" else _TURNS.get(_orientation(image))


def to_rgb(image: Image.Image, pixel_range: PixelRange = "full") -> Image.Image:
    """Convert to RGB: transparent pixels become white, channels of more than 8 bits are scaled by ``pixel_range``.

    Raises:
        ValueError: the pixels are floating-point numbers, or whole numbers beyond 16 bits, and the range is ``full``.
    """
    if is_deep(image) and pixel_range not in ("full", "auto"):
        values = np.asarray(image)
        grey = scaled(values, pixel_range)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers; set `pixel_range` (own, or the values that become black and "
            "white), or save it as PNG, JPEG or WebP"
        )
    if image.mode.startswith("I"):
        # Pillow would cut these values off at 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                "its pixels are whole numbers beyond 0 to 65,535; set `pixel_range` (own, or the values that become "
                "black and white), or save it as PNG, JPEG or WebP"
            )
        grey = (values >> 8).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether an image of one channel has more than 8 bits a pixel."""
    return image.mode == "F" or image.mode.startswith("I")


def scaled(values: np.ndarray, pixel_range: PixelRange) -> np.ndarray:
    """Values of any type as uint8: the lower end of the range and what is below becomes 0, the upper end and what is
    above 255. NaN becomes 0."""
    numbers = values.astype(np.float64)
    if isinstance(pixel_range, str):
        finite = numbers[np.isfinite(numbers)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    else:
        low, high = pixel_range
    shares = (numbers - low) / (high - low) if high > low else np.zeros_like(numbers)
    return np.rint(255 * np.clip(np.nan_to_num(shares, nan=0.0), 0, 1)).astype(np.uint8)


def deep_values(source: str | os.PathLike[str] | bytes) -> np.ndarray | None:
    """The values of an image with more than 8 bits a channel; None for any other.

    Raises:
        Exception: of any kind, where the image cannot be read.
    """
    content = source if isinstance(source, bytes) else read_file(source)
    if content.startswith(NPY):
        array = array_in(content)
        return None if array is None or array.dtype in (np.uint8, np.bool_) else array
    with Image.open(io.BytesIO(content), formats=_formats()) as image:
        if _is_deep_png(image):
            values = _png_values(content)
            return values[..., : 3 if values.shape[2] > 2 else 1]  # without alpha
        return np.asarray(image) if is_deep(image) else None


def _is_deep_png(image: Image.Image) -> bool:
    """Whether it is a PNG of 16-bit colours, or of grey and alpha, of which Pillow reads the upper 8 bits alone."""
    tiles: Any = getattr(image, "tile", None)
    tile = tiles[0] if image.format == "PNG" and tiles else None
    return tile is not None and image.mode in ("RGB", "RGBA", "LA") and ";16" in str(tile[3])


def _png_values(content: bytes) -> np.ndarray:
    """The (H, W, C) uint16 values of a PNG."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return decode_png(data, ImageReadMode.UNCHANGED).permute(1, 2, 0).contiguous().numpy()


def _deep_png(file: IO[bytes], box: tuple[int, int, int, int] | None, pixel_range: PixelRange) -> Image.Image:
    file.seek(0)
    values = _png_values(file.read())
    colours = values[..., : 3 if values.shape[2] > 2 else 1]
    pixels = scaled(colours, pixel_range)
    if values.shape[2] in (2, 4):  # alpha, whose range is always that of the format
        pixels = np.concatenate([pixels, (values[..., -1:] >> 8).astype(np.uint8)], axis=2)
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    return to_rgb(image if box is None else _cropped(image, box))


def _of_array(
    content: bytes, box: tuple[int, int, int, int] | None, pixel_range: PixelRange, any_channels: bool
) -> Image.Image:
    array = array_in(content)
    if array is None:
        raise ValueError(_unidentified(io.BytesIO(content)))
    picture = as_picture(array, pixel_range, any_channels=any_channels)
    return picture if box is None else _cropped(picture, box)


@cache
def _formats() -> tuple[str, ...]:
    """The formats that decode here, those of installed plug-ins too; the most common first."""
    Image.init()
    for module, register in _PLUGINS.items():
        if importlib.util.find_spec(module) is not None:
            try:
                plugin = importlib.import_module(module)
                if register:
                    getattr(plugin, register)()
            except (ImportError, OSError, AttributeError):
                # A plug-in that does not load is as one that is not installed.
                continue
    lacking = {name for name, feature in _IN_SOME_PILLOWS.items() if name in Image.OPEN and not features.check(feature)}
    return (*_COMMON, *(name for name in Image.ID if name not in {*_NEVER, *_COMMON, *lacking}))


def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that decode here, for ``PIL.Image.open``; installed plug-ins are registered."""
    return _formats()


@cache
def image_endings() -> dict[str, str]:
    """The endings of files that decode here, in lower case with their dot, and Pillow's name of the format of each:
    those that Pillow or one of its installed plug-ins registers."""
    formats = set(_formats())
    known = {ending: name for ending, name in Image.registered_extensions().items() if name in formats}
    return {**known, **_MORE_ENDINGS}


def is_image_file(path: str | os.PathLike[str], ending: str) -> bool:
    """Whether a file with this ending (in lower case, with its dot; or none) is an image to read.

    The ending decides, so that a damaged image is one. Where the ending is also that of other files, or there is none,
    the first bytes of the file decide.
    """
    if ending == ".npy":
        return is_npy_image(path)
    kind = image_endings().get(ending)
    if kind is not None and ending not in _SHARED_ENDINGS:
        return True
    if kind is None and ending:
        return False
    return begins_as_image(path, (kind,) if kind else _WITH_MAGIC)


def begins_as_image(path: str | os.PathLike[str], formats: Collection[str] = _WITH_MAGIC) -> bool:
    """Whether a file begins as an image of one of these formats does."""
    known = [name for name in _formats() if name in formats]
    try:
        with Image.open(path, formats=known):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:
        # Broken bytes raise whatever a format's reader did not expect.
        return False


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # A broken EXIF block does not break the pixels.
        return 1


def _cropped(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    left, top, right, bottom = box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        sides = ",".join(map(str, box))
        raise ValueError(f"the box {sides} is outside its {image.width} x {image.height} pixels")
    return image.crop(box)


def _reduced(file: IO[bytes], problem: str, box: tuple[int, int, int, int] | None) -> Image.Image:
    """A JPEG with too many pixels, to be decoded at the largest scale that has few enough."""
    file.seek(0)
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if box is None and file.read(3) == b"\xff\xd8\xff":
        file.seek(0)
        image = JpegImageFile(file)
        for scale in (2, 4, 8):
            if -(-image.width // scale) * -(-image.height // scale) <= limit:
                image.draft(None, (image.width // scale, image.height // scale))
                return image
    raise ValueError(f"it has too many pixels: {problem.split(',')[0]}; save it smaller")


def _unidentified(file: IO[bytes]) -> str:
    """What is wrong with a file of no known image format."""
    file.seek(0)
    start = file.read(512)
    if not start:
        return "the file is empty"
    head = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    guess = next((what for magic, what in _LOOKS_LIKE if head.startswith(magic)), None)
    if start[4:8] == b"ftyp":
        guess = "a video"
        if start[8:12] in _HEIF:
            guess = "a HEIC image; `pip install pillow-heif` to read it, or convert it to JPEG"
        elif start[8:12] in (b"avif", b"avis"):
            guess = "an AVIF image; install Pillow 11.3 or newer to read it, or convert it to JPEG"
    if guess is None and not start.strip(b"\0"):
        guess = "zeros, as an interrupted copy leaves"
    if guess is None and start.isascii() and (text := " ".join(start.decode().split())).isprintable():
        guess = f"text, beginning {text[:40]!r}"
    return f"it looks like {guess}" if guess else f"no known image format begins with {start[:8].hex(' ')}"
