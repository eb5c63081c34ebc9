"""Items of the index as the API gives them, and their pictures."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from divcon.data.decode import decode
from divcon.data.labeled_set import LabeledSet
from divcon.errors import DivconError, ImageError
from divcon.search import Index
from divcon.serve.limits import Limits, Refusal
from divcon.serve.of_run import OfRun


class EncodedImages:
    """Which items of an index are images in a table of the run's data; read at the first question, and again where the
    index has changed."""

    def __init__(self, index: Index, run: Path | None) -> None:
        self._index = index
        self._run = run
        self._lock = threading.Lock()
        self._found: tuple[str, dict[int, tuple[LabeledSet, int]]] | None = None

    def get(self, item: int) -> bytes | None:
        """The encoded image of an item; None where it is none of these."""
        if self._run is None:
            return None
        with self._lock:
            version = self._index.store.version()
            if self._found is None or self._found[0] != version:
                self._found = (version, _by_item(OfRun.of(self._run, self._index)))
        place = self._found[1].get(item)
        if place is None:
            return None
        images, row = place
        assert images.encoded is not None, "only such are kept"
        return images.encoded[int(images.rows[row])].as_py()


def _by_item(of_run: OfRun) -> dict[int, tuple[LabeledSet, int]]:
    return {
        int(item): (images, row)
        for name, images in of_run.sets.items()
        if images.encoded is not None
        for row, item in enumerate(of_run.parts[name])
        if item >= 0
    }


SIZES = (96, 192, 384, 768)
"""Pixels of the longer side of a picture; the next larger is given."""
_KEPT_BYTES = 64 << 20
"""Of pictures that are kept in memory."""
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Row:
    """An item, and what its picture is made of."""

    id: int
    path: str
    label: str | None
    box: tuple[int, int, int, int] | None
    content: str
    metadata: dict[str, Any]

    def to_dict(self, score: float | None = None) -> dict[str, Any]:
        """For JSON."""
        scored = {} if score is None else {"score": round(score, 6)}
        told = {"id": self.id, **scored, "label": self.label, "path": self.path, "metadata": self.metadata}
        return told | {"box": self.box, "image": f"/items/{self.id}/image"}


def rows_of(index: Index, ids: Sequence[int] | np.ndarray) -> dict[int, Row]:
    """Those items that are there, by id."""
    columns = index.about.columns
    wanted = np.array([i for i in ids if 0 <= i < 2**63], np.int64)
    found = {}
    for row in index.store.rows(wanted).to_pylist() if len(wanted) else []:
        box = tuple(map(int, row["box"].split(","))) if row["box"] else None
        own = {column.name: _in_json(row.get(column.stored)) for column in columns}
        found[row["id"]] = Row(row["id"], row["path"], row["label"], box, row["content"], own)  # type: ignore[arg-type]
    return found


def _in_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def row_of(index: Index, item: int) -> Row:
    """The item of an id.

    Raises:
        Refusal: there is none.
    """
    found = rows_of(index, [item]).get(item)
    if found is None:
        raise Refusal(404, f"there is no item {item}")
    return found


def check_pixels(content: bytes | Path, most: int, *, known_only: bool = False) -> None:
    """Look at an image's header, before anything is decoded.

    Args:
        most: pixels.
        known_only: refuse formats that are no photographs' or pictures'.

    Raises:
        Refusal: it has more pixels.
        ImageError: what it looks like instead.
    """
    formats = _FORMATS if known_only else None
    size = None
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=formats) as image:
            size = image.size
    except Image.DecompressionBombError as error:
        raise Refusal(413, f"the image has too many pixels ({error}); send it smaller") from None
    except Exception:
        # What a broken header brings about is its reader's secret; decoding says what the file is instead.
        if not (known_only and _opens(content)):
            decode(content)
        raise ImageError("this image is of a format that is not taken; save it as PNG, JPEG or WebP") from None
    if size[0] * size[1] > most:
        raise Refusal(
            413,
            f"the image has {size[0]:,} x {size[1]:,} pixels, and {most / 1e6:g} million are taken; send it smaller",
        )


def _opens(content: bytes | Path) -> bool:
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content):
            return True
    except Exception:
        return False


class Pictures:
    """Small pictures of items: those of the index alone, decoded and written anew, the last ones kept."""

    def __init__(self, limits: Limits, encoded: EncodedImages) -> None:
        self._limits = limits
        self._encoded = encoded
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, row: Row, size: int) -> bytes:
        """A WebP of the item's image, its longer side ``size`` pixels or the next larger of `SIZES`.

        Raises:
            Refusal: its image is neither a file nor in the run's data, is gone, or does not decode.
        """
        side = next((s for s in SIZES if s >= size), SIZES[-1])
        with self._lock:
            if (row.content, side) in self._kept:
                self._kept.move_to_end((row.content, side))
                return self._kept[row.content, side]
        made = self._made(row, side)
        with self._lock:
            if (row.content, side) not in self._kept:
                self._kept[row.content, side] = made
                self._bytes += len(made)
            while self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made

    def _made(self, row: Row, side: int) -> bytes:
        path = Path(row.path)
        source = path if path.is_absolute() and path.is_file() else self._encoded.get(row.id)
        if source is None:
            raise Refusal(404, f"item {row.id}: its image is not (or no more) on this machine")
        try:
            check_pixels(source, self._limits.pixels)
            image = decode(source, row.box)
        except (DivconError, OSError) as error:
            raise Refusal(404, f"item {row.id}: {error}") from None
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "WEBP", quality=82, method=2)
        return file.getvalue()
