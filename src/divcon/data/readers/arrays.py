"""Read vectors from files of arrays: NumPy's .npy and .npz, PyTorch's .pt, safetensors; labels inside, beside, or in a
file of their own."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.data.benchmark import Benchmark
from divcon.data.columns import COLUMNS, GUESS, VECTOR_COLUMN, Columns, roles_of
from divcon.data.labeled_set import LabeledSet
from divcon.data.python_values import is_batch
from divcon.data.readers.table import OnMissingLabel, benchmark_of, images_of_tables
from divcon.data.remote_folder import files_below
from divcon.data.table_format import content_of, is_table
from divcon.data.tables import (
    VECTOR_SUFFIXES,
    SourceName,
    Tables,
    array_column,
    load_file,
    tables_in_memory,
)
from divcon.errors import ConfigError, DataError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.places import url_of


def is_vector_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this name holds arrays of vectors."""
    return Path(path).suffix.lower() in VECTOR_SUFFIXES


def read_vector_file(
    path: str | os.PathLike[str],
    *,
    labels_file: str | os.PathLike[str] | None = None,
    on_missing_label: OnMissingLabel = "stop",
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    vector_column: str | None = None,
) -> Benchmark:
    """Read vectors from a .npy, .npz, .pt, .pth or .safetensors file: an (N, F) array, a pair of vectors and labels, or
    arrays by name, which are columns as in ``read_table``.

    Args:
        labels_file: the labels, row for row: a .npy, a text with one a line, a JSON list, or a table with a column of
            labels, whose columns split, path, is_query ... are used too. None: those in the file, else a file beside it
            that is named after it (``labels.npy``, ``a.labels.txt``, ``y_train.npy`` for ``X_train.npy``); a note says
            which.
        on_missing_label, image_column, label_column, split_column, vector_column: as in ``read_table``; for arrays by
            name the columns are these names.

    Raises:
        DataError: no vectors, no labels, or not as many labels as vectors; the message has the file and the row.
        ConfigError: there is no array of a chosen name.
    """
    chosen = Columns(image_column, label_column, split_column, vector_column)
    tables, note = _loaded(Path(path), labels_file, chosen, on_missing_label != "stop", need_labels=True)
    benchmark = benchmark_of(tables, on_missing_label=on_missing_label)
    return benchmark if note is None else replace(benchmark, notes=(note, *benchmark.notes))


def images_in_vector_file(
    path: str | os.PathLike[str], *, chosen: Columns = GUESS, context: Context = DEFAULT
) -> LabeledSet:
    """All vectors of a file, with their labels if it has any.

    Raises:
        DataError, ConfigError: as ``read_vector_file``.
    """
    tables, note = _loaded(Path(path), None, chosen, True, need_labels=False)
    if note is not None:
        context.warn(note)
    return images_of_tables(tables, context=context)


def _loaded(
    path: Path,
    labels_file: str | os.PathLike[str] | None,
    chosen: Columns,
    unknown_is_missing: bool,
    *,
    need_labels: bool,
) -> tuple[Tables, str | None]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    columns = _columns(path, _arrays(path), chosen)
    num_rows = len(next(iter(columns.values())))
    note = None
    labels = None if labels_file is None else here(labels_file)
    guessed = roles_of(str(path), [(name, "plain") for name in columns], GUESS).names
    has_labels = "label" in guessed or chosen.label in columns
    if labels is None and not has_labels:
        try:
            beside = _beside(path)
            rows, others = _labels_in(beside, num_rows, path, chosen)
            columns = {name: column for name, column in columns.items() if name not in rows} | rows
            note, chosen = f"labels of {beside.name}, beside {path.name}; `labels_file` chooses another file", others
        except DataError:
            if need_labels:
                raise
    if labels is not None:
        rows, chosen = _labels_in(labels, num_rows, path, chosen)
        columns = {name: column for name, column in columns.items() if name not in rows} | rows
    tables = tables_in_memory(str(path), pa.table(columns), "", chosen, unknown_is_missing=unknown_is_missing)
    source = SourceName(str(path))
    return replace(tables, name=path.stem, source=source), note


