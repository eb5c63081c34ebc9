"""Queries: images, files, bytes, vectors and items of a store become embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from divcon.data.finite import unusable
from divcon.data.image_files import printable
from divcon.data.in_memory import ImageLike, is_image, is_tensor, set_of_images
from divcon.errors import ConfigError, DataError, ImageError, NonFiniteError
from divcon.models.names import EMBEDDING_NAMES, check_learner
from divcon.runtime.context import Context
from divcon.runtime.copies import read_file
from divcon.search.about import About
from divcon.search.digests import key_of
from divcon.search.items import absolute
from divcon.search.stores.base import Store

if TYPE_CHECKING:
    from jaxtyping import Float32

    from divcon.models import EmbeddingModel

Query = Image.Image | str | Path | bytes | np.ndarray | Sequence[float] | int
"""An image (`divcon.data.in_memory.ImageLike`: PIL, an array, a tensor, bytes), the path of one, a vector, or the id of
an item. The path of an item stands for that item."""


def is_batch(query: Any) -> bool:
    """Whether it is several queries: a list of them, an array or tensor (Q, D), or a batch of images."""
    if isinstance(query, np.ndarray) or is_tensor(query):
        return query.ndim in (2, 4)
    if isinstance(query, (list, tuple)):
        return not query or not all(isinstance(value, (int, float, np.number)) for value in query)
    return False


def embeddings_of(
    queries: Sequence[Query],
    store: Store,
    about: About,
    model: Callable[[], EmbeddingModel],
    *,
    embedded: bool,
    batch_size: int,
    context: Context,
) -> Float32[np.ndarray, "Q D"]:
    """The embeddings of queries, each of length one.

    Args:
        model: returns the model; called if there is something to embed.
        embedded: vectors are embeddings, even if the model's input is vectors.

    Raises:
        DataError: there is no such file or item, or a vector does not fit. ImageError: an image does not decode.
        NonFiniteError: a vector holds NaN, or its squared length overflows float32.
    """
    embeddings = np.empty((len(queries), about.dims), np.float32)
    images: dict[int, tuple[str, ImageLike]] = {}
    items: dict[int, int] = {}
    vectors: dict[int, np.ndarray] = {}
    for i, query in enumerate(queries):
        name = f"query {i + 1}: " if len(queries) > 1 else ""
        if is_image(query):
            is_file = isinstance(query, (bytes, bytearray, memoryview))
            images[i] = (name + (f"{len(query):,} bytes" if is_file else "an image"), query)
        elif isinstance(query, (str, os.PathLike)):
            path = os.fspath(query)
            item = _item_of(path, store)
            if item is None:
                images[i] = (printable(path), _read(path, store))
            else:
                items[i] = item
        elif isinstance(query, (int, np.integer)) and not isinstance(query, bool):
            items[i] = int(query)
        else:
            vectors[i] = _vector(query, name)
    if items:
        ids, stored = store.embeddings(np.array([id_ for id_ in items.values() if 0 <= id_ < 2**63], np.int64))
        rows = {id_: row for row, id_ in enumerate(ids.tolist())}
        for i, id_ in items.items():
            if id_ not in rows:
                raise DataError(f"{store.uri}: there is no item {id_}")
            embeddings[i] = stored[rows[id_]]
    if images:
        names, contents = zip(*images.values(), strict=True)
        if about.vector_dim is not None:
            raise DataError(f"{names[0]}: the model's input is vectors of {about.vector_dim} dimensions, not images")
        from divcon.data.loading import needed_pixels

        queried = set_of_images(contents, names, needed_pixels(model().eval_transform))
        embeddings[list(images)] = model().encode(queried, batch_size=batch_size, context=context)
    if vectors:
        embeddings[list(vectors)] = _embed_vectors(vectors, about, model, embedded)
    return embeddings


def _item_of(path: str, store: Store) -> int | None:
    """The id of the item of this path, as it was indexed or as it is written from the working directory."""
    for key in (key_of(path), key_of(absolute("", path))):
        for item in store.lookup([key]).values():
            return item.id
    return None


def _read(path: str, store: Store) -> bytes:
    try:
        return read_file(path)
    except FileNotFoundError:
        raise DataError(f"{printable(path)}: there is no such file, and no item of this path in {store.uri}") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{printable(path)}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _vector(query: Any, name: str) -> Float32[np.ndarray, " F"]:
    try:
        vector = np.asarray(query.detach().cpu() if is_tensor(query) else query, np.float64)
    except (TypeError, ValueError, OverflowError):
        vector = np.empty(())
    if vector.ndim == 0:
        raise DataError(
            f"{name}{type(query).__name__} is no query: pass an image, a path, the bytes of an image, a vector, or the "
            "id of an item"
        )
    if vector.ndim != 1:
        raise DataError(f"{name}an array of shape {vector.shape}: pass one vector as (D,), several as (Q, D)")
    if (found := unusable(vector[None])) is not None:
        raise NonFiniteError(f"{name}the vector {found[1]}")
    return vector.astype(np.float32)


def _embed_vectors(
    vectors: dict[int, np.ndarray], about: About, model: Callable[[], EmbeddingModel], embedded: bool
) -> Float32[np.ndarray, "Q D"]:
    is_input = about.vector_dim is not None and not embedded
    dims = about.vector_dim if is_input else about.dims
    for i, vector in vectors.items():
        name = f"query {i + 1}: " if len(vectors) > 1 else ""
        if len(vector) != dims:
            kind = "an input of the model" if is_input else "an embedding"
            raise DataError(f"{name}the vector has {len(vector):,} numbers; {kind} has {dims:,}")
        if not vector.any():
            raise DataError(f"{name}the vector is all zeros, which has no cosine with anything")
    stacked = np.stack(list(vectors.values()))
    if is_input:
        return model().encode(stacked)
    # In float64: the squares of small numbers are zero in float32.
    lengths = np.linalg.norm(stacked.astype(np.float64), axis=1, keepdims=True)
    return np.where(np.abs(lengths - 1) < 1e-4, stacked, stacked / lengths).astype(np.float32)


def subspace_weights(model: EmbeddingModel, learner: int) -> Float32[np.ndarray, " D"]:
    """The factors by which a stored embedding becomes the learner's: multiplied and L2-normalised again.

    Raises:
        ConfigError: there is no such learner, or the head has no such weights (see
            `divcon.models.SubspaceHead.subspace_weights`).
    """
    check_learner(learner, model.num_learners)
    weights = model.head.subspace_weights(learner)
    if weights is None and model.head.embedding != "head":
        raise ConfigError(
            f"`learner`: the model embeds by the {EMBEDDING_NAMES[model.head.embedding]}, from which the embeddings of "
            "learners cannot be computed; train with `embed=head`, or index another model: "
            'divcon.models.with_embedding(model, "head") (`divcon prune` with `by=head`) can be searched by learner, '
            f"and divcon.models.keep_learner(model, {learner}) embeds by one alone",
            field="learner",
        )
    if weights is None:
        raise ConfigError(
            f"`learner`: the embeddings of learners of method {model.config['method']} cannot be computed from the "
            f"stored ones; index the learner's: divcon.models.keep_learner(model, {learner}) is a model that embeds by "
            "it alone",
            field="learner",
        )
    return weights.cpu().numpy().astype(np.float32)
