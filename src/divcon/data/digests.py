"""Hashes that identify what a model was trained on and tested on, wherever the files are.

Paths are counted from the root of the data, so that a hash depends neither on the folder that the data is in nor on
whether a table has relative or absolute paths. Where a file is outside of the root, paths are counted from the folder
that holds all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.runtime.places import is_url, joined

if TYPE_CHECKING:
    from divcon.data.labeled_set import LabeledSet

pc: Any = pyarrow.compute
"""Any: pyarrow creates its functions at import, so type checkers do not know them."""

Spelling = Callable[[Sequence["LabeledSet"]], list[pa.Array]]
"""How the paths of sets are written in what is hashed."""

_joined = pc.binary_join_element_wise
_AT_A_TIME = 1 << 16


def _separator(text: str) -> pa.Scalar:
    """Not a constant of the module: with its first value pyarrow imports pandas, if that is installed."""
    return pa.scalar(text, pa.large_string())


def digest_of(images: LabeledSet, spelling: Spelling) -> str:
    """16 hexadecimal digits of every image's path and label, and of its vector if it has one, in order."""
    digest = hashlib.sha256()
    (paths,) = spelling([images])
    for block, labels in _columns(paths, images):
        digest.update(_text(_joined(block, labels, _separator("\t"))))
    if images.vectors is not None:
        digest.update(str(images.vectors.shape).encode())
        for start in range(0, len(images), 8192):
            digest.update(np.ascontiguousarray(images.vectors[start : start + 8192]).data)
    return digest.hexdigest()[:16]


def digest_of_split(protocol: str, query: LabeledSet, gallery: LabeledSet, spelling: Spelling) -> str:
    """16 hexadecimal digits of the protocol, and of the labels and paths of queries and gallery, in whatever order."""
    digest = hashlib.sha256(protocol.encode())
    sets = [query] if query is gallery else [query, gallery]
    lines = None
    for role, images, paths in zip(("query", "gallery"), (query, gallery), 2 * spelling(sets), strict=False):
        if lines is None or images is not query:
            tab = _separator("\t")
            lines = pa.chunked_array(
                [_joined(labels, block, tab) for block, labels in _columns(paths, images)], pa.large_string()
            ).combine_chunks()
            # By bytes, which is the order of the characters too.
            order = pc.array_sort_indices(lines)
        digest.update(f"\n{role}\n".encode())
        for start in range(0, len(lines), _AT_A_TIME):
            text = _text(lines.take(order[start : start + _AT_A_TIME]))
            digest.update(text if start + _AT_A_TIME < len(lines) else text[:-1])
    return digest.hexdigest()[:16]


def from_root(sets: Sequence[LabeledSet]) -> list[pa.Array]:
    """Paths counted from the root, without ``.`` and ``..``; where one leads out of it, all are counted from the folder
    that holds all. Names of vectors and encoded images are no files: of these only absolute ones change."""
    paths = names_of(sets)
    if not any(map(_leads_out, paths)) or not all(map(_are_absolute, paths)):
        return paths
    names = [block.to_pylist() for block in paths]
    folders = {os.path.dirname(name) for block in names for name in block}  # noqa: PTH120
    try:
        start = os.path.join(os.path.commonpath(folders), "")  # noqa: PTH118
    except ValueError:  # two drives, or files here and at addresses
        return paths
    if any(map(is_url, folders)):
        start = start.replace(":/", "://", 1)  # the common path of addresses has lost a slash
    return [pa.array([name.removeprefix(start) for name in block], pa.large_string()) for block in names]


def names_of(sets: Sequence[LabeledSet]) -> list[pa.Array]:
    """Paths as a table elsewhere names the same images: counted from the root, or absolute where one leads out of it.
    The `from_root` of that table is that of these sets."""
    paths = [_below_root(images) for images in sets]
    if not any(map(_leads_out, paths)):
        return paths
    whole = [_absolute(images, block) for images, block in zip(sets, paths, strict=True)]
    return paths if any(block is None for block in whole) else [block for block in whole if block is not None]


