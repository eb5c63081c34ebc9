"""What is tried for an arm, and what it is judged on: settings drawn from its lists, classes in folds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from divcon.ablation.arms import Arm, config_of
from divcon.config import RunConfig
from divcon.data.image_set import Benchmark
from divcon.errors import ConfigError, DataError

Settings = dict[str, dict[str, Any]]


def draw_trials(arm: Arm, base: RunConfig, count: int, seed: int) -> list[Settings]:
    """What each trial of an arm sets over its settings: drawn without replacement from all combinations of its lists.

    The arm's own values, where the lists hold them, are the first trial, so that the default is always tried. Where
    there are fewer different runs than ``count``, all of them.

    Raises:
        ConfigError: a combination does not go together, or with the base.
    """
    lists = [(part, name, list(values)) for part, tree in arm.space.items() for name, values in tree.items()]
    settled = config_of(base, arm.settings)
    trials: list[Settings] = []
    seen: list[RunConfig] = []
    for settings in _combinations(lists, settled, seed):
        try:
            config = config_of(base, arm.settings, settings)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name!r} with {shown(settings)}: {error}") from None
        if config not in seen:  # single has one learner, whatever a list of numbers of learners says
            seen.append(config)
            trials.append(settings)
        if len(trials) == count:
            break
    return trials


def _combinations(lists: list[tuple[str, str, list[Any]]], settled: RunConfig, seed: int) -> Iterator[Settings]:
    def combination(number: int) -> Settings:
        settings: Settings = {}
        for part, name, values in lists:
            number, place = divmod(number, len(values))
            settings.setdefault(part, {})[name] = values[place]
        return settings

    own = {(part, name): getattr(getattr(settled, part), name) for part, name, _ in lists}
    if all(own[part, name] in values for part, name, values in lists):
        default: Settings = {}
        for part, name, _ in lists:
            default.setdefault(part, {})[name] = own[part, name]
        yield default
    total = math.prod(len(values) for _, _, values in lists)
    # A number stands for a combination, so that millions of them need not be listed.
    drawn = np.random.default_rng([seed, 0x7A1A]).choice(total, min(total, 100_000), replace=False)
    for number in drawn.tolist():
        yield combination(number)


def folds_of(data: Benchmark, count: int, seed: int) -> list[Benchmark]:
    """``count`` benchmarks: in each, another part of the train classes is held out for validation, equal parts but for
    one class. A class of one image has no match to be judged by, and always trains.

    Raises:
        DataError: fewer than two classes of two images and more a fold.
    """
    sizes = np.bincount(data.train.labels)
    classes = np.flatnonzero(sizes >= 2)
    if len(classes) < 2 * count:
        raise DataError(
            f"{data.train.source}: {len(classes)} train classes of two images and more are too few for {count} folds "
            "of two classes; give fewer --folds, or more classes"
        )
    parts = np.array_split(np.random.default_rng([seed, 0xF01D]).permutation(classes), count)
    folds = []
    for part in parts:
        held = np.isin(data.train.labels, part)
        folds.append(
            dataclasses.replace(data, train=data.train.subset(~held), validation=data.train.subset(held), notes=())
        )
    return folds


def chosen(curves: list[list[list[dict[str, Any]]]]) -> tuple[int, int, float]:
    """The best trial: its number, its number of epochs, and its score.

    Args:
        curves: by trial and fold, ``{"epoch": ..., "recall_at_1": ...}`` of each judged epoch.

    Returns:
        That of the best mean over the folds, over trials and epochs; of equal ones the earlier trial and epoch.
    """
    best = (0, 0, -1.0)
    for trial, folds in enumerate(curves):
        if not all(folds):  # one went wrong
            continue
        for points in zip(*folds, strict=True):
            score = float(np.mean([point["recall_at_1"] for point in points]))
            if score > best[2]:
                best = (trial, points[0]["epoch"] + 1, score)
    return best


def shown(settings: Settings) -> str:
    """``lr 0.001, loss TripletMarginLoss``."""
    return ", ".join(f"{name} {value}" for values in settings.values() for name, value in values.items())
