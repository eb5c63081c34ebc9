"""``divcon evaluate``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from divcon.cli.app import (
    AS_IT_IS,
    EVALUATE,
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
    notes,
    progress_bar,
    read_data,
)
from divcon.cli.messages import flag, in_flags
from divcon.cli.ranks import of_first
from divcon.errors import ConfigError, DivconError
from divcon.runtime.files import atomic_write, check_writable
from divcon.runtime.importing import check_trusted
from divcon.runtime.launchers import is_first
from divcon.runtime.places import absolute, is_url, place, text_of

if TYPE_CHECKING:
    from divcon.data.benchmark import Benchmark
    from divcon.evaluation import ReRanking
    from divcon.runs.folder import RunFolder

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
MaxQueries = Annotated[
    int,
    Parameter(
        validator=Number(gte=0),
        help="Search for at most so many queries, drawn at random (always the same of the same data), each among the "
        "whole gallery: of more, time grows with their square. 0: all.",
    ),
]
Share = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]
_RERANKING = Group("Re-ranking", sort_key=50)


def test_data(
    run: Place,
    data: str | None = None,
    root: Place | None = None,
    reading: Reading = READING,
    split: Split = AS_IT_IS,
) -> Benchmark:
    """The data to evaluate a run's model on: ``data``, or the run's own, which must be unchanged. Prints a note if the
    model was trained on some of the test classes, and which columns were guessed.

    The run's own data is read and split as the run has done, also where it is passed.
    """
    folder, guessed, names, options = _named_data(run, data, root, reading, split)
    benchmark = read_data(*names, **options)
    if guessed:
        for text in benchmark.notes:
            if text.startswith("columns: "):
                note(text)
    warning = folder.check_test_classes(benchmark, own=data is None)
    if warning:
        note(warning)
    return benchmark


def _named_data(
    run: Path, data: str | None, root: Path | None, reading: Reading, split: Split
) -> tuple[RunFolder, bool, tuple[str, str | Path | None], dict[str, Any]]:
    """The run's folder; whether the data is passed, and not the run's own; its name or path and root; and how to read
    it."""
    from divcon.data.read import splitting_for
    from divcon.runs.folder import RunFolder

    folder = RunFolder(run)
    origin = folder.origin()
    source = (origin[1].get("source") if origin else None) or {}
    as_trained = splitting_for(source["data"], origin[0].data.splitting) if origin and _exists(source) else {}
    if data is not None:
        same = _names_same(data, source.get("data"))
        own = {**(source.get("options") or {}), **as_trained} if same else {}
        return folder, True, (data, root), {**own, **reading.options(), **split.options}
    if options := {**reading.options(), **split.options}:
        raise ConfigError(
            f"{flag(next(iter(options)))} is for DATA: the run's own data is read and split as the run has done; give "
            "DATA too"
        )
    if not source:
        raise ConfigError(f"{run}: does not say what it was trained on; give DATA, as in divcon evaluate RUN DATA")
    check_trusted(source["data"], str(folder.config))
    return folder, False, (source["data"], source["root"]), {**(source.get("options") or {}), **as_trained}


@contextmanager
def _for_all(run: Path) -> Iterator[Path]:
    """The folder of the run, for all processes that evaluate it: those but the first have a copy of its small files,
    as the folder need not be on their machines."""
    import tempfile

    from divcon.runs.folder import RunFolder

    def small() -> dict[str, bytes]:
        folder = RunFolder(run).path
        there = [folder / name for name in ("config.json", "classes.json", "run.json", "threshold.json")]
        return {path.name: path.read_bytes() for path in there if path.exists()}

    files = of_first(small)
    if is_first():
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="divcon-") as copied:
        for name, content in files.items():
            (Path(copied) / name).write_bytes(content)
        yield Path(copied)


def moved(run: Path, data: str | None, reading: Reading) -> Reading:
    """How to read the run's data from where it is now: as the command line says, else as the run read it."""
    from divcon.runs.folder import RunFolder

    origin = RunFolder(run).origin()
    options = ((origin[1].get("source") or {}) if origin else {}).get("options") or {}
    if data is None or reading.options() or not options:
        return reading
    file = options.get("labels_file")
    return Reading(**{**options, "labels_file": None if file is None else place(file)})


