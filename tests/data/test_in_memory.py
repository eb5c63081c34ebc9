"""Images in memory: the pixels are those of the file, whatever form it comes in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from divcon.data.decode import decode
from divcon.data.in_memory import encoded, is_image, set_of_images
from divcon.errors import ImageError


def photo(width: int = 200, height: int = 160) -> Image.Image:
    """Something smooth, as photographs are."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(params=["jpeg", "turned jpeg", "png", "palette", "cmyk", "transparent"])
def file(request, tmp_path: Path) -> Path:
    image, options, name = photo(), {}, "photo.jpg"
    if request.param == "turned jpeg":
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    elif request.param == "cmyk":
        image = image.convert("CMYK")
    elif request.param != "jpeg":
        name = "photo.png"
    if request.param == "palette":
        image = image.convert("P")
    if request.param == "transparent":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / name, **options)
    return tmp_path / name


NEEDS = 40


def pixels(content: bytes | Path) -> np.ndarray:
    return np.asarray(decode(content, None, NEEDS))


def test_of_an_opened_file_they_are_the_files(file):
    expected = pixels(file)
    with file.open("rb") as handle:
        forms = [Image.open(file), Image.open(io.BytesIO(file.read_bytes())), Image.open(handle), file.read_bytes()]
        loaded = Image.open(file)
        loaded.load()
        for form in (*forms, loaded):
            np.testing.assert_array_equal(pixels(encoded(form, NEEDS)), expected)


def test_an_opened_file_can_still_be_used(file):
    image = Image.open(file)
    encoded(image, NEEDS)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(file)))


@pytest.mark.parametrize("turned", [False, True])
def test_of_copies_of_a_jpeg_they_are_nearly_the_files(turned, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    photo().save(tmp_path / "a.jpg", exif=exif)
    expected = pixels(tmp_path / "a.jpg").astype(int)
    for copy in (
        Image.open(tmp_path / "a.jpg").convert("RGB"),
        ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")),
    ):
        decoded = pixels(encoded(copy, NEEDS))
        assert decoded.shape == expected.shape
        assert np.abs(decoded - expected).mean() < 1


def test_changed_pixels_count(tmp_path):
    photo().save(tmp_path / "a.jpg")
    image = Image.open(tmp_path / "a.jpg")
    image.paste((255, 0, 0), (0, 0, 200, 160))
    assert (pixels(encoded(image, NEEDS)) == (255, 0, 0)).all()


def test_arrays_are_taken_as_they_are():
    array = np.asarray(photo())
    np.testing.assert_array_equal(pixels(encoded(array, NEEDS)), array)
    np.testing.assert_array_equal(pixels(encoded(array[::-1, ::2], NEEDS)), array[::-1, ::2])
    assert is_image(array) and is_image(array.astype(np.float32)) and not is_image(array[..., 0])


def test_what_has_no_colours_is_named():
    with pytest.raises(ImageError, match=r"image 1: .*does not decode \(its pixels are floating-point"):
        set_of_images([photo(), Image.new("F", (4, 4))], ["image 0", "image 1"]).open(1)
