"""Folders at addresses (``s3://bucket/photos``): one listing in place of a walk, tables brought here, images left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divcon.data.table_format import is_table
from divcon.errors import DataError
from divcon.runtime import copies
from divcon.runtime.places import place

_SMALL = 64 << 20
_BESIDE_TABLES = (".json", ".npy", ".txt")
"""Endings of files that say something of the tables beside them, and are brought if they are small."""


@dataclass(frozen=True)
class RemoteEntry:
    """What `os.scandir` yields, of a folder at an address."""

    name: str
    path: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder

    def is_symlink(self) -> bool:
        return False


_listings: dict[str, dict[str, Any]] = {}


def look_again(url: str) -> None:
    """Let a new reading see what is at an address now: it may have changed since this process looked."""
    for known in [each for each in _listings if each == url or each.startswith(f"{url.rstrip('/')}/")]:
        del _listings[known]
    copies.forget(url)


def files_below(url: str) -> dict[str, Any]:
    """The files below a folder at an address, by their paths from it; listed once for each reading.

    Raises:
        RemoteError: the storage cannot be reached, or refuses.
        DataError: there is no such folder.
    """
    if url not in _listings:
        from divcon.runtime import remote

        _listings[url] = remote.listing(url)
    if not _listings[url]:
        raise DataError(f"{url}: there is no such file or folder")
    return _listings[url]


def entries_below(url: str) -> dict[str, list[RemoteEntry]]:
    """What is in each folder below an address, sorted by name; the folder itself is ``""``."""
    folders: dict[str, dict[str, bool]] = {"": {}}
    for path in files_below(url):
        parts = path.split("/")
        for depth, name in enumerate(parts):
            above = "/".join(parts[:depth])
            folders.setdefault(above, {}).setdefault(name, depth < len(parts) - 1)
    return {
        below: [
            RemoteEntry(name, f"{url}/{below}/{name}" if below else f"{url}/{name}", folder)
            for name, folder in sorted(names.items())
            if name
        ]
        for below, names in folders.items()
    }


def bring_tables(url: str) -> Path | None:
    """Bring the tables of a folder to its place here, for `divcon.data.readers.table.table_files`; None where it has
    none. Other files are empty there, one of each kind in a folder: that they are there says what the folder is.

    Raises:
        RemoteError, DataError: as of `files_below`.
    """
    files = files_below(url)
    if not any(is_table(name) for name in files):
        return None
    target = place(url)
    kinds = set()
    for name, about in files.items():
        path = target / name
        beside = name.lower().endswith(_BESIDE_TABLES) and (about.size or 0) <= _SMALL
        if is_table(name) or beside:
            copies.bring(path, f"{url}/{name}", about)
        elif (kind := (path.parent, path.suffix.lower())) not in kinds:
            kinds.add(kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return target
