"""One ONNX file, run by ONNX Runtime before it is kept."""

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

from divcon.errors import ConfigError
from divcon.exports.program import KEY, check_equal, example, first_line, named, trace
from divcon.models import EmbeddingModel
from divcon.runtime.files import atomic_write

LARGEST = 2**31 - 2**20
"""Bytes of weights that one file can hold: protobuf counts to 2 GiB, and the graph needs some."""


def require_onnx() -> None:
    """
    Raises:
        ConfigError: what writes and runs ONNX is not installed.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'format onnx is written with onnxscript and run by onnxruntime ({error}): pip install "divcon[export]"'
        ) from None


def write_onnx(model: EmbeddingModel, out: Path, about: dict[str, Any], learner: int | None) -> tuple[str, float]:
    """
    Returns:
        What ran it, and the largest difference from the model's embeddings.

    Raises:
        ConfigError, OutputError: as `divcon.exports.export`.
    """
    import onnxruntime

    size = sum(value.nbytes for value in model.state_dict().values())
    if size > LARGEST:
        raise ConfigError(
            f"{named(model)}: its weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2; take "
            "--format torch"
        )
    converted = _converted(model, learner, about)
    with atomic_write(out) as beside:
        beside.write_bytes(converted)
        session = onnxruntime.InferenceSession(str(beside), providers=["CPUExecutionProvider"])

        def embed(seen: Tensor) -> Tensor:
            (found,) = session.run(None, {about["input"]["name"]: seen.numpy()})
            return torch.from_numpy(found)

        difference = check_equal(model, learner, embed, out)
    return f"ONNX Runtime {onnxruntime.__version__}", difference


def _converted(model: EmbeddingModel, learner: int | None, about: dict[str, Any]) -> bytes:
    program = trace(_in_plain_steps(model), learner)
    try:
        # It prints what it does.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                (example(model, 2),),
                input_names=[about["input"]["name"]],
                output_names=[about["output"]["name"]],
                dynamic_shapes=({0: "batch"},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # what fails inside of a conversion is of any kind
        raise ConfigError(f"{named(model)}: ONNX cannot express it ({_lacking(error)}); try --format torch") from error
    assert made is not None
    made.model.metadata_props[KEY] = json.dumps(about)
    return made.model_proto.SerializeToString()


def _in_plain_steps(model: EmbeddingModel) -> EmbeddingModel:
    """The model with attention in steps, by timm's own switch: in ONNX it is in steps in any case, and PyTorch's one
    operation for all of them is not taken apart in every backbone (in MaxViT and Hiera not)."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    return plain


def _lacking(error: BaseException | None) -> str:
    """The operation that there is no ONNX for, or else what the innermost error says."""
    last: BaseException | None = error
    while error is not None:
        if found := re.search(r"No ONNX function found for .*?'([\w.:]+)'", str(error)):
            return f"there is no ONNX for {found[1]}"
        last, error = error, error.__cause__ or error.__context__
    assert last is not None
    return first_line(last)
