"""``divcon index``."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from divcon.cli.app import (
    COLUMNS,
    HERE,
    SEARCH,
    BadImage,
    BatchSize,
    ColumnChoice,
    DeviceOption,
    EngineChoice,
    PartRows,
    Place,
    Shard,
    Stream,
    Workers,
    app,
    console,
    note,
    progress_bar,
    read_data,
    shard_of,
)
from divcon.cli.encode import spooled
from divcon.cli.imports import allow_typed
from divcon.cli.messages import flag
from divcon.config.settings import Fit, OnBadImage
from divcon.errors import ConfigError, DataError, DivconError, StoreError
from divcon.runtime.copies import here
from divcon.runtime.files import check_writable
from divcon.runtime.places import exists_here, is_url, place, text_of

if TYPE_CHECKING:
    from divcon.search import Changes, Index
    from divcon.search.on_ray import Ray
    from divcon.search.sources import Source

Yes = Parameter(negative=())


@app.command(group=SEARCH)
def index(
    run: Place | None = None,
    images: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    /,
    *,
    store: str | None = None,
    root: Place | None = None,
    stream: Stream = None,
    backbone: str | None = None,
    size: Annotated[str | None, Parameter(name=("--size", "--image-size"))] = None,
    fit: Fit | None = None,
    weights: Place | None = None,
    delete_missing: Annotated[bool, Yes] = False,
    column_type: Annotated[list[str] | None, Yes] = None,
    ann_from: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    parts: Place | None = None,
    part_rows: PartRows = None,
    shard: Shard = None,
    engine: EngineChoice = HERE,
    load: Place | None = None,
    check: str | None = None,
    info: str | None = None,
    change_types: str | None = None,
    columns: ColumnChoice = COLUMNS,
    on_bad_image: BadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Index images or vectors with a run's model, to search them with divcon search. Run the same command again to
    index new and changed images, or to resume.

    divcon index runs/products photos/

    divcon index runs/products photos/ --store postgresql://me@localhost/shop --delete-missing

    divcon index --backbone resnet50.tv_in1k photos/

    divcon index runs/products products.csv --column-type price=float --column-type added=date

    divcon index runs/products --stream paths.parquet --engine ray --address auto --parts s3://shop/parts --store big

    divcon index --info runs/products

    divcon index --change-types runs/products --column-type price=decimal

    Parameters
    ----------
    run
        A run folder, or a model folder such as RUN/last. Left out with --backbone.
    images
        Images, folders (searched recursively), a CSV or parquet with a column path, a parquet with a column embedding
        for a model of vectors, or a named data set (its gallery). Labels and all other columns of a table are stored,
        to filter by; an image in a subfolder of a folder has the subfolder's name as its label.
    store
        Where to store the index: a folder; s3://BUCKET/PATH (gs://, az://); postgresql://USER@HOST/DATABASE
        (?table=NAME for another table than divcon); qdrant://HOST:PORT/COLLECTION, or embedded, qdrant:///FOLDER;
        or a store of your own, module:Name or module:Name?OPTION=VALUE. Default: RUN/index; with --backbone,
        photos.divcon beside photos/, a folder that then stands for a run in index, search and serve.
    root
        The folder that relative paths of a table or listing start from, instead of its own.
    backbone
        Instead of a run: index by the pretrained features of this timm model, without any training; divcon similar
        also shows the page.
    size
        Of --backbone: height and width, in pixels, of its input: one number, or height x width, as in 256x128.
        Default: from the shapes of the images.
    fit
        Of --backbone: how an image comes into that size: crop, squash or pad. Default (auto): from the shapes.
    weights
        Of --backbone: load its weights from this file (.safetensors, or .pth with tensors only) instead of timm's.
    delete_missing
        Remove items from the store that are not among these images. Without it nothing is removed.
    column_type
        The type of a column, as NAME=TYPE: text, int, float, bool, date, datetime, datetime-utc, decimal or json.
        Repeat it for several columns. Without it a column has the type of the table; those of a CSV are text, or what
        they are in the index.
    ann_from
        Number of items from which the store builds and uses an approximate index. Default: 100,000.
    parts
        Embed into parquet files in this folder, or at this address (s3://BUCKET/FOLDER), instead of a store, as one of
        several processes (--shard), or by --engine, which also loads them into --store if that is given. Default with
        --engine: STORE.parts.
    load
        Instead of a run and images: update --store with the parquet files that --parts wrote.
    check
        Compare the approximate index of this store with exact search, and print its recall@10.
    info
        Print the number of items of this store, its model, and its columns with their types.
    change_types
        Give columns of this store other types (--column-type), and convert all their values. If a value would be lost
        or changed, nothing is, and the items are named.
    """
    types = _column_types(column_type)
    chosen = engine.chosen()
    of_backbone = {"size": size, "fit": fit, "weights": weights}
    if backbone is not None:
        _check_alone(
            backbone=backbone,
            engine=engine.engine,
            parts=parts,
            load=load,
            check=check,
            info=info,
            change_types=change_types,
        )
        sources = [*([] if run is None else [text_of(run)]), *(images or [])]
        if run is not None and is_model_folder(run):
            raise ConfigError(
                f"--backbone {backbone} does not go with RUN {run}, which has a model of its own: leave one of them out"
            )
        index_by_backbone(
            sources,
            backbone,
            **of_backbone,
            store=store,
            root=root,
            stream=stream,
            column_types=types,
            columns=columns,
            delete_missing=delete_missing,
            ann_from=ann_from,
            on_bad_image=on_bad_image,
            batch_size=batch_size,
            workers=workers,
            device=device,
        )
        return
    for name, value in of_backbone.items():
        if value is not None:
            raise ConfigError(f"--{name} {value} is of a backbone: add --backbone NAME, in place of RUN")
    from divcon.search import Index

    others = {"run": run, "store": store, "load": load, "parts": parts, "stream": stream, "engine": engine.engine}
    if check is not None:
        _check_alone(check=check, **others, info=info, change_types=change_types, column_type=column_type)
        _print_check(Index.open(check))
        return
    if info is not None:
        _check_alone(info=info, **others, change_types=change_types, column_type=column_type)
        _print_info(Index.open(info))
        return
    if change_types is not None:
        _check_alone(change_types=change_types, **others)
        if not types:
            raise ConfigError(f"--change-types {change_types} needs a type: add --column-type NAME=TYPE")
        rewritten = Index.open(change_types).change_types(types)
        console.print(
            f"{rewritten:,} items rewritten in {change_types}" if rewritten else "the columns have these types"
        )
        return
    if load is not None:
        _check_alone(load=load, run=run, parts=parts, stream=stream, engine=engine.engine, column_type=column_type)
        if store is None:
            raise ConfigError("--load needs a store to write to: add --store")
        _load_parts(text_of(load), store, ann_from, delete_missing)
        return
    if run is None:
        raise ConfigError(
            "RUN is missing: give the run whose model embeds the images, as in divcon index RUN IMAGES; or, before any "
            "training, divcon index --backbone NAME IMAGES"
        )
    if bool(images) == (stream is not None):
        raise ConfigError("give either IMAGES after RUN, or a listing of their paths with --stream")
    if chosen is not None and shard is not None:
        raise ConfigError(f"--shard {shard} does not go with --engine ray, which shares the images out itself")
    if shard is not None and parts is None:
        raise ConfigError(f"--shard {shard} needs --parts, the folder that all shards write to")
    if parts is not None and chosen is None and (delete_missing or store is not None):
        raise ConfigError("--parts writes to no store: give --store and --delete-missing to divcon index --load")
    if parts is not None and store is None and delete_missing:
        raise ConfigError("--parts without --store writes to no store: --delete-missing needs one")
    if part_rows is not None and parts is None and chosen is None:
        raise ConfigError(f"--part-rows {part_rows} is of parts: add --parts or --engine ray")
    from divcon.models.folder import check_model, index_beside

    check_model(run)
    if parts is not None or chosen is not None:
        from divcon.search.parts import folder_beside

        number = shard_of(shard) if chosen is None else (1, 1)
        source = _source(images or [], root, stream, types, columns, on_cluster=chosen is not None)
        address = store or index_beside(run)
        folder = text_of(parts) if parts is not None else folder_beside(address)
        how = (device, batch_size, workers, on_bad_image)
        _write_parts(run, source, folder, number, chosen, part_rows, *how)
        if chosen is not None and (store is not None or parts is None):
            _load_parts(folder, address, ann_from, delete_missing)
        return
    items, total = _items(images or [], root, stream, types, columns)
    opened = Index.create(run, store or index_beside(run), ann_from=ann_from, device=device)
    changes = _update(opened, items, total, workers, delete_missing, batch_size, on_bad_image)
    _print_changes(opened, changes)


