"""The inputs of a model, in batches: decoded images, or vectors as they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import OnBad, Pixels, evaluation_batches
from divcon.data.transforms import Transform
from divcon.runtime.context import Context


def vector_batches(vectors: np.ndarray, batch_size: int) -> Iterator[Pixels]:
    """All vectors in order, (B, F0) float32, each batch with its (B,) int64 rows."""
    for start in range(0, len(vectors), batch_size):
        indices = torch.arange(start, min(start + batch_size, len(vectors)))
        yield torch.tensor(vectors[start : start + batch_size], dtype=torch.float32), indices


def input_batches(
    images: LabeledSet,
    transform: Transform | None,
    *,
    batch_size: int,
    context: Context,
    pin_memory: bool,
    on_bad_image: OnBad | None = None,
) -> Iterator[Pixels]:
    """All images or vectors in order, images with the evaluation transform; each batch is reported as progress when the
    next one is requested.

    Args:
        on_bad_image: see `divcon.data.loading.evaluation_batches`.

    Raises:
        ImageError: an image does not decode; the message names it.
    """
    if transform is None:
        assert images.vectors is not None
        batches = vector_batches(images.vectors, batch_size)
    else:
        batches = evaluation_batches(
            images,
            transform,
            batch_size=batch_size,
            context=context,
            pin_memory=pin_memory,
            on_bad_image=on_bad_image,
        )
    done = 0
    for inputs, indices in batches:
        yield inputs, indices
        done += len(indices)
        context.progress("embed", done, len(images))
