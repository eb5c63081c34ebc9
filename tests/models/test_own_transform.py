"""Transforms of one's own in everything that a model goes through."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import divcon as dc
from divcon.errors import ConfigError, TrustError, WeightsError
from divcon.runs.run import run

SOURCE = """
import random
from PIL import ImageOps
from torchvision.transforms import v2

def train(image_size):
    return v2.Compose([Jitter(), v2.RandomResizedCrop(image_size)])

class Jitter:
    def __call__(self, image):
        return ImageOps.posterize(image, random.randint(4, 8))

def evaluate(image_size):
    return v2.Compose([ImageOps.invert, v2.Resize((image_size, image_size))])

def normalises(image_size):
    return v2.Compose([v2.Resize((image_size, image_size)), v2.ToTensor(), v2.Normalize([0.5] * 3, [0.2] * 3)])
"""


@pytest.fixture(autouse=True)
def my_transforms(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "my_transforms.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("divcon.runtime.importing._trusted", set())
    yield
    sys.modules.pop("my_transforms", None)


MODEL = {"backbone": "test_resnet", "pretrained": False, "image_size": 32, "embedding_dim": 8, "num_learners": 2}
TRAIN = {"epochs": 2, "batch_size": 16, "divide_by": "random-class", "device": "cpu", "workers": 0}


def config(**changes) -> dc.RunConfig:
    train = {**TRAIN, "train_transform": "my_transforms:train", **changes}
    return dc.RunConfig(
        dc.ModelConfig(**MODEL, eval_transform="my_transforms:evaluate"), dc.TrainConfig(**train), dc.DataConfig()
    )


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.heavy
def test_a_run_has_them_and_workers_change_nothing(few, tmp_path):
    for name, workers in (("alone", 0), ("shared", 2)):
        run(few, tmp_path / name, config(workers=workers), report=False)
    run(few, tmp_path / "plain", config(train_transform=None), report=False)
    assert losses(tmp_path / "alone") == losses(tmp_path / "shared") != losses(tmp_path / "plain")
    saved = json.loads((tmp_path / "alone" / "config.json").read_text())
    assert saved["train"]["train_transform"] == "my_transforms:train"
    assert saved["model"]["eval_transform"] == "my_transforms:evaluate"


def test_a_model_is_saved_loaded_and_searched_with_it(few, tmp_path, image_folder, tiny_model):
    model = tiny_model(eval_transform="my_transforms:evaluate")
    plain = tiny_model()
    own, usual = model.encode(few.query), plain.encode(few.query)
    assert np.abs(own - usual).max() > 0.01
    model.save(tmp_path / "model")
    with pytest.raises(TrustError, match=r"config\.json: names my_transforms:evaluate"):
        dc.EmbeddingModel.load(tmp_path / "model")
    again = dc.EmbeddingModel.load(tmp_path / "model", trust=["my_transforms"])
    np.testing.assert_array_equal(again.encode(few.query), own)
    index = dc.Index.build(again, image_folder, tmp_path / "index")
    assert index.search(sorted(image_folder.rglob("*.png"))[3], k=1)[0].score == pytest.approx(1, abs=1e-5)
    result, other = dc.evaluate(again, few), dc.evaluate(plain, few)
    assert result["map_at_r"] != other["map_at_r"]


def test_an_object_is_passed_again(few, tmp_path, tiny_model):
    def squeeze(image: Image.Image) -> Image.Image:
        return image.resize((32, 32))

    class Squeeze:
        def __call__(self, image):
            return squeeze(image)

    own = Squeeze()
    model = tiny_model(eval_transform=own)
    expected = model.encode(few.query)
    model.save(tmp_path / "model")
    with pytest.raises(WeightsError, match=r"pass the object.*EmbeddingModel\.load\(folder, eval_transform="):
        dc.EmbeddingModel.load(tmp_path / "model", trust=True)
    again = dc.EmbeddingModel.load(tmp_path / "model", eval_transform=own)
    np.testing.assert_array_equal(again.encode(few.query), expected)
    assert again.config == model.config


def test_a_pipeline_that_normalises_is_refused_before_training(few, tmp_path):
    with pytest.raises(
        ConfigError, match=r"icons\.parquet row \d+.*my_transforms:normalises.*Leave out Normalize"
    ) as e:
        run(few, tmp_path / "run", config(train_transform="my_transforms:normalises"), report=False)
    assert e.value.field == "train_transform"


@pytest.mark.parametrize(("setting", "value"), [("flip", False), ("crop_scale", 0.5)])
def test_settings_of_the_transform_that_is_replaced(setting, value):
    with pytest.raises(ConfigError, match=f"`{setting}` .*`train_transform` replaces it") as error:
        dc.TrainConfig(**{setting: value, "train_transform": "my_transforms:train"})
    assert error.value.fields == (setting, "train_transform")


def test_vectors_are_not_transformed():
    with pytest.raises(ConfigError, match="`eval_transform`: vectors are not transformed"):
        dc.EmbeddingModel("none", 8, vector_dim=4, eval_transform=lambda image: image)


@pytest.mark.heavy
def test_an_onnx_file_takes_its_pixels_and_names_it(few, tmp_path, tiny_model):
    import onnxruntime
    import torch

    model = tiny_model(eval_transform="my_transforms:evaluate")
    dc.export(model, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["divcon"])
    assert about["preprocessing"]["transform"] == "my_transforms:evaluate"
    pixels = torch.stack([model.eval_transform(few.query.open(i)) for i in range(3)]).numpy()
    (embeddings,) = session.run(None, {"images": pixels})
    np.testing.assert_allclose(embeddings, model.encode(few.query.subset(np.arange(3))), atol=1e-4)


@pytest.mark.parametrize("named", [True, False])
def test_a_pruned_model_and_a_learner_alone_keep_it(few, tiny_model, named):
    from PIL import ImageOps

    from divcon.models import keep_learner

    def invert(image: Image.Image) -> Image.Image:
        return ImageOps.invert(image).resize((32, 32))

    model = tiny_model(eval_transform="my_transforms:evaluate" if named else invert)
    small = dc.prune(model, few.query, 4)
    alone = keep_learner(model, 0)
    for derived in (small, alone):
        assert derived.config["eval_transform"] == model.config["eval_transform"]
        np.testing.assert_array_equal(derived.features(few.query), model.features(few.query))


@pytest.mark.heavy
def test_the_server_applies_it_to_uploads(image_folder, tmp_path, tiny_model):
    from starlette.testclient import TestClient

    from divcon.serve import create_app

    model = tiny_model(eval_transform="my_transforms:evaluate")
    image = sorted(image_folder.rglob("*.png"))[3]
    with dc.Index.build(model, image_folder, tmp_path / "index") as index:
        client = TestClient(create_app(index), base_url="http://127.0.0.1")
        hits = client.post("/search", files={"image": image.read_bytes()}, data={"k": "1"}).json()["hits"]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["model.pt2", "hf"])
@pytest.mark.heavy
def test_an_export_names_it(name, tmp_path, tiny_model):
    from divcon.exports import export

    model = tiny_model(eval_transform="my_transforms:evaluate")
    export(model, tmp_path / name, format="torch" if name.endswith("pt2") else "hf")
    if name == "hf":
        assert "which `my_transforms:evaluate` makes of an image" in (tmp_path / name / "README.md").read_text()
        assert not (tmp_path / name / "preprocessor_config.json").exists()
    else:
        import torch

        extra = {"divcon.json": ""}
        torch.export.load(tmp_path / name, extra_files=extra)
        preprocessing = json.loads(extra["divcon.json"])["preprocessing"]
        assert preprocessing["transform"] == "my_transforms:evaluate" and "resize" not in preprocessing


def test_forms_of_one_image(tmp_path, tiny_model):
    noise = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    Image.fromarray(noise).resize((400, 320)).save(tmp_path / "a.jpg", quality=90)
    model = tiny_model()
    expected = model.encode(tmp_path / "a.jpg")
    loaded = Image.open(tmp_path / "a.jpg")
    loaded.load()
    for form in (Image.open(tmp_path / "a.jpg"), loaded, (tmp_path / "a.jpg").read_bytes()):
        np.testing.assert_array_equal(model.encode(form), expected)
    several = model.encode([tmp_path / "a.jpg", loaded, np.asarray(loaded)])
    np.testing.assert_allclose(several[:2], np.repeat(expected, 2, axis=0), atol=1e-6)
    assert several[2] @ expected[0] > 0.99
    copied = model.encode(loaded.convert("RGB"))
    assert (copied @ expected.T).item() > 0.999
