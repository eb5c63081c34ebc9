"""``divcon compare``: trained models side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import (
    EVALUATE,
    BadImage,
    BatchSize,
    DeviceOption,
    Place,
    TableFiles,
    Workers,
    app,
    check_tables,
    console,
    note,
    progress_bar,
)
from divcon.cli.evaluate import MaxQueries, Metrics, test_data
from divcon.errors import ConfigError
from divcon.runtime.copies import here
from divcon.runtime.files import atomic_write, check_writable
from divcon.runtime.places import place, text_of

if TYPE_CHECKING:
    from divcon.evaluation.compare import Compared


@app.command(group=EVALUATE)
def compare(
    runs: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    json_file: Annotated[Place | None, Parameter(name="--json")] = None,
    table_files: TableFiles = (),
    baselines: bool = True,
    clustering: Annotated[bool, Parameter(negative=())] = False,
    on_bad_image: BadImage = "stop",
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
    metric: Metrics = (),
    max_queries: MaxQueries = 0,
) -> None:
    """Compare the scores of several models, with a confidence interval for the difference of each from the first.

    divcon compare runs/single runs/slices

    divcon compare single.json slices.json --json compared.json

    divcon compare single=runs/a single=runs/b ours=runs/c ours=runs/d --clustering --table table.tex

    All scores must be of the same data, split and protocol; others are refused. The intervals are 95 %, by bootstrap
    over the test classes, with the same draws for both models.

    Parameters
    ----------
    runs
        Run folders, or model folders such as RUN/last, which are evaluated on the test classes of their own data; a
        model that does not say what that is, such as one on the Hub (hf://USER/MODEL), on those of the first run that
        does; or files that evaluate --json wrote. NAME=RUN names one, as in ours=runs/c; in the table, runs of one name
        are runs of several seeds, with their mean in one row.
    json_file
        Write the comparison to this file.
    baselines
        Evaluate what needs no training too, of each run folder (see evaluate); of files, those that they hold are
        shown.
    clustering
        Evaluate NMI and AMI of each run folder and of the pretrained features too, which takes longer than all other
        metrics.
    """
    from divcon.evaluation.compare import check_number, read_scores
    from divcon.evaluation.compare import compare as compare_results
    from divcon.evaluation.metrics import metrics_of
    from divcon.evaluation.tables import score_table
    from divcon.models.folder import check_model
    from divcon.runtime.context import Context

    pairs = [_named(run) for run in runs]
    texts = [text_of(path) for _, path in pairs]
    if len(texts) != len(set(texts)):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise ConfigError(f"{twice} is given twice; give each run once")
    check_number(len(runs))
    metrics_of(metric)
    check_tables(table_files)
    if json_file is not None:
        check_writable(json_file)
    given = [name or text_of(path) for name, path in pairs]
    # A name that several runs have does not tell them apart.
    names = [
        name if given.count(name) == 1 else f"{name} ({text_of(path)})"
        for name, (_, path) in zip(given, pairs, strict=True)
    ]
    rows = dict(zip(names, given, strict=True))
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, run in zip(names, (path for _, path in pairs), strict=True):
        if here(run, without=("checkpoint", "divisions", "last", "folds", "index")).is_file():
            results[name] = read_scores(run)
        else:
            check_model(run)

    models = [path for name, (_, path) in zip(names, pairs, strict=True) if not results[name]]

    def knows_its_data(run: Path) -> bool:
        from divcon.runs.folder import RunFolder

        return RunFolder(run).origin() is not None

    def scores(run: Path, context: Context) -> dict[str, Any]:
        from divcon.data.loading import only_decodable
        from divcon.evaluation.protocol import evaluate
        from divcon.models import EmbeddingModel
        from divcon.runtime.device import resolve_device

        model = EmbeddingModel.load(run, device=resolve_device(device))
        of = run if knows_its_data(run) else next(filter(knows_its_data, models), run)
        if of != run:
            note(f"{run}: does not say what it was trained on; evaluated on the test classes of {of}")
        benchmark = test_data(of)
        if on_bad_image == "skip":
            benchmark = only_decodable(benchmark, ("query", "gallery"), context)
        options: dict[str, Any] = {"metrics": metric, "batch_size": batch_size, "context": context}
        options["max_queries"] = max_queries or None
        options["clustering"] = "all" if clustering else False
        return evaluate(model, benchmark, per_query=True, baselines=baselines, **options)

    with progress_bar() as on_progress:
        context = Context(workers, on_progress, note)
        results = {name: results[name] or scores(path, context) for name, (_, path) in zip(names, pairs, strict=True)}
    compared = compare_results(results)
    _print(compared, results[names[0]])
    for path in table_files:
        score_table(results, rows, baselines=baselines).write(path)
    if json_file is not None:
        keys = ("benchmark", "protocol", "split_hash", "num_queries", "num_queries_total", "num_gallery", "num_classes")
        of = {key: results[names[0]][key] for key in keys if key in results[names[0]]}
        shown = [dataclasses.asdict(row) for row in compared]
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps({**of, "compared": shown}, indent=1) + "\n")


def _named(run: str) -> tuple[str | None, Path]:
    """The name and the path of ``NAME=PATH``, or of a path alone."""
    name, equals, path = run.partition("=")
    if equals and name and path and not set(name) & {"/", "\\"} and not place(run).exists():
        return name, place(path)
    return None, place(run)


def _print(compared: list[Compared], first: Mapping[str, Any]) -> None:
    from divcon.evaluation.baselines import BASELINES, METRICS
    from divcon.evaluation.metrics import scores_in
    from divcon.runs.display import print_table

    total = first.get("num_queries_total")
    queries = f"{len(first['per_query']['path']):,}" + ("" if total is None else f" of {total:,}")
    console.print(
        f"{first['benchmark']}, {first['protocol']}, split {first['split_hash']}: "
        f"{queries} queries of {len(set(first['per_query']['label'])):,} classes"
    )
    rows = []
    shown = [score for score in scores_in(first) if score.name in compared[0].scores]
    for score in shown:
        rows.append([score.title, *(score.text(row.scores[score.name]) for row in compared)])
    for name, title in BASELINES.items():
        for metric, metric_title in METRICS.items() if any(name in row.baselines for row in compared) else ():
            values = (row.baselines.get(name, {}).get(metric) for row in compared)
            texts = ("-" if value is None else f"{100 * value:.1f} %" for value in values)
            rows.append([f"{title}, {metric_title}", *texts])
    print_table(console, ["", *(row.name for row in compared)], rows)
    for row in compared[1:]:
        for score in shown:
            difference = row.differences.get(score.name)
            if difference is None or score.name not in ("recall_at_1", *first.get("metrics", ())):
                continue
            low, high = map(score.difference, difference.interval)
            points = " points" if score.percent else ""
            value = score.difference(difference.value)
            console.print(f"{row.name} - {compared[0].name}: {score.name} {value} [{low}, {high}]{points}")