def is_model_folder(path: str | Path) -> bool:
    """Whether it is the folder of a run or model."""
    return any(
        here(place(path) / name).is_file() for name in ("model.safetensors", "model/config.json", "metrics.jsonl")
    )


def check_sources(images: list[str]) -> None:
    """Check that images are there, before PyTorch is imported.

    Raises:
        DataError: one is not, or is an archive.
        ConfigError: there are none.
    """
    if not images:
        raise ConfigError("IMAGES are missing: give a folder, a table, or images")
    for image in images:
        if is_url(image):
            continue
        path = Path(image)
        if path.suffix.lower() in _ARCHIVES and path.is_file():
            raise DataError(f"{image}: is an archive; unpack it, and give the folder")
        if not os.path.lexists(path):
            missing = DataError(f"{image}: there is no such file or folder")
            if os.sep in image:
                raise missing
            from divcon.data.read import is_dataset_name

            if len(images) > 1 or not is_dataset_name(image):
                raise missing


def index_by_backbone(
    images: list[str],
    backbone: str | None,
    *,
    size: str | None,
    fit: str | None,
    weights: Place | None,
    store: str | None,
    root: Place | None,
    stream: str | None,
    column_types: dict[str, str],
    columns: ColumnChoice,
    delete_missing: bool,
    ann_from: int | None,
    on_bad_image: OnBadImage,
    batch_size: int,
    workers: int,
    device: Any,
) -> tuple[Path, str]:
    """Index by the pretrained features of a backbone, or bring such an index up to date; print what changed, and what
    training would need.

    Returns:
        The folder of the model, and the address of the store.

    Raises:
        ConfigError, DataError, WeightsError, StoreError, OutputError: see `divcon.search.untrained.prepare` and
            `divcon.Index.update`.
    """
    from divcon.models.folder import check_weights
    from divcon.models.names import check_backbone_name
    from divcon.search.untrained import RECORD, place_of, prepare, training_of

    if stream is None:
        check_sources(images)
    elif images:
        raise ConfigError("give either IMAGES, or a listing of their paths with --stream")
    elif store is None:
        raise ConfigError("--stream with --backbone needs a place for the index: add --store FOLDER")
    allow_typed(backbone)
    check_backbone_name(backbone)
    if weights is not None:
        check_weights(weights)
    folder, address = place_of(store, images)
    is_new = not folder.exists()
    check_writable(folder / RECORD)
    if store is None:
        note(f"the index is in {folder}; --store chooses another place")

    from divcon.runtime.context import Context
    from divcon.search import Index

    try:
        items, total = _items(images, root, stream, column_types, columns)
        first: Any = items
        if stream is not None:
            first = next(items, None)
            if first is None:
                raise DataError(f"{stream}: has no paths of images")
            items = itertools.chain([first], items)
        prepare(
            folder,
            first.images,
            backbone,
            image_size=size,
            fit=fit,
            weights=weights,
            data=images,
            options={name: value for name, value in vars(columns).items() if value is not None},
            context=Context(on_warning=note),
        )
    except DivconError:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise
    opened = Index.create(folder, address, ann_from=ann_from, device=device)
    changes = _update(opened, items, total, workers, delete_missing, batch_size, on_bad_image)
    if not len(opened):
        raise DataError(f"{', '.join(images) or stream}: none of the images decodes")
    _print_changes(opened, changes)
    if (training := training_of(opened)) is not None:
        console.print(training)
    return folder, str(address)


