"""``divcon features``."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

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
from divcon.errors import ConfigError
from divcon.runtime.files import check_writable


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
    reading: Reading = READING,
    on_bad_image: BadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
    split: Split = AS_IT_IS,
) -> None:
    """Compute the pooled features of a pretrained backbone for a whole data set, to train on them instead of its
    images. The parquet file is the same benchmark, with the same split.

    divcon features products.csv --backbone resnet50.tv_in1k --out vectors.parquet

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
    """
    from divcon.models.folder import check_model, check_weights
    from divcon.models.names import check_backbone_name

    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: vectors are written as parquet; use a name that ends in .parquet")
    if run is not None:
        for name, value in (("--backbone", backbone), ("--size", size), ("--fit", fit), ("--weights", weights)):
            if value is not None:
                raise ConfigError(f"{name} {value} does not go with --run {run}, whose model has its own")
    check_writable(out)
    settings = ModelConfig(backbone=backbone or "auto", image_size=size or 0, fit=fit or "auto", weights=weights)  # type: ignore[arg-type]
    if run is not None:
        check_model(run)
    check_backbone_name(backbone)
    if weights is not None:
        check_weights(weights)
    benchmark = read_data(data, root, **reading.options(), **split.options)

    import numpy as np

    from divcon.data.labeled_set import LabeledSet
    from divcon.data.loading import only_decodable
    from divcon.data.readers.vectors import table_parts, write_benchmark_vectors
    from divcon.models import EmbeddingModel
    from divcon.models.untrained import untrained_model
    from divcon.runtime.context import Context
    from divcon.runtime.device import resolve_device

    where = resolve_device(device)
    model = EmbeddingModel.load(run, device=where) if run is not None else None
    if model is None:
        model = untrained_model(settings, benchmark.train if len(benchmark.train) else benchmark.query, note).to(where)
    context = Context(workers, on_warning=note)
    for text in benchmark.notes:
        note(text)
    if on_bad_image == "skip":
        benchmark = only_decodable(benchmark, ("train", "validation", "query", "gallery"), context)
    done = 0
    total = sum(len(part.images) for part in table_parts(benchmark))
    with progress_bar() as on_progress:

        def pooled(images: LabeledSet) -> np.ndarray:
            nonlocal done
            before, done = done, done + len(images)
            return model.features(
                images,
                batch_size=batch_size,
                context=replace(context, on_progress=on_progress).subtask(before=before, total=total),
            )

        write_benchmark_vectors(out, benchmark, pooled)
    console.print(
        f"{done:,} vectors of {model.num_features:,} dimensions in {out}\n"
        f"train with: divcon train {out} --out runs/{out.stem}"
    )
