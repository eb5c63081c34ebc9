"""Sizes of images: one number where height and width are equal, else height and width; ``128x64`` as text."""

from __future__ import annotations

import re
from typing import Any

ImageSize = int | tuple[int, int]
"""Pixels: of height and width both, or (height, width)."""

MOST_PIXELS = 8192
"""The most that a side may have: one image of more fills the memory of most machines."""
EXPECTED = "a whole number of pixels, or a height and a width such as 128x64"
_TEXT = re.compile(r"\s*(\d+)\s*(?:[x×*,]\s*(\d+)\s*)?", re.IGNORECASE)


def read_size(value: Any) -> ImageSize:
    """A size from a number, a pair (height, width), or text: ``224``, ``128x64``. Equal sides become one number.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str):
        match = _TEXT.fullmatch(value)
        sides = [int(side) for side in match.groups() if side is not None] if match else []
    else:
        sides = list(value) if isinstance(value, (tuple, list)) else [value]
        if len(sides) != (2 if isinstance(value, (tuple, list)) else 1) or not all(_is_whole(side) for side in sides):
            sides = []
        sides = [int(side) for side in sides]
    if not sides or sides == [0, 0]:  # which is no size, where 0 is "from the data"
        raise ValueError(f"expected {EXPECTED}, not {value!r}")
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__")


def height_width(size: ImageSize) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def saved_size(size: ImageSize) -> int | str:
    """A size as files have it: the number, or ``128x64`` (height x width)."""
    return size if isinstance(size, int) else f"{size[0]}x{size[1]}"


def size_in_words(size: ImageSize) -> str:
    """``224 x 224``, or ``128 x 64 (height x width)``."""
    height, width = height_width(size)
    return f"{height} x {width}" + ("" if height == width else " (height x width)")
