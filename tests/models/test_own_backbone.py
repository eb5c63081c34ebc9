"""A backbone of the user's own, from Python and by name, wherever a model goes."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import divcon as dc
from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, TrustError, WeightsError
from divcon.models import GeM, keep_components, keep_learner
from divcon.models.backbone import Preprocessing
from divcon.training.checkpoint import model_in

SIZE = 32


class Maps(nn.Module):
    """Convolutions with BatchNorm; its output is a map, (B, 12, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.first(images)).relu()


class Tokens(nn.Module):
    """A class token and 16 patches, (B, 17, 10)."""

    num_prefix_tokens = 1
    mean = (0.5, 0.4, 0.3)
    std = (0.2, 0.2, 0.2)
    interpolation = "bicubic"

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 10, image_size // 4, stride=image_size // 4)
        self.first = nn.Parameter(torch.ones(1, 1, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(images.shape[0], -1, -1), patches], dim=1)


class Wide(nn.Module):
    """Features of a width that its constructor needs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, width), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def of_vectors() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 6))


def model_of(backbone: Any = Maps, **options: Any) -> dc.EmbeddingModel:
    torch.manual_seed(0)
    return dc.EmbeddingModel(backbone, 8, 2, image_size=SIZE, **options)


@pytest.fixture(scope="module")
def data(few: Benchmark) -> Benchmark:
    train = few.train.of_classes(few.train.classes[:6])
    test = few.query.of_classes(few.query.classes[:5])
    return Benchmark("icons", train, test, test)


def test_features_are_as_wide_as_the_output_and_pooled() -> None:
    images = torch.randn(2, 3, SIZE, SIZE)
    model = model_of(Maps()).eval()
    features = model.pooling(model.backbone(images))
    torch.testing.assert_close(features, model.backbone(images).mean(dim=(2, 3)))
    assert model.num_features == 12
    largest = model_of(Maps(), pooling="max").eval()
    assert torch.equal(largest.pooling(largest.backbone(images)), largest.backbone(images).amax(dim=(2, 3)))
    assert isinstance(model_of(pooling="gem").pooling, GeM)
    model = model_of(Tokens)
    tokens = model.backbone(images)
    assert model.num_features == 10
    torch.testing.assert_close(model.pooling(tokens), tokens[:, 1:].mean(dim=1))
    assert torch.equal(model_of(Tokens, pooling="token").pooling(tokens), tokens[:, 0])
    assert model_of(Wide(7)).num_features == 7


def test_preprocessing_is_its_own_or_imagenets() -> None:
    assert model_of(Tokens).preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic")
    assert model_of(Maps).preprocessing.mean == (0.485, 0.456, 0.406)
    wrong = Maps()
    wrong.mean = 0.5  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="`mean` must be three numbers"):
        model_of(wrong)


def test_its_batch_norm_trains_unless_weights_were_loaded(tmp_path: Path) -> None:
    model = model_of(Maps())
    assert model.train().backbone.norm.training
    torch.save(Maps().state_dict(), tmp_path / "maps.pth")
    loaded = model_of(Maps, weights=tmp_path / "maps.pth")
    assert not loaded.train().backbone.norm.training
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        model_of(Tokens, weights=tmp_path / "maps.pth")


def test_a_module_keeps_its_mode_and_statistics() -> None:
    module = Maps().train()
    module.norm.eval()
    before = copy.deepcopy(module.state_dict())
    model_of(module)
    assert (module.training, module.norm.training) == (True, False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


class Fails(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise KeyError("colour")


class Two(nn.Module):
    def forward(self, images: torch.Tensor) -> Any:
        return images, images


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Fails(), r"fails on an input of shape \(1, 3, 32, 32\) \(KeyError: 'colour'\)"),
        (Two, "must return one float tensor of features, .* is tuple"),
        (Wide, "cannot be created without arguments .*pass the module itself"),
        (lambda: 3, "must be a torch.nn.Module, or a class or function that returns one, not int"),
        ("no_such_module_of_mine:Net", "module 'no_such_module_of_mine' cannot be imported"),
        (f"{__name__}:Map", "did you mean 'Maps'"),
        (f"{__name__}:SIZE", "not int"),
    ],
)
def test_what_is_no_backbone_is_refused(backbone: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(backbone)


def test_pooling_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="pooled already"):
        model_of(Wide(7), pooling="gem")
    with pytest.raises(ConfigError, match="a map and no tokens"):
        model_of(Maps, pooling="token")


@pytest.mark.heavy
@pytest.mark.parametrize("backbone", [Maps, Tokens, of_vectors], ids=["maps", "tokens", "vectors"])
def test_it_is_saved_loaded_pruned_searched_and_exported(backbone: Any, data: Benchmark, tmp_path: Path) -> None:
    inputs: Any = data.query
    options: dict[str, Any] = {"image_size": SIZE}
    if backbone is of_vectors:
        inputs, options = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32), {"vector_dim": 12}
    model = dc.EmbeddingModel(backbone, 8, 2, method="slices", **options).eval()
    embeddings = model.encode(inputs)
    model.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["backbone"] == f"{__name__}:{backbone.__name__}"
    with pytest.raises(TrustError, match=f"`trust={__name__}`"):
        dc.EmbeddingModel.load(tmp_path / "model")
    again = dc.EmbeddingModel.load(tmp_path / "model", trust=[__name__])
    np.testing.assert_array_equal(again.encode(inputs), embeddings)

    small = keep_learner(model, 1)
    np.testing.assert_allclose(small.encode(inputs), model.encode(inputs, learner=1), atol=1e-6)
    pruned = keep_components(model, model.features(inputs), 3)
    pruned.save(tmp_path / "pruned")
    again = dc.EmbeddingModel.load(tmp_path / "pruned", trust=True)
    np.testing.assert_array_equal(again.encode(inputs), pruned.encode(inputs))

    with pytest.raises(TrustError):
        dc.Index.build(tmp_path / "model", inputs, tmp_path / "index")
    dc.Index.build(tmp_path / "model", inputs, tmp_path / "index", trust=True)
    index = dc.Index.open(tmp_path / "index", trust=[__name__])
    assert index.search(0, k=3, learner=1)[0].id == 0
    assert np.isfinite(index.model.encode(inputs)).all()

    for format, name in (("onnx", "m.onnx"), ("torch", "m.pt2"), ("hf", "m")):
        assert dc.export(model, tmp_path / name, format).difference <= 1e-4  # type: ignore[arg-type]
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"trust=[{__name__!r}]" in card
    assert "the backbone is its author's own" in card


def test_a_module_that_needs_arguments_is_passed_to_load(data: Benchmark, tmp_path: Path) -> None:
    model = model_of(Wide(7)).eval()
    model.save(tmp_path)
    with pytest.raises(WeightsError, match=r"cannot be created without arguments.*backbone="):
        dc.EmbeddingModel.load(tmp_path, trust=True)
    again = dc.EmbeddingModel.load(tmp_path, backbone=Wide(7))
    np.testing.assert_array_equal(again.encode(data.query), model.encode(data.query))
    with pytest.raises(WeightsError, match="weights do not fit"):
        dc.EmbeddingModel.load(tmp_path, backbone=Wide(9))
    assert dc.export(model, tmp_path / "hf", "hf").difference == 0
    dc.EmbeddingModel("test_resnet", 8, image_size=SIZE, pretrained=False).save(tmp_path / "timm")
    with pytest.raises(WeightsError, match="backbone is test_resnet, and no module of your own"):
        dc.EmbeddingModel.load(tmp_path / "timm", backbone=Wide(7))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(12, 12)
        self.two = nn.Linear(12, 12)
        self.two.weight = self.one.weight

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(vectors).relu())


def test_a_weight_of_two_names_is_saved(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    model = dc.EmbeddingModel(Tied(), 4, vector_dim=12).eval()
    model.save(tmp_path)
    again = dc.EmbeddingModel.load(tmp_path, trust=True)
    np.testing.assert_array_equal(again.encode(vectors), model.encode(vectors))
    assert again.backbone.one.weight is again.backbone.two.weight


class Odd(nn.Module):
    """What folding BatchNorm into convolutions trips over: a norm whose attributes are read, no copy, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.unpicklable = (number for number in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.norm(self.conv(images)) * self.norm.weight.mean()
        return output.mean(dim=(2, 3))


def test_a_module_that_cannot_be_folded_is_used_as_it_is(data: Benchmark) -> None:
    model = model_of(Odd()).eval()
    features = model.features(data.query, batch_size=8)  # several batches, which are what folding is for
    images = torch.stack([model.eval_transform(data.query.open(i)) for i in range(8)])
    with torch.no_grad():
        expected = model.backbone(model.normalize(images))
    np.testing.assert_allclose(features[:8], expected.numpy(), atol=1e-5)


@pytest.mark.heavy
def test_training_runs_resumes_and_starts_from_it(data: Benchmark, tmp_path: Path) -> None:
    train = TrainConfig(epochs=2, batch_size=8, images_per_class=2, workers=0, finetune_epoch=1)

    def config(backbone: Any) -> RunConfig:
        model = ModelConfig(backbone=backbone, num_learners=2, embedding_dim=8, image_size=SIZE)
        return RunConfig(model, train, DataConfig(validation=False))

    for name, backbone in (("class", Maps), ("name", f"{__name__}:Maps"), ("module", Wide(7))):
        out = tmp_path / name
        first = dc.run(data, out, config(backbone), report=False)
        again = dc.run(data, out, config(backbone), resume=True, report=False)
        np.testing.assert_array_equal(again.encode(data.query), first.encode(data.query))
        started = dc.run(data, tmp_path / f"{name} next", config(backbone), init=out, report=False)
        assert started.embedding_dim == 8
    before = model_of(Maps())
    statistics = before.backbone.norm.running_mean.clone()
    list(dc.train(before, data.train, train, checkpoint=tmp_path / "state"))
    assert not torch.equal(before.backbone.norm.running_mean, statistics)
    with pytest.raises(TrustError):
        model_in(tmp_path / "state")
    model = model_in(tmp_path / "state", trust=True)
    np.testing.assert_allclose(model.encode(data.query), before.eval().encode(data.query), atol=1e-6)


def test_vectors_are_passed_to_it_unchanged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 8)
    vectors = (rng.normal(size=(6, 12))[labels] + rng.normal(size=(48, 12))).astype(np.float32)
    paths, rows = pa.array([f"v{i}" for i in range(48)]), np.arange(48)
    images = LabeledSet(labels, tuple("abcdef"), paths, rows, "vectors", vectors=vectors)
    model = dc.EmbeddingModel(of_vectors, 4, 2, vector_dim=12).eval()
    with torch.no_grad():
        expected = model.backbone(torch.from_numpy(vectors))
    np.testing.assert_allclose(model.features(images), expected.numpy(), atol=1e-6)
    reports = list(dc.train(model, images, TrainConfig(epochs=2, batch_size=8, images_per_class=2, workers=0)))
    assert len(reports) == 2
    with pytest.raises(ConfigError, match="fails on an input of shape"):
        dc.EmbeddingModel(of_vectors, 4, vector_dim=13)


def test_a_name_is_not_imported_from_a_folder_that_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_of_somebody.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = model_of(Maps)
    model.config["backbone"] = "net_of_somebody:Net"
    model.save(tmp_path / "model")
    with pytest.raises(TrustError, match="net_of_somebody"):
        dc.EmbeddingModel.load(tmp_path / "model")
    assert "net_of_somebody" not in sys.modules
