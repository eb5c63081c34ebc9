"""Python values as columns of a table: frames, lists, dicts, datasets of Hugging Face and of PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.data.columns import COLUMNS
from divcon.data.in_memory import encoded, is_image, is_tensor
from divcon.errors import DataError, ImageError

Columns = Mapping[str, Any] | pa.Table


def is_value(data: Any) -> bool:
    """Whether `columns_of` takes it: a frame, a dict, an Arrow table, a list or pair, or a dataset."""
    if isinstance(data, (Mapping, pa.Table, list, tuple)) or hasattr(data, "__arrow_c_stream__"):
        return True
    return _is_hugging_face(data) or _is_dataset(data)


def columns_of(data: Any) -> Columns:
    """The columns of a value, with images as the bytes of files.

    - a dict of lists or arrays, an Arrow table, a data frame of pandas or polars: its columns;
    - a list of dicts: one a row; a list of ``(image, label)`` or ``(image, label, split)``;
    - a pair ``(images or vectors, labels)``;
    - a `datasets.Dataset`, or a `DatasetDict`, whose keys are the splits;
    - a torch `Dataset` of ``(image, label)`` or of dicts; a torchvision `ImageFolder` is read by its paths, without its
      transform.

    Images are paths, PIL images, arrays, tensors or bytes (see `divcon.data.in_memory`).

    Raises:
        DataError: it is nothing of that kind, or rows of different kinds.
        ImageError: the pixels of an image are none.
    """
    if _is_hugging_face(data):
        return _of_hugging_face(data)
    if isinstance(data, Mapping):
        if data and all(_is_hugging_face(value) for value in data.values()):
            return _of_dict_of_datasets(data)
        return {str(name): _column(str(name), values) for name, values in data.items()}
    if isinstance(data, pa.Table):
        return data
    if hasattr(data, "__arrow_c_stream__"):
        return _of_frame(data)
    if isinstance(data, tuple) and len(data) == 2 and not _is_pair(data[0], data[1]):
        return _of_pair(data[0], data[1])
    if isinstance(data, (list, tuple)):
        return _of_rows(data)
    if _is_dataset(data):
        return _of_dataset(data)
    raise DataError(f"{type(data).__name__} is no table")


def _is_hugging_face(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "datasets" and hasattr(data, "features")


def _is_dataset(data: Any) -> bool:
    """Whether it is a dataset of PyTorch's kind: numbered items."""
    simple = (str, bytes, bytearray, memoryview, os.PathLike, np.ndarray, Mapping)
    return (
        hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and not isinstance(data, (*simple, type))
        and not is_tensor(data)
    )


def advice_on_value(data: Any) -> str | None:
    """What to pass in place of a value that `columns_of` does not take; None: nothing is like it."""
    name = type(data).__name__
    if hasattr(data, "collect") and hasattr(data, "lazy"):  # polars
        return "pass its rows (`.collect()`)"
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        return f"a {name} makes batches of its rows; pass its dataset (`.dataset`), or arrays (images, labels)"
    if hasattr(data, "__next__") or (hasattr(data, "__iter__") and not isinstance(data, (str, bytes, set, frozenset))):
        return "its rows are there one after the other, and a data set is read as a whole; pass a list of them (`list`)"
    return None


def _of_hugging_face(data: Any) -> pa.Table:
    if not hasattr(data, "with_format") or not hasattr(data, "__len__"):
        raise DataError(
            f"{type(data).__name__} is read as it streams, and a data set is read as a whole: load it without "
            "`streaming`, or pass a list of its rows"
        )
    table = data.with_format("arrow")[:]
    return table.replace_schema_metadata(data.features.arrow_schema.metadata)


def _of_dict_of_datasets(data: Mapping[str, Any]) -> pa.Table:
    tables = []
    for split, value in data.items():
        table = _of_hugging_face(value)
        if "split" not in table.column_names:
            table = table.append_column("split", pa.array([str(split)] * len(table)))
        tables.append(table)
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise DataError(f"the splits {', '.join(data)} have columns of different types ({error})") from None


def _of_frame(data: Any) -> Columns:
    names = list(getattr(data, "columns", []))
    if len(set(map(str, names))) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"there are two columns {twice!r}; keep one")
    try:
        return pa.table(data)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        # Columns of Python objects: images, arrays, paths.
        return {str(name): _column(str(name), list(data[name])) for name in data.columns}


def _is_pair(first: Any, second: Any) -> bool:
    """Whether both are pairs of an image and a label, so that the tuple of them is two rows."""
    return all(isinstance(row, (tuple, list)) and len(row) == 2 and not _is_label(row[0]) for row in (first, second))