_ARCHIVES = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"}


def _update(
    opened: Index,
    items: Any,
    total: int | None,
    workers: int,
    delete_missing: bool,
    batch_size: int,
    on_bad_image: OnBadImage,
) -> Changes:
    """Bring an index up to date with a progress bar."""
    from divcon.runtime.context import Context

    with progress_bar("items", total) as on_progress:
        return opened.update(
            items,
            delete_missing=delete_missing,
            batch_size=batch_size,
            on_bad_image=on_bad_image,
            context=Context(workers, on_progress, note),
        )


def _check_alone(**options: Any) -> None:
    """Raise ConfigError if any option beside the first has a value."""
    first, *others = options
    wrong = ["RUN" if name == "run" else flag(name) for name in others if options[name] is not None]
    if wrong:
        raise ConfigError(f"{flag(first)} {options[first]} does not go with {' and '.join(wrong)}")


def _column_types(words: list[str] | None) -> dict[str, str]:
    """The types of ``NAME=TYPE`` words."""
    types: dict[str, str] = {}
    for word in words or []:
        name, equals, type_ = word.rpartition("=")
        if not equals or not name:
            raise ConfigError(f"--column-type {word}: write NAME=TYPE, such as price=float")
        if types.get(name, type_) != type_:
            raise ConfigError(f"--column-type: {name} is {types[name]} and {type_}; give one of them")
        types[name] = type_
    return types


