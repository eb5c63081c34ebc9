"""Any image file that Pillow makes comes out as the same RGB pixels; what is no image says what is wrong."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, features

from divcon.data.decode import decode, to_rgb
from divcon.data.labeled_set import LabeledSet
from divcon.data.transforms import EvalTransform, TrainTransform
from divcon.errors import ImageError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def set_of(path: Path, box=None) -> LabeledSet:
    return LabeledSet(
        np.zeros(1, np.int64),
        ("a",),
        pa.array([path.name]),
        np.zeros(1, np.int64),
        source=str(path.parent),
        root=str(path.parent),
        boxes=None if box is None else np.array([box]),
    )


def encoded_set_of(content: bytes) -> LabeledSet:
    zeros = np.zeros(1, np.int64)
    return LabeledSet(zeros, ("a",), pa.array(["(no path)"]), zeros, "x.parquet", encoded=pa.array([content]))


def check_flat(path: Path, colour: tuple[int, int, int], tolerance: int = 0, size: int = 8) -> None:
    """The file is ``colour`` all over: from its path, its bytes, a set, and the evaluation transform."""
    content = path.read_bytes()
    opened = [decode(path), decode(str(path)), decode(content), set_of(path).open(0), encoded_set_of(content).open(0)]
    for image in opened:
        assert image.mode == "RGB"
        assert image.size == opened[0].size
        assert np.abs(np.asarray(image).astype(int) - colour).max() <= tolerance, np.asarray(image)[0, 0]
    pixels = EvalTransform(size)(opened[0])
    assert pixels.shape == (3, size, size)
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - colour).max() <= tolerance


def palette_image() -> Image.Image:
    image = Image.new("P", (6, 5), 1)
    image.putpalette([*RED, *BLUE, *GREEN])
    return image


FLAT = {
    "rgb.png": (Image.new("RGB", (6, 5), BLUE), {}, BLUE, 0),
    "rgb.bmp": (Image.new("RGB", (6, 5), BLUE), {}, BLUE, 0),
    "rgb.ppm": (Image.new("RGB", (6, 5), BLUE), {}, BLUE, 0),
    "rgb.tiff": (Image.new("RGB", (6, 5), BLUE), {"compression": "tiff_lzw"}, BLUE, 0),
    "rgb.webp": (Image.new("RGB", (6, 5), BLUE), {"lossless": True}, BLUE, 0),
    "rgb.jpg": (Image.new("RGB", (16, 16), BLUE), {"quality": 100}, BLUE, 2),
    "progressive.jpg": (Image.new("RGB", (16, 16), BLUE), {"quality": 100, "progressive": True}, BLUE, 2),
    "rgb.jp2": (Image.new("RGB", (16, 16), BLUE), {}, BLUE, 2),
    "palette.png": (palette_image(), {}, BLUE, 0),
    "palette_clear.png": (palette_image(), {"transparency": 1}, WHITE, 0),
    "palette_half.png": (palette_image(), {"transparency": b"\xff\x80\xff"}, (127, 127, 255), 1),
    "palette.gif": (palette_image(), {}, BLUE, 0),
    "palette_clear.gif": (palette_image(), {"transparency": 1}, WHITE, 0),
    "palette.tiff": (palette_image(), {}, BLUE, 0),
    "grey.png": (Image.new("L", (6, 5), 7), {}, (7, 7, 7), 0),
    "grey_clear.png": (Image.new("L", (6, 5), 7), {"transparency": 7}, WHITE, 0),
    "grey.jpg": (Image.new("L", (16, 16), 7), {}, (7, 7, 7), 1),
    "grey_alpha.png": (Image.new("LA", (6, 5), (0, 128)), {}, (127, 127, 127), 1),
    "rgb_clear.png": (Image.new("RGB", (6, 5), BLUE), {"transparency": BLUE}, WHITE, 0),
    "rgba_clear.png": (Image.new("RGBA", (6, 5), (9, 9, 9, 0)), {}, WHITE, 0),
    "rgba_half.png": (Image.new("RGBA", (6, 5), (0, 0, 255, 128)), {}, (127, 127, 255), 1),
    "rgba.tiff": (Image.new("RGBA", (6, 5), (0, 0, 255, 128)), {}, (127, 127, 255), 1),
    "rgba.webp": (Image.new("RGBA", (6, 5), (0, 0, 255, 128)), {"lossless": True}, (127, 127, 255), 1),
    "rgba.tga": (Image.new("RGBA", (6, 5), (0, 0, 255, 0)), {}, WHITE, 0),
    "one_bit_white.png": (Image.new("1", (6, 5), 1), {}, WHITE, 0),
    "one_bit_black.png": (Image.new("1", (6, 5), 0), {}, BLACK, 0),
    "one_bit.tiff": (Image.new("1", (6, 5), 1), {"compression": "group4"}, WHITE, 0),
    "cmyk.tiff": (Image.new("CMYK", (6, 5), (0, 255, 255, 0)), {}, RED, 0),
    "cmyk.jpg": (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), {"quality": 100}, RED, 2),
    "ycbcr.jpg": (Image.new("RGB", (16, 16), RED).convert("YCbCr"), {"quality": 100}, RED, 2),
    "ycbcr.tiff": (Image.new("RGB", (16, 16), RED).convert("YCbCr"), {}, RED, 2),
    "lab.tiff": (Image.merge("LAB", [Image.new("L", (6, 5), v) for v in (255, 128, 128)]), {}, WHITE, 2),
    "sixteen.png": (Image.fromarray(np.full((5, 6), 0xABCD, np.uint16)), {}, (0xAB,) * 3, 0),
    "sixteen.tiff": (Image.fromarray(np.full((5, 6), 0xABCD, np.uint16)), {}, (0xAB,) * 3, 0),
    "sixteen_low.png": (Image.fromarray(np.full((5, 6), 200, np.uint16)), {}, BLACK, 0),
    "thirty_two.tiff": (Image.fromarray(np.full((5, 6), 0xABCD, np.int32)), {}, (0xAB,) * 3, 0),
}
if int(PIL.__version__.split(".")[0]) < 13:  # older ones write this kind wrongly
    del FLAT["ycbcr.tiff"]


@pytest.mark.parametrize("name", FLAT)
def test_every_kind_of_pixel(tmp_path, name):
    image, options, colour, tolerance = FLAT[name]
    image.save(tmp_path / name, **options)
    check_flat(tmp_path / name, colour, tolerance)


def test_the_files_above_are_what_they_are_called(tmp_path):
    """Pillow stores these modes, and does not convert them as it saves."""
    modes = {
        "palette_clear.png": "P",
        "grey_alpha.png": "LA",
        "one_bit.tiff": "1",
        "cmyk.jpg": "CMYK",
        "lab.tiff": "LAB",
    }
    modes |= {"sixteen.png": "I;16", "thirty_two.tiff": "I", "rgba.tga": "RGBA", "ycbcr.tiff": "YCbCr"}
    for name, mode in ((name, mode) for name, mode in modes.items() if name in FLAT):
        image, options, _, _ = FLAT[name]
        image.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as stored:
            assert stored.mode == mode, name


def test_a_cmyk_jpeg_as_adobe_writes_it_is_stored_inverted(tmp_path):
    """The marker is there, and the samples are inverted: without CMYK's own inversion red would come out cyan."""
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert b"\xff\xee\x00\x0eAdobe" in (tmp_path / "a.jpg").read_bytes()
    check_flat(tmp_path / "a.jpg", RED, 2)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, for what Pillow reads and does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *(chunk(*c) for c in more),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_sixteen_bits_of_rgb_keep_the_upper_eight(tmp_path):
    pixel = struct.pack(">HHH", 0xAB12, 0x34FF, 0xCD00)
    (tmp_path / "a.png").write_bytes(png(3, 2, 16, 2, 2 * (b"\0" + 3 * pixel)))
    check_flat(tmp_path / "a.png", (0xAB, 0x34, 0xCD))


