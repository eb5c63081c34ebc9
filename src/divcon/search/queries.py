"""What is searched for, as embeddings: images, files, bytes, vectors, items of the store."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError, ImageError, NonFiniteError
from divcon.models import EmbeddingModel
from divcon.models.pruning import check_learner
from divcon.runtime.context import Context
from divcon.search.about import About
from divcon.search.items import absolute, key_of
from divcon.search.stores.base import Store

Query = Image.Image | str | Path | bytes | np.ndarray | Sequence[float] | int
"""An image, a file of one or its bytes, a vector, or the id of an item. A path that is an item's is that item."""


def is_several(query: Any) -> bool:
    """Whether it is several queries: a list of them, or an array (Q, D)."""
    if isinstance(query, np.ndarray):
        return query.ndim == 2
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
) -> np.ndarray:
    """(Q, D) float32 embeddings of length one.

    Args:
        model: gives the model where it is needed.
        embedded: vectors are embeddings, also where the model sees vectors.

    Raises:
        DataError: a file, item or vector that cannot be; ImageError: an image that does not decode; NonFiniteError.
    """
    result = np.empty((len(queries), about.dims), np.float32)
    images: dict[int, tuple[str, bytes]] = {}
    items: dict[int, int] = {}
    vectors: dict[int, np.ndarray] = {}
    for i, query in enumerate(queries):
        what = f"query {i + 1}: " if len(queries) > 1 else ""
        if isinstance(query, (bytes, bytearray, memoryview)):
            images[i] = (f"{what}{len(query):,} bytes", bytes(query))
        elif isinstance(query, Image.Image):
            images[i] = (f"{what}an image", _png(query))
        elif isinstance(query, (str, os.PathLike)):
            _file(i, os.fspath(query), store, images, items)
        elif isinstance(query, (int, np.integer)) and not isinstance(query, bool):
            items[i] = int(query)
        else:
            vectors[i] = _vector(query, what)
    if items:
        found = store.embeddings(np.array(list(items.values())))
        places = {id_: row for row, id_ in enumerate(found[0].tolist())}
        for i, id_ in items.items():
            if id_ not in places:
                raise DataError(f"{store.uri}: there is no item {id_}")
            result[i] = found[1][places[id_]]
    if images:
        names, contents = zip(*images.values(), strict=True)
        if about.vector_dim is not None:
            raise DataError(f"{names[0]}: the model sees vectors of {about.vector_dim} dimensions, not images")
        result[list(images)] = model().encode(_set(names, contents), batch_size=batch_size, context=context)
    if vectors:
        result[list(vectors)] = _embedded(vectors, about, model, embedded)
    return result


def _file(i: int, name: str, store: Store, images: dict[int, tuple[str, bytes]], items: dict[int, int]) -> None:
    known = {}
    for key in (key_of(name), key_of(absolute("", name))):
        known = known or store.lookup([key])
    if known:
        items[i] = next(iter(known.values())).id
        return
    try:
        images[i] = (name, Path(name).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file, and no item of this path in {store.uri}") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    try:
        image.save(file, "PNG")
    except OSError:
        image.convert("RGB").save(file, "PNG")
    return file.getvalue()


def _set(names: Sequence[str], contents: Sequence[bytes]) -> LabeledSet:
    n = len(names)
    return LabeledSet(
        labels=np.zeros(n, np.int64),
        label_names=("",),
        paths=pa.array(names, pa.string()),
        rows=np.arange(n),
        source="",
        encoded=pa.array(contents, pa.large_binary()),
    )


def _vector(query: Any, what: str) -> np.ndarray:
    try:
        vector = np.asarray(query, np.float64)
    except (TypeError, ValueError, OverflowError):
        vector = np.empty(())
    if vector.ndim == 0:
        raise DataError(
            f"{what}{type(query).__name__} is no query: give an image, a path, the bytes of an image, a vector, or the "
            "id of an item"
        )
    if vector.ndim != 1:
        raise DataError(f"{what}an array of shape {vector.shape}: a vector is (D,), several are (Q, D)")
    with np.errstate(over="ignore"):
        vector = vector.astype(np.float32)
    if not np.isfinite(vector).all():
        place = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise NonFiniteError(f"{what}the vector has NaN or an infinite number (in float32) in place {place}")
    return vector


def _embedded(
    vectors: dict[int, np.ndarray], about: About, model: Callable[[], EmbeddingModel], embedded: bool
) -> np.ndarray:
    sees = about.vector_dim is not None and not embedded
    wanted = about.vector_dim if sees else about.dims
    for i, vector in vectors.items():
        what = f"query {i + 1}: " if len(vectors) > 1 else ""
        if len(vector) != wanted:
            kind = "a vector that the model sees" if sees else "an embedding"
            raise DataError(f"{what}the vector has {len(vector):,} numbers; {kind} has {wanted:,}")
        if not vector.any():
            raise DataError(f"{what}the vector is all zeros, which is alike to nothing")
    stacked = np.stack(list(vectors.values()))
    if sees:
        return model().encode(stacked)
    # Numbers may be so large that their squares are not finite in float32.
    lengths = np.linalg.norm(stacked.astype(np.float64), axis=1, keepdims=True)
    return np.where(np.abs(lengths - 1) < 1e-4, stacked, stacked / lengths).astype(np.float32)


def subspace_weights(model: EmbeddingModel, learner: int) -> np.ndarray:
    """(D,) float32: learner k's embedding is the stored one times this, L2-normalised.

    Raises:
        ConfigError: there is no such learner, or the head has no such weights (see
            `divcon.models.SubspaceHead.subspace_weights`).
    """
    check_learner(model, learner)
    weights = model.head.subspace_weights(learner)
    if weights is None:
        raise ConfigError(
            f"`learner`: the embeddings of learners of method {model.config['method']} cannot be computed from the "
            f"stored ones; index the learner's: divcon.models.keep_learner(model, {learner}) is a model that embeds by "
            "it alone",
            field="learner",
        )
    return weights.cpu().numpy().astype(np.float32)
