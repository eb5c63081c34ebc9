"""``divcon evaluate`` and ``divcon encode``: what a trained model is used for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from divcon.cli.app import BadImage, BatchSize, DeviceOption, Workers, app, console, note, read_data
from divcon.errors import ConfigError, DivconError
from divcon.runtime.files import atomic_write, check_writable
from divcon.runtime.importing import check_trusted

if TYPE_CHECKING:
    from divcon.data.benchmark import Benchmark
    from divcon.evaluation import ReRanking

Rank = Annotated[int, Parameter(validator=Number(gte=1))]
Metrics = Annotated[
    tuple[str, ...],
    Parameter(
        name="--metric",
        negative=(),
        help="Another metric of the ranking: module:Name of your own, or a built-in one such as recall_at_100. Repeat "
        "it for several.",
    ),
]
Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]


def tested_on(run: Path, data: str | None = None, root: Path | None = None) -> Benchmark:
    """The data that a run's model is scored on: what is given, or its own, which must be as it was; a note says where
    test classes were trained on."""
    from divcon.runs.folder import RunFolder
    from divcon.runs.run import check_unseen

    found = RunFolder(run).origin()
    source = found[1].get("source") if found else None
    if data is None and source is None:
        raise ConfigError(f"{run}: does not say what it was trained on; give DATA")
    if data is None and source is not None:
        check_trusted(source["data"], str(RunFolder(run).config))
    benchmark = read_data(source["data"], source["root"]) if data is None and source else read_data(data or "", root)
    doubt = check_unseen(run, benchmark, source_given=data is not None)
    if doubt:
        note(doubt)
    return benchmark


@app.command
def evaluate(
    run: Path,
    data: str | None = None,
    root: Path | None = None,
    *,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    clustering: bool = True,
    parts: Annotated[bool, Parameter(negative=())] = False,
    mean_average_precision: Annotated[bool, Parameter(name="--map", negative=())] = False,
    metric: Metrics = (),
    cmc: Rank | None = None,
    rerank: Annotated[bool, Parameter(negative=())] = False,
    rerank_k1: Rank | None = None,
    rerank_k2: Rank | None = None,
    rerank_weight: Share | None = None,
    on_bad_image: BadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Score a run's model on the test classes of a data set.

    divcon evaluate runs/demo demo --json scores.json

    Parameters
    ----------
    run
        A run folder, or a model folder.
    data
        As in train; left out, what the run was trained on.
    root
        As in train.
    json_file
        Write the scores here too, with those of every query.
    clustering
        NMI and AMI, which cost more than the rest.
    parts
        Also each learner's subspace alone, and the pooled features before the head; how alike the subspaces are; and
        where learners do not share dimensions, the embedding without each, and the best 1, 2 ... of them, chosen on the
        run's validation classes, or else its train classes.
    mean_average_precision
        Also mean average precision over the full ranking, plain (map) and by trapezoids (map_trapezoidal).
    cmc
        Also the cumulative match characteristic up to this rank: Recall@1, Recall@2 ...
    rerank
        Also the scores after re-ranking by k-reciprocal encoding (Zhong et al., CVPR 2017), with both mean average
        precisions, beside those without.
    rerank_k1
        With --rerank: how many nearest neighbours are looked at for being mutual; 20 unless given.
    rerank_k2
        With --rerank: the mean over so many nearest images is an image's encoding; 6 unless given.
    rerank_weight
        With --rerank: lambda, from 0 to 1, the weight of the original distance; 0.3 unless given.
    """
    import numpy as np

    from divcon.data.loading import only_decodable
    from divcon.evaluation.protocol import evaluate as evaluate_model
    from divcon.models import EmbeddingModel
    from divcon.runs.display import print_scores
    from divcon.runs.folder import own_benchmark
    from divcon.runtime.context import Context
    from divcon.runtime.device import resolve_device

    reranking = _reranking(rerank, {"k1": rerank_k1, "k2": rerank_k2, "weight": rerank_weight})
    if json_file is not None:
        check_writable(json_file)
    model = EmbeddingModel.load(run, device=resolve_device(device))
    benchmark = tested_on(run, data, root)
    context = Context(workers, on_warning=note)
    order_by = None
    if parts and len(model.head.dimensions()) > 1:
        try:
            order_by = own_benchmark(run, benchmark, context=context)
        except DivconError as error:
            note(f"the best few subspaces are left out: {error}")
            nothing = benchmark.train.subset(np.empty(0, np.int64))
            order_by = replace(benchmark, train=nothing, validation=None)
    if on_bad_image == "skip":
        benchmark = only_decodable(benchmark, ("query", "gallery"), context)
    result = evaluate_model(
        model,
        benchmark,
        clustering=clustering,
        parts=parts,
        order_by=order_by,
        metrics=metric,
        map=mean_average_precision,
        cmc=cmc,
        rerank=reranking,
        per_query=json_file is not None,
        batch_size=batch_size,
        context=context,
    )
    print_scores(result, console)
    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n")


def _reranking(asked: bool, options: dict[str, float | None]) -> ReRanking | None:
    from divcon.evaluation import ReRanking

    given = {name: value for name, value in options.items() if value is not None}
    if given and not asked:
        raise ConfigError(f"--rerank-{next(iter(given))} says how to re-rank, and nothing is: give --rerank too")
    return ReRanking(**given) if asked else None  # pyright: ignore[reportArgumentType]


@app.command
def encode(
    run: Path,
    images: Annotated[list[Path], Parameter(consume_multiple=True)],
    /,
    *,
    out: Path,
    learner: int | None = None,
    on_bad_image: BadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Embed images or vectors with a run's model, into a parquet of path and embedding.

    divcon encode runs/products photos/ --out vectors.parquet

    Parameters
    ----------
    run
        A run folder, or a model folder.
    images
        Images, folders (with all below them), or a CSV or parquet with a column path. For a model of vectors, a
        parquet with a column embedding.
    out
        The parquet: path (as it can be opened from here), label where there is one, embedding (D float32, of length
        one).
    learner
        Embed with this learner's subspace alone.
    """
    from divcon.data.loading import decodable
    from divcon.data.readers.folder import images_of
    from divcon.data.readers.vectors import write_vectors
    from divcon.models import EmbeddingModel
    from divcon.runtime.context import Context
    from divcon.runtime.device import resolve_device

    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: vectors are written as parquet; give a name that ends in .parquet")
    check_writable(out)
    model = EmbeddingModel.load(run, device=resolve_device(device))
    if learner is not None and not 0 <= learner < model.num_learners:
        raise ConfigError(f"--learner {learner}: the model has learners 0 to {model.num_learners - 1}")
    context = Context(workers, on_warning=note)
    found = images_of(images[0] if len(images) == 1 else images)
    if on_bad_image == "skip":
        found = decodable(found, context)
    embeddings = model.encode(found, learner=learner, batch_size=batch_size, context=context)
    write_vectors(out, found, embeddings)
    console.print(f"{len(found):,} embeddings of {embeddings.shape[1]} dimensions in {out}")
