"""Bringing a store up to date: what is new or changed is embedded and written, the rest stays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.data.loading import decodable
from divcon.data.readers.table import pc
from divcon.errors import DataError, ImageError, StoreError
from divcon.models import EmbeddingModel
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.files import atomic_write
from divcon.search.about import KINDS, About
from divcon.search.items import Items, key_of
from divcon.search.neighbours import Neighbours, choose_effort
from divcon.search.stores.base import FIXED_COLUMNS, Store, StoredItem, schema_of


@dataclass(frozen=True)
class Embedding:
    """How items are embedded."""

    model: EmbeddingModel
    batch_size: int = 128
    skip: bool = False
    """Leave out images that do not decode, with a warning; else they are an error."""
    context: Context = DEFAULT


@dataclass(frozen=True)
class Changes:
    """What bringing a store up to date did."""

    added: int = 0
    changed: int = 0
    """Whose image was another one, or whose label or columns were."""
    embedded: int = 0
    """Of those added and changed: whose embedding had to be computed."""
    removed: int = 0
    kept: int = 0
    skipped: int = 0
    """That did not decode, and were to be skipped."""
    missing: int = 0
    """In the store, and not in the data; they stay unless they are to be removed."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """Items with all that a store needs of them."""

    rows: pa.Table
    """key, path, box, label, content, details, embedding, and the user's columns under the user's names."""


def embedded(items: Items, contents: list[str], embeddings: np.ndarray) -> Embedded:
    """Items with their digests and (N, D) float32 embeddings, as `write_chunk` and parts want them."""
    width = embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
    columns = {
        "key": pa.array(items.keys(), pa.string()),
        "path": pa.array(items.paths(), pa.string()),
        "box": pa.array(items.boxes(), pa.string()),
        "label": pa.array(items.labels, pa.string()),
        "content": pa.array(contents, pa.string()),
        "details": pa.array(items.details(), pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
    }
    if items.columns is not None:
        columns |= {f"meta {name}": items.columns[name] for name in items.columns.column_names}
    return Embedded(pa.table(columns))


class Updating:
    """One pass over the data, by the store's only writer."""

    def __init__(self, store: Store, delete_missing: bool) -> None:
        self.store = store
        self.about = store.about()
        self.changes = Changes()
        self._delete_missing = delete_missing
        self._next = store.next_id()
        self._before = self._next
        self._seen = np.zeros(self._next, bool)

    def _known(self, keys: list[str]) -> dict[str, StoredItem]:
        """What the store has of these; it counts as seen."""
        known = self.store.lookup(keys)
        old = np.fromiter((found.id for found in known.values()), np.int64, len(known))
        self._seen[old[old < self._before]] = True
        return known

    def embed(self, chunks: Iterable[Items], how: Embedding) -> Iterator[int]:
        """Embed and write what the store has not, or not as it is now; after each chunk, how many items are done.

        Raises:
            ImageError: an image does not decode, and is not to be skipped; the chunks before are written.
        """
        done = 0
        for items in chunks:
            self._embed(items, how)
            done += len(items)
            yield done

    def load(self, parts: Iterable[Embedded]) -> Iterator[int]:
        """Write what the store has not, or not as it is now, of items that were embedded elsewhere; after each part,
        how many items are done."""
        done = 0
        for part in parts:
            self._load(part)
            done += len(part.rows)
            yield done

    def _embed(self, items: Items, how: Embedding) -> None:
        known = self._known(items.keys())
        contents = contents_of(items, how)
        keys, details = items.keys(), items.details()
        new = [i for i, c in enumerate(contents) if c and (keys[i] not in known or known[keys[i]].content != c)]
        other = [
            i
            for i, c in enumerate(contents)
            if c and keys[i] in known and known[keys[i]].content == c and known[keys[i]].details != details[i]
        ]
        made, made_contents, embeddings = embed(items, contents, np.array(new, np.int64), how)
        if len(made):
            self._write(embedded(made, made_contents, embeddings), known)
        if other:
            some = items.take(np.array(other))
            ids = np.array([known[keys[i]].id for i in other])
            found, vectors = self.store.embeddings(ids)
            order = np.argsort(found)[np.searchsorted(np.sort(found), ids)]
            self._write(embedded(some, [contents[i] or "" for i in other], vectors[order]), known)
        unread = contents.count(None)
        kept = len(items) - unread - len(new) - len(other)
        self._count(embedded=len(made), kept=kept, skipped=unread + len(new) - len(made))

    def _load(self, rows: Embedded) -> None:
        keys = rows.rows["key"].to_pylist()
        known = self._known(keys)
        pairs = zip(keys, rows.rows["content"].to_pylist(), rows.rows["details"].to_pylist(), strict=True)
        new = [
            i
            for i, (key, content, details) in enumerate(pairs)
            if key not in known or (known[key].content, known[key].details) != (content, details)
        ]
        if new:
            self._write(Embedded(rows.rows.take(pa.array(new, pa.int64()))), known)
        self._count(kept=len(keys) - len(new))

    def _write(self, chunk: Embedded, known: dict[str, StoredItem]) -> None:
        """Write the rows, those of known keys in place of what is there."""
        rows, keys = chunk.rows, chunk.rows["key"].to_pylist()
        about = self._with_columns(rows)
        changed = np.array([key in known for key in keys])
        ids = np.array([known[key].id if key in known else -1 for key in keys], np.int64)
        added = int((~changed).sum())
        ids[~changed] = np.arange(self._next, self._next + added)
        stored = _as_stored(rows, ids, about)
        new, old = stored.filter(pa.array(~changed)), stored.filter(pa.array(changed))
        with self.store.changing():
            if len(new):
                self.store.append(new)
            if len(old):
                self.store.write(old)
        self._next += added
        self._count(added=added, changed=int(changed.sum()))

    def end(self) -> None:
        """Remove what was not seen, if it is to be, or count it."""
        missing = self.store.ids()
        missing = missing[(missing < self._before)]
        missing = missing[~self._seen[missing]]
        if self._delete_missing and len(missing):
            with self.store.changing():
                self.store.delete(missing)
            self._count(removed=len(missing))
        else:
            self._count(missing=len(missing))

    def _with_columns(self, rows: pa.Table) -> About:
        own = rows.select([name for name in rows.column_names if name.startswith("meta ")])
        own = own.rename_columns([name.removeprefix("meta ") for name in own.column_names])
        about = self.about.with_columns(own.schema)
        if about != self.about:
            self.store.set_about(about)
            self.about = about
        return about

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.changes, name) + number for name, number in more.items()}
        self.changes = replace(self.changes, **counts)


