"""The model as a program of `torch.export`, and what it is compared with."""

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
from divcon.data.transforms import EVAL_RESIZE
from divcon.errors import ConfigError, OutputError
from divcon.models import EmbeddingModel
from divcon.runs.folder import RunFolder
from divcon.runtime.files import atomic_write

TOLERANCE = 1e-4
"""What an entry of an embedding may be off."""

BATCHES = (1, 7)
"""What is compared: one, since a batch dimension of one is easily lost, and one that is not the traced batch's."""


class Embedder(nn.Module):
    """Pixels, (N, 3, H, W) uint8, or vectors, (N, F0) float32, to embeddings."""

    def __init__(self, model: EmbeddingModel, learner: int | None) -> None:
        super().__init__()
        self.model = model
        self._learner = learner

    def forward(self, seen: Tensor) -> Tensor:
        if self.model.vector_dim is None:
            seen = self.model.normalize(seen)
        embeddings = self.model(seen, self._learner)
        assert isinstance(embeddings, Tensor)
        return embeddings


def example(model: EmbeddingModel, count: int) -> Tensor:
    """What the model sees, drawn by a fixed seed: images of large patches of colour with noise upon them, (count, 3, H,
    W) uint8, or vectors, (count, F0) float32."""
    rng = torch.Generator().manual_seed(count)
    if model.vector_dim is not None:
        return torch.randn(count, model.vector_dim, generator=rng)
    patches = torch.rand(count, 3, 4, 4, generator=rng)
    images = F.interpolate(patches, size=(model.image_size, model.image_size), mode="bilinear")
    noise = 0.2 * torch.randn(images.shape, generator=rng)
    return ((images + noise).clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def trace(model: EmbeddingModel, learner: int | None) -> ExportedProgram:
    """The model, on the CPU and in evaluation mode, as a program for any batch.

    Raises:
        ConfigError: `torch.export` cannot follow it, or only at one batch.
    """
    try:
        return torch.export.export(
            Embedder(model, learner), (example(model, 2),), dynamic_shapes=({0: Dim("batch", min=1)},)
        )
    except Exception as error:  # what fails inside of a backbone is of any kind
        raise ConfigError(
            f"{named(model)}: torch.export cannot make a program of it for batches of any size "
            f"({first_line(error)}); try --format hf"
        ) from error


@torch.no_grad()
def check_equal(
    model: EmbeddingModel, learner: int | None, embed: Callable[[Tensor], Tensor], written: object
) -> float:
    """The largest difference between what ``embed`` and the model give, entry by entry.

    Raises:
        OutputError: it is above the tolerance, or the shape is another.
    """
    largest = 0.0
    expected_of = Embedder(model, learner)
    for count in BATCHES:
        seen = example(model, count)
        expected, found = expected_of(seen), embed(seen)
        if found.shape != expected.shape:
            raise OutputError(f"{written}: gives {tuple(found.shape)} for a batch of {count}; nothing is kept")
        difference = (found - expected).abs().max().item()
        if not difference <= TOLERANCE:  # NaN, too
            raise OutputError(
                f"{written}: its embeddings differ from the model's by {difference:.2g} at a batch of {count}, and "
                f"{TOLERANCE:g} is allowed; nothing is kept"
            )
        largest = max(largest, difference)
    return largest


def named(model: EmbeddingModel) -> str:
    """The model, for messages."""
    return f"backbone {model.config['backbone']} with method {model.config['method']}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


KEY = "divcon"
"""Of an ONNX file's metadata: JSON of what `about_model` gives; in a ``.pt2`` the extra file ``divcon.json``."""


def about_model(model: EmbeddingModel, learner: int | None, run: str | Path | None) -> dict[str, Any]:
    """Plain values: ``divcon`` (the version), ``model`` (what it was made with), ``learner``, ``input`` and ``output``
    (name, dtype, shape), ``preprocessing`` (None of vectors), and of its run ``benchmark``, ``protocol``,
    ``split_hash`` (None where it is of no run).

    In ``preprocessing`` the shorter side of an image is brought to ``resize`` pixels, and ``size`` x ``size`` cut out
    of the middle; an image of just that size is taken whole. ``mean`` and ``std`` are of each channel, on a scale of 0
    to 1.
    """
    found = None if run is None else RunFolder(run).origin()
    record = found[1] if found else {}
    width = model.embedding_dim if learner is None else model.head.subspace_dim(learner)
    seen: dict[str, Any]
    if model.vector_dim is None:
        size = model.image_size
        seen = {"name": "images", "dtype": "uint8", "shape": ["batch", 3, size, size]}
    else:
        seen = {"name": "vectors", "dtype": "float32", "shape": ["batch", model.vector_dim]}
    return {
        "divcon": divcon.__version__,
        "model": model.config,
        "learner": learner,
        "input": seen,
        "output": {"name": "embeddings", "dtype": "float32", "shape": ["batch", width]},
        "preprocessing": _preprocessing(model),
        **{name: record.get(name) for name in ("benchmark", "protocol", "split_hash")},
    }


def _preprocessing(model: EmbeddingModel) -> dict[str, Any] | None:
    if model.vector_dim is not None:
        return None
    seen = model.preprocessing
    return {
        "size": model.image_size,
        "resize": round(model.image_size * EVAL_RESIZE),
        "interpolation": seen.interpolation,
        "mean": list(seen.mean),
        "std": list(seen.std),
    }


def write_program(model: EmbeddingModel, out: Path, about: dict[str, Any], learner: int | None) -> tuple[str, float]:
    """
    Returns:
        What read it again, and the largest difference from the model's embeddings.

    Raises:
        ConfigError, OutputError: as `divcon.exports.export`.
    """
    with atomic_write(out) as beside:
        written = io.BytesIO()  # by name, it would have to end in .pt2
        torch.export.save(trace(model, learner), written, extra_files={f"{KEY}.json": json.dumps(about)})
        beside.write_bytes(written.getbuffer())
        written.seek(0)
        program = torch.export.load(written).module()
        difference = check_equal(model, learner, program, out)
    return f"PyTorch {torch.__version__}", difference