def as_spelled(sets: Sequence[LabeledSet]) -> list[pa.Array]:
    """Paths as the source gives them: what was hashed before paths were counted from the root."""
    return [images.paths for images in sets]


def as_absolute(sets: Sequence[LabeledSet]) -> list[pa.Array]:
    """Absolute paths: what was hashed of a table that has them, before paths were counted from the root."""
    whole = [_absolute(images, images.paths) for images in sets]
    return (
        as_spelled(sets) if any(block is None for block in whole) else [block for block in whole if block is not None]
    )


SPELLINGS: tuple[Spelling, ...] = (from_root, as_spelled, as_absolute)
"""That of today first; the others are those of hashes that older versions have recorded."""


def _below_root(images: LabeledSet) -> pa.Array:
    """The paths from the root on, where they are below it; others as they are, without ``.`` and ``..``."""
    paths = images.paths
    if not len(paths):
        return paths
    if _are_files(images) and images.root:
        remote = is_url(images.root)
        start = images.root.rstrip("/") + "/" if remote else os.path.join(os.path.abspath(images.root), "")  # noqa: PTH100, PTH118
        inside = pc.starts_with(paths, start)
        if pc.any(inside).as_py():
            paths = pc.if_else(inside, pc.utf8_slice_codeunits(paths, len(start)), paths)
    if not _are_files(images) or not _is_winding(paths):
        return paths
    return pa.array([_straight(path) for path in paths.to_pylist()], pa.large_string())


def _straight(path: str | None) -> str | None:
    return path if not path or is_url(path) else os.path.normpath(path)


def _is_winding(paths: pa.Array) -> bool:
    """Whether a path may have a ``.`` or ``..`` in it, or an empty part."""
    tests = (pc.starts_with(paths, "."), pc.match_substring(paths, "/."), pc.match_substring(paths, "//"))
    return any(pc.any(test).as_py() for test in tests)


def _are_absolute(paths: pa.Array) -> bool:
    return all(name and (os.path.isabs(name) or is_url(name)) for name in paths.to_pylist())  # noqa: PTH117


def _leads_out(paths: pa.Array) -> bool:
    tests = (pc.starts_with(paths, "/"), pc.starts_with(paths, ".."), pc.match_substring(paths, "://"))
    if os.sep != "/":
        tests += (pc.match_substring_regex(paths, r"^([A-Za-z]:)?\\"),)
    return any(pc.any(test).as_py() for test in tests)


def _absolute(images: LabeledSet, paths: pa.Array) -> pa.Array | None:
    """The paths as absolute ones; None where a name is no file's."""
    names = paths.to_pylist()
    if not _are_files(images) and not _are_absolute(paths):
        return None
    whole = [_whole(images.root, name) for name in names]
    return pa.array(whole, pa.large_string())


def _whole(root: str, name: str) -> str:
    file = joined(root, name)
    return file if isinstance(file, str) else os.path.abspath(file)  # noqa: PTH100


def _are_files(images: LabeledSet) -> bool:
    return images.encoded is None and images.vectors is None


def _columns(paths: pa.Array, images: LabeledSet) -> Iterator[tuple[pa.Array, pa.Array]]:
    """The paths and the names of the labels, some thousand at a time."""
    names = pa.array(images.label_names, pa.large_string())
    for start in range(0, len(images), _AT_A_TIME):
        block = pc.fill_null(paths[start : start + _AT_A_TIME].cast(pa.large_string()), "None")
        yield block, names.take(pa.array(images.labels[start : start + _AT_A_TIME]))


def _text(lines: pa.Array) -> memoryview:
    """The bytes of the lines in one piece, each with the end of a line."""
    ended = _joined(lines, _separator(""), _separator("\n"))
    _, offsets, data = ended.buffers()
    return memoryview(data)[: np.frombuffer(offsets, np.int64)[len(ended)]] if len(ended) else memoryview(b"")
