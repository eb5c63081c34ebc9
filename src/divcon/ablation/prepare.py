"""What an ablation stands on: the base and the data as all its runs have them, checked before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from divcon.ablation.arms import Arm, config_of
from divcon.ablation.trials import Settings, shown
from divcon.config import RunConfig
from divcon.data.dataset import only_decodable
from divcon.data.image_set import Benchmark
from divcon.display import Display
from divcon.errors import ConfigError, DataError
from divcon.models import EmbeddingModel
from divcon.models.backbone import resolve_backbone
from divcon.train.loop import check


def check_numbers(seeds: Sequence[int], trials: int, folds: int, reference: str | None, arms: list[Arm]) -> None:
    """
    Raises:
        ConfigError: a number that cannot be, a seed that stands twice, a reference that is none of the arms.
    """
    if not seeds or min(seeds) < 0:
        raise ConfigError(f"--seeds {','.join(map(str, seeds))}: give seeds of 0 and more, as in 0,1,2")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"--seeds {','.join(map(str, seeds))}: a seed stands there twice; it would give one run twice"
        )
    for name, value, least in (("trials", trials, 1), ("folds", folds, 2)):
        if value < least:
            raise ConfigError(f"--{name} {value}: must be at least {least}")
    names = [arm.name for arm in arms]
    if reference is not None and reference not in names:
        raise ConfigError(f"--reference {reference}: is none of the arms ({', '.join(names)}); add it to --methods")


def prepared(base: RunConfig, data: Benchmark, display: Display) -> tuple[RunConfig, Benchmark]:
    """The base and the data as all runs have them: with its backbone's name; with all train classes in train, and
    without what does not decode.

    Raises:
        ConfigError: a base of one learner, or a backbone that the data is not for.
        DataError: no train or no test images.
    """
    if not len(data.query) or not len(data.gallery):
        raise DataError(f"{data.query.source}: there are no test images to compare arms on")
    if not len(data.train):
        raise DataError(f"{data.train.source}: has no train images; it can be evaluated on, not trained on")
    if base.model.num_learners < 2:
        why = "of --method single " if base.model.method == "single" else ""
        raise ConfigError(
            f"--learners {base.model.num_learners} {why}is the base of all arms, and nothing can be divided among one "
            "learner; give a base of two and more, whose method is not single"
        )
    if base.data.on_bad_image == "skip":
        parts = ("train", "validation", "query", "gallery")
        data = only_decodable(data, parts, base.train.workers, display.warn, display.stage("check", 0))
    for note in data.notes:
        display.warn(note)
    vector_dim = None if data.train.vectors is None else data.train.vectors.shape[1]
    backbone = resolve_backbone(base.model.backbone, vector_dim, base.model.weights)
    base = RunConfig(  # slices, whatever the default is: results that are there already may have arms of no method
        dataclasses.replace(base.model, backbone=backbone, method="slices"),
        base.train,
        dataclasses.replace(base.data, on_bad_image="stop"),  # once for all runs, not in each
    )
    return base, dataclasses.replace(data.without_validation(), notes=())


def check_settings(arms: list[Arm], planned: dict[str, list[Settings]], base: RunConfig, data: Benchmark) -> None:
    """Find now, not after hours, what a run would refuse.

    Raises:
        ConfigError: settings that do not go together; with the arm and the trial.
        DataError: too few images or classes.
    """
    models: list[tuple[Any, EmbeddingModel]] = []
    vector_dim = None if data.train.vectors is None else data.train.vectors.shape[1]
    for arm in arms:
        for settings in planned[arm.name] or [{}]:
            config = config_of(base, arm.settings, settings)
            known = [model for made_of, model in models if made_of == config.model]
            try:
                if not known:
                    options = {**vars(config.model), "pretrained": False, "weights": None, "vector_dim": vector_dim}
                    known = [EmbeddingModel(**options)]
                    models.append((config.model, known[0]))
                check(known[0], data.train, config.train)
            except ConfigError as error:
                with_these = f" with {shown(settings)}" if settings else ""
                raise ConfigError(f"arm {arm.name!r}{with_these}: {error}") from None


def recorded(base: RunConfig) -> dict[str, Any]:
    """What of the base decides the results; no path of this machine."""
    tree = base.to_dict()
    for part, names in {
        "model": ("method",),
        "train": ("seed", "workers", "device"),
        "data": ("validation", "validation_fraction", "on_bad_image"),
    }.items():
        for name in names:
            del tree[part][name]
    if base.model.weights is not None:
        tree["model"]["weights"] = base.model.weights.name
    return tree
