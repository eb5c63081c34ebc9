"""Images that are not square, from a folder to an index: what is chosen, what is said, what stays over a resume."""

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
from divcon.config.settings import RunConfig
from divcon.data.benchmark import Benchmark
from divcon.data.loading import Decoded, batches_of, collate
from divcon.errors import ConfigError, RunError
from divcon.models.backbone import sizes_of
from divcon.training.loader import training_transform

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tall(few: Benchmark, tmp_path: Path) -> Path:
    """``root/CLASS/*.png`` of 8 classes with 5 real icons each, in the upper or lower half of 64 x 128 pixels."""
    root = tmp_path / "tall"
    classes = [c for c in few.train.classes if (few.train.labels == c).sum() >= 5][:8]
    for number, label in enumerate(classes):
        (root / f"class{number}").mkdir(parents=True)
        for place, index in enumerate(np.flatnonzero(few.train.labels == label)[:5]):
            image = Image.new("RGB", (64, 128), "white")
            image.paste(few.train.open(int(index)), (0, 64 * (number % 2)))
            image.save(root / f"class{number}" / f"{place}.png")
    return root


BASICS = ("--backbone", "test_resnet", "--no-pretrained", "--epochs", 1, "--workers", 0)


@pytest.mark.heavy
def test_tall_images_from_a_folder_to_an_index(tall: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / "run"
    code, printed, err = command("train", tall, *BASICS, "--out", out)
    said = " ".join((printed + err).split())
    assert code == 0, err
    assert "--size 320x160 (the median of 20 images is 2 times as tall as wide)" in said
    assert "--fit squash (the input is 320 x 160 (height x width))" in said
    assert "test_resnet at 320x160 px, squash" in said
    for file, section in ((out / "config.json", "model"), (out / "model" / "config.json", None)):
        record = json.loads(file.read_text())
        record = record[section] if section else record
        assert (record["image_size"], record["fit"]) == ("320x160", "squash")
    assert "320x160 px, fit squash" in (out / "report.html").read_text()
    # Resumed without a word of them; with others it is refused.
    code, _, err = command("train", "--out", out, "--resume", "--epochs", 2)
    assert code == 0, err
    code, _, err = command("train", "--out", out, "--resume", "--fit", "crop")
    assert code == 2 and "--fit is squash in the run, crop now" in err
    # The model embeds the whole image: those in the upper and in the lower half differ, and a centre crop has none.
    model = dc.EmbeddingModel.load(out)
    assert (model.image_size, model.fit) == ((320, 160), "squash")
    pixels = model.eval_transform(Image.open(tall / "class0" / "0.png").convert("RGB"))
    assert pixels.shape == (3, 320, 160) and (pixels[:, :150].float().std() > 1) and (pixels[:, 170:] == 255).all()
    code, printed, err = command("evaluate", out, "--json", tmp_path / "s.json")
    assert code == 0, err
    code, _, err = command("index", out, tall, "--store", tmp_path / "index")
    assert code == 0, err
    code, printed, err = command("search", tmp_path / "index", tall / "class3" / "1.png", "-k", 1)
    assert code == 0 and "class3" in printed, err
    code, _, err = command("export", out, "--out", tmp_path / "m.onnx")
    assert code == 0, err


@pytest.mark.heavy
def test_the_command_line_sets_size_and_fit(tall: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / "run"
    code, printed, err = command("train", tall, *BASICS, "--size", "64x32", "--fit", "pad", "--out", out)
    assert code == 0 and "at 64x32 px, pad" in printed + err, err
    assert "--size" not in (printed + err)
    model = dc.EmbeddingModel.load(out)
    assert (model.image_size, model.fit) == ((64, 32), "pad")
    for wrong in ("64x", "0x32", "64x32x3"):
        code, _, err = command("train", tall, *BASICS, "--size", wrong, "--out", tmp_path / "no")
        assert code == 2 and "--size" in err, err
    code, _, err = command("features", tall, "--out", tmp_path / "f.parquet", "--run", out, "--fit", "crop")
    assert code == 2 and "--fit crop does not go with --run" in err


def test_a_run_without_a_fit_is_one_that_cropped(tall: Path, tmp_path: Path) -> None:
    """Runs and models of before: their files have no fit, and their images are tall."""
    config = RunConfig(
        dc.ModelConfig(backbone="test_resnet", pretrained=False, image_size=32, fit="crop", embed="head"),
        dc.TrainConfig(epochs=2, workers=0, batch_size=8, images_per_class=2),
        dc.DataConfig(validation=False),
    )
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        dc.run(tall, out, config, observe=stops, report=False)
    for file in (out / "config.json", *(out / "model").glob("config.json")):
        record = json.loads(file.read_text())
        record.get("model", record).pop("fit")
        file.write_text(json.dumps(record))
    with pytest.raises(RunError, match="`fit` is crop in the run, squash now"):
        resumed = RunConfig(dc.ModelConfig(**{**vars(config.model), "fit": "squash"}), config.train, config.data)
        dc.run(tall, out, resumed, resume=True, report=False)
    # An open fit is the run's, not what these images would choose.
    resumed = RunConfig(dc.ModelConfig(**{**vars(config.model), "fit": "auto"}), config.train, config.data)
    model = dc.run(tall, out, resumed, resume=True, report=False)
    straight = dc.run(tall, tmp_path / "straight", config, report=False)
    assert model.fit == "crop"
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0, msg=name)


def stops(model: dc.EmbeddingModel, epoch: Any) -> dict[str, Any]:
    if epoch.number == 1:
        raise KeyboardInterrupt
    return {}


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_the_number_of_workers_changes_nothing(fit: str, tall: Path, tiny_model: Any) -> None:
    images = dc.read(tall).train
    torch.manual_seed(0)
    model = dc.EmbeddingModel("test_resnet", 8, 1, pretrained=False, image_size=(32, 16), fit=fit)
    transform = training_transform(model, images, dc.TrainConfig())
    keys = [(i % len(images), 1, i) for i in range(24)]

    def pixels(workers: int) -> torch.Tensor:
        loader: Any = torch.utils.data.DataLoader(
            Decoded(images, model.eval_transform, transform, 3),
            batch_sampler=[keys[:7], keys[7:]],
            num_workers=workers,
            collate_fn=collate,
        )
        return torch.cat([batch for batch, _ in batches_of(loader)])

    alone = pixels(0)
    assert alone.shape == (24, 3, 32, 16) and len(torch.unique(alone, dim=0)) > 20
    assert torch.equal(alone, pixels(2))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_a_saved_model_has_its_size_and_fit(fit: str, tall: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = dc.EmbeddingModel("test_vit", 8, 2, method="slices", pretrained=False, image_size=(64, 32), fit=fit).eval()
    model.save(tmp_path / "model")
    loaded = dc.EmbeddingModel.load(tmp_path / "model")
    assert (loaded.image_size, loaded.fit, loaded.config) == (model.image_size, fit, model.config)
    np.testing.assert_array_equal(loaded.encode(tall / "class0"), model.encode(tall / "class0"))
    again = dc.EmbeddingModel("test_vit", 8, 2, method="slices", pretrained=False, image_size=(32, 64))
    again.warm_start(model)  # position embeddings are resampled


def test_what_a_backbone_does_not_take() -> None:
    with pytest.raises(ConfigError, match="`image_size` 64x40: backbone test_vit takes whole patches of 16"):
        dc.EmbeddingModel("test_vit", 8, 1, pretrained=False, image_size=(64, 40))
    with pytest.raises(ConfigError, match=r"`fit`.*squosh.*squash"):
        dc.EmbeddingModel("test_resnet", 8, 1, pretrained=False, fit="squosh")
    assert all(sizes_of(name)["any_size"] for name in ("resnet50.tv_in1k", "tf_efficientnet_lite0"))
    assert not any(sizes_of(name)["any_size"] for name in ("vit_small_patch16_224", "my_module:Net"))
