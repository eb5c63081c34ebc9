"""Items of the index as the API returns them, and their thumbnails."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from divcon.data.decode import decode, image_formats
from divcon.data.labeled_set import LabeledSet
from divcon.errors import DivconError, ImageError
from divcon.runtime.copies import read_file
from divcon.runtime.places import is_url
from divcon.search import Index
from divcon.search.columns import json_value
from divcon.search.filters import Condition
from divcon.search.index import metadata_in
from divcon.serve.limits import Limits, Refusal, Threads
from divcon.serve.page_files import is_unchanged
from divcon.serve.run_data import RunData


class Catalogue:
    """The ids and labels of all items, read once for each version of the index, and mixed orders of them."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._read: tuple[str, np.ndarray, np.ndarray, tuple[str, ...]] | None = None
        self._mixed: OrderedDict[tuple[str, int, str], np.ndarray] = OrderedDict()

    def labels(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """(N,) int64 ids, ascending; (N,) int64 the label of each, -1 for none; and the labels."""
        with self._lock:
            return self._labels(self._index.store.version())

    def _labels(self, version: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        if self._read is None or self._read[0] != version:
            ids, codes, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)], dict[str, int]()
            for block in self._index.store.read_columns(["id", "label"]):
                coded = block["label"].combine_chunks().dictionary_encode()
                coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
                known = [places.setdefault(name, len(places)) for name in coded.dictionary.to_pylist()]
                own = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
                ids.append(block["id"].to_numpy())
                codes.append(np.array([*known, -1], np.int64)[own])
            all_ids, all_codes = np.concatenate(ids), np.concatenate(codes)
            order = np.argsort(all_ids)
            self._read = (version, all_ids[order], all_codes[order], tuple(places))
        return self._read[1:]

    def mixed(self, seed: int, conditions: Sequence[Condition] = ()) -> np.ndarray:
        """(n,) int64 ids of the items that fulfil the conditions, in an order that shows the whole index early: one
        item of each label, then a second of each, and so on; without labels, at random. For the same seed an item that
        is added moves no other to another place among the rest."""
        version = self._index.store.version()
        key = (version, seed, repr(tuple(conditions)))
        with self._lock:
            if key in self._mixed:
                self._mixed.move_to_end(key)
                return self._mixed[key]
        wanted = self._index.store.ids(conditions) if conditions else None
        with self._lock:
            ids, codes, _ = self._labels(version)
            if wanted is not None:
                there = np.isin(ids, wanted)
                ids, codes = ids[there], codes[there]
            self._mixed[key] = _in_rotation(ids, codes, seed)
            while len(self._mixed) > _ORDERS:
                self._mixed.popitem(last=False)
            return self._mixed[key]


_ORDERS = 4
"""Mixed orders that are kept."""


