"""``divcon pack``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from divcon.cli.app import (
    AS_IT_IS,
    DATA,
    READING,
    BadImage,
    Place,
    Reading,
    Split,
    Workers,
    app,
    console,
    note,
    notes,
    progress_bar,
    read_data,
)
from divcon.runtime.copies import size_of
from divcon.runtime.files import check_folder


@app.command(group=DATA)
def pack(
    data: str,
    root: Place | None = None,
    *,
    out: Place,
    short_side: int = 256,
    lossless: Annotated[bool, Parameter(negative=())] = False,
    quality: int = 95,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    reading: Reading = READING,
    on_bad_image: BadImage = "stop",
    workers: Workers = 2,
    split: Split = AS_IT_IS,
) -> None:
    """Decode and resize the images of a data set once, into parquet files that load faster. The folder is the same
    benchmark, with the same split.

    divcon pack sop data/Stanford_Online_Products --out data/sop-256

    divcon train data/sop-256 --out runs/sop

    Run the same command again to resume a stopped pack.

    Parameters
    ----------
    data
        As in train.
    root
        As in train.
    out
        The folder for the parquet files (path, label, split, image, and the other columns of the data), checksums and
        pack.json.
    short_side
        Pixels of an image's shorter side; smaller images are kept as they are, byte for byte. Evaluation resizes to
        256/224 of --size, so 256 is right for 224.
    lossless
        Save resized images without loss (WebP), in larger files. Default: JPEG.
    quality
        JPEG quality, 1 to 100.
    interpolation
        How to resize: bilinear for most convolutional networks, bicubic for most transformers.
    """

    from divcon.data.pack import Packing
    from divcon.data.pack import pack as pack_images
    from divcon.runtime.context import Context

    packing = Packing(short_side, lossless, quality, interpolation)
    check_folder(out)
    benchmark = read_data(data, root, **reading.options(), **split.options)
    for text in benchmark.notes:
        note(text)
    if on_bad_image == "skip":
        from divcon.data.loading import only_decodable

        benchmark = only_decodable(
            benchmark, ("train", "validation", "query", "gallery"), Context(workers, on_warning=note)
        )

    try:
        with progress_bar() as on_progress:
            pack_images(benchmark, out, packing, context=Context(workers, on_progress, note))
    except KeyboardInterrupt:
        notes.print(f"stopped; run the same command again to resume (in {out})", markup=False)
        raise SystemExit(130) from None
    size = sum(size_of(path) for path in out.glob("*.parquet"))
    console.print(f"{size / 2**20:,.0f} MiB in {out}\ntrain with: divcon train {out} --out runs/{out.name}")
