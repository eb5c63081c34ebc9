"""Read the icons benchmark, which ``tools/icons.py`` builds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from divcon.data.benchmark import Benchmark
from divcon.data.readers.table import read_table
from divcon.errors import DataError

ICONS_FILE = "icons.parquet"
ATTRIBUTION_FILE = "ATTRIBUTION.md"
MIN_IMAGES, MAX_IMAGES = 4, 40
"""The number of icon sets that draw the name of a class."""


@dataclass(frozen=True)
class IconCounts:
    """The numbers of drawings at each step of the build."""

    sets: int
    names: int
    drawings: int
    unrenderable: int
    blank: int
    repeated: int
    """Pixel-identical to another drawing of the same name."""
    ambiguous: int
    """Pixel-identical to a drawing of another name: both are dropped."""
    in_small_classes: int
    classes: int
    images: int

    def __str__(self) -> str:
        return (
            f"{self.sets} icon sets, {self.names:,} names drawn by {MIN_IMAGES} to {MAX_IMAGES} of them, "
            f"{self.drawings:,} drawings; dropped {self.unrenderable:,} that cannot be drawn, "
            f"{self.blank:,} blank, {self.repeated:,} repeated, {self.ambiguous:,} under two names, "
            f"{self.in_small_classes:,} of names with fewer than {MIN_IMAGES} left; {self.classes:,} classes "
            f"and {self.images:,} images remain"
        )


def read_icons(root: str | os.PathLike[str], *, name: str = "icons") -> Benchmark:
    """Read the icons benchmark: leave-one-out over the test classes. Training does not mirror images, because left and
    right arrows are different classes.

    Args:
        root: a folder that ``python tools/icons.py`` wrote, or its icons.parquet.

    Raises:
        DataError: there is no such file.
    """
    path = Path(root)
    path = path / ICONS_FILE if path.is_dir() else path
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file; `python tools/icons.py PACKAGE_DIR --out {path.parent}` makes it"
        )
    benchmark = read_table(path, flip=False)
    metadata = (pq.read_schema(path).metadata or {}).get(b"divcon_icons")
    if metadata is None:
        return replace(benchmark, name=name)
    counts = IconCounts(**json.loads(metadata))
    here = len(benchmark.train.label_names)
    note = f"{here:,} of {counts.classes:,} classes that {counts.sets} icon sets draw; {ATTRIBUTION_FILE} names them"
    return replace(benchmark, name=name, notes=(*benchmark.notes, note))
