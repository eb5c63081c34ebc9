"""Backbones by the names that people have: timm's repositories, the hub's, open_clip's and torch.hub's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

import divcon as dc
from divcon.config.backbone_names import FAMILIES, OPEN_CLIP_NAMES, canonical
from divcon.config.from_data import ImageFacts, fit_images
from divcon.config.image_size import height_width
from divcon.config.settings import ModelConfig
from divcon.errors import ConfigError, WeightsError
from divcon.models import names
from divcon.models.backbone import create_backbone, sizes_of
from divcon.models.names import check_backbone_name
from divcon.models.pooling import create_pooling
from divcon.search.untrained import is_backbone


@pytest.mark.parametrize(
    ("name", "known_to_timm"),
    [
        ("timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:timm/vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_224.openai"),
        ("https://huggingface.co/timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("facebook/dinov2-base", "vit_base_patch14_dinov2.lvd142m"),
        ("facebook/dinov2-with-registers-small", "vit_small_patch14_reg4_dinov2.lvd142m"),
        ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m"),
        ("facebook/dinov3-vits16plus-pretrain-lvd1689m", "vit_small_plus_patch16_dinov3.lvd1689m"),
        ("facebook/dinov3-vith16plus-pretrain-lvd1689m", "vit_huge_plus_patch16_dinov3.lvd1689m"),
        ("facebook/dinov3-convnext-tiny-pretrain-lvd1689m", "convnext_tiny.dinov3_lvd1689m"),
        ("google/siglip-so400m-patch14-384", "vit_so400m_patch14_siglip_384.webli"),
        ("google/siglip2-so400m-patch14-384", "vit_so400m_patch14_siglip_378.v2_webli"),
        ("google/siglip2-base-patch16-224", "vit_base_patch16_siglip_224.v2_webli"),
        ("openai/clip-vit-base-patch32", "vit_base_patch32_clip_quickgelu_224.openai"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "vit_base_patch32_clip_224.laion2b"),
        ("timm/ViT-B-16-SigLIP2", "vit_base_patch16_siglip_224.v2_webli"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "vit_base_patch32_clip_224.laion2b"),
        ("open_clip:ViT-L/14@336px/openai", "vit_large_patch14_clip_quickgelu_336.openai"),
    ],
)
def test_what_others_call_a_model_is_its_name_in_timm(name: str, known_to_timm: str) -> None:
    assert canonical(name) == known_to_timm
    assert known_to_timm in timm.list_pretrained()
    check_backbone_name(name)
    assert ModelConfig(backbone=name) == ModelConfig(backbone=known_to_timm)


def test_other_names_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("resnet50", "auto", "mlp", "module:Name", "hf-hub:user/model@v2", "user/model", "open_clip:RN50/x"):
        assert canonical(name) == name
    assert canonical("hf_hub:user/model") == "hf-hub:user/model"
    assert Path(canonical("local-dir:folder").removeprefix("local-dir:")).is_absolute()


def test_every_name_here_has_weights_in_timm_and_the_activation_of_the_original() -> None:
    known = set(timm.list_pretrained())
    assert set(OPEN_CLIP_NAMES.values()) <= known
    assert {name for names in FAMILIES.values() for name in names.split()} <= known
    natively_quick = [n for n in OPEN_CLIP_NAMES.values() if "QuickGELU" in str(timm.get_pretrained_cfg(n).notes)]
    assert natively_quick
    assert all("quickgelu" in name for name in natively_quick)
    assert all("quickgelu" in OPEN_CLIP_NAMES[f"ViT-{size}/openai"] for size in ("B-32", "B-16", "L-14", "L-14-336"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18.a1", r"no weights 'a1' of resnet18; it has resnet18.a1_in1k, .*did you mean 'resnet18.a1_in1k'"),
        ("timm/resnet18.a1", "did you mean 'resnet18.a1_in1k'"),
        ("resnt50.tv_in1k", r"did you mean 'resnet50.tv_in1k'\?"),
        ("resnet-50", "did you mean 'resnet50'"),
        ("dinov2", "vit_small_patch14_dinov2.lvd142m, vit_base_patch14_dinov2.lvd142m"),
        ("DINOv3", "vit_small_patch16_dinov3.lvd1689m"),
        ("clip", "vit_base_patch32_clip_quickgelu_224.openai, vit_base_patch16_clip_224.laion2b"),
        ("siglip", "vit_base_patch16_siglip_224.v2_webli"),
        ("vit_base_patch16_dinov2", "vit_base_patch14_dinov2"),
        ("ViT-B/16", "did you mean 'vit_base_patch16_224'"),
        ("open_clip:RN50", "open_clip:RN50/openai, open_clip:RN50/yfcc15m"),
        ("open_clip:ViT-B-3/openai", "did you mean open_clip:ViT-B-32/openai"),
        ("user/model", "use hf-hub:user/model"),
        ("hf-hub:user", "hf-hub:user/model@revision"),
    ],
)
def test_suggestions(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as raised:
        check_backbone_name(name)
    assert raised.value.fields == ("backbone",)


def test_names_are_checked_before_timm_or_pytorch_is_imported() -> None:
    code = """
