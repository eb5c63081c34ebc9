"""``results.json``: all that an ablation has found so far, and whether it may be gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from divcon.config.settings import RunConfig
from divcon.errors import ConfigError, RunError
from divcon.evaluation.bootstrap import bootstrap_runs_difference
from divcon.experiments.arms import shown
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.environment import environment
from divcon.runtime.files import atomic_write

Results = dict[str, Any]
"""``settings``, ``environment``, ``trials``, ``choices`` and ``runs``."""


class ResultsFile:
    """The file, and what it holds: rewritten whole after each record."""

    NAME = "results.json"
    CHOICES = "choices.json"

    def __init__(self, out: str | Path) -> None:
        """
        Raises:
            RunError: ``out`` holds something else, or a damaged file.
        """
        self.out = Path(out)
        self.path = self.out / self.NAME
        self.results: Results = {"settings": {}, "environment": {}, "trials": [], "choices": {}, "runs": []}
        if self.path.exists():
            self.results = read_results(self.path)
        elif self.out.exists() and not self.out.is_dir():
            raise RunError(f"{self.out}: is a file; `out` is the folder of the ablation")
        elif self.out.exists() and any(self.out.iterdir()):
            raise RunError(f"{self.out}: is not empty and holds no ablation; choose another folder as `out`")

    def go_on_with(self, settings: dict[str, Any]) -> None:
        """Begin, or go on where ``settings`` are those that the file has, but for arms and seeds that are new.

        Raises:
            RunError: they differ; the message says in what.
            OutputError: the file cannot be written.
        """
        held = self.results["settings"]
        if held:
            # A setting that has come since was at its default.
            defaults = RunConfig().to_dict()
            base = {part: {k: defaults[part][k] for k in now} for part, now in settings["base"].items()}
            held = {**held, "base": {part: {**base[part], **held["base"].get(part, {})} for part in base}}
            wrong = [words for key in settings for words in _differences(key, held.get(key), settings[key])]
            if wrong:
                raise RunError(
                    f"{self.path}: is of another ablation ({'; '.join(wrong)}); use its settings, or another `out`"
                )
            arms = {**held["arms"], **settings["arms"]}
            seeds = [*held["seeds"], *(seed for seed in settings["seeds"] if seed not in held["seeds"])]
            settings = {**held, "arms": arms, "seeds": seeds}
        self.results["settings"] = settings
        self.write()

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Add a record of ``trials`` or ``runs``, made here and now.

        Raises:
            OutputError: the file cannot be written.
        """
        self.results["environment"] = environment()
        self.results[kind].append(record)
        self.write()

    def write(self) -> None:
        """
        Raises:
            OutputError: the file cannot be written.
        """
        with atomic_write(self.path) as beside:
            beside.write_text(_text(self.results), encoding="utf-8")

    def write_choices(self) -> None:
        """
        Raises:
            OutputError: the file cannot be written.
        """
        with atomic_write(self.out / self.CHOICES) as beside:
            beside.write_text(json.dumps(self.results["choices"], indent=1) + "\n", encoding="utf-8")


def read_results(path: str | Path) -> Results:
    """What an ablation has found.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(name in found for name in ("settings", "trials", "choices", "runs")):
            raise ValueError("it lacks settings, trials, choices or runs")
    except FileNotFoundError:
        raise RunError(f"{path}: there are no results of an ablation; pass data to start one") from None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise RunError(f"{path}: damaged, or not of an ablation ({error})") from None
    return found


def _differences(name: str, then: Any, now: Any) -> list[str]:
    """In words, what is not as it was, down to the setting; arms and seeds may come and go."""
    if name == "seeds":
        return []
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**then, **now} if not (name == "arms" and (key not in then or key not in now))]
        return [
            words
            for key in keys
            for words in _differences(key if name == "base" else f"{name} {key}", then.get(key), now.get(key))
        ]
    return [] if then == now else [f"{name} is {then} there, {now} now"]


def _text(results: Results) -> str:
    """JSON with a line a record: a list of thousands of hits is one line."""
    parts = []
    for name, value in results.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(record) for record in value) + "\n ]"
        else:
            text = json.dumps(value, indent=1).replace("\n", "\n ")
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def runs_by_arm(
    results: Results, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The runs that are done, by the arm's name, each arm's in the order of their seeds; arms without any are left out.

    Args:
        arms: in this order; None: all, as they were asked for.
        seeds: in this order; None: all.

    Raises:
        RunError: none is done.
    """
    runs = results["runs"]
    arms = list(results["settings"].get("arms", {})) or [run["method"] for run in runs] if arms is None else arms
    seeds = sorted({run["seed"] for run in runs}) if seeds is None else seeds
    found = {
        arm: [run for seed in seeds for run in runs if (run["method"], run["seed"]) == (arm, seed)] for arm in arms
    }
    found = {arm: some for arm, some in found.items() if some}
    if not found:
        raise RunError("none of the runs is done yet; there is nothing to tabulate")
    return found


