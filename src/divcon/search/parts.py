"""Parts: the embeddings of a data set in parquet files, one for each block of its rows, which several processes write:
shards that a scheduler starts, or the workers of an engine (`divcon.search.on_ray`).

A part has a name of its own, and is written whole or not at all: written twice, it is there once. Each says what it was
computed from, so that an interrupted run goes on with the parts that are missing. The file ``shard-2-of-8.json`` says
that a shard is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.data.tables import VECTOR_COLUMN
from divcon.errors import ConfigError, DataError, StoreError
from divcon.runtime.context import Progress, Stage
from divcon.runtime.importing import is_named
from divcon.runtime.places import url_of
from divcon.search.about import About
from divcon.search.columns import types_in
from divcon.search.digests import key_of
from divcon.search.items import CHUNK, VECTORS, Items
from divcon.search.part_folder import PartFolder
from divcon.search.update import EmbeddedItems, Embedder, contents_of, embed, embeddings_of

if TYPE_CHECKING:
    from jaxtyping import Float32

T = TypeVar("T")

MOST_ROWS = 8192
_ABOUT, _INPUTS, _STAMPS = b"divcon about", b"divcon made of", b"divcon stamps"
_FILE = re.compile(r"part-(\d{8})\.parquet")
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)\.json")
_AT_ONCE = 16
"""Parts whose ends are read at once: each waits for a disk or network."""


def rows_of_parts(total: int | None) -> int:
    """The number of rows of a part, by the number of all: some dozen parts or more, of 1,024 to 8,192 rows.

    Args:
        total: None: unknown.
    """
    if total is None:
        return MOST_ROWS
    return min(max(-(-total // (64 * CHUNK)) * CHUNK, CHUNK), MOST_ROWS)


@dataclass(frozen=True)
class Layout:
    """What the parts of a folder hold."""

    about: About
    """Of the model: see `divcon.search.about.about_of`."""
    kind: Literal["items", "vectors"] = "items"
    """``items``: what an index is loaded from; ``vectors``: a table that `divcon.read` reads: path, label, the user's
    columns, embedding."""
    labels: bool = True
    """Of vectors: whether there is a column of labels."""

    @property
    def stage(self) -> Stage:
        """What the progress is reported as."""
        return "index" if self.kind == "items" else "embed"


@dataclass(frozen=True)
class Written:
    """What `PartWriter.write` did."""

    rows: int
    """Rows of the part."""
    kept: bool
    """Whether the part was there already."""


class PartWriter:
    """Embeds blocks of items into parts.

    Args:
            embedder: its learner is for vectors.
    """

    def __init__(self, embedder: Embedder, layout: Layout, folder: PartFolder) -> None:
        self.embedder = embedder
        self.layout = layout
        self.folder = folder

    def write(self, number: int, block: Items, on_progress: Callable[[int], None] | None = None) -> Written:
        """Embed a block into the part of this number, unless it is there, of the same images and the same model.

        Args:
            on_progress: called with the number of images that are embedded, after each batch.

        Raises:
            StoreError: the part is of another model.
            OutputError: it cannot be written.
            ImageError: an image does not decode, and the embedder does not skip it.
        """
        name, layout = name_of(number), self.layout
        block = block.checked()
        keys = block.keys().to_pylist()
        described = [keys, block.details().to_pylist(), *_types_as_text(block)]
        stamps = key_of(json.dumps([*described, stamps_of(block), layout.kind, self.embedder.learner, layout.labels]))
        known, num_rows = self._known(name)
        if known.get(_STAMPS) == stamps.encode():
            return Written(num_rows, True)

        def report(step: Progress) -> None:
            if on_progress is not None:
                on_progress(step.done)

        within = replace(self.embedder, context=replace(self.embedder.context, on_progress=report))
        metadata = {_ABOUT: json.dumps(layout.about.to_dict()).encode(), _STAMPS: stamps.encode()}
        if layout.kind == "items":
            contents = contents_of(block, self.embedder)
            inputs = key_of(json.dumps([keys, contents.to_pylist(), *described[1:]])).encode()
            if known.get(_INPUTS) == inputs:
                return Written(num_rows, True)
            readable = np.flatnonzero(contents.is_valid().to_numpy(zero_copy_only=False))
            rows = embed(block, contents, readable, within).rows
            metadata[_INPUTS] = inputs
        else:
            chosen, _, embeddings = embeddings_of(block, np.arange(len(block)), within)
            rows = _vectors_table(chosen, embeddings, layout.labels)
        self.folder.write_table(name, rows.replace_schema_metadata(metadata))
        return Written(len(rows), False)

    def _known(self, name: str) -> tuple[dict[bytes, bytes], int]:
        """What the part that is there says of its inputs, and its rows; nothing where there is none, or a damaged
        one."""
        metadata, num_rows = self.folder.about(name) or ({}, 0)
        if _ABOUT not in metadata:
            return {}, 0
        about = About.from_dict(json.loads(metadata[_ABOUT]), self.folder.where(name))
        about.check_same_model(self.layout.about, self.folder.where(name))
        return metadata, num_rows


def name_of(number: int) -> str:
    """The name of a part."""
    return f"part-{number:08d}.parquet"


def folder_beside(store: str) -> str:
    """The folder of the parts of a store in a folder, or at an address: ``STORE.parts``.

    Raises:
        ConfigError: the store is a database, or one of the user's own.
    """
    if store.startswith(("postgres", "qdrant")) or is_named(store):
        raise ConfigError(f"`parts`: of the store {store}, say in which folder the parts are to be", field="parts")
    return f"{store.rstrip('/')}.parts"


def _vectors_table(items: Items, embeddings: Float32[np.ndarray, "N D"], labels: bool) -> pa.Table:
    columns = {"path": pa.array(items.names, pa.string())}
    if labels:
        columns["label"] = pa.array(items.labels, pa.string())
    table = pa.table(columns)
    own = items.columns
    for field in () if own is None else own.schema:
        if own is not None and field.name not in (*table.column_names, VECTOR_COLUMN):
            table = table.append_column(field.remove_metadata(), own[field.name])
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
    return table.append_column(VECTOR_COLUMN, pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]))


def stamps_of(items: Items) -> list[str]:
    """What tells, without reading the images, that they are the same: sizes and times of the files; of vectors and
    images in memory, their digests. Objects at an address have none: a path is taken for one image."""
    images = items.images
    if images.vectors is not None:
        return items.contents().to_pylist()
    if images.encoded is not None:
        groups = getattr(images.encoded, "groups", None)
        if groups is None:
            return items.contents().to_pylist()
        files = sorted({str(file) for file, _ in groups})
        return [_stamp(file) for file in files] + [str(row) for row in images.rows.tolist()]
    return [_stamp(path) for path in items.paths()]


def _stamp(path: str) -> str:
    if url_of(path) is not None:
        return ""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


def write_shard(
    embedder: Embedder,
    about: About,
    chunks: Iterable[Items],
    folder: str | Path | PartFolder,
    shard: int = 1,
    shards: int = 1,
    *,
    layout: Layout | None = None,
    total: int | None = None,
) -> tuple[int, int]:
    """Embed every ``shards``-th chunk into a parquet file of its own, ``part-00000017.parquet``. A file that is there
    already, of the same images and the same model, is kept, so that an interrupted shard continues where it stopped.

    Args:
        about: of the embedder's model: see `divcon.search.about.about_of`.
        chunks: all chunks, the same for every shard.
        folder: a folder, or the address of one, such as ``s3://bucket/parts``.
        shard: the number of this shard, from 1.
        layout: what the parts hold; None: what an index is loaded from.
        total: the number of items of all chunks, for progress; None: unknown.

    Returns:
        The number of items embedded, and of those that were there already.

    Raises:
        StoreError: a file is of another model.
        OutputError: a file cannot be written.
        ImageError: an image does not decode, and the embedder does not skip it.
    """
    where = folder if isinstance(folder, PartFolder) else PartFolder(str(folder))
    writer = PartWriter(embedder, layout or Layout(about), where)
    begin_shard(where, shard, shards)
    embedded = kept = done = number = 0
    share = None if total is None else -(-total // shards)
    for number, chunk in enumerate(chunks, 1):
        if number % shards != shard % shards:
            continue
        before = done
        written = writer.write(
            number - 1,
            chunk,
            lambda step, before=before: embedder.context.progress(writer.layout.stage, before + step, share),
        )
        if written.kept:
            kept += written.rows
        else:
            embedded += written.rows
        done += len(chunk)
        embedder.context.progress(writer.layout.stage, done, share)
    commit_shard(where, number, shard, shards)
    return embedded, kept


def begin_shard(folder: PartFolder, shard: int = 1, shards: int = 1) -> None:
    """Say that a shard is not complete."""
    folder.remove(f"shard-{shard}-of-{shards}.json")


def commit_shard(folder: PartFolder, parts: int, shard: int = 1, shards: int = 1) -> None:
    """Say that all parts of a shard are there, and remove what is not of these images.

    Args:
        parts: the number of parts of all shards.
    """
    for name in folder.names():
        match = _FILE.fullmatch(name)
        if match and int(match[1]) >= parts and (int(match[1]) + 1) % shards == shard % shards:
            folder.remove(name)  # of images that are not among the chunks any more
    folder.write_text(f"shard-{shard}-of-{shards}.json", json.dumps({"parts": parts}) + "\n")


def _types_as_text(chunk: Items) -> list[list[tuple[str, str]]]:
    """The types of columns that are text in a store, and so the same in `Items.details`."""
    types = types_in(chunk.columns) if chunk.columns is not None else {}
    special = sorted((name, type_) for name, type_ in types.items() if type_ not in ("text", "int", "float", "bool"))
    return [special] if special else []


def complete_parts(folder: PartFolder, advice: str) -> list[str]:
    """The names of all parts, in order.

    Args:
        advice: how to write a shard, for the message.

    Raises:
        StoreError: there are no shards, one is incomplete, or a part is missing.
    """
    names = set(folder.names())
    complete = [match for name in names if (match := _SHARD.fullmatch(name))]
    if not complete:
        raise StoreError(f"{folder}: there is no complete shard; {advice}")
    shards = max(int(match[2]) for match in complete)
    complete = [match for match in complete if int(match[2]) == shards]
    missing = sorted(set(range(1, shards + 1)) - {int(match[1]) for match in complete})
    if missing:
        raise StoreError(f"{folder}: shard {missing[0]} of {shards} is not complete; run it (again)")
    counts = {json.loads(folder.read_text(match.string))["parts"] for match in complete}
    parts = [name_of(number) for number in range(max(counts))]
    gone = next((name for name in parts if name not in names), None)
    if len(counts) > 1 or gone is not None or not parts:
        reason = f"{gone} is missing" if gone else "the shards are of different images"
        raise StoreError(f"{folder}: {reason}; run the shards again, which embed only what is missing")
    return parts


def read_shards(folder: str | Path | PartFolder) -> tuple[About, int, Iterator[EmbeddedItems]]:
    """Read what `write_shard` wrote: what an index of these items says of its model, the number of items, and the
    items, chunk by chunk.

    Raises:
        StoreError: there are no shards, one is incomplete, or they are of several models.
    """
    where = folder if isinstance(folder, PartFolder) else PartFolder(str(folder))
    parts = complete_parts(where, f'write one with "divcon index RUN IMAGES --shard 1/N --parts {folder}"')
    about: About | None = None
    total = 0
    for name, (other, num_rows) in zip(parts, _mapped(lambda name: _about(where, name), parts), strict=True):
        about = about or other
        about.check_same_model(other, where.where(name))
        total += num_rows
    assert about is not None
    return about, total, rows_in(where, parts)


def rows_in(folder: PartFolder, names: Iterable[str]) -> Iterator[EmbeddedItems]:
    """The rows of parts as `EmbeddedItems.rows` describes them, some thousand at a time, whatever the files' sizes."""
    batches: list[pa.RecordBatch] = []
    for name in names:
        for batch in folder.batches(name, VECTORS):
            if batches and (batch.schema != batches[0].schema or sum(map(len, batches)) + len(batch) > VECTORS):
                yield _joined(batches)
                batches = []
            batches.append(batch)
    if batches:
        yield _joined(batches)


