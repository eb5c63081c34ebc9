"""Small images on disk, and tables that name them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def colour(text: str) -> tuple[int, int, int]:
    """A colour that depends on the text alone."""
    seed = sum((i + 1) * byte for i, byte in enumerate(text.encode()))
    red, green, blue = np.random.default_rng(seed).integers(0, 256, 3)
    return int(red), int(green), int(blue)


def png(text: str, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour(text)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """``encoded("a")`` is a PNG of the colour that belongs to the text."""
    return png


@pytest.fixture
def colour_of() -> Callable[[str], tuple[int, int, int]]:
    return colour


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """``make_images(["a/1.png", ...])`` writes them under a folder ``images``, which it returns."""

    def make(paths: Sequence[str], folder: str = "images", size: tuple[int, int] = (8, 8)) -> Path:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, colour(path)).save(root / path)
        return root

    return make


@pytest.fixture
def make_csv(make_images: Callable[..., Path]) -> Callable[..., Path]:
    """``make_csv(text)`` writes the text to a CSV beside images ``a1.png`` ... ``d3.png``."""

    def make(text: str | bytes, name: str = "table.csv", images: Sequence[str] | None = None) -> Path:
        paths = [f"{c}{i}.png" for c in "abcd" for i in (1, 2, 3)] if images is None else images
        table = make_images(paths) / name
        table.write_bytes(text.encode() if isinstance(text, str) else text)
        return table

    return make