import sys
from divcon.errors import ConfigError
from divcon.models.names import check_backbone_name
for name in ("timm/resnet18.a1_in1k", "facebook/dinov2-base", "open_clip:ViT-B-32/openai", "hf-hub:user/model"):
    check_backbone_name(name)
for name in ("dinov2", "resnt50.tv_in1k", "open_clip:RN50"):
    try:
        check_backbone_name(name)
    except ConfigError as error:
        print(error)
assert not {"torch", "timm"} & set(sys.modules), "imported"
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    messages = answer.splitlines()
    assert "vit_small_patch14_dinov2" in messages[0] and "'resnet50.tv_in1k'" in messages[1]


def test_names_that_timms_source_makes_in_loops_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "sys", SimpleNamespace(modules={}))  # as before timm is imported
    in_source = set(names._backbones_in_source()[2])
    known = timm.list_pretrained()
    assert len(in_source & set(known)) > 0.95 * len(known)
    made = next(name for name in known if "quickgelu" in name and name not in in_source)
    check_backbone_name(made)
    architecture = next(iter({name.partition(".")[0] for name in known if "quickgelu" in name}))
    with pytest.raises(ConfigError, match=r"did you mean .*quickgelu"):
        check_backbone_name(f"{architecture}.opena")


@pytest.mark.parametrize(
    ("name", "size", "mean", "features", "token"),
    [
        ("vit_small_patch14_dinov2.lvd142m", 224, 0.485, 384, True),
        ("vit_base_patch14_reg4_dinov2.lvd142m", 224, 0.485, 768, True),
        ("vit_small_patch16_dinov3.lvd1689m", 224, 0.485, 384, True),
        ("convnext_tiny.dinov3_lvd1689m", 224, 0.485, 768, False),
        ("vit_base_patch16_siglip_224.webli", 224, 0.5, 768, False),
        ("vit_base_patch16_siglip_384.v2_webli", 384, 0.5, 768, False),
        ("vit_so400m_patch14_siglip_384.webli", 384, 0.5, 1152, False),
        ("vit_base_patch32_clip_quickgelu_224.openai", 224, 0.481, 768, True),
        ("vit_base_patch32_clip_256.datacompxl", 256, 0.481, 768, True),
        ("vit_large_patch14_clip_336.openai", 336, 0.481, 1024, True),
        ("resnet50_clip.openai", 224, 0.481, 2048, True),
        ("convnext_large_mlp.clip_laion2b_augreg", 224, 0.481, 1536, False),
        ("eva02_base_patch16_clip_224.merged2b", 224, 0.481, 768, True),
        ("fastvit_mci0.apple_mclip", 224, 0.0, 1024, False),
        ("vit_pe_core_tiny_patch16_384.fb", 384, 0.5, 192, True),
    ],
)
def test_size_preprocessing_and_features_of_each_family(
    name: str, size: int, mean: float, features: int, token: bool
) -> None:
    chosen, _ = fit_images(ModelConfig(backbone=name), ImageFacts(np.ones((4, 2))), **sizes_of(name))
    assert chosen.image_size == size
    poolings = ["auto", "gem", *(["token"] if token else [])]
    for pooling in poolings:
        with torch.device("meta"):  # shapes without numbers: the largest of them has 400 million weights
            backbone, preprocessing = create_backbone(name, pretrained=False, image_size=size)
            after, width = create_pooling(backbone, pooling, name=name, image_size=size)
            output = after(backbone.eval()(torch.zeros(2, 3, *height_width(size))))
        assert output.shape == (2, features) == (2, width)
    assert preprocessing.mean[0] == pytest.approx(mean, abs=1e-3)
    assert preprocessing.interpolation == "bicubic"
    if not token and "siglip" in name:
        with pytest.raises(ConfigError, match="cannot be pooled"):
            create_pooling(backbone, "token", name=name, image_size=size)


def test_dinov2_takes_whole_patches_of_14() -> None:
    with pytest.raises(ConfigError, match="multiple of 14, such as 252 or 266"), torch.device("meta"):
        create_backbone("vit_small_patch14_dinov2", pretrained=False, image_size=256)
    with torch.device("meta"):
        backbone, _ = create_backbone("vit_small_patch14_dinov2", pretrained=False, image_size=(252, 126))
        assert backbone(torch.zeros(1, 3, 252, 126)).shape == (1, 384)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, without network, with the repository ``user/model``: a tiny vision transformer that pools by
    attention, at a size, mean and number of classes of its own. Returns the folder of its files."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    model = timm.create_model("test_vit3", num_classes=7, img_size=96)
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
    storage = tmp_path / "hub" / "models--user--model"
    files = storage / "snapshots" / "0123abcd"
    save_for_hf(model, files, safe_serialization=True)
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("0123abcd")
    return files


