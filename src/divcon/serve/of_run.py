"""What a run tells of the items of an index: which part of the data each is of, and whose it was at each division."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.data.read import read_source
from divcon.division import Division
from divcon.errors import DataError, DivconError
from divcon.runs.folder import RunFolder
from divcon.runs.report.charts import flows
from divcon.runs.report.thumbnails import sampled
from divcon.search import Index
from divcon.search.items import items_of

MOST_DIVISIONS = 12
"""That are shown."""
SHEET = 24
"""Images of a learner's contact sheet."""


@dataclass(frozen=True, eq=False)
class OfRun:
    """A run, and which items of the index are its images."""

    run: Path
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    """By part of the data (train, validation, test, or query and gallery): (n,) int64 ids, -1 for images that are not
    in the index."""
    test_paths: list[str] = field(default_factory=list)
    """Of the queries, as `divcon evaluate` writes them."""
    problem: str | None = None
    """Why the parts are not known."""
    sets: dict[str, LabeledSet] = field(default_factory=dict)
    """The images themselves, by part."""

    @classmethod
    def of(cls, run: Path, index: Index) -> OfRun:
        """Read the run's data again and look its images up."""
        try:
            found = RunFolder(run).origin()
            source = found[1].get("source") if found else None
            if found is None or source is None:
                return cls(run, problem="the run does not say what it was trained on")
            data = read_source(source, str(RunFolder(run).config))
            given = found[0].data
            data = (
                data.with_validation(given.validation_fraction, found[0].train.seed)
                if given.validation
                else data.without_validation()
            )
        except DivconError as error:
            return cls(run, problem=f"the run's data cannot be read ({error})")
        parts = {name: _ids(part, index) for name, part in data.parts.items()}
        return cls(run, parts, _paths(data), sets=data.parts)

    def splits(self) -> dict[int, str]:
        """The part of the data by id."""
        return {int(i): name for name, ids in self.parts.items() for i in ids[ids >= 0]}

    def learners(self) -> dict[int, int]:
        """By id, the learner of the last division among several; -1: left out."""
        for _, division in reversed(self._divisions()[0]):
            ids = self.parts.get("train", np.empty(0))
            if division.num_learners > 1 and len(ids) == len(division.learner):
                return {int(i): int(k) for i, k in zip(ids, division.learner, strict=True) if i >= 0}
        return {}

    def divisions(self) -> dict[str, Any]:
        """For JSON: ``divisions``, each with epoch, phase, sizes, left_out and sheets (ids by learner); ``flows``,
        from each to the next, a row a learner and a last one of those left out; ``problem``."""
        found, problem = self._divisions()
        lines = {line["epoch"]: line for line in RunFolder(self.run).lines()}
        train = self.parts.get("train", np.empty(0, np.int64))
        told = []
        for epoch, division in found:
            aligned = len(train) == len(division.learner)
            line = lines.get(epoch, {})
            told.append(
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
                problem = problem or self.problem or "the run's data has changed since, so that no images are shown"
        between = [flows(one, other).tolist() for (_, one), (_, other) in itertools.pairwise(found)]
        return {"divisions": told, "flows": between, "problem": problem}

    def _divisions(self) -> tuple[list[tuple[int, Division]], str | None]:
        """The divisions by epoch, the first and last among them; and what is wrong with others."""
        files = sorted((self.run / "divisions").glob("epoch_*.safetensors"))
        if len(files) > MOST_DIVISIONS:
            files = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, MOST_DIVISIONS).round().astype(int))]
        found, problem = [], None
        for path in files:
            try:
                found.append((int(path.stem.removeprefix("epoch_")), Division.load(path)))
            except DataError as error:
                problem = str(error)
        sizes = {len(division.learner) for _, division in found}
        return (found, problem) if len(sizes) < 2 else ([], "the divisions are not of the same images")


def _sheet(ids: np.ndarray) -> list[int]:
    ids = ids[ids >= 0]
    return np.sort(sampled(ids, SHEET, (0,))).tolist()


def _ids(images: LabeledSet, index: Index) -> np.ndarray:
    if not len(images):
        return np.empty(0, np.int64)
    items, _ = items_of(images)
    keys = items.keys()
    known = index.store.lookup(keys)
    by_row = {int(row): known[key].id for row, key in zip(items.images.rows, keys, strict=True) if key in known}
    return np.array([by_row.get(int(row), -1) for row in images.rows], np.int64)


def _paths(data: Benchmark) -> list[str]:
    return [data.query.path(i) for i in range(len(data.query))]
