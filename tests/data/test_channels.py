"""Images of other numbers of channels: from arrays in files, by every fit, to a trained model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import divcon as dc
from divcon.data.channels import channels_last
from divcon.data.decode import decode, decode_channels
from divcon.data.loading import Decoded, batches_of, collate
from divcon.data.shapes import image_shapes
from divcon.data.transforms import FITS, EvalTransform, TrainTransform
from divcon.errors import ConfigError, ImageError
from divcon.models.backbone import create_backbone

Run = Callable[..., tuple[int, str, str]]
C = 5


def values_of(height: int = 20, width: int = 12, channels: int = C, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def saved(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return path


@pytest.fixture
def bands(tmp_path: Path) -> Path:
    """``root/CLASS/*.npy`` of 8 classes of 5 images of 5 channels; a class has one mean for each channel."""
    rng, root = np.random.default_rng(0), tmp_path / "bands"
    for label in range(8):
        means = rng.uniform(0.2, 0.8, C)
        for number in range(5):
            noise = rng.normal(0, 0.05, (C, 40, 36))
            image = 65535 * np.clip(means[:, None, None] + noise, 0, 1)
            saved(root / f"class{label}" / f"{number}.npy", image.astype(np.uint16))
    return root


@pytest.mark.parametrize("order", ["HWC", "CHW"])
@pytest.mark.parametrize("box", [None, (2, 3, 10, 15)])
def test_arrays_in_either_order(order: str, box: Any, tmp_path: Path) -> None:
    values = values_of()
    file = saved(tmp_path / "a.npy", values if order == "HWC" else values.transpose(2, 0, 1))
    expected = values if box is None else values[3:15, 2:10]
    for source in (file, file.read_bytes()):
        np.testing.assert_array_equal(decode_channels(source, C, box).numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("values", "pixel_range", "expected"),
    [
        (np.array([[0, 0x1234], [0xFFFF, 300]], np.uint16), "full", [[0, 0x12], [255, 1]]),
        (np.array([[0.0, 0.5], [1.0, np.nan]]), (0, 1), [[0, 128], [255, 0]]),
        (np.array([[-5, 0], [5, 10]], np.int32), "own", [[0, 85], [170, 255]]),
        (np.array([[True, False]]), "full", [[255, 0]]),
    ],
)
def test_values_become_pixels(values: np.ndarray, pixel_range: Any, expected: Any, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.npy", np.stack([values] * 2, 2))
    pixels = decode_channels(file, 2, None, pixel_range)
    assert pixels.tolist() == [expected] * 2


def test_one_channel_is_of_any_image(tmp_path: Path) -> None:
    image = Image.fromarray(values_of(channels=3))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_channels(tmp_path / "a.png", 1)[0], np.asarray(image.convert("L")))
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "deep.png")
    assert decode_channels(tmp_path / "deep.png", 1, None, (0, 4095)).tolist() == [[[0, 255]]]
    saved(tmp_path / "a.npy", values_of(channels=1)[..., 0])
    assert decode_channels(tmp_path / "a.npy", 1).shape == (1, 20, 12)


def test_four_channels_of_an_image_with_alpha(tmp_path: Path) -> None:
    values = values_of(channels=4)
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_channels(tmp_path / "a.png", 4).permute(1, 2, 0).numpy(), values)


def test_tiff_of_several_bands(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="it is in the extra tiff")
    values = values_of()
    tifffile.imwrite(tmp_path / "a.tif", values.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
    np.testing.assert_array_equal(decode_channels(tmp_path / "a.tif", C).permute(1, 2, 0).numpy(), values)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: np.save(p, np.zeros((4, 6, 7), np.uint8)), r"shape \(4, 6, 7\), and the model takes .*`channels` 5"),
        (lambda p: np.save(p, np.zeros(4)), r"shape \(4,\); an image is \(H, W\), \(H, W, C\) or \(C, H, W\)"),
        (lambda p: np.save(p, np.array(["a"])), r"holds <U1, and pixels are numbers"),
        (lambda p: np.save(p, np.full((4, 4, 5), 0.5)), "its values are fractions.*set `pixel_range`"),
        (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00v"), "does not decode"),
        (lambda p: Image.new("RGB", (4, 4)).save(p, "PNG"), "it has 3 channels, and the model takes .*`channels` 5"),
        (lambda p: p.write_bytes(b""), "the file is empty"),
    ],
)
def test_what_does_not_have_the_channels(write: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.npy")
    with pytest.raises(ImageError, match=message):
        decode_channels(tmp_path / "a.npy", C)


def test_an_array_of_three_channels_is_a_colour_image(tmp_path: Path) -> None:
    values = values_of(channels=3)
    file = saved(tmp_path / "a.npy", values.transpose(2, 0, 1))
    np.testing.assert_array_equal(np.asarray(decode(file)), values)
    np.testing.assert_array_equal(np.asarray(decode(file, (1, 2, 5, 9))), values[2:9, 1:5])
    five = saved(tmp_path / "b.npy", values_of())
    with pytest.raises(ImageError, match="5 channels, and the model takes colour images: set `channels=5`"):
        decode(five)
    np.testing.assert_array_equal(np.asarray(decode(five, any_channels=True)), values_of()[..., :3])


def test_the_axis_of_the_channels() -> None:
    assert channels_last(np.zeros((5, 20, 12))).shape == channels_last(np.zeros((20, 12, 5))).shape == (20, 12, 5)
    assert channels_last(np.zeros((5, 9, 5)), 5).shape == (5, 9, 5)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [16, (24, 12)])
def test_each_channel_is_transformed_as_a_grey_image_is(fit: Any, size: Any) -> None:
    """Each channel alone, by Pillow, gives the same pixels but for rounding."""
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (5, 4, C), np.uint8)
    planes = [Image.fromarray(smooth[..., k]).resize((50, 70), Image.Resampling.BICUBIC) for k in range(C)]
    image = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))
    fill = tuple(range(10, 10 + C))
    pixels = EvalTransform(size, fit=fit, fill=fill, channels=C)(image)
    for k in range(C):
        grey = EvalTransform(size, fit=fit, fill=(fill[k],) * 3)(planes[k].convert("RGB"))[0]
        assert (pixels[k].int() - grey.int()).abs().max() <= 1
    torch.manual_seed(0)
    assert TrainTransform(size, fit=fit, fill=fill, channels=C)(image).shape == pixels.shape


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_backbones_take_them(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = dc.EmbeddingModel(
        name, 8, 2, method="slices", pretrained=False, image_size=32, channels=C, fit="pad"
    ).eval()
    model.save(tmp_path / "model")
    loaded = dc.EmbeddingModel.load(tmp_path / "model")
    assert loaded.channels == C and json.loads((tmp_path / "model" / "config.json").read_text())["channels"] == C
    file = saved(tmp_path / "a.npy", values_of())
    embedding = model.encode(file)
    np.testing.assert_array_equal(loaded.encode(file), embedding)
    np.testing.assert_allclose(loaded.encode(values_of()), embedding, atol=1e-6)
    np.testing.assert_allclose(loaded.encode(np.stack([values_of()] * 2)), np.repeat(embedding, 2, 0), atol=1e-6)
    assert len(set(model.preprocessing.mean)) == 1 and len(model.preprocessing.mean) == C
    with pytest.raises(ImageError, match="it has 3 channels"):
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        model.encode(tmp_path / "a.png")


def test_weights_of_three_channels_are_adapted() -> None:
    """The bundled pretrained weights, on an image whose channels are equal: nearly what three channels give."""
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        three = create_backbone("tf_efficientnet_lite0", image_size=64)[0].eval()(grey.expand(-1, 3, -1, -1))
        for channels in (1, 3, 6):
            backbone, preprocessing = create_backbone("tf_efficientnet_lite0", image_size=64, channels=channels)
            assert len(preprocessing.mean) == channels
            features = backbone.eval()(grey.expand(-1, channels, -1, -1))
            torch.testing.assert_close(features, three, atol=1e-4, rtol=1e-3)


def test_what_does_not_go_with_it() -> None:
    with pytest.raises(ConfigError, match="`channels` 0: must be at least 1"):
        dc.ModelConfig(channels=0)
    with pytest.raises(ConfigError, match="`channels` 5: a transform of your own takes colour images"):
        dc.EmbeddingModel("test_resnet", 8, 1, pretrained=False, channels=5, eval_transform=lambda image: image)


def test_a_folder_of_arrays(bands: Path) -> None:
    saved(bands / "class0" / "embedding.npy", np.zeros((40, 8)))  # of vectors: no image
    images = dc.read(bands).train
    assert all(images.path(i).endswith(".npy") and "embedding" not in images.path(i) for i in range(len(images)))
    np.testing.assert_array_equal(image_shapes(images), [(40, 36)] * len(images))

    def pixels(workers: int) -> torch.Tensor:
        keys = [(i % len(images), 1, i) for i in range(16)]
        transform = TrainTransform(24, fill=(0,) * C, channels=C)
        loader: Any = torch.utils.data.DataLoader(
            Decoded(images, EvalTransform(24, channels=C), transform, 3),
            batch_sampler=[keys[:9], keys[9:]],
            num_workers=workers,
            collate_fn=collate,
        )
        return torch.cat([batch for batch, _ in batches_of(loader)])

    alone = pixels(0)
    assert alone.shape == (16, C, 24, 24) and torch.equal(alone, pixels(2))


@pytest.mark.heavy
def test_from_the_command_line(bands: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / "run"
    basics = ("--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--epochs", 1, "--workers", 0)
    code, printed, err = command("train", bands, *basics, "--out", tmp_path / "no")
    assert code == 2 and "5 channels, and the model takes colour images: set --channels 5" in err
    code, printed, err = command(
        "train", bands, *basics, "--channels", C, "--augment", "erasing,rotation", "--out", out
    )
    assert code == 0, err
    model = dc.EmbeddingModel.load(out)
    assert model.channels == C
    assert "data:image/webp" in (out / "report.html").read_text()
    code, printed, err = command("evaluate", out, "--json", tmp_path / "s.json")
    assert code == 0 and json.loads((tmp_path / "s.json").read_text())["recall_at_1"] > 0.4, err
    code, _, err = command("index", out, bands, "--store", tmp_path / "index")
    assert code == 0, err
    code, printed, err = command("search", tmp_path / "index", bands / "class3" / "1.npy", "-k", 1)
    assert code == 0 and "class3" in printed, err
    code, printed, err = command("export", out, "--out", tmp_path / "m.onnx")
    assert code == 0 and "(N, 5, 32, 32) uint8" in printed, err
    code, _, err = command("check", bands)
    assert code == 0, err
    code, _, err = command(
        "train", bands, *basics, "--channels", C, "--augment", "color_jitter(p=1)", "--out", tmp_path / "c"
    )
    assert code == 2 and "--augment color_jitter: cannot be applied to 5 x 32 x 32 pixels" in err