def _columns(path: Path, arrays: Mapping[str, Any], chosen: Columns) -> dict[str, Any]:
    """The arrays of one length as columns, the vectors among them."""
    shapes = ", ".join(f"{name or 'the array'} {tuple(np.shape(array))}" for name, array in list(arrays.items())[:8])
    # Numbers of one column are labels, as MedMNIST and others save them.
    arrays = {
        name: np.ravel(array) if np.ndim(array) == 2 and np.shape(array)[1] == 1 else array
        for name, array in arrays.items()
    }
    wanted = chosen.vector
    if wanted is not None and wanted not in arrays:
        raise ConfigError(f"{path}: `vector_column` {wanted!r}: there is {shapes or 'no array'}", field="vector_column")
    two = [name for name, array in arrays.items() if np.ndim(array) == 2 and np.asarray(array).dtype.kind in "fiu"]
    kinds = [(name, "vector" if name in two else "plain") for name in arrays]
    guessed = roles_of(str(path), kinds, Columns(vector=wanted)).names.get("embedding")  # type: ignore[arg-type]
    vectors = guessed or (two[0] if len(two) == 1 else None)
    if vectors is None or vectors not in two:
        pictures = [name for name, array in arrays.items() if is_batch(np.asarray(array))]
        if pictures and wanted is None:
            raise DataError(
                f"{path}: {pictures[0] or 'the array'} holds images, and not vectors ({shapes}); write them as image "
                'files, or read them in Python: dc.read({"image": images, "label": labels, "split": split})'
            )
        what = (
            f"which of them holds the vectors? `vector_column` chooses ({shapes})"
            if len(two) > 1
            else (f"there is no (N, F) array of numbers in it ({shapes or 'nothing'})")
        )
        raise DataError(f"{path}: {what}")
    n = len(arrays[vectors])
    columns: dict[str, Any] = {}
    for name, array in arrays.items():
        if name == vectors or (np.ndim(array) == 1 and len(array) == n):
            own = VECTOR_COLUMN if name == vectors and guessed is None else name
            columns[own] = array_column(str(path), own, array)
    plain = [name for name in columns if name not in (VECTOR_COLUMN, vectors)]
    named = roles_of(str(path), [(name, "plain") for name in plain], GUESS).names
    if "label" not in named and chosen.label is None and len(plain) == 1 and plain[0] not in named.values():
        columns["label"] = columns.pop(plain[0])
    _name_labels(arrays, columns, named.get("label"))
    return columns


_NAMES_OF_LABELS = ("label_names", "class_names", "classes", "target_names", "names", "idx_to_class")


def _name_labels(arrays: Mapping[str, Any], columns: dict[str, Any], label: str | None) -> None:
    """Put the names of the classes in place of their numbers, where the file has them."""
    names = next((arrays[key] for key in _NAMES_OF_LABELS if key in arrays and np.ndim(arrays[key]) == 1), None)
    if names is None or label is None or np.asarray(names).dtype.kind not in "UO":
        return
    numbers = columns[label]
    if not pa.types.is_integer(numbers.type) or len(numbers) == len(names):
        return
    values = numbers.to_numpy(zero_copy_only=False)
    if values.min() >= 0 and values.max() < len(names):
        columns[label] = pa.array([str(names[value]) for value in values])


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file by name; that of a .npy, or of a tensor alone, has the name ''."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        if file.read(1) in b"v<":  # text: a pointer or a page of the web, which is named
            content_of(path)
    try:
        if suffix == ".npy":
            return _parts(np.load(path, mmap_mode="r"))
        if suffix == ".npz":
            with np.load(path) as archive:
                return {name: archive[name] for name in archive.files}
        return _of_torch(path, suffix)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, RuntimeError, TypeError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if any(word in message for word in ("allow_pickle", "Object arrays", "Python objects")):
            message = "it holds Python objects: save arrays of numbers and of text"
        raise DataError(f"{path}: cannot be read as {_WORDS[suffix]} ({message})") from None


_WORDS = {
    ".npy": "an array of NumPy",
    ".npz": "an archive of NumPy arrays",
    ".pt": "tensors of PyTorch",
    ".pth": "tensors of PyTorch",
    ".safetensors": "safetensors",
}


def _parts(array: np.ndarray) -> dict[str, Any]:
    return {name: array[name] for name in array.dtype.names} if array.dtype.names else {"": array}


def _of_torch(path: Path, suffix: str) -> dict[str, Any]:
    import pickle

    import torch  # takes seconds: only where it is needed

    if suffix == ".safetensors":
        import safetensors.torch

        try:
            return {name: _numbers(tensor) for name, tensor in safetensors.torch.load_file(path).items()}
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it holds more than tensors, lists, numbers and text; save those alone") from None
    if isinstance(held, Mapping):
        return {str(name): _numbers(value) for name, value in held.items()}
    if isinstance(held, (tuple, list)) and len(held) == 2:
        return {VECTOR_COLUMN: _numbers(held[0]), "label": _numbers(held[1])}
    return {"": _numbers(held)}


