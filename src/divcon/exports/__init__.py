"""A trained model for other programs: ONNX, PyTorch alone, or a folder as Hugging Face has them.

``divcon.export(...)`` is the function `export`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from divcon.errors import ConfigError, OutputError, unknown
from divcon.exports.hugging_face import write_folder
from divcon.exports.onnx import require_onnx, write_onnx
from divcon.exports.program import about_model, write_program
from divcon.models import EmbeddingModel

__all__ = ["Exported", "Format", "check_export", "export"]

Format = Literal["onnx", "torch", "hf"]

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the model."""

    format: Format
    path: Path
    about: dict[str, Any]
    """What the files say of themselves; see `divcon.exports.program.about_model`."""
    checked_with: str
    """What was run to compare: ``ONNX Runtime 1.32.0``, say."""
    difference: float
    """The largest between an entry of an embedding and the model's own, over batches of 1 and 7."""
    to_fill_in: int
    """Places in the model card that are left to be filled in; 0 of formats without one."""


def export(
    model: EmbeddingModel,
    out: str | Path,
    format: Format = "onnx",
    *,
    learner: int | None = None,
    run: str | Path | None = None,
    scores: str | Path | None = None,
) -> Exported:
    """Write a model so that other programs can use it. What is written is read again and compared with the model, at
    batches of 1 and 7, before it is put in its place.

    Args:
        model: as it is now; it is not changed.
        out: a file that ends in ``.onnx`` or ``.pt2``, or of ``hf`` a folder; not there yet.
        format: ``onnx``: one file for ONNX Runtime and others. It takes ``images``, (N, 3, H, W) uint8 RGB pixels,
            resized and cropped but not normalised (that is in the file), or ``vectors``, (N, F0) float32, and gives
            ``embeddings``, (N, D) float32 of length one; N is free. ``torch``: the same as a program of `torch.export`,
            which PyTorch runs without divcon. ``hf``: ``model.safetensors``, ``config.json``,
            ``preprocessor_config.json`` (of images) and a model card, which `EmbeddingModel.load` reads.
        learner: k for its subspace alone, (N, d_k).
        run: the run's or model's folder that the model is of: what it was trained on is then written down too.
        scores: of ``hf``, what ``divcon evaluate --json`` wrote, for the card.

    Raises:
        ConfigError: ``out`` does not fit the format, there is no such learner, the model cannot be expressed in the
            format (the message says what cannot), or an extra is missing.
        OutputError: ``out`` is there already, or cannot be written; or what was written does not give the model's
            embeddings.
        DataError: the scores cannot be read.
        RunError: the run's folder is damaged.
    """
    out = Path(out)
    check_export(out, format, scores)
    if learner is not None and not 0 <= learner < model.num_learners:
        raise ConfigError(f"--learner {learner}: the model has learners 0 to {model.num_learners - 1}")
    model = copy.deepcopy(model).cpu().eval()
    about = about_model(model, learner, run)
    if format == "hf":
        difference, to_fill_in = write_folder(model, out, about, learner, run, scores)
        return Exported(format, out, about, "EmbeddingModel.load", difference, to_fill_in)
    write: Callable[..., tuple[str, float]] = write_onnx if format == "onnx" else write_program
    return Exported(format, out, about, *write(model, out, about, learner), 0)


def check_export(out: Path, format: Format, scores: str | Path | None = None) -> None:
    """Find out before a model is read.

    Raises:
        ConfigError, OutputError: as `export`.
    """
    if format not in get_args(Format):
        raise ConfigError(f"--format: {unknown('format', format, get_args(Format))}")
    if format == "hf":
        if out.suffix in ENDINGS.values():
            raise ConfigError(f"--out {out}: format hf is a folder; give a name without {out.suffix}, or --format")
    elif out.suffix != ENDINGS[format]:
        raise ConfigError(
            f"--out {out}: format {format} is one file; give a name that ends in {ENDINGS[format]}, or another --format"
        )
    if scores is not None and format != "hf":
        raise ConfigError(f"--scores {scores}: are written into the model card of --format hf; {format} has none")
    if out.exists() and (format != "hf" or not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"--out {out}: is there already; give another name")
    if format == "onnx":
        require_onnx()
