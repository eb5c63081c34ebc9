"""Runs side by side, on the same queries. ``divcon.compare(...)`` is the function `compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from divcon.errors import DataError
from divcon.evaluation.bootstrap import bootstrap_difference

_SAME = ("benchmark", "protocol", "split_hash")


@dataclass(frozen=True)
class Compared:
    """A run beside the first one."""

    name: str
    scores: dict[str, float]
    """Those that all runs have, by name, 0 to 1."""
    difference: float | None = None
    """Recall@1 minus the first run's; None for the first."""
    interval: tuple[float, float] | None = None
    """Of the difference, 95 %, by bootstrap over classes; both runs see the same drawn ones."""


def compare(results: Mapping[str, Mapping[str, Any]]) -> list[Compared]:
    """Compare the scores of several models under one protocol, each with the first.

    Args:
        results: by name, what `divcon.evaluate` gave with ``per_query=True``, or ``divcon evaluate --json`` wrote.

    Raises:
        DataError: fewer than two; one that does not hold scores and those of every query; or they are not of the same
            protocol, split and queries, so that a difference would mean nothing. The message names both runs.
    """
    if len(results) < 2:
        raise DataError(f"{len(results)} run to compare; give two at least")
    names = list(results)
    for name in names:
        _check(name, results[name])
        _check_same(names[0], results[names[0]], name, results[name])
    first = results[names[0]]
    shown = [
        score
        for score, value in first.items()
        if isinstance(value, float) and not score.endswith("_std") and all(score in results[name] for name in names)
    ]
    compared = []
    for name in names:
        scores = {score: float(results[name][score]) for score in shown}
        if name == names[0]:
            compared.append(Compared(name, scores))
            continue
        ours, theirs = (np.array(result["per_query"]["recall_at_1"], np.float64) for result in (results[name], first))
        interval = bootstrap_difference(ours, theirs, first["per_query"]["label"])
        difference = scores["recall_at_1"] - float(first["recall_at_1"])
        compared.append(Compared(name, scores, difference, interval))
    return compared


def read_scores(path: str | Path) -> dict[str, Any]:
    """What ``divcon evaluate --json`` wrote.

    Raises:
        DataError: the file cannot be read, or is no JSON of an object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no scores; give what divcon evaluate --json wrote, or a run folder")
    return found


def _check(name: str, result: Mapping[str, Any]) -> None:
    missing = [key for key in (*_SAME, "recall_at_1") if key not in result]
    if missing:
        raise DataError(f"{name}: holds no {' and no '.join(missing)}; give what divcon evaluate --json wrote")
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
    # Paths may begin elsewhere on another machine, where the rest is the same.
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