def test_sixteen_bits_of_rgb_with_alpha(tmp_path):
    pixel = struct.pack(">HHHH", 0xFFFF, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png(3, 2, 16, 6, 2 * (b"\0" + 3 * pixel)))
    check_flat(tmp_path / "a.png", WHITE)


def test_sixteen_bits_of_grey_with_a_clear_value(tmp_path):
    rows = 2 * (b"\0" + 3 * struct.pack(">H", 0x1234))
    (tmp_path / "a.png").write_bytes(png(3, 2, 16, 0, rows, (b"tRNS", struct.pack(">H", 0x1234))))
    check_flat(tmp_path / "a.png", WHITE)
    (tmp_path / "b.png").write_bytes(png(3, 2, 16, 0, rows, (b"tRNS", struct.pack(">H", 0x1235))))
    check_flat(tmp_path / "b.png", (0x12,) * 3)


def test_sixteen_bits_stored_big_end_first(tmp_path):
    values = np.array([[0x0102, 0xFF00]], np.uint16)
    Image.frombytes("I;16B", (2, 1), values.astype(">u2").tobytes()).save(tmp_path / "a.tiff")
    assert np.asarray(decode(tmp_path / "a.tiff"))[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.ones((2, 2), np.float32), "floating-point"),
        (np.full((2, 2), 70_000, np.int32), "beyond 0 to 65,535"),
        (np.full((2, 2), -1, np.int32), "beyond 0 to 65,535"),
    ],
)
def test_pixels_without_a_known_scale_are_refused(tmp_path, array, what):
    Image.fromarray(array).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=what):
        set_of(tmp_path / "a.tiff").open(0)


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "RGBX", "PA", "RGBa"])
def test_modes_that_no_file_here_has(mode):
    image = Image.new("RGBA", (2, 2), (*RED, 255))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode if mode == "RGBa" else "RGB")
    image = image.convert(mode)
    assert image.mode == mode
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - RED).max() <= 2


