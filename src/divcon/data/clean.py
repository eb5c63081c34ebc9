"""A data set without the problems that a check reports, and a table of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from divcon.data.benchmark import Benchmark, checked_benchmark, counted
from divcon.data.check import CheckResult, Group, Item
from divcon.data.labeled_set import NO_PATH, LabeledSet
from divcon.data.readers.vectors import TablePart, table_parts, write_benchmark_vectors
from divcon.errors import ConfigError, DataError
from divcon.runtime.files import atomic_write
from divcon.runtime.places import is_url, joined, url_of

_SIDES = ("train", "validation", "test")
_ROWS_AT_A_TIME = 1024

_Key = tuple[str, int]
"""Source and row, which identify an image in two splits."""


@dataclass(frozen=True)
class LeftOut:
    """An image that was left out of a clean data set."""

    where: str
    label: str
    parts: tuple[str, ...]
    reason: str


def cleaned(benchmark: Benchmark, result: CheckResult) -> tuple[Benchmark, tuple[LeftOut, ...]]:
    """The benchmark without the problems in ``result``, and the images that were left out.

    Left out are images that do not decode and vectors of zeros; of copies, all but the first; of copies in train and in
    test or validation, those in train, so that the test stays as it is; all copies of an image that has two labels; and
    train images that are then alone in their class. Near copies stay. If one copy is a query and another is in the
    gallery, the copy that stays is both.

    Raises:
        DataError: too few images would be left to train and test on.
    """
    out: dict[_Key, LeftOut] = {}
    roles: dict[_Key, set[str]] = {}

    def leave_out(item: Item, reason: str) -> None:
        out[item.source, item.row] = LeftOut(item.where, item.label, item.parts, reason)

    for item in result.unreadable:
        leave_out(item, item.problem)
    for item in result.zeros:
        leave_out(item, "a vector of zeros")
    for group in result.copies:
        if (group[0].source, group[0].row) not in out:
            kept = _leave_out_copies(group, leave_out)
            if kept is not None:
                roles[kept.source, kept.row] = {part for item in group for part in item.parts}
    parts = benchmark.parts
    left = {
        part: images.subset(np.flatnonzero([k not in out for k in _keys(images)])) for part, images in parts.items()
    }
    train = left["train"]
    classes, sizes = np.unique(train.labels, return_counts=True)
    single = np.isin(train.labels, classes[sizes == 1])
    for i in np.flatnonzero(single).tolist():
        reason = "the only image left of its class in train"
        out[train.source, int(train.rows[i])] = LeftOut(train.where(i), train.label_name(i), ("train",), reason)
    left["train"] = train.subset(~single)
    if len(parts["train"]) and single.all():
        raise DataError(f"{benchmark.name}: no class of train would be left with two images; nothing was written")
    notes = () if not out else (f"left out by a check: {counted(len(out), 'image')}",)
    query = left.get("query", left.get("test"))
    gallery = left.get("gallery", query)
    assert query is not None and gallery is not None
    if query is not gallery:
        query, gallery = _with_roles(query, gallery, "query", roles), _with_roles(gallery, query, "gallery", roles)
    clean = checked_benchmark(
        benchmark.name,
        left["train"],
        query,
        gallery,
        validation=left.get("validation"),
        notes=notes,
        protocol="closed" if benchmark.closed else None,
    )
    return replace(clean, recall_at=benchmark.recall_at), tuple(out.values())


def check_suffix(out: Path, benchmark: Benchmark) -> None:
    """Raise ConfigError if the benchmark cannot be written to a file of this name."""
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{out}: a table is a CSV or a parquet; give a name that ends in .csv or .parquet")
    images = benchmark.query
    if out.suffix == ".csv" and (images.encoded is not None or images.vectors is not None):
        what = "images are bytes in a table" if images.vectors is None else "data is vectors"
        raise ConfigError(f"{out}: the {what}, which a CSV cannot hold; give a name that ends in .parquet")
    if any(out.resolve() == Path(part.source).resolve() for part in benchmark.parts.values() if part.source):
        raise ConfigError(f"{out}: this is the table that is read; give another name")


def write_table(out: Path, benchmark: Benchmark) -> None:
    """Write a benchmark as a table that `divcon.read` reads back, atomically.

    It is a CSV or parquet of paths, or a parquet of encoded images or vectors, as the benchmark has them, with the
    columns label and split, and is_query, is_gallery, camera, sequence and the sides of boxes if there are any. Paths
    of files below the table's folder are relative to it, all others absolute.

    Raises:
        ConfigError: the benchmark cannot be written to a file of this name.
        OutputError: the file cannot be written.
    """
    check_suffix(out, benchmark)
    if benchmark.query.vectors is not None:
        write_benchmark_vectors(out, benchmark, _vectors)
        return
    parts = [part for part in table_parts(benchmark) if len(part.images)]
    table = pa.concat_tables([_with_paths(part, out.parent) for part in parts], promote_options="default")
    with atomic_write(out) as beside:
        if benchmark.query.encoded is not None:
            _write_encoded(beside, table, parts)
        elif out.suffix == ".parquet":
            pq.write_table(table, beside)
        else:
            pyarrow.csv.write_csv(table, beside, pyarrow.csv.WriteOptions(quoting_style="needed"))


def _leave_out_copies(group: Group, leave_out: Callable[[Item, str], None]) -> Item | None:
    """Leave the copies of a group out, all but one; returns that one, or None if the labels differ."""
    side = max((item.side for item in group), key=_SIDES.index)
    stay = [item for item in group if item.side == side]
    for item in group:
        if item.side != side:
            leave_out(item, f"the same as {stay[0].where} of {side}")
    if len({item.label for item in stay}) > 1:
        for item in stay:
            other = next(other for other in stay if other.label != item.label)
            leave_out(item, f"also under the label {other.label!r}: {other.where}")
        return None
    for item in stay[1:]:
        leave_out(item, f"the same as {stay[0].where}")
    return stay[0]


def _keys(images: LabeledSet) -> list[_Key]:
    return [(images.source, row) for row in images.rows.tolist()]


def _with_roles(images: LabeledSet, other: LabeledSet, part: str, roles: dict[_Key, set[str]]) -> LabeledSet:
    """The images, with those of the other set whose copies in this set were left out."""
    here = set(_keys(images))
    moved = [i for i, key in enumerate(_keys(other)) if part in roles.get(key, ()) and key not in here]
    return images.joined(other.subset(np.array(moved))) if moved else images


def _with_paths(part: TablePart, folder: Path) -> pa.Table:
    """The columns of a split, with paths that open from the folder."""
    table, images = part.table(), part.images
    base = os.path.abspath(folder)  # noqa: PTH100
    if images.encoded is None:
        files = (joined(images.root, path) for path in images.paths.to_pylist())
        whole = (file if isinstance(file, str) else os.path.abspath(file) for file in files)  # noqa: PTH100
        below = url_of(folder)
        prefix = f"{below}/" if below else os.path.join(base, "")  # noqa: PTH118
        rest = (path.removeprefix(prefix) for path in whole)
        paths = pa.array([path if is_url(path) else Path(path).as_posix() for path in rest], pa.string())
    else:
        paths = pa.array([None if path == NO_PATH else path for path in images.paths.to_pylist()], pa.string())
    return table.set_column(table.column_names.index("path"), "path", paths)


def _write_encoded(path: Path, table: pa.Table, parts: Sequence[TablePart]) -> None:
    schema = table.schema.append(pa.field("image", pa.binary()))
    with pq.ParquetWriter(path, schema) as writer:
        done = 0
        for part in parts:
            encoded = part.images.encoded
            assert encoded is not None
            for start in range(0, len(part.images), _ROWS_AT_A_TIME):
                rows = part.images.rows[start : start + _ROWS_AT_A_TIME].tolist()
                content = pa.array([encoded[row].as_py() for row in rows], pa.binary())
                batch = table.slice(done, len(rows)).combine_chunks()
                writer.write_table(batch.append_column(schema.field("image"), content))
                done += len(rows)


def _vectors(images: LabeledSet) -> np.ndarray:
    assert images.vectors is not None
    return images.vectors
