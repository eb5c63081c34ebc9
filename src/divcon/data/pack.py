"""Pack a benchmark: its images, decoded and resized once, in parquet files for random access, which ``divcon.read``
reads back as the same benchmark, and other programs as a table.

``pack.json`` describes the benchmark. It is written last: a folder without it is incomplete.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from divcon.data.benchmark import Benchmark
from divcon.data.decode import deep_values
from divcon.data.image_files import is_system
from divcon.data.in_memory import encoded
from divcon.data.labeled_set import LabeledSet
from divcon.data.readers.table import ABOUT
from divcon.data.readers.vectors import benchmark_table, table_parts
from divcon.data.tables import BOX_COLUMNS, IMAGE_COLUMN
from divcon.errors import ConfigError, DataError, ImageError, RunError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here, opened
from divcon.runtime.files import atomic_write
from divcon.runtime.lock import LOCK_FILE, FolderLock
from divcon.runtime.places import text_of

IMAGES_A_FILE = 4096
IMAGES_A_GROUP = 16
"""Images per row group, which is read as a whole for each of its images; mostly from the system's file cache."""
_SIGNATURE = b"divcon.pack"


@dataclass(frozen=True)
class Packing:
    """How images are resized and encoded."""

    short_side: int = 256
    """Pixels of the shorter side; smaller images stay as they are. Evaluation at 224 pixels resizes to 256 (2019)."""
    lossless: bool = False
    """Encode resized images as lossless WebP; else as JPEG."""
    quality: int = 95
    """JPEG quality, up to 100."""
    interpolation: str = "bilinear"
    """bilinear, or bicubic for backbones that were trained with it."""

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise ConfigError(f"`short_side` {self.short_side}: must be at least 1", field="short_side")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"`quality` {self.quality}: must be from 1 to 100", field="quality")

    def __str__(self) -> str:
        how = "without loss" if self.lossless else f"as JPEG of quality {self.quality}"
        return f"shorter side {self.short_side} ({self.interpolation}), {how}"

    def of(self, images: LabeledSet, index: int) -> bytes:
        """The bytes that are stored for an image: those of its file, if it is small enough and has no box.

        Raises:
            ImageError: it does not decode.
        """
        if (deep := _deep_content(images, index)) is not None:
            return deep
        image = images.open(index, 2 * self.short_side)
        if min(image.size) <= self.short_side and (images.boxes is None or images.boxes[index][0] < 0):
            return images.content(index)
        resized: Any = image
        if min(image.size) > self.short_side:
            from torchvision.transforms import InterpolationMode
            from torchvision.transforms.v2 import functional

            interpolation = InterpolationMode(self.interpolation)
            resized = functional.resize(resized, [self.short_side], interpolation=interpolation)
        out = io.BytesIO()
        if self.lossless:
            resized.save(out, "WEBP", lossless=True)
        else:
            resized.save(out, "JPEG", quality=self.quality, subsampling=0)
        return out.getvalue()


def _deep_content(images: LabeledSet, index: int) -> bytes | None:
    """The bytes of an image with more than 8 bits a channel, cut to its box and not resized: resizing needs the range
    of values that becomes black and white, which is the model's. None for other images.

    Raises:
        ImageError: its file cannot be read, or it has a box and colours.
    """
    content = images.content(index)
    try:
        values = deep_values(content)
    except Exception:  # decoding names what is wrong
        return None
    if values is None or images.boxes is None or images.boxes[index][0] < 0:
        return None if values is None else content
    if values.ndim > 2:
        raise ImageError(f"{images.where(index)}: has 16-bit colours and a box, which cannot be packed; crop it first")
    left, top, right, bottom = images.boxes[index].tolist()
    return encoded(Image.fromarray(values[top:bottom, left:right]))


