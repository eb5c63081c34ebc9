"""Export: a trained model for other programs, as ONNX, for OpenVINO, as a program of PyTorch alone, or as a Hugging
Face folder; and its embeddings for FAISS, FiftyOne and embedding-atlas (`divcon.exports.items`).

The package is called ``exports`` because ``divcon.export`` is the function: a package of that name would replace it.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from divcon.errors import ConfigError, OutputError, RunError, unknown
from divcon.evaluation.compare import read_scores
from divcon.models.names import check_learner
from divcon.runtime import hub
from divcon.runtime.copies import here
from divcon.runtime.places import place

if TYPE_CHECKING:
    from divcon.data.benchmark import Benchmark
    from divcon.exports.precision import Data
    from divcon.models import EmbeddingModel

__all__ = ["Exported", "Format", "Push", "check_export", "export"]

Format = Literal["onnx", "torch", "hf", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]

ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}


@dataclass(frozen=True)
class Exported:
    """The result of `export`: the written file, and how closely it matches the model."""

    format: Format
    path: Path
    about: dict[str, Any]
    """The description of the model in the file; see `divcon.exports.program.about_model`."""
    checked_with: str
    """The program that ran it for the comparison: ``ONNX Runtime 1.32.0``, say."""
    difference: float
    """The largest difference between a value of an embedding and the model's own, over batches of 1 and 7."""
    to_fill_in: int
    """Number of places in the model card that are left to fill in; 0 for formats without one."""
    precision: Precision = "fp32"
    scores: dict[str, Any] | None = None
    """At a lower precision: the ``similarity`` to the original, and Recall@1 beside the original's (see
    `divcon.exports.precision.compare`)."""
    pushed: str | None = None
    """The address of the commit on the Hugging Face Hub, where it was pushed."""


@dataclass(frozen=True)
class Push:
    """The repository on the Hugging Face Hub that an export is pushed to, in one commit."""

    repo_id: str
    """``USER/MODEL``; it is created if it is not there."""
    private: bool | None = None
    """Of a repository that is created; None: as the account creates them."""
    revision: str | None = None
    """The branch, created if it is not there; None: the main branch."""
    message: str | None = None
    """Of the commit."""
    token: str | bool | None = None
    """Of the account; None: that of HF_TOKEN or of ``hf auth login``."""
    keep_card: bool = False
    """Whether to leave the model card that the repository has."""


def export(
    model: EmbeddingModel | str | Path,
    out: str | Path | None = None,
    format: Format | None = None,
    *,
    learner: int | None = None,
    run: str | Path | None = None,
    scores: str | Path | None = None,
    precision: Precision = "fp32",
    data: Benchmark | None = None,
    push: str | Push | None = None,
) -> Exported:
    """Write a model so that other programs can use it.

    The file is read again and compared with the model, at batches of 1 and 7, before it gets its name.

    Args:
        model: a model, or the folder of a run or model; it is not changed.
        out: a new file that ends in ``.onnx``, ``.pt2`` or ``.xml``, or for ``hf`` a new or empty folder; None with
            ``push``: it is pushed alone.
        format: None: ``onnx``, or ``hf`` with ``push``. ``onnx``: one file for ONNX Runtime and others. Its input is
            ``images``, (N, 3, H, W) uint8 RGB pixels, resized and cropped but not normalised (the file does that), or
            ``vectors``, (N, F0) float32; its output ``embeddings``, (N, D) float32 of length one, for any N. ``torch``:
            the same as a program of `torch.export`, which PyTorch runs without divcon. ``openvino``: the same for
            OpenVINO, as ``.xml`` and ``.bin``, with the description in the ``rt_info`` ``divcon``. ``hf``: a folder
            with ``model.safetensors``, ``config.json``, ``preprocessor_config.json`` (for images) and a model card, for
            `EmbeddingModel.from_pretrained`; of images of colours, also what sentence-transformers and transformers
            read.
        learner: k for its subspace alone, (N, d_k).
        run: the folder of the model's run, or of the model: the export then names the data that it was trained on.
        scores: for ``hf``, the JSON of ``divcon evaluate --json``, for the card; None: those that the run has of its
            own test classes, if it was evaluated.
        precision: of ``onnx`` and ``openvino``: ``fp32``; ``fp16``, weights (for ONNX arithmetic too) in 16-bit floats;
            ``int8``, convolutions and matrix products in 8-bit integers, with the scales of 256 training images. The
            two are compared with the model on up to 2,000 images: `Exported.scores`.
        data: the benchmark whose images are used for that; None: the run's own. Without either, ``fp16`` is compared on
            synthetic images.
        push: for ``hf``, the repository on the Hugging Face Hub to push the folder to, ``USER/MODEL`` or a `Push`.

    Raises:
        ConfigError: ``out`` does not fit the format, there is no such learner, the format cannot express the model (the
            message says what it lacks), int8 has no data, or an extra is missing.
        OutputError: ``out`` exists already, or cannot be written; or its embeddings are not the model's.
        DataError: the scores cannot be read.
        RunError: the run's folder is damaged.
        RemoteError: the Hub cannot be reached, or refuses; see `EmbeddingModel.push_to_hub`. ``out`` is written then.
    """
    push = Push(push) if isinstance(push, str) else push
    format = format or ("onnx" if push is None else "hf")
    if out is None and push is not None:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, push.repo_id.rpartition("/")[2] or "model")
            how: dict[str, Any] = {"precision": precision, "data": data, "push": push}
            done = export(model, out, format, learner=learner, run=run, scores=scores, **how)
        return replace(done, path=place(hub.hub_url(push.repo_id, push.revision)))
    if out is None:
        raise ConfigError("`out` is missing: the file or folder to write", field="out")
    out = here(out) if format == "hf" else place(out)
    check_export(out, format, scores, precision, push)  # before PyTorch is imported
    if push is not None:
        hub.check_push(push.repo_id, private=push.private, token=push.token, field="push")
    from divcon.exports.hugging_face import write_folder
    from divcon.exports.onnx import write_onnx
    from divcon.exports.program import about_model, write_program
    from divcon.models import EmbeddingModel, as_model

    if not isinstance(model, EmbeddingModel):
        run = run or model
    model = as_model(model)
    if learner is not None:
        check_learner(learner, model.num_learners)
    model = copy.deepcopy(model).cpu().eval()
    about = about_model(model, learner, run)
    if format == "hf":
        repo_id = None if push is None else push.repo_id
        difference, to_fill_in = write_folder(model, out, about, learner, run, scores, repo_id)
        pushed = None if push is None else _pushed(out, push)
        return Exported(format, out, about, "EmbeddingModel.load", difference, to_fill_in, pushed=pushed)
    if format == "torch":
        return Exported(format, out, about, *write_program(model, out, about, learner), 0)
    from divcon.exports.openvino import write_openvino

    images = None if precision == "fp32" else _data_of(data, run, precision)
    write: Callable[..., Any] = write_onnx if format == "onnx" else write_openvino
    program, difference, compared = write(model, out, about, learner, precision, images)
    return Exported(format, out, about, program, difference, 0, precision, compared)


