"""The results of an ablation: the file that holds them, and their table and picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from divcon.config.settings import ModelConfig, RunConfig
from divcon.errors import ConfigError, RunError
from divcon.evaluation.bootstrap import bootstrap_runs_difference
from divcon.evaluation.metrics import scores_in
from divcon.evaluation.tables import UNTRAINED, Cell, Column, Row, ScoreTable, cell_of, columns_of
from divcon.experiments import drawing
from divcon.experiments.arms import settings_text
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.environment import environment
from divcon.runtime.files import atomic_write
from divcon.runtime.places import place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Any]
"""``settings``, ``environment``, ``trials``, ``choices`` and ``runs``; see `divcon.ablate`."""

Runs = list[dict[str, Any]]
"""The records of the runs of one arm."""

_NONE = "–"


class ResultsFile:
    """``results.json`` in the folder of an ablation, rewritten after each record."""

    NAME = "results.json"
    CHOICES = "choices.json"

    def __init__(self, out: str | Path) -> None:
        """
        Raises:
            RunError: ``out`` is not empty and holds no ablation, or the file is damaged.
        """
        self.out = here(out)
        self.path = self.out / self.NAME
        self.results: Results = {"settings": {}, "environment": {}, "trials": [], "choices": {}, "runs": []}
        if self.path.exists():
            self.results = read_results(self.path)
        elif self.out.exists() and not self.out.is_dir():
            raise RunError(f"{self.out}: is a file; `out` is the folder of the ablation")
        elif self.out.exists() and any(self.out.iterdir()):
            raise RunError(f"{self.out}: is not empty and holds no ablation; choose another folder as `out`")

    def resume(self, settings: dict[str, Any]) -> None:
        """Start, or resume with the settings of the file; arms and seeds may be added.

        Raises:
            RunError: other settings differ; the message lists them.
            OutputError: the file cannot be written.
        """
        saved = self.results["settings"]
        if saved:
            # A setting that is newer than the file had its default, or for images what was done before it existed.
            defaults = RunConfig(ModelConfig(fit="crop", pixel_range="full")).to_dict()
            base = {section: {k: defaults[section][k] for k in now} for section, now in settings["base"].items()}
            base = {section: {**values, **saved["base"].get(section, {})} for section, values in base.items()}
            saved = {**saved, "base": base}
            changed = [text for key in settings for text in _differences(key, saved.get(key), settings[key])]
            if changed:
                raise RunError(
                    f"{self.path}: is of another ablation ({'; '.join(changed)}); use its settings, or another `out`"
                )
            arms = {**saved["arms"], **settings["arms"]}
            seeds = [*saved["seeds"], *(seed for seed in settings["seeds"] if seed not in saved["seeds"])]
            settings = {**saved, "arms": arms, "seeds": seeds}
        self.results["settings"] = settings
        self.write()

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Add a record to ``trials`` or ``runs``, and update the environment to the present one.

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
        with atomic_write(self.path) as temporary:
            temporary.write_text(_json(self.results), encoding="utf-8")

    def write_choices(self) -> None:
        """
        Raises:
            OutputError: the file cannot be written.
        """
        with atomic_write(self.out / self.CHOICES) as temporary:
            temporary.write_text(json.dumps(self.results["choices"], indent=1) + "\n", encoding="utf-8")


def read_results(path: str | Path) -> Results:
    """Read the ``results.json`` of an ablation.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    path = here(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if not all(name in results for name in ("settings", "trials", "choices", "runs")):
            raise ValueError("it lacks settings, trials, choices or runs")
    except FileNotFoundError:
        raise RunError(f"{path}: there are no results of an ablation; pass data to start one") from None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise RunError(f"{path}: is damaged, or not of an ablation ({error})") from None
    return results


def _differences(name: str, then: Any, now: Any) -> list[str]:
    """The differences between two values of ``settings``, as text, a setting each; added and removed arms and seeds do
    not count."""
    if name == "seeds":
        return []
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**then, **now} if not (name == "arms" and (key not in then or key not in now))]
        return [
            text
            for key in keys
            for text in _differences(key if name == "base" else f"{name} {key}", then.get(key), now.get(key))
        ]
    return [] if then == now else [f"{name} is {then} there, {now} now"]