def read_own_data(run: Path, data: str, root: Path | None, reading: Reading = READING) -> Benchmark:
    """A run's own data, from where it is now, with the columns and the split that the run has read."""
    from divcon.data.read import splitting_for
    from divcon.runs.folder import RunFolder

    origin = RunFolder(run).origin()
    splitting = splitting_for(data, origin[0].data.splitting) if origin else {}
    return read_data(data, root, **{**splitting, **moved(run, data, reading).options()})


def _test_data_for_all(run: Path, data: str | None, root: Path | None, reading: Reading, split: Split) -> Benchmark:
    """As `test_data`; of the processes that evaluate a run, the first alone needs its folder."""
    names, options = of_first(lambda: _named_data(run, data, root, reading, split)[2:])
    if is_first():
        return test_data(run, data, root, reading, split)
    return read_data(*(names if data is None else (data, root)), **options)


def _exists(source: dict[str, Any]) -> bool:
    from divcon.data.read import is_dataset_name

    data = source.get("data")
    return data is not None and not is_dataset_name(data) and (is_url(data) or Path(data).exists())


def _names_same(data: str, other: str | None) -> bool:
    """Whether two names or paths of data are the same."""
    return other is not None and (data == other or absolute(data) == absolute(other))


@app.command(group=EVALUATE)
def evaluate(
    run: Place,
    data: str | None = None,
    root: Place | None = None,
    *,
    json_file: Annotated[Place | None, Parameter(name="--json")] = None,
    per_class: Place | None = None,
    clustering: bool = True,
    baselines: bool = True,
    parts: Annotated[bool, Parameter(negative=())] = False,
    mean_average_precision: Annotated[bool, Parameter(name="--map", negative=())] = False,
    metric: Metrics = (),
    max_queries: MaxQueries = 0,
    max_clustered: Annotated[int, Parameter(validator=Number(gte=0))] = 100_000,
    reading: Reading = READING,
    cmc: Rank | None = None,
    rerank: Annotated[bool, Parameter(negative=(), group=_RERANKING)] = False,
    rerank_k1: Annotated[Rank | None, Parameter(group=_RERANKING)] = None,
    rerank_k2: Annotated[Rank | None, Parameter(group=_RERANKING)] = None,
    rerank_weight: Annotated[Share | None, Parameter(group=_RERANKING)] = None,
    on_bad_image: BadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
    split: Split = AS_IT_IS,
) -> None:
    """Evaluate a run's model on the test classes of a data set.

    divcon evaluate runs/cub

    divcon evaluate runs/cub cub data/CUB_200_2011 --json scores.json

    divcon evaluate runs/cub --parts --rerank

    The scores on the run's own test classes are kept in the run folder, and shown in its report.

    Under torchrun, the processes share the images and the queries.

    The threshold that the run has chosen on its validation classes (RUN/model/threshold.json) is reported with its
    precision and recall: a nearest neighbour of less similarity is of no known class. They are computed with half of
    the test classes in the gallery, and then with the other half.

    Parameters
    ----------
    run
        A run folder, or a model folder such as RUN/last.
    data
        As in train. Default: the data of the run, split as the run has split it.
    root
        As in train.
    json_file
        Write the scores, and those of every query and every class, to this file.
    per_class
        Write Recall@1 and MAP@R of the queries of each class to this CSV file, the worst class first.
    clustering
        Compute NMI and AMI, which take longer than all other metrics.
    max_clustered
        Of more images, compute NMI and AMI of all images of some of the classes, at most so many images, which the
        scores say. 0: all images, whose time grows with the square of the number of classes.
    baselines
        Evaluate what needs no training too: the pretrained features (of the network as it was before training) and
        this network's own pooled features, each with the difference to the embedding, and say what to do where the
        embedding is below them. It takes a second pass over the images.
    parts
        Evaluate each learner's subspace alone too, and the pooled features before the head; show how similar the
        subspaces are; and where learners share no dimensions, the embedding without each learner, and the best 1, 2 ...
        learners, chosen on the run's validation classes (or train classes, if it has none).
    mean_average_precision
        Compute mean average precision over the full ranking too, plain (map) and by trapezoids (map_trapezoidal).
    cmc
        Compute the cumulative match characteristic up to this rank too: Recall@1, Recall@2 ...
    rerank
        Add the scores after re-ranking by k-reciprocal encoding (Zhong et al., CVPR 2017), with both mean average
        precisions.
    rerank_k1
        Number of nearest neighbours that may be reciprocal. Default: 20.
    rerank_k2
        Number of nearest images whose encodings are averaged. Default: 6.
    rerank_weight
        Lambda, the weight of the original distance, 0 to 1. Default: 0.3.
    """
    from divcon.evaluation.metrics import metrics_of
    from divcon.models.folder import check_model

    reranking = _reranking(rerank, {"k1": rerank_k1, "k2": rerank_k2, "weight": rerank_weight})
    metrics_of(metric)
    if per_class is not None and per_class.suffix.lower() != ".csv":
        raise ConfigError(f"--per-class {text_of(per_class)}: the scores of classes are written as .csv")
    for path in (json_file, per_class):
        if path is not None and is_first():
            check_writable(path)
    if is_first():
        check_model(run)
    benchmark = _test_data_for_all(run, data, root, reading, split)
    # All that can be wrong with the command is found by now, without PyTorch.
    import numpy as np

    from divcon.data.loading import only_decodable
    from divcon.evaluation.protocol import evaluate as evaluate_model
    from divcon.evaluation.threshold import read_threshold
    from divcon.models import EmbeddingModel
    from divcon.models.embedding_model import model_of_main
    from divcon.runs.display import print_scores
    from divcon.runs.folder import RunFolder, own_benchmark
    from divcon.runtime.context import Context
    from divcon.runtime.device import resolve_device
    from divcon.runtime.exchange import check_alike
    from divcon.runtime.launch import started

    where = resolve_device(device)
    with started(where) as group, ExitStack() as stack:
        advice = "each machine needs the same data: a copy of its own, or a shared folder"
        check_alike(group, benchmark.name, benchmark.split_hash, advice)
        model = model_of_main(group, lambda: EmbeddingModel.load(run, device=where), device=where)
        context = Context(workers, on_warning=lambda message: None, processes=group)
        if group.is_main:
            context = Context(workers, stack.enter_context(progress_bar()), note, group)
        order_by = None
        if parts and len(model.head.dimensions()) > 1:
            here, why = stack.enter_context(_for_all(run)), ""
            try:
                order_by = own_benchmark(here, benchmark, context=context)
            except DivconError as error:
                why = str(error)
            if group.all_reduce(np.array([bool(why)]))[0]:
                context.warn(f"no scores of the best few subspaces: {why or 'another process has none of the data'}")
                no_images = benchmark.train.subset(np.empty(0, np.int64))
                order_by = replace(benchmark, train=no_images, validation=None)
        if on_bad_image == "skip":
            benchmark = only_decodable(benchmark, ("query", "gallery"), context)
        result = evaluate_model(
            model,
            benchmark,
            threshold=of_first(lambda: (read_threshold(run) or {}).get("min_score")),
            clustering=clustering,
            parts=parts,
            baselines=baselines,
            order_by=order_by,
            metrics=metric,
            map=mean_average_precision,
            cmc=cmc,
            rerank=reranking,
            max_queries=max_queries or None,
            max_clustered=max_clustered or None,
            per_query=json_file is not None,
            per_class=json_file is not None or per_class is not None,
            batch_size=batch_size,
            context=context,
        )
    if not group.is_main:
        return
    if RunFolder(run).trained_on_test(benchmark):
        result["trained_on_test"] = True
    print_scores(result, console, in_flags)
    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n")
    if per_class is not None:
        from divcon.evaluation.per_class import as_csv

        with atomic_write(per_class) as beside:
            beside.write_text(as_csv(result["per_class"]), encoding="utf-8")
    report = keep_scores(run, result)
    if report is not None:
        notes.print(f"the scores are in {report} too", markup=False)


def keep_scores(run: Path, result: dict[str, Any]) -> Path | None:
    """Keep the scores of a run on its own test classes in its folder, and put them into its report, which is returned.
    A folder that cannot be written is a note."""
    from divcon.runs.report import add_test_scores

    try:
        return add_test_scores(run, result)
    except DivconError as error:
        note(f"the scores are not in the report of the run: {error}")
        return None


def _reranking(rerank: bool, options: dict[str, float | None]) -> ReRanking | None:
    from divcon.evaluation.reranking import ReRanking

    options = {name: value for name, value in options.items() if value is not None}
    if options and not rerank:
        raise ConfigError(f"--rerank-{next(iter(options))} is an option of re-ranking: add --rerank")
    return ReRanking(**options) if rerank else None  # pyright: ignore[reportArgumentType]
