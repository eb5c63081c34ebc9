"""``divcon report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import BatchSize, DeviceOption, Workers, app, console, note, read_data
from divcon.cli.evaluate import Metrics, tested_on
from divcon.errors import ConfigError
from divcon.runtime.files import check_writable


@app.command
def report(
    run: Path,
    data: str | None = None,
    root: Path | None = None,
    *,
    out: Path | None = None,
    scores: Path | None = None,
    evaluate: Annotated[bool, Parameter(negative=())] = False,
    metric: Metrics = (),
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Write the report of a run again: one HTML file that needs nothing beside itself.

    divcon report runs/demo

    divcon report runs/demo --evaluate --out demo.html

    divcon evaluate runs/demo --json scores.json

    divcon report runs/demo --scores scores.json

    It has what the run was, its settings, scores, curves, divisions, some images of each learner, the validation
    queries that find best and worst, and the warnings. Every training ends with one, in report.html of its folder; that
    one has no scores of test classes, which are looked at only where you ask for it. Where the run's data is not there
    any more, the report says so and has no pictures.

    Parameters
    ----------
    run
        A run folder. A run that was stopped is reported as far as it is.
    data
        As in train, where the run's data is now; left out, where it was.
    root
        As in train.
    out
        The file; left out, report.html in the run folder.
    scores
        Put these scores of test classes into it: what evaluate --json wrote.
    evaluate
        Score the test classes now, and put that into it. NMI and AMI are left out; --scores can have them.
    """
    from divcon.evaluation.compare import read_scores
    from divcon.evaluation.protocol import evaluate as evaluate_model
    from divcon.models import EmbeddingModel
    from divcon.runs.report import report as write
    from divcon.runtime.context import Context
    from divcon.runtime.device import resolve_device

    if scores is not None and evaluate:
        raise ConfigError("--scores and --evaluate both say what the scores are; give one of them")
    if metric and not evaluate:
        raise ConfigError("--metric is computed by --evaluate: add that, or give --scores a file that has the metric")
    if out is not None:
        check_writable(out)
    where, context = resolve_device(device), Context(workers, on_warning=note)
    found = None if scores is None else read_scores(scores)
    given = None
    if evaluate:
        given = tested_on(run, data, root)
        model = EmbeddingModel.load(run, device=where)
        options: dict[str, Any] = {"metrics": metric, "batch_size": batch_size, "context": context}
        found = evaluate_model(model, given, clustering=False, **options)
    elif data is not None:
        given = read_data(data, root)
    path = write(
        run,
        given,
        out=out,
        scores=found,
        batch_size=batch_size,
        device=where,
        context=context,
    )
    console.print(f"report in {path}")
