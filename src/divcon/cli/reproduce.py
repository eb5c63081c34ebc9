"""``divcon reproduce``."""

from __future__ import annotations

import json
from typing import Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import TRAIN, Place, TrackerOption, app, console, notes, read_data, trackers
from divcon.cli.evaluate import Metrics
from divcon.cli.messages import flag, in_flags
from divcon.cli.settings import DEFAULTS, Settings, gather, run_config
from divcon.errors import ConfigError, Stopped
from divcon.runtime.files import atomic_write, check_writable
from divcon.runtime.places import absolute


@app.command(config=gather, group=TRAIN)
def reproduce(
    name: str,
    root: Place,
    *,
    out: Place,
    preset: str = "cvpr2019",
    fraction: float = 1.0,
    json_file: Annotated[Place | None, Parameter(name="--json")] = None,
    clustering: bool = True,
    by_learner: Annotated[bool, Parameter(negative=())] = False,
    metric: Metrics = (),
    tracker: TrackerOption = None,
    settings: Settings = DEFAULTS,
) -> None:
    """Reproduce a published result: train a preset, evaluate it, and print its scores beside the paper's.

    divcon reproduce cub data/CUB_200_2011 --preset cvpr2019 --out runs/cub --json cub.json

    divcon reproduce cub data/CUB_200_2011 --fraction 0.05 --out runs/try

    The result is that of the last epoch. The papers report the best epoch on the test classes; that number is printed
    too, but is not a result. Run the same command again to resume a stopped run. Settings that you give override the
    preset's, and are listed with the result.

    Parameters
    ----------
    name
        The data set: cub, cars, sop, inshop, vehicleid-small, -medium, -large, market1501.
    root
        Its folder, as unpacked, or the downloaded archive.
    out
        The run folder.
    preset
        The recipe, as in train.
    fraction
        Below 1: do it all on this share of the classes and epochs, to check in minutes that it works. The score is not
        a result.
    json_file
        Write the scores, settings, environment and per-query scores to this file.
    clustering
        Compute NMI and AMI too.
    by_learner
        Evaluate each learner's subspace alone too, before the learners are merged and at the end.
    """
    from divcon.data.published import PUBLISHED_COUNTS
    from divcon.evaluation.metrics import metrics_of
    from divcon.experiments.reproduce import check_fraction
    from divcon.experiments.reproduce import reproduce as reproduce_preset
    from divcon.runs.display import Bar, print_scores
    from divcon.runs.folder import RunFolder
    from divcon.training.names import check_names

    if name not in (*PUBLISHED_COUNTS, "vehicleid"):
        raise ConfigError(
            f"{name}: is none of the papers' data sets ({', '.join(PUBLISHED_COUNTS)}); on other data, divcon train "
            f"DATA --preset {preset} trains the same"
        )
    if json_file is not None:
        check_writable(json_file)
    check_fraction(fraction)
    metrics_of(metric)
    callbacks = trackers(tracker)
    chosen = run_config(settings)
    check_names(chosen.model, chosen.train)
    RunFolder(out).check_usable()
    data = read_data(name, root)
    source = {"data": name, "root": absolute(root)}
    with Bar(notes, in_flags) as bar:
        try:
            result = reproduce_preset(
                data,
                preset,
                out,
                config=chosen,
                fraction=fraction,
                clustering=clustering,
                learners=by_learner,
                metrics=metric,
                source=source,
                display=bar,
                callbacks=callbacks,
            )
        except KeyboardInterrupt as stopped:
            bar.__exit__()
            notes.print(
                f"{str(stopped) or 'stopped at once'}; the run is kept in {out}. Run the same command again to resume",
                markup=False,
            )
            raise SystemExit(stopped.exit_code if isinstance(stopped, Stopped) else 130) from None
    print_scores(result, console)
    _print(result)
    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n")


def _print(result: dict[str, Any]) -> None:
    from divcon.runs.display import print_table

    reproduced = result["reproduced"]
    known, rule = reproduced["published"], reproduced["papers_rule"]
    console.print()
    console.print(
        f"{result['benchmark']}, {reproduced['preset']}" + (f"; published: {known['source']}" if known else "")
    )
    rows = []
    for name, theirs in (known["scores"] if known else {"recall_at_1": None}).items():
        difference = (reproduced["differences"] or {}).get(name)
        rows.append(
            [
                name,
                f"{100 * result[name]:.1f}" if name in result else "-",
                "-" if theirs is None else f"{100 * theirs:.1f}",
                "" if difference is None else f"{100 * difference:+.1f}",
            ]
        )
    print_table(console, ["", "ours", "published", "difference"], rows)
    if "learners" in reproduced:
        _print_learners(**reproduced["learners"])
    console.print(
        f"by the papers' rule (not a result): {100 * rule['recall_at_1']:.1f}, at the epoch that is best on the test "
        f"classes, epoch {rule['epoch']}"
    )
    for name, (theirs, ours) in reproduced["changed"].items():
        console.print(f"changed from the preset: {flag(name)} is {ours}, in {reproduced['preset']} {theirs}")
    if reproduced["fraction"] < 1:
        console.print(
            f"this used {100 * reproduced['fraction']:g} % of the classes and epochs: it is not a result, and does not "
            "compare with the published one"
        )


def _print_learners(before: dict[str, Any] | None, after: dict[str, Any]) -> None:
    """Recall@1 of each learner alone and of the full embedding, before the learners are merged and at the end."""
    from divcon.runs.display import print_table

    sides = [side for side in (before, after) if side is not None]
    rows = [[f"learner {k}", *(f"{100 * side['alone'][k]:.1f}" for side in sides)] for k in range(len(after["alone"]))]
    rows.append(["full embedding", *(f"{100 * side['recall_at_1']:.1f}" for side in sides)])
    heads = [f"{'merged' if side is after else 'before'}, epoch {side['epoch']}" for side in sides]
    console.print()
    console.print("recall_at_1 of each learner alone")
    print_table(console, ["", *heads], rows)
    if before is None:
        console.print("before they were merged they were not evaluated")
