"""Which epoch's model a run keeps, by its scores on validation classes; when `patience` ends a run; and what there is
to warn of in such a choice.

All functions are pure functions of lines of ``metrics.jsonl``, so that a resumed run decides as one that was never
stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from divcon.config.settings import RunConfig, SelectBy
from divcon.evaluation.metrics import queries_in_words
from divcon.runs.folder import kept_epoch
from divcon.training.schedule import Phase

FEW_QUERIES = 300
"""Fewer validation queries than these are too few to rank epochs by: of 300, one is 0.3 points of Recall@1, and the
standard error of the score is above 2 points for most data."""

SATURATED = 0.99
"""Recall@1 from which on it no longer tells epochs apart."""

TIED_SHARE = 0.25
"""Share of the evaluated epochs that have the best score from which on a tie is reported."""

_TITLES = {"map_at_r": "MAP@R", "recall_at_1": "Recall@1"}


@dataclass(frozen=True)
class Point:
    """The scores of an epoch on validation classes."""

    epoch: int
    recall_at_1: float
    map_at_r: float
    trains_full: bool
    """Whether a loss trains the full embedding in this epoch."""


def points_of(lines: Sequence[dict[str, Any]], config: RunConfig) -> list[Point]:
    """The scores of the epochs that were evaluated.

    Args:
        lines: of ``metrics.jsonl``.
    """
    return [
        Point(
            line["epoch"],
            line["validation"]["recall_at_1"],
            line["validation"]["map_at_r"],
            _trains_full(line["phase"], config),
        )
        for line in lines
        if "validation" in line
    ]


def resolved(select_by: SelectBy, num_queries: int) -> Literal["map_at_r", "recall_at_1", "last"]:
    """``select_by``, with ``auto`` resolved for so many validation queries."""
    if select_by == "auto":
        return "last" if num_queries < FEW_QUERIES else "map_at_r"
    return select_by


def is_better(line: dict[str, Any], lines: Sequence[dict[str, Any]], config: RunConfig) -> bool:
    """Whether the model of an epoch is kept in place of the one kept so far. Of equal epochs, the later is kept.

    Epochs in which no loss trains the full embedding are kept only until there is another.

    Args:
        line: of the epoch.
        lines: of all epochs before it.
    """
    now = points_of([line], config)
    if not now:
        return False
    by = resolved(config.data.select_by, line["validation"]["num_queries"])
    kept = kept_epoch(lines)
    best = next((point for point in points_of(lines, config) if point.epoch == kept), None)
    if by == "last" or best is None:
        return True
    if now[0].trains_full != best.trains_full:
        return now[0].trains_full
    return getattr(now[0], by) >= getattr(best, by)


def ended_by_patience(lines: Sequence[dict[str, Any]], config: RunConfig) -> bool:
    """Whether a run ends before its last epoch, because its score has not risen in `patience` evaluations."""
    patience = config.data.patience
    if patience is None or not lines or lines[-1]["epoch"] >= last_epoch(config):
        return False
    by = "recall_at_1" if config.data.select_by == "recall_at_1" else "map_at_r"
    scores = [getattr(point, by) for point in points_of(lines, config) if point.trains_full]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


def ended_early(lines: Sequence[dict[str, Any]], config: RunConfig) -> bool:
    """Whether a run has ended before the last of its `epochs`, by `end_epoch` or `patience`."""
    end = config.data.end_epoch
    return (end is not None and bool(lines) and lines[-1]["epoch"] >= end) or ended_by_patience(lines, config)


def last_epoch(config: RunConfig) -> int:
    """The last epoch that a run trains, from 0, unless `patience` ends it."""
    return config.train.epochs - 1 if config.data.end_epoch is None else config.data.end_epoch


def patience_note(lines: Sequence[dict[str, Any]], config: RunConfig) -> str:
    """What to say of a run that `ended_by_patience`."""
    by = "recall_at_1" if config.data.select_by == "recall_at_1" else "map_at_r"
    points = [point for point in points_of(lines, config) if point.trains_full]
    best = points[int(np.argmax([getattr(point, by) for point in points]))]
    return (
        f"ended after epoch {lines[-1]['epoch']} of 0-{config.train.epochs - 1} by `patience` {config.data.patience}: "
        f"{_TITLES[by]} on validation classes has not risen since epoch {best.epoch} "
        f"({100 * getattr(best, by):.1f} %); to train on, resume with a larger `patience`"
    )


def select_over_folds(folds: Sequence[Sequence[dict[str, Any]]], config: RunConfig) -> dict[str, Any]:
    """The epoch that is best over folds: its score is the mean over the folds, weighted by their queries, which is the
    score of all queries together. Of equal epochs, the later.

    Args:
        folds: the lines of ``metrics.jsonl`` of each fold's run.

    Returns:
        ``epoch``; ``select_by``, resolved; ``folds``, their number; ``num_queries`` of all; and ``curve``, for each
        epoch ``epoch``, ``recall_at_1``, ``map_at_r`` and ``trains_full``.
    """
    curves = [points_of(lines, config) for lines in folds]
    scores = [next(line["validation"] for line in lines if "validation" in line) for lines in folds]
    queries = [each["num_queries"] for each in scores]
    weights = [each.get("num_queries_total", each["num_queries"]) for each in scores]  # of samples, what they stand for
    curve = [
        Point(
            same[0].epoch,
            float(np.average([point.recall_at_1 for point in same], weights=weights)),
            float(np.average([point.map_at_r for point in same], weights=weights)),
            same[0].trains_full,
        )
        for same in zip(*curves, strict=True)
    ]
    by = resolved(config.data.select_by, sum(queries))
    chosen = curve[-1]
    if by != "last":
        chosen = max(curve, key=lambda point: (point.trains_full, getattr(point, by), point.epoch))
    return {
        "epoch": chosen.epoch,
        "select_by": by,
        "folds": len(folds),
        "num_queries": sum(queries),
        "curve": [vars(point) for point in curve],
    }


def reason(lines: Sequence[dict[str, Any]], config: RunConfig, over_folds: dict[str, Any] | None = None) -> str:
    """Why the epoch that is kept is kept, in a few words; empty where that is not known."""
    if over_folds is not None:
        point = next(point for point in over_folds["curve"] if point["epoch"] == over_folds["epoch"])
        of = f"over {over_folds['folds']} folds of the train classes, {over_folds['num_queries']:,} queries"
        if over_folds["select_by"] == "last":
            return f"the last, as {over_folds['num_queries']:,} queries of all folds are too few to choose by"
        by = over_folds["select_by"]
        return f"the best mean {_TITLES[by]} {of}: {100 * point[by]:.1f} %"
    validated = [line for line in lines if "validation" in line]
    if not validated and config.data.train_on == "all":
        return "the last; all classes train"
    if not validated:
        return "the last; there are no validation classes"
    scores = validated[-1]["validation"]
    by, queries = resolved(config.data.select_by, scores["num_queries"]), queries_in_words(scores)
    if by != "last":
        return f"the best {_TITLES[by]} on {queries} validation queries"
    if config.data.select_by == "auto":
        return f"the last, as {queries} validation queries are too few to choose by"
    return "the last, by `select_by`"


def notes(lines: Sequence[dict[str, Any]], config: RunConfig, over_folds: dict[str, Any] | None = None) -> list[str]:
    """What there is to warn of in the choice of the epoch, a line each: few validation queries, a saturated score, a
    tie over many epochs, and a model whose full embedding was never trained."""
    if over_folds is not None:
        points = [Point(**point) for point in over_folds["curve"]]
        queries, kept = over_folds["num_queries"], over_folds["epoch"]
    else:
        points = points_of(lines, config)
        queries = next((line["validation"]["num_queries"] for line in lines if "validation" in line), 0)
        kept = kept_epoch(lines)
    messages = []
    if points:
        messages += _about_scores(points, queries, config, folds=over_folds is not None)
    trained = [line["epoch"] for line in lines if _trains_full(line["phase"], config)]
    if kept is not None and lines and (not trained or kept < trained[0]):
        messages.append(
            f"no loss had trained the full embedding by epoch {kept}, which is kept: use a `full_weight` above 0, or "
            "a `finetune_epoch` before the last epoch"
        )
    return messages


def _about_scores(points: Sequence[Point], queries: int, config: RunConfig, *, folds: bool) -> list[str]:
    messages, by = [], resolved(config.data.select_by, queries)
    more = "more labelled classes" if folds else "`validation_folds=5` or a larger `validation_fraction`"
    if queries == config.data.validation_queries:
        more = "a larger `validation_queries`"
    if queries < FEW_QUERIES:
        kept = "the last is kept" if by == "last" else f"the best {_TITLES[by]} on them may be chance"
        messages.append(
            f"{queries:,} validation queries are too few to choose an epoch by (fewer than {FEW_QUERIES}): {kept}; to "
            f"choose on more, use {more}"
        )
    best = max(point.recall_at_1 for point in points)
    if best >= SATURATED:
        messages.append(
            f"Recall@1 on validation classes reached {100 * best:.1f} % and no longer tells epochs apart: "
            + (
                "`select_by=map_at_r` still may"
                if by == "recall_at_1"
                else "MAP@R, which epochs are chosen by, still may"
            )
            + f"; or use {more}"
        )
    if by == "last":
        return messages
    candidates = [point for point in points if point.trains_full] or list(points)
    top = max(getattr(point, by) for point in candidates)
    tied = sum(getattr(point, by) == top for point in candidates)
    if tied > 1 and tied >= TIED_SHARE * len(candidates):
        messages.append(
            f"{tied} of {len(candidates)} evaluated epochs have the best {_TITLES[by]}, {100 * top:.1f} %, and the "
            "last of them is kept: "
            + ("use `select_by=map_at_r`, or " if by == "recall_at_1" else "to tell them apart, use ")
            + more
        )
    return messages


def _trains_full(phase: str, config: RunConfig) -> bool:
    train = config.train
    distill_weight = train.chosen_distill_weight(
        config.model.num_learners, vectors=config.model.backbone in ("none", "mlp")
    )
    return phase != Phase.SUBSPACE or train.full_weight > 0 or distill_weight > 0