def _items(
    images: list[str],
    root: Place | None,
    stream: str | None,
    column_types: dict[str, str],
    columns: ColumnChoice,
) -> tuple[Any, int | None]:
    """The items to index, and their number; of a listing, which is read as it is indexed, an iterator of chunks and
    None."""
    from divcon.data.read import is_dataset_name
    from divcon.data.readers.folder import images_of
    from divcon.data.table_format import is_table
    from divcon.runtime.context import Context
    from divcon.search.items import CHUNK, items_of, read_rows
    from divcon.search.sources import StreamSource

    if stream is not None:
        _check_stream(stream, column_types)
        if is_table(stream):
            context = Context(on_warning=note)
            return read_rows(stream, root, column_types, chosen=columns.columns(), context=context), None
        source = StreamSource(stream, text_of(root or ""), columns.columns(), column_types)
        return source.blocks(CHUNK), source.count()
    if len(images) == 1 and is_dataset_name(images[0]) and not exists_here(images[0]):
        image_set = read_data(images[0], root).gallery
    else:
        image_set = images_of(
            images[0] if len(images) == 1 else images,
            root,
            chosen=columns.columns(),
            context=Context(on_warning=note),
        )
    items, repeated = items_of(image_set, column_types=column_types, context=Context(on_warning=note))
    if repeated:
        note(f"left out {repeated:,} rows with the same image as an earlier row")
    return items, len(items)


def _check_stream(stream: str, column_types: dict[str, str]) -> None:
    from divcon.data.table_format import is_table
    from divcon.search.items import listed_sets

    if is_table(stream):
        return
    if column_types:
        raise ConfigError("--column-type: a listing of paths (--stream) has no columns")
    listed_sets(stream)  # whether it is there


