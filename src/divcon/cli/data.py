"""``divcon data icons`` and ``divcon demo``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from divcon.cli.app import Workers, app, console, data_app, notes


@data_app.command
def icons(
    package_dir: Path,
    *,
    out: Path,
    classes: int | None = None,
    seed: int = 0,
    permissive: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Build the icons benchmark: what many icon sets draw under the same name, at 64 pixels.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz

    divcon data icons package --out data/icons

    Parameters
    ----------
    package_dir
        The unpacked npm package @iconify/json.
    out
        The folder that gets icons.parquet and ATTRIBUTION.md.
    classes
        Keep this many classes, drawn by --seed; all where it is left out.
    permissive
        Only icon sets under MIT, Apache, BSD, ISC, Unlicense or CC0.
    """
    from rich.progress import Progress

    from divcon.data.icons import build_icons

    with Progress(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("drawing", total=None)
        path = build_icons(
            package_dir,
            out,
            classes=classes,
            seed=seed,
            licences="permissive" if permissive else "any",
            processes=min(4, os.cpu_count() or 1),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{path}\ntrain with: divcon train icons {out} --size 64 --out runs/icons")


@app.command
def demo(*, out: Path = Path("divcon-demo"), epochs: int = 8, seed: int = 0, workers: Workers = 1) -> None:
    """Train one metric, and divide and conquer, on the bundled icons; compare them on classes never seen. Minutes on a
    laptop, no network.

    Parameters
    ----------
    out
        The folder that gets both runs and the pictures.
    epochs
        Epochs of each method.
    seed
        Decides everything random.
    """
    from divcon.demo import demo as run_demo
    from divcon.demo import print_scores

    try:
        result = run_demo(out, epochs=epochs, seed=seed, workers=workers, notes=notes)
    except KeyboardInterrupt:
        notes.print("stopped; the same command goes on from here")
        raise SystemExit(130) from None
    print_scores(result, out, console)
