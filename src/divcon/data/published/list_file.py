"""The list files of the published data sets: a line an image, fields apart by spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from divcon.errors import DataError

_AGAIN = "unpack the original archive again"


@dataclass(frozen=True, eq=False)
class ListFile:
    """The N lines of a list that stand for something, field by field."""

    path: Path
    fields: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    """A tuple of N texts a field."""
    lines: np.ndarray
    """(N,) int64, the number of each line in the file, from 1 on."""

    def __len__(self) -> int:
        return len(self.lines)

    def texts(self, field: str) -> tuple[str, ...]:
        """A field of every line."""
        return self.columns[self.fields.index(field)]

    def numbers(self, field: str) -> np.ndarray:
        """(N,) int64 from 1 on, as these data sets count.

        Raises:
            DataError: with file and line, where there is another text or number.
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
        """What is wrong with entry i, to be raised."""
        return DataError(f"{self.where(i)}: {problem}; {_AGAIN}")


def read_list(path: Path, fields: tuple[str, ...], *, header: tuple[str, ...] = (), counted: bool = False) -> ListFile:
    """A list whose lines have these fields, apart by any number of spaces; empty lines are left out.

    Args:
        header: the words of the line that stands above the entries, if there is one.
        counted: whether the first line, above the header, is the number of entries.

    Raises:
        DataError: there is no such file, it is no text, has no entries, another header, another number of entries than
            it says, or a line with more or fewer fields; with file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; {_AGAIN}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is no text; {_AGAIN}") from None
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [(number, row) for number, row in rows if row]
    said = rows.pop(0) if counted and rows else None
    if said is not None and not (len(said[1]) == 1 and said[1][0].isdigit()):
        raise DataError(
            f"{path} line {said[0]}: the number of images is missing; it stands in the first line; {_AGAIN}"
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
    if said is not None and len(rows) != int(said[1][0]):
        raise DataError(f"{path}: says in its first line {said[1][0]} images, and names {len(rows)}; {_AGAIN}")
    columns = tuple(zip(*(row for _, row in rows), strict=True))
    return ListFile(path, fields, columns, np.array([number for number, _ in rows], np.int64))


def class_folders(listed: ListFile, classes: Sequence[int]) -> dict[int, str]:
    """The folder that the images of each class lie in.

    Args:
        listed: a list with the field ``path``, of N lines.
        classes: the N classes.

    Raises:
        DataError: a class lies in two folders; with file and line.
    """
    found: dict[int, str] = {}
    for i, (label, path) in enumerate(zip(classes, listed.texts("path"), strict=True)):
        folder = path.partition("/")[0]
        if found.setdefault(label, folder) != folder:
            raise listed.error(i, f"class {label} lies in {found[label]}, and this image of it in {folder}")
    return found
