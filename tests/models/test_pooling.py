"""Pooling: GeM against loops and PyTorch's Lp pooling, every pooling of every kind of backbone, what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

import divcon as dc
from divcon.config.settings import Pooling
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, WeightsError
from divcon.models import GeM, keep_subspaces
from divcon.models.pooling import POOLINGS, create_pooling

Make = Callable[..., dc.EmbeddingModel]
SIZE = 64


def model_of(backbone: str, pooling: str, **options: Any) -> dc.EmbeddingModel:
    torch.manual_seed(0)
    options = {"pretrained": False, "image_size": SIZE, "pooling": pooling, **options}
    return dc.EmbeddingModel(backbone, 8, 2, **options).eval()


def gem_by_loops(places: np.ndarray, p: float) -> np.ndarray:
    """(B, N, F) to (B, F), a number at a time."""
    pooled = np.zeros((places.shape[0], places.shape[2]))
    for image in range(places.shape[0]):
        for feature in range(places.shape[2]):
            total = 0.0
            for place in range(places.shape[1]):
                total += max(float(places[image, place, feature]), 1e-6) ** p
            pooled[image, feature] = (total / places.shape[1]) ** (1 / p)
    return pooled


@pytest.mark.parametrize("p", [1.0, 2.5, 3.0, 6.0])
def test_gem_is_the_generalised_mean_over_all_places(p: float) -> None:
    maps = torch.randn(3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    tokens = maps.flatten(2).transpose(1, 2)
    expected = gem_by_loops(tokens.numpy(), p)
    prefix = torch.full((3, 5, 5), 100.0)
    for features, pool in (
        (maps, GeM("NCHW", p=p)),
        (maps.permute(0, 2, 3, 1), GeM("NHWC", p=p)),
        (tokens, GeM("NLC", p=p)),
        (torch.cat([prefix, tokens], dim=1), GeM("NLC", 5, p=p)),
        (maps.contiguous(memory_format=torch.channels_last), GeM("NCHW", p=p)),
    ):
        np.testing.assert_allclose(pool(features).detach().numpy(), expected, rtol=1e-5)
    positive = maps.abs() + 0.1
    norms = F.lp_pool2d(positive, p, kernel_size=(4, 2)).flatten(1)  # the sum of powers in place of their mean
    torch.testing.assert_close(GeM("NCHW", p=p)(positive), norms / 8 ** (1 / p), rtol=1e-5, atol=0)


def test_gem_lies_between_the_mean_and_the_maximum() -> None:
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.testing.assert_close(GeM("NCHW", p=1.0)(maps), maps.mean(dim=(2, 3)))
    torch.testing.assert_close(GeM("NCHW", p=300.0)(maps), maps.amax(dim=(2, 3)), rtol=0.01, atol=0)
    assert GeM("NCHW").p.tolist() == [3.0]


def test_gem_has_the_gradients_of_its_formula() -> None:
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p = torch.tensor([2.5], dtype=torch.float64, requires_grad=True)
    leaf = maps.clone().requires_grad_()
    plain = leaf.clamp(min=1e-6).pow(p).mean(dim=(2, 3)).pow(1 / p)
    expected = torch.autograd.grad((plain * weight).sum(), (leaf, p))
    pool = GeM("NCHW", p=2.5)
    mine = maps.float().requires_grad_()
    gradients = torch.autograd.grad((pool(mine) * weight.float()).sum(), (mine, pool.p))
    for value, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(value.double(), reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", [3.0, 12.0, 60.0])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gem_stays_finite_where_powers_vanish_or_overflow(p: float, precision: torch.dtype) -> None:
    # A feature that is negative everywhere, one that is large, one that is both.
    maps = torch.tensor([[-1.0, -2.0], [3000.0, 1.0], [3000.0, -1.0]]).view(1, 3, 1, 2).to(precision)
    maps.requires_grad_()
    pool = GeM("NCHW", p=p)
    pooled = pool(maps)
    pooled.sum().backward()
    assert pooled.dtype == torch.float32
    assert maps.grad is not None and pool.p.grad is not None
    for value in (pooled, maps.grad, pool.p.grad):
        assert torch.isfinite(value).all()
    half = float(maps.detach().max()) * 0.5 ** (1 / p)
    np.testing.assert_allclose(pooled.detach()[0].numpy(), [1e-6, half, half], rtol=1e-4)


def reference(model: dc.EmbeddingModel, pooling: str, images: torch.Tensor) -> torch.Tensor:
    """The pooled features by hand, of a new model of timm's with the same weights."""
    name = model.config["backbone"]
    sized = {"img_size": SIZE} if "vit" in name else {}
    plain = timm.create_model(name, num_classes=0, **sized).eval()
    plain.load_state_dict(model.backbone.state_dict(), strict="vit3" not in name)  # whose own pooling has weights
    unpooled: torch.Tensor = plain.forward_features(images)  # type: ignore[operator]
    if unpooled.ndim == 3:
        if pooling == "token":
            return plain.fc_norm(unpooled[:, 0])  # type: ignore[operator]
        places = unpooled[:, plain.num_prefix_tokens :]  # type: ignore[index, misc]
    else:
        places = unpooled.flatten(2).transpose(1, 2)
    norm = plain.fc_norm if unpooled.ndim == 3 else plain.head.norm if "convnext" in name else torch.nn.Identity()
    flat = unpooled.ndim == 4 and "convnext" in name  # its norm is of maps

    def normed(rows: torch.Tensor) -> torch.Tensor:
        if flat:
            return norm(rows.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)  # type: ignore[operator]
        return norm(rows)  # type: ignore[operator]

    if pooling == "gem":  # after the last norm
        return normed(places).clamp(min=1e-6).pow(3).mean(dim=1).pow(1 / 3)
    pooled = places.mean(dim=1) if pooling == "avg" else places.amax(dim=1)
    return normed(pooled[:, None])[:, 0]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("backbone", "own", "poolings"),
    [
        ("test_vit", "token", ("avg", "max", "token", "gem")),
        ("test_vit2", "avg", ("avg", "max", "gem")),
        ("test_vit3", None, ("avg", "max", "gem")),
        ("test_resnet", "avg", ("avg", "max", "gem")),
        ("test_convnext", "avg", ("avg", "max", "gem")),
        ("mobilenetv3_small_050", None, ("avg", "max", "gem")),
    ],
)
def test_every_pooling_of_every_kind_of_backbone(backbone: str, own: str | None, poolings: tuple[str, ...]) -> None:
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    auto = model_of(backbone, "auto")
    with torch.no_grad():
        features = {"auto": auto.pooling(auto.backbone(images))}
        assert features["auto"].shape == (2, auto.num_features)
        if own is not None:
            torch.testing.assert_close(features["auto"], reference(auto, own, images))
        for pooling in poolings:
            model = model_of(backbone, pooling)
            features[pooling] = model.pooling(model.backbone(images))
            assert features[pooling].shape == (2, model.num_features)
            assert model(images).shape == (2, 8)
            if backbone != "mobilenetv3_small_050":  # which has more layers between pooling and head
                torch.testing.assert_close(features[pooling], reference(model, pooling, images), rtol=1e-4, atol=1e-5)
    distinct = [value for name, value in features.items() if name != "auto"]
    for i, one in enumerate(distinct):
        assert not any(torch.allclose(one, other, rtol=1e-2) for other in distinct[:i])