def test_a_colour_profile_is_left_unapplied(tmp_path):
    """As every published loader does: the stored numbers are the pixels."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    stored = (10, 200, 30)
    Image.new("RGB", (4, 4), stored).save(tmp_path / "a.png", icc_profile=profile)
    assert Image.open(tmp_path / "a.png").info["icc_profile"] == profile
    check_flat(tmp_path / "a.png", stored)


ARROW = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
"""Two rows, three columns, all different."""
TURNED = {
    1: ARROW,
    2: [[30, 20, 10], [60, 50, 40]],
    3: [[60, 50, 40], [30, 20, 10]],
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[40, 10], [50, 20], [60, 30]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[30, 60], [20, 50], [10, 40]],
}
"""What a viewer shows for each EXIF orientation: its number says where the stored first row and column belong."""


def with_orientation(path: Path, image: Image.Image, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_brought_upright(tmp_path, orientation, suffix):
    path = with_orientation(tmp_path / f"a.{suffix}", Image.fromarray(ARROW).convert("RGB"), orientation)
    for image in (decode(path), set_of(path).open(0)):
        assert np.asarray(image)[..., 0].tolist() == np.asarray(TURNED[orientation]).tolist()
    with Image.open(path) as stored:
        oracle = ImageOps.exif_transpose(stored)
        assert np.asarray(oracle)[..., 0].tolist() == np.asarray(TURNED[orientation]).tolist()
    size = (len(TURNED[orientation][0]), len(TURNED[orientation]))
    assert EvalTransform(8)(decode(path)).equal(
        EvalTransform(8)(Image.fromarray(np.uint8(TURNED[orientation])).convert("RGB"))
    )
    assert decode(path).size == size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg(tmp_path, orientation):
    blocks = Image.fromarray(ARROW.repeat(16, 0).repeat(16, 1)).convert("RGB")
    path = with_orientation(tmp_path / "a.jpg", blocks, orientation)
    middles = np.asarray(set_of(path).open(0)).astype(int)[8::16, 8::16, 0]
    assert np.abs(middles - TURNED[orientation]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_counts_stored_pixels_and_the_part_is_turned(tmp_path, orientation):
    """The box of the first row, whichever way up the image then comes."""
    path = with_orientation(tmp_path / "a.png", Image.fromarray(ARROW).convert("RGB"), orientation)
    part = np.asarray(set_of(path, (0, 0, 3, 1)).open(0))[..., 0]
    assert sorted(part.reshape(-1).tolist()) == [10, 20, 30]
    in_turned = np.isin(TURNED[orientation], [10, 20, 30])
    assert part.reshape(-1).tolist() == np.asarray(TURNED[orientation])[in_turned].tolist()


def test_an_orientation_that_does_not_exist_or_does_not_parse_turns_nothing(tmp_path):
    image = Image.fromarray(ARROW).convert("RGB")
    path = with_orientation(tmp_path / "a.png", image, 9)
    assert np.asarray(decode(path))[..., 0].tolist() == ARROW.tolist()
    image.save(tmp_path / "b.png", exif=b"Exif\0\0nonsense that is no TIFF header")
    assert np.asarray(decode(tmp_path / "b.png"))[..., 0].tolist() == ARROW.tolist()


@pytest.mark.parametrize("box", [(0, 0, 4, 1), (0, 0, 3, 3), (1, -1, 2, 1), (2, 0, 2, 1)])
def test_a_box_outside_of_its_image(tmp_path, box):
    Image.fromarray(ARROW).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: .*the box .* is outside its 3 x 2 pixels"):
        set_of(tmp_path / "a.png", box).open(0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (1, 4000), (4000, 1), (3, 2000)])
def test_tiny_and_thin_images(tmp_path, size):
    Image.new("RGB", size, BLUE).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").size == size
    check_flat(tmp_path / "a.png", BLUE)


def test_of_a_thin_image_evaluation_sees_the_middle():
    """A line as long as a PNG's may be takes little memory, and its middle is not its end."""
    line = np.zeros((1, 1_000_000, 3), np.uint8)
    line[:, 499_000:501_000] = BLUE
    for image in (line, line.transpose(1, 0, 2)):
        assert (EvalTransform(16)(Image.fromarray(image)).permute(1, 2, 0).numpy() == BLUE).all()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_many_frames_or_pages_it_is_the_first(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 5), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as stored:
        assert stored.n_frames == 3
    check_flat(path, RED)


