"""Images of more than 8 bits a channel: what becomes black and white, from the file to the model."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import divcon as dc
from divcon.config.from_data import ImageFacts, fit_images
from divcon.config.pixel_range import read_pixel_range, saved_pixel_range
from divcon.config.settings import ModelConfig
from divcon.data.benchmark import Benchmark
from divcon.data.decode import decode
from divcon.data.in_memory import encoded
from divcon.data.shapes import image_extremes
from divcon.errors import ConfigError, ImageError

Run = Callable[..., tuple[int, str, str]]

RAMP = np.linspace(100, 3900, 48 * 40).reshape(48, 40).astype(np.uint16)
"""12-bit values."""


def expected(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The slow, obvious way: one value at a time."""
    result = np.zeros(values.shape, np.uint8)
    for place, value in np.ndenumerate(values.astype(float)):
        share = 0.0 if np.isnan(value) else min(1.0, max(0.0, (value - low) / (high - low)))
        result[place] = round(255 * share)
    return result


def deep_png(path: Path, values: np.ndarray) -> Path:
    """A PNG of (H, W, C) 16-bit values, which Pillow does not write for several channels."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


FILES: dict[str, np.ndarray] = {
    "grey.png": RAMP,
    "grey.tiff": RAMP,
    "whole.tiff": RAMP.astype(np.int32) * 100 - 50_000,
    "float.tiff": RAMP.astype(np.float32) / 4000,
    "celsius.tiff": RAMP.astype(np.float32) / 100 - 10,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("given", ["own", "two"])
def test_values_are_scaled(name: str, given: str, tmp_path: Path) -> None:
    values = FILES[name]
    Image.fromarray(values).save(tmp_path / name)
    low, high = float(values.min()), float(values.max())
    if given == "two":
        low, high = low + 0.2 * (high - low), high + 0.3 * (high - low)
    pixels = np.asarray(decode(tmp_path / name, pixel_range="own" if given == "own" else (low, high)))
    assert pixels.shape == (48, 40, 3) and (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0].astype(int) - expected(values, low, high)).max() <= 1
    assert pixels.max() == 255 if given == "own" else pixels.max() < 220


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_sixteen_bits_are_scaled_too(channels: int, tmp_path: Path) -> None:
    colours = np.stack([RAMP, RAMP // 2, RAMP // 4, np.full_like(RAMP, 65535)], 2)
    values = colours[..., [0, 3]] if channels == 2 else colours[..., :channels]
    deep_png(tmp_path / "a.png", values)
    pixels = np.asarray(decode(tmp_path / "a.png", pixel_range=(0, 4095))).astype(int)
    for channel in range(3):
        own = RAMP if channels == 2 else values[..., channel]
        assert np.abs(pixels[..., channel] - expected(own, 0, 4095)).max() <= 1
    assert np.asarray(decode(tmp_path / "a.png")).max() == 15  # the upper 8 bits
    box = (3, 4, 20, 30)
    cut = np.asarray(decode(tmp_path / "a.png", box, pixel_range=(0, 4095)))
    assert np.array_equal(cut, pixels[4:30, 3:20])
    clear = values.copy()
    if channels in (2, 4):
        clear[..., -1] = 0
        deep_png(tmp_path / "b.png", clear)
        assert (np.asarray(decode(tmp_path / "b.png", pixel_range="own")) == 255).all()


def test_what_has_eight_bits_is_not_changed(few: Benchmark, tmp_path: Path) -> None:
    image = few.train.open(0)
    for name in ("a.png", "a.jpg", "a.webp"):
        image.save(tmp_path / name)
        before = np.asarray(decode(tmp_path / name))
        for other in ("own", (0.0, 4095.0)):
            assert np.array_equal(np.asarray(decode(tmp_path / name, pixel_range=other)), before)


def test_nan_and_flat_images(tmp_path: Path) -> None:
    values = np.array([[np.nan, 1.0], [2.0, 3.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "nan.tiff")
    assert np.asarray(decode(tmp_path / "nan.tiff", pixel_range="own"))[..., 0].tolist() == [[0, 0], [128, 255]]
    Image.fromarray(np.full((2, 2), 700, np.uint16)).save(tmp_path / "flat.png")
    assert (np.asarray(decode(tmp_path / "flat.png", pixel_range="own")) == 0).all()


def test_without_a_range_it_is_as_it_was(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png"))[..., 0], RAMP >> 8)
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"floating-point numbers; set `pixel_range` \(own, or the values that become"):
        decode(tmp_path / "a.tiff")


@pytest.mark.parametrize(
    ("value", "read", "text"),
    [
        ("own", "own", "own"),
        ("0,4095", (0.0, 4095.0), "0,4095"),
        ("0-4095", (0.0, 4095.0), "0,4095"),
        ("-20..45.5", (-20.0, 45.5), "-20,45.5"),
        ((0, 4095), (0.0, 4095.0), "0,4095"),
        ([0.25, 1e6], (0.25, 1e6), "0.25,1000000"),
    ],
)
def test_the_ways_to_say_it(value: Any, read: Any, text: str) -> None:
    assert read_pixel_range(value) == read
    assert saved_pixel_range(read) == text and read_pixel_range(text) == read
    assert ModelConfig(pixel_range=value).pixel_range == read


@pytest.mark.parametrize("value", ["wide", "4095", "5,5", "9,1", "0,inf", 3, (1, 2, 3), ("a", 2), None, (True, 2)])
def test_what_is_no_range(value: Any) -> None:
    with pytest.raises(ConfigError, match="`pixel_range`: ") as error:
        ModelConfig(pixel_range=value)
    assert error.value.field == "pixel_range"
    with pytest.raises(ConfigError, match="a model has no data to choose by"):
        dc.EmbeddingModel("test_resnet", 8, 1, pretrained=False, pixel_range="auto")


@pytest.mark.parametrize(
    ("extremes", "chosen"),
    [
        (None, "full"),
        ((0.0, 200.0), (0.0, 255.0)),
        ((12.0, 900.0), (0.0, 1023.0)),
        ((100.0, 3900.0), (0.0, 4095.0)),
        ((0.0, 4096.0), (0.0, 16383.0)),
        ((0.0, 60000.0), (0.0, 65535.0)),
        ((0.0, 0.97), (0.0, 1.0)),
        ((-10.0, 35.5), (-10.0, 35.5)),
        ((0.0, 1e6), (0.0, 1e6)),
    ],
)
def test_the_rule(extremes: tuple[float, float] | None, chosen: Any) -> None:
    facts = ImageFacts(np.array([[8, 8]]), extremes)
    config, reasons = fit_images(ModelConfig(), facts)
    assert config.pixel_range == chosen
    assert ("pixel_range" in reasons) == (extremes is not None)
    assert fit_images(ModelConfig(pixel_range="own"), facts)[0].pixel_range == "own"


@pytest.fixture
def twelve_bits(few: Benchmark, tmp_path: Path) -> Path:
    """``root/CLASS/*.png`` of 8 classes with 5 real icons each, in 12 bits of 16."""
    root = tmp_path / "twelve"
    classes = [c for c in few.train.classes if (few.train.labels == c).sum() >= 5][:8]
    for number, label in enumerate(classes):
        (root / f"class{number}").mkdir(parents=True)
        for place, index in enumerate(np.flatnonzero(few.train.labels == label)[:5]):
            grey = np.asarray(few.train.open(int(index)).convert("L")).astype(np.uint16)
            Image.fromarray(grey * 16).save(root / f"class{number}" / f"{place}.png")
    return root


def test_a_model_embeds_by_its_range(twelve_bits: Path, few: Benchmark, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"pretrained": False, "image_size": 64}
    model = dc.EmbeddingModel("test_resnet", 8, 1, pixel_range=(0, 4080), **options).eval()
    model.save(tmp_path / "model")
    loaded = dc.EmbeddingModel.load(tmp_path / "model")
    assert loaded.pixel_range == (0, 4080) and loaded.config["pixel_range"] == "0,4080"
    file = twelve_bits / "class1" / "2.png"
    grey = Image.fromarray((np.asarray(Image.open(file)) // 16).astype(np.uint8)).convert("RGB")
    as_eight = model.encode(grey)
    np.testing.assert_array_equal(loaded.encode(file), as_eight)
    # In memory, too: as it was opened, and as a copy.
    opened = Image.open(file)
    np.testing.assert_array_equal(loaded.encode(opened), as_eight)
    np.testing.assert_array_equal(loaded.encode(opened.copy()), as_eight)
    np.testing.assert_array_equal(loaded.encode(encoded(opened.copy())), as_eight)
    done = dc.export(loaded, tmp_path / "hub", "hf")
    assert done.about["preprocessing"]["pixel_range"] == [0, 4080]
    assert (
        "more than 8 bits a channel, 0 and 4080 first become 0 and 255" in (tmp_path / "hub" / "README.md").read_text()
    )
    full = dc.EmbeddingModel("test_resnet", 8, 1, **options)
    assert full.config.get("pixel_range") is None and full.pixel_range == "full"


@pytest.mark.heavy
def test_twelve_bits_from_a_folder_to_a_model(twelve_bits: Path, tmp_path: Path, command: Run) -> None:
    low, high = image_extremes(dc.read(twelve_bits).train) or (0, 0)
    assert 0 <= low < high == 4080
    out = tmp_path / "run"
    basics = ("--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--epochs", 1, "--workers", 0)
    code, printed, err = command("train", twelve_bits, *basics, "--out", out)
    said = " ".join((printed + err).split())
    assert code == 0 and "--pixel-range 0,4095 (images of more than 8 bits, with values from 0 to 4080)" in said, err
    assert json.loads((out / "config.json").read_text())["model"]["pixel_range"] == "0,4095"
    assert dc.EmbeddingModel.load(out).pixel_range == (0, 4095)
    code, _, err = command("train", "--out", out, "--resume", "--epochs", 2)
    assert code == 0, err
    code, _, err = command("train", twelve_bits, *basics, "--pixel-range", "9,1", "--out", tmp_path / "no")
    assert code == 2 and "--pixel-range: the value that becomes white must be above" in err
    # A pack keeps the values; so does the model that is trained on it.
    code, _, err = command("pack", twelve_bits, "--short-side", 32, "--out", tmp_path / "packed")
    assert code == 0, err
    packed = dc.read(tmp_path / "packed").train
    assert image_extremes(packed) == (low, high) and packed.open(0).size == (64, 64)