def test_class_and_register_tokens_are_no_places_of_the_image() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", num_classes=0, img_size=SIZE, reg_tokens=4, pretrained=False).eval()
    pool, width = create_pooling(backbone, "gem", name="test_vit", image_size=SIZE)
    tokens = torch.rand(2, 5 + 16, width)
    changed = tokens.clone()
    changed[:, :5] = 7.0
    assert torch.equal(pool(tokens), pool(changed))
    assert backbone(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 21, width)


def test_a_model_pools_the_same_in_training_and_encoding(few: Benchmark) -> None:
    model = model_of("test_resnet", "gem")
    images = few.query.subset(np.arange(6))
    pixels = torch.stack([model.eval_transform(images.open(i).convert("RGB")) for i in range(6)])
    with torch.no_grad():
        expected = reference(model, "gem", model.normalize(pixels))
        np.testing.assert_allclose(model.features(images), expected.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.encode(images), model(model.normalize(pixels)).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "pooling", "message"),
    [
        ("test_resnet", "token", "`pooling` token: timm's test_resnet cannot be pooled so"),
        (
            "test_vit2",
            "token",
            r"`pooling` token: .*so \(Token pooling needs the class token\); `pooling=auto` is its own",
        ),
        ("test_vit_relpos", "max", r"`pooling` max: .*so \(Only avg or token.*`pooling=auto` is its own"),
        ("test_vit", "gen", "unknown pooling 'gen'; did you mean 'gem'"),
    ],
)
def test_a_pooling_that_a_backbone_does_not_have_is_refused(backbone: str, pooling: str, message: str) -> None:
    if backbone in ("test_vit2", "test_vit_relpos") and "test_vit_relpos" not in timm.list_models():
        pytest.skip("an older timm pools these, or does not have them")
    with pytest.raises(ConfigError, match=message):
        model_of(backbone, pooling)


