"""Export: what ONNX Runtime, PyTorch alone and divcon make of what was written, on real icons and on vectors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch.nn import functional as F

import divcon as dc
from divcon.config.image_size import height_width
from divcon.config.settings import ModelConfig, RunConfig
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, DataError, OutputError
from divcon.exports import Exported
from divcon.exports.hugging_face import backbone_origin
from divcon.models import SubspaceHead

pytestmark = pytest.mark.heavy

Make = Callable[..., dc.EmbeddingModel]
DIM = 12


def shaken(model: dc.EmbeddingModel) -> dc.EmbeddingModel:
    """As training leaves it: masks that differ, a head and a p of GeM that are not at their beginnings."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in [*model.head.parameters(), *model.pooling.parameters()]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def model_of(backbone: str, num_learners: int, method: str, **options: Any) -> dc.EmbeddingModel:
    torch.manual_seed(0)
    if backbone in ("none", "mlp"):
        options["vector_dim"] = DIM
    else:
        options["pretrained"] = False
    return shaken(dc.EmbeddingModel(backbone, 10, num_learners, method=method, **options))


MODELS: dict[str, tuple[dict[str, Any], int | None]] = {
    "resnet, gem, slices": ({"backbone": "test_resnet", "pooling": "gem", "image_size": 48, "method": "slices"}, None),
    "vit, gem, a learner of masks": (
        {"backbone": "test_vit", "pooling": "gem", "image_size": 64, "method": "masks"},
        1,
    ),
    "tall, squash": ({"backbone": "test_resnet", "image_size": (64, 32), "fit": "squash", "method": "slices"}, None),
    "tall, crop": ({"backbone": "test_vit", "image_size": (64, 32), "method": "slices"}, None),
    "wide, pad": ({"backbone": "test_resnet", "image_size": (32, 48), "fit": "pad", "method": "masks"}, 1),
    "vectors, single": ({"backbone": "none", "method": "single", "num_learners": 1}, None),
    "mlp, masks": ({"backbone": "mlp", "method": "masks", "head_options": {"full": "masked"}}, None),
    "vectors, a learner of slices": ({"backbone": "none", "method": "slices"}, 2),
}
each_model = pytest.mark.parametrize(("options", "learner"), MODELS.values(), ids=MODELS.keys())


@pytest.fixture(scope="module")
def icons(demo: Benchmark) -> list[Image.Image]:
    """Seven real icons, not all square: their shorter side decides."""
    sizes = [(64, 64), (64, 40), (50, 64), (64, 64), (64, 63), (30, 64), (64, 64)]
    opened = [demo.query.open(40 * i) for i in range(7)]
    return [image.crop((0, 0, *size)) for image, size in zip(opened, sizes, strict=True)]


