"""``divcon report``."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import EVALUATE, READING, BatchSize, DeviceOption, Place, Reading, Workers, app, console, note
from divcon.cli.evaluate import Metrics, keep_scores, moved, read_own_data, test_data
from divcon.errors import ConfigError
from divcon.runtime.files import check_writable


@app.command(group=EVALUATE)
def report(
    run: Place,
    data: str | None = None,
    root: Place | None = None,
    *,
    out: Place | None = None,
    scores: Place | None = None,
    evaluate: Annotated[bool, Parameter(negative=())] = False,
    metric: Metrics = (),
    reading: Reading = READING,
    batch_size: BatchSize = 128,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Write the report of a run again, as one HTML file with everything in it.

    divcon report runs/demo

    divcon report runs/demo --evaluate --out demo.html

    divcon evaluate runs/demo --json scores.json

    divcon report runs/demo --scores scores.json

    It shows the run's settings, scores beside those of the pretrained features, curves, divisions, some images of each
    learner, the best and worst validation queries, and warnings. Every training ends by writing one, report.html in its
    folder, without scores of the test classes, which are computed only when you ask for them: divcon evaluate RUN adds
    them to it. If the run's data has moved or changed, the report says so and has no pictures.

    Parameters
    ----------
    run
        A run folder. The report of a stopped run has the epochs so far.
    data
        As in train, if the run's data has moved.
    root
        As in train.
    out
        The file. Default: report.html in the run folder.
    scores
        Show the scores of the test classes from this file, which evaluate --json wrote. Default: those that divcon
        evaluate RUN has kept in the run folder.
    evaluate
        Evaluate on the test classes now, as divcon evaluate RUN does, but without NMI and AMI.
    """
    from divcon.evaluation.compare import read_scores
    from divcon.evaluation.metrics import metrics_of
    from divcon.evaluation.threshold import read_threshold
    from divcon.models.folder import check_model
    from divcon.runs.folder import begun
    from divcon.runtime.context import Context

    if scores is not None and evaluate:
        raise ConfigError("--scores and --evaluate both give scores: use one of them")
    if metric and not evaluate:
        raise ConfigError("--metric is computed by --evaluate: add that, or give --scores a file that has the metric")
    if out is not None:
        check_writable(out)
    metrics_of(metric)
    begun(run)
    context = Context(workers, on_warning=note)
    test_scores = None if scores is None else read_scores(scores)
    benchmark = None
    if evaluate:
        check_model(run)
        benchmark = test_data(run, data, root, moved(run, data, reading))
    elif data is not None:
        benchmark = read_own_data(run, data, root, reading)

    from divcon.evaluation.protocol import evaluate as evaluate_model
    from divcon.models import EmbeddingModel
    from divcon.runs.report import report as write_report
    from divcon.runtime.device import resolve_device

    where = resolve_device(device)
    if evaluate and benchmark is not None:
        model = EmbeddingModel.load(run, device=where)
        options: dict[str, Any] = {"metrics": metric, "batch_size": batch_size, "context": context}
        options["threshold"] = (read_threshold(run) or {}).get("min_score")
        test_scores = evaluate_model(model, benchmark, clustering=False, baselines=True, **options)
        keep_scores(run, test_scores)
    path = write_report(
        run, benchmark, out=out, scores=test_scores, batch_size=batch_size, device=where, context=context
    )
    console.print(f"report in {path}")