def _source(
    images: list[str],
    root: Path | None,
    stream: str | None,
    column_types: dict[str, str],
    columns: ColumnChoice,
    *,
    on_cluster: bool,
) -> Source:
    """The items to embed into parts."""
    from divcon.search.sources import ItemSource, StreamSource

    if stream is not None:
        _check_stream(stream, column_types)
        return StreamSource(spooled(stream, on_cluster), text_of(root or ""), columns.columns(), column_types)
    return ItemSource(_items(images, root, None, column_types, columns)[0])


def _write_parts(
    run: Place,
    source: Source,
    folder: str,
    shard: tuple[int, int],
    engine: Ray | None,
    part_rows: int | None,
    device: Any,
    batch_size: int,
    workers: int,
    on_bad_image: OnBadImage,
) -> None:
    """Embed one shard of the items, or all by an engine, into parquet files in a folder."""
    from divcon.runtime.context import Context
    from divcon.search.encode import write_parts

    with progress_bar("items") as on_progress:
        embedded, kept = write_parts(
            run,
            source,
            folder,
            engine=engine,
            shard=shard,
            part_rows=part_rows,
            batch_size=batch_size,
            on_bad_image=on_bad_image,
            device=device,
            context=Context(workers, on_progress, note),
        )
    who = f"shard {shard[0]} of {shard[1]}" if engine is None else "parts"
    console.print(f"{who}: {embedded:,} embedded, {kept:,} already there, in {folder}")


def _load_parts(folder: str, store: str, ann_from: int | None, delete_missing: bool) -> None:
    """Update a store with the parquet files that `_write_parts` wrote."""
    from divcon.runtime.context import Context
    from divcon.search import Index
    from divcon.search.parts import read_shards

    about, total, chunks = read_shards(folder)
    if ann_from is not None:
        about = replace(about, ann_from=ann_from)
    opened = Index.for_about(about, store, replace=ann_from is not None)
    with progress_bar("items", total) as on_progress:
        changes = opened.load(
            chunks, total=total, delete_missing=delete_missing, context=Context(on_progress=on_progress)
        )
    _print_changes(opened, changes)


def _print_changes(index: Index, changes: Changes) -> None:
    text = f"{changes.added:,} added, {changes.changed:,} changed, {changes.removed:,} removed, {changes.kept:,} kept"
    if changes.skipped:
        text += f", {changes.skipped:,} skipped"
    console.print(f"{text}: {len(index):,} items in {index.uri}")
    if changes.missing:
        note(f"{changes.missing:,} items in the store are not among these images; --delete-missing removes them")
    about = index.about
    if about.effort is not None and about.recall is not None:
        console.print(f"approximate index: recall@10 {100 * about.recall:.1f} %")


def _print_info(index: Index) -> None:
    from divcon.runs.display import print_table

    about = index.about
    console.print(f"{index.uri}: {len(index):,} items, {about.dims} dimensions")
    console.print(f"model: {about.model or 'not named'} (fingerprint {about.fingerprint})")
    missing = index.missing_values()
    rows = [[name, "text", ""] for name in ("path", "label")]
    rows += [[name, type_, f"{missing[name]:,}"] for name, type_ in index.column_types.items()]
    print_table(console, ["column", "type", "without a value"], rows)


def _print_check(index: Index) -> None:
    result = index.check()
    if result is None:
        about = index.about
        console.print(
            f"{index.uri}: {len(index):,} items, searched exactly (its approximate index begins at {about.ann_from:,})"
        )
        return
    if not result.queries:
        raise StoreError(f"{index.uri}: is empty")
    console.print(
        f"{index.uri}: {len(index):,} items; approximate index against exact search on {result.queries} items as "
        f"queries: recall@{result.k} {100 * result.recall:.1f} %, {1000 * result.seconds_approximate:.1f} ms a query "
        f"(exact {1000 * result.seconds_exact:.1f} ms)"
    )