def _in_rotation(ids: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """The ids, (n,) int64, one of each code in turn, shuffled by a hash of id and seed."""
    # The finalizer of splitmix64 (Steele, Lea, Flood, 2014): each id's place is drawn from the id alone.
    drawn = ids.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    drawn = (drawn ^ (drawn >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    drawn = (drawn ^ (drawn >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    drawn ^= drawn >> np.uint64(31)
    by_code = np.lexsort((drawn, codes))
    starts = np.flatnonzero(np.diff(codes[by_code], prepend=-2))
    turn = np.empty(len(ids), np.int64)
    turn[by_code] = np.arange(len(ids)) - np.repeat(starts, np.diff(starts, append=len(ids)))
    return ids[np.lexsort((drawn, turn))]


def page_of(
    index: Index, catalogue: Catalogue, conditions: Sequence[Condition], offset: int, limit: int, sample: int | None
) -> dict[str, Any]:
    """A page of items, for JSON: ``total``, ``offset`` and ``items``.

    Args:
        sample: the seed of a mixed order (`Catalogue.mixed`); None: in order of their ids.
    """
    if sample is not None:
        ids = catalogue.mixed(sample, conditions)
    else:
        ids = index.store.ids(conditions) if conditions else catalogue.labels()[0]
    wanted = ids[offset : offset + limit].tolist()
    rows = rows_of(index, wanted)
    return {"total": len(ids), "offset": offset, "items": [rows[i].to_dict() for i in wanted if i in rows]}


class EncodedImages:
    """The items of an index that are encoded images in a table of the run's data. The data is read at the first call,
    and again when the index has changed."""

    def __init__(self, index: Index, run: Path | None) -> None:
        self._index = index
        self._run = run
        self._lock = threading.Lock()
        self._images: tuple[str, dict[int, tuple[LabeledSet, int]]] | None = None

    def get(self, item: int) -> bytes | None:
        """The encoded image of an item; None if it is none of these."""
        if self._run is None:
            return None
        with self._lock:
            version = self._index.store.version()
            if self._images is None or self._images[0] != version:
                self._images = (version, _by_item(RunData.read(self._run, self._index)))
        place = self._images[1].get(item)
        if place is None:
            return None
        images, row = place
        assert images.encoded is not None, "_by_item skips others"
        return images.encoded[int(images.rows[row])].as_py()


def _by_item(run_data: RunData) -> dict[int, tuple[LabeledSet, int]]:
    return {
        int(item): (images, row)
        for name, images in run_data.sets.items()
        if images.encoded is not None
        for row, item in enumerate(run_data.splits[name])
        if item >= 0
    }


SIZES = (96, 192, 384, 768)
"""Pixels of the longer side of a thumbnail."""
_CACHE_BYTES = 64 << 20
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Row:
    """An item as it is stored."""

    id: int
    key: str
    """The digest that identifies it whatever its id."""
    path: str
    label: str | None
    box: tuple[int, int, int, int] | None
    content: str
    metadata: dict[str, Any]
    """The user's columns, as JSON has them."""

    def to_dict(self, score: float | None = None) -> dict[str, Any]:
        """For JSON."""
        scored = {} if score is None else {"score": round(score, 6)}
        own = {"id": self.id, **scored, "label": self.label, "path": self.path, "metadata": self.metadata}
        return own | {"box": self.box, "image": f"/items/{self.id}/image"}


def rows_of(index: Index, ids: Sequence[int] | np.ndarray) -> dict[int, Row]:
    """The items of these ids that are in the index, by id."""
    about = index.about
    rows = {}
    for row in index.store.rows(np.array([i for i in ids if 0 <= i < 2**63], np.int64)).to_pylist():
        box = tuple(map(int, row["box"].split(","))) if row["box"] else None
        own = {name: json_value(value) for name, value in metadata_in(row, about).items()}
        rows[row["id"]] = Row(row["id"], row["key"], row["path"], row["label"], box, row["content"], own)  # type: ignore[arg-type]
    return rows


def row_of(index: Index, item: int) -> Row:
    """The item of an id.

    Raises:
        Refusal: there is no such item.
    """
    row = rows_of(index, [item]).get(item)
    if row is None:
        raise Refusal(404, f"there is no item {item}")
    return row


def check_pixels(content: bytes | Path, most: int, *, known_only: bool = False) -> None:
    """Check an image by its header, before it is decoded.

    Args:
        most: the largest number of pixels.
        known_only: take common formats only.

    Raises:
        Refusal: it has more pixels.
        ImageError: it is no image, or has another format.
    """
    formats = _FORMATS if known_only else image_formats()
    size = None
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=formats) as image:
            size = image.size
    except Image.DecompressionBombError as error:
        raise Refusal(413, f"the image has too many pixels ({error}); send it smaller") from None
    except Exception:
        # A broken header may raise anything; decoding says what the file is instead.
        if not (known_only and _opens(content)):
            decode(content)
        raise ImageError("images of this format are not accepted; save it as PNG, JPEG or WebP") from None
    if size[0] * size[1] > most:
        raise Refusal(
            413,
            f"the image has {size[0]:,} x {size[1]:,} pixels; the limit is {most / 1e6:g} million, so send it smaller",
        )


def _opens(content: bytes | Path) -> bool:
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=image_formats()):
            return True
    except Exception:
        return False


class Pictures:
    """Thumbnails of items, with a cache. Only images of the index are read, and none is passed on as it is."""

    def __init__(self, limits: Limits, encoded: EncodedImages) -> None:
        self._limits = limits
        self._encoded = encoded
        self._cache: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, row: Row, size: int) -> bytes:
        """A WebP of the item's image, its longer side ``size`` pixels or the next larger of `SIZES`.

        Raises:
            Refusal: its image is neither a file here nor in the run's data, or does not decode.
        """
        side = next((s for s in SIZES if s >= size), SIZES[-1])
        with self._lock:
            if (row.content, side) in self._cache:
                self._cache.move_to_end((row.content, side))
                return self._cache[row.content, side]
        content = self._thumbnail(row, side)
        with self._lock:
            if (row.content, side) not in self._cache:
                self._cache[row.content, side] = content
                self._bytes += len(content)
            while self._bytes > _CACHE_BYTES:
                self._bytes -= len(self._cache.popitem(last=False)[1])
        return content

    def source(self, row: Row) -> Path | bytes | None:
        """The file of an item, or its encoded image, also of a file at an address; None if neither can be had."""
        if is_url(row.path):
            try:
                return read_file(row.path)
            except OSError:
                return None
        path = Path(row.path)
        return path if path.is_absolute() and path.is_file() else self._encoded.get(row.id)

    def _thumbnail(self, row: Row, side: int) -> bytes:
        source = self.source(row)
        if source is None:
            raise Refusal(404, f"item {row.id}: its image is not on this machine (any more)")
        try:
            check_pixels(source, self._limits.pixels)
            image = decode(source, row.box, pixel_range="own", any_channels=True)
        except (DivconError, OSError) as error:
            raise Refusal(404, f"item {row.id}: {error}") from None
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "WEBP", quality=82, method=2)
        return file.getvalue()


async def image_answer(
    request: Request, threads: Threads, index: Index, pictures: Pictures, item: int, size: int
) -> Response:
    """The thumbnail of an item, or status 304 if the client has it."""
    row = await threads.run(row_of, index, item)
    headers = {"Cache-Control": "private, max-age=300", "ETag": f'"{row.content}-{size}"'}
    if is_unchanged(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(await threads.run(pictures.get, row, size), media_type="image/webp", headers=headers)