def _json(results: Results) -> str:
    """JSON with each record on one line, since a record lists thousands of hits."""
    parts = []
    for name, value in results.items():
        if name == "untrained":
            text = json.dumps(value)
        elif isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(record) for record in value) + "\n ]"
        else:
            text = json.dumps(value, indent=1).replace("\n", "\n ")
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def runs_by_arm(
    results: Results, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> dict[str, Runs]:
    """The runs that are done, by arm, in the order of their seeds; arms without runs are left out.

    Args:
        arms: names, in the order to return them; None: all.
        seeds: in the order to return them; None: all.

    Raises:
        RunError: no run is done.
    """
    runs = results["runs"]
    arms = list(results["settings"].get("arms", {})) or [run["method"] for run in runs] if arms is None else arms
    seeds = sorted({run["seed"] for run in runs}) if seeds is None else seeds
    by_arm = {
        arm: [run for seed in seeds for run in runs if (run["method"], run["seed"]) == (arm, seed)] for arm in arms
    }
    by_arm = {arm: of_arm for arm, of_arm in by_arm.items() if of_arm}
    if not by_arm:
        raise RunError("none of the runs is done yet; there is nothing to tabulate")
    return by_arm


def mean_curve(runs: Runs) -> dict[str, np.ndarray]:
    """The mean curve of an arm's runs: (E,) float64 ``epoch``, ``images_seen``, ``seconds``, ``recall_at_1``."""
    names = ("epoch", "images_seen", "seconds", "recall_at_1")
    return {name: np.mean([[point[name] for point in run["curve"]] for run in runs], axis=0) for name in names}


def at_seconds(runs: Runs, seconds: float) -> float | None:
    """The mean Recall@1 of an arm's runs at the last evaluated epoch that ended within ``seconds`` (mean over
    the runs); None where none did."""
    curve = mean_curve(runs)
    ended = np.flatnonzero(curve["seconds"] <= seconds * (1 + 1e-9))
    return float(curve["recall_at_1"][ended[-1]]) if len(ended) else None


def images_to(runs: Runs, recall_at_1: float) -> float | None:
    """Images trained on (mean over an arm's runs) at the first evaluated epoch whose mean Recall@1 is at least
    ``recall_at_1``; None where there is none."""
    curve = mean_curve(runs)
    reached = np.flatnonzero(curve["recall_at_1"] >= recall_at_1)
    return float(curve["images_seen"][reached[0]]) if len(reached) else None


def tabulate(
    out: Path,
    results: Results,
    arms: Sequence[str] | None,
    seeds: Sequence[int] | None,
    reference: str | None,
) -> str:
    """Write ``table.md`` of the runs that are done, and return its text.

    Raises:
        OutputError: the file cannot be written.
        RunError: no run is done.
    """
    text = table(results, arms=arms, seeds=seeds, reference=reference)
    with atomic_write(out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def table(
    results: Results,
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    reference: str | None = None,
) -> str:
    """A Markdown table with a row for each arm, and notes on its columns below.

    Args:
        arms: names, in the order of the rows; None: all.
        seeds: of the runs; None: all.
        reference: the arm that the others are compared with; None: single, or else the first. So, too, where it has no
            run yet.

    Raises:
        RunError: no run is done.
    """
    by_arm = runs_by_arm(results, arms, seeds)
    reference = next(name for name in (reference, "single", *by_arm) if name in by_arm)
    done = {run["seed"] for runs in by_arm.values() for run in runs}
    columns = sorted(done) if seeds is None else [seed for seed in seeds if seed in done]
    base = by_arm[reference]
    fastest = min(float(mean_curve(runs)["seconds"][-1]) for runs in by_arm.values())
    early = any(run["epochs"] != run["curve"][-1]["epoch"] + 1 for runs in by_arm.values() for run in runs)
    searched = results["settings"].get("trials", 0) > 0
    # Results of before they were recorded have neither.
    pooled = any("pooled_recall_at_1" in run for runs in by_arm.values() for run in runs)
    untrained = results.get("untrained", {})
    head = [
        "arm",
        *(f"seed {seed}" for seed in columns),
        "mean ± std",
        *(["last epoch"] if early else []),
        *(["pooled features"] if pooled else []),
        f"difference from {reference} [95 % interval]",
        f"after {_seconds(fastest)} s",
        f"images to {reference}'s end",
        "seconds",
        "of them dividing",
        *(["chosen"] if searched else []),
    ]
    rows = [head, ["---", *["---:"] * (len(head) - 1 - searched), *["---"] * searched]]
    if "recall_at_1" in untrained:
        place = 1 + len(columns)
        blank = [_NONE] * (len(head) - 1)
        rows.append([UNTRAINED, *blank[: place - 1], _percent(untrained["recall_at_1"]), *blank[place:]])
    for name, runs in by_arm.items():
        scores = {run["seed"]: run["recall_at_1"] for run in runs}
        seconds = float(np.mean([run["seconds"] for run in runs]))
        dividing = float(np.mean([run["seconds_dividing"] for run in runs])) / max(seconds, 1e-12)
        rows.append(
            [
                name,
                *(_percent(scores.get(seed)) for seed in columns),
                _mean_and_std(list(scores.values())),
                *([_percent(float(np.mean([run["recall_at_1_last"] for run in runs])))] if early else []),
                *([_percent(_mean_pooled(runs))] if pooled else []),
                _NONE if name == reference else _difference(runs, base),
                _percent(at_seconds(runs, fastest)),
                _images_share(runs, base),
                _seconds(seconds),
                f"{100 * dividing:.0f} %",
                *([_choice(results["choices"].get(name))] if searched else []),
            ]
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *_notes(results, by_arm, reference, fastest, early)]) + "\n"


def score_table(
    results: Results, *, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> ScoreTable:
    """The table of all scores for a paper: a row the pretrained features, and a row each arm, with means and standard
    deviations over its seeds, and 95 % intervals over seeds and test classes.

    Runs whose record has no other scores, of before these were kept, have Recall@1 alone.

    Args:
        arms, seeds: as of `table`.

    Raises:
        RunError: no run is done.
    """
    by_arm = runs_by_arm(results, arms, seeds)
    untrained = results.get("untrained", {})
    scores = [{"recall_at_1": run["recall_at_1"], **run.get("scores", {})} for of in by_arm.values() for run in of]
    columns = columns_of(score for each in scores for score in scores_in(each))
    rows = []
    if "recall_at_1" in untrained:
        rows.append(Row(UNTRAINED, _cells([{"scores": untrained, **untrained}], columns)))
    rows += [Row(name, _cells(runs, columns), len(runs)) for name, runs in by_arm.items()]
    one = next(iter(by_arm.values()))[0]
    about = (
        f"{one['data']} ({one['protocol']}, split {one['split_hash']}, {len(one['hits']):,} queries of "
        f"{len(set(one['classes'])):,} classes)"
    )
    images = sorted({run["images_seen"] for of in by_arm.values() for run in of if "images_seen" in run})
    notes = [f"The arms trained on {images[0]:,} to {images[-1]:,} images"] if len(images) > 1 else []
    return ScoreTable(rows, columns, about, notes)


def _cells(runs: Runs, columns: Sequence[Column]) -> dict[str, Cell]:
    """The cells of the scores that all runs of a row have."""
    cells = {}
    for column in columns:
        name = column.name
        means = [run.get("scores", {}).get(name, run[name] if name == "recall_at_1" else None) for run in runs]
        if None in means:
            continue
        each = [run.get("per_class", {}).get(name) for run in runs]
        if None in each:
            cells[name] = cell_of(means, None, None)
        else:
            num = np.array(runs[0]["per_class"]["num"])
            cells[name] = cell_of(means, np.array(each) * num, num)
    return cells


def _mean_pooled(runs: Runs) -> float | None:
    scores = [run["pooled_recall_at_1"] for run in runs if "pooled_recall_at_1" in run]
    return float(np.mean(scores)) if scores else None


def _difference(runs: Runs, base: Runs) -> str:
    """Over the seeds that both arms have, so that seeds that are not done yet do not count as a difference of arms."""
    mine, theirs = ({run["seed"]: run for run in side} for side in (runs, base))
    both = [seed for seed in theirs if seed in mine]
    if not both:
        return _NONE
    a, b = (np.array([side[seed]["hits"] for seed in both], float) for side in (mine, theirs))
    low, high = bootstrap_runs_difference(a, b, base[0]["classes"])
    return f"{100 * (a.mean() - b.mean()):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _images_share(runs: Runs, base: Runs) -> str:
    """Images that an arm needs for the final Recall@1 of the reference, as a share of the reference's images."""
    images = images_to(runs, float(mean_curve(base)["recall_at_1"][-1]))
    return _NONE if images is None else f"{100 * images / mean_curve(base)['images_seen'][-1]:.0f} %"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _mean_and_std(scores: list[float]) -> str:
    mean = f"{100 * np.mean(scores):.1f}"
    return f"{mean} ± {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else mean


def _choice(choice: dict[str, Any] | None) -> str:
    if choice is None:
        return _NONE
    settings = settings_text(choice["settings"])
    return ", ".join(filter(None, [settings, f"{choice['epochs']} epoch{'s' * (choice['epochs'] > 1)}"]))


def _notes(results: Results, by_arm: dict[str, Runs], reference: str, fastest: float, early: bool) -> list[str]:
    runs = [run for of_arm in by_arm.values() for run in of_arm]
    settings = results["settings"]
    one, classes = runs[0], len(set(runs[0]["classes"]))
    notes = [
        f"Recall@1 in percent on the test classes of {one['data']} ({one['protocol']}, split {one['split_hash']}, "
        f"{len(one['hits']):,} queries of {classes:,} classes), at the {'chosen' if early else 'last'} epoch.",
        f"Intervals: 2,000 draws of seeds and test classes, the same for the arm and {reference}.",
        f"After {_seconds(fastest)} s: Recall@1 at the last evaluated epoch that had ended when the fastest arm was "
        "done; seconds are those of training and dividing.",
        f"Images to {reference}'s end: images that the arm had trained on when its mean Recall@1 first reached that of "
        f"{reference} after its last epoch, as a share of those that {reference} trained on.",
    ]
    images = sorted({run.get("images_seen", 0) for run in runs})
    if len(images) > 1:
        notes.append(
            f"The arms trained on {images[0]:,} to {images[-1]:,} images (`rounds`): they had no equal budget."
        )
    if any("pooled_recall_at_1" in run for run in runs):
        notes.append("Pooled features: Recall@1 of the same networks without their heads (mean of the seeds).")
    untrained = results.get("untrained", {})
    if "recall_at_1" in untrained:
        notes.append(f"Pretrained features: {untrained['of']}, before any training.")
    elif "note" in untrained:
        notes.append(untrained["note"][0].upper() + untrained["note"][1:] + ".")
    if settings.get("trials"):
        notes.append(
            f"Chosen by up to {settings['trials']} trials an arm on {settings['folds']} folds of the train classes, "
            "before the test classes were evaluated."
        )
    machines = sorted({run.get("machine", "") for run in runs})
    if len(machines) > 1:
        notes.append(f"The runs are of {len(machines)} machines, whose seconds do not compare: {'; '.join(machines)}.")
    return [line for note in notes for line in (note, "")][:-1]


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
        RunError: no run is done.
    """
    try:
        for name in ("recall.svg", "recall.png"):
            picture(results, out / name, arms=arms, seeds=seeds)
    except ConfigError as error:  # without matplotlib there is still the table
        context.warn(str(error))


def picture(
    results: Results, path: str | Path, *, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> None:
    """Draw each arm's mean Recall@1 on the test classes, by images trained on and by time, as PNG or SVG; a band spans
    its seeds.

    Raises:
        ConfigError: matplotlib is not installed.
        RunError: no run is done.
        OutputError: the file cannot be written.
    """
    path = place(path)
    drawn = _figure(results, arms, seeds)
    from matplotlib import rc_context

    # The same results always write the same file.
    kind = path.suffix.removeprefix(".")
    with rc_context({"svg.hashsalt": "divcon"}), atomic_write(path) as temporary:
        drawn.savefig(temporary, dpi=140, format=kind, metadata={"Date": None} if kind == "svg" else None)


_LEFT, _TOP, _BOTTOM, _WIDTH, _HEIGHT, _BETWEEN = 0.78, 0.8, 0.55, 3.6, 3.4, 0.45
"""Inches of a picture: its margins, the size of its axes, and what is between them beside the labels."""


def _figure(results: Results, arms: Sequence[str] | None, seeds: Sequence[int] | None) -> Figure:
    by_arm = runs_by_arm(results, arms, seeds)
    curves = {name: mean_curve(runs) for name, runs in by_arm.items()}
    names = {name: f"{name} {100 * curves[name]['recall_at_1'][-1]:.1f}" for name in by_arm}
    labels = drawing.label_inches(list(names.values()))
    wide, high = _LEFT + 2 * (_WIDTH + labels) + _BETWEEN, _TOP + _HEIGHT + _BOTTOM
    drawn = drawing.figure(wide, high)
    box = (_BOTTOM / high, _WIDTH / wide, _HEIGHT / high)
    left = drawn.add_axes((_LEFT / wide, *box))
    right = drawn.add_axes(((_LEFT + _WIDTH + labels + _BETWEEN) / wide, *box))
    minutes = max(float(curve["seconds"][-1]) for curve in curves.values()) > 600
    scales = ((left, "images_seen", 1000.0), (right, "seconds", 60.0 if minutes else 1.0))
    for number, (name, runs) in enumerate(by_arm.items()):
        style, curve = drawing.style(number), curves[name]
        scores = 100 * np.array([[point["recall_at_1"] for point in run["curve"]] for run in runs])
        for axes, across, scale in scales:
            axes.plot(curve[across] / scale, scores.mean(0), **style)
            axes.fill_between(
                curve[across] / scale, scores.min(0), scores.max(0), color=style["color"], alpha=0.15, linewidth=0
            )
    drawing.finish(left, "images trained on, in thousands", "Recall@1 on the test classes, %")
    drawing.finish(right, f"{'minutes' if minutes else 'seconds'} of training and dividing")
    untrained = results.get("untrained", {}).get("recall_at_1")
    if untrained is not None:
        _draw_untrained((left, right), 100 * untrained)
    right.set_ylim(left.get_ylim())
    for axes, across, scale in scales:
        ends = [
            drawing.End(
                names[name],
                float(curve[across][-1]) / scale,
                100 * float(curve["recall_at_1"][-1]),
                drawing.style(number),
            )
            for number, (name, curve) in enumerate(curves.items())
        ]
        drawing.label_ends(axes, ends)
    one = next(iter(by_arm.values()))[0]
    counts = sorted({len(runs) for runs in by_arm.values()})
    seeds_words = (
        f"{counts[0]} seed{'s' * (counts[0] > 1)}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    )
    band = "; a band spans the seeds" if counts[-1] > 1 else ""
    drawing.title(
        drawn,
        f"Recall@1 on test classes of {one['data']}, as training goes on",
        f"{len(one['hits']):,} queries in {len(set(one['classes'])):,} classes that were not trained on. A line is the "
        f"mean of {seeds_words}{band}. The number is the score at the end, in percent.",
    )
    return drawn


def _draw_untrained(both: Sequence[Any], score: float) -> None:
    """The score of the pretrained features: a dotted line, or words where it is far below the lines."""
    low, high = both[0].get_ylim()
    if score >= low - 0.3 * (high - low):
        for axes in both:
            axes.axhline(score, color=drawing.GREY, linestyle=(0, (1, 2)), linewidth=1.2)
        both[0].set_ylim(min(low, score - 0.04 * (high - low)), high)
    far = score < both[0].get_ylim()[0]
    words = f"pretrained features: {score:.1f}{', below this chart' if far else ''}"
    low, high = both[0].get_ylim()
    height = 0.03 if far else (score - low) / (high - low) + 0.015
    for axes in both:
        axes.text(
            0.98, height, words, transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color=drawing.GREY
        )
