"""Update an index: embed and write new and changed items, or load those that other processes embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from divcon.errors import DataError, ImageError
from divcon.runtime.context import DEFAULT, Context, Progress
from divcon.search.about import About
from divcon.search.columns import TYPES, as_in_index, typed
from divcon.search.items import Items, details_of
from divcon.search.neighbours import Neighbours, choose_effort
from divcon.search.stores.base import FIXED_COLUMNS, Store, StoredItem, schema_of

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

    from divcon.models import EmbeddingModel


@dataclass(frozen=True)
class Embedder:
    """A model, and how it embeds items."""

    model: EmbeddingModel
    batch_size: int = 128
    skip: bool = False
    """Leave out images that do not decode, with a warning; False: they are an error."""
    context: Context = DEFAULT
    learner: int | None = None
    """Embed in this learner's subspace; None: in all of them."""


@dataclass(frozen=True)
class Changes:
    """The numbers of items that an update added, changed and so on."""

    added: int = 0
    changed: int = 0
    """Items whose image, label or columns changed."""
    embedded: int = 0
    """Items, among those added and changed, whose images were embedded."""
    removed: int = 0
    kept: int = 0
    skipped: int = 0
    """Images that did not decode, and were left out."""
    missing: int = 0
    """Items in the index that are not in the data, and stay."""


@dataclass(frozen=True, eq=False)
class EmbeddedItems:
    """Items with their embeddings and digests, ready to be stored."""

    rows: pa.Table
    """The columns key, path, box, label, content, details, embedding, and the user's as ``meta NAME``."""


