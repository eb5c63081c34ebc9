"""Small pictures inside the page, and words where there is no picture."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from divcon.data.labeled_set import LabeledSet, row_name
from divcon.data.loading import each_image
from divcon.runs.report.html import Html, element
from divcon.runtime.context import DEFAULT, Context

_SIDE = 96
"""Pixels of the longer side of a picture, at most."""


class Thumbnails:
    """Images of a set as tags, decoded once each, all together; vectors, and what does not decode, as words."""

    def __init__(self, images: LabeledSet, indices: Sequence[int], *, context: Context = DEFAULT) -> None:
        self._images = images
        self._made: dict[int, bytes | str] = {}
        wanted = np.unique(np.asarray(indices, np.int64))
        if images.vectors is None and len(wanted):
            made = each_image(images.subset(wanted), functools.partial(_webp, side=_SIDE), context=context)
            self._made = dict(zip(wanted.tolist(), made, strict=True))

    @property
    def has_pictures(self) -> bool:
        return self._images.vectors is None

    def tag(self, index: int, said: str = "") -> Html:
        """The picture of an image, its class (after ``said``) as the text that stands for it; a place without a picture
        where it does not decode. Of a vector, the path."""
        path, made = self._images.path(index), self._made.get(index)
        about = f"{said}{self._images.label_name(index)}"
        if isinstance(made, bytes):
            source = f"data:image/webp;base64,{base64.b64encode(made).decode('ascii')}"
            return element("img", src=source, alt=about, title=path)
        if isinstance(made, str):
            return element("span", "does not decode", class_="none", title=made)
        return element("code", path)


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
