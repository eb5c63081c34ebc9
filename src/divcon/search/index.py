"""`Index`: search a model's embeddings of images or vectors in a store."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, get_args

import numpy as np
import pyarrow as pa

from divcon.config.image_size import ImageSize
from divcon.config.settings import Device
from divcon.errors import ConfigError, DataError, StoreError
from divcon.models.folder import check_model, index_beside
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.device import resolve_device
from divcon.runtime.importing import Trust
from divcon.runtime.places import absolute, place
from divcon.search.about import ANN_FROM, About, about_of
from divcon.search.columns import json_value, python_value
from divcon.search.digests import key_of
from divcon.search.filters import Where, conditions_of
from divcon.search.items import Data, Items, chunks_of, items_of, set_of
from divcon.search.neighbours import CHECK_QUERIES, Neighbours, Recall, TopK, at_least, measure_recall
from divcon.search.queries import embeddings_of, is_batch, subspace_weights
from divcon.search.retype import change_types
from divcon.search.stores import Address, open_store
from divcon.search.stores.base import Store
from divcon.search.untrained import is_backbone, place_of, prepare
from divcon.search.update import Changes, EmbeddedItems, Embedder, Update, checked_items, update_store

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float32

    from divcon.models import EmbeddingModel
    from divcon.search.on_ray import Ray


@dataclass(frozen=True)
class Hit:
    """An item that a search returned."""

    id: int
    """Its number in the index, which never changes."""
    score: float
    """The cosine of the two embeddings; 1 if they are equal."""
    label: str | None
    path: str
    """Its file; for encoded images and vectors, its name in their table."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """The user's columns by name, of their types (see `divcon.search.columns`); None is a missing value."""
    box: tuple[int, int, int, int] | None = None
    """The crop of the image: left, top, right, bottom in pixels; None: the whole image."""

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON: dates, times and decimals are text."""
        metadata = {name: json_value(value) for name, value in self.metadata.items()}
        return dataclasses.asdict(self) | {"metadata": metadata}


def hits_of(store: Store, about: About, neighbours: list[TopK]) -> list[list[Hit]]:
    """The hits of each query's neighbours; items that were deleted in the meantime are left out."""
    ids = np.unique(np.concatenate([of_query[0] for of_query in neighbours]))
    rows = {row["id"]: row for row in store.rows(ids).to_pylist()} if len(ids) else {}
    return [
        [_hit(rows[i], score, about) for i, score in zip(ids.tolist(), scores.tolist(), strict=True) if i in rows]
        for ids, scores in neighbours
    ]


def _hit(row: dict[str, Any], score: float, about: About) -> Hit:
    box = None
    if row["box"]:
        left, top, right, bottom = map(int, row["box"].split(","))
        box = (left, top, right, bottom)
    return Hit(row["id"], score, row["label"], row["path"], metadata_in(row, about), box)


def metadata_in(row: Mapping[str, Any], about: About) -> dict[str, Any]:
    """The user's columns of a stored row, by name."""
    return {column.name: python_value(row.get(column.stored), column.type) for column in about.user_columns}


class StoreModel:
    """Loads the model of an index at its first use; thread-safe."""

    def __init__(
        self, store: Store, model: EmbeddingModel | None, device: str | torch.device, trust: Trust = ()
    ) -> None:
        self._store = store
        self._model = model
        self._device = device
        self._trust: Trust = trust
        self._lock = threading.Lock()

    def __call__(self) -> EmbeddingModel:
        """The model; in evaluation mode, if it was loaded here.

        Raises:
            StoreError: the index does not name its model's folder, or another model is there now.
            WeightsError: there is no model there.
            TrustError: the model needs code of a module that is not trusted.
        """
        with self._lock:
            if self._model is None:
                about, uri = self._store.about(), self._store.uri
                if about.model is None:
                    raise StoreError(f"{uri}: does not say where its model is; pass `model`, a model or its folder")
                model = _loaded(about.model, self._device, self._trust)
                about.check_model(model, uri)
                self._model = model
            return self._model


def _loaded(folder: str | Path, device: str | torch.device, trust: Trust) -> EmbeddingModel:
    check_model(folder)  # before PyTorch is imported
    from divcon.models import EmbeddingModel

    if isinstance(device, str) and device in get_args(Device):
        device = resolve_device(device)
    return EmbeddingModel.load(folder, device=device, trust=trust)


def _is_model(model: object) -> TypeGuard[EmbeddingModel]:
    if isinstance(model, str | Path):
        return False
    from divcon.models import EmbeddingModel

    return isinstance(model, EmbeddingModel)


