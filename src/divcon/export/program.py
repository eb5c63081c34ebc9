"""The model as a program of `torch.export`, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from divcon.errors import ConfigError, OutputError
from divcon.models import EmbeddingModel

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
    return f"backbone {model.made_with['backbone']} with method {model.made_with['method']}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