def with_embeddings(items: Items, contents: list[str], embeddings: Float32[np.ndarray, "N D"]) -> EmbeddedItems:
    """Join items with their embeddings and the digests of their content."""
    width = embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
    table = pa.table(
        {
            "key": pa.array(items.keys(), pa.string()),
            "path": pa.array(items.paths(), pa.string()),
            "box": pa.array(items.boxes(), pa.string()),
            "label": pa.array(items.labels, pa.string()),
            "content": pa.array(contents, pa.string()),
            "details": pa.array(items.details(), pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
        }
    )
    if items.columns is not None:
        for field in items.columns.schema:
            table = table.append_column(field.with_name(_META + field.name), items.columns[field.name])
    return EmbeddedItems(table)


_META = "meta "
"""What the user's columns begin with in `EmbeddedItems.rows`."""


def _user_columns(rows: pa.Table) -> pa.Table:
    """The user's columns of embedded items, under their own names."""
    own = rows.select([name for name in rows.column_names if name.startswith(_META)])
    return own.rename_columns([name.removeprefix(_META) for name in own.column_names])


def _with_user_columns(rows: pa.Table, columns: pa.Table) -> pa.Table:
    """Embedded items with these columns in place of the user's, and the digests of them."""
    rows = rows.select([name for name in rows.column_names if not name.startswith(_META)])
    for field in columns.schema:
        rows = rows.append_column(field.with_name(_META + field.name), columns[field.name])
    details = pa.array(details_of(rows["label"].to_pylist(), columns if columns.num_columns else None), pa.string())
    return rows.set_column(rows.column_names.index("details"), "details", details)


class Update:
    """One pass over the data, by the store's only writer."""

    def __init__(self, store: Store, delete_missing: bool) -> None:
        self.store = store
        self.about = store.about()
        self.changes = Changes()
        self._delete_missing = delete_missing
        self._next_id = store.next_id()
        self._first_new = self._next_id
        self._in_data = np.zeros(self._next_id, bool)

    def _known(self, keys: list[str]) -> dict[str, StoredItem]:
        """The items of these keys that are in the store; they count as part of the data."""
        known = self.store.lookup(keys)
        old = np.fromiter((item.id for item in known.values()), np.int64, len(known))
        self._in_data[old[old < self._first_new]] = True
        return known

    def embed(self, chunks: Iterable[Items], embedder: Embedder, total: int | None = None) -> Iterator[int]:
        """Embed and write the items that are new or changed; after each chunk, yield the number of items processed.

        Args:
            total: the number of all items, for the progress that is reported after each batch; None: unknown.

        Raises:
            ImageError: an image does not decode, and the embedder does not skip it; the chunks before are written.
        """
        done = 0
        for items in chunks:
            self._embed(items, embedder, done, total)
            done += len(items)
            yield done

    def load(self, chunks: Iterable[EmbeddedItems]) -> Iterator[int]:
        """Write the items that are new or changed; after each chunk, yield the number of items processed."""
        done = 0
        for chunk in chunks:
            self._load(chunk)
            done += len(chunk.rows)
            yield done

    def _embed(self, items: Items, embedder: Embedder, before: int, total: int | None) -> None:
        items = checked_items(items, self.about)
        known = self._known(items.keys())
        contents = contents_of(items, embedder)
        keys, details = items.keys(), items.details()
        new = [i for i, c in enumerate(contents) if c and (keys[i] not in known or known[keys[i]].content != c)]
        relabelled = [
            i
            for i, c in enumerate(contents)
            if c and keys[i] in known and known[keys[i]].content == c and known[keys[i]].details != details[i]
        ]
        before += len(items) - len(new)
        outer = embedder.context

        def report(step: Progress) -> None:
            if step.done != step.total:  # the end of the chunk is reported once it is written
                outer.progress("index", before + step.done, total)

        within = replace(embedder, context=replace(outer, on_progress=report))
        embedded = embed(items, contents, np.array(new, np.int64), within)
        if len(embedded.rows):
            self._write(embedded, known)
        if relabelled:
            ids = np.array([known[keys[i]].id for i in relabelled])
            stored, vectors = self.store.embeddings(ids)
            order = np.argsort(stored)[np.searchsorted(np.sort(stored), ids)]
            same = items.take(np.array(relabelled))
            self._write(with_embeddings(same, [contents[i] or "" for i in relabelled], vectors[order]), known)
        unread, count = contents.count(None), len(embedded.rows)
        kept = len(items) - unread - len(new) - len(relabelled)
        self._count(embedded=count, kept=kept, skipped=unread + len(new) - count)

    def _load(self, chunk: EmbeddedItems) -> None:
        rows = chunk.rows
        paths = rows["path"]
        own = typed(_user_columns(rows), lambda row: paths[row].as_py())
        about = self.about.with_columns(own.schema)
        rows = _with_user_columns(rows, as_in_index(own, about.types, lambda row: paths[row].as_py()))
        keys = rows["key"].to_pylist()
        known = self._known(keys)
        pairs = zip(keys, rows["content"].to_pylist(), rows["details"].to_pylist(), strict=True)
        new = [
            i
            for i, (key, content, details) in enumerate(pairs)
            if key not in known or (known[key].content, known[key].details) != (content, details)
        ]
        if new:
            self._write(EmbeddedItems(rows.take(pa.array(new, pa.int64()))), known)
        self._count(kept=len(keys) - len(new))

    def _write(self, chunk: EmbeddedItems, known: dict[str, StoredItem]) -> None:
        """Write the rows; those of known keys replace the stored ones."""
        rows, keys = chunk.rows, chunk.rows["key"].to_pylist()
        about = self._with_columns(rows)
        changed = np.array([key in known for key in keys])
        ids = np.array([known[key].id if key in known else -1 for key in keys], np.int64)
        added = int((~changed).sum())
        ids[~changed] = np.arange(self._next_id, self._next_id + added)
        stored = _as_stored(rows, ids, about)
        new, old = stored.filter(pa.array(~changed)), stored.filter(pa.array(changed))
        with self.store.changing():
            if len(new):
                self.store.append(new)
            if len(old):
                self.store.write(old)
        self._next_id += added
        self._count(added=added, changed=int(changed.sum()))

    def end(self) -> None:
        """Delete the items that are not in the data, or count them."""
        missing = self.store.ids()
        missing = missing[(missing < self._first_new)]
        missing = missing[~self._in_data[missing]]
        if self._delete_missing and len(missing):
            with self.store.changing():
                self.store.delete(missing)
            self._count(removed=len(missing))
        else:
            self._count(missing=len(missing))

    def _with_columns(self, rows: pa.Table) -> About:
        about = self.about.with_columns(_user_columns(rows).schema)
        if about != self.about:
            self.store.set_about(about)
            self.about = about
        return about

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.changes, name) + number for name, number in more.items()}
        self.changes = replace(self.changes, **counts)


