"""The icons benchmark, once it is built (``divcon.data.icons`` builds it)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from divcon.data.icons import ATTRIBUTION_FILE, ICONS_FILE, IconCounts
from divcon.data.image_set import Benchmark
from divcon.data.table import read_table
from divcon.errors import DataError


def read_icons(root: str | os.PathLike[str], *, name: str = "icons") -> Benchmark:
    """The benchmark in ``root``, a folder that ``divcon data icons`` made, or its icons.parquet.

    Leave-one-out over the test classes; no flip, because left and right arrows are different classes.

    Raises:
        DataError: there is none.
    """
    path = Path(root)
    path = path / ICONS_FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; `divcon data icons PACKAGE_DIR --out {path.parent}` makes it")
    benchmark = read_table(path, flip=False)
    metadata = (pq.read_schema(path).metadata or {}).get(b"divcon_icons")
    if metadata is None:
        return replace(benchmark, name=name)
    counts = IconCounts(**json.loads(metadata))
    here = len(benchmark.train.label_names)
    note = f"{here:,} of {counts.classes:,} classes that {counts.sets} icon sets draw; {ATTRIBUTION_FILE} names them"
    return replace(benchmark, name=name, notes=(*benchmark.notes, note))
