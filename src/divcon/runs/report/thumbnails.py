"""Thumbnails inside the page, and text where an image has none."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from divcon.data.labeled_set import LabeledSet, row_name
from divcon.runs.report.html import Html, element
from divcon.runtime.context import DEFAULT, Context

_SIDE = 96
"""Pixels of the longer side of a thumbnail, at most."""


class Thumbnails:
    """Tags for images of a set. Each is decoded once, when this is created; vectors, and images that do not decode, are
    text."""

    def __init__(self, images: LabeledSet, indices: Sequence[int], *, context: Context = DEFAULT) -> None:
        self._images = images
        self._made: dict[int, bytes | str] = {}
        wanted = np.unique(np.asarray(indices, np.int64))
        if images.vectors is None and len(wanted):
            from divcon.data.loading import each_image

            thumbnails = each_image(images.subset(wanted), functools.partial(_webp, side=_SIDE), context=context)
            self._made = dict(zip(wanted.tolist(), thumbnails, strict=True))

    @property
    def has_pictures(self) -> bool:
        return self._images.vectors is None

    def tag(self, index: int, prefix: str = "") -> Html:
        """The image, with its class (after ``prefix``) as alternative text; "does not decode" where it does not; for a
        vector, the path."""
        path, thumbnail = self._images.path(index), self._made.get(index)
        about = f"{prefix}{self._images.label_name(index)}"
        if isinstance(thumbnail, bytes):
            source = f"data:image/webp;base64,{base64.b64encode(thumbnail).decode('ascii')}"
            return element("img", src=source, alt=about, title=path)
        if isinstance(thumbnail, str):
            return element("span", "does not decode", class_="none", title=thumbnail)
        return element("code", path)


def as_tag(image: Image.Image, about: str) -> Html:
    """An image as it is, with ``about`` as its alternative text."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85, method=2)
    source = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return element("img", src=source, alt=about, class_="augmented")


def image_words(images: LabeledSet, index: int) -> str:
    """The name of an image's file, or the row of a vector that has no path."""
    path = images.path(index)
    return path if path == row_name(int(images.rows[index])) else path.replace("\\", "/").rsplit("/", 1)[-1]


def _webp(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=78, method=2)
    return file.getvalue()


def sampled(indices: np.ndarray, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """At most ``count`` of the (n,) indices, drawn by the seed, ascending."""
    if len(indices) <= count:
        return indices
    return np.sort(np.random.default_rng(seed).choice(indices, count, replace=False))
