"""Update an index: embed and write new and changed items, or load those that other processes embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context, Progress
from divcon.search.about import About
from divcon.search.columns import TYPES, as_in_index, typed
from divcon.search.commits import Commits
from divcon.search.digests import numbers_of
from divcon.search.items import Items, details_of
from divcon.search.known import KnownItems, first_of_each
from divcon.search.neighbours import Neighbours, choose_effort
from divcon.search.stores.base import FIXED_COLUMNS, Store, schema_of

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, UInt64

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


def with_embeddings(items: Items, contents: pa.Array, embeddings: Float32[np.ndarray, "N D"]) -> EmbeddedItems:
    """Join items with their embeddings and the digests of their content."""
    width = embeddings.shape[1]
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
    table = pa.table(
        {
            "key": items.keys(),
            "path": pa.array(items.paths(), pa.string()),
            "box": pa.array(items.boxes(), pa.string()),
            "label": pa.array(items.labels, pa.string()),
            "content": contents,
            "details": items.details(),
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
    details = details_of(rows["label"], columns if columns.num_columns else None)
    return rows.set_column(rows.column_names.index("details"), "details", details)


class Update:
    """One pass over the data, by the store's only writer.

    Args:
        total: the number of items in the data, if it is known.
    """

    def __init__(self, store: Store, delete_missing: bool, total: int | None = None) -> None:
        self.store = store
        self.about = store.about()
        self.changes = Changes()
        self._delete_missing = delete_missing
        self._known = KnownItems(store, total, whole=delete_missing)
        self._next_id = self._written_to = self._known.next_id
        self._waiting: list[np.ndarray] = []
        """The entries of changed rows that are not written yet; of new rows, these are the ids from `_written_to`."""
        self._commits: Commits | None = None

    def embed(self, chunks: Iterable[Items], embedder: Embedder, total: int | None = None) -> Iterator[int]:
        """Embed and write the items that are new or changed; after each chunk, yield the number of items processed.

        Args:
            total: the number of all items, for the progress that is reported after each batch; None: unknown.

        Raises:
            ImageError: an image does not decode, and the embedder does not skip it; the chunks before are written, by
                `commit` at the latest.
        """
        # Processes that decode images are forked from this one: no thread of it should be writing then.
        self._commits = Commits(self.store, stream=self.about.vector_dim is not None)
        done = 0
        for items in chunks:
            self._embed(items, embedder, done, total)
            done += len(items)
            yield done

    def load(self, chunks: Iterable[EmbeddedItems]) -> Iterator[int]:
        """Write the items that are new or changed; after each chunk, yield the number of items processed."""
        self._commits = Commits(self.store, stream=True)
        done = 0
        for chunk in chunks:
            self._load(chunk)
            done += len(chunk.rows)
            yield done

    def _find(self, keys: pa.Array | pa.ChunkedArray, numbers: UInt64[np.ndarray, "n 2"]) -> Int64[np.ndarray, " n"]:
        """The entries of keys among the known items, which then count as part of the data; -1: it is none of them."""
        entries = self._known.find(keys, numbers)
        self._known.in_data[entries[entries >= 0]] = True
        return entries

    def _embed(self, items: Items, embedder: Embedder, before: int, total: int | None) -> None:
        items = checked_items(items, self.about)
        number, numbers = len(items), numbers_of(items.keys())
        if (first := first_of_each(numbers)) is not None:
            items, numbers = items.take(first), numbers[first]
        entries = self._find(items.keys(), numbers)
        contents = contents_of(items, embedder)
        readable = contents.is_valid().to_numpy(zero_copy_only=False)
        same = self._known.has_content(entries, contents)
        new = np.flatnonzero(readable & ~same)
        relabelled = np.flatnonzero(readable & same & ~self._known.has_details(entries, items.details()))
        before += number - len(new)
        outer = embedder.context

        def report(step: Progress) -> None:
            if step.done != step.total:  # the end of the chunk is reported once it is written
                outer.progress("index", before + step.done, total)

        within = replace(embedder, context=replace(outer, on_progress=report))
        embedded = embed(items, contents, new, within)
        if len(embedded.rows) == len(new):
            self._write(embedded, numbers[new])
        elif len(embedded.rows):
            self._write(embedded, numbers_of(embedded.rows["key"]))
        if len(relabelled):
            ids = self._known.ids[entries[relabelled]]
            self._write_waiting(entries[relabelled])
            stored, vectors = self.store.embeddings(ids)
            order = np.argsort(stored)[np.searchsorted(np.sort(stored), ids)]
            same_items = with_embeddings(items.take(relabelled), contents.take(pa.array(relabelled)), vectors[order])
            self._write(same_items, numbers[relabelled])
        unread, count = contents.null_count, len(embedded.rows)
        kept = number - unread - len(new) - len(relabelled)
        self._count(embedded=count, kept=kept, skipped=unread + len(new) - count)

    def _load(self, chunk: EmbeddedItems) -> None:
        rows, number, numbers = chunk.rows, len(chunk.rows), numbers_of(chunk.rows["key"])
        if (first := first_of_each(numbers)) is not None:
            rows, numbers = rows.take(pa.array(first)), numbers[first]
        paths = rows["path"]
        own = typed(_user_columns(rows), lambda row: paths[row].as_py())
        about = self.about.with_columns(own.schema)
        rows = _with_user_columns(rows, as_in_index(own, about.types, lambda row: paths[row].as_py()))
        entries = self._find(rows["key"], numbers)
        known = self._known
        new = ~(known.has_content(entries, rows["content"]) & known.has_details(entries, rows["details"]))
        if new.any():
            self._write(EmbeddedItems(rows if new.all() else rows.filter(pa.array(new))), numbers[new])
        self._count(kept=number - int(new.sum()))

    def _write(self, chunk: EmbeddedItems, numbers: UInt64[np.ndarray, "n 2"]) -> None:
        """Write the rows, with the next commit; those of known keys replace the stored ones."""
        assert self._commits is not None
        rows = chunk.rows
        if not len(rows):
            return
        about = self._with_columns(rows)
        entries = self._known.find(rows["key"], numbers)
        is_new = entries < 0
        added = int(is_new.sum())
        ids = np.empty(len(rows), np.int64)
        ids[is_new] = np.arange(self._next_id, self._next_id + added)
        ids[~is_new] = self._known.ids[entries[~is_new]]
        stored, written = _as_stored(rows, ids, about), False
        if added:
            new = stored if added == len(rows) else stored.filter(pa.array(is_new))
            self._known.add(new, numbers[is_new])
            self._next_id += added
            written = self._commits.append(new)
        if added < len(rows):
            changed, old = entries[~is_new], stored if not added else stored.filter(pa.array(~is_new))
            self._write_waiting(changed)
            self._known.change(changed, old)
            written = self._commits.write(old)
            self._waiting.append(changed)
        if written:
            self._are_written()
        self._count(added=added, changed=len(rows) - added)

    def _write_waiting(self, entries: Int64[np.ndarray, " n"]) -> None:
        """Commit, if some of these items are not written yet."""
        waiting = (self._known.ids[entries] >= self._written_to).any()
        if waiting or any(np.isin(entries, some).any() for some in self._waiting):
            self.commit()

    def commit(self) -> None:
        """Write what was passed so far.

        Raises:
            StoreError: it cannot be written.
        """
        if self._commits is not None:
            self._commits.commit()
            self._are_written()

    def _are_written(self) -> None:
        self._written_to, self._waiting = self._next_id, []

    def end(self) -> None:
        """Write what is left; delete the items that are not in the data, or count them."""
        self.commit()
        if self._delete_missing:
            missing = np.sort(self._known.missing())
            if len(missing):
                with self.store.changing():
                    self.store.delete(missing)
            self._count(removed=len(missing))
        else:
            self._count(missing=self._known.num_missing())

    def _with_columns(self, rows: pa.Table) -> About:
        about = self.about.with_columns(_user_columns(rows).schema)
        if about != self.about:
            self.commit()
            self.store.set_about(about)
            self.about = about
        return about

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.changes, name) + number for name, number in more.items()}
        self.changes = replace(self.changes, **counts)


def update_store(
    store: Store,
    neighbours: Neighbours,
    write: Callable[[Update], None],
    *,
    delete_missing: bool = False,
    total: int | None = None,
) -> Changes:
    """Write to a store as its only writer, then build its approximate index, or bring it up to date, if there are
    enough rows.

    Args:
        total: the number of items in the data, if it is known: few of them are looked up in a large store, for more
            the digests of all rows are read.

    Raises:
        StoreError: another process is writing.
    """
    with store.writing():
        update = Update(store, delete_missing, total)
        try:
            write(update)
        finally:
            update.commit()
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


def contents_of(items: Items, embedder: Embedder) -> pa.Array:
    """The digest of each item's content, as text; null if it cannot be read and the embedder skips such.

    Raises:
        ImageError: it cannot be read.
    """
    warn = embedder.context.warn
    return items.contents((lambda error: warn(f"left out: {error}")) if embedder.skip else None)


def embed(items: Items, contents: pa.Array, indices: Int64[np.ndarray, " n"], embedder: Embedder) -> EmbeddedItems:
    """Embed the items at ``indices``; if the embedder skips images that do not decode, those that do.

    Args:
        contents: the digest of each item's content.
    """
    chosen, indices, embeddings = embeddings_of(items, indices, embedder)
    return with_embeddings(chosen, contents.take(pa.array(indices)), embeddings)


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
        batch_size = embedder.batch_size if chosen.images.vectors is None else max(embedder.batch_size, _VECTORS)
        features = model.features(chosen.images, batch_size=batch_size, on_bad_image=on_bad_image, context=context)
        if bad:
            decoded = np.setdiff1d(np.arange(len(chosen)), list(bad))
            indices, chosen, features = indices[decoded], chosen.take(decoded), features[decoded]
        embeddings = model.embed(features, embedder.learner)
    broken = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if len(broken):
        raise DataError(f"{chosen.names[broken[0]]}: its embedding has NaN or infinite numbers; it cannot be indexed")
    return chosen, indices, embeddings


_VECTORS = 4096
"""Vectors in a batch, at least."""


def _as_stored(rows: pa.Table, ids: np.ndarray, about: About) -> pa.Table:
    """The rows in the columns of the store; the user's columns that they lack are null."""
    columns = [pa.array(ids), *(rows[name] for name in FIXED_COLUMNS[1:]), rows["embedding"]]
    for column in about.columns:
        name, kind = _META + column.name, TYPES[column.type]
        there = name in rows.column_names and not column.unfinished
        columns.append(rows[name] if there else pa.nulls(len(rows), kind))
    return pa.table(columns, schema=schema_of(about))
