"""What a map shows: items with their layout, labels, colours and pictures."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError
from divcon.evaluation.layout import Layout
from divcon.runtime.context import Context
from divcon.search import Index
from divcon.serve.items import EncodedImages, Pictures, rows_of
from divcon.serve.limits import Limits, Refusal
from divcon.serve.run_data import RunData

FEWEST = 3
"""Items of a map."""
OF_INDEX = ("label", "learner", "split")
"""What every index's items can be coloured by; its columns come to these."""

Thumbnails = Callable[[Sequence[int]], list[bytes | None]]
"""The WebP of each of these items, its longer side 96 pixels; None: it has no picture, or it does not decode."""


@dataclass(frozen=True, eq=False)
class MapItems:
    """N items of a map."""

    labels: list[str | None]
    paths: list[str]
    values: list[str | int | float | None]
    """What they are coloured by; None: missing."""
    colour: str
    """The name of that."""
    thumbnails: Thumbnails | None
    """None: the items are vectors."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of the items."""

    title: str
    layout: Layout


def check_count(count: int, what: str) -> None:
    """Check that there is something to draw.

    Raises:
        DataError: there are fewer than three items.
    """
    if count < FEWEST:
        raise DataError(f"{what}: has {count} items; a map needs at least {FEWEST}")


def check_colour(index: Index, colour: str) -> None:
    """Check, before the layout is computed, that items of an index can be coloured by ``colour``.

    Raises:
        ConfigError: there is no such column.
    """
    columns = [column.name for column in index.about.user_columns if column.type != "json"]
    if colour not in (*OF_INDEX, *columns):
        known = ", ".join((*OF_INDEX, *columns))
        raise ConfigError(f"`colour` {colour}: the index has no such column; pass one of {known}", field="colour")


def items_of_index(index: Index, ids: np.ndarray, colour: str, run: Path | None) -> MapItems:
    """The items of an index, in the order of ``ids``.

    Raises:
        ConfigError: no item has a value to colour by.
    """
    rows = rows_of(index, ids)
    labels = [rows[i].label if i in rows else None for i in ids.tolist()]
    values: list[Any] = list(labels)
    if colour in ("learner", "split") and index.about.column(colour) is None:
        data = None if run is None else RunData.read(run, index)
        known: dict[int, Any] = {}
        if data is not None:
            known = data.learner_by_id() if colour == "learner" else data.split_by_id()
        if not known:
            why = "the run is not named or not known" if data is None else data.problem
            why = why or "no item is an image of a division among several learners"
            raise ConfigError(f"`colour` {colour}: is not known ({why}); colour by label", field="colour")
        names = {-1: "left out"} if colour == "learner" else {}
        values = [known.get(i) for i in ids.tolist()]
        values = [names.get(value, value) if isinstance(value, int) else value for value in values]
    elif colour != "label":
        values = [rows[i].metadata.get(colour) if i in rows else None for i in ids.tolist()]
        values = [value if _is_plain(value) else str(value) for value in values]
    pictures = Pictures(Limits(), EncodedImages(index, run))

    def thumbnails(wanted: Sequence[int]) -> list[bytes | None]:
        return [_picture(pictures, rows.get(int(ids[i]))) for i in wanted]

    paths = [rows[i].path if i in rows else "" for i in ids.tolist()]
    return MapItems(labels, paths, values, colour, thumbnails if index.about.vector_dim is None else None)


def _is_plain(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _picture(pictures: Pictures, row: Any) -> bytes | None:
    try:
        return None if row is None else pictures.get(row, 96)
    except Refusal:
        return None


def items_of_set(images: LabeledSet, colour: str, context: Context) -> MapItems:
    """The images or vectors of a set.

    Raises:
        ConfigError: they can only be coloured by label.
    """
    if colour != "label":
        raise ConfigError(
            f"`colour` {colour}: images without an index are coloured by label; index them first (divcon index)",
            field="colour",
        )
    labels: list[str | None] = [images.label_name(i) for i in range(len(images))]

    def thumbnails(wanted: Sequence[int]) -> list[bytes | None]:
        chosen = images.subset(np.asarray(wanted, np.int64))
        from divcon.data.loading import each_image

        made = each_image(chosen, functools.partial(_webp, side=96), context=context)
        return [one if isinstance(one, bytes) else None for one in made]

    paths = [images.path(i) for i in range(len(images))]
    return MapItems(labels, paths, list(labels), colour, thumbnails if images.vectors is None else None)


def _webp(image: Image.Image, side: int) -> bytes:
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=82, method=2)
    return file.getvalue()