def test_a_pooling_that_timm_takes_and_does_not_use_is_refused() -> None:
    backbone = timm.create_model("test_resnet", num_classes=0)
    backbone.reset_classifier = lambda num_classes, global_pool: None  # type: ignore[assignment, misc]
    with pytest.raises(ConfigError, match="`pooling` max: timm's test_resnet cannot be pooled so; `pooling=auto`"):
        create_pooling(backbone, "max", name="test_resnet", image_size=32)


def test_vectors_are_not_pooled() -> None:
    with pytest.raises(ConfigError, match="`pooling` gem: vectors are pooled already"):
        dc.EmbeddingModel(vector_dim=5, embedding_dim=8, pooling="gem")
    assert "pooling" not in dc.EmbeddingModel(vector_dim=5, embedding_dim=8).config


def test_settings_and_models_have_the_same_poolings() -> None:
    assert get_args(Pooling) == POOLINGS


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_trained_gem_is_saved_loaded_and_pruned(backbone: str, few: Benchmark, tmp_path: Path) -> None:
    model = model_of(backbone, "gem", method="slices")
    with torch.no_grad():
        model.pooling.p.fill_(4.5)  # type: ignore[union-attr, operator]
    model.save(tmp_path)
    again = dc.EmbeddingModel.load(tmp_path)
    assert again.config == model.config
    assert again.config["pooling"] == "gem"
    images = few.query.subset(np.arange(4))
    np.testing.assert_array_equal(again.encode(images), model.encode(images))
    small = keep_subspaces(model, [1])
    np.testing.assert_allclose(small.encode(images), model.encode(images, learner=1), atol=1e-6)


def test_models_saved_before_there_was_a_choice_load_as_auto(tiny_model: Make, few: Benchmark, tmp_path: Path) -> None:
    model = tiny_model()
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["pooling"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = dc.EmbeddingModel.load(tmp_path)
    assert again.config["pooling"] == "auto"
    images = few.query.subset(np.arange(4))
    np.testing.assert_array_equal(again.encode(images), model.encode(images))
    # Read as pooled otherwise, it is refused: the p of a GeM is not there.
    (tmp_path / "config.json").write_text(json.dumps({**config, "pooling": "gem"}))
    with pytest.raises(WeightsError, match=r"pooling\.p"):
        dc.EmbeddingModel.load(tmp_path)


def test_a_warm_start_takes_pooling_and_head_or_neither() -> None:
    other = model_of("test_vit", "gem")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    same = model_of("test_vit", "gem")
    assert same.warm_start(other)
    for name, value in other.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    averaged = model_of("test_vit", "avg")
    head = averaged.head.linear.weight.detach().clone()
    assert not averaged.warm_start(other)
    assert torch.equal(averaged.head.linear.weight, head)
    for name, value in other.backbone.state_dict().items():
        assert torch.equal(value, averaged.backbone.state_dict()[name])


def test_a_file_of_weights_fits_whatever_the_pooling(tmp_path: Path) -> None:
    for backbone in ("test_resnet", "test_vit", "test_convnext"):
        source = model_of(backbone, "auto")
        torch.save(source.backbone.state_dict(), tmp_path / "weights.pth")
        for pooling in ("avg", "gem"):
            loaded = model_of(backbone, pooling, pretrained=True, weights=tmp_path / "weights.pth")
            for name, value in source.backbone.state_dict().items():
                assert torch.equal(value, loaded.backbone.state_dict()[name])
