"""Images that are no files of their own: those in the tables of the run's data."""

from __future__ import annotations

import threading
from pathlib import Path

from divcon.data.image_set import ImageSet
from divcon.search import Index
from divcon.serve.of_run import OfRun


class EncodedImages:
    """Which items of an index are images in a table of the run's data; read at the first question, and again where the
    index has changed."""

    def __init__(self, index: Index, run: Path | None) -> None:
        self._index = index
        self._run = run
        self._lock = threading.Lock()
        self._found: tuple[str, dict[int, tuple[ImageSet, int]]] | None = None

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


def _by_item(of_run: OfRun) -> dict[int, tuple[ImageSet, int]]:
    return {
        int(item): (images, row)
        for name, images in of_run.sets.items()
        if images.encoded is not None
        for row, item in enumerate(of_run.parts[name])
        if item >= 0
    }
