"""Images that are there twice: pixel for pixel, or nearly so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from divcon.data.dataset import each_image
from divcon.data.image_set import ImageSet

HASH_BITS = 256
MAX_BITS = 16
"""Near copies differ in at most this many bits of the hash,"""
MAX_DIFFERENCE = 4.0
"""and their thumbnails by at most this much, of 255, on average over places and colours.

Flat drawings are the hardest there is, and near pairs of the bundled icons are nearly all of one class; of parts of
photographs most are found again after JPEG or at half the size, and few where they are cropped or brighter (see
``tests/data/test_check.py``): near copies that are missed are many more than pairs that are none."""

_SIDE, _LOW, _THUMB = 64, 16, 16
_FLAT = 2.0
_QUERIES = 256
_PAIRS = 16384


@dataclass(frozen=True)
class Print:
    """What is kept of an image to compare it by."""

    exact: bytes
    """16 bytes, the same where size and RGB pixels are the same."""
    bits: np.ndarray
    """(32,) uint8, the 256 bits of `perceptual_hash`."""
    thumb: np.ndarray
    """(768,) uint8, the image at 16 x 16."""


def print_of(image: Image.Image) -> Print:
    """The prints of an RGB image."""
    digest = hashlib.blake2b(np.array(image.size, np.int64).tobytes(), digest_size=16)
    digest.update(image.tobytes())
    small = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    thumb = np.asarray(small.resize((_THUMB, _THUMB), Image.Resampling.BOX)).reshape(-1)
    return Print(digest.digest(), perceptual_hash(small), thumb)


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """(32,) uint8: of the image's grey values at 64 x 64, which of the 16 x 16 lowest frequencies are above their
    median.

    The hash that is known as pHash, with 256 bits in place of 64, which for flat drawings are too few. The package
    imagehash has it too, and would bring PyWavelets for the sake of these lines.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float32)
    low = np.asarray(dctn(grey, norm="ortho"))[:_LOW, :_LOW].reshape(-1)
    return np.packbits(low > np.median(low))


def prints(images: ImageSet, *, workers: int = 0) -> Iterator[Print | str]:
    """Decode every image once, in order: its print, or what is wrong with it."""
    return each_image(images, print_of, workers=workers)


def equal_groups(keys: Sequence[bytes]) -> list[np.ndarray]:
    """The places at which the same key stands twice or more: sorted int64 arrays, ordered by their first place."""
    places: dict[bytes, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    return [np.array(group) for group in places.values() if len(group) > 1]


def near_groups(
    bits: np.ndarray, thumbs: np.ndarray, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[np.ndarray]:
    """Images that are near copies, in groups: sorted int64 arrays, ordered by their first place.

    Two images are near where at most `MAX_BITS` of their hashes differ and their thumbnails by at most
    `MAX_DIFFERENCE` on average; images are in a group where a chain of near ones joins them. Images of one colour are
    in none: their hashes are noise. Every pair is compared, a block of rows at a time.

    Args:
        bits: (N, 32) uint8, of `perceptual_hash`.
        thumbs: (N, 768) uint8.
    """
    n = len(bits)
    plain = thumbs.std(axis=1) < _FLAT if n else np.zeros(0, bool)
    kept = np.flatnonzero(~plain)
    index = faiss.IndexBinaryFlat(HASH_BITS)
    index.add(np.ascontiguousarray(bits[kept]))  # type: ignore[call-arg]
    group = np.arange(len(kept))
    for start in range(0, len(kept), _QUERIES):
        block = np.ascontiguousarray(bits[kept[start : start + _QUERIES]])
        limits, _, found = index.range_search(block, MAX_BITS + 1)  # type: ignore[call-arg]
        left = start + np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
        for pairs in range(0, len(left), _PAIRS):
            group = _joined(group, left[pairs : pairs + _PAIRS], found[pairs : pairs + _PAIRS], thumbs, kept)
        on_progress(min(start + _QUERIES, len(kept)), len(kept))
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    return [kept[members] for members in np.split(order, ends) if len(members) > 1]


def _joined(group: np.ndarray, left: np.ndarray, right: np.ndarray, thumbs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Each image's group, (N,) int64, named by its first member, after those pairs whose thumbnails are near."""
    # What is one group already is not compared again: a thousand copies are a thousand pairs, not a million.
    new = (right > left) & (group[left] != group[right])
    left, right = left[new], right[new]
    difference = thumbs[kept[left]].astype(np.int16) - thumbs[kept[right]]
    near = np.abs(difference).mean(axis=1) <= MAX_DIFFERENCE
    if not near.any():
        return group
    n = len(group)
    edges = np.concatenate([[left[near], right[near]], [np.arange(n), group]], axis=1)
    component = connected_components(coo_matrix((np.ones(edges.shape[1], bool), edges), (n, n)), directed=False)[1]
    return np.unique(component, return_index=True)[1][component]
