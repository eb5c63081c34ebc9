"""``divcon pack``: images decoded and made smaller once, for many trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from divcon.cli.app import BadImage, Workers, app, console, note, notes, read_data


@app.command
def pack(
    data: str,
    root: Path | None = None,
    *,
    out: Path,
    short_side: int = 256,
    lossless: Annotated[bool, Parameter(negative=())] = False,
    quality: int = 95,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    on_bad_image: BadImage = "stop",
    workers: Workers = 2,
) -> None:
    """Decode the images of a data set once, make them smaller, and keep them as parquet files that are read image by
    image. The folder is the same benchmark, with the same split; a pack that was stopped goes on with the same command.

    divcon pack sop data/Stanford_Online_Products --out data/sop-256

    divcon train data/sop-256 --out runs/sop

    Parameters
    ----------
    data
        As in train.
    root
        As in train.
    out
        The folder that gets the parquet files (path, label, split, image, and what else the data says of its images),
        with checksums, and pack.json.
    short_side
        Pixels of an image's shorter side; one that is no larger is kept as it is, byte for byte. Evaluation resizes to
        256/224 of --size, so that 256 is right for 224.
    lossless
        Keep what is resized without loss (WebP): larger files. Else it is JPEG.
    quality
        Of JPEG, 1 to 100.
    interpolation
        How images are resized: as the backbone wants them, which is bilinear for most convolutional networks and
        bicubic for most transformers.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    from divcon.data.loading import only_decodable
    from divcon.data.pack import Packing
    from divcon.data.pack import pack as pack_images
    from divcon.runtime.context import Context

    packing = Packing(short_side, lossless, quality, interpolation)
    benchmark = read_data(data, root)
    for text in benchmark.notes:
        note(text)
    if on_bad_image == "skip":
        benchmark = only_decodable(
            benchmark, ("train", "validation", "query", "gallery"), Context(workers, on_warning=note)
        )

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"images, {task.speed or 0:,.0f} images/s")

    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("packing", total=None)
        try:
            pack_images(
                benchmark,
                out,
                packing,
                context=Context(workers, lambda p: bar.update(task, completed=p.done, total=p.total), note),
            )
        except KeyboardInterrupt:
            bar.stop()
            notes.print(f"stopped; the same command goes on from here (into {out})", markup=False)
            raise SystemExit(130) from None
    size = sum(path.stat().st_size for path in out.glob("*.parquet"))
    console.print(f"{size / 2**20:,.0f} MiB in {out}\ntrain with: divcon train {out} --out runs/{out.name}")