def _pushed(folder: Path, push: Push) -> str:
    from divcon.models.pretrained import CARD, FILES

    return hub.push(
        folder,
        push.repo_id,
        private=push.private,
        revision=push.revision,
        message=push.message,
        token=push.token,
        without=[CARD] if push.keep_card else (),
        replaced=FILES,
    )


def _data_of(data: Benchmark | None, run: str | Path | None, precision: Precision) -> Data | None:
    from divcon.exports.precision import Data
    from divcon.runs.folder import own_benchmark

    if data is None and run is not None:
        try:
            data = own_benchmark(run)
        except RunError as error:
            if precision == "int8":
                raise ConfigError(
                    f"`precision` int8: calibrates on training images ({error}); pass them as `data`", field="precision"
                ) from error
    if data is None and precision == "int8":
        raise ConfigError("`precision` int8: calibrates on training images; pass them as `data`", field="precision")
    return None if data is None else Data.of(data)


def check_export(
    out: Path | None,
    format: Format,
    scores: str | Path | None = None,
    precision: Precision = "fp32",
    push: Push | None = None,
) -> None:
    """Check the arguments of `export` before a model is loaded, and before the Hub is asked.

    Raises:
        ConfigError, OutputError: as `export`.
    """
    if format not in get_args(Format):
        raise ConfigError(f"`format`: {unknown('format', format, get_args(Format))}", field="format")
    if push is not None and format != "hf":
        raise ConfigError(
            f"`push` {push.repo_id}: pushes the folder of `format=hf`, and {format} is one file; leave out one of the "
            "two",
            field=("push", "format"),
        )
    if out is None:
        pass
    elif format == "hf":
        if out.suffix in ENDINGS.values():
            raise ConfigError(
                f"`out` {out}: format hf is a folder; choose a name without {out.suffix}, or another `format`",
                field=("out", "format"),
            )
    elif out.suffix != ENDINGS[format]:
        raise ConfigError(
            f"`out` {out}: format {format} is one file; choose a name that ends in {ENDINGS[format]}, or another "
            "`format`",
            field=("out", "format"),
        )
    if precision not in get_args(Precision):
        raise ConfigError(f"`precision`: {unknown('precision', precision, get_args(Precision))}", field="precision")
    if precision != "fp32" and format not in ("onnx", "openvino"):
        raise ConfigError(
            f"`precision` {precision}: is for onnx and openvino; {format} has the model's own weights",
            field=("precision", "format"),
        )
    if scores is not None and format != "hf":
        raise ConfigError(
            f"`scores` {scores}: go into the model card of `format=hf`, and {format} has no card; leave them out",
            field=("scores", "format"),
        )
    if out is not None and out.exists() and (format != "hf" or not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"`out` {out}: exists already; choose another name")
    if format in ("onnx", "openvino"):
        _require(format, "onnxscript", "onnxruntime", *(["openvino"] if format == "openvino" else []))
    if scores is not None:
        read_scores(scores)


def _require(format: str, *packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            extra = "openvino" if name == "openvino" else "export"
            needed = f"{', '.join(packages[:-1])} and {packages[-1]}"
            raise ConfigError(
                f'format {format} needs {needed} (No module named {name!r}): pip install "divcon[{extra}]"',
                field="format",
            )