def pixels_by_pillow(image: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """What the metadata says to do, by Pillow: (3, H, W) uint8."""
    by = Image.Resampling[how["interpolation"].upper()]
    height, width = (how["size"],) * 2 if isinstance(how["size"], int) else how["size"]
    if image.size == (width, height):
        pass
    elif how["fit"] == "squash":
        image = image.resize((width, height), by)
    elif how["fit"] == "pad":
        scale = min(height / image.height, width / image.width)
        small = image.resize((round(scale * image.width), round(scale * image.height)), by)
        image = Image.new("RGB", (width, height), tuple(how["fill"]))
        image.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    else:
        tall, wide = (how["resize"],) * 2 if isinstance(how["resize"], int) else how["resize"]
        scale = max(tall / image.height, wide / image.width)
        image = image.resize((int(scale * image.width + 1e-9), int(scale * image.height + 1e-9)), by)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def inputs_of(about: dict[str, Any], icons: list[Image.Image]) -> np.ndarray:
    """Inputs of an exported model: the icons, or some vectors."""
    if about["preprocessing"] is None:
        return np.random.default_rng(0).normal(size=(7, DIM)).astype(np.float32)
    return np.stack([pixels_by_pillow(image, about["preprocessing"]) for image in icons])


def own_embeddings(
    model: dc.EmbeddingModel, learner: int | None, inputs: np.ndarray, icons: list[Image.Image], folder: Path
) -> np.ndarray:
    """The model's own embeddings; images are read from files."""
    if model.vector_dim is not None:
        return model.encode(inputs, learner=learner)
    paths = [folder / f"{number}.png" for number in range(len(icons))]
    for path, image in zip(paths, icons, strict=True):
        image.save(path)
    return model.encode(paths, learner=learner)


@each_model
def test_onnx_gives_the_models_embeddings(
    options: dict[str, Any], learner: int | None, icons: list[Image.Image], tmp_path: Path
) -> None:
    model = model_of(**{"num_learners": 3, **options})
    out = tmp_path / "model.onnx"
    done = dc.export(model, out, learner=learner)
    assert isinstance(done, Exported)
    assert done.difference <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (input_,), (output,) = session.get_inputs(), session.get_outputs()
    width = model.embedding_dim if learner is None else model.head.subspace_dim(learner)
    assert (output.name, output.shape, output.type) == ("embeddings", ["batch", width], "tensor(float)")
    if model.vector_dim is None:
        size = model.image_size
        assert (input_.name, input_.shape, input_.type) == (
            "images",
            ["batch", 3, *height_width(size)],
            "tensor(uint8)",
        )
    else:
        assert (input_.name, input_.shape, input_.type) == ("vectors", ["batch", DIM], "tensor(float)")

    about = json.loads(session.get_modelmeta().custom_metadata_map["divcon"])
    assert about == json.loads(json.dumps(done.about))
    assert (about["divcon"], about["learner"]) == (dc.__version__, learner)
    inputs = inputs_of(about, icons)
    expected = own_embeddings(model, learner, inputs, icons, tmp_path)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    assert np.abs(expected - expected[0]).max() > 0.01  # the images have distinct embeddings
    for rows in (slice(0, 1), slice(4, 5), slice(0, 7)):
        (outputs,) = session.run(None, {input_.name: inputs[rows]})
        np.testing.assert_allclose(outputs, expected[rows], atol=1e-4)
    if about["preprocessing"] is not None:
        mean, std = (np.float32(about["preprocessing"][name]).reshape(3, 1, 1) for name in ("mean", "std"))
        normalised = torch.from_numpy((np.float32(inputs) / 255 - mean) / std)
        with torch.no_grad():
            by_numbers = model(normalised, learner)
        np.testing.assert_allclose(by_numbers, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    ["resnet50", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224", "maxvit_rmlp_pico_rw_256"],
)
def test_backbones_of_other_kinds(backbone: str, tmp_path: Path) -> None:
    model = model_of(backbone, 2, "masks", image_size=64)
    out = tmp_path / "model.onnx"
    dc.export(model, out)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    with torch.no_grad():
        expected = model(model.normalize(torch.from_numpy(inputs)))
    np.testing.assert_allclose(session.run(None, {"images": inputs})[0], expected, atol=1e-4)


ALONE = """
import json, sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("divcon", "timm", "torchvision"):
            raise ImportError(name + " is not to be needed")
sys.meta_path.insert(0, Forbidden())
import numpy as np, torch
for name in sys.argv[1:]:
    extra = {"divcon.json": ""}
    embed = torch.export.load(name, extra_files=extra).module()
    inputs, expected = (torch.from_numpy(np.load(f"{name}.{part}.npy")) for part in ("inputs", "expected"))
    for rows in (slice(0, 1), slice(0, 7)):
        torch.testing.assert_close(embed(inputs[rows]), expected[rows], atol=1e-4, rtol=0)
    print(json.loads(extra["divcon.json"])["output"]["shape"])
"""


def test_a_program_runs_with_pytorch_alone(icons: list[Image.Image], tmp_path: Path) -> None:
    files, widths = [], []
    for number, name in enumerate(["resnet, gem, slices", "vit, gem, a learner of masks", "mlp, masks"]):
        options, learner = MODELS[name]
        model = model_of(**{"num_learners": 3, **options})
        done = dc.export(model, tmp_path / f"{number}.pt2", "torch", learner=learner)
        inputs = inputs_of(done.about, icons)
        np.save(f"{done.path}.inputs.npy", inputs)
        np.save(f"{done.path}.expected.npy", own_embeddings(model, learner, inputs, icons, tmp_path))
        files.append(done.path)
        widths.append(["batch", model.embedding_dim if learner is None else model.head.subspace_dim(learner)])
    alone = [sys.executable, "-c", ALONE, *files]
    done = subprocess.run(alone, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [str(width) for width in widths]


@each_model
def test_a_folder_is_loaded_as_it_was(
    options: dict[str, Any], learner: int | None, icons: list[Image.Image], tmp_path: Path
) -> None:
    model = model_of(**{"num_learners": 3, **options})
    done = dc.export(model, tmp_path / "hub" / "mine", "hf", learner=learner)
    names = {path.name for path in done.path.iterdir()}
    others = {"modeling_divcon.py", "modules.json", "config_sentence_transformers.json"}
    expected = {"model.safetensors", "config.json", "README.md"} | (others if model.vector_dim is None else set())
    assert names - {"preprocessor_config.json"} == expected
    inputs = inputs_of(done.about, icons)
    loaded = dc.EmbeddingModel.load(done.path)
    reloaded = own_embeddings(loaded, None, inputs, icons, tmp_path)
    np.testing.assert_allclose(reloaded, own_embeddings(model, learner, inputs, icons, tmp_path), atol=1e-6)
    assert loaded.num_learners == (model.num_learners if learner is None else 1)
    card = ModelCard.load(done.path / "README.md")
    assert card.data.library_name == "divcon"
    assert (done.path / "README.md").read_text().count("TO FILL IN") == done.to_fill_in > 4
    introduction = (done.path / "README.md").read_text()
    if model.vector_dim is None and model.fit != "squash" and isinstance(model.image_size, tuple):
        # No image processor of transformers pads so, or covers a height and width: the card says so.
        assert "preprocessor_config.json" not in names
        assert "there is no preprocessor_config.json" in introduction
        assert ("of a border of the colour (" if model.fit == "pad" else "until it covers 73 x 37") in introduction
        return
    assert (model.vector_dim is None) == ("preprocessor_config.json" in names)
    assert "there is no preprocessor_config.json" not in introduction
    if model.vector_dim is None:
        said = json.loads((done.path / "preprocessor_config.json").read_text())
        how = {"interpolation": Image.Resampling(said["resample"]).name, "fit": model.fit}
        if model.fit == "squash":
            assert said["image_processor_type"] == "ViTImageProcessor"
            how["size"] = (said["size"]["height"], said["size"]["width"])
        else:
            how |= {"size": said["crop_size"]["height"], "resize": said["size"]["shortest_edge"]}
            assert said["crop_size"]["width"] == how["size"]
        cut = np.stack([pixels_by_pillow(image, how) for image in icons])
        mean, std = (np.array(said[name]).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
        by_numbers = torch.from_numpy((cut * said["rescale_factor"] - mean) / std).float()
        torch.testing.assert_close(by_numbers, model.normalize(torch.from_numpy(cut)), atol=1e-5, rtol=0)


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = model_of("mlp", 2, "masks").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for format, name in (("torch", "a.pt2"), ("hf", "a")):
        dc.export(model, tmp_path / name, format)
        assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class ByBessel(SubspaceHead):
    """A method of one's own, with an operation that ONNX lacks."""

    method = "bessel"

    def full(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(torch.special.bessel_j0(self.linear(features)), dim=1)

    def subspace(self, features: torch.Tensor, learner: int) -> torch.Tensor:
        return self.full(features)

    def subspace_dim(self, learner: int) -> int:
        return self.embedding_dim


class ByMood(ByBessel):
    """One that looks at the values of a batch before it decides."""

    method = "mood"

    def full(self, features: torch.Tensor) -> torch.Tensor:
        embeddings = F.normalize(self.linear(features), dim=1)
        return embeddings if embeddings.sum() > 0 else -embeddings


def test_what_a_format_cannot_express_is_reported(tmp_path: Path) -> None:
    model = model_of("none", 2, "bessel")
    with pytest.raises(ConfigError, match=r"ByBessel: ONNX cannot express it .*bessel_j0.*`format=torch`"):
        dc.export(model, tmp_path / "a.onnx")
    assert dc.export(model, tmp_path / "a.pt2", "torch").difference <= 1e-4
    done = dc.export(model, tmp_path / "a", "hf")
    assert f"trust=[{__name__!r}])" in (done.path / "README.md").read_text()
    model = model_of("none", 2, "mood")
    for format, name in (("torch", "b.pt2"), ("onnx", "b.onnx")):
        with pytest.raises(ConfigError, match=r"ByMood: torch.export cannot trace it .*`format=hf`"):
            dc.export(model, tmp_path / name, format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.pt2"]


@pytest.mark.parametrize(("format", "name"), [("onnx", "a.onnx"), ("torch", "a.pt2"), ("hf", "a")])
def test_another_models_embeddings_are_refused_and_nothing_is_written(
    format: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = model_of("none", 1, "single"), model_of("none", 1, "single")
    with torch.no_grad():
        other.head.linear.bias[3] += 1e-3
    if format == "hf":
        other.save(tmp_path / "other")
        load = dc.EmbeddingModel.load
        monkeypatch.setattr(dc.EmbeddingModel, "load", lambda folder, **options: load(tmp_path / "other"))
    else:
        room = sys.modules[{"onnx": "divcon.exports.onnx", "torch": "divcon.exports.program"}[format]]
        trace = vars(room)["trace"]
        monkeypatch.setattr(room, "trace", lambda model, learner: trace(other, learner))
    with pytest.raises(OutputError, match=r"differ from the model's by .* at a batch of 1, and 0.0001 is allowed"):
        dc.export(model, tmp_path / name, format)
    assert [path.name for path in tmp_path.iterdir()] == (["other"] if format == "hf" else [])


def test_weights_that_one_onnx_file_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divcon.exports.onnx.LARGEST", 500)
    with pytest.raises(ConfigError, match=r"its weights take .* GiB, .* `format=torch`"):
        dc.export(model_of("none", 1, "single"), tmp_path / "a.onnx")  # 130 numbers of four bytes
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_reported(tmp_path: Path) -> None:
    model = model_of("none", 2, "slices")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "a.onnx").touch()
    (tmp_path / "a.json").write_text('{"recall_at_1": 0.5}')
    wrong: list[tuple[str, str, dict[str, Any], str]] = [
        ("a.onnx", "onnx", {}, "exists already"),
        ("full", "hf", {}, "exists already"),
        ("full/file", "hf", {}, "exists already"),
        ("b.pt2", "onnx", {}, r"ends in \.onnx"),
        ("b.onnx", "torch", {}, r"ends in \.pt2"),
        ("b", "torch", {}, r"ends in \.pt2"),
        ("b.onnx", "hf", {}, "format hf is a folder"),
        ("b.onnx", "onx", {}, "unknown format 'onx'; did you mean 'onnx'"),
        ("b.pt2", "torch", {"learner": 2}, "the model has learners 0 to 1"),
        ("b.pt2", "torch", {"learner": -1}, "the model has learners 0 to 1"),
        ("b.pt2", "torch", {"scores": tmp_path / "a.json"}, "torch has no card"),
        ("b", "hf", {"scores": tmp_path / "a.json"}, "holds no benchmark and no protocol"),
        ("b", "hf", {"scores": tmp_path / "b.json"}, "cannot be read"),
        ("full/file/b", "hf", {}, "cannot be written"),
        ("full/file/b.pt2", "torch", {}, "cannot be written"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for name, format, more, said in wrong:
        with pytest.raises((ConfigError, OutputError, DataError), match=said):
            dc.export(model, tmp_path / name, format, **more)  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_a_missing_extra_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    model = model_of("none", 2, "slices")
    with pytest.raises(ConfigError, match=r'pip install "divcon\[export\]"'):
        dc.export(model, tmp_path / "a.onnx")
    dc.export(model, tmp_path / "a.pt2", "torch")


def test_where_a_backbones_weights_come_from(tiny_model: Make) -> None:
    model = tiny_model()

    def origin_text(backbone: str = "resnet50.tv_in1k", record: dict[str, Any] | None = None, **settings: Any) -> str:
        model.config["backbone"] = backbone
        origin = backbone_origin(model, (RunConfig(ModelConfig(backbone=backbone, **settings)), record or {}))
        assert (origin.hub_id is None) == bool(record or settings or backbone == "resnet9000")
        return origin.text

    assert origin_text().startswith("bsd-3-clause, as timm ")
    assert "of `resnet50.tv_in1k`" in origin_text()
    assert origin_text("vit_small_patch14_dinov2.lvd142m").startswith("apache-2.0, as timm ")
    assert origin_text("vit_base_patch16_224.mae").startswith("cc-by-nc-4.0, as timm ")
    assert "vit_small_patch14_dinov2.lvd142m" in origin_text("vit_small_patch14_dinov2")
    assert origin_text(pretrained=False) == "none: training started from random weights"
    assert "TO FILL IN" in origin_text(weights=Path("far/away/mine.safetensors"))
    assert "far" not in origin_text(weights=Path("far/away/mine.safetensors"))
    assert "TO FILL IN:** training started from another model" in origin_text(record={"init": "runs/other"})
    assert "TO FILL IN" in origin_text("resnet9000")
    assert "TO FILL IN" in backbone_origin(model, None).text
    model.freeze_batch_norm = True
    assert "if training started from those" in backbone_origin(model, None).text
    assert "which model computed the vectors" in backbone_origin(model_of("none", 1, "single"), None).text