def _folder(model: object) -> Path:
    if not isinstance(model, str | Path):
        raise ConfigError(
            f"`model`: {type(model).__name__} is no model; pass a divcon.EmbeddingModel, or the folder of one or a run",
            field="model",
        )
    return place(model)


def _check_k(k: int, min_score: float | None) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MAX_K:
        raise ConfigError(f"`k` {k}: a search returns 1 to {MAX_K:,} items", field="k")
    if min_score is not None:
        _check_score(min_score)


def _check_score(score: object) -> None:
    is_number = isinstance(score, (int, float, np.integer, np.floating)) and not isinstance(score, bool)
    if not is_number or not -1 <= score <= 1:  # type: ignore[operator]
        raise ConfigError(f"`min_score` {score}: pass a cosine similarity, -1 to 1", field="min_score")


def _paths_of(data: object) -> list[str | Path]:
    """The files, folders or name that data is read from; empty: it is in memory."""
    several = data if isinstance(data, (list, tuple)) else [data]
    paths = [path for path in several if isinstance(path, (str, Path))]
    return paths if len(paths) == len(several) else []


MAX_K = 10_000
"""The largest k of a search."""

Model: TypeAlias = "EmbeddingModel | str | Path"
"""A model, or the folder of a run or model."""


class Index:
    """A model's embeddings of images or vectors in a vector store, to search them.

    Several threads may search at once, and see what other processes write. A context manager: leaving it closes
    connections.
    """

    def __init__(
        self,
        store: Store,
        about: About,
        model: EmbeddingModel | None = None,
        *,
        device: str | torch.device = "cpu",
        trust: Trust = (),
    ) -> None:
        self.store = store
        self._model = StoreModel(store, model, device, trust)
        self._neighbours = Neighbours(store, about.ann_from)

    @property
    def uri(self) -> str:
        """The address of the store, without a password."""
        return self.store.uri

    @property
    def about(self) -> About:
        """The fingerprint of the model, dimensions, columns and search settings."""
        return self.store.about()

    @property
    def column_types(self) -> dict[str, str]:
        """The user's columns, and the type of each (see `divcon.search.columns`)."""
        return {column.name: column.type for column in self.about.user_columns}

    def missing_values(self) -> dict[str, int]:
        """The number of items without a value, for each of the user's columns."""
        columns = self.about.user_columns
        missing = dict.fromkeys((column.name for column in columns), 0)
        for block in self.store.read_columns(["id", *(column.stored for column in columns)]):
            for column in columns:
                missing[column.name] += block[column.stored].null_count
        return missing

    def change_types(self, types: Mapping[str, str]) -> int:
        """Give columns other types, such as ``{"price": "float"}``, and convert all their values: all or none.

        Args:
            types: text, int, float, bool, date, datetime, datetime-utc, decimal or json by column.

        Returns:
            The number of items that were rewritten; 0 if the columns have these types.

        Raises:
            ConfigError: there is no such column or type.
            DataError: a value would be lost or changed (``00003`` as an int, ``9.5`` as an int, ``cheap`` as a float);
                the message names the items, and nothing is changed.
            StoreError: another process is writing.
        """
        return change_types(self.store, types)

    def __len__(self) -> int:
        return self.store.count()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        self.store.close()

    @classmethod
    def build(
        cls,
        model: Model,
        data: Data,
        store: Address | None = None,
        *,
        ann_from: int | None = None,
        image_size: ImageSize | str | None = None,
        fit: str | None = None,
        weights: str | Path | None = None,
        engine: Literal["ray"] | Ray | None = None,
        parts: str | Path | None = None,
        device: str | torch.device = "cpu",
        trust: Trust = (),
        **options: Any,
    ) -> Index:
        """Index data; if there is an index of this model in the store, bring it up to date.

        Args:
            model: a model, or the folder of a run or model, which the index then names. Or the name of a backbone, such
                as ``"resnet50"``, whose pretrained features then are the embedding: no training and no labels are
                needed.
            data, options: as `update` takes them.
            store: a folder, ``postgresql://USER@HOST/DATABASE``, or a store of your own (see `open_store`); None: the
                folder ``index`` in the model's folder. For a backbone, a folder is that of model and index
                (``STORE/model``, ``STORE/index``), and None is ``photos.divcon`` beside ``photos``.
            image_size, fit, weights: of a backbone, as `EmbeddingModel` takes them; None: size and fit are chosen from
                the images, weights are timm's.
            ann_from: the number of rows from which the store's approximate index is built and used; None: 100,000, or
                what an earlier call set.
            engine: ``"ray"``, or a `divcon.search.Ray` with its address: embed on a cluster, or on all cores or GPUs of
                this machine. ``data`` may then be a `divcon.search.sources.StreamSource`, of any length.
            parts: where an engine's workers write the embeddings, before they are loaded into the store: a folder that
                all nodes share, or an address (``s3://bucket/parts``); None: ``STORE.parts``. Called again, the parts
                that have not changed are kept.
            device: where a model is loaded to; ``auto``: the first of cuda, mps and cpu that is available. On an
                engine, ``cpu`` too is the cluster's to choose: its GPUs, if it has any.
            trust: modules that the model's folder may import, see `EmbeddingModel.load`.

        Raises:
            StoreError: the store has an index of another model, or other files, or another process is writing.
            ConfigError: the store has an index of another backbone, size or fit; or they are passed for a model.
            WeightsError: there is no model in the folder, or the weights of the backbone cannot be downloaded.
            DataError, ImageError: as `update`.
        """
        of_backbone = {"image_size": image_size, "fit": fit, "weights": weights}
        if is_backbone(model):
            context = options.get("context", DEFAULT)
            images = set_of(data, context=context)
            paths = _paths_of(data)
            folder, store = place_of(store, paths)
            prepare(folder, images, str(model), **of_backbone, data=paths, trust=trust, context=context)
            model, data = folder, images
        else:
            for name, value in of_backbone.items():
                if value is not None:
                    raise ConfigError(f"`{name}` {value}: is of a backbone, and the model has its own", field=name)
        if engine is None and parts is not None:
            raise ConfigError(f"`parts` {parts}: is of an engine: pass `engine=ray`", field="parts")
        index = cls.create(model, store, ann_from=ann_from, device="cpu" if engine else device, trust=trust)
        if engine is None:
            index.update(data, **options)
        else:
            index._update_by(engine, data, parts, **options)
        return index

    def _update_by(
        self,
        engine: Literal["ray"] | Ray,
        data: Any,
        parts: str | Path | None,
        *,
        columns: Any = None,
        column_types: Mapping[str, str] | None = None,
        delete_missing: bool = False,
        context: Context = DEFAULT,
        **options: Any,
    ) -> None:
        """As `update`, by parts that an engine writes."""
        from divcon.search.encode import write_parts
        from divcon.search.parts import folder_beside, read_shards
        from divcon.search.sources import ItemSource, StreamSource

        folder = str(parts or folder_beside(self.uri))
        source = data
        if not isinstance(data, StreamSource):
            items = data if isinstance(data, Items) else self._items(data, columns, column_types, context)
            source = ItemSource(checked_items(items, self.about))
        write_parts(self.model, source, folder, engine=engine, context=context, **options)
        _, _, chunks = read_shards(folder)
        self.load(chunks, delete_missing=delete_missing, context=context)

    @classmethod
    def create(
        cls,
        model: Model,
        store: Address | None = None,
        *,
        ann_from: int | None = None,
        device: str | torch.device = "cpu",
        trust: Trust = (),
    ) -> Index:
        """An index of this model, empty unless there is one in the store. The arguments are `build`'s.

        Raises:
            StoreError: as `build`.
            WeightsError: there is no model in the folder.
        """
        if ann_from is not None and ann_from < 1:
            raise ConfigError(f"`ann_from` {ann_from}: pass 1 or more", field="ann_from")
        folder = None if _is_model(model) else _folder(model)
        if store is None:
            if folder is None:
                raise ConfigError("pass `store`: the folder or address that the index is to be in", field="store")
            store = index_beside(folder)
        store = open_store(store)
        loaded = model if _is_model(model) else _loaded(_folder(model), device, trust)
        about = about_of(loaded, None if folder is None else absolute(folder), ann_from or ANN_FROM)
        return cls.for_about(about, store, loaded, replace=ann_from is not None)

    @classmethod
    def for_about(
        cls, about: About, store: Address, model: EmbeddingModel | None = None, *, replace: bool = False
    ) -> Index:
        """An index of the model that ``about`` describes, empty unless there is one in the store.

        Args:
            model: that model, if it is at hand.
            replace: an index that is there takes ``ann_from`` from ``about``.
        """
        store = open_store(store)
        if not store.exists():
            with store.writing():
                if not store.exists():
                    store.create(about)
        stored = store.about()
        stored.check_same_model(about, store.uri)
        changed = dataclasses.replace(stored, model=about.model or stored.model)
        if replace:
            changed = dataclasses.replace(changed, ann_from=about.ann_from)
        if changed != stored:
            with store.writing():
                store.set_about(changed)
        return cls(store, changed, model)

    @classmethod
    def open(
        cls, store: Address, model: Model | None = None, *, device: str | torch.device = "cpu", trust: Trust = ()
    ) -> Index:
        """Open the index in a store.

        Args:
            store: a folder, ``postgresql://USER@HOST/DATABASE``, a store of your own (see `open_store`), or the folder
                of a run, for the index in it.
            model: the model that built the index, or its folder; None: the one that the index names, loaded when there
                is something to embed.
            device: as `build` takes it.
            trust: modules that the model's folder may import, see `EmbeddingModel.load`.

        Raises:
            StoreError: there is no index, or it holds embeddings of another model.
            WeightsError: there is no model in the folder.
        """
        store = open_store(store)
        about = store.about()
        loaded = model if model is None or _is_model(model) else _loaded(_folder(model), device, trust)
        if loaded is not None:
            about.check_model(loaded, store.uri)
        return cls(store, about, loaded, device=device, trust=trust)

    @property
    def model(self) -> EmbeddingModel:
        """The model; loaded at first use, if it was not passed. Raises as `open`."""
        return self._model()

    def update(
        self,
        data: Data | Items | Iterator[Items],
        *,
        columns: pa.Table | Mapping[str, Sequence[Any]] | None = None,
        column_types: Mapping[str, str] | None = None,
        delete_missing: bool = False,
        batch_size: int = 128,
        on_bad_image: Literal["stop", "skip"] = "stop",
        context: Context = DEFAULT,
    ) -> Changes:
        """Bring the index up to date. Only images that are new or changed (by path and content) are embedded; if only
        their label or columns changed, these are written. An interrupted update continues where it stopped.

        Args:
            data: images or vectors: a set, a benchmark or the name of one (its gallery), an (N, F) array, ``(vectors,
                labels)``, a file, folder or table, or a list of files and folders. For data of any size, an iterator of
                `divcon.search.items.Items`, some thousand at a time.
            columns: columns to store and filter by, one row per image: names and lists, an Arrow table or a data frame;
                None: those of the table that the data comes from.
            column_types: the types of columns, such as ``{"price": "float"}``: text, int, float, bool, date, datetime,
                datetime-utc, decimal or json. Others have the type of the data; those of a CSV, which has no types,
                are text, or what they are in the index.
            delete_missing: delete items that are not in the data.
            batch_size: images per forward pass.
            on_bad_image: what to do with an image that does not decode.
            context: reports progress in items, and warns of each that is left out.

        Raises:
            StoreError: another process is writing, or the store is gone.
            ConfigError: ``column_types`` has an unknown type or column.
            DataError: there are no images; the model takes other input; a vector is not finite, or its squared length
                overflows float32; a column is of another type in the index, or a value is not of its column's type.
            ImageError: an image does not decode.
        """
        total: int | None = None
        if isinstance(data, (Iterator, Items)) and (columns is not None or column_types):
            raise ConfigError("items have their columns; pass them to `items_of`", field="column_types")
        if isinstance(data, Iterator):
            chunks = data
        else:
            items = data if isinstance(data, Items) else self._items(data, columns, column_types, context)
            items = checked_items(items, self.about)  # all of them, before any is embedded
            chunks, total = chunks_of(items), len(items)

        def write(update: Update) -> None:
            embedder = Embedder(self.model, batch_size, on_bad_image == "skip", context)
            for done in update.embed(chunks, embedder, total):
                context.progress("index", done, total)

        return update_store(self.store, self._neighbours, write, delete_missing=delete_missing, total=total)

    def _items(self, data: Data, columns: Any, column_types: Mapping[str, str] | None, context: Context) -> Items:
        items, repeated = items_of(set_of(data, context=context), columns, column_types, context)
        if repeated:
            context.warn(f"left out: {repeated:,} rows with the image of an earlier row")
        return items

    def load(
        self,
        chunks: Iterable[EmbeddedItems],
        *,
        total: int | None = None,
        delete_missing: bool = False,
        context: Context = DEFAULT,
    ) -> Changes:
        """Bring the index up to date with items that other processes embedded, see `divcon.search.parts.read_shards`.

        Args:
            total: the number of items, if it is known.
            delete_missing: delete items that are not among these.
            context: reports progress in items.

        Raises:
            StoreError: another process is writing, or the store is gone.
        """

        def write(update: Update) -> None:
            for done in update.load(chunks):
                context.progress("index", done, total)

        return update_store(self.store, self._neighbours, write, delete_missing=delete_missing, total=total)

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: Where = None,
        learner: int | None = None,
        exact: bool = False,
        embedded: bool = False,
        min_score: float | None = None,
        batch_size: int = 128,
        context: Context = DEFAULT,
    ) -> list[Any]:
        """Find the k items most similar to an image, file, vector or item, best first; of equal scores, the item that
        was indexed first.

        A search compares every item if there are fewer than ``about.ann_from``; from that number on it uses the store's
        approximate index, if it has one. With ``where``, ``learner`` or ``exact``, or a k larger than that index takes,
        it always compares every item.

        Args:
            query: an image (PIL), a path, the bytes of an image, a vector (an embedding; for a model of vectors, its
                input), or the id of an item. The path of an item stands for that item. Several queries: a list, or an
                array (Q, D). A PIL image that `PIL.Image.open` opened is embedded as its file is, until it is loaded
                or changed.
            k: 1 to 10,000; if there are fewer items, all are returned.
            min_score: return only items whose score, the cosine similarity, is this or more: -1 to 1. There are fewer
                than k then, or none. None: no limit.
            where: filters such as ``{"label": "mug", "price": ("<", 10)}`` or ``["label=mug", "price<10"]``, which must
                all hold; see `divcon.search.filters.conditions_of`.
            learner: search in this learner's subspace: scores are cosines in it.
            embedded: vectors are embeddings, even if the model's input is vectors.
            batch_size: images per forward pass.

        Returns:
            A list of hits; for several queries, one such list per query.

        Raises:
            ConfigError: k, min_score, learner or a filter is invalid.
            DataError: there is no such file or item, or a vector has the wrong length.
            ImageError: an image does not decode.
            NonFiniteError: a vector holds NaN or an infinite number, or its squared length overflows float32; the
                message has its row in the batch.
            StoreError: the store no longer exists, or has an index of another model.
        """
        _check_k(k, min_score)
        about = self.about
        conditions_of(where, about)  # what is wrong with it, before the model is loaded
        if learner is not None:
            subspace_weights(self.model, learner)
        batch = is_batch(query)
        queries = list(query) if batch else [query]
        if not queries:
            return []
        options = {"embedded": embedded, "batch_size": batch_size, "context": context}
        vectors = embeddings_of(queries, self.store, about, self._model, **options)
        neighbours = self.neighbours(vectors, k, where=where, learner=learner, exact=exact, min_score=min_score)
        hits = hits_of(self.store, about, neighbours)
        return hits if batch else hits[0]

    def neighbours(
        self,
        embeddings: Float32[np.ndarray, "Q D"],
        k: int = 10,
        *,
        where: Where = None,
        learner: int | None = None,
        exact: bool = False,
        min_score: float | None = None,
    ) -> list[TopK]:
        """As `search`, of embeddings of length one: for each, the (n,) int64 ids of the items and their (n,) float32
        scores, best first, without their paths, labels and columns.

        Raises:
            ConfigError, StoreError: as `search`.
        """
        _check_k(k, min_score)
        about = self.about
        conditions = conditions_of(where, about)
        weights = None if learner is None else subspace_weights(self.model, learner)
        vectors = embeddings
        exact = exact or bool(conditions) or weights is not None or k > self.store.max_k
        if exact or about.effort is None or len(self) < about.ann_from:
            neighbours = self._neighbours.exact(vectors, int(k), conditions, weights)
        else:
            neighbours = self._neighbours.approximate(vectors, int(k), about.effort)
        if min_score is not None:
            neighbours = [at_least(of_query, min_score) for of_query in neighbours]
        return neighbours

    def item(self, item: int | str | Path) -> Hit:
        """The item of an id, or of a path as it was indexed; its score is 1. No file is opened.

        Raises:
            DataError: there is no such item.
        """
        ids = [item] if isinstance(item, int) else [i.id for i in self.store.lookup([key_of(str(item))]).values()]
        valid = np.array([id_ for id_ in ids if 0 <= id_ < 2**63], np.int64)
        hits = hits_of(self.store, self.about, [(valid, np.ones(len(valid), np.float32))])[0]
        if not hits:
            raise DataError(f"{self.uri}: there is no item {item}")
        return hits[0]

    def check(self, k: int = 10, queries: int = CHECK_QUERIES) -> Recall | None:
        """Measure recall@k of the approximate index against exact search, with items drawn at random as queries; None
        if searches are exact."""
        about = self.about
        if about.effort is None or len(self) < about.ann_from:
            return None
        return measure_recall(self.store, self._neighbours, about.effort, k, queries)