def _joined(batches: list[pa.RecordBatch]) -> EmbeddedItems:
    rows = pa.Table.from_batches(batches).replace_schema_metadata(None)
    return EmbeddedItems(rows if len(batches) == 1 else rows.combine_chunks())


def join_parts(folder: PartFolder, out: str) -> int:
    """Write the vectors of all parts into one parquet, and return the number of rows.

    Raises:
        StoreError: a part is missing.
        OutputError: the file cannot be written.
    """
    from divcon.runtime.files import atomic_write

    parts = complete_parts(folder, "run it again")
    rows, writer = 0, None
    with atomic_write(out) as beside:
        try:
            for name in parts:
                table = folder.read_table(name).replace_schema_metadata(None)
                writer = writer or pq.ParquetWriter(beside, table.schema)
                try:
                    writer.write_table(table.cast(writer.schema))
                except (pa.ArrowException, ValueError) as error:
                    raise DataError(f"{folder.where(name)}: has other columns than the first part ({error})") from None
                rows += len(table)
        finally:
            if writer is not None:
                writer.close()
    return rows


def _mapped(function: Callable[[str], T], names: list[str]) -> list[T]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, names))


def about_in(folder: PartFolder, name: str) -> About | None:
    """What a part says of its model; None if it is none, or a damaged one."""
    with suppress(StoreError):
        return _about(folder, name)[0]
    return None


def _about(folder: PartFolder, name: str) -> tuple[About, int]:
    with suppress(KeyError, ValueError, TypeError):
        metadata, num_rows = folder.about(name) or ({}, 0)
        return About.from_dict(json.loads(metadata[_ABOUT]), folder.where(name)), num_rows
    raise StoreError(f"{folder.where(name)}: damaged; remove it, and run its shard again")
