"""Where a published data set lies: the folder as it is unpacked, at the right level, with its lists and images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from divcon.data.published.archive import ARCHIVE_SUFFIXES, OnProgress, is_archive, unpacked
from divcon.data.split import counted
from divcon.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg")
"""All that the six data sets hold."""
_LEVELS = 2
"""How far above and below the folder given the right one is looked for."""
_NAMED = 3


@dataclass(frozen=True)
class Tree:
    """A data set's folder."""

    root: Path
    beside: Path
    """Where the archive lies that it was unpacked from; else ``root``."""


def find_tree(
    name: str,
    root: str | os.PathLike[str] | None,
    marks: Sequence[str],
    on_progress: OnProgress = lambda done, total: None,
) -> Tree:
    """The folder of a data set, given it or its original archive, which is unpacked beside itself.

    Args:
        name: the data set's, for messages.
        marks: files and folders, relative to its folder, any of which tells it.

    Raises:
        DataError: nothing is given, or there is no such file or folder; it is neither a folder nor an archive; or it
            has no mark: then the folder above or below it that has one is named, if there is one.
        OutputError: the archive cannot be unpacked where it is.
    """
    if root is None:
        raise DataError(
            f"{name}: say where it is: the folder as it is unpacked from the original archive, or the archive"
        )
    given = path = Path(root)
    if path.is_file() and is_archive(path):
        path = unpacked(path, on_progress)
        below = next(_marked_below(path, marks), None)
        if below is None:
            raise DataError(f"{given}: {name} is not in this archive: it holds none of {', '.join(marks)}")
        return Tree(below, given.parent)
    if not path.is_dir():
        what = "this is neither a folder nor an archive" if path.exists() else "there is no such file or folder"
        raise DataError(f"{path}: {what} ({', '.join(ARCHIVE_SUFFIXES)}); give the folder of {name} as it is unpacked")
    if not _has_mark(path, marks):
        hint = wrong_level(path, marks)
        if not hint:
            hint = f"{name} is not here: there is none of {', '.join(marks)}"
            archives = sorted(entry for entry in path.iterdir() if entry.is_file() and is_archive(entry))
            hint += f"; an archive is: if it is the one, give {archives[0]}" if archives else ""
        raise DataError(f"{path}: {hint}")
    return Tree(path, path)


def wrong_level(path: Path, marks: Sequence[str]) -> str:
    """What to do where a folder above or below the one given has a mark; empty where none has."""
    below = next(_marked_below(path, marks), None)
    if below is not None and below != path:
        return f"you gave {'the parent folder' if below.parent == path else 'a folder above'}; give {below}"
    for above in list(path.absolute().parents)[:_LEVELS]:
        if _has_mark(above, marks):
            return f"you gave a folder inside of the data set; give {above}"
    return ""


def require(name: str, root: Path, paths: Iterable[str]) -> None:
    """Raise DataError if one of the lists and folders is missing, naming all that are."""
    missing = [path for path in paths if not (root / path).exists()]
    if not missing:
        return
    packed = [f"{path}{end}" for path in missing for end in ARCHIVE_SUFFIXES if (root / f"{path}{end}").is_file()]
    advice = f"{packed[0]} is still packed: unpack it there" if packed else "unpack the original archive again"
    raise DataError(f"{root}: {name} lacks {' and '.join(missing)}; {advice}")


@dataclass(frozen=True)
class Compared:
    """How the images that a data set names compare with those that are there."""

    missing: tuple[str, ...]
    """Named, and not there."""
    unlisted: tuple[str, ...]
    """There, in the folders of images, and not named."""


def compare_files(root: Path, folders: Iterable[str], paths: Sequence[str]) -> Compared:
    """The images named and those below the folders, both relative to ``root`` with forward slashes.

    Each folder is listed once, in place of a look for each file.
    """
    there = {path for folder in folders if (root / folder).is_dir() for path in images_below(root, folder)}
    named = set(paths)
    return Compared(tuple(path for path in paths if path not in there), tuple(sorted(there - named)))


def images_below(root: Path, folder: str) -> Iterator[str]:
    """The images in ``root/folder`` and below, relative to ``root`` with forward slashes, in no order; what hides, and
    what is no image, is left out."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        with os.scandir(root / here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{here}/{entry.name}"
                if entry.name.lower().endswith(IMAGE_SUFFIXES):
                    yield path
                elif entry.is_dir():
                    waiting.append(path)


def missing_text(root: Path, paths: Sequence[str], total: int) -> str:
    """That of the images named so many are not there, and which come first."""
    number = f"{len(paths):,} of {counted(total, 'image')} {'is' if len(paths) == 1 else 'are'} missing"
    return f"{root}: {number} ({first_few(paths)}); unpack the original archive again"


def first_few(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _has_mark(path: Path, marks: Sequence[str]) -> bool:
    return any((path / mark).exists() for mark in marks)


def _marked_below(path: Path, marks: Sequence[str], levels: int = _LEVELS) -> Iterator[Path]:
    """The folders with a mark: the path itself, then those in it, then those in these."""
    here = [path]
    for level in range(levels + 1):
        yield from (folder for folder in here if _has_mark(folder, marks))
        if level < levels:
            here = [below for folder in here for below in _folders_in(folder)]


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith((".", "__MACOSX")) and entry.is_dir()]
    except OSError:  # of someone else's, which may not be looked into
        return []
    return [folder / name for name in sorted(names)]