def _is_label(value: Any) -> bool:
    return isinstance(value, (int, float, np.number))


def _of_pair(images: Any, labels: Any) -> dict[str, Any]:
    values = _column("image", images)
    return {_name_of(values): values, "label": labels}


def _of_rows(rows: Sequence[Any]) -> dict[str, Any]:
    if not rows:
        raise DataError("an empty list: there are no rows")
    if all(isinstance(row, Mapping) for row in rows):
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        return {name: _column(name, [row.get(name) for row in rows]) for name in names}
    if all(isinstance(row, (tuple, list)) and len(row) == 2 for row in rows):
        return _of_pair([row[0] for row in rows], [row[1] for row in rows])
    if all(isinstance(row, (tuple, list)) and len(row) == 3 and isinstance(row[2], str) for row in rows):
        return {**_of_pair([row[0] for row in rows], [row[1] for row in rows]), "split": [row[2] for row in rows]}
    shown = ", ".join(dict.fromkeys(type(row).__name__ for row in rows[:20]))
    raise DataError(f"a list of {shown}: rows are dicts of the columns, or pairs of an image and its label")


def _of_dataset(data: Any) -> dict[str, Any]:
    names = getattr(data, "classes", None)
    samples = getattr(data, "samples", None)
    if isinstance(samples, list) and samples and all(_is_path_and_number(sample) for sample in samples):
        rows: list[Any] = samples
    else:
        rows = []
        for i in range(len(data)):
            item = data[i]
            if isinstance(item, (tuple, list)) and len(item) > 2:
                item = item[:2]
            if isinstance(item, Mapping):
                item = {name: _as_bytes(value, f"item {i}") for name, value in item.items()}
            elif isinstance(item, (tuple, list)) and len(item) == 2:
                item = (_as_bytes(item[0], f"item {i}"), item[1])
            else:
                raise DataError(
                    f"item {i} of the {type(data).__name__} is of type {type(item).__name__}: items are pairs of an "
                    "image and its label, or dicts of the columns"
                )
            rows.append(item)
    columns = _of_rows(rows)
    label = columns.get("label")
    if isinstance(names, (list, tuple)) and isinstance(label, list):
        numbers = [_number(value) for value in label]
        if all(number is not None and 0 <= number < len(names) for number in numbers):
            columns["label"] = [str(names[number]) for number in numbers]  # type: ignore[index]
    return columns


def _is_path_and_number(sample: Any) -> bool:
    return isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[0], (str, os.PathLike))


def _number(value: Any) -> int | None:
    if hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _name_of(values: Any) -> str:
    """The column that values without a name are: paths, encoded images or vectors."""
    first = next((value for value in values if value is not None), None) if not hasattr(values, "ndim") else values
    if isinstance(first, (str, os.PathLike)):
        return "path"
    return "image" if isinstance(first, bytes) else "embedding"


def _column(name: str, values: Any) -> Any:
    """The values, those that are images as the bytes of files."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise DataError(f"the column {name!r} is of type {type(values).__name__}; a column has a value for each row")
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if is_batch(values) or (not hasattr(values, "ndim") and not hasattr(values, "dtype") and _holds_images(values)):
        return [_as_bytes(value, f"{name} {i}", grey=True) for i, value in enumerate(values)]
    return values if hasattr(values, "ndim") else list(values)


def is_batch(values: Any) -> bool:
    """Whether it is an array or tensor of images: (N, H, W, C), (N, C, H, W), or (N, H, W) of uint8."""
    ndim = getattr(values, "ndim", 0)
    return ndim == 4 or (ndim == 3 and str(values.dtype).removeprefix("torch.") == "uint8")


def _holds_images(values: Iterable[Any]) -> bool:
    first = next((value for value in values if value is not None), None)
    return not isinstance(first, bytes) and (is_image(first) or getattr(first, "ndim", 0) == 2)


def _as_bytes(value: Any, name: str, *, grey: bool = False) -> Any:
    """An image as the bytes of a file; other values as they are."""
    if isinstance(value, bytes) or not (is_image(value) or (grey and getattr(value, "ndim", 0) == 2)):
        return value
    try:
        return encoded(value)
    except (ValueError, OSError) as error:
        raise ImageError(f"{name}: this image does not decode ({error})") from None


def has_split(columns: Columns) -> bool:
    """Whether there is a column that says which rows are train and which are test."""
    names: list[Any] = list(columns) if isinstance(columns, Mapping) else columns.column_names
    return any(str(name).strip().casefold() in COLUMNS[2:5] for name in names)
