"""What a run's folder says of the run: read once, for all parts of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from divcon.config import RunConfig
from divcon.divide import Division
from divcon.errors import DataError, RunError
from divcon.report.charts import thinned
from divcon.report.flow import MOST_COLUMNS
from divcon.run_folder import RunFolder, kept_epoch

FINETUNE = "finetune"


@dataclass(frozen=True)
class Contents:
    """A run, of which one epoch at least is done."""

    folder: RunFolder
    config: RunConfig
    record: Mapping[str, Any]
    """All of ``config.json``."""
    lines: Sequence[dict[str, Any]]
    """Of ``metrics.jsonl``."""
    divisions: Sequence[tuple[int, Division]]
    """By the epoch they were made in, at most `MOST_COLUMNS`, the first and the last, and the last that was divided,
    among them."""
    problems: Sequence[str] = field(default=())
    """What could not be read."""

    @classmethod
    def of(cls, folder: RunFolder) -> Contents:
        """
        Raises:
            RunError: the folder holds no run, none of its epochs is done, or its ``config.json`` is damaged.
        """
        found = folder.read()
        if found is None:
            raise RunError(f"{folder.path}: holds no run (no config.json of one); give a run folder")
        lines = folder.lines()
        if not lines:
            raise RunError(f"{folder.path}: no epoch of this run is done yet, so there is nothing to report")
        divisions, problems = _divisions(folder, lines)
        return cls(folder, *found, lines, divisions, problems)

    @property
    def of_vectors(self) -> bool:
        return self.config.model.backbone in ("none", "mlp")

    @property
    def kept(self) -> dict[str, Any] | None:
        """The line of the epoch that is kept; None while nothing is kept yet."""
        if not any("validation" in line for line in self.lines) and len(self.lines) < self.config.train.epochs:
            return None
        return next(line for line in self.lines if line["epoch"] == kept_epoch(list(self.lines)))

    @property
    def last_divided(self) -> tuple[int, Division] | None:
        """The last division among several learners, or where there is none the last of all."""
        several = [(epoch, division) for epoch, division in self.divisions if division.num_learners > 1]
        return (several or list(self.divisions) or [None])[-1]


def _divisions(folder: RunFolder, lines: Sequence[dict[str, Any]]) -> tuple[list[tuple[int, Division]], list[str]]:
    made = [line["epoch"] for line in lines if line["redivided"]]
    divided = [line["epoch"] for line in lines if line["redivided"] and line["phase"] != FINETUNE]
    chosen = set(thinned(made, MOST_COLUMNS - 1)) | set(divided[-1:])
    found, problems = [], []
    for epoch in sorted(chosen):
        path = folder.divisions / f"epoch_{epoch:04d}.safetensors"
        try:
            found.append((epoch, Division.load(path)))
        except DataError as error:
            problems.append(str(error))
    sizes = {len(division.learner) for _, division in found}
    if len(sizes) > 1:
        return [], [*problems, "the divisions are not of the same number of images, so that they are not shown"]
    return found, problems