def pack(
    data: Benchmark,
    out: str | Path,
    packing: Packing | None = None,
    *,
    context: Context = DEFAULT,
) -> Path:
    """Write a benchmark's images into a folder that ``divcon.read`` reads back as the same benchmark, with the same
    ``split_hash``. After an interruption, call it again: it goes on with the first file that is incomplete.

    Args:
        out: the folder to write, or one with an incomplete pack of the same data and settings.
        context: reports the images packed.

    Raises:
        DataError: the data holds vectors, or no images; or reading it back gives another benchmark.
        ImageError: an image does not decode; the message names it.
        RunError: the folder holds something else, or another process packs into it.
        OutputError: the folder cannot be written.
    """
    packing, out = packing or Packing(), here(out)
    if any(part.images.vectors is not None for part in table_parts(data)):
        raise DataError(f"{data.name}: holds vectors; there are no images to pack")
    files = _files(data, packing, out)
    with FolderLock(out, "packing into it", RunError):
        _check_mine(out, [file.path for file in files])
        total, done = sum(len(file.rows) for file in files), 0
        for file in files:
            if not file.is_whole():
                file.write(packing, context.subtask("pack", before=done, total=total))
            done += len(file.rows)
            context.progress("pack", done, total)
        about = {
            "name": data.name,
            "packed": f"packed from {text_of(data.train.source or data.query.source)}: {packing}",
            "recall_at": list(data.recall_at),
            "random_galleries": data.random_galleries,
            "flip": data.train.flip,
            "notes": list(data.notes),
            "split_hash": data.split_hash,
            "closed": data.closed,
        }
        with atomic_write(out / ABOUT) as beside:
            beside.write_text(json.dumps(about, indent=2) + "\n")
    return out


@dataclass(frozen=True)
class _File:
    """One parquet file of a pack."""

    path: Path
    rows: pa.Table
    """All columns except the images."""
    images: list[LabeledSet]
    """The images of these rows: of one split, or of query and then gallery."""
    signature: bytes
    """Identifies its content: the rows, and how they are packed."""

    def is_whole(self) -> bool:
        if not self.path.exists():
            return False
        try:
            signature = (pq.read_schema(opened(self.path)).metadata or {}).get(_SIGNATURE)
        except (pa.ArrowException, OSError):
            signature = None
        if signature != self.signature:
            raise RunError(f"{text_of(self.path)}: is of other data or other settings; use another `out`, or remove it")
        return True

    def write(self, packing: Packing, context: Context) -> None:
        schema = self.rows.schema.append(pa.field(IMAGE_COLUMN, pa.binary()))
        schema = schema.with_metadata({**(schema.metadata or {}), _SIGNATURE: self.signature})
        options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
        with atomic_write(self.path) as beside, pq.ParquetWriter(beside, schema, **options) as writer:
            group: list[bytes] = []
            for number, content in enumerate(self._contents(packing, context), 1):
                group.append(content)
                if len(group) == IMAGES_A_GROUP or number == len(self.rows):
                    rows = self.rows.slice(number - len(group), len(group)).combine_chunks()
                    writer.write_table(rows.append_column(schema.field(IMAGE_COLUMN), pa.array(group, pa.binary())))
                    group = []
                context.progress("pack", number, len(self.rows))

    def _contents(self, packing: Packing, context: Context) -> Iterator[bytes]:
        from divcon.data.loading import each

        for images in self.images:
            for content in each(images, packing.of, context=context):
                if isinstance(content, str):
                    raise ImageError(content)
                yield content


def _check_mine(out: Path, files: list[Path]) -> None:
    names = {path.name for path in files}
    known = {*names, *(f"{name}.new" for name in names), ABOUT, f"{ABOUT}.new", LOCK_FILE}
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in known and not is_system(entry.name))
    if foreign:
        raise RunError(f"{text_of(out)}: holds {foreign[0]}, which is not of this pack; use another `out`")


def _files(data: Benchmark, packing: Packing, out: Path) -> list[_File]:
    parts = [part for part in table_parts(data) if len(part.images)]
    if not parts:
        raise DataError(f"{data.name}: there are no images to pack")
    table = benchmark_table(parts)
    table = table.drop_columns([name for name in BOX_COLUMNS if name in table.column_names])
    files, before = [], 0
    for split, group in itertools.groupby(parts, key=lambda part: part.split):
        sets = [part.images for part in group]
        size = sum(map(len, sets))
        count = -(-size // IMAGES_A_FILE)
        for number in range(count):
            start = number * IMAGES_A_FILE
            rows = table.slice(before + start, min(IMAGES_A_FILE, size - start))
            images = _slice(sets, start, start + len(rows))
            path = out / f"{split}-{number:05d}-of-{count:05d}.parquet"
            digest = hashlib.sha256(repr((packing, path.name)).encode() + _bytes_of(rows))
            files.append(_File(path, rows, images, digest.hexdigest().encode()))
        before += size
    return files


def _slice(sets: list[LabeledSet], start: int, stop: int) -> list[LabeledSet]:
    """Images ``start`` to ``stop`` of the concatenated sets."""
    slices, before = [], 0
    for images in sets:
        first, last = max(0, start - before), min(len(images), stop - before)
        if first < last:
            slices.append(images.subset(np.arange(first, last)))
        before += len(images)
    return slices


def _bytes_of(rows: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows.combine_chunks())
    return memoryview(sink.getvalue())
