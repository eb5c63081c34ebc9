"""Settings that are left at 0 or auto are chosen from the data: the same rules for 250 images and for 250,000.

- ``images_per_class``: 4; 2 where half of the classes have fewer than 4 images.
- ``batch_size``: 80; less only where there are too few classes to fill it.
- ``epochs``: as many as make `STEPS` batches, but `MIN_EPOCHS` at least and `MAX_EPOCHS` at most.
- ``num_learners``: 4 where the training is long enough for dividing to pay, `BATCHES_TO_DIVIDE` batches in all: one
  metric is better for as long as it still improves (docs/results.md). Else 1, as for fewer images than
  `IMAGES_PER_LEARNER` a learner, or fewer classes than two batches have.
- ``validation_fraction``: `VALIDATION` of the training classes; less where these would be more than
  `VALIDATION_IMAGES` images: what chooses an epoch among 10,000 images also does among more, and they teach instead.
- ``image_size``: 224. Where three quarters of the images are more than `LONG` times as tall as wide (or as wide as
  tall), as many pixels in the median image's shape, of at most 1:4, each side a multiple of `STRIDE`: 320 x 160 for
  images of 2:1. A backbone that is made for one size (a vision transformer, or one of your own) keeps the square, of
  the size that its name has, if it has one: 384 for ``vit_base_patch16_siglip_384``.
- ``fit``: crop, where the input is square and at most half of the images are more than `LONG` times as long as wide:
  a centre crop of the others loses less than half of each image. Else squash: on people of 2:1 and a square input
  pretrained features gave a Recall@1 of 30.2 with squash and 19.7 with crop.
- ``pixel_range``: full, unless images have more than 8 bits a channel. Then 0 and the highest number of the fewest bits
  (8, 10, 12, 14 or 16) that hold all their values; for fractions 0 and 1, or else the lowest and the highest value.

The shapes of the images are read from the heads of a few hundred files, and values of some that have more than 8 bits
(`divcon.data.shapes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from divcon.config.image_size import height_width, size_in_words
from divcon.config.settings import IMAGE_SIZE, DataConfig, ModelConfig, RunConfig, TrainConfig

STEPS = 10_000
MIN_EPOCHS, MAX_EPOCHS = 20, 60
BATCH_SIZE, IMAGES_PER_CLASS = 80, 4
LEARNERS, IMAGES_PER_LEARNER, BATCHES_TO_DIVIDE = 4, 500, 3_000
VALIDATION, VALIDATION_IMAGES = 0.1, 10_000
LONG, LONGEST, STRIDE = 1.6, 4.0, 32
"""Images up to 1.6 are common photographs, 4:3 and 3:2; 16:9 and people, 2:1, are beyond."""
BITS = (8, 10, 12, 14, 16)


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


def fit_data(config: DataConfig, images: int) -> tuple[DataConfig, Mapping[str, str]]:
    """As `fit_training`, of the share of the classes to hold out, where there is one to choose.

    Args:
        images: number of training images, with those to hold out.
    """
    if config.validation_fraction:
        return config, {}
    share = round(min(VALIDATION, VALIDATION_IMAGES / max(1, images)), 4)
    reasons = {"validation_fraction": f"about {share * images:,.0f} of {images:,} images"}
    return replace(config, validation_fraction=share), reasons


@dataclass(frozen=True)
class ImageFacts:
    """What the rules look at in images."""

    shapes: np.ndarray
    """(n, 2), heights and widths; of none, the size is square and the fit is crop."""
    extremes: tuple[float, float] | None = None
    """The lowest and the highest value of images with more than 8 bits a channel; None: there are none."""


def fit_images(
    config: ModelConfig, images: ImageFacts, *, any_size: bool = False, own_size: int | None = None
) -> tuple[ModelConfig, Mapping[str, str]]:
    """As `fit_training`, of ``image_size``, ``fit`` and ``pixel_range``.

    Args:
        any_size: whether the backbone takes images of any height and width.
        own_size: height and width that the backbone is made for, by its name.
    """
    shapes, reasons = images.shapes, {}
    config, of_values = fit_pixel_range(config, images.extremes)
    ratios = shapes[:, 0] / shapes[:, 1] if len(shapes) else np.ones(1)
    median = float(np.median(ratios))
    size = config.image_size
    if not size:
        low, high = np.quantile(ratios, [0.25, 0.75])
        long = low > LONG or high < 1 / LONG
        size = _in_shape(median) if long and any_size else own_size or IMAGE_SIZE
        if own_size not in (None, IMAGE_SIZE):
            reasons["image_size"] = "the backbone was trained on images of this size"
        elif long:
            square = "" if any_size else "; the backbone is made for square images"
            reasons["image_size"] = f"{_shape_in_words(median, len(shapes))}{square}"
    fit = config.fit
    if fit == "auto":
        height, width = height_width(size)
        longer = float(np.median(np.maximum(ratios, 1 / ratios)))
        fit = "squash" if height != width or longer > LONG else "crop"
        if height != width:
            reasons["fit"] = f"the input is {size_in_words(size)}"
        elif len(shapes):
            reasons["fit"] = f"the longer side of the median image is {longer:.3g} times the shorter"
    return replace(config, image_size=size, fit=fit), {**reasons, **of_values}


def fit_pixel_range(config: ModelConfig, extremes: tuple[float, float] | None) -> tuple[ModelConfig, Mapping[str, str]]:
    """As `fit_training`, of ``pixel_range``.

    Args:
        extremes: the lowest and the highest value of training images with more than 8 bits a channel; None: there are
            none.
    """
    if config.pixel_range != "auto":
        return config, {}
    if extremes is None:
        return replace(config, pixel_range="full"), {}
    low, high = extremes
    reason = f"images of more than 8 bits, with values from {low:.6g} to {high:.6g}"
    bits = next((bits for bits in BITS if high < 2**bits), None)
    if low < 0 or bits is None:
        chosen = (low, high if high > low else low + 1)
    elif high <= 1 and not (low == high == 0):
        chosen = (0.0, 1.0)
    else:
        chosen = (0.0, 2.0**bits - 1)
    return replace(config, pixel_range=chosen), {"pixel_range": reason}


def _in_shape(ratio: float) -> tuple[int, int]:
    """About `IMAGE_SIZE` squared pixels in a shape, height / width."""
    ratio = float(np.clip(ratio, 1 / LONGEST, LONGEST))
    height, width = (max(1, round(IMAGE_SIZE * side / STRIDE)) * STRIDE for side in (ratio**0.5, ratio**-0.5))
    return height, width


def _shape_in_words(ratio: float, count: int) -> str:
    """What the median image is like."""
    longer, words = (ratio, "as tall as wide") if ratio >= 1 else (1 / ratio, "as wide as tall")
    return f"the median of {count:,} images is {longer:.3g} times {words}"


CHOSEN = {
    "model": ("num_learners", "image_size", "fit", "pixel_range"),
    "train": ("epochs", "batch_size", "images_per_class"),
    "data": ("validation_fraction",),
}
"""The settings that these rules choose, by section."""


def with_choices_of(config: RunConfig, other: RunConfig) -> RunConfig:
    """The settings with 0 and auto replaced by what ``other``, a run's, has."""
    sections = {
        section: replace(
            getattr(config, section),
            **{n: getattr(getattr(other, section), n) for n in names if getattr(getattr(config, section), n) in OPEN},
        )
        for section, names in CHOSEN.items()
    }
    return replace(config, **sections)


OPEN = (0, "auto")
"""What a setting holds that is to be chosen."""


def fit(
    config: RunConfig,
    labels: np.ndarray,
    images: ImageFacts | None = None,
    *,
    any_size: bool = False,
    own_size: int | None = None,
) -> tuple[RunConfig, dict[str, str]]:
    """As `fit_training`, of all settings of a run; without ``images``, for vectors, those of images stay open."""
    train, reasons = fit_training(config.train, labels)
    model, more = fit_model(config.model, train, labels)
    of_images: Mapping[str, str] = {}
    if images is not None:
        model, of_images = fit_images(model, images, any_size=any_size, own_size=own_size)
    return replace(config, model=model, train=train), {**more, **of_images, **reasons}
