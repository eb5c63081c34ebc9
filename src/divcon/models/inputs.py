"""The inputs of a model, in batches: decoded images, or vectors as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from divcon.data.in_memory import ImageLike, is_image, set_of_images
from divcon.data.inputs import check_vectors
from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import Pixels, evaluation_batches
from divcon.data.readers.folder import images_of
from divcon.data.transforms import Transform
from divcon.errors import DataError, NonFiniteError
from divcon.runtime.context import DEFAULT, Context

Inputs = LabeledSet | np.ndarray | str | Path | ImageLike | Sequence[str | Path | ImageLike]
"""Images or vectors: a set, an (N, F0) array of vectors, a file, a folder, an image in memory (a PIL image, an array
(H, W, 3) of uint8, the bytes of a file), or several files, folders or images."""


def as_set(inputs: Inputs, needs: int | None = None, context: Context = DEFAULT) -> LabeledSet:
    """The inputs as a set.

    Args:
        needs: see `divcon.data.in_memory.encoded`.
        context: reports what is skipped in a folder.

    Raises:
        DataError: there is no such file or folder, or no image in it; an array is not (N, F0) of finite numbers.
        ImageError: the pixels of an image in memory are not an image.
    """
    if isinstance(inputs, LabeledSet):
        return inputs
    if is_image(inputs):
        return set_of_images([inputs], ["the image"], needs)
    several: Any = list(inputs) if isinstance(inputs, np.ndarray) and inputs.ndim == 4 else inputs
    if isinstance(several, (list, tuple)) and any(map(is_image, several)):
        return _images_in_memory(several, needs)
    if not isinstance(inputs, np.ndarray):
        return images_of(several, context=context)
    check_vectors(inputs)
    n = len(inputs)
    return LabeledSet(
        labels=np.zeros(n, np.int64),
        label_names=("",),
        paths=pa.array([str(i) for i in range(n)], pa.string()),
        rows=np.arange(n, dtype=np.int64),
        source="",
        vectors=np.asarray(inputs, np.float32),
    )


def _images_in_memory(inputs: Sequence[Any], needs: int | None) -> LabeledSet:
    names = [f"image {i}" if is_image(value) else str(value) for i, value in enumerate(inputs)]
    files = [None if is_image(value) else images_of([value]) for value in inputs]
    for name, file in zip(names, files, strict=True):
        if file is not None and len(file) != 1:
            raise DataError(f"{name}: is a folder; pass it alone, or its files beside the images")
    contents = [value if file is None else file.content(0) for value, file in zip(inputs, files, strict=True)]
    return set_of_images(contents, names, needs)


def check_input(images: LabeledSet, vector_dim: int | None) -> None:
    """Raise DataError unless the set holds the input that the model takes: images (``vector_dim`` None), or vectors of
    ``vector_dim`` dimensions."""
    what = images.source or "the data"
    dim = None if images.vectors is None else images.vectors.shape[1]
    if dim == vector_dim:
        return
    if dim is None:
        raise DataError(f"{what}: holds images, and the model takes vectors of {vector_dim} dimensions")
    if vector_dim is None:
        raise DataError(f"{what}: holds vectors of {dim} dimensions, and the model takes images")
    raise DataError(f"{what}: its vectors have {dim} dimensions, and the model takes vectors of {vector_dim}")


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
) -> Iterator[Pixels]:
    """All images or vectors in order, images with the evaluation transform; each batch is reported as progress when the
    next one is requested.

    Raises:
        ImageError: an image does not decode; the message names it.
    """
    if transform is None:
        assert images.vectors is not None
        batches = vector_batches(images.vectors, batch_size)
    else:
        batches = evaluation_batches(images, transform, batch_size=batch_size, context=context, pin_memory=pin_memory)
    done = 0
    for inputs, indices in batches:
        yield inputs, indices
        done += len(indices)
        context.progress("embed", done, len(images))


def check_finite(features: np.ndarray, images: LabeledSet, what: str) -> None:
    """Raise NonFiniteError, with the names of the images, unless all (N, F) features are finite."""
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        named = ", ".join(images.where(i) for i in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise NonFiniteError(
            f"{what}: the model's features of {len(wrong):,} of {len(images):,} images are NaN or infinite: {named}; "
            "check these images, or the weights: a smaller `lr`, `warmup_epochs` or `precision=fp32` may help"
        )
