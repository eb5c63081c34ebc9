"""One icon of an icon set, drawn: SVG text to pixels, and pixels to the smallest PNG that gives them back."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from divcon.errors import DataError

NEAR_WHITE = 254
"""Pixels from here up cannot be told from the white ground: a drawing that has no darker ones is blank."""


def svg_text(icon: Mapping[str, Any], defaults: Mapping[str, Any], size: int) -> str:
    """The icon as a ``size`` x ``size`` SVG, centred, in black where it has no colour of its own.

    ``icon`` holds the drawing's ``body``; ``left``, ``top``, ``width`` and ``height`` are its own, or else
    those of its set (``defaults``), or else 0, 0, 16, 16.
    """
    box = [icon.get(key, defaults.get(key, default)) for key, default in _BOX.items()]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{box[0]} {box[1]} {box[2]} {box[3]}" color="black">'
        f"{icon['body']}</svg>"
    )


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


def render(svg: str) -> np.ndarray:
    """The drawing on white, (H, W, 3) uint8.

    Raises:
        ValueError: it cannot be drawn.
        DataError: resvg-py is not installed.
    """
    resvg = require_resvg()
    # Fonts differ from machine to machine, so none are used.
    png = bytes(resvg.svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def is_blank(pixels: np.ndarray) -> bool:
    """Whether nothing can be seen on the (H, W, 3) uint8 pixels: all white, or nearly."""
    return bool(pixels.min() >= NEAR_WHITE)


def to_png(pixels: np.ndarray) -> bytes:
    """The (H, W, 3) uint8 pixels as a PNG: grey levels, a palette of up to 256 colours, or RGB, always
    exact."""
    buffer = io.BytesIO()
    _smallest_mode(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _smallest_mode(pixels: np.ndarray) -> Image.Image:
    red, green, blue = np.moveaxis(pixels, -1, 0)
    if (red == green).all() and (green == blue).all():
        return Image.fromarray(np.ascontiguousarray(red))
    packed = (red.astype(np.uint32) << 16) | (green.astype(np.uint32) << 8) | blue
    colours, places = np.unique(packed, return_inverse=True)
    if len(colours) > 256:
        return Image.fromarray(pixels)
    image = Image.fromarray(places.reshape(red.shape).astype(np.uint8)).convert("L")
    image.putpalette(np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1).astype(np.uint8).tobytes())
    return image


def require_resvg() -> Any:
    """The renderer's module.

    Raises:
        DataError: it is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise DataError('icons are drawn by resvg-py, which is not installed: pip install "divcon[icons]"') from None
    return resvg_py
