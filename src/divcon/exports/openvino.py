"""Export to OpenVINO: ``.xml`` and ``.bin``, converted from ONNX and run by OpenVINO before they get their names."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divcon.errors import OutputError
from divcon.exports.onnx import converted
from divcon.exports.precision import Data, Precision, checked
from divcon.exports.program import KEY
from divcon.models import EmbeddingModel


def write_openvino(
    model: EmbeddingModel,
    out: Path,
    about: dict[str, Any],
    learner: int | None,
    precision: Precision = "fp32",
    data: Data | None = None,
) -> tuple[str, float, dict[str, Any] | None]:
    """
    Args:
        precision: int8 takes scales from ``data``, as ONNX Runtime does.

    Returns:
        As `divcon.exports.onnx.write_onnx`.

    Raises:
        ConfigError, OutputError: as `divcon.exports.export`.
    """
    import openvino

    content = converted(model, learner, about, "int8" if precision == "int8" else "fp32", data)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
            onnx, new = Path(folder, "model.onnx"), Path(folder, out.name)
            onnx.write_bytes(content)
            program = openvino.convert_model(onnx)
            program.set_rt_info(json.dumps(about), KEY)
            openvino.save_model(program, new, compress_to_fp16=precision == "fp16")
            # On the CPU it would choose 16 bits by itself where it can.
            hint = {} if precision == "int8" else {"INFERENCE_PRECISION_HINT": "f32"}
            run = openvino.Core().compile_model(new, "CPU", hint)

            def embed(images: Tensor) -> Tensor:
                return torch.from_numpy(run({about["input"]["name"]: images.numpy()})[0].copy())

            difference, scores = checked(model, learner, embed, out, precision, data)
            for suffix in (".bin", ".xml"):
                new.with_suffix(suffix).replace(out.with_suffix(suffix))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return f"OpenVINO {openvino.__version__.split('-')[0]}", difference, scores
