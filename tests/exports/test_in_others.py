"""An exported folder in sentence-transformers and transformers, the packages themselves: embeddings as divcon's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import divcon as dc
from divcon.data.benchmark import Benchmark

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def model() -> dc.EmbeddingModel:
    torch.manual_seed(0)
    options = {"method": "masks", "image_size": 48, "pooling": "gem", "pretrained": False}
    return dc.EmbeddingModel("test_resnet", 8, 2, **options).eval()


@pytest.fixture(scope="module")
def images(demo: Benchmark) -> list[Image.Image]:
    """Icons of several shapes and modes, one of them with a transparent ground."""
    opened = [demo.query.open(40 * i).resize((64 + 9 * i, 64)) for i in range(5)]
    return [*opened, opened[0].convert("L"), opened[1].convert("RGBA")]


@pytest.fixture(scope="module")
def folder(model: dc.EmbeddingModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in-others") / "icons"
    done = dc.export(model, folder, "hf")
    assert done.difference <= 1e-4
    return folder


def test_sentence_transformers(
    model: dc.EmbeddingModel, images: list[Image.Image], folder: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    expected = model.encode(images)
    loaded = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    embeddings = loaded.encode(images, batch_size=3)
    assert embeddings.shape == (7, 8)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(loaded.encode(images[0]), expected[0], atol=1e-5)  # one alone
    images[2].save(tmp_path / "a.png")
    np.testing.assert_allclose(
        loaded.encode([str(tmp_path / "a.png"), str(tmp_path / "a.png")]), expected[[2, 2]], atol=1e-5
    )
    np.testing.assert_allclose(loaded.similarity(embeddings, embeddings), expected @ expected.T, atol=1e-5)
    assert loaded.get_embedding_dimension() == 8
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(folder), device="cpu")
    with pytest.raises(ValueError, match="not supported"):
        loaded.encode("a text")
    loaded.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(again.encode(images), embeddings, atol=1e-5)
    np.testing.assert_array_equal(dc.EmbeddingModel.from_pretrained(tmp_path / "again").encode(images), expected)


def test_transformers(
    model: dc.EmbeddingModel, images: list[Image.Image], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoImageProcessor, AutoModel, pipeline
    from transformers import dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    expected = model.encode(images)
    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True)
    np.testing.assert_array_equal(loaded.encode(images), expected)
    processor = AutoImageProcessor.from_pretrained(folder)
    colours = [image.convert("RGB") for image in images[:6]]
    inputs = processor(colours, return_tensors="pt")
    with torch.no_grad():
        output = loaded(**inputs)
    assert output.pooler_output.shape == (6, 8)
    assert output.last_hidden_state.shape == (6, 1, model.num_features)
    # The processor is transformers' own, which may round and crop a little otherwise.
    assert (output.pooler_output.numpy() * expected[:6]).sum(axis=1).min() > 0.995
    with torch.no_grad():
        pixels = torch.stack([torch.as_tensor(np.asarray(model.eval_transform(image))) for image in colours])
        exact = loaded(model.normalize(pixels))
    np.testing.assert_allclose(exact.pooler_output, expected[:6], atol=1e-5)
    extract = pipeline("image-feature-extraction", model=str(folder), trust_remote_code=True, device="cpu")
    (of_one,) = extract(colours[0], pool=True)
    np.testing.assert_allclose(of_one, output.pooler_output[0], atol=1e-4)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True, dtype="bfloat16")
    assert next(again.parameters()).dtype == torch.bfloat16


def test_only_what_others_can_use_is_written_for_them(tmp_path: Path) -> None:
    for name, options in (("vectors", {"vector_dim": 6}), ("grey", {"channels": 1, "image_size": 32})):
        backbone = "none" if name == "vectors" else "test_resnet"
        dc.export(dc.EmbeddingModel(backbone, 4, pretrained=False, **options), tmp_path / name, "hf")
        assert {path.name for path in (tmp_path / name).iterdir()} == {"README.md", "config.json", "model.safetensors"}
        assert "model_type" not in json.loads((tmp_path / name / "config.json").read_text())
        assert "sentence" not in (tmp_path / name / "README.md").read_text()