def bring_up_to_date(
    store: Store, neighbours: Neighbours, write: Callable[[Updating], None], *, delete_missing: bool = False
) -> Changes:
    """Write to a store as its only writer, and bring its approximate index up to date where it is large enough.

    Raises:
        StoreError: another process is writing.
    """
    with store.writing():
        updating = Updating(store, delete_missing)
        write(updating)
        updating.end()
        changes, about = updating.changes, store.about()
        ann = store.count() >= about.ann_from
        if changes.added or changes.changed or changes.removed or (ann and about.effort is None):
            effort, recall = choose_effort(store, neighbours) if store.optimize(ann) and ann else (None, None)
            store.set_about(replace(about, effort=effort, recall=recall))
    return changes


def contents_of(items: Items, how: Embedding) -> list[str | None]:
    """The digest of each image; None where it cannot be read and is to be skipped.

    Raises:
        ImageError: it cannot be read.
    """
    contents: list[str | None] = []
    for i in range(len(items)):
        try:
            contents.append(items.content(i))
        except ImageError as error:
            if not how.skip:
                raise
            how.context.warn(f"left out: {error}")
            contents.append(None)
    return contents


def embed(
    items: Items, contents: list[str | None], wanted: np.ndarray, how: Embedding
) -> tuple[Items, list[str], np.ndarray]:
    """Those of the wanted items that decode, their digests, and their (n, D) float32 embeddings."""
    if how.skip and len(wanted):
        try:
            rows = decodable(items.images.subset(wanted), how.context.silent()).rows
        except DataError:
            rows = np.empty(0, np.int64)
        wanted = wanted[np.isin(items.images.rows[wanted], rows)]
    made = items.take(wanted)
    if not len(made):
        return made, [], np.empty((0, how.model.embedding_dim), np.float32)
    embeddings = how.model.encode(made.images, batch_size=how.batch_size, context=how.context.silent())
    broken = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if len(broken):
        raise DataError(f"{made.names[broken[0]]}: the model gives NaN or infinite numbers; it cannot be indexed")
    return made, [contents[i] or "" for i in wanted], embeddings


def _as_stored(rows: pa.Table, ids: np.ndarray, about: About) -> pa.Table:
    """The rows in the store's columns; those of the user's that they lack are empty."""
    columns = [pa.array(ids), *(rows[name] for name in FIXED_COLUMNS[1:]), rows["embedding"]]
    for column in about.columns:
        name, kind = f"meta {column.name}", KINDS[column.kind]
        values = rows[name].cast(kind) if name in rows.column_names else pa.nulls(len(rows), kind)
        if column.kind == "number":
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
        columns.append(values)
    return pa.table(columns, schema=schema_of(about))