def test_a_jpeg_of_two_pictures(tmp_path):
    """As telephones and stereo cameras write."""
    Image.new("RGB", (16, 16), RED).save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16), BLUE)], quality=100
    )
    check_flat(tmp_path / "a.jpg", RED, 2)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path):
    Image.new("RGB", (16, 16), BLUE).save(tmp_path / "a.avif", quality=100)
    check_flat(tmp_path / "a.avif", BLUE, 3)


@pytest.mark.parametrize("name", ["a.jpg", "a.txt", "a"])
def test_the_ending_is_not_looked_at(tmp_path, name):
    Image.new("RGB", (6, 5), BLUE).save(tmp_path / name, "PNG")
    check_flat(tmp_path / name, BLUE)


NO_IMAGE = {
    "empty": (b"", "the file is empty"),
    "html": (b"\n <!DOCTYPE html><html>404", "an HTML page"),
    "bare html": (b"<html><body>", "an HTML page"),
    "svg": (b"<svg xmlns=''/>", "an SVG drawing"),
    "xml": (b"\xef\xbb\xbf<?xml version='1.0'?>", "XML"),
    "pdf": (b"%PDF-1.7\n", "a PDF"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "PostScript"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "zip": (b"PK\x03\x04\x14\0", "a zip archive"),
    "heic": (b"\0\0\0\x24ftypheic\0\0\0\0", "a HEIC image; `pip install pillow-heif`"),
    "video": (b"\0\0\0\x20ftypisom\0\0\0\0", "a video"),
    "zeros": (bytes(4096), "zeros"),
    "text": (b"Access denied,\ncome again", "text, beginning 'Access denied, come again'"),
    "bytes": (b"\xde\xad\xbe\xef" * 9, "begins with de ad be ef"),
}


@pytest.mark.parametrize("kind", NO_IMAGE)
def test_what_is_no_image_says_what_it_looks_like(tmp_path, kind):
    content, what = NO_IMAGE[kind]
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError) as caught:
        set_of(tmp_path / "a.jpg").open(0)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'a.jpg'}: this image does not decode (") and what in message
    with pytest.raises(ImageError, match="does not decode"):
        encoded_set_of(content).open(0)


def test_no_drawing_is_handed_to_another_program(tmp_path, monkeypatch):
    """An EPS called .jpg is PostScript: a program, which Pillow would have Ghostscript run."""
    Image.new("RGB", (6, 5)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was called"))
    with pytest.raises(ImageError, match="PostScript"):
        decode(tmp_path / "a.jpg")


def test_a_folder_called_like_an_image(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(ImageError, match=r"x\.jpg: this image does not decode \(it is a folder\)"):
        set_of(tmp_path / "x.jpg").open(0)


def test_a_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"x\.jpg: there is no such file"):
        set_of(tmp_path / "x.jpg").open(0)
    with pytest.raises(ImageError, match="null byte"):
        decode("a\0b")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="whoever runs this may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        decode(tmp_path / "a.png")


def noise(width: int = 40, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM", "ICO", "TGA"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_file_that_is_cut_off(kind):
    content = saved(noise(), kind)
    with pytest.raises(ImageError, match="does not decode"):
        decode(content[: len(content) // 2])


@given(st.sampled_from(KINDS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=20), st.floats(0, 1))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_broken_bytes_give_an_image_or_an_image_error(kind, changes, cut):
    """Nothing else comes out of a file, whatever is in it: a run must not end in the trace of a format's reader."""
    content = bytearray(saved(noise(20, 20), kind))
    for place, value in changes:
        # Heads are where readers break.
        content[int(place**3 * (len(content) - 1))] = value
    try:
        assert decode(bytes(content[: 1 + int(cut * len(content))])).mode == "RGB"
    except ImageError as error:
        assert str(error).startswith("this image does not decode (")


def claimed(width: int, height: int) -> bytes:
    return png(width, height, 8, 2, b"")


def test_a_png_of_too_many_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(claimed(20_000, 20_000))
    with pytest.raises(ImageError, match=r"a\.png: .* \(400000000 pixels\) exceeds limit of 178956970 pixels; save it"):
        set_of(tmp_path / "a.png").open(0)


def test_a_real_one_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """A bit a pixel in 50 KB, which would be 1.2 GB."""
    packer = zlib.compressobj()
    body = b"".join(packer.compress(bytes(2_501)) for _ in range(20_000)) + packer.flush()
    content = png(20_000, 20_000, 1, 0, b"")
    at = content.index(b"IDAT")
    tail = struct.pack(">I", zlib.crc32(b"IDAT" + body)) + content[-12:]
    (tmp_path / "a.png").write_bytes(content[: at - 4] + struct.pack(">I", len(body)) + b"IDAT" + body + tail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *a: pytest.fail("its pixels were decoded"))
    with pytest.raises(ImageError, match="too many pixels"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize(("limit", "scale"), [(64 * 48, 1), (64 * 48 - 1, 2), (32 * 24 - 1, 4), (16 * 12 - 1, 8)])
def test_a_jpeg_of_too_many_pixels_is_decoded_smaller(tmp_path, monkeypatch, limit, scale):
    half = np.zeros((48, 64, 3), np.uint8)
    half[:, 32:] = WHITE
    Image.fromarray(half).save(tmp_path / "a.jpg", quality=100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit / 2)
    monkeypatch.setattr("warnings.warn", lambda *a, **k: None)
    image = set_of(tmp_path / "a.jpg").open(0)
    assert image.size == (64 // scale, 48 // scale)
    assert np.asarray(image)[0, 0, 0] < 10 and np.asarray(image)[0, -1, 0] > 245


def test_a_jpeg_that_is_too_large_at_an_eighth_too(tmp_path, monkeypatch):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 6 / 2 - 1)
    with pytest.raises(ImageError, match=r"3072 pixels.* exceeds limit"):
        decode(tmp_path / "a.jpg")
    # A box counts the pixels of the whole image.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 / 4)
    with pytest.raises(ImageError, match=r"3072 pixels.* exceeds limit"):
        decode(tmp_path / "a.jpg", (0, 0, 2, 2))


def test_whoever_lifts_pillows_limit_has_it_lifted(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    Image.new("RGB", (64, 48), BLUE).save(tmp_path / "a.png")
    check_flat(tmp_path / "a.png", BLUE)


class TestNeeds:
    """What is far larger than it is needed."""

    @pytest.fixture(scope="class")
    def photo(self) -> Image.Image:
        rng = np.random.default_rng(0)
        rough = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        return rough.resize((1600, 1200), Image.Resampling.BICUBIC)

    def encoded(self, image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
        out = io.BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    @pytest.mark.parametrize(
        ("needs", "size"),
        [
            (None, (1600, 1200)),
            (1200, (1600, 1200)),
            (601, (1600, 1200)),
            (600, (800, 600)),
            (150, (200, 150)),
            (1, (200, 150)),
        ],
    )
    def test_a_jpeg_is_decoded_at_the_smallest_scale_that_will_do(self, photo, needs, size):
        decoded = decode(self.encoded(photo, quality=95), needs=needs)
        assert decoded.size == size
        expected = np.asarray(photo.resize(size, Image.Resampling.BOX)).astype(float)
        assert np.abs(np.asarray(decoded) - expected).mean() < 2

    def test_it_is_turned_all_the_same(self, photo):
        exif = Image.Exif()
        exif[0x0112] = 6
        assert decode(self.encoded(photo, exif=exif), needs=300).size == (300, 400)

    def test_a_box_and_other_formats_are_decoded_whole(self, photo):
        assert decode(self.encoded(photo), (0, 0, 1500, 1100), 100).size == (1500, 1100)
        assert decode(self.encoded(photo, "WEBP"), needs=100).size == (1600, 1200)

    @pytest.mark.parametrize("size", [32, 96])
    def test_evaluation_sees_what_it_saw(self, photo, size):
        transform, content = EvalTransform(size), self.encoded(photo, quality=95)
        reduced, whole = (transform(decode(content, needs=needs)).numpy() for needs in (transform.needs, None))
        assert decode(content, needs=transform.needs).size != photo.size
        assert np.abs(reduced.astype(float) - whole).mean() < 1

    def test_no_training_crop_has_too_few_pixels(self):
        for min_scale in (0.08, 0.5, 1.0):
            needs = TrainTransform(64, min_scale=min_scale).needs
            area = min_scale * needs**2
            assert min((area * ratio) ** 0.5 for ratio in (3 / 4, 4 / 3)) >= 64 - 1e-6
