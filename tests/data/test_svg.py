"""Drawings to pixels, and pixels to PNGs that give them back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from tools.icons import is_blank, render, svg_text, to_png

SQUARE = {"body": '<rect width="8" height="8" fill="currentColor"/>'}


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_an_icons_own_size_goes_before_its_sets():
    defaults = {"width": 16, "height": 16}
    pixels = render(svg_text(SQUARE, defaults, 32))
    assert (pixels[:16, :16] == 0).all() and (pixels[16:] == 255).all() and (pixels[:, 16:] == 255).all()
    assert (render(svg_text(SQUARE | {"width": 8, "height": 8}, defaults, 32)) == 0).all()
    assert (render(svg_text(SQUARE, {}, 32)) == pixels).all()


def test_left_and_top_move_the_drawing():
    pixels = render(svg_text(SQUARE | {"left": -8, "top": -8}, {}, 32))
    assert (pixels[16:, 16:] == 0).all() and (pixels[:16] == 255).all()


def test_a_drawing_that_is_no_xml():
    with pytest.raises(ValueError):
        render(svg_text({"body": "<rect"}, {}, 32))


def test_text_is_not_drawn_since_fonts_differ():
    assert is_blank(render(svg_text({"body": '<text x="1" y="12">Ag</text>'}, {}, 32)))


@pytest.mark.parametrize(("value", "blank"), [(255, True), (254, True), (253, False)])
def test_blank(value, blank):
    pixels = np.full((4, 4, 3), 255, np.uint8)
    pixels[1, 2, 0] = value
    assert is_blank(pixels) == blank


@given(arrays(np.uint8, (6, 5, 3)))
def test_any_pixels_come_back(pixels):
    assert (decoded(to_png(pixels)) == pixels).all()


@given(arrays(np.uint8, (6, 5)), st.integers(1, 255))
def test_few_colours_come_back_from_a_palette(places, n):
    palette = np.random.default_rng(n).integers(0, 256, (n, 3), np.uint8)
    pixels = palette[places % n]
    assert (decoded(to_png(pixels)) == pixels).all()


def test_the_smallest_mode_is_taken():
    grey = np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), 3, axis=2)
    many = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    few = many // 128 * 255
    assert [Image.open(io.BytesIO(to_png(p))).mode for p in (grey, few, many)] == ["L", "P", "RGB"]
