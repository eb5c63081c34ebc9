"""The whole model: shapes, frozen statistics, encoding files, saving and loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, DataError, ImageError, WeightsError
from divcon.models import MaskHead

Make = Callable[..., dc.EmbeddingModel]


def test_several_learners_default_to_masks_and_one_to_single() -> None:
    made = {k: dc.EmbeddingModel(embedding_dim=8, num_learners=k, vector_dim=5) for k in (1, 2, 4)}
    assert {k: model.config["method"] for k, model in made.items()} == {1: "single", 2: "masks", 4: "masks"}
    assert [isinstance(model.head, MaskHead) for model in made.values()] == [False, True, True]
    assert dc.EmbeddingModel(embedding_dim=8, vector_dim=5).config["method"] == "single"
    explicit = dc.EmbeddingModel(embedding_dim=8, num_learners=2, vector_dim=5, method="slices")
    assert explicit.config["method"] == "slices"


def test_embeddings_have_length_one_and_learners_are_parts_of_them(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model(num_learners=3, embedding_dim=16, method="slices")
    images = few.query.subset(np.arange(20))
    full = model.encode(images)
    assert full.shape == (20, 16)
    assert full.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(full, axis=1), 1, atol=1e-5)
    parts = [model.encode(images, learner=k) for k in range(3)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1) / np.sqrt(3), full, atol=1e-5)


def test_encoding_does_not_depend_on_batches_or_workers(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    images = few.query.subset(np.arange(30))
    whole = model.encode(images)
    np.testing.assert_allclose(model.encode(images, batch_size=7), whole, atol=1e-5)
    np.testing.assert_array_equal(
        model.encode(images, batch_size=7, context=dc.Context(2)), model.encode(images, batch_size=7)
    )


def test_files_and_folders_are_encoded_in_order(tiny_model: Make, image_folder: Path) -> None:
    model = tiny_model()
    files = sorted(image_folder.rglob("*.png"))
    from_folder = model.encode(image_folder)
    np.testing.assert_array_equal(from_folder, model.encode(files))
    np.testing.assert_allclose(model.encode(files[3])[0], from_folder[3], atol=1e-5)
    with pytest.raises(DataError):
        model.encode(image_folder / "nothing.png")


def test_an_image_that_does_not_decode_is_named(
    tiny_model: Make, image_folder: Path, broken_png: Callable[[Path], None]
) -> None:
    broken_png(image_folder / "class2" / "1.png")
    for workers in (0, 2):
        with pytest.raises(ImageError, match=r"class2/1\.png: this image does not decode") as caught:
            tiny_model().encode(image_folder, context=dc.Context(workers))
        assert "Traceback" not in str(caught.value)


def test_batch_norm_statistics_stay_fixed_only_if_pretrained(tiny_model: Make, tmp_path: Path) -> None:
    random = tiny_model()
    torch.save(random.backbone.state_dict(), tmp_path / "w.pth")
    pretrained = dc.EmbeddingModel("test_resnet", 16, 2, weights=tmp_path / "w.pth", image_size=32)
    for model, frozen in ((random, False), (pretrained, True)):
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model(torch.randn(8, 3, 32, 32)).sum().backward()
        after = model.state_dict()
        changed = [name for name in after if not torch.equal(before[name], after[name])]
        assert bool(changed) != frozen
        assert all("running" in name or "num_batches" in name for name in changed)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert all(m.weight.grad is not None and m.weight.requires_grad for m in norms)
        assert model.head.training


def test_pixels_are_normalised_as_the_backbone_was_trained(tiny_model: Make) -> None:
    model = tiny_model()
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = pixels.numpy().astype(np.float64) / 255
    mean, std = (np.array(v)[:, None, None] for v in (model.preprocessing.mean, model.preprocessing.std))
    np.testing.assert_allclose(model.normalize(pixels).numpy(), (expected - mean) / std, atol=1e-5)


def test_saved_and_loaded_it_encodes_the_same(tiny_model: Make, few: Benchmark, tmp_path: Path) -> None:
    model = tiny_model(num_learners=3)
    images = few.query.subset(np.arange(10))
    model.save(tmp_path / "run" / "model")
    for folder in (tmp_path / "run" / "model", tmp_path / "run"):
        again = dc.EmbeddingModel.load(folder)
        np.testing.assert_array_equal(again.encode(images), model.encode(images))
        assert (again.num_learners, again.embedding_dim, again.image_size) == (3, 16, 32)
        assert again.freeze_batch_norm is False
    files = sorted(path.name for path in (tmp_path / "run" / "model").iterdir())
    assert files == ["config.json", "model.safetensors"]


def test_what_cannot_be_loaded_is_reported(tiny_model: Make, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no model there"):
        dc.EmbeddingModel.load(tmp_path)
    tiny_model().save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(WeightsError, match="damaged"):
        dc.EmbeddingModel.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"embedding_dim": 17}, "weights do not fit the model of config.json"),
        ({"num_learners": 0}, "cannot be divided among 0 learners"),
        ({"dropout": 1.01}, "cannot be created from this file"),
        ({"backbone": "resnet9000"}, "unknown backbone 'resnet9000'"),
        ({"method": "rolled"}, "unknown method 'rolled'"),
        ({"colour": "red"}, "another version of divcon .*colour"),
    ]
    for change, message in wrong:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(WeightsError, match=message) as raised:
            dc.EmbeddingModel.load(tmp_path)
        assert "damaged" not in str(raised.value)
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(WeightsError, match=r"another version of divcon \(format 99"):
        dc.EmbeddingModel.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="damaged"):
        dc.EmbeddingModel.load(tmp_path)


def test_a_warm_start_from_another_model(tiny_model: Make) -> None:
    other = tiny_model(seed=1)
    same = tiny_model(seed=2)
    same.warm_start(other)
    for name, value in other.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    larger = tiny_model(seed=2, embedding_dim=32)
    head = larger.head.linear.weight.clone()
    larger.warm_start(other)
    assert torch.equal(larger.head.linear.weight, head)
    assert torch.equal(next(larger.backbone.parameters()), next(other.backbone.parameters()))
    vit = dc.EmbeddingModel("test_vit", 16, 2, pretrained=False, image_size=32)
    with pytest.raises(ConfigError, match="`backbone=test_resnet`"):
        vit.warm_start(other)
