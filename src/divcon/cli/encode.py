"""``divcon encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import (
    COLUMNS,
    EVALUATE,
    HERE,
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
    shard_of,
    to_path,
)
from divcon.errors import ConfigError
from divcon.runtime.places import text_of


@app.command(group=EVALUATE)
def encode(
    run: Place,
    images: Annotated[list[Path] | None, Parameter(consume_multiple=True, converter=to_path)] = None,
    /,
    *,
    out: str,
    learner: int | None = None,
    root: Place | None = None,
    stream: Stream = None,
    shard: Shard = None,
    engine: EngineChoice = HERE,
    columns: ColumnChoice = COLUMNS,
    part_rows: PartRows = None,
    on_bad_image: BadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Embed images or vectors with a run's model, into parquet: paths, labels, the other columns of a table, and
    embeddings. Run the same command again to go on after an interruption.

    divcon encode runs/products photos/ --out vectors.parquet

    divcon encode runs/products --stream paths.txt --out vectors --shard 1/8

    divcon encode runs/products --stream paths.parquet --out s3://shop/vectors --engine ray --address auto

    Parameters
    ----------
    run
        A run folder, or a model folder such as RUN/last.
    images
        Images, folders (searched recursively), or a CSV or parquet with a column path. For a model of vectors, a
        parquet with a column embedding.
    out
        The parquet file: path (relative to where you are), label if there is one, the other columns of the table,
        embedding (D float32, of length one). Without .parquet: a folder of such files, on a disk or at an address such
        as s3://BUCKET/FOLDER, which is a data set like one file.
    learner
        Embed with this learner's subspace only.
    root
        The folder that relative paths of a table or listing start from, instead of its own.
    """
    from divcon.models.folder import check_model
    from divcon.search.encode import check_output

    chosen, number = engine.chosen(), (1, 1)
    if bool(images) == (stream is not None):
        raise ConfigError("give either IMAGES after RUN, or a listing of their paths with --stream")
    if chosen is None and (shard is not None or not out.endswith(".parquet")):
        number = shard_of(shard)
    elif shard is not None:
        raise ConfigError(f"--shard {shard} does not go with --engine ray, which shares the images out itself")
    check_output(out, number)
    check_model(run, learner=learner)
    data = encode_source(images or [], root, stream, columns, on_cluster=chosen is not None)

    from divcon.runtime.context import Context
    from divcon.search.encode import encode as encode_data

    with progress_bar() as on_progress:
        encoded = encode_data(
            run,
            data,
            out,
            learner=learner,
            engine=chosen,
            shard=number,
            part_rows=part_rows,
            batch_size=batch_size,
            on_bad_image=on_bad_image,
            device=device,
            context=Context(workers, on_progress, note),
        )
    of = "" if number[1] == 1 else f"shard {number[0]} of {number[1]}: "
    kept = f", {encoded.kept:,} of them there already" if encoded.kept else ""
    console.print(f"{of}{encoded.rows:,} embeddings of {encoded.dims} dimensions in {encoded.out}{kept}")


def encode_source(
    images: list[Path], root: Path | None, stream: str | None, columns: ColumnChoice, *, on_cluster: bool
) -> Any:
    """The data to encode: a set, or a source that is read in passing."""
    from divcon.data.readers.folder import images_of
    from divcon.runtime.context import Context
    from divcon.search.sources import StreamSource

    if stream is not None:
        return StreamSource(spooled(stream, on_cluster), text_of(root or ""), columns.columns(), to_encode=True)
    source = images[0] if len(images) == 1 else images
    return images_of(source, root, chosen=columns.columns(), context=Context(on_warning=note))


def spooled(stream: str, on_cluster: bool) -> str:
    """The file of a stream: standard input is written into one for workers, which may have to read it again."""
    if stream != "-" or not on_cluster:
        return stream
    import atexit
    import shutil
    import sys
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="divcon-", suffix=".txt", delete=False) as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name
