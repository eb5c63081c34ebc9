"""Export to one ONNX file, checked with ONNX Runtime."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divcon.errors import ConfigError, first_line
from divcon.exports.precision import Data, Precision, as_fp16, as_int8, checked, pixel_batches
from divcon.exports.program import KEY, example, named, trace
from divcon.models import EmbeddingModel
from divcon.runtime.files import atomic_write

LARGEST = 2**31 - 2**20
"""Bytes of weights that one file can hold: protobuf ends at 2 GiB, and the graph needs some of it."""


def write_onnx(
    model: EmbeddingModel,
    out: Path,
    about: dict[str, Any],
    learner: int | None,
    precision: Precision = "fp32",
    data: Data | None = None,
) -> tuple[str, float, dict[str, Any] | None]:
    """
    Args:
        precision, data: see `divcon.exports.export`; int8 needs data.

    Returns:
        The program that ran the file, the largest difference from the model's embeddings, and at a lower precision
        what `divcon.exports.precision.compare` says of it.

    Raises:
        ConfigError, OutputError: as `divcon.exports.export`.
    """
    import onnxruntime

    content = converted(model, learner, about, precision, data)
    with atomic_write(out) as beside:
        beside.write_bytes(content)
        session = onnxruntime.InferenceSession(str(beside), providers=["CPUExecutionProvider"])

        def embed(images: Tensor) -> Tensor:
            (embeddings,) = session.run(None, {about["input"]["name"]: images.numpy()})
            return torch.from_numpy(embeddings)

        difference, scores = checked(model, learner, embed, out, precision, data)
        if scores is not None:
            beside.write_bytes(_with_about(content, {**about, "precision": precision, "compared": scores}))
    return f"ONNX Runtime {onnxruntime.__version__}", difference, scores


def converted(
    model: EmbeddingModel, learner: int | None, about: dict[str, Any], precision: Precision, data: Data | None
) -> bytes:
    """The content of an ONNX file.

    Raises:
        ConfigError: as `divcon.exports.export`.
    """
    size = sum(value.nbytes for value in model.state_dict().values())
    if size > LARGEST:
        raise ConfigError(
            f"{named(model)}: its weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2; use "
            "`format=torch`",
            field="format",
        )
    content = _converted(model, learner, about)
    if precision == "fp16":
        import onnx

        return as_fp16(onnx.load_from_string(content)).SerializeToString()
    if precision == "int8":
        assert data is not None, "checked before"
        batches = pixel_batches(model, data.calibration)
        return _with_about(as_int8(content, batches, about["input"]["name"]), about)
    return content


def _with_about(content: bytes, about: dict[str, Any]) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, {KEY: json.dumps(about)})
    return model.SerializeToString()


def _converted(model: EmbeddingModel, learner: int | None, about: dict[str, Any]) -> bytes:
    program = trace(_in_plain_steps(model), learner)
    try:
        # The exporter prints its progress.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                (example(model, 2),),
                input_names=[about["input"]["name"]],
                output_names=[about["output"]["name"]],
                dynamic_shapes=({0: "batch"},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # a conversion fails with any kind of error
        raise ConfigError(
            f"{named(model)}: ONNX cannot express it ({_reason(error)}); try `format=torch`", field="format"
        ) from error
    assert exported is not None
    exported.model.metadata_props[KEY] = json.dumps(about)
    return exported.model_proto.SerializeToString()


def _in_plain_steps(model: EmbeddingModel) -> EmbeddingModel:
    """A copy of the model with attention in single steps, by timm's own switch. ONNX has only those, and the exporter
    does not take PyTorch's fused attention apart in every backbone (not in MaxViT and Hiera)."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    return plain


def _reason(error: BaseException | None) -> str:
    """The operation that ONNX lacks, or else the message of the innermost error."""
    last: BaseException | None = error
    while error is not None:
        if match := re.search(r"No ONNX function found for .*?'([\w.:]+)'", str(error)):
            return f"there is no ONNX for {match[1]}"
        last, error = error, error.__cause__ or error.__context__
    assert last is not None
    return first_line(last)
