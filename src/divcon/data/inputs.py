"""Labelled data from whatever `divcon.train` and `divcon.evaluate` are passed: a benchmark, a labelled set, a path or
name for `divcon.read`, or arrays of vectors and labels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.data.benchmark import Benchmark, labelled
from divcon.data.finite import unusable
from divcon.data.labeled_set import LabeledSet, row_name
from divcon.data.labels import read_labels
from divcon.data.python_values import columns_of, has_split, is_batch, is_value
from divcon.data.read import read
from divcon.data.readers.table import read_columns, set_of_columns
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context

LabeledData = Benchmark | LabeledSet | str | os.PathLike[str] | tuple[Any, Any] | Any
"""A benchmark, a labelled set, a path or name that `divcon.read` takes, ``(vectors, labels)``: arrays or tensors of
shape (N, F) and (N,), or another Python value that `divcon.read` takes: a frame, a list, a dict, a Dataset. Of values
without a column ``split`` all rows are used."""


def as_labeled_set(data: LabeledData, context: Context = DEFAULT) -> LabeledSet:
    """The images or vectors to train on: of a benchmark, or of what a path or name stands for, the train classes.

    Raises:
        DataError: it is nothing of that kind; it cannot be read; or the benchmark has nothing to train on.
    """
    if not isinstance(data, (str, os.PathLike, Benchmark)):
        data = _as_set(data, context)
        if isinstance(data, LabeledSet):
            return data
    benchmark = as_benchmark(data, context)
    if not len(benchmark.train):
        raise DataError(f"{benchmark.train.source}: has no train images; it can be evaluated on, not trained on")
    if benchmark.validation is not None:
        context.warn(
            f"{benchmark.name}: training on its {benchmark.train.num_classes} train classes; its "
            f"{benchmark.validation.num_classes} validation classes are left out"
        )
    return benchmark.train


def as_benchmark(data: LabeledData, context: Context = DEFAULT, **options: Any) -> Benchmark:
    """The benchmark to evaluate on; in a labelled set, or vectors with labels, each item searches among all the others.

    Args:
        options: of `divcon.read`, for a path or name.

    Raises:
        DataError: it is nothing of that kind, or it cannot be read.
    """
    if isinstance(data, Benchmark):
        return data
    if isinstance(data, (str, os.PathLike)):
        benchmark = read(data, context=context, **options)
        for note in benchmark.notes:
            if note.startswith("columns: "):
                context.warn(note)
        return benchmark
    images = _as_set(data, context)
    if isinstance(images, Benchmark):
        return images
    return Benchmark(images.source, images.subset(np.empty(0, np.int64)), images, images)


def _as_set(data: Any, context: Context) -> LabeledSet | Benchmark:
    """The set; of columns with a split, the benchmark."""
    if isinstance(data, LabeledSet):
        return data
    if not (isinstance(data, (tuple, list)) and len(data) == 2 and _is_vectors(data[0])):
        if not is_value(data) or _is_list_of_paths(data):
            raise DataError(
                f"`data` is {_shown(data)}: pass what `divcon.read` returns, one of its labelled sets, a path or name "
                "that it takes, (vectors, labels) as arrays, a frame, a list of rows, or a Dataset"
            )
        columns = columns_of(data)
        return read_columns(columns) if has_split(columns) else set_of_columns(columns, context=context)
    vectors, labels = _array(data[0]), read_labels(_array(data[1]) if hasattr(data[1], "shape") else data[1])
    check_vectors(vectors)
    if len(labels.codes) != len(vectors):
        raise DataError(f"{len(vectors):,} vectors need as many labels, and there are {len(labels.codes):,}")
    if (labels.codes < 0).any():
        raise DataError(f"row {int(np.argmax(labels.codes < 0))}: the label is missing; give it one, or leave it out")
    names, places = labelled(labels.names)
    return LabeledSet(
        labels=places[labels.codes],
        label_names=names,
        paths=pa.array([row_name(i) for i in range(len(vectors))], pa.string()),
        rows=np.arange(len(vectors), dtype=np.int64),
        source="arrays",
        vectors=np.ascontiguousarray(vectors, np.float32),
        spellings=labels.spellings,
    )


def _is_vectors(value: Any) -> bool:
    return hasattr(value, "shape") and not is_batch(value)


def _is_list_of_paths(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and (
        not data or all(isinstance(item, (str, os.PathLike)) or item is None for item in data)
    )


def check_vectors(vectors: np.ndarray) -> None:
    """
    Raises:
        DataError: it is not an (N, F) array of finite numbers.
    """
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise DataError(f"an array of shape {vectors.shape} of {vectors.dtype}: vectors come as (N, F) numbers")
    if (found := unusable(vectors)) is not None:
        row, why = found
        raise DataError(f"row {row}: the vector {why}")


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _shown(data: Any) -> str:
    if isinstance(data, (tuple, list)):
        inner = ", ".join(type(item).__name__ for item in data[:3]) + (", ..." if len(data) > 3 else "")
        return f"a {type(data).__name__} of {inner}" if data else f"an empty {type(data).__name__}"
    return f"of type {type(data).__name__}" + (f", of shape {tuple(data.shape)}" if hasattr(data, "shape") else "")
