"""The table of an ablation, from its results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from divcon.ablation.compare import at_seconds, images_to, mean_curve
from divcon.ablation.picture import picture
from divcon.ablation.results import Results
from divcon.ablation.runs import reference_of, runs_by_arm
from divcon.ablation.trials import shown
from divcon.errors import ConfigError
from divcon.evaluate.intervals import bootstrap_runs_difference
from divcon.files import written_whole

_NONE = "–"


def tabulate(
    out: Path,
    results: Results,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    reference: str | None,
) -> str:
    """Write ``table.md`` of the runs that are done; returns it.

    Raises:
        OutputError: a file cannot be written.
        RunError: none of the runs is done.
    """
    text = table(results, arms=arms, seeds=seeds, reference=reference)
    with written_whole(out / "table.md") as beside:
        beside.write_text(text, encoding="utf-8")
    return text


def draw(
    out: Path,
    results: Results,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    warn: Callable[[str], None],
) -> None:
    """Draw ``recall.svg`` and ``recall.png`` of the runs that are done, where matplotlib is installed.

    Raises:
        OutputError: a file cannot be written.
        RunError: none of the runs is done.
    """
    try:
        for name in ("recall.svg", "recall.png"):
            picture(results, out / name, arms=arms, seeds=seeds)
    except ConfigError as error:  # no matplotlib: the table is what matters
        warn(str(error))


def table(
    results: Results,
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    reference: str | None = None,
) -> str:
    """A row an arm, as Markdown, with the words that explain it.

    Args:
        arms: in this order; None: all.
        seeds: of the runs; None: all.
        reference: what the others are compared with; None: single, or else the first.

    Raises:
        RunError: none of the runs is done.
    """
    by_arm = runs_by_arm(results, arms, seeds)
    reference = reference_of(by_arm, reference)
    shown_seeds = sorted({run["seed"] for runs in by_arm.values() for run in runs})
    if seeds is not None:
        shown_seeds = [seed for seed in seeds if seed in shown_seeds]
    base = by_arm[reference]
    least = min(float(mean_curve(runs)["seconds"][-1]) for runs in by_arm.values())
    early = any(run["epochs"] != run["curve"][-1]["epoch"] + 1 for runs in by_arm.values() for run in runs)
    searched = results["settings"].get("trials", 0) > 0
    head = [
        "arm",
        *(f"seed {seed}" for seed in shown_seeds),
        "mean ± std",
        *(["last epoch"] if early else []),
        f"difference from {reference} [95 % interval]",
        f"after {_seconds(least)} s",
        f"images to {reference}'s end",
        "seconds",
        "of them dividing",
        *(["chosen"] if searched else []),
    ]
    rows = [head, ["---", *["---:"] * (len(head) - 1 - searched), *["---"] * searched]]
    for name, runs in by_arm.items():
        scores = {run["seed"]: run["recall_at_1"] for run in runs}
        seconds = float(np.mean([run["seconds"] for run in runs]))
        dividing = float(np.mean([run["seconds_dividing"] for run in runs])) / max(seconds, 1e-12)
        rows.append(
            [
                name,
                *(_percent(scores.get(seed)) for seed in shown_seeds),
                _spread(list(scores.values())),
                *([_percent(float(np.mean([run["recall_at_1_last"] for run in runs])))] if early else []),
                _NONE if name == reference else _difference(runs, base),
                _percent(at_seconds(runs, least)),
                _share(images_to(runs, float(mean_curve(base)["recall_at_1"][-1])), base),
                _seconds(seconds),
                f"{100 * dividing:.0f} %",
                *([_choice(results["choices"].get(name))] if searched else []),
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *_words(results, by_arm, reference, least, early)]) + "\n"


def _difference(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """Over the seeds that both have: where a run is still to come, a difference of seeds is none of arms."""
    mine, theirs = ({run["seed"]: run for run in some} for some in (runs, base))
    both = [seed for seed in theirs if seed in mine]
    if not both:
        return _NONE
    a, b = (np.array([side[seed]["hits"] for seed in both], float) for side in (mine, theirs))
    low, high = bootstrap_runs_difference(a, b, base[0]["classes"])
    return f"{100 * (a.mean() - b.mean()):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _share(images: float | None, base: list[dict[str, Any]]) -> str:
    return _NONE if images is None else f"{100 * images / mean_curve(base)['images_seen'][-1]:.0f} %"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _spread(scores: list[float]) -> str:
    mean = f"{100 * np.mean(scores):.1f}"
    return f"{mean} ± {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else mean


def _choice(choice: dict[str, Any] | None) -> str:
    if choice is None:
        return _NONE
    settings = shown(choice["settings"])
    return ", ".join(filter(None, [settings, f"{choice['epochs']} epoch{'s' * (choice['epochs'] > 1)}"]))


def _words(
    results: Results, by_arm: dict[str, list[dict[str, Any]]], reference: str, least: float, early: bool
) -> list[str]:
    runs = [run for some in by_arm.values() for run in some]
    settings = results["settings"]
    one, classes = runs[0], len(set(runs[0]["classes"]))
    words = [
        f"Recall@1 in percent on the test classes of {one['data']} ({one['protocol']}, split {one['split_hash']}, "
        f"{len(one['hits']):,} queries of {classes:,} classes), at the {'chosen' if early else 'last'} epoch.",
        f"Intervals: 2,000 draws of seeds and test classes, the same for the arm and {reference}.",
        f"After {_seconds(least)} s: Recall@1 at the last judged epoch that had ended when the fastest arm was done; "
        "seconds are those of training and dividing.",
        f"Images to {reference}'s end: images that the arm had seen when its mean Recall@1 first was that of "
        f"{reference} after its last epoch, as a share of those that {reference} saw.",
    ]
    if settings.get("trials"):
        words.append(
            f"Chosen by up to {settings['trials']} trials an arm on {settings['folds']} folds of the train classes, "
            "before any test class was looked at."
        )
    machines = sorted({run.get("machine", "") for run in runs})
    if len(machines) > 1:
        words.append(f"The runs are of {len(machines)} machines, whose seconds do not compare: {'; '.join(machines)}.")
    return [line for word in words for line in (word, "")][:-1]
