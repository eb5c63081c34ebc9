"""Comparison of several runs on the same queries. ``divcon.compare(...)`` is the function `compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from divcon.errors import DataError
from divcon.evaluation.baselines import BASELINES, METRICS
from divcon.evaluation.bootstrap import bootstrap_difference
from divcon.evaluation.metrics import scores_in
from divcon.runtime.copies import here

_SAME = ("benchmark", "protocol", "split_hash")


@dataclass(frozen=True)
class Difference:
    """A metric's mean minus that of the first run."""

    value: float
    interval: tuple[float, float]
    """95 %, by bootstrap over classes, the same drawn ones for both runs."""


@dataclass(frozen=True)
class Compared:
    """A run beside the first one."""

    name: str
    scores: dict[str, float]
    """The scores that all runs have, by name."""
    difference: float | None = None
    """Recall@1 minus the first run's; None for the first."""
    interval: tuple[float, float] | None = None
    """Of ``difference``, as in `Difference`."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """By metric, for all metrics that both runs have of each query; empty for the first."""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    """Recall@1 and MAP@R of the run's own pooled features and of the pretrained features, by name, where its scores
    have them (see `divcon.evaluate`)."""


Scores = Mapping[str, Any]
"""What `divcon.evaluate` returns."""


def compare(results: Mapping[str, Scores | str | Path] | Sequence[str | Path]) -> list[Compared]:
    """Compare the scores of several models under one protocol, each with the first.

    Args:
        results: by name, what `divcon.evaluate` returned with ``per_query=True``, or the file that ``divcon evaluate
            --json`` wrote; or a list of such files.

    Raises:
        DataError: fewer than two results; one without scores or without those of each query; or results of different
            protocols, splits or queries, which cannot be compared. The message names both runs.
    """
    if isinstance(results, str | Path) or not isinstance(results, Mapping | Sequence):
        raise DataError(f"compare takes several results, {{name: scores}} or a list of files, not {results!r:.60}")
    if not isinstance(results, Mapping):
        results = {str(path): path for path in results}
    results = {
        name: read_scores(scores) if isinstance(scores, str | Path) else scores for name, scores in results.items()
    }
    check_number(len(results))
    names = list(results)
    for name in names:
        _check(name, results[name])
        _check_same(names[0], results[names[0]], name, results[name])
    first = results[names[0]]
    shown = [
        score.name
        for score in scores_in(first)
        if all(isinstance(results[name].get(score.name), float) for name in names)
    ]
    compared = []
    for name in names:
        scores = {score: float(results[name][score]) for score in shown}
        baselines = _baselines(results[name])
        if name == names[0]:
            compared.append(Compared(name, scores, baselines=baselines))
            continue
        differences = {
            score: _difference(results[name], first, score)
            for score in shown
            if score in results[name]["per_query"] and score in first["per_query"]
        }
        recall = differences["recall_at_1"]
        compared.append(Compared(name, scores, recall.value, recall.interval, differences, baselines))
    return compared


def check_number(number: int) -> None:
    """
    Raises:
        DataError: so many runs cannot be compared.
    """
    if number < 2:
        raise DataError(f"{number} run to compare; pass at least two")


def _baselines(result: Scores) -> dict[str, dict[str, float]]:
    recorded = result.get("baselines")
    if not isinstance(recorded, Mapping):
        return {}
    return {
        name: {metric: float(recorded[name][metric]) for metric in METRICS} for name in BASELINES if name in recorded
    }


def _difference(one: Scores, first: Scores, score: str) -> Difference:
    ours, theirs = (np.array(result["per_query"][score], np.float64) for result in (one, first))
    interval = bootstrap_difference(ours, theirs, first["per_query"]["label"])
    return Difference(float(one[score]) - float(first[score]), interval)


def read_scores(path: str | Path) -> dict[str, Any]:
    """Read the scores that ``divcon evaluate --json`` wrote.

    Raises:
        DataError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        scores = json.loads(here(path).read_text(encoding="utf-8"))
    except IsADirectoryError as error:
        raise DataError(
            f"{path}: is a folder; evaluate its model first, with divcon.evaluate(model, data, per_query=True), or "
            "with divcon evaluate --json"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    if not isinstance(scores, dict):
        raise DataError(f"{path}: holds no scores; pass the JSON of divcon evaluate, or a run folder")
    return scores


def _check(name: str, result: Mapping[str, Any]) -> None:
    missing = [key for key in (*_SAME, "recall_at_1") if key not in result]
    if missing:
        raise DataError(f"{name}: holds no {' and no '.join(missing)}; pass the JSON of divcon evaluate")
    if result.get("trained_on_test"):
        raise DataError(
            f"{name}: was trained on the test classes (`train_on=all`), so that its scores are not of a test and do "
            "not compare; compare the run whose settings it has"
        )
    each = result.get("per_query")
    if not isinstance(each, Mapping) or not {"path", "label", "recall_at_1"} <= set(each):
        raise DataError(
            f"{name}: has no scores of every query, which a comparison needs; evaluate it with per_query=True, or with "
            "divcon evaluate --json"
        )


def _check_same(first: str, one: Mapping[str, Any], name: str, other: Mapping[str, Any]) -> None:
    for key in _SAME:
        if one[key] != other[key]:
            what = key.replace("_", " ")
            raise DataError(
                f"{first} is of {what} {one[key]} and {name} of {what} {other[key]}: they do not compare; evaluate "
                "both on the same data, under the same protocol"
            )
    # On another machine the files may be in another folder.
    for column, what, known in (("path", "queries", _file_name), ("label", "labels", str)):
        ours: Sequence[Any] = one["per_query"][column]
        theirs: Sequence[Any] = other["per_query"][column]
        if len(ours) != len(theirs):
            raise DataError(f"{first} has {len(ours):,} queries and {name} {len(theirs):,}: they do not compare")
        unlike = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if known(a) != known(b)]
        if unlike:
            i = unlike[0]
            raise DataError(
                f"{first} and {name} have other {what}: number {i + 1} is {ours[i]} in the one and {theirs[i]} in the "
                "other"
            )


def _file_name(path: Any) -> str:
    return str(path).replace("\\", "/").rsplit("/", 1)[-1]
