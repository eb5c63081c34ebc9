"""`draw_map`: the map of a run's embedding in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from divcon.config.settings import Device
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, StoreError
from divcon.evaluation.baselines import pretrained_features
from divcon.evaluation.layout import By, check_layout, lay_out
from divcon.maps.items import MapItems, Panel, check_colour, check_count, items_of_index, items_of_set
from divcon.maps.page import write_page
from divcon.maps.picture import write_picture
from divcon.models.folder import check_model
from divcon.runs.folder import RunFolder, own_benchmark
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.device import resolve_device
from divcon.runtime.files import check_writable
from divcon.runtime.places import place, text_of, url_of
from divcon.search import Index
from divcon.search.layout import index_layout
from divcon.search.stores import open_store

if TYPE_CHECKING:
    import torch

ENDINGS = (".png", ".svg", ".html")
PRETRAINED = "pretrained"


def draw_map(
    run: str | Path | Index,
    out: str | Path,
    data: Benchmark | LabeledSet | None = None,
    *,
    by: By | Literal["auto"] = "auto",
    colour: str = "label",
    images: bool = True,
    compare: str | Path | None = None,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    context: Context = DEFAULT,
) -> Path:
    """Draw the map of a run's embedding: its items in two dimensions, so that similar ones are neighbours.

    >>> dc.draw_map("runs/birds", "birds.png")  # doctest: +SKIP

    Args:
        run: a run or model folder, an index, or the address of one. Of a run that has an index, the index's items are
            drawn; of another one, the images that it is tested on.
        out: the file: ``.png``, ``.svg``, or ``.html`` for a page that is zoomed and searched, with everything in it.
        data: draw these in place of the index's: of a benchmark, its gallery.
        by: ``tsne``, ``umap``, ``pca``; ``auto`` is UMAP where umap-learn is installed, else t-SNE.
        colour: of an index, ``label``, ``learner``, ``split`` or one of its columns; else ``label``.
        images: draw thumbnails, in PNG and SVG snapped to a grid so that none hides another. Vectors are points.
        compare: another run, whose map of the same images is drawn beside; ``pretrained`` is the run's own network
            before it was trained.

    Returns:
        The path of the file.

    Raises:
        ConfigError: another ending or layout, or nothing to colour by.
        OutputError: the file cannot be written.
        DataError: there are fewer than three items.
        RunError: the run's data is not named, gone or changed.
        StoreError, WeightsError: there is neither an index nor a model.
    """
    out = place(out)
    if out.suffix.lower() not in ENDINGS:
        raise ConfigError(f"`out` {out}: end it in .png, .svg or .html", field="out")
    by = check_layout(by)
    check_writable(out)
    index = None if data is not None or compare is not None else _index_of(run)
    if index is not None:
        items, panels = _of_index(index, by, colour, context)
        if not isinstance(run, Index):
            index.close()
    else:
        if isinstance(run, Index):
            raise ConfigError("`run`: pass the run, not its index, to draw other data or to compare", field="run")
        if data is None:
            data = own_benchmark(run, whole=True, context=context)
        chosen = data.gallery if isinstance(data, Benchmark) else data
        check_count(len(chosen), chosen.source or "the data")
        items = items_of_set(chosen, colour, context)
        panels = _of_models(run, compare, chosen, by, batch_size, device, context)
    if not images:
        items = MapItems(items.labels, items.paths, items.values, items.colour, None)
    (write_page if out.suffix.lower() == ".html" else write_picture)(out, items, panels)
    return out


def _index_of(run: str | Path | Index) -> Index | None:
    if isinstance(run, Index):
        return run
    store = text_of(run)
    # An index at an address is not copied here: only of a run's folder are files looked for.
    is_local_or_run = url_of(run) is None or here(place(run) / "config.json").exists()
    if is_local_or_run and not _has_index(store):
        folder = RunFolder(run)
        if (folder.path.is_dir() and folder.origin() is not None) or (folder.path / "model.safetensors").exists():
            return None
    index = Index.open(store)
    if not index.store.exists():
        raise StoreError(f"{run}: there is no index and no run here")
    return index


def _has_index(store: str) -> bool:
    try:
        return open_store(store).exists()
    except ConfigError:  # an address of no store
        return False


def _of_index(index: Index, by: By, colour: str, context: Context) -> tuple[MapItems, list[Panel]]:
    check_count(len(index), index.uri)
    check_colour(index, colour)
    model = index.about.model
    run = place(model) if model and RunFolder(model).origin() is not None else None
    ids, layout = index_layout(index, by, _reported(context))
    name = run.name if run is not None else Path(index.uri).name
    return items_of_index(index, ids, colour, run), [Panel(name, layout)]


def _of_models(
    run: str | Path,
    compare: str | Path | None,
    images: LabeledSet,
    by: By,
    batch_size: int,
    device: str | torch.device,
    context: Context,
) -> list[Panel]:
    for folder in (run, compare):
        if folder is not None and str(folder) != PRETRAINED:
            check_model(folder)  # before PyTorch is imported
    from divcon.models import EmbeddingModel

    if isinstance(device, str) and device in get_args(Device):
        device = resolve_device(device)
    model = EmbeddingModel.load(run, device=device)
    wanted: list[tuple[str, np.ndarray]] = []
    if compare is not None and str(compare) == PRETRAINED:
        features = pretrained_features(model, [images], batch_size=batch_size, context=context)[0]
        wanted.append(("before training", features))
        wanted.append(("after training", model.encode(images, batch_size=batch_size, context=context)))
    else:
        wanted.append((place(run).resolve().name, model.encode(images, batch_size=batch_size, context=context)))
        if compare is not None:
            other = EmbeddingModel.load(compare, device=device)
            vectors = other.encode(images, batch_size=batch_size, context=context)
            wanted.append((place(compare).resolve().name, vectors))
    return [Panel(title, lay_out(vectors, by, _reported(context))) for title, vectors in wanted]


def _reported(context: Context):
    def on_step(step: str, done: float | None) -> None:
        context.progress("map", round(100 * (done or 0)), 100)

    return on_step
