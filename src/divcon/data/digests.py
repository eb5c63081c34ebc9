"""Hashes of what a set or a benchmark holds, without a Python string an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

if TYPE_CHECKING:
    from divcon.data.image_set import ImageSet

pc: Any = pyarrow.compute
"""Any, because its functions are made at import and type checkers see none."""

_joined = pc.binary_join_element_wise
_TAB, _NEWLINE = (pa.scalar(text, pa.large_string()) for text in "\t\n")
_AT_A_TIME = 1 << 16


def digest_of(images: ImageSet) -> str:
    """16 hexadecimal digits of every image's path and label, and of its vector if it has one, in order."""
    digest = hashlib.sha256()
    for paths, labels in _columns(images):
        digest.update(_text(_joined(paths, labels, _TAB)))
    if images.vectors is not None:
        digest.update(str(images.vectors.shape).encode())
        for start in range(0, len(images), 8192):
            digest.update(np.ascontiguousarray(images.vectors[start : start + 8192]).data)
    return digest.hexdigest()[:16]


def digest_of_parts(protocol: str, query: ImageSet, gallery: ImageSet) -> str:
    """16 hexadecimal digits of the protocol, and of the labels and paths of each part, in whatever order."""
    digest = hashlib.sha256(protocol.encode())
    lines = None
    for role, images in (("query", query), ("gallery", gallery)):
        if lines is None or images is not query:
            lines = pa.chunked_array(
                [_joined(labels, paths, _TAB) for paths, labels in _columns(images)],
                pa.large_string(),
            ).combine_chunks()
            # By bytes, which is the order of the characters too.
            order = pc.array_sort_indices(lines)
        digest.update(f"\n{role}\n".encode())
        for start in range(0, len(lines), _AT_A_TIME):
            text = _text(lines.take(order[start : start + _AT_A_TIME]))
            digest.update(text if start + _AT_A_TIME < len(lines) else text[:-1])
    return digest.hexdigest()[:16]


def _columns(images: ImageSet) -> Iterator[tuple[pa.Array, pa.Array]]:
    """The paths and the names of the labels, some thousand at a time."""
    names = pa.array(images.label_names, pa.large_string())
    for start in range(0, len(images), _AT_A_TIME):
        paths = pc.fill_null(images.paths[start : start + _AT_A_TIME].cast(pa.large_string()), "None")
        yield paths, names.take(pa.array(images.labels[start : start + _AT_A_TIME]))


def _text(lines: pa.Array) -> memoryview:
    """The bytes of the lines in one piece, each with the end of a line."""
    ended = _joined(lines, pa.scalar("", pa.large_string()), _NEWLINE)
    _, offsets, data = ended.buffers()
    return memoryview(data)[: np.frombuffer(offsets, np.int64)[len(ended)]] if len(ended) else memoryview(b"")
