"""Recall@1 of the arms by images seen and by seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from divcon.ablation.compare import mean_curve
from divcon.ablation.results import Results
from divcon.ablation.runs import runs_by_arm
from divcon.errors import ConfigError
from divcon.files import written_whole


def picture(
    results: Results, path: str | Path, *, arms: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> None:
    """Draw each arm's mean Recall@1 on the test classes, by images seen and by seconds, as PNG or SVG; the band is from
    the least to the greatest of its seeds.

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
    left.set_xlabel("images seen")
    right.set_xlabel("seconds of training and dividing")
    left.set_ylabel("Recall@1 on the test classes, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    # The same results give the same file.
    kind = path.suffix.removeprefix(".")
    with rc_context({"svg.hashsalt": "divcon"}), written_whole(path) as beside:
        figure.savefig(beside, dpi=140, format=kind, metadata={"Date": None} if kind == "svg" else None)
