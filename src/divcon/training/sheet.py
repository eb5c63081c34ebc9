"""A sheet of what the network sees: training images as they are embedded, and as they are augmented."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from divcon.config.settings import TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import Decoded
from divcon.errors import DataError, DivconError
from divcon.models import EmbeddingModel
from divcon.training.loader import training_transform

_GAP = 4
"""Pixels between two images; twice as many after the first column."""
_SIDE = 160
"""Pixels of an image's longer side on the sheet, at most."""


def augmented_sheet(
    model: EmbeddingModel,
    images: LabeledSet,
    config: TrainConfig,
    *,
    rows: int = 6,
    draws: int = 7,
    gaps: str | None = "white",
) -> Image.Image:
    """A row for each of some training images, of different classes as far as there are any: first the image as it is
    embedded, then ``draws`` of its augmentation, as training may draw them.

    Args:
        gaps: the color between the images; None: transparent.

    Raises:
        ConfigError: an augmentation or a transform of your own cannot be created, or fails.
        DataError: there are no images.
        ImageError: one does not decode.
    """
    if images.vectors is not None or not len(images):
        what = "no images" if images.vectors is None else "vectors, which are not augmented"
        raise DataError(f"{images.source or 'the data'}: holds {what}")
    decoded = Decoded(images, model.eval_transform, training_transform(model, images, config), config.seed)
    chosen = _chosen(images, rows)
    lines = [
        [_of(decoded, index), *(_of(decoded, (index, 0, row * draws + draw)) for draw in range(draws))]
        for row, index in enumerate(chosen.tolist())
    ]
    width, height = lines[0][0].size
    across = (draws + 1) * (width + _GAP) + _GAP
    size = (across, len(lines) * (height + _GAP) - _GAP)
    sheet = Image.new("RGBA", size) if gaps is None else Image.new("RGB", size, gaps)
    for row, line in enumerate(lines):
        for column, image in enumerate(line):
            sheet.paste(image, (column * (width + _GAP) + (_GAP if column else 0), row * (height + _GAP)))
    return sheet


def _chosen(images: LabeledSet, rows: int) -> np.ndarray:
    """Positions of the first images of classes that are spread over all; of few classes, several of each."""
    firsts = np.unique(images.labels, return_index=True)[1]
    pool = firsts if len(firsts) >= rows else np.arange(len(images))
    return np.unique(pool[np.linspace(0, len(pool) - 1, min(rows, len(pool))).astype(np.int64)])


def _of(decoded: Decoded, key: int | tuple[int, int, int]) -> Image.Image:
    item = decoded[key]
    if isinstance(item, DivconError):
        raise item
    pixels: torch.Tensor = item[0]
    shown = pixels if len(pixels) == 3 else pixels[: 3 if len(pixels) > 3 else 1].expand(3, -1, -1)
    image = Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((_SIDE, _SIDE))
    return image