def test_a_repository_of_the_hub_is_a_backbone(
    repository: Path, image_folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """From the hub's cache without network, trained, resumed and exported; what is saved needs no cache."""
    by_timm = timm.create_model("hf-hub:user/model", pretrained=True, num_classes=0).eval()
    model = dc.EmbeddingModel("hf_hub:user/model", 8, image_size=96).eval()
    images = torch.rand(2, 3, 96, 96)
    assert torch.equal(model.backbone(images), by_timm(images))
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert model.preprocessing.interpolation == "bilinear"

    run = tmp_path / "run"
    options = ["--backbone", "hf-hub:user/model", "--epochs", "2", "--dim", "8", "--head-init", "random"]
    options += ["--batch-size", "8", "--images-per-class", "4", "--no-validation", "--workers", "0", "--out", run]
    code, out, err = command("train", image_folder, *options, "--end-epoch", "0")
    assert code == 0, out + err
    shutil.rmtree(tmp_path / "hub")  # the run has all that it needs
    code, out, err = command("train", image_folder, *options, "--resume")
    assert code == 0, out + err
    settings = json.loads((run / "config.json").read_text())["model"]
    saved = json.loads((run / "model" / "config.json").read_text())
    assert (settings["backbone"], settings["image_size"]) == ("hf-hub:user/model", 96)
    assert saved["backbone"] == "hf-hub:user/model"
    assert saved["backbone_config"]["architecture"] == "test_vit3"
    trained = dc.EmbeddingModel.load(run)
    assert trained.preprocessing.mean == (0.1, 0.2, 0.3)
    done = dc.export(run, tmp_path / "model.pt2", "torch")
    assert done.about["model"]["backbone"] == "hf-hub:user/model"
    dc.export(run, tmp_path / "hf", "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "base_model: user/model" in card and "`user/model` of the Hugging Face Hub" in card
    broken = json.loads((tmp_path / "hf" / "config.json").read_text())
    del broken["backbone_config"]["architecture"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(broken))
    with pytest.raises(WeightsError, match="architecture is missing"):
        dc.EmbeddingModel.load(tmp_path / "hf")
    with pytest.raises(WeightsError, match="hf-hub:user/model"):
        dc.EmbeddingModel("hf-hub:user/model", 8, image_size=96)


def test_a_folder_that_timm_saved_is_a_backbone(repository: Path) -> None:
    model = dc.EmbeddingModel(f"local-dir:{repository}", 8, image_size=96).eval()
    same = dc.EmbeddingModel("hf-hub:user/model@main", 8, image_size=96).eval()
    images = torch.rand(1, 3, 96, 96)
    assert torch.equal(model.backbone(images), same.backbone(images))


def test_a_repository_at_another_size_and_number_of_channels(repository: Path) -> None:
    model = dc.EmbeddingModel("hf-hub:user/model", 8, image_size=64, channels=5, pooling="gem")
    assert model.features([np.zeros((64, 64, 5), np.uint8)]).shape == (1, model.num_features)
    with pytest.raises(ConfigError, match="multiple of 16"):
        dc.EmbeddingModel("hf-hub:user/model", 8, image_size=70)


def test_a_config_from_elsewhere_chooses_no_weights(repository: Path, tmp_path: Path) -> None:
    config = json.loads((repository / "config.json").read_text())
    known = {name: value for name, value in config["model_args"].items() if name != "num_classes"}
    config["model_args"] |= {"checkpoint_path": str(tmp_path / "evil.pth"), "pretrained": True}
    (repository / "config.json").write_text(json.dumps(config))
    model = dc.EmbeddingModel("hf-hub:user/model", 8, image_size=96)
    assert model.config["backbone_config"]["model_args"] == known


def test_an_index_takes_these_names() -> None:
    assert is_backbone("facebook/dinov2-base") and is_backbone("timm/resnet18") and is_backbone("hf-hub:user/model")
    assert not is_backbone("user/model")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architectures": ["ViTModel"], "model_type": "vit"}, "it is ViTModel, of transformers"),
        ({"architecture": "test_vt3"}, "did you mean 'test_vit3'"),
        (None, "HF_HUB_OFFLINE is set, and they are in no cache"),
    ],
)
def test_repositories_that_are_no_backbones(repository: Path, config: dict[str, object] | None, expected: str) -> None:
    (repository / "config.json").unlink()
    if config is not None:
        (repository / "config.json").write_text(json.dumps(config))
    with pytest.raises((WeightsError, ConfigError), match=expected):
        dc.EmbeddingModel("hf-hub:user/model", 8, image_size=96)
