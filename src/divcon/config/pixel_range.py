"""The values that become black and white, of images with more than 8 bits a channel."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

PixelRange = Literal["auto", "full", "own"] | tuple[float | int, float | int]
"""``full``: 0 and 65,535. ``own``: the lowest and the highest value of each image. Or the two values. ``auto``: chosen
from the training images."""

EXPECTED = "auto, full, own, or the values that become black and white, such as 0,4095"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TEXT = re.compile(rf"\s*({_NUMBER})\s*(?:,|\.\.|-|\s)\s*({_NUMBER})\s*")


def read_pixel_range(value: Any) -> PixelRange:
    """A range from its name, a pair of numbers, or text: ``0,4095``.

    Raises:
        ValueError: it is none of these, or the second number is not above the first.
    """
    if value in ("auto", "full", "own") and isinstance(value, str):
        return value  # type: ignore[return-value]
    match = _TEXT.fullmatch(value) if isinstance(value, str) else None
    pair = match.groups() if match else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or any(isinstance(v, bool) for v in pair):
        raise ValueError(f"expected {EXPECTED}, not {value!r}")
    try:
        low, high = float(pair[0]), float(pair[1])
    except (TypeError, ValueError):
        raise ValueError(f"expected {EXPECTED}, not {value!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"the value that becomes white must be above the one that becomes black, not {value!r}")
    return low, high


def saved_pixel_range(value: PixelRange) -> str:
    """A range as files have it: its name, or ``0,4095``."""
    return value if isinstance(value, str) else f"{value[0]:.12g},{value[1]:.12g}"
