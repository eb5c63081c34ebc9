"""The folder of a published data set, as its archive unpacks; its lists and images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from divcon.data.benchmark import counted
from divcon.data.image_files import is_system_folder
from divcon.data.published.archive import ARCHIVE_SUFFIXES, is_archive, unpacked
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context

IMAGE_SUFFIXES = (".jpg", ".jpeg")
"""All that the six data sets hold."""
_LEVELS = 2
"""How many levels above and below the passed folder are searched for the right one."""
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
    context: Context = DEFAULT,
) -> Tree:
    """The folder of a data set, from the folder itself or its original archive, which is unpacked beside itself.

    Args:
        name: the data set's, for messages.
        marks: files and folders, relative to its folder, any of which identifies it.

    Raises:
        DataError: ``root`` is None, there is no such file or folder, or it is neither a folder nor an archive; or it
            has no mark: the message then names the folder above or below it that has one, if there is one.
        OutputError: the archive cannot be unpacked where it is.
    """
    if root is None:
        raise DataError(
            f"{name}: say where it is: the folder as it is unpacked from the original archive, or the archive"
        )
    path = Path(root)
    if path.is_file() and is_archive(path):
        below = next(_marked_below(unpacked(path, context), marks), None)
        if below is None:
            raise DataError(f"{path}: {name} is not in this archive: it holds none of {', '.join(marks)}")
        return Tree(below, path.parent)
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
    """Advice if a folder above or below the passed one has a mark; empty if none has."""
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
    """The images that a data set lists, compared with the files in its folders."""

    missing: tuple[str, ...]
    """Listed, but not in the folders."""
    unlisted: tuple[str, ...]
    """In the folders, but not listed."""


def compare_files(root: Path, folders: Iterable[str], paths: Sequence[str]) -> Compared:
    """Compare listed paths with the images below the folders, both relative to ``root`` with forward slashes.

    Each folder is listed once, instead of checking each file.
    """
    there = {path for folder in folders if (root / folder).is_dir() for path in images_below(root, folder)}
    named = set(paths)
    return Compared(tuple(path for path in paths if path not in there), tuple(sorted(there - named)))


def images_below(root: Path, folder: str) -> Iterator[str]:
    """The images in ``root/folder`` and below, relative to ``root`` with forward slashes, in any order, without hidden
    files and what is in folders of the system."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        with os.scandir(root / here) as entries:
            for entry in entries:
                if is_system_folder(entry.name):
                    continue
                path = f"{here}/{entry.name}"
                if entry.name.lower().endswith(IMAGE_SUFFIXES):
                    yield path
                elif entry.is_dir():
                    waiting.append(path)


def missing_text(root: Path, paths: Sequence[str], total: int) -> str:
    """The message for missing images: their number, and the first of them."""
    number = f"{len(paths):,} of {counted(total, 'image')} {'is' if len(paths) == 1 else 'are'} missing"
    return f"{root}: {number} ({first_few(paths)}); unpack the original archive again"


def first_few(names: Sequence[str]) -> str:
    """The first names, and ``...`` if there are more."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _has_mark(path: Path, marks: Sequence[str]) -> bool:
    return any((path / mark).exists() for mark in marks)


def _marked_below(path: Path, marks: Sequence[str], levels: int = _LEVELS) -> Iterator[Path]:
    """The folders with a mark: the path itself, then its subfolders, then theirs."""
    here = [path]
    for level in range(levels + 1):
        yield from (folder for folder in here if _has_mark(folder, marks))
        if level < levels:
            here = [below for folder in here for below in _folders_in(folder)]


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not is_system_folder(entry.name) and entry.is_dir()]
    except OSError:  # no permission
        return []
    return [folder / name for name in sorted(names)]


_AGAIN = "unpack the original archive again"


@dataclass(frozen=True, eq=False)
class ListFile:
    """The N entries of a list, field by field."""

    path: Path
    fields: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    """A tuple of N texts per field."""
    lines: np.ndarray
    """(N,) int64, the line of each entry in the file, from 1."""

    def __len__(self) -> int:
        return len(self.lines)

    def texts(self, field: str) -> tuple[str, ...]:
        """A field of every entry."""
        return self.columns[self.fields.index(field)]

    def numbers(self, field: str) -> np.ndarray:
        """A field as numbers, (N,) int64, which these data sets count from 1.

        Raises:
            DataError: an entry is not a number from 1; the message has file and line.
        """
        texts = self.texts(field)
        for i, text in enumerate(texts):
            if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 62):
                raise self.error(i, f"the {field} {text!r} is no whole number from 1 on")
        return np.array(texts, np.int64) if texts else np.empty(0, np.int64)

    def where(self, i: int) -> str:
        """``Ebay_train.txt line 17``, with the file's whole path."""
        return f"{self.path} line {self.lines[i]}"

    def error(self, i: int, problem: str) -> DataError:
        """The error to raise for entry i."""
        return DataError(f"{self.where(i)}: {problem}; {_AGAIN}")


def read_list(path: Path, fields: tuple[str, ...], *, header: tuple[str, ...] = (), counted: bool = False) -> ListFile:
    """Read a list whose lines have these fields, separated by spaces; empty lines are skipped.

    Args:
        header: the words of the line above the entries, if there is one.
        counted: whether the first line, above the header, is the number of entries.

    Raises:
        DataError: there is no such file, it is not text, has no entries, another header, another number of entries than
            its first line says, or a line with more or fewer fields; the message has file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; {_AGAIN}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text; {_AGAIN}") from None
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [(number, row) for number, row in rows if row]
    first = rows.pop(0) if counted and rows else None
    if first is not None and not (len(first[1]) == 1 and first[1][0].isdigit()):
        raise DataError(
            f"{path} line {first[0]}: the number of images is missing; it stands in the first line; {_AGAIN}"
        )
    if header:
        above = rows.pop(0) if rows else (1, [])
        if tuple(above[1]) != header:
            raise DataError(f"{path} line {above[0]}: the header {' '.join(header)!r} is missing; {_AGAIN}")
    if not rows:
        raise DataError(f"{path}: has no entries; {_AGAIN}")
    for number, row in rows:
        if len(row) != len(fields):
            raise DataError(
                f"{path} line {number}: has {len(row)} fields, not {len(fields)} ({', '.join(fields)}); {_AGAIN}"
            )
    if first is not None and len(rows) != int(first[1][0]):
        raise DataError(f"{path}: says in its first line {first[1][0]} images, and names {len(rows)}; {_AGAIN}")
    columns = tuple(zip(*(row for _, row in rows), strict=True))
    return ListFile(path, fields, columns, np.array([number for number, _ in rows], np.int64))


def class_folders(listed: ListFile, classes: Sequence[int]) -> dict[int, str]:
    """The folder of each class's images.

    Args:
        listed: a list of N entries with the field ``path``.
        classes: the N classes.

    Raises:
        DataError: a class is in two folders; the message has file and line.
    """
    folder_of: dict[int, str] = {}
    for i, (label, path) in enumerate(zip(classes, listed.texts("path"), strict=True)):
        folder = path.partition("/")[0]
        if folder_of.setdefault(label, folder) != folder:
            raise listed.error(i, f"class {label} is in {folder_of[label]}, and this image of it in {folder}")
    return folder_of
