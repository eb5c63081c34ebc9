"""``divcon features``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from cyclopts import Parameter

from divcon.cli.app import (
    AS_IT_IS,
    DATA,
    READING,
    BadImage,
    BatchSize,
    DeviceOption,
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
from divcon.config.settings import Fit, ModelConfig
from divcon.errors import ConfigError, DataError
from divcon.runtime.files import check_writable

if TYPE_CHECKING:
    import numpy as np

    from divcon.data.benchmark import Benchmark


@app.command(group=DATA)
def features(
    data: str,
    root: Place | None = None,
    *,
    out: Place,
    backbone: str | None = None,
    size: Annotated[str | None, Parameter(name=("--size", "--image-size"))] = None,
    fit: Fit | None = None,
    weights: Place | None = None,
    run: Place | None = None,
    text: Annotated[list[str] | None, Parameter(negative=())] = None,
    text_model: str | None = None,
    reading: Reading = READING,
    on_bad_image: BadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
    split: Split = AS_IT_IS,
) -> None:
    """Compute the pooled features of a pretrained backbone for a whole data set, to train on them instead of its
    images. The parquet file is the same benchmark, with the same split. With --text, features of a table's texts.

    divcon features products.csv --backbone resnet50.tv_in1k --out vectors.parquet

    divcon features products.csv --text title --out vectors.parquet

    divcon features products.csv --text title --text description --backbone dinov2_vits14 --out vectors.parquet

    divcon train vectors.parquet --out runs/products

    Parameters
    ----------
    data
        As in train.
    root
        As in train.
    out
        The parquet file: path, label, split, embedding (F float32), and the other columns of the data (query, gallery,
        camera, sequence, box).
    backbone
        Any timm model by name, with its pretrained weights. Default: resnet50.tv_in1k.
    size
        Height and width, in pixels, of the backbone's input: one number, or height x width, as in 256x128. Default: as
        train chooses it.
    fit
        How an image comes into that size: crop, squash or pad. Default (auto): as train chooses it.
    weights
        Load the backbone's weights from this file (.safetensors, or .pth with tensors only) instead of timm's.
    run
        Instead of --backbone: take the features that the model in this run folder, or model folder such as RUN/last,
        passes to its head.
    text
        Take the features of the texts in this column of the table, by a model of sentence-transformers (needs
        divcon[text]); repeat it for several columns, which are joined line by line. The table needs no images then.
        With --backbone or --run, features of images and of texts, each of length one, side by side.
    text_model
        The model of the texts: a name on the Hugging Face Hub, or a folder. Default:
        sentence-transformers/all-MiniLM-L6-v2.
    """
    from divcon.models.folder import check_model, check_weights
    from divcon.models.names import check_backbone_name

    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: vectors are written as parquet; use a name that ends in .parquet")
    if run is not None:
        for name, value in (("--backbone", backbone), ("--size", size), ("--fit", fit), ("--weights", weights)):
            if value is not None:
                raise ConfigError(f"{name} {value} does not go with --run {run}, whose model has its own")
    if text_model is not None and not text:
        raise ConfigError(f"--text-model {text_model} needs --text COLUMN, the column of the texts")
    of_images = not text or backbone is not None or run is not None
    if text:
        from divcon.models.text import check_text_package

        check_text_package()
        if not of_images:
            for name, value in (("--size", size), ("--fit", fit), ("--weights", weights)):
                if value is not None:
                    raise ConfigError(f"{name} {value} is of images: add --backbone, or leave it out")
    check_writable(out)
    settings = ModelConfig(backbone=backbone or "auto", image_size=size or 0, fit=fit or "auto", weights=weights)  # type: ignore[arg-type]
    if run is not None:
        check_model(run)
    check_backbone_name(backbone)
    if weights is not None:
        check_weights(weights)
    options = {**reading.options(), **split.options}
    if text and not of_images:
        _texts_alone(data, root, out, text, text_model, batch_size, device, options)
        return
    benchmark = read_data(data, root, **options)

    import numpy as np

    from divcon.data.labeled_set import LabeledSet
    from divcon.data.loading import only_decodable
    from divcon.data.readers.vectors import table_parts, write_benchmark_vectors
    from divcon.models import EmbeddingModel
    from divcon.models.untrained import untrained_model
    from divcon.runtime.context import Context
    from divcon.runtime.device import resolve_device

    where = resolve_device(device)
    texts = _texts_beside(benchmark, text) if text else None
    model = EmbeddingModel.load(run, device=where) if run is not None else None
    if model is None:
        model = untrained_model(settings, benchmark.train if len(benchmark.train) else benchmark.query, note).to(where)
    context = Context(workers, on_warning=note)
    for message in benchmark.notes:
        note(message)
    if on_bad_image == "skip":
        benchmark = only_decodable(benchmark, ("train", "validation", "query", "gallery"), context)
    text_features = None if texts is None else _encoded(texts, text_model, where, batch_size)
    done = 0
    total = sum(len(part.images) for part in table_parts(benchmark))
    with progress_bar() as on_progress:

        def pooled(images: LabeledSet) -> np.ndarray:
            nonlocal done
            before, done = done, done + len(images)
            features = model.features(
                images,
                batch_size=batch_size,
                context=replace(context, on_progress=on_progress).subtask(before=before, total=total),
            )
            if text_features is None:
                return features
            lengths = np.linalg.norm(features, axis=1, keepdims=True)
            return np.hstack([features / np.maximum(lengths, 1e-12), text_features[images.rows]])

        write_benchmark_vectors(out, benchmark, pooled, None if texts is None else {_column_name(text): texts})
    if text_features is not None:
        of_texts = text_features.shape[1]
        console.print(
            f"{done:,} vectors of {model.num_features + of_texts:,} dimensions in {out}: {model.num_features:,} of the "
            f"image and {of_texts:,} of the text, each of length one"
        )
    else:
        console.print(f"{done:,} vectors of {model.num_features:,} dimensions in {out}")
    _next_step(out)


def _texts_alone(
    data: str,
    root: Path | None,
    out: Path,
    columns: list[str],
    name: str | None,
    batch_size: int,
    device: str,
    options: dict[str, Any],
) -> None:
    """The vectors of a table's texts, as the benchmark that the table is."""
    from divcon.data.columns import VECTOR_COLUMN
    from divcon.data.read import read
    from divcon.data.readers.vectors import write_benchmark_vectors
    from divcon.models.text import as_vectors
    from divcon.runtime.device import resolve_device

    where = resolve_device(device)
    table, texts = as_vectors(data, columns, lambda texts: _encoded(texts, name, where, batch_size))
    options = {key: value for key, value in options.items() if key not in ("vector_column", "image_column")}
    benchmark = read(table, root, **options, vector_column=VECTOR_COLUMN)
    for message in benchmark.notes:
        note(message)
    # The vectors that were read are those of the texts.
    write_benchmark_vectors(
        out, benchmark, lambda images: cast("np.ndarray", images.vectors), {_column_name(columns): texts}
    )
    sets = {id(images): len(images) for images in (benchmark.train, benchmark.query, benchmark.gallery)}
    width = cast("np.ndarray", benchmark.train.vectors).shape[1]
    console.print(
        f"{sum(sets.values()):,} vectors of {width:,} dimensions in {out}, of the texts in {', '.join(columns)}"
    )
    _next_step(out)


def _texts_beside(benchmark: Benchmark, columns: list[str]) -> list[str | None]:
    """The text of each row of the table that the images were read from."""
    from divcon.models.text import joined_texts
    from divcon.search.columns import columns_of_source

    own = columns_of_source(benchmark.train.source, warn=note)
    if own is None:
        raise DataError(f"{benchmark.train.source}: is no table, and has no column {columns[0]!r} of texts")
    return joined_texts(own, columns, benchmark.train.source)


def _encoded(texts: Sequence[str | None], name: str | None, device: Any, batch_size: int) -> np.ndarray:
    from divcon.models.text import TEXT_MODEL, TextModel

    missing = sum(text is None for text in texts)
    if missing:
        note(f"{missing:,} of {len(texts):,} rows have no text; their text features are zero")
    return TextModel(name or TEXT_MODEL, device=device).encode(texts, batch_size=batch_size)


def _column_name(columns: list[str] | None) -> str:
    return columns[0] if columns and len(columns) == 1 else "text"


def _next_step(out: Path) -> None:
    console.print(f"train with: divcon train {out} --out runs/{out.stem}")
