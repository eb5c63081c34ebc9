"""Digests: of names, contents and details of items, as text in a store and as numbers in arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from jaxtyping import UInt64

_BYTES = 16
_TEXT = 2 * _BYTES
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_VALUE = np.full(256, 255, np.uint8)
_VALUE[_HEX] = np.arange(16, dtype=np.uint8)


def key_of(text: str) -> str:
    """The digest of a text: 32 hexadecimal digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_BYTES).hexdigest()


def digests_of(contents: Iterable[bytes | memoryview]) -> pa.Array:
    """The digest of each of n contents, as n texts of 32 hexadecimal digits."""
    blake2b = hashlib.blake2b
    return _as_texts(b"".join([blake2b(content, digest_size=_BYTES).digest() for content in contents]))


def keys_of(texts: Iterable[str]) -> pa.Array:
    """`key_of` of each of n texts, as n texts."""
    return digests_of(text.encode("utf-8", "surrogateescape") for text in texts)


def _as_texts(digests: bytes) -> pa.Array:
    """Digests, one after the other, as an array of texts."""
    values = np.frombuffer(digests, np.uint8)
    digits = np.empty((len(values), 2), np.uint8)
    digits[:, 0], digits[:, 1] = _HEX[values >> 4], _HEX[values & 15]
    n = len(values) // _BYTES
    offsets = np.arange(n + 1, dtype=np.int32) * _TEXT
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(digits.reshape(-1)))


def numbers_of(digests: pa.Array | pa.ChunkedArray) -> UInt64[np.ndarray, "n 2"]:
    """Digests as (n, 2) uint64: equal texts give equal numbers. A text of another form stands for its own digest, and
    so does a null, as an empty text."""
    if isinstance(digests, pa.ChunkedArray):
        digests = pa.concat_arrays(digests.chunks) if digests.num_chunks else pa.array([], pa.string())
    n = len(digests)
    if digests.type != pa.string() or digests.null_count:
        digests = digests.cast(pa.string()).fill_null("")
    offsets, data = digests.buffers()[1:]
    if not n or offsets is None:
        return np.empty((0, 2), np.uint64)
    ends = np.frombuffer(offsets, np.int32)[digests.offset : digests.offset + n + 1]
    if (np.diff(ends) == _TEXT).all():
        digits = _VALUE[np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]]
        if not (digits == 255).any():
            return np.ascontiguousarray(digits[0::2] << 4 | digits[1::2]).view(np.uint64).reshape(n, 2)
    texts = digests.to_pylist()
    digests = pa.array([text if _is_digest(text) else key_of(text) for text in texts], pa.string())
    return numbers_of(digests)


def _is_digest(text: str) -> bool:
    return len(text) == _TEXT and set(text) <= set("0123456789abcdef")
