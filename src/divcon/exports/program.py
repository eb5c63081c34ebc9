"""Export to a program of `torch.export`; and for all formats, the check and the description of the model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

import divcon
from divcon.config.image_size import height_width
from divcon.errors import ConfigError, OutputError, first_line
from divcon.models import EmbeddingModel
from divcon.models.preprocessing import about_preprocessing
from divcon.runs.folder import RunFolder
from divcon.runtime.files import atomic_write

TOLERANCE = 1e-4
"""The largest allowed difference of a value of an embedding."""

BATCHES = (1, 7)
"""The sizes that are compared: one, since a batch dimension of one is easily lost, and one that was not traced."""


class Embedder(nn.Module):
    """Pixels, (N, 3, H, W) uint8, or vectors, (N, F0) float32, to embeddings."""

    def __init__(self, model: EmbeddingModel, learner: int | None) -> None:
        super().__init__()
        self.model = model
        self._learner = learner

    def forward(self, inputs: Tensor) -> Tensor:
        if self.model.vector_dim is None:
            inputs = self.model.normalize(inputs)
        embeddings = self.model(inputs, self._learner)
        assert isinstance(embeddings, Tensor)
        return embeddings


def example(model: EmbeddingModel, count: int) -> Tensor:
    """Inputs of the model, drawn with a fixed seed: images of large patches of colour with noise, (count, 3, H, W)
    uint8, or vectors, (count, F0) float32."""
    rng = torch.Generator().manual_seed(count)
    if model.vector_dim is not None:
        return torch.randn(count, model.vector_dim, generator=rng)
    patches = torch.rand(count, model.channels, 4, 4, generator=rng)
    images = F.interpolate(patches, size=height_width(model.image_size), mode="bilinear")
    noise = 0.2 * torch.randn(images.shape, generator=rng)
    return ((images + noise).clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def trace(model: EmbeddingModel, learner: int | None) -> ExportedProgram:
    """The model, on the CPU and in evaluation mode, as a program for batches of any size.

    Raises:
        ConfigError: `torch.export` cannot trace it, or only for one size of batch.
    """
    try:
        return torch.export.export(
            Embedder(model, learner), (example(model, 2),), dynamic_shapes=({0: Dim("batch", min=1)},)
        )
    except Exception as error:  # a backbone may fail with any kind of error
        raise ConfigError(
            f"{named(model)}: torch.export cannot trace it for batches of any size ({first_line(error)}); try "
            "`format=hf`",
            field="format",
        ) from error


@torch.no_grad()
def check_equal(
    model: EmbeddingModel,
    learner: int | None,
    embed: Callable[[Tensor], Tensor],
    written: object,
    tolerance: float | None = TOLERANCE,
) -> float:
    """The largest difference between a value of the embeddings by ``embed`` and of the model's.

    Args:
        tolerance: the largest that is allowed; None: any, where a lower precision is compared in another way.

    Raises:
        OutputError: it is above the tolerance, or the shapes differ.
    """
    largest = 0.0
    expected_of = Embedder(model, learner)
    for count in BATCHES:
        inputs = example(model, count)
        expected, actual = expected_of(inputs), embed(inputs)
        if actual.shape != expected.shape:
            raise OutputError(
                f"{written}: its output for a batch of {count} has shape {tuple(actual.shape)}; nothing was written"
            )
        difference = (actual - expected).abs().max().item()
        if not difference <= (float("inf") if tolerance is None else tolerance):  # NaN, too
            raise OutputError(
                f"{written}: its embeddings differ from the model's by {difference:.2g} at a batch of {count}, and "
                f"{tolerance or 0:g} is allowed; nothing was written"
            )
        largest = max(largest, difference)
    return largest


def named(model: EmbeddingModel) -> str:
    """The model, for messages."""
    return f"backbone {model.config['backbone']} with method {model.config['method']}"


KEY = "divcon"
"""The key in an ONNX file's metadata under which `about_model` stands as JSON; in a ``.pt2`` the extra file
``divcon.json``."""


def about_model(model: EmbeddingModel, learner: int | None, run: str | Path | None) -> dict[str, Any]:
    """A description of the model for the exported file, of plain values: ``divcon`` (the version), ``model`` (its
    `EmbeddingModel.config`), ``learner``, ``input`` and ``output`` (name, dtype, shape), ``preprocessing`` (None for
    vectors), and the ``benchmark``, ``protocol`` and ``split_hash`` of its run (None without a run).

    ``preprocessing``: how an image comes into ``size``, pixels of height and width both, or [height, width]; an image
    of exactly that size is used as it is. ``fit`` crop: it is resized in its own shape until it just covers ``resize``
    (where ``size`` is one number: until its shorter side is ``resize``), and its middle cropped; squash: it is resized
    to exactly ``size``; pad: it is resized in its own shape to fit within ``size``, in the middle of a border of the
    colour ``fill``. ``pixel_range``, where it is there: the values that become 0 and 255 of images with more than 8
    bits a channel, or own, the lowest and the highest of each image. ``mean`` and ``std`` are of each channel, on a
    scale of 0 to 1.
    """
    origin = None if run is None else RunFolder(run).origin()
    record = origin[1] if origin else {}
    width = model.embedding_dim if learner is None else model.head.subspace_dim(learner)
    inputs: dict[str, Any]
    if model.vector_dim is None:
        inputs = {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", model.channels, *height_width(model.image_size)],
        }
    else:
        inputs = {"name": "vectors", "dtype": "float32", "shape": ["batch", model.vector_dim]}
    return {
        "divcon": divcon.__version__,
        "model": model.config,
        "learner": learner,
        "input": inputs,
        "output": {"name": "embeddings", "dtype": "float32", "shape": ["batch", width]},
        "preprocessing": about_preprocessing(model),
        **{name: record.get(name) for name in ("benchmark", "protocol", "split_hash")},
    }


def write_program(model: EmbeddingModel, out: Path, about: dict[str, Any], learner: int | None) -> tuple[str, float]:
    """
    Returns:
        The program that ran the file, and the largest difference from the model's embeddings.

    Raises:
        ConfigError, OutputError: as `divcon.exports.export`.
    """
    with atomic_write(out) as beside:
        written = io.BytesIO()  # a file would have to end in .pt2
        torch.export.save(trace(model, learner), written, extra_files={f"{KEY}.json": json.dumps(about)})
        beside.write_bytes(written.getbuffer())
        written.seek(0)
        program = torch.export.load(written).module()
        difference = check_equal(model, learner, program, out)
    return f"PyTorch {torch.__version__}", difference
