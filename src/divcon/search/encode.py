"""Encode a data set into parquet: in this process, as one shard of several, or on an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from divcon.data.table_format import is_table
from divcon.errors import ConfigError, DataError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.files import check_writable
from divcon.runtime.importing import Trust
from divcon.runtime.places import absolute, text_of
from divcon.search.about import about_of
from divcon.search.items import Data, set_of
from divcon.search.on_ray import Ray, engine_of, write_on_ray
from divcon.search.part_folder import PartFolder
from divcon.search.parts import Layout, about_in, join_parts, rows_of_parts, write_shard
from divcon.search.sources import ItemSource, Source, StreamSource, items_to_encode, user_columns
from divcon.search.update import Embedder

if TYPE_CHECKING:
    import torch

    from divcon.models import EmbeddingModel

_FILE = ".parquet"
_OTHERS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".npy", ".npz", ".pt", ".pth", ".h5", ".pq", ".arrow", ".feather")
"""Endings of names that are meant as a file of another kind, and not as a folder."""


@dataclass(frozen=True)
class Encoded:
    """What `encode` wrote."""

    out: str
    """The file or folder."""
    rows: int
    """Embeddings; of a shard, its own."""
    kept: int
    """Those of them that an earlier call had computed."""
    dims: int
    """D."""


def encode(
    model: EmbeddingModel | str | Path,
    data: Data | StreamSource,
    out: str | Path,
    *,
    learner: int | None = None,
    engine: Literal["ray"] | Ray | None = None,
    shard: tuple[int, int] = (1, 1),
    part_rows: int | None = None,
    batch_size: int = 128,
    on_bad_image: Literal["stop", "skip"] = "stop",
    device: str | torch.device = "auto",
    trust: Trust = (),
    context: Context = DEFAULT,
) -> Encoded:
    """Embed images or vectors into parquet: path, label if there is one, the other columns of a table, and embedding (D
    float32, of length one). Memory holds one part at a time. An interrupted call, called again, goes on.

    Args:
        model: a model, or the folder of a run or model.
        data: see `divcon.Index.update`; or a `divcon.search.sources.StreamSource`, of any length.
        out: a file that ends in ``.parquet``; or a folder of such files, which ``divcon.read`` takes as one data set,
            on a disk or at an address (``s3://bucket/embeddings``).
        learner: embed in this learner's subspace.
        engine: ``"ray"``, or a `divcon.search.Ray` with its address: on a cluster; None: in this process.
        shard: the number of this process, from 1, and of all that write to the folder, where a scheduler starts them.
        part_rows: rows of a file of the folder; None: 1,024 to 8,192, by their number.
        batch_size: images per forward pass.
        on_bad_image: what to do with an image that does not decode.
        device: where a model that is loaded from a folder computes; on an engine, each worker.
        trust: modules that the model's folder may import, see `EmbeddingModel.load`.
        context: ``workers`` decode; reports progress in items.

    Raises:
        ConfigError: settings that do not go together; the engine is not installed or not there.
        DataError, ImageError: there is nothing to encode; an image does not decode.
        StoreError: the folder holds embeddings of another model.
        OutputError: the output cannot be written.
        WorkerError: workers of the engine died.
    """
    place = text_of(out)
    ray = engine_of(engine)
    single = check_output(place, shard, ray is not None)
    loaded = _model_of(model, "cpu" if ray else device, trust)
    if isinstance(data, StreamSource):
        source, labels = data, _has_labels(data)
    else:
        images = set_of(data, context=context)
        if not len(images):
            raise DataError("there are no images to encode")
        source, labels = ItemSource(items_to_encode(images, user_columns(images, context))), images.label_names != ("",)
    folder = PartFolder(f"{place}.parts" if single else place)
    layout = Layout(about_of(loaded), "vectors", labels)
    if single:
        _remove_of_another(folder, layout)
    how = {"engine": ray, "shard": shard, "part_rows": part_rows, "batch_size": batch_size, "device": device}
    embedded, kept = _write(
        loaded, layout, source, folder, **how, learner=learner, on_bad_image=on_bad_image, context=context
    )
    if shard == (1, 1) and not embedded + kept:
        raise DataError(f"{place}: none of the images decodes")
    if single:
        join_parts(folder, place)
        folder.remove_all()
    dims = loaded.embedding_dim if learner is None else loaded.head.subspace_dim(learner)
    return Encoded(place, embedded + kept, kept, dims)


def write_parts(
    model: EmbeddingModel | str | Path,
    source: Source,
    folder: str | Path,
    *,
    engine: Literal["ray"] | Ray | None = None,
    shard: tuple[int, int] = (1, 1),
    part_rows: int | None = None,
    batch_size: int = 128,
    on_bad_image: Literal["stop", "skip"] = "stop",
    device: str | torch.device = "auto",
    trust: Trust = (),
    context: Context = DEFAULT,
) -> tuple[int, int]:
    """Embed items into the parts that an index is loaded from (`divcon.search.parts.read_shards`). The arguments are
    those of `encode`.

    Returns:
        The number of items embedded, and of those that were there already.
    """
    ray = engine_of(engine)
    loaded = _model_of(model, "cpu" if ray else device, trust)
    where = None if not isinstance(model, (str, Path)) else absolute(model)
    layout = Layout(about_of(loaded, where))
    how = {"engine": ray, "shard": shard, "part_rows": part_rows, "batch_size": batch_size, "device": device}
    return _write(loaded, layout, source, PartFolder(folder), **how, on_bad_image=on_bad_image, context=context)


def _write(
    model: EmbeddingModel,
    layout: Layout,
    source: Source,
    folder: PartFolder,
    *,
    engine: Ray | None,
    shard: tuple[int, int],
    part_rows: int | None,
    batch_size: int,
    on_bad_image: str,
    device: Any,
    context: Context,
    learner: int | None = None,
) -> tuple[int, int]:
    folder.check()
    skip = on_bad_image == "skip"
    if engine is not None:
        if shard != (1, 1):
            raise ConfigError("`shard`: an engine shares the images out itself; leave it out", field="shard")
        return write_on_ray(
            model,
            layout,
            source,
            folder,
            engine,
            part_rows=part_rows,
            batch_size=batch_size,
            skip=skip,
            workers=context.workers,
            device=str(device),
            learner=learner,
            context=context,
        )
    embedder = Embedder(model, batch_size, skip, context, learner)
    total = source.count()
    blocks = source.blocks(part_rows or rows_of_parts(total))
    return write_shard(embedder, layout.about, blocks, folder, *shard, layout=layout, total=total)


def check_output(out: str, shard: tuple[int, int] = (1, 1), on_engine: bool = False) -> bool:
    """Check, before any work, where `encode` writes to; returns whether it is one file.

    Raises:
        ConfigError: it is no parquet or folder, or several processes would write one file.
        OutputError: it cannot be written.
    """
    suffix = Path(out).suffix
    if suffix == _FILE:
        if shard[1] > 1:
            raise ConfigError(
                f"`out` {out}: {shard[1]} processes cannot write one file; name a folder, without {suffix}, and "
                "each writes its parts there",
                field="out",
            )
        check_writable(out)
        return True
    if suffix.lower() in _OTHERS and not out.endswith("/") and not Path(out).is_dir():
        raise ConfigError(
            f"`out` {out}: embeddings are written as parquet; use a name that ends in .parquet, or that of a folder",
            field="out",
        )
    return False


def _model_of(model: Any, device: str | torch.device, trust: Trust) -> EmbeddingModel:
    from divcon.models import EmbeddingModel
    from divcon.runtime.device import resolve_device

    if isinstance(model, EmbeddingModel):
        return model
    where = resolve_device(device) if device in ("auto", "cpu", "cuda", "mps") else device  # type: ignore[arg-type]
    return EmbeddingModel.load(model, device=where, trust=trust)


def _has_labels(source: StreamSource) -> bool:
    if not is_table(source.path):
        return False
    first = next(source.blocks(64), None)
    return first is not None and any(label is not None for label in first.labels)


def _remove_of_another(folder: PartFolder, layout: Layout) -> None:
    """Remove the parts that an interrupted call with another model has left."""
    for name in folder.names():
        about = about_in(folder, name)
        if about is not None and about.fingerprint != layout.about.fingerprint:
            folder.remove_all()
            return
