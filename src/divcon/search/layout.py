"""The items of an index in two dimensions, computed once for each state of its store."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from divcon.errors import OutputError
from divcon.evaluation.layout import By, Layout, OnStep, check_layout, lay_out
from divcon.runtime.files import atomic_write
from divcon.runtime.places import cache_folder, place
from divcon.search.digests import key_of
from divcon.search.index import Index

MAX_ITEMS = 200_000
"""Items that are laid out; of more, a sample."""
_FORMAT = "1"
"""Of the file, and of how layouts are computed: files of another one are computed again."""


def index_layout(
    index: Index, by: By | Literal["auto"] = "auto", on_step: OnStep = lambda *_: None, *, folder: Path | None = None
) -> tuple[np.ndarray, Layout]:
    """Lay an index's items out, or read the layout that an earlier call has written for this state of the store.

    Args:
        by: as of `divcon.evaluation.layout.lay_out`.
        folder: where the layout is written, as ``map-tsne.npz`` and so on. Default: the store's folder; for a store in
            no folder, one in the cache (`DIVCON_CACHE_DIR`). Where it cannot be written, the layout is computed each
            time.

    Returns:
        (n,) int64 ids, ascending, of all items or of a sample of 200,000; and their layout.

    Raises:
        ConfigError: as `divcon.evaluation.layout.check_layout`.
    """
    by = check_layout(by)
    version = f"{_FORMAT} {index.store.version()}"
    file = place(folder or index.store.folder or cache_folder() / "maps" / key_of(index.store.uri)) / f"map-{by}.npz"
    if (known := _read(file, version)) is not None:
        return known
    ids = np.sort(index.store.ids())
    if len(ids) > MAX_ITEMS:
        ids = np.sort(np.random.default_rng(0).choice(ids, MAX_ITEMS, replace=False))
    stored, vectors = index.store.embeddings(ids)
    order = np.argsort(stored)
    layout = lay_out(vectors[order], by, on_step)
    if f"{_FORMAT} {index.store.version()}" == version:
        _write(file, version, stored[order], layout)
    return stored[order], layout


def _read(file: Path, version: str) -> tuple[np.ndarray, Layout] | None:
    try:
        with np.load(file, allow_pickle=False) as saved:
            if str(saved["version"]) != version:
                return None
            ids, xy = saved["ids"], saved["xy"]
            by: Any = str(saved["by"])
            if ids.ndim == 1 and xy.shape == (len(ids), 2) and np.isfinite(xy).all():
                return ids.astype(np.int64), Layout(xy.astype(np.float32), by, str(saved["note"]) or None)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _write(file: Path, version: str, ids: np.ndarray, layout: Layout) -> None:
    # A store that may only be read is searched all the same.
    with contextlib.suppress(OutputError, OSError), atomic_write(file) as beside, beside.open("wb") as out:
        np.savez(out, version=version, ids=ids, xy=layout.xy, by=layout.by, note=layout.note or "")