def reference_of(by_arm: dict[str, list[dict[str, Any]]], asked: str | None = None) -> str:
    """The arm that the others are compared with: the one that is asked for, single, or the first; of those that have
    a run."""
    return next(name for name in (asked, "single", *by_arm) if name in by_arm)


def mean_curve(runs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The mean curve of an arm's runs: (E,) float64 ``epoch``, ``images_seen``, ``seconds``, ``recall_at_1``."""
    names = ("epoch", "images_seen", "seconds", "recall_at_1")
    return {name: np.mean([[point[name] for point in run["curve"]] for run in runs], axis=0) for name in names}


def at_seconds(runs: list[dict[str, Any]], seconds: float) -> float | None:
    """An arm's mean Recall@1 at the last evaluated epoch that had ended after ``seconds`` (the mean over its runs);
    None if none had."""
    curve = mean_curve(runs)
    ended = np.flatnonzero(curve["seconds"] <= seconds * (1 + 1e-9))
    return float(curve["recall_at_1"][ended[-1]]) if len(ended) else None


def images_to(runs: list[dict[str, Any]], recall_at_1: float) -> float | None:
    """Images that an arm has trained on (the mean over its runs) at the first evaluated epoch whose mean Recall@1 is at
    least ``recall_at_1``; None if there is none."""
    curve = mean_curve(runs)
    reached = np.flatnonzero(curve["recall_at_1"] >= recall_at_1)
    return float(curve["images_seen"][reached[0]]) if len(reached) else None


def picture(
    results: Results, path: str | Path, *, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> None:
    """Draw each arm's mean Recall@1 on the test classes, by images trained on and by seconds, as PNG or SVG; the
    band covers its seeds.

    Raises:
        ConfigError: matplotlib is not installed.
        RunError: none of the runs is done.
        OutputError: the file cannot be written.
    """
    try:
        from matplotlib import colormaps, rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError('the picture is drawn with matplotlib: pip install "divcon[demo]"') from None
    path = Path(path)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, runs) in enumerate(runs_by_arm(results, arms, seeds).items()):
        curve, color = mean_curve(runs), colormaps["tab10"](number % 10)
        scores = 100 * np.array([[point["recall_at_1"] for point in run["curve"]] for run in runs])
        for axes, across in ((left, "images_seen"), (right, "seconds")):
            axes.plot(curve[across], scores.mean(0), color=color, label=name, linestyle="-" if number < 10 else "--")
            axes.fill_between(curve[across], scores.min(0), scores.max(0), color=color, alpha=0.15, linewidth=0)
    left.set_xlabel("images trained on")
    right.set_xlabel("seconds of training and dividing")
    left.set_ylabel("Recall@1 on the test classes, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    # The same results give the same file.
    kind = path.suffix.removeprefix(".")
    with rc_context({"svg.hashsalt": "divcon"}), atomic_write(path) as beside:
        figure.savefig(beside, dpi=140, format=kind, metadata={"Date": None} if kind == "svg" else None)


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
    with atomic_write(out / "table.md") as beside:
        beside.write_text(text, encoding="utf-8")
    return text


def draw(
    out: Path,
    results: Results,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    context: Context = DEFAULT,
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
        context.warn(str(error))


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
        f"After {_seconds(least)} s: Recall@1 at the last evaluated epoch that had ended when the fastest arm was "
        "done; seconds are those of training and dividing.",
        f"Images to {reference}'s end: images that the arm had trained on when its mean Recall@1 first was that of "
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
