"""Scores of the queries of each class, the worst class first."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from divcon.evaluation.task import column

COLUMNS = ("label", "num_queries", "recall_at_1", "map_at_r")


def class_scores(labels: object, recall_at_1: object, map_at_r: object) -> list[dict[str, Any]]:
    """The scores of the queries of each class.

    Args:
        labels: (Q,) ints or strings, the class of each query.
        recall_at_1, map_at_r: (Q,) numbers, one a query; NaN where it was left out, as it has no match.

    Returns:
        For each class ``label``, ``num_queries`` (those that have a match), and the means ``recall_at_1`` and
        ``map_at_r``, None where no query of the class has a match. The class with the lowest Recall@1 comes first; of
        equal ones, that with the lower MAP@R; classes without scores come last.

    Raises:
        ValueError: lengths that differ.
    """
    names = column(labels, "labels")
    values = [np.asarray(of, np.float64) for of in (recall_at_1, map_at_r)]
    if any(of.shape != names.shape for of in values):
        raise ValueError(f"{len(names)} labels, for scores of shapes {values[0].shape} and {values[1].shape}")
    classes, code = np.unique(names, return_inverse=True)
    kept = ~np.isnan(values[0])
    counts = np.bincount(code[kept], minlength=len(classes))
    with np.errstate(invalid="ignore"):
        means = [np.bincount(code[kept], weights=of[kept], minlength=len(classes)) / counts for of in values]
    order = np.lexsort((np.arange(len(classes)), means[1], means[0]))  # NaN is last
    return [
        {
            "label": classes[i].item(),
            "num_queries": int(counts[i]),
            "recall_at_1": float(means[0][i]) if counts[i] else None,
            "map_at_r": float(means[1][i]) if counts[i] else None,
        }
        for i in order.tolist()
    ]


def as_csv(classes: Sequence[Mapping[str, Any]]) -> str:
    """What `class_scores` returns as CSV, a row a class."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if of[name] is None else of[name] for name in COLUMNS] for of in classes)
    return file.getvalue()
