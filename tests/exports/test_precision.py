"""Export at 16-bit floats and 8-bit integers, and for OpenVINO: what ONNX Runtime and OpenVINO compute, and what it
costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, OutputError
from divcon.exports import precision as of_precision
from divcon.exports.precision import COMPARED, Data, pixel_batches

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def model() -> dc.EmbeddingModel:
    torch.manual_seed(0)
    return dc.EmbeddingModel(
        "test_resnet", 16, 2, method="slices", pretrained=False, image_size=32, pooling="gem"
    ).eval()


@pytest.fixture
def photos(photos_in: Callable[[Path, int], Path], tmp_path: Path) -> Benchmark:
    """Twelve classes of five real images: some train, some test."""
    return dc.read(photos_in(tmp_path / "photos", 12))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def recall_at_1(embeddings: np.ndarray, labels: np.ndarray) -> float:
    products = embeddings @ embeddings.T
    np.fill_diagonal(products, -2)
    return float((labels[products.argmax(axis=1)] == labels).mean())


@pytest.mark.parametrize(
    ("precision", "element"), [("fp16", onnx.TensorProto.FLOAT16), ("int8", onnx.TensorProto.INT8)]
)
def test_a_lower_precision_is_compared_with_the_original(
    precision: str, element: int, model: dc.EmbeddingModel, photos: Benchmark, folder: Path
) -> None:
    out = folder / "model.onnx"
    done = dc.export(model, out, "onnx", precision=precision, data=photos)  # type: ignore[arg-type]
    assert done.precision == precision
    bytes_of_fp32 = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert out.stat().st_size < (0.7 if precision == "fp16" else 0.5) * bytes_of_fp32
    weights = [tensor for tensor in onnx.load(out).graph.initializer if len(tensor.dims) == 4 and tensor.dims[0] > 1]
    assert weights and {tensor.data_type for tensor in weights} == {element}

    compared = Data.of(photos).compared
    session = onnxruntime.InferenceSession(out)
    batches = np.concatenate(list(pixel_batches(model, compared)))
    (embeddings,) = session.run(None, {"images": batches})
    assert embeddings.dtype == np.float32
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    expected = model.encode(compared)
    scores = done.scores
    assert scores is not None
    cosines = (embeddings * expected).sum(axis=1)
    assert scores["similarity"] == pytest.approx(cosines.mean(), abs=1e-3)
    assert scores["lowest_similarity"] == pytest.approx(cosines.min(), abs=1e-2)
    assert (scores["images"], scores["split"]) == (len(compared), "test")
    assert scores["original_recall_at_1"] == pytest.approx(recall_at_1(expected, compared.labels), abs=1e-6)
    assert scores["recall_at_1"] == pytest.approx(recall_at_1(embeddings, compared.labels), abs=0.11)
    assert scores["similarity"] > (0.9999 if precision == "fp16" else 0.98)
    about = json.loads(session.get_modelmeta().custom_metadata_map["divcon"])
    assert (about["precision"], about["compared"]) == (precision, scores)
    assert about["preprocessing"]["size"] == 32


def test_int8_takes_its_scales_from_training_images(model: dc.EmbeddingModel, photos: Benchmark) -> None:
    data = Data.of(photos)
    assert len(data.compared) <= COMPARED and data.split == "test"
    assert set(data.calibration.rows) <= set(photos.train.rows) and data.calibration.source == photos.train.source
    names = [{images.label_name(i) for i in range(len(images))} for images in (data.compared, data.calibration)]
    assert not names[0] & names[1]


def test_what_a_precision_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dc.EmbeddingModel("none", 10, 2, method="masks", vector_dim=12)
    with pytest.raises(ConfigError, match="calibrates on training images; pass them as `data`"):
        dc.export(model, folder / "a.onnx", precision="int8")
    with pytest.raises(ConfigError, match="is for onnx and openvino; torch has the model's own weights"):
        dc.export(model, folder / "a.pt2", "torch", precision="fp16")
    with pytest.raises(ConfigError, match="'fp16'"):
        dc.export(model, folder / "a.onnx", precision="fp61")  # type: ignore[arg-type]
    done = dc.export(model, folder / "b.onnx", precision="fp16")  # nothing says what it was trained on
    assert done.scores is not None
    assert (done.scores["split"], "recall_at_1" in done.scores) == ("synthetic", False)
    monkeypatch.setitem(of_precision._LEAST, "fp16", 1.1)
    with pytest.raises(OutputError, match=r"in fp16 the embeddings have a mean cosine of 1\.000 to the original's"):
        dc.export(model, folder / "c.onnx", precision="fp16")
    assert [path.name for path in folder.iterdir()] == ["b.onnx"]


def test_openvino_gives_the_models_embeddings(folder: Path) -> None:
    import openvino

    torch.manual_seed(0)
    vectors = dc.EmbeddingModel("mlp", 10, 2, method="masks", vector_dim=12).eval()
    out = folder / "model.xml"
    done = dc.export(vectors, out, "openvino")
    assert done.checked_with.startswith("OpenVINO 20")
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.xml"]
    program = openvino.Core().read_model(out)
    assert json.loads(program.get_rt_info("divcon").value)["output"]["shape"] == ["batch", 10]
    inputs = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    run = openvino.Core().compile_model(program, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(run({"vectors": inputs})[0], vectors.encode(inputs), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_openvino_with_images(precision: str, model: dc.EmbeddingModel, photos: Benchmark, folder: Path) -> None:
    import openvino

    done = dc.export(model, folder / "model.xml", "openvino", precision=precision, data=photos)  # type: ignore[arg-type]
    compared = Data.of(photos).compared
    run = openvino.Core().compile_model(folder / "model.xml", "CPU")
    embeddings = run({"images": np.concatenate(list(pixel_batches(model, compared)))})[0]
    cosines = (embeddings * model.encode(compared)).sum(axis=1) / np.linalg.norm(embeddings, axis=1)
    assert cosines.mean() > (0.98 if precision == "int8" else 0.999)
    assert (done.scores is None) == (precision == "fp32")
    if done.scores is not None:
        assert done.scores["similarity"] == pytest.approx(cosines.mean(), abs=5e-3)