_ABOUT, _MADE_OF = b"divcon about", b"divcon made of"
_PART = re.compile(r"part-(\d{8})\.parquet")
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)\.json")


def write_parts(
    how: Embedding,
    about: About,
    chunks: Iterable[Items],
    folder: Path,
    shard: int = 1,
    shards: int = 1,
) -> tuple[int, int]:
    """Embed every ``shards``-th chunk into a parquet of its own, ``part-00000017.parquet``, whole or not at all. One
    that is there and was made of the same images by the same model stays, so that an interrupted shard goes on.

    Args:
        how: the model, and how it embeds.
        about: of the model: see `divcon.search.stores.base`.
        chunks: all chunks, the same for every shard.
        shard: which of the ``shards`` it is, from 1.

    Returns:
        How many items were embedded, and how many were there.

    Raises:
        StoreError: a part is of another model.
        OutputError: a part cannot be written.
        ImageError: an image does not decode, and is not to be skipped.
    """
    ended = folder / f"shard-{shard}-of-{shards}.json"
    ended.unlink(missing_ok=True)
    made = kept = done = number = 0
    for number, chunk in enumerate(chunks, 1):
        if number % shards != shard % shards:
            continue
        part = folder / f"part-{number - 1:08d}.parquet"
        contents = contents_of(chunk, how)
        made_of = key_of(json.dumps([chunk.keys(), contents, chunk.details()]))
        if _made_of(part, about) == made_of:
            kept += len(chunk)
        else:
            wanted = np.array([i for i, content in enumerate(contents) if content], np.int64)
            rows = embedded(*embed(chunk, contents, wanted, how)).rows
            told = {_ABOUT: json.dumps(about.to_dict()).encode(), _MADE_OF: made_of.encode()}
            with atomic_write(part) as beside:
                pq.write_table(rows.replace_schema_metadata(told), beside)
            made += len(rows)
        done += len(chunk)
        how.context.progress("index", done, None)
    for part in folder.glob("part-*.parquet"):
        found = _PART.fullmatch(part.name)
        if found and int(found[1]) >= number and (int(found[1]) + 1) % shards == shard % shards:
            part.unlink()  # of images that are not listed any more
    with atomic_write(ended) as beside:
        beside.write_text(json.dumps({"parts": number}) + "\n")
    return made, kept


def _made_of(part: Path, about: About) -> str | None:
    try:
        told = pq.read_schema(part).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    About.from_dict(json.loads(told[_ABOUT]), str(part)).check_same_model(about, str(part))
    return told[_MADE_OF].decode()


def read_parts(folder: Path) -> tuple[About, int, Iterator[Embedded]]:
    """Of what model the parts in a folder are, how many items there are, and the items, a part at a time.

    Raises:
        StoreError: there are none, a shard has not ended, or parts are of several models.
    """
    ends = [found for path in folder.glob("shard-*.json") if (found := _SHARD.fullmatch(path.name))]
    if not ends:
        raise StoreError(f"{folder}: no shard has ended here; run divcon index RUN IMAGES --shard 1/N --parts {folder}")
    shards = max(int(found[2]) for found in ends)
    missing = sorted(set(range(1, shards + 1)) - {int(found[1]) for found in ends if int(found[2]) == shards})
    if missing:
        raise StoreError(f"{folder}: shard {missing[0]} of {shards} has not ended; run it (again) with --shard")
    counts = {json.loads((folder / found.string).read_text())["parts"] for found in ends if int(found[2]) == shards}
    paths = [folder / f"part-{number:08d}.parquet" for number in range(max(counts))]
    gone = next((path for path in paths if not path.is_file()), None)
    if len(counts) > 1 or gone is not None or not paths:
        what = f"{gone.name} is missing" if gone else "the shards were of different images"
        raise StoreError(f"{folder}: {what}; run the shards again, which embed only what is missing")
    about: About | None = None
    for path in paths:
        own = _about(path)
        about = about or own
        about.check_same_model(own, str(path))
    assert about is not None
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    return about, total, (Embedded(pq.read_table(path).replace_schema_metadata(None)) for path in paths)


def _about(path: Path) -> About:
    with suppress(OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return About.from_dict(json.loads((pq.read_schema(path).metadata or {})[_ABOUT]), str(path))
    raise StoreError(f"{path}: damaged; remove it, and run its shard again")
