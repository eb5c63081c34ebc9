"""One table, or several one after another, as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.data.source import Source
from divcon.data.table_file import IMAGE_COLUMN, VECTOR_COLUMN, column_names, is_parquet, load_table, require_columns
from divcon.errors import DataError

pc: Any = pyarrow.compute
"""Any, because its functions are made at import and type checkers see none."""

Kind = Literal["files", "encoded", "vectors"]


@dataclass(frozen=True)
class TableFile:
    """A table to be read as one of several."""

    path: Path
    split: str | None = None
    """The split of its rows, unless it has the column."""
    folder: str = ""
    """What its relative paths start from, below the root of all."""


@dataclass(frozen=True)
class Tables:
    """The rows of all files, in order."""

    name: str
    source: Source
    files: tuple[Path, ...]
    kind: Kind
    """Whether rows stand for files that they name, for images in the column ``image``, or for vectors."""
    rows: pa.Table
    """Their columns among COLUMNS."""
    columns: tuple[frozenset[str], ...]
    """Those that each file has."""
    root: str
    """The folder that relative paths start from."""

    def require(self, names: Iterable[str], hint: str) -> None:
        """Raise DataError if a file lacks a column, naming those it has."""
        for path, columns in zip(self.files, self.columns, strict=True):
            require_columns(path, columns, names, hint)


def load_tables(name: str, source: str, files: Sequence[TableFile], root: str) -> Tables:
    """Load files as one.

    Raises:
        DataError: as ``load_table``; or the files are of several kinds.
    """
    tables, kinds, starts, start = [], [], [], 0
    for file in files:
        table = load_table(file.path)
        kinds.append(_kind_of(file.path))
        starts.append((str(file.path), start))
        start += len(table)
        if len(files) > 1 or file.split or file.folder:
            table = _as_one_of_several(table, file)
        tables.append(table)
    for file, kind in zip(files, kinds, strict=True):
        if kind != kinds[0]:
            raise DataError(
                f"{source}: {files[0].path.name} holds {_IN_WORDS[kinds[0]]}, and {file.path.name} {_IN_WORDS[kind]}; "
                "keep files of one kind together"
            )
    return Tables(
        name=name,
        source=Source(source, tuple(starts) if len(files) > 1 or str(files[0].path) != source else ()),
        files=tuple(file.path for file in files),
        kind=kinds[0],
        rows=tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default"),
        columns=tuple(frozenset(table.column_names) for table in tables),
        root=root,
    )


_IN_WORDS = {"files": "names of files", "encoded": "encoded images", "vectors": "vectors"}


def _kind_of(path: Path) -> Kind:
    columns = column_names(path)
    if is_parquet(path) and VECTOR_COLUMN in columns:
        return "vectors"
    return "encoded" if IMAGE_COLUMN in columns else "files"


def _as_one_of_several(table: pa.Table, file: TableFile) -> pa.Table:
    """The columns as text, paths below the root of all, and the split that the file stands for."""
    for i, name in enumerate(table.column_names):
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        column = column.cast(pa.string())
        if name == "path" and file.folder:
            below = pc.binary_join_element_wise(file.folder, column, "/")
            column = pc.if_else(pc.match_substring_regex(column, r"^(/|\\|[A-Za-z]:)|^\s*$"), column, below)
        table = table.set_column(i, name, column)
    if file.split and "split" not in table.column_names:
        indices = pa.array(np.zeros(len(table), np.int8))
        split = pa.DictionaryArray.from_arrays(indices, pa.array([file.split])).cast(pa.string())
        table = table.append_column("split", split)
    return table