def _numbers(value: Any) -> Any:
    if hasattr(value, "detach"):
        import torch

        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
    if isinstance(value, (list, tuple)) and value and all(hasattr(item, "detach") for item in value):
        return np.stack([_numbers(item) for item in value])
    return np.asarray(value) if isinstance(value, (list, tuple)) else value


_ENDINGS = (".npy", ".txt", ".csv", ".tsv", ".parquet", ".jsonl", ".json")


def _beside(path: Path) -> Path:
    """The file of labels beside a file of vectors.

    Raises:
        DataError: there is none, or there are several.
    """
    stem = path.stem
    url = url_of(path.parent)
    known = None if url is None else set(files_below(url))
    twins = [re.sub(r"(?i)(embeddings?|vectors?|features?|feats?|embs?)", word, stem) for word in ("labels", "label")]
    twins += ["y" + stem[1:]] if re.fullmatch(r"[xX](_.*)?", stem) else []
    # The names that say most come first; only within a line is there a choice.
    for names in (
        [f"{stem}.labels", f"{stem}_labels", f"{stem}-labels"],
        [twin for twin in twins if twin != stem],
        ["labels", "label", "y"],
        [stem, "metadata"],
    ):
        there = [path.with_name(name + ending) for name in dict.fromkeys(names) for ending in _ENDINGS]
        if known is not None:
            there = [here(file) for file in there if file.name in known]
        there = [file for file in there if file.is_file() and file != path]
        if len(there) == 1:
            return there[0]
        if there:
            shown = ", ".join(file.name for file in there)
            raise DataError(f"{path}: which of {shown} has its labels? `labels_file` chooses")
    raise DataError(
        f"{path}: holds vectors and no labels, and there is no file of labels beside it (labels.npy, "
        f"{stem}.labels.txt, {stem}.csv ...); `labels_file` names one"
    )


def _labels_in(file: Path, num_rows: int, vectors: Path, chosen: Columns) -> tuple[dict[str, Any], Columns]:
    """The columns of a file of labels, row for row, under divcon's names; and what is chosen then."""
    if not file.is_file():
        raise DataError(f"{file}: there is no such file of labels (`labels_file`)")
    suffix = file.suffix.lower()
    columns: dict[str, Any]
    if suffix == ".npy":
        array = _arrays(file).get("")
        if array is None or array.ndim != 1:
            shape = None if array is None else array.shape
            raise DataError(f"{file}: an array of labels has one dimension, and this has the shape {shape}")
        columns = {"label": array_column(str(file), "label", array)}
    elif suffix == ".json" and isinstance(values := _json_list(file), list):
        columns = {"label": array_column(str(file), "label", values)}
    elif is_table(file):
        columns = _columns_of_table(file, num_rows, chosen)
        chosen = Columns(vector=chosen.vector)
    else:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: this is not a text of labels in UTF-8 ({error.reason})") from None
        columns = {"label": pa.array(lines[:-1] if lines[-1] == "" else lines)}
    count = len(next(iter(columns.values())))
    if count != num_rows:
        raise DataError(
            f"{vectors}: holds {num_rows:,} vectors, and {file} has {count:,} labels; both need the same rows"
        )
    return columns, chosen


def _json_list(file: Path) -> Any:
    try:
        values = json.loads(file.read_bytes())
    except ValueError:
        return None
    return values if isinstance(values, list) and not any(isinstance(value, dict) for value in values) else None


def _columns_of_table(file: Path, num_rows: int, chosen: Columns) -> dict[str, Any]:
    first = load_file(file)
    if len(first.present) == 1 and len(first.rows) == num_rows - 1 and first.format == "csv":
        # A list of labels without the name of the column.
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return {"label": pa.array([line.strip().strip('"') for line in lines])}
    loaded = load_file(file, Columns(chosen.image, chosen.label, chosen.split))
    rows = loaded.rows
    if "label" not in rows.column_names and len(loaded.present) == 1:
        rows = load_file(file, Columns(label=loaded.present[0])).rows
    if "label" not in rows.column_names:
        raise DataError(
            f"{file}: there is no column 'label' among {', '.join(map(repr, loaded.present[:20]))}; `label_column` "
            "chooses another"
        )
    return {name: rows[name] for name in COLUMNS if name in rows.column_names}
