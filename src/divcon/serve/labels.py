"""Labels that people give on the page: kept in a file beside the index, and exported as a CSV to train on.

The file is a CSV with one row for each item that was changed: its path and box, the label that it was given (empty: the
index's own), whether it is hidden, and its key. Each change is applied to what the file holds at that moment, so that
several browsers, and several servers of one index, keep each other's.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
import threading
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from divcon.data.columns import BOX_COLUMNS
from divcon.data.labels import alike, clean_label, label_notes
from divcon.errors import DataError, OutputError
from divcon.runtime.files import atomic_write
from divcon.search import Index
from divcon.serve.items import Catalogue, rows_of
from divcon.serve.limits import Refusal, Threads

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LABELS_FILE = "page-labels.csv"
"""In the folder of a store."""
_HEADER = ("path", "box", "label", "hidden", "key")
_HIDDEN = {"true": True, "false": False, "": False}
MOST_IDS = 5_000
"""Items that one request changes."""
MOST_MARKS = 500_000
"""Items that the file holds."""
MOST_LETTERS = 200
"""Characters of a label."""
_UNDONE = 200
"""Changes that can be undone."""
_SUGGESTED = 50


@dataclass(frozen=True)
class Mark:
    """What an item was given on the page."""

    path: str
    box: str | None
    label: str | None = None
    """None: the index's own."""
    hidden: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing."""
        return self.label is None and not self.hidden


def read_marks(file: Path) -> dict[str, Mark]:
    """The marks in a file by the key of their item; none if there is no file.

    Raises:
        DataError: the file cannot be read, or a row is not as `write_marks` writes it; the message names the line.
    """
    try:
        text = file.read_text("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    marks: dict[str, Mark] = {}
    line = 1
    try:
        for row in rows:
            if line == 1:
                if tuple(row) != _HEADER:
                    raise ValueError(f"the header is not {','.join(_HEADER)}")
            elif row:
                key, mark = _mark_of(row)
                if not mark.is_empty:
                    marks[key] = mark
            line = rows.line_num + 1
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"{file}, line {line}: {error}; mend the line or delete it, or move the file away to begin anew"
        ) from None
    if text and line == 1:
        raise DataError(f"{file}, line 1: the header is not {','.join(_HEADER)}; move the file away to begin anew")
    return marks


def _mark_of(row: list[str]) -> tuple[str, Mark]:
    if len(row) != len(_HEADER):
        raise ValueError(f"{len(row)} values, not {len(_HEADER)}")
    path, box, label, hidden, key = row
    if hidden not in _HIDDEN:
        raise ValueError(f"hidden is {hidden!r}, not true or false")
    if not path or len(key) != 32 or set(key) - set("0123456789abcdef"):
        raise ValueError("path is empty" if not path else f"key {key!r} is not one that divcon wrote")
    return key, Mark(path, box or None, _label_of(label) if label.strip() else None, _HIDDEN[hidden])


def write_marks(file: Path, marks: dict[str, Mark]) -> None:
    """Write marks, by the keys of their items, in the order of their paths.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(file) as beside, beside.open("w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(_HEADER)
        for key, mark in sorted(marks.items(), key=lambda pair: (pair[1].path, pair[1].box or "", pair[0])):
            table.writerow([mark.path, mark.box or "", mark.label or "", "true" if mark.hidden else "false", key])


def _label_of(text: str) -> str:
    """A typed label by the rule of `divcon.data.labels`.

    Raises:
        ValueError: it is empty, too long, or holds what no table can.
    """
    label = clean_label(text)
    if not label:
        raise ValueError("the label is empty")
    if len(label) > MOST_LETTERS:
        raise ValueError(f"the label has {len(label):,} characters; at most {MOST_LETTERS}")
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in label):
        raise ValueError("the label holds a line break or another control character")
    return label


