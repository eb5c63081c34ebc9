"""The shapes of a set's images, from the heads of a few hundred files, and their values where these have many bits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from divcon.config.from_data import ImageFacts
from divcon.config.settings import ModelConfig
from divcon.data.channels import channels_last
from divcon.data.decode import deep_values, lies_on_its_side
from divcon.data.encoded import RowGroups
from divcon.data.labeled_set import LabeledSet

MOST = 256
"""Images whose shapes are read at most."""
MOST_VALUES = 64
"""Images whose values are read at most."""
_RUN = 16
"""Images in a row that are read of a parquet's row groups, each of which is read as a whole."""


def image_shapes(images: LabeledSet, most: int = MOST) -> np.ndarray:
    """Heights and widths of up to ``most`` images, evenly over the set: upright, and of those with a box the box's.

    Only the head of each file is decoded. Images that cannot be read are left out; whoever loads them says so.

    Returns:
        (n, 2) int64; empty for vectors.
    """
    if images.vectors is not None:
        return np.empty((0, 2), np.int64)
    shapes = [_shape(images, int(index)) for index in _spread(images, most)]
    return np.array([shape for shape in shapes if shape is not None], np.int64).reshape(-1, 2)


def image_extremes(images: LabeledSet, most: int = MOST_VALUES) -> tuple[float, float] | None:
    """The lowest and the highest value of images with more than 8 bits a channel, among up to ``most`` images evenly
    over the set; None if none of these has.
    """
    if images.vectors is not None:
        return None
    lows, highs = [], []
    for index in _spread(images, most):
        try:
            values = deep_values(images.content(int(index)))
        except Exception:  # as in `image_shapes`
            continue
        finite = None if values is None else values[np.isfinite(values)]
        if finite is not None and finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    return (min(lows), max(highs)) if lows else None


def facts_to_choose_by(config: ModelConfig, images: LabeledSet) -> ImageFacts | None:
    """What `divcon.config.from_data` chooses by; None where it has nothing to choose, or no images."""
    of_shapes, of_values = config.image_size == 0 or config.fit == "auto", config.pixel_range == "auto"
    if images.vectors is not None or not (of_shapes or of_values):
        return None
    shapes = image_shapes(images) if of_shapes else np.empty((0, 2), np.int64)
    return ImageFacts(shapes, image_extremes(images) if of_values else None)


def _spread(images: LabeledSet, most: int) -> np.ndarray:
    """The indices to read."""
    count = len(images)
    if count <= most:
        return np.arange(count)
    if isinstance(images.encoded, RowGroups):
        starts = np.linspace(0, count - _RUN, max(1, most // _RUN)).astype(np.int64)
        return np.unique(starts[:, None] + np.arange(_RUN))
    return np.unique(np.linspace(0, count - 1, most).astype(np.int64))


def _npy_shape(images: LabeledSet, index: int) -> tuple[int, int] | None:
    """Height and width of an image in a ``.npy`` file without a box; None of other files."""
    if images.encoded is not None or not images.path(index).lower().endswith(".npy"):
        return None
    if images.boxes is not None and images.boxes[index][0] >= 0:
        left, top, right, bottom = images.boxes[index].tolist()
        return bottom - top, right - left
    file = images.file(index)
    if isinstance(file, str):
        array = np.load(io.BytesIO(images.content(index)), allow_pickle=False)
    else:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    height, width = channels_last(array).shape[:2]
    return height, width


def _shape(images: LabeledSet, index: int) -> tuple[int, int] | None:
    try:
        if (shape := _npy_shape(images, index)) is not None:
            return shape
        at = None if images.encoded is not None else images.file(index)
        file = at if isinstance(at, Path) else io.BytesIO(images.content(index))
        with Image.open(file) as image:
            (width, height), turned = image.size, lies_on_its_side(image)
    except Exception:  # broken bytes raise whatever a format's reader did not expect; decoding names the image
        return None
    if images.boxes is not None and images.boxes[index][0] >= 0:
        left, top, right, bottom = images.boxes[index].tolist()
        width, height = right - left, bottom - top
    height, width = (width, height) if turned else (height, width)
    return (height, width) if min(width, height) > 0 else None
