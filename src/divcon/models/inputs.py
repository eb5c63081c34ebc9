"""The inputs of a model as a set: images, or vectors as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.data.in_memory import ImageLike, is_image, is_tensor, set_of_images
from divcon.data.inputs import check_vectors
from divcon.data.labeled_set import LabeledSet
from divcon.data.python_values import columns_of, is_batch, is_value
from divcon.data.readers.folder import images_of
from divcon.data.readers.table import set_of_columns
from divcon.errors import DataError, NonFiniteError
from divcon.runtime.context import DEFAULT, Context

Inputs = LabeledSet | np.ndarray | str | Path | ImageLike | Sequence[str | Path | ImageLike] | Any
"""Images or vectors: a set, an (N, F0) array or tensor of vectors, a file, a folder, an image in memory
(`divcon.data.in_memory.ImageLike`: a PIL image, an array or tensor, the bytes of a file), several files, folders,
images or vectors, a batch of images (N, H, W, C) or (N, C, H, W), or what `divcon.read` takes as columns: a frame, a
dict, a list of dicts, a Dataset."""


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
    value: Any = inputs
    array = isinstance(value, np.ndarray) or is_tensor(value)
    several: Any = list(value) if array and is_batch(value) and not is_image(value) else value
    if isinstance(several, (list, tuple)) and any(map(_is_pixels, several)):
        return _images_in_memory(several, needs)
    if isinstance(several, (list, tuple)) and several and all(map(_is_vector, several)):
        value = _stacked(several)
        array = True
    if not array:
        if _is_columns(value):
            return set_of_columns(columns_of(value), need_labels=False, context=context)
        return images_of(several, context=context)
    vectors: Any = value
    if is_tensor(value):
        vectors = vectors.detach().float().cpu().numpy()
    check_vectors(vectors)
    n = len(vectors)
    return LabeledSet(
        labels=np.zeros(n, np.int64),
        label_names=("",),
        paths=pa.array([str(i) for i in range(n)], pa.string()),
        rows=np.arange(n, dtype=np.int64),
        source="",
        vectors=np.asarray(vectors, np.float32),
    )


def _is_pixels(value: Any) -> bool:
    """Whether an item of a list is an image in memory; there, an (H, W) array is a grey one."""
    return is_image(value) or (hasattr(value, "dtype") and getattr(value, "ndim", 0) == 2)


def _is_vector(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(number, (int, float, np.number)) for number in value)
    return hasattr(value, "dtype") and getattr(value, "ndim", 0) == 1


def _stacked(vectors: Sequence[Any]) -> np.ndarray:
    rows = [np.asarray(v.detach().float().cpu() if is_tensor(v) else v) for v in vectors]
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        i = next(i for i, length in enumerate(lengths) if length != lengths[0])
        raise DataError(f"vector {i} has {lengths[i]:,} numbers, where the first has {lengths[0]:,}")
    return np.stack(rows)


def _is_columns(inputs: Any) -> bool:
    if isinstance(inputs, (list, tuple)):
        return bool(inputs) and all(isinstance(row, Mapping) for row in inputs)
    return not isinstance(inputs, (str, Path)) and is_value(inputs)


def _images_in_memory(inputs: Sequence[Any], needs: int | None) -> LabeledSet:
    names = [f"image {i}" if _is_pixels(value) else str(value) for i, value in enumerate(inputs)]
    files = [None if _is_pixels(value) else images_of([value]) for value in inputs]
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


def check_finite(features: np.ndarray, images: LabeledSet, what: str, rows: np.ndarray | None = None) -> None:
    """Raise NonFiniteError, with the names of the images, unless all (N, F) features are finite.

    Args:
        rows: (n,) int64, where ``features``, (n, F), are of these images only.
    """
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        wrong = wrong if rows is None else rows[wrong]
        named = ", ".join(images.where(i) for i in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise NonFiniteError(
            f"{what}: the model's features of {len(wrong):,} of {len(images):,} images are NaN or infinite: {named}; "
            "check these images, or the weights: a smaller `lr`, `warmup_epochs` or `precision=fp32` may help"
        )
