"""Export at a lower precision: ONNX with 16-bit floats or 8-bit integers, and what it costs on the run's own images."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError, OutputError, first_line
from divcon.evaluation.retrieval import retrieval_metrics
from divcon.evaluation.subspaces import sample_of
from divcon.exports.program import Embedder, check_equal, example
from divcon.models import EmbeddingModel
from divcon.models.batches import input_batches
from divcon.runtime.context import DEFAULT, Context

Precision = Literal["fp32", "fp16", "int8"]

CALIBRATION, COMPARED = 256, 2000
"""Training images whose activations set the scales of int8, and images that are compared, each at most."""
_BATCH = 16
_LEAST = {"fp16": 0.99, "int8": 0.5}
"""The lowest mean cosine of an embedding to the original's, below which nothing is written."""
_QUANTIZED = ["Conv", "MatMul", "Gemm"]
"""The operations whose weights and inputs become integers: they are nearly all of the work. Pooling, and the division
by an embedding's length, stay floats."""


@dataclass(frozen=True)
class Data:
    """The data of a model's run, of which some images calibrate, and others are compared."""

    calibration: LabeledSet
    """Training images."""
    compared: LabeledSet
    """Images of test classes, or else of validation or training classes."""
    split: str
    """Which of these."""

    @classmethod
    def of(cls, benchmark: Benchmark) -> Data:
        """Of a benchmark."""
        sets = {"test": benchmark.gallery, "validation": benchmark.validation, "train": benchmark.train}
        for split, images in sets.items():
            if images is not None and len(compared := sample_of(images, COMPARED)):
                return cls(_some(benchmark.train if len(benchmark.train) else images), compared, split)
        raise DataError(f"{benchmark.name}: no class has two images to compare")


def _some(images: LabeledSet) -> LabeledSet:
    rows = np.random.default_rng(0).permutation(len(images))[:CALIBRATION]
    return images.subset(np.sort(rows))


def as_fp16(model: Any) -> Any:
    """An ONNX model (`onnx.ModelProto`) with weights and arithmetic in 16-bit floats; inputs and outputs stay as they
    are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


def as_int8(content: bytes, batches: Iterator[np.ndarray], name: str) -> bytes:
    """An ONNX model whose convolutions and matrix products are of 8-bit integers; scales are those of the batches.

    Args:
        content: of the model.
        batches: inputs of it.
        name: of its input.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            batch = next(batches, None)
            return None if batch is None else {name: batch}

    with tempfile.TemporaryDirectory(prefix="divcon-") as folder, redirect_stdout(io.StringIO()):
        first, prepared, last = (Path(folder, f"{stage}.onnx") for stage in ("first", "prepared", "last"))
        first.write_bytes(content)
        try:
            quant_pre_process(first, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                last,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                op_types_to_quantize=_QUANTIZED,
                nodes_to_exclude=_kept_as_floats(prepared),
            )
        except Exception as error:  # of any kind, by the model's operations
            raise ConfigError(
                f"`precision` int8: ONNX Runtime cannot quantise this model ({first_line(error)}); use fp16",
                field="precision",
            ) from error
        return last.read_bytes()


def _kept_as_floats(model: Path) -> list[str]:
    """The first convolution and those by groups: few weights, whose values differ too much for one scale. With them, an
    EfficientNet-Lite0 had a mean cosine of 0.82 to the original; without, 0.99 (280 photographs of 64 pixels)."""
    import onnx

    convolutions = [node for node in onnx.load(str(model)).graph.node if node.op_type == "Conv"]
    grouped = [node for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    return [node.name for node in (*convolutions[:1], *grouped)]


def pixel_batches(model: EmbeddingModel, images: LabeledSet, context: Context = DEFAULT) -> Iterator[np.ndarray]:
    """The inputs of an exported model, batch by batch: (n, C, H, W) uint8 or (n, F0) float32."""
    transform = model.eval_transform if model.vector_dim is None else None
    for inputs, _ in input_batches(images, transform, batch_size=_BATCH, context=context, pin_memory=False):
        yield inputs.numpy()


@torch.no_grad()
def compare(
    model: EmbeddingModel,
    learner: int | None,
    embed: Callable[[Tensor], Tensor],
    data: Data | None,
    context: Context = DEFAULT,
) -> dict[str, Any]:
    """What a precision costs: ``similarity`` (the mean cosine of an embedding and the original's),
    ``lowest_similarity``, ``recall_at_1`` and ``original_recall_at_1`` among the compared images (leave-one-out), their
    number ``images`` and ``split``. Without data, the similarity on synthetic images alone."""
    expected_of = Embedder(model, learner)
    expected, actual = [], []
    inputs = (pixel_batches(model, data.compared, context)) if data is not None else iter([example(model, 32).numpy()])
    for batch in inputs:
        batch = torch.from_numpy(batch)
        expected.append(expected_of(batch).float().numpy())
        actual.append(embed(batch).float().numpy())
    one, other = np.concatenate(expected), np.concatenate(actual)
    other = other / np.maximum(np.linalg.norm(other, axis=1, keepdims=True), 1e-12)
    cosines = (one * other).sum(axis=1)
    result: dict[str, Any] = {
        "similarity": float(cosines.mean()),
        "lowest_similarity": float(cosines.min()),
        "images": len(one),
        "split": "synthetic" if data is None else data.split,
    }
    if data is not None:
        for name, embeddings in (("recall_at_1", other), ("original_recall_at_1", one)):
            scores = retrieval_metrics(embeddings, data.compared.labels, recall_at=(1,))
            result[name] = float(scores["recall_at_1"])
    return result


def checked(
    model: EmbeddingModel,
    learner: int | None,
    embed: Callable[[Tensor], Tensor],
    out: object,
    precision: Precision,
    data: Data | None,
) -> tuple[float, dict[str, Any] | None]:
    """The largest difference of an exported model's embeddings from the model's, and at a lower precision what
    `compare` says of it.

    Args:
        embed: by the exported model.
        out: the file, for messages.
        data: see `compare`.

    Raises:
        OutputError: the embeddings are not those of the model, or, at a lower precision, hardly.
    """
    if precision == "fp32":
        return check_equal(model, learner, embed, out), None
    difference = check_equal(model, learner, embed, out, tolerance=None)
    scores = compare(model, learner, embed, data)
    check(scores, precision, out)
    return difference, scores


def check(scores: Mapping[str, Any], precision: Precision, out: object) -> None:
    """
    Raises:
        OutputError: the embeddings are hardly those of the original.
    """
    if not scores["similarity"] >= _LEAST.get(precision, 0.999):  # NaN, too
        raise OutputError(
            f"{out}: in {precision} the embeddings have a mean cosine of {scores['similarity']:.3f} to the original's; "
            "nothing was written"
        )


def in_words(scores: Mapping[str, Any]) -> str:
    """What a precision costs, for a person."""
    of = f"{scores['images']:,} {scores['split']} images"
    mean, lowest = scores["similarity"], scores["lowest_similarity"]
    text = f"{of}: cosine to the original {mean:.4f} on average, {lowest:.4f} at least"
    if "recall_at_1" in scores:
        now, then = 100 * scores["recall_at_1"], 100 * scores["original_recall_at_1"]
        text += f"; Recall@1 {now:.1f}, original {then:.1f}"
    return text