class LabelChange(BaseModel):
    """A change of items: a field that is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    ids: list[int] = Field(min_length=1, max_length=MOST_IDS)
    label: str | None = Field(None, description="The label; null: the index's own again.")
    hidden: bool = Field(False, description="Whether the items are junk: they are not exported.")


class LabelUndo(BaseModel):
    """A change to take back."""

    model_config = ConfigDict(extra="forbid")

    change: str = Field(max_length=100, description="`change` of the response to it.")


class Labelling:
    """The routes of the labels that people give on the page.

    Args:
        file: where they are kept; None: beside the store, if it is a folder.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(self, index: Index, catalogue: Catalogue, threads: Threads, file: Path | None = None) -> None:
        self.index = index
        self.catalogue = catalogue
        self.threads = threads
        folder = index.store.folder
        self.file = file or (None if folder is None else folder / LABELS_FILE)
        self._lock = threading.RLock()
        self._stamp: object = ()
        self._marks: dict[str, Mark] = {}
        self._ids: tuple[str, dict[str, int]] = ("", {})
        self._own: tuple[np.ndarray | None, Counter[str]] = (None, Counter())
        self._start = secrets.token_hex(4)
        self._changes: OrderedDict[str, dict[str, tuple[Mark, Mark]]] = OrderedDict()
        self._count = 0
        self._current()

    @property
    def problem(self) -> str | None:
        """Why labels cannot be given."""
        if self.file is None:
            return 'the index is in no folder of its own; to label its items, start "divcon serve ... --labels FILE"'
        there = self.file if self.file.exists() else next((p for p in self.file.parents if p.exists()), Path())
        if not os.access(there, os.W_OK) or (there != self.file and not there.is_dir()):
            return f'{self.file}: cannot be written; to keep labels elsewhere, start "divcon serve ... --labels FILE"'
        return None

    # ----------------------------------------------------------------------------------------------------- the file

    def _current(self) -> dict[str, Mark]:
        """The marks, read again if the file has changed. Called with the lock, or before there are threads."""
        if self.file is None:
            return self._marks
        try:
            status = self.file.stat()
            stamp: object = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            stamp = None
        if stamp != self._stamp:
            self._marks = read_marks(self.file)
            self._stamp = stamp
        return self._marks

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Mark]]:
        """The marks, to be changed: written when the block ends. No thread and no process changes them meanwhile."""
        if self.problem is not None:
            raise Refusal(409, self.problem)
        assert self.file is not None
        with self._lock, _alone(self.file):
            marks = dict(self._current())
            yield marks
            if len(marks) > MOST_MARKS:
                raise Refusal(413, f"labels of {len(marks):,} items; the maximum is {MOST_MARKS:,}")
            if marks != self._marks:
                write_marks(self.file, marks)
                self._stamp = ()
                self._current()

    # -------------------------------------------------------------------------------------------------- the requests

    def state(self, ids: Iterable[int] = ()) -> dict[str, Any]:
        """What there is to know: ``items``, the marks of these items by their ids as texts; ``counts``, of the images
        and classes that were labelled here and of all; ``problem``."""
        with self._lock:
            marks = self._current()
            rows = rows_of(self.index, list(ids)) if marks else {}
            marked = {str(i): marks[row.key] for i, row in rows.items() if row.key in marks}
            items = {i: {"label": mark.label, "hidden": mark.hidden} for i, mark in marked.items()}
            return {"items": items, "counts": self._counts(marks), "problem": self.problem}

    def change(self, change: LabelChange) -> dict[str, Any]:
        """Label or hide items. Returns `state` of them, the number of ``changed`` items, ``change`` to undo it, and a
        ``note`` where the label looks like another.

        Raises:
            Refusal: the label is no label, or the items are not there.
            OutputError: the file cannot be written.
        """
        sent = change.model_fields_set - {"ids"}
        if not sent:
            raise Refusal(422, "send `label`, `hidden` or both")
        try:
            label = None if change.label is None else _label_of(change.label)
        except ValueError as error:
            raise Refusal(422, str(error)) from None
        rows = rows_of(self.index, list(dict.fromkeys(change.ids)))
        if not rows:
            raise Refusal(404, "these items are not in the index (any more)")
        done = {}
        with self._changing() as marks:
            note = self._note(label, marks) if label is not None else None
            for row in rows.values():
                box = None if row.box is None else ",".join(map(str, row.box))
                before = marks.get(row.key, Mark(row.path, box))
                after = Mark(
                    row.path,
                    box,
                    label if "label" in sent else before.label,
                    change.hidden if "hidden" in sent else before.hidden,
                )
                if after != before:
                    done[row.key] = (before, after)
            _apply(marks, {key: after for key, (_, after) in done.items()})
        with self._lock:
            self._count += 1
            name = f"{self._start}-{self._count}"
            self._changes[name] = done
            while len(self._changes) > _UNDONE:
                self._changes.popitem(last=False)
            missing = len(set(change.ids)) - len(rows)
            return self.state(change.ids) | {"change": name, "changed": len(done), "missing": missing, "note": note}

    def undo(self, undo: LabelUndo) -> dict[str, Any]:
        """Take a change back, where no later one has changed the item again. Returns `state` of its items, the number
        of ``changed`` items, and of those that are ``kept``.

        Raises:
            Refusal: the change is not known (any more).
            OutputError: the file cannot be written.
        """
        with self._lock:
            done = self._changes.get(undo.change)
            if done is None:
                raise Refusal(
                    404, "this change can no longer be undone: it is too long ago, or the server was restarted"
                )
            with self._changing() as marks:
                back = {
                    key: before
                    for key, (before, after) in done.items()
                    if marks.get(key, Mark(after.path, after.box)) == after
                }
                _apply(marks, back)
            del self._changes[undo.change]
            ids = [item.id for item in self.index.store.lookup(list(done)).values()]
            return self.state(ids) | {"changed": len(back), "kept": len(done) - len(back)}

    def names(self, text: str) -> list[str]:
        """Labels of the index and of the page that hold a text: those that begin with it first."""
        with self._lock:
            given = Counter(mark.label for mark in self._current().values() if mark.label is not None)
        names = list(dict.fromkeys([*(name for name, _ in given.most_common()), *self.catalogue.labels()[2]]))
        wanted = clean_label(text).casefold()
        found = [name for name in names if wanted in name.casefold()]
        return sorted(found, key=lambda name: not name.casefold().startswith(wanted))[:_SUGGESTED]

    def table(self, *, own: bool) -> str:
        """The CSV to train on: ``path,label``, and the sides of the boxes if an image has one. Hidden items, those
        without a label, and those that have left the index are left out.

        Args:
            own: also the items whose label is the index's own.
        """
        with self._lock:
            marks = dict(self._current())
        rows: list[tuple[str, str, str | None]] = []
        for block in self.index.store.read_columns(["key", "path", "box", "label"]):
            for key, path, box, label in zip(*(block[name].to_pylist() for name in block.column_names), strict=True):
                mark = marks.get(key)
                given = mark.label if mark is not None and mark.label is not None else (label if own else None)
                if given and not (mark is not None and mark.hidden):
                    rows.append((path, given, box))
        boxed = any(box for _, _, box in rows)
        file = io.StringIO(newline="")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", *(BOX_COLUMNS if boxed else ())])
        for path, label, box in sorted(rows, key=lambda row: (row[0], row[2] or "")):
            sides = [] if not boxed else (box or ",,,").split(",")
            table.writerow([path, label, *sides])
        return file.getvalue()

    # -------------------------------------------------------------------------------------------------------- helpers

    def _counts(self, marks: dict[str, Mark]) -> dict[str, Any]:
        """``given`` and ``all``: the images, the classes, and the classes of two images or more in the CSV without and
        with the index's own labels; ``hidden`` and ``gone`` items; ``files``, whether the paths of the labelled items
        are files."""
        ids, codes, names = self.catalogue.labels()
        places = self._ids_of(marks)
        given: Counter[str] = Counter()
        if self._own[0] is not ids:
            numbers = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
            self._own = (ids, Counter(dict(zip(names, numbers, strict=True))))
        every = self._own[1].copy()
        keys = [key for key in marks if key in places]
        wanted = np.array([places[key] for key in keys], np.int64)
        at = np.minimum(np.searchsorted(ids, wanted), max(0, len(ids) - 1))
        own = {key: int(codes[i]) for key, i, id_ in zip(keys, at, wanted, strict=True) if len(ids) and ids[i] == id_}
        hidden, files = 0, True
        for key, code in own.items():
            mark = marks[key]
            hidden += mark.hidden
            if code >= 0:
                every[names[code]] -= 1
            if mark.label is not None and not mark.hidden:
                every[mark.label] += 1
                given[mark.label] += 1
                files = files and Path(mark.path).is_absolute()

        def counted(labels: Counter[str]) -> dict[str, int]:
            numbers = labels.values()
            classes, pairs = sum(n > 0 for n in numbers), sum(n > 1 for n in numbers)
            return {"images": sum(numbers), "classes": classes, "with_pairs": pairs}

        files = files and self.index.about.vector_dim is None
        return {
            "given": counted(given),
            "all": counted(every),
            "hidden": hidden,
            "gone": len(marks) - len(own),
            "files": files,
        }

    def _ids_of(self, marks: dict[str, Mark]) -> dict[str, int]:
        """The id of each marked item that is in the index, by its key."""
        version = self.index.store.version()
        known = self._ids[1] if self._ids[0] == version else {}
        unknown = [key for key in marks if key not in known]
        if unknown:
            looked = self.index.store.lookup(unknown)
            known = known | {key: looked[key].id if key in looked else -1 for key in unknown}
        self._ids = (version, known)
        return {key: id_ for key, id_ in known.items() if id_ >= 0}

    def _note(self, label: str, marks: dict[str, Mark]) -> str | None:
        names = {*self.catalogue.labels()[2], *(mark.label for mark in marks.values() if mark.label is not None)}
        if label in names:
            return None
        twins = [name for group in alike([label, *sorted(names)]) if label in group for name in group if name != label]
        if twins:
            return f"{label!r} looks like the label {twins[0]!r}, and is another class"
        return next(iter(label_notes([label], ())), None)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""

        @app.get("/labels")
        async def get_labels(ids: Annotated[str, Query(max_length=200_000)] = "") -> dict[str, Any]:
            """The labels that these items (ids with commas between them) were given on the page, and counts of all."""
            numbers = [int(text) for text in ids.split(",") if text.isascii() and text.isdecimal() and len(text) < 20]
            return await self.threads.run(self.state, numbers[:MOST_IDS])

        @app.post("/labels")
        async def post_labels(change: LabelChange) -> dict[str, Any]:
            """Label items, or hide them from the export."""
            return await self.threads.run(self.change, change)

        @app.post("/labels/undo")
        async def undo_labels(undo: LabelUndo) -> dict[str, Any]:
            """Take a change of labels back; items that were changed again since stay as they are."""
            return await self.threads.run(self.undo, undo)

        @app.get("/labels/names")
        async def label_names(text: Annotated[str, Query(max_length=MOST_LETTERS)] = "") -> dict[str, list[str]]:
            """Labels that begin with a text or hold it."""
            return {"names": await self.threads.run(self.names, text)}

        @app.get("/labels.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
        async def labels_csv(own: bool = False) -> Response:
            """The labelled items as a CSV for `divcon train`; with `own`, those with a label of the index too."""
            text = await self.threads.run(lambda: self.table(own=own))
            headers = {"Content-Disposition": 'attachment; filename="labels.csv"', "Cache-Control": "no-store"}
            return Response(
                text.encode("utf-8", "surrogateescape"), media_type="text/csv; charset=utf-8", headers=headers
            )


def _apply(marks: dict[str, Mark], changes: dict[str, Mark]) -> None:
    for key, mark in changes.items():
        if mark.is_empty:
            marks.pop(key, None)
        else:
            marks[key] = mark


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other processes from changing the file; a system without file locks cannot."""
    if fcntl is None:
        yield
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror or error})") from error
    try:
        with suppress(OSError):  # some network file systems cannot
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
