"""``divcon check``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import (
    AS_IT_IS,
    DATA,
    READING,
    Place,
    Reading,
    Split,
    Workers,
    app,
    console,
    note,
    progress_bar,
    read_data,
)
from divcon.config.settings import Fit
from divcon.errors import ConfigError
from divcon.runtime.files import atomic_write, check_writable

if TYPE_CHECKING:
    from divcon.data.benchmark import Benchmark
    from divcon.data.check import CheckResult, Finding

_SHOWN = 5
"""How many images or groups of a kind are named."""


@app.command(group=DATA)
def check(
    data: str,
    root: Place | None = None,
    *,
    fix: Place | None = None,
    near: bool = True,
    json_file: Annotated[Place | None, Parameter(name="--json")] = None,
    show_augmented: Place | None = None,
    config: Place | None = None,
    size: Annotated[str | None, Parameter(name=("--size", "--image-size"))] = None,
    fit: Fit | None = None,
    augment: str | None = None,
    reading: Reading = READING,
    workers: Workers = 2,
    split: Split = AS_IT_IS,
) -> None:
    """Check a data set: count its classes and images, and find what would break training or make a score dishonest.

    divcon check products.csv --fix clean.csv

    divcon check cub data/CUB_200_2011

    divcon check people --show-augmented sheet.png --size 256x128 --augment color_jitter,erasing

    The counts of a published data set (cub, cars, sop, inshop, vehicleid-small, -medium, -large, market1501) are
    compared with the published ones.

    The files and folders that are not read (hidden files, what is no image, HEIC without its plug-in ...) are notes.

    Exit code 1: some images do not decode; images with the same pixels are in two of train, validation and test, or
    under two labels; vectors are zero; or counts are not the published ones (those of vehicleid's images vary, and are
    only shown). Exit code 2: the data cannot be read at all, because a class is both in train and in test, for example,
    or the folder is a different one. Exit code 0: none of this. Copies under one label and near duplicates are shown
    and do not fail.

    Parameters
    ----------
    data
        As in train.
    root
        As in train.
    fix
        Write a clean table to this file: a .csv, or a .parquet if the data holds the images or vectors itself. It has
        no images that do not decode, one of each set of copies (the one in the test classes), no images under two
        labels, and no train images that are then alone in their class. Prints what it leaves out.
    near
        Look for near duplicates too.
    json_file
        Write all findings to this file, and the names of all files that are not read.
    show_augmented
        Only write a sheet of what the network sees to this file (.png, .jpg or .webp): some training images, each as it
        is embedded and then as training draws it. Takes the settings of --config, --size, --fit and --augment.
    config
        For --show-augmented: the settings of this file, a run's config.json, for example.
    size
        For --show-augmented: as in train.
    fit
        For --show-augmented: as in train.
    augment
        For --show-augmented: as in train.
    """

    from divcon.data.check import check as check_data
    from divcon.data.clean import check_suffix
    from divcon.data.published import PUBLISHED_COUNTS
    from divcon.data.read import NAMED
    from divcon.runtime.context import Context

    settings = {"--config": config, "--size": size, "--fit": fit, "--augment": augment}
    if show_augmented is not None:
        _show_augmented(data, lambda: _read(data, root, reading, split), show_augmented, config, size, fit, augment)
        return
    for name, value in settings.items():
        if value is not None:
            raise ConfigError(f"{name} {value}: belongs to --show-augmented FILE; leave it out, or add that")
    for path in (fix, json_file):
        if path is not None:
            check_writable(path)
    benchmark = _read(data, root, reading, split)
    if fix is not None:
        check_suffix(fix, benchmark)
    with progress_bar() as on_progress:
        result = check_data(
            benchmark,
            near=near,
            published=PUBLISHED_COUNTS.get(benchmark.name) if data in NAMED else None,
            context=Context(workers, on_progress, note),
        )
    _print(result, benchmark, fixed=fix is not None)
    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    if fix is not None:
        _fix(benchmark, result, fix)
    if not result.ok:
        raise SystemExit(1)


def _show_augmented(
    data: str,
    read: Callable[[], Benchmark],
    out: Place,
    config: Place | None,
    size: str | None,
    fit: Fit | None,
    augment: str | None,
) -> None:
    from divcon.config.image_size import saved_size
    from divcon.config.settings import RunConfig

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"--show-augmented {out}: is an image; use a name that ends in .png, .jpg or .webp")
    check_writable(out)
    settings = RunConfig.load(config) if config is not None else RunConfig()
    changes: dict[str, Any] = {"image_size": size, "fit": fit}
    model = replace(settings.model, **{name: value for name, value in changes.items() if value is not None})
    train = settings.train if augment is None else replace(settings.train, augment=augment)  # type: ignore[arg-type]
    benchmark = read()
    from divcon.config.from_data import fit_images
    from divcon.data.shapes import facts_to_choose_by
    from divcon.models import EmbeddingModel
    from divcon.models.backbone import resolve_backbone, sizes_of
    from divcon.training.sheet import augmented_sheet

    images = benchmark.train if len(benchmark.train) else benchmark.query
    if images.vectors is not None:
        raise ConfigError(f"--show-augmented: {data} holds vectors, which are not augmented")
    backbone = resolve_backbone(model.backbone, None, None)
    if (shapes := facts_to_choose_by(model, images)) is not None:
        model, _ = fit_images(model, shapes, **sizes_of(backbone))
    options = {**model.network, "backbone": backbone, "pretrained": False, "weights": None}
    options |= {"method": "single", "num_learners": 1, "head_options": {}}  # not of the picture
    sheet = augmented_sheet(EmbeddingModel(**options), images, train)
    with atomic_write(out) as beside, beside.open("wb") as file:
        sheet.save(file, {".png": "PNG", ".webp": "WEBP"}.get(out.suffix.lower(), "JPEG"))
    console.print(
        f"{out}: a row for each image, first as it is embedded ({saved_size(model.image_size)} pixels, "
        f"fit {model.fit}), then as training draws it"
    )


def _read(data: str, root: Path | None, reading: Reading, split: Split) -> Benchmark:
    """The data; files that are missing are for the check to report."""
    from divcon.data.read import takes_option

    options: dict[str, Any] = {"check_files": False} if takes_option(data, "check_files") else {}
    return read_data(data, root, **options, **reading.options(), **split.options)


def _print(result: CheckResult, benchmark: Benchmark, *, fixed: bool) -> None:
    from rich.table import Table

    from divcon.data.readers.table import advice_on_path

    console.print(f"{result.name}: {result.protocol}, split {result.split_hash}")
    table = Table(box=None, pad_edge=False)
    columns = ("", result.things, "classes", "smallest", "median", "largest", f"of one {result.things[:-1]}")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for part in result.parts:
        numbers = (part.images, part.classes, part.smallest, part.median, part.largest, len(part.single))
        table.add_row(part.part, *(f"{number:,.10g}" for number in numbers))
    console.print(table)
    for text in benchmark.notes:
        note(text)
    for finding in result.findings:
        _print_finding(finding)
    images = benchmark.query
    if images.encoded is None and images.source != images.root:  # a table of files
        gone = next((item for item in result.unreadable if item.problem == "there is no such file"), None)
        if gone is not None:
            note(f"{gone.path}: {advice_on_path(gone.path, images.root).replace('`root`', 'ROOT')}")
    if result.ok:
        console.print("ok: nothing would break training or make a score dishonest")
    else:
        fails = sum(finding.fails for finding in result.findings)
        images = any(finding.groups for finding in result.findings if finding.fails)
        advice = "; --fix FILE writes a table without them" if images and not fixed else ""
        console.print(f"{'one finding fails' if fails == 1 else f'{fails} findings fail'}{advice}")


def _print_finding(finding: Finding) -> None:
    console.print(f"{'fails' if finding.fails else 'note'}: {finding.text}")
    for group in finding.groups[:_SHOWN]:
        for item in group[:_SHOWN]:
            words = item.problem or f"{item.label!r} in {' and '.join(item.parts)}"
            console.print(f"  {'' if item is group[0] else '= '}{item.where}: {words}")
        if len(group) > _SHOWN:
            console.print(f"  = and {len(group) - _SHOWN:,} more")
    if len(finding.groups) > _SHOWN:
        console.print(f"  and {len(finding.groups) - _SHOWN:,} more; --json FILE lists all")


def _fix(benchmark: Benchmark, result: CheckResult, out: Path) -> None:
    from divcon.data.clean import cleaned, write_table

    clean, left_out = cleaned(benchmark, result)
    write_table(out, clean)
    for gone in left_out:
        console.print(f"left out: {gone.where} ({gone.label!r} in {' and '.join(gone.parts)}): {gone.reason}")
    counts = ", ".join(f"{len(images):,} {part}" for part, images in clean.parts.items())
    console.print(f"{out}: {counts}; {len(left_out):,} left out")
    if not benchmark.train.flip:
        note("a mirrored image is of another class in this data, which the table does not say: train with --no-flip")
