"""From any image file to RGB pixels, the right way up, on white; and what is wrong with a file that gives none."""

from __future__ import annotations

import io
import os
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from divcon.errors import ImageError

_NEVER = ("EPS", "WMF")
"""Drawings, which Pillow hands to another program to run."""
_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats to try first."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings the pixels of each EXIF orientation the right way up."""

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
)
"""How files begin, in lower case, that stand where an image should."""
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def decode(
    source: str | os.PathLike[str] | bytes, box: tuple[int, int, int, int] | None = None, needs: int | None = None
) -> Image.Image:
    """The image in a file, or in the bytes of one, as RGB.

    What is transparent becomes white, of 16 bits a channel the upper 8 are kept, CMYK and LAB are converted, a colour
    profile is left unapplied. Of an animation or of several pages it is the first. The name's ending is not looked at.
    An image that EXIF says is turned or mirrored is brought the right way up, as viewers show it.

    A JPEG of more pixels than Pillow takes (179 million, unless ``PIL.Image.MAX_IMAGE_PIXELS`` says otherwise) is
    decoded at a half, quarter or eighth of its width and height.

    Args:
        box: the part to take, left, top, right, bottom, in the pixels as the file stores them: before EXIF turns them,
            which is how open-metric-learning counts. (A TIFF's are counted after: Pillow turns those itself.)
        needs: pixels that the shorter side must have; a JPEG without a box is then decoded at a half, quarter or eighth
            of its width and height, if these are as many still.

    Raises:
        ImageError: what is wrong, without the name of the file: it is missing or empty, does not decode, has more
            pixels than are decoded, or the box is outside of it.
    """
    try:
        if isinstance(source, bytes):
            return _decode(io.BytesIO(source), box, needs)
        with Path(source).open("rb") as file:
            return _decode(file, box, needs)
    except MemoryError:
        raise
    except FileNotFoundError:
        raise ImageError("there is no such file") from None
    except IsADirectoryError:
        problem = "it is a folder"
    except PermissionError:
        problem = "it may not be read: permission denied"
    except Exception as error:
        # Broken bytes bring about whatever a format's reader did not think of: struct.error, IndexError, ...
        told = isinstance(error, (OSError, ValueError, SyntaxError, Image.DecompressionBombError)) and str(error)
        problem = told or repr(error)
    raise ImageError(f"this image does not decode ({problem})")


def _decode(file: IO[bytes], box: tuple[int, int, int, int] | None, needs: int | None) -> Image.Image:
    try:
        image = Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        image = _reduced(file, str(error), box)
    except Image.UnidentifiedImageError:
        raise ValueError(_unidentified(file)) from None
    with image:
        # Read before the pixels are: Pillow turns a TIFF itself, and only then forgets its orientation.
        turn = _turn(image)
        if needs is not None and box is None and image.format == "JPEG" and min(image.size) >= 2 * needs:
            image.draft(None, (needs, needs))
        image.load()
        pixels = to_rgb(image if box is None else _cropped(image, box))
    return pixels if turn is None else pixels.transpose(turn)


def upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
    """The pixels of an image turned as its EXIF data says."""
    turn = _turn(image)
    return pixels if turn is None else pixels.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    return None if image.format == "TIFF" else _TURNS.get(_orientation(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, and 16 bits a channel become 8.

    Raises:
        ValueError: the pixels are floating-point numbers, or whole numbers beyond 16 bits.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it as PNG, JPEG or WebP")
    if image.mode.startswith("I"):
        # Pillow would cut these values off at 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are whole numbers beyond 0 to 65,535; save it as PNG, JPEG or WebP")
        grey = (values >> 8).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return (*_COMMON, *(name for name in Image.ID if name not in _NEVER + _COMMON))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Pixels are not lost where the block beside them is broken.
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
    """What is wrong with a file that no format knows."""
    file.seek(0)
    start = file.read(512)
    if not start:
        return "the file is empty"
    head = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    found = next((what for magic, what in _LOOKS_LIKE if head.startswith(magic)), None)
    if start[4:8] == b"ftyp":
        found = "a HEIC image; convert it to JPEG" if start[8:12] in _HEIF else "a video"
    if found is None and not start.strip(b"\0"):
        found = "zeros, as an interrupted copy leaves"
    if found is None and start.isascii() and (text := " ".join(start.decode().split())).isprintable():
        found = f"text, beginning {text[:40]!r}"
    return f"it looks like {found}" if found else f"no known image format begins with {start[:8].hex(' ')}"