def update_store(
    store: Store, neighbours: Neighbours, write: Callable[[Update], None], *, delete_missing: bool = False
) -> Changes:
    """Write to a store as its only writer, then build its approximate index, or bring it up to date, if there are
    enough rows.

    Raises:
        StoreError: another process is writing.
    """
    with store.writing():
        update = Update(store, delete_missing)
        write(update)
        update.end()
        changes, about = update.changes, store.about()
        ann = store.count() >= about.ann_from
        if changes.added or changes.changed or changes.removed or (ann and about.effort is None):
            effort, recall = choose_effort(store, neighbours) if store.optimize(ann) and ann else (None, None)
            store.set_about(replace(about, effort=effort, recall=recall))
    return changes


def checked_items(items: Items, about: About) -> Items:
    """The items with their columns as the index has them, and those that it does not have yet.

    Raises:
        DataError: a column is of another type in the index, a value does not fit its type, or a vector is not finite.
    """
    items = items.checked()
    if items.columns is None:
        return items
    return items.checked(about.with_columns(items.columns.schema).types)


def contents_of(items: Items, embedder: Embedder) -> list[str | None]:
    """The digest of each item's content; None if it cannot be read and the embedder skips such.

    Raises:
        ImageError: it cannot be read.
    """
    contents: list[str | None] = []
    for i in range(len(items)):
        try:
            contents.append(items.content(i))
        except ImageError as error:
            if not embedder.skip:
                raise
            embedder.context.warn(f"left out: {error}")
            contents.append(None)
    return contents


def embed(
    items: Items, contents: list[str | None], indices: Int64[np.ndarray, " n"], embedder: Embedder
) -> EmbeddedItems:
    """Embed the items at ``indices``; if the embedder skips images that do not decode, those that do.

    Args:
        contents: the digest of each item's content.
    """
    chosen, indices, embeddings = embeddings_of(items, indices, embedder)
    return with_embeddings(chosen, [contents[i] or "" for i in indices], embeddings)


def embeddings_of(
    items: Items, indices: Int64[np.ndarray, " n"], embedder: Embedder
) -> tuple[Items, Int64[np.ndarray, " m"], Float32[np.ndarray, "m D"]]:
    """The items at ``indices``, their indices and embeddings; if the embedder skips images that do not decode, of those
    that do.

    Raises:
        ImageError: an image does not decode, and the embedder does not skip it.
        DataError: an embedding has NaN or infinite numbers.
    """
    model, context = embedder.model, embedder.context
    chosen = items.take(indices)
    embeddings = model.embed(np.empty((0, model.num_features), np.float32), embedder.learner)
    if len(chosen):
        bad: set[int] = set()

        def leave_out(index: int, message: str) -> None:
            bad.add(index)
            context.warn(f"left out: {message}")

        on_bad_image = leave_out if embedder.skip else None
        features = model.features(
            chosen.images, batch_size=embedder.batch_size, on_bad_image=on_bad_image, context=context
        )
        decoded = np.array([i for i in range(len(chosen)) if i not in bad], np.int64)
        indices, chosen = indices[decoded], chosen.take(decoded)
        embeddings = model.embed(features[decoded], embedder.learner)
    broken = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if len(broken):
        raise DataError(f"{chosen.names[broken[0]]}: its embedding has NaN or infinite numbers; it cannot be indexed")
    return chosen, indices, embeddings


def _as_stored(rows: pa.Table, ids: np.ndarray, about: About) -> pa.Table:
    """The rows in the columns of the store; the user's columns that they lack are null."""
    columns = [pa.array(ids), *(rows[name] for name in FIXED_COLUMNS[1:]), rows["embedding"]]
    for column in about.columns:
        name, kind = _META + column.name, TYPES[column.type]
        there = name in rows.column_names and not column.unfinished
        columns.append(rows[name] if there else pa.nulls(len(rows), kind))
    return pa.table(columns, schema=schema_of(about))
