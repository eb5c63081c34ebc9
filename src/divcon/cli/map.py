"""``divcon map``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from divcon.cli.app import (
    EVALUATE,
    READING,
    BatchSize,
    DeviceOption,
    Place,
    Reading,
    Workers,
    app,
    console,
    note,
    notes,
)
from divcon.errors import ConfigError
from divcon.runtime.files import check_writable
from divcon.runtime.places import place


@app.command(name="map", group=EVALUATE)
def draw(
    run: str,
    data: str | None = None,
    root: Place | None = None,
    *,
    out: Place,
    by: Literal["auto", "tsne", "umap", "pca"] = "auto",
    colour: Annotated[str, Parameter(name=("--colour", "--color"))] = "label",
    images: bool = True,
    compare: str | None = None,
    reading: Reading = READING,
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Draw the map of a run's embedding, in which similar items are neighbours: a picture, or a page that stands alone.

    divcon map runs/birds --out birds.png

    divcon map runs/birds --out birds.html --colour learner

    divcon map runs/birds --out birds.png --compare pretrained

    divcon map runs/birds birds/ --out birds.svg --by tsne --no-images

    If the run has an index (divcon index), its items are drawn; else, with --compare, and if you give DATA, the images
    that the run is tested on, which are embedded now.

    Parameters
    ----------
    run
        A run or model folder, or an index: its folder or address, postgresql://USER@HOST/DATABASE, or
        qdrant://HOST:PORT/COLLECTION.
    data
        As in evaluate: draw the images that it tests on, in place of the index's items.
    root
        As in train.
    out
        The file. Its ending says what it is: .png, .svg, or .html, a page that is zoomed and searched, with everything
        in it.
    by
        How to lay the items out. UMAP needs pip install "divcon[map]"; auto takes it where it is installed, else t-SNE.
    colour
        Colour by label; of an index also by learner, split or one of its columns.
    images
        Draw thumbnails, in pictures on a grid so that none hides another; --no-images: points alone.
    compare
        Draw the map of another run beside, of the same images; pretrained: of the run's network before its training.
    """
    if out.suffix.lower() not in (".png", ".svg", ".html"):
        raise ConfigError(f"--out {out}: end it in .png, .svg or .html")
    if by == "umap" and importlib.util.find_spec("umap") is None:
        raise ConfigError('--by umap: UMAP needs umap-learn: pip install "divcon[map]"')
    for name, folder in (("RUN", run), ("--compare", None if compare == "pretrained" else compare)):
        if folder is not None and "://" not in folder and ":" not in Path(folder).name and not Path(folder).exists():
            raise ConfigError(f"{name} {folder}: is not there; give a run folder or an index")
    check_writable(out)
    from rich.progress import Progress, TextColumn

    from divcon.cli.evaluate import test_data
    from divcon.maps import draw_map
    from divcon.runtime.context import Context
    from divcon.runtime.context import Progress as Step

    benchmark = None
    if data is not None:
        benchmark = test_data(place(run), data, root, reading)
    elif reading.options():
        raise ConfigError("options of DATA: give DATA too")
    names = {"embed": "embedding", "map": "laying out", "decode": "decoding"}
    with Progress(
        TextColumn("{task.description}"), console=notes, transient=True, disable=not notes.is_terminal
    ) as bar:
        task = bar.add_task("reading")

        def show(step: Step) -> None:
            share = f" {100 * step.done // step.total} %" if step.total and step.done else ""
            bar.update(task, description=f"{names.get(step.stage, step.stage)}{share}")

        path = draw_map(
            run,
            out,
            benchmark,
            by=by,
            colour=colour,
            images=images,
            compare=compare,
            batch_size=batch_size,
            device=device,
            context=Context(workers, show, note),
        )
    console.print(f"map in {path}")
