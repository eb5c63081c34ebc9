"""Settings that are left at 0 are chosen from the data: the same rules for 250 images and for 250,000.

- ``images_per_class``: 4; 2 where half of the classes have fewer than 4 images.
- ``batch_size``: 80; less only where there are too few classes to fill it.
- ``epochs``: as many as make `STEPS` batches, but `MIN_EPOCHS` at least and `MAX_EPOCHS` at most.
- ``num_learners``: 4 where the training is long enough for dividing to pay, `BATCHES_TO_DIVIDE` batches in all: one
  metric is better for as long as it still improves (docs/results.md). Else 1, as for fewer images than
  `IMAGES_PER_LEARNER` a learner, or fewer classes than two batches have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from divcon.config.settings import ModelConfig, RunConfig, TrainConfig

STEPS = 10_000
MIN_EPOCHS, MAX_EPOCHS = 20, 60
BATCH_SIZE, IMAGES_PER_CLASS = 80, 4
LEARNERS, IMAGES_PER_LEARNER, BATCHES_TO_DIVIDE = 4, 500, 3_000


@dataclass(frozen=True)
class Counts:
    """What the rules look at."""

    images: int
    classes: int
    median: float
    """Images of the median class."""

    @classmethod
    def of(cls, labels: np.ndarray) -> Counts:
        """Of the (N,) labels of the training images."""
        sizes = np.unique(labels, return_counts=True)[1]
        return cls(len(labels), len(sizes), float(np.median(sizes)) if len(sizes) else 0.0)


def fit_training(config: TrainConfig, labels: np.ndarray) -> tuple[TrainConfig, Mapping[str, str]]:
    """Settings with 0 replaced by what suits the training images.

    Args:
        labels: (N,) int64, of the training images.

    Returns:
        The settings, and the reason of each that was chosen, by name.
    """
    counts, reasons = Counts.of(labels), {}
    each = config.images_per_class
    if not each:
        each = IMAGES_PER_CLASS if counts.median >= IMAGES_PER_CLASS else 2
        reasons["images_per_class"] = f"the median class has {counts.median:g} images"
    batch = config.batch_size
    if not batch:
        batch = each * max(2, min(BATCH_SIZE // each, counts.classes))
        reasons["batch_size"] = f"{counts.images:,} images of {counts.classes:,} classes"
    epochs = config.epochs
    if not epochs:
        steps = max(1, counts.images // batch)
        epochs = int(np.clip(round(STEPS / steps), MIN_EPOCHS, MAX_EPOCHS))
        reasons["epochs"] = f"{steps:,} batches an epoch, {steps * epochs:,} in all"
    if reasons:
        config = replace(config, images_per_class=each, batch_size=batch, epochs=epochs)
    return config, reasons


def fit_model(config: ModelConfig, train: TrainConfig, labels: np.ndarray) -> tuple[ModelConfig, Mapping[str, str]]:
    """As `fit_training`, of the model; ``train`` is fitted already."""
    if config.num_learners:
        return config, {}
    counts = Counts.of(labels)
    batches = max(1, counts.images // train.batch_size) * train.epochs
    divides = (
        batches >= BATCHES_TO_DIVIDE
        and counts.images >= LEARNERS * IMAGES_PER_LEARNER
        and counts.classes >= 2 * train.batch_size // train.images_per_class
    )
    learners = min(LEARNERS, config.embedding_dim) if divides else 1
    reason = f"{counts.images:,} images of {counts.classes:,} classes, {batches:,} batches in all"
    return replace(config, num_learners=learners), {"num_learners": reason}


CHOSEN = {"model": ("num_learners",), "train": ("epochs", "batch_size", "images_per_class")}
"""The settings that these rules choose, by section."""


def with_choices_of(config: RunConfig, other: RunConfig) -> RunConfig:
    """The settings with 0 replaced by what ``other``, a run's, has."""
    sections = {
        section: replace(
            getattr(config, section),
            **{n: getattr(getattr(other, section), n) for n in names if not getattr(getattr(config, section), n)},
        )
        for section, names in CHOSEN.items()
    }
    return replace(config, **sections)


def fit(config: RunConfig, labels: np.ndarray) -> tuple[RunConfig, dict[str, str]]:
    """As `fit_training`, of all settings of a run."""
    train, reasons = fit_training(config.train, labels)
    model, more = fit_model(config.model, train, labels)
    return replace(config, model=model, train=train), {**more, **reasons}
