"""Convergence curves: Recall@1 of runs as their training goes on, in one picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from divcon.errors import ConfigError, RunError
from divcon.evaluation.metrics import queries_in_words
from divcon.experiments import drawing
from divcon.runs.folder import RunFolder, begun
from divcon.runtime.files import atomic_write
from divcon.runtime.places import place, text_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]
"""Of a run's ``metrics.jsonl``."""

Split = Literal["test", "validation"]
"""The classes that a curve's scores are of: test where each epoch was scored on them (``divcon reproduce``)."""

_KEY = {"test": "observed", "validation": "validation"}


def recall_curves(runs: Sequence[str | Path], out: str | Path) -> Split:
    """Draw Recall@1 by epoch, a line a run, as PNG, SVG or PDF: on the test classes where all runs have been scored on
    them after their epochs, as `divcon.reproduce` does, else on the validation classes.

    Args:
        runs: folders of runs on the same split; a run that has not ended is drawn as far as it is.
        out: the file.

    Returns:
        The classes that the scores are of.

    Raises:
        ConfigError: ``runs`` is empty, two have one name, ``out`` ends otherwise, or matplotlib is not installed.
        RunError: there is no run, none of its epochs is done, the runs are of different data, or one has no scores.
        OutputError: the file cannot be written.
    """
    path = place(out)
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"`out` {path}: end it in .png, .svg or .pdf", field="out")
    if not runs:
        raise ConfigError("`runs` is empty: give the folders of the runs to draw", field="runs")
    lines: dict[str, Lines] = {}
    splits: dict[str, tuple[Any, ...]] = {}
    for run, name in zip(runs, _names(runs), strict=True):
        folder = RunFolder(run)
        _, record, lines[name] = begun(folder.path)
        splits[name] = tuple(record.get(key) for key in ("benchmark", "protocol", "split_hash"))
    first, *others = splits
    for name in others:
        if splits[name] != splits[first]:
            different = [" ".join(map(str, splits[one])) for one in (first, name)]
            raise RunError(f"{name} is of other data or another split than {first} ({different[1]}; {different[0]})")
    split: Split = "test" if all(map(_is_observed, lines.values())) else "validation"
    for name, of_run in lines.items():
        if not _scored(of_run, split):
            raise RunError(
                f"{name}: has no scores by epoch; a run has them of its validation classes, and one of divcon "
                "reproduce of the test classes" + (", which not all of these runs have" if len(lines) > 1 else "")
            )
    draw_recall(lines, path, split=split)
    return split


def _names(runs: Sequence[str | Path]) -> list[str]:
    """The names of the folders; where two have one name, with as many of the folders above as tell them apart."""
    texts = [text_of(os.fspath(run)) for run in runs]
    for text in texts:
        if texts.count(text) > 1:
            raise ConfigError(f"`runs`: {text} is given twice; give each run once", field="runs")
    parts = [text.rstrip("/").split("/") for text in texts]
    for count in range(1, max(map(len, parts), default=0)):
        names = ["/".join(of_run[-count:]) for of_run in parts]
        if len(set(names)) == len(names):
            return names
    return texts


def _is_observed(lines: Lines) -> bool:
    return bool(_scored(lines, "test"))


def _scored(lines: Lines, split: Split) -> list[Mapping[str, Any]]:
    return [line for line in lines if "recall_at_1" in (line.get(_KEY[split]) or {})]


def draw_recall(
    runs: Mapping[str, Lines], path: str | Path, *, split: Split = "validation", untrained: float | None = None
) -> None:
    """Draw Recall@1 by epoch, a line a run.

    Args:
        runs: the lines of ``metrics.jsonl`` by the run's name.
        path: a file, PNG, SVG or PDF by its ending.
        untrained: Recall@1 of the backbone's features on the same classes; None draws no line.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    path = place(path)
    drawn = _figure(runs, split, untrained)
    from matplotlib import rc_context

    # The same runs always write the same file.
    kind = path.suffix.lower().removeprefix(".")
    date = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    with rc_context({"svg.hashsalt": "divcon"}), atomic_write(path) as temporary:
        drawn.savefig(temporary, dpi=140, format=kind, metadata=None if date is None else {date: None})


def _figure(runs: Mapping[str, Lines], split: Split, untrained: float | None) -> Figure:
    named = [*runs, *([] if untrained is None else ["pretrained features"])]
    labels = drawing.label_inches([f"{name} 00.0" for name in named])
    wide, height = max(7.6, 0.78 + 3.6 + labels), 4.4
    figure = drawing.figure(wide, height)
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_axes((0.78 / wide, 0.55 / height, (wide - 0.78 - labels) / wide, (height - 1.45) / height))
    drawing.finish(axes, "epoch", f"Recall@1 on {split} classes, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends, counts, conquers, bands = [], {}, {}, False
    for number, (name, lines) in enumerate(runs.items()):
        scored = _scored(lines, split)
        if not scored:
            continue
        key, style = _KEY[split], drawing.style(number)
        epochs = [line["epoch"] for line in scored]
        scores = [100 * line[key]["recall_at_1"] for line in scored]
        axes.plot(epochs, scores, **style, markevery=max(1, len(epochs) // 12))
        if all("recall_at_1_interval" in line[key] for line in scored):
            low, high = (100 * np.array([line[key]["recall_at_1_interval"] for line in scored])).T
            axes.fill_between(epochs, low, high, color=style["color"], alpha=0.12, linewidth=0)
            bands = True
        ends.append(drawing.End(f"{name} {scores[-1]:.1f}", epochs[-1], scores[-1], style))
        counts = scored[-1][key]
        conquered = [line["epoch"] for line in lines if line["phase"] == "finetune"]
        if conquered and conquered[0] > 0:
            conquers[name] = conquered[0] - 0.5
            axes.axvline(conquered[0] - 0.5, color=style["color"], linestyle=(0, (1, 2)), linewidth=1)
    if untrained is not None:
        last = max((end.x for end in ends), default=0)
        style = {"color": drawing.GREY, "linestyle": (0, (1, 2)), "linewidth": 1.4}
        axes.plot([0, last], [100 * untrained] * 2, **style)
        ends.append(drawing.End(f"pretrained features {100 * untrained:.1f}", last, 100 * untrained, style))
    drawing.label_ends(axes, ends)
    for epoch in set(conquers.values()):
        names = " and ".join(name for name, at in conquers.items() if at == epoch)
        axes.annotate(
            f"{names} conquers" if " and " not in names else f"{names} conquer", (epoch, 1),
            xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8,
            color=drawing.GREY, xytext=(0, 2), textcoords="offset points",
        )  # fmt: skip
    queries = (
        f"{queries_in_words(counts)} queries in {counts['num_classes']:,} classes" if "num_classes" in counts else ""
    )
    about = [f"{queries} that are not trained on." if queries else "", "A band is the 95 % interval." if bands else ""]
    about.append("The number is the score at the end, in percent.")
    drawing.title(figure, f"Recall@1 on {split} classes, as training goes on", " ".join(filter(None, about)))
    return figure
