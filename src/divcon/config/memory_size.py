"""Sizes of memory: a number of bytes, as text ``8GB``, or a share of the machine's memory, ``0.25``."""

from __future__ import annotations

import re
from typing import Any

MemorySize = float | int
"""Bytes, a whole number; above 0 and up to 1: a share of the machine's memory. 0: no limit."""

EXPECTED = "a size such as 8GB or 500MB, a number of bytes, a share of the memory such as 0.25, or 0"
LEAST = 10**6
"""The least number of bytes; fewer are a slip."""
_TEXT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?i?b?)\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def read_memory_size(value: Any) -> MemorySize:
    """A size from a number or text: ``8GB`` (10^9 bytes each), ``8GiB`` (2^30), ``0.25``.

    Raises:
        ValueError: it is none of these, or less than a megabyte.
    """
    if isinstance(value, str):
        match = _TEXT.fullmatch(value)
        if match is None:
            raise ValueError(f"expected {EXPECTED}, not {value!r}")
        number, unit = float(match[1]), match[2].lower()
        if unit:
            number = float(int(number * (1024 if "i" in unit else 1000) ** _POWERS[unit.rstrip("ib")]))
    elif isinstance(value, bool) or not (hasattr(value, "__index__") or isinstance(value, float)):
        raise ValueError(f"expected {EXPECTED}, not {value!r}")
    else:
        number, unit = float(value), ""
    if number == 0:
        return 0
    if 0 < number <= 1 and not unit:
        return number
    if not LEAST <= number < float("inf"):
        raise ValueError(f"expected {EXPECTED}, not {value!r}: it is at least 1MB (as in 8GB)")
    return int(number)


def size_of_bytes(count: float) -> str:
    """A number of bytes in words: ``5.9 GB``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} KB"


def memory_in_words(size: MemorySize) -> str:
    """A size as a setting has it: ``0.25``, ``8GB``."""
    return f"{size:g}" if size <= 1 else size_of_bytes(size).replace(" ", "")
