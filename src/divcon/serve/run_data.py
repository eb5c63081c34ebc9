"""`RunData`: the split of the run's data that each item of an index belongs to, and its learner at each division."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.data.read import read_source
from divcon.errors import DataError, DivconError
from divcon.runs.folder import RunFolder, run_of
from divcon.runs.report.charts import flows
from divcon.runs.report.thumbnails import sampled
from divcon.search import Index
from divcon.search.items import items_of

if TYPE_CHECKING:
    from divcon.division import Division

MAX_DIVISIONS = 12
"""Divisions that the page shows; of more, some at even distances."""
SHEET = 24
"""Images of each learner that the page shows."""


@dataclass(frozen=True, eq=False)
class RunData:
    """The data of a run, and the items of an index that are its images."""

    run: Path
    splits: dict[str, np.ndarray] = field(default_factory=dict)
    """By split (train, validation, test, or query and gallery): (n,) int64 ids, -1 for images that are not in the
    index."""
    query_paths: list[str] = field(default_factory=list)
    """The paths of the queries, as ``divcon evaluate`` writes them."""
    problem: str | None = None
    """Why the splits are unknown."""
    sets: dict[str, LabeledSet] = field(default_factory=dict)
    """The images of each split."""

    @classmethod
    def read(cls, run: Path, index: Index) -> RunData:
        """Read the run's data again, and look its images up in the index."""
        try:
            origin = RunFolder(run).origin()
            source = origin[1].get("source") if origin else None
            if origin is None or source is None:
                return cls(run, problem="the run does not say what it was trained on")
            config = origin[0].data
            data = read_source(source, str(RunFolder(run).config), **config.splitting)
            if config.train_on == "all":
                data = data.on_all()
            elif config.validation and config.validation_folds is None:
                data = data.with_validation(config.validation_fraction, origin[0].train.seed)
            else:
                data = data.without_validation()
        except DivconError as error:
            return cls(run, problem=f"the run's data cannot be read ({error})")
        splits = {name: _ids(images, index) for name, images in data.parts.items()}
        return cls(run, splits, _paths(data), sets=data.parts)

    def split_by_id(self) -> dict[int, str]:
        """The split of each item."""
        return {int(i): name for name, ids in self.splits.items() for i in ids[ids >= 0]}

    def learner_by_id(self) -> dict[int, int]:
        """The learner of each item at the last division among several learners; -1: left out."""
        for _, division in reversed(self._divisions()[0]):
            ids = self.splits.get("train", np.empty(0))
            if division.num_learners > 1 and len(ids) == len(division.learner):
                return {int(i): int(k) for i, k in zip(ids, division.learner, strict=True) if i >= 0}
        return {}

    def divisions(self) -> dict[str, Any]:
        """The divisions, for JSON: ``divisions``, each with epoch, phase, sizes, left_out and sheets (ids for each
        learner); ``flows``, the counts of images from each division to the next, with a row per learner and a last one
        for those left out; ``problem``."""
        saved, problem = self._divisions()
        lines = {line["epoch"]: line for line in RunFolder(run_of(self.run)).lines()}
        train = self.splits.get("train", np.empty(0, np.int64))
        rows = []
        for epoch, division in saved:
            aligned = len(train) == len(division.learner)
            line = lines.get(epoch, {})
            rows.append(
                {
                    "epoch": epoch,
                    "phase": line.get("phase"),
                    "sizes": list(division.sizes),
                    "left_out": division.num_left_out,
                    "kept_pairs": line.get("kept_pairs"),
                    "sheets": [_sheet(train[division.learner == k]) for k in range(division.num_learners)]
                    if aligned
                    else [],
                }
            )
            if not aligned:
                problem = problem or self.problem or "no images are shown, since the run's data has changed"
        between = [flows(one, other).tolist() for (_, one), (_, other) in itertools.pairwise(saved)]
        return {"divisions": rows, "flows": between, "problem": problem}

    def _divisions(self) -> tuple[list[tuple[int, Division]], str | None]:
        """The divisions and their epochs, with the first and the last among them; and why others cannot be read."""
        from divcon.division import Division

        files = sorted((run_of(self.run) / "divisions").glob("epoch_*.safetensors"))
        if len(files) > MAX_DIVISIONS:
            files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, MAX_DIVISIONS).round().astype(int))]
        divisions, problem = [], None
        for path in files:
            try:
                divisions.append((int(path.stem.removeprefix("epoch_")), Division.load(path)))
            except DataError as error:
                problem = str(error)
        sizes = {len(division.learner) for _, division in divisions}
        return (divisions, problem) if len(sizes) < 2 else ([], "the divisions are not of the same images")


def _sheet(ids: np.ndarray) -> list[int]:
    ids = ids[ids >= 0]
    return np.sort(sampled(ids, SHEET, (0,))).tolist()


def _ids(images: LabeledSet, index: Index) -> np.ndarray:
    if not len(images):
        return np.empty(0, np.int64)
    items, _ = items_of(images)
    keys = items.keys().to_pylist()
    known = index.store.lookup(keys)
    by_row = {int(row): known[key].id for row, key in zip(items.images.rows, keys, strict=True) if key in known}
    return np.array([by_row.get(int(row), -1) for row in images.rows], np.int64)


def _paths(data: Benchmark) -> list[str]:
    return [data.query.path(i) for i in range(len(data.query))]
