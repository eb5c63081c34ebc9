"""Find the image files below a folder, and name what is skipped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divcon.data.decode import begins_as_image, image_endings, is_image_file
from divcon.data.remote_folder import RemoteEntry, entries_below
from divcon.errors import DataError
from divcon.runtime.places import url_of

HIDDEN = "hidden or system files"
HIDDEN_FOLDERS = "hidden or system folders"
EMPTY = "folders without images"
LOOSE = "images beside the class folders"
INDEX = ".divcon"
"""What the name of the folder of an index ends in, where divcon chooses it."""
_OTHER = "files that are no images"
_MISNAMED = "images whose names end as no image's do"
_NO_TEXT = "names that are not UTF-8"
_LOOPS = "links to a folder that they are in"
_BROKEN = "links that lead nowhere"

_ONE = {
    HIDDEN: "hidden or system file",
    HIDDEN_FOLDERS: "hidden or system folder",
    EMPTY: "folder without images",
    LOOSE: "image beside the class folders",
    _OTHER: "file that is no image",
    _MISNAMED: "image whose name ends as no image's does",
    _NO_TEXT: "name that is not UTF-8",
    _LOOPS: "link to a folder that it is in",
    _BROKEN: "link that leads nowhere",
}
_ADVICE = {
    _MISNAMED: "rename them to .jpg, .png, ... to use them",
    _NO_TEXT: "rename them to use them; convmv renames whole folders",
}

_UNREADABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "HEIC images",
        "`pip install pillow-heif` to read them, or convert them to JPEG",
        (".heic", ".heif", ".heics", ".heifs", ".hif"),
    ),
    ("AVIF images", "install Pillow 11.3 or newer to read them, or convert them to JPEG", (".avif", ".avifs")),
    ("JPEG XL images", "`pip install pillow-jxl-plugin` to read them, or convert them to JPEG", (".jxl",)),
    (
        "camera raw images",
        "convert them to JPEG to use them",
        (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    ),
    (
        "drawings and documents",
        "draw them as PNG to use them",
        (".svg", ".svgz", ".pdf", ".eps", ".ps", ".ai", ".wmf", ".emf"),
    ),
    (
        "videos",
        "extract frames to use them",
        (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"),
    ),
)
"""Kinds of file that hold pictures and do not decode here, what to do about each, and their endings."""

_SYSTEM_FOLDERS = {
    *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@recently-snapshot", "@sharebin"),  # storage devices
    *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "$extend"),  # Windows
    *("lost+found", "__macosx", "__pycache__", "_gsdata_"),
}
_SYSTEM_FILES = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "folder.htt", "picasa.ini", "zbthumbnail.info"),
    *("icon\r", "autorun.inf"),
}
_NO_IMAGES = {
    *(".txt", ".md", ".rst", ".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log"),
    *(".csv", ".tsv", ".parquet", ".pq", ".xls", ".xlsx", ".doc", ".docx", ".db", ".sqlite", ".html", ".htm", ".py"),
    *(".ipynb", ".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".mat", ".h5", ".hdf5", ".bin", ".sh", ".lst"),
    *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".wav", ".mp3", ".obj", ".ply", ".stl", ".off"),
}
"""Endings of files whose first bytes are not looked at."""
_NAMED = 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Skipped:
    """The files or folders of one kind that were left out."""

    kind: str
    """In words, such as ``HEIC images``."""
    paths: tuple[str, ...]
    """Relative to the folder that was read; a folder ends in a slash, and ``\\xe9`` stands for a byte that is no
    text."""
    advice: str = ""
    """What to do to use them; "": nothing."""

    def __str__(self) -> str:
        one = _ONE.get(self.kind, self.kind.removesuffix("s"))
        if self.kind == "drawings and documents":
            one = "drawing or document"
        named = ", ".join(f"'{path}'" for path in self.paths[:_NAMED]) + (", ..." if len(self.paths) > _NAMED else "")
        what = f"{len(self.paths):,} {one if len(self.paths) == 1 else self.kind}"
        return f"skipped: {what} ({named})" + (f"; {self.advice}" if self.advice else "")


@dataclass
class ImageFiles:
    """The images below a folder, and what was skipped."""

    root: str
    paths: list[str] = field(default_factory=list)
    """Relative to the root, with forward slashes; those of one folder are together and sorted."""
    skipped_paths: dict[str, list[str]] = field(default_factory=dict)
    """Those of each kind."""
    _real: dict[str, str] = field(default_factory=dict)
    """The folder that each folder is, links resolved."""
    _linked: bool = False

    def skip(self, kind: str, path: str) -> None:
        """Count a file or folder as skipped."""
        self.skipped_paths.setdefault(kind, []).append(path)

    def skipped(self, without: Iterable[str] = ()) -> tuple[Skipped, ...]:
        """All that was skipped, but for these kinds; first what can be used when it is changed."""
        advice = {kind: text for kind, text, _ in _UNREADABLE} | _ADVICE
        return tuple(
            Skipped(kind, tuple(map(printable, paths)), advice.get(kind, ""))
            for kind, paths in sorted(self.skipped_paths.items(), key=lambda item: (item[0] not in advice, item[0]))
            if paths and kind not in set(without)
        )

    def once(self, paths: Sequence[str]) -> list[str]:
        """The paths without those of a file that an earlier one is a link's way to."""
        if not self._linked:
            return list(paths)
        seen, kept = set(), []
        for path in paths:
            below, _, name = path.rpartition("/")
            file = (self._real[below], name)
            if file not in seen:
                seen.add(file)
                kept.append(path)
        return kept

    def no_images(self, where: str = "") -> str:
        """The text for a folder without images: what there is instead."""
        skipped = self.skipped((EMPTY, HIDDEN, HIDDEN_FOLDERS))
        more = "".join(f"; {text}" for text in map(str, skipped))
        return f"{where or self.root}: there are no images in it (.jpg, .png, .webp, ...){more}"

    def _walk(
        self, below: str, chain: tuple[str, ...], listed: Mapping[str, Sequence[RemoteEntry]] | None = None
    ) -> int:
        """Walk the folder ``root/below``, whose real path is the last of the chain of the folders that led to it;
        returns the number of its images.

        Args:
            listed: what is in each folder, of a folder at an address.
        """
        before, empty = len(self.paths), self.skipped_paths.setdefault(EMPTY, [])
        num_empty = len(empty)
        self._real[below] = chain[-1]
        folders = []
        if listed is not None:
            entries: Sequence[Any] = listed.get(below, ())
        else:
            entries = entries_of(os.path.join(self.root, below) if below else self.root)  # noqa: PTH118
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if _is(entry.is_dir):
                if self._takes_folder(entry, path, chain):
                    folders.append((path, entry))
            elif (kind := _kind_of(entry)) is None:
                self.paths.append(path)
            else:
                self.skip(kind, path)
        for path, entry in folders:
            link = entry.is_symlink()
            self._linked |= link
            real = os.path.realpath(entry.path) if link else os.path.join(chain[-1], entry.name)  # noqa: PTH118
            self._walk(path, (*chain, real), listed)
        if len(self.paths) == before and below:
            # The outermost folder stands for those in it.
            empty[num_empty:] = [f"{below}/"]
        return len(self.paths) - before

    def _takes_folder(self, entry: os.DirEntry[str] | RemoteEntry, path: str, chain: tuple[str, ...]) -> bool:
        kind = None
        if not is_text(entry.name):
            kind = _NO_TEXT
        elif is_system_folder(entry.name):
            kind = HIDDEN_FOLDERS
        elif entry.is_symlink() and _leads_back(os.path.realpath(entry.path), chain):
            kind = _LOOPS
        if kind is not None:
            self.skip(kind, f"{path}/")
        return kind is None


def image_files(root: str | os.PathLike[str]) -> ImageFiles:
    """The images below a folder. Links to folders are followed, but for those that lead back to a folder above.

    Hidden files, those of the system (``Thumbs.db``, ``@eaDir/`` ...) and files that do not decode here are skipped.
    Which files are images, their endings decide (`divcon.data.decode.is_image_file`).

    Raises:
        DataError: there is no such folder, or one cannot be read.
    """
    check_name(root)
    if (url := url_of(root)) is not None:
        files = ImageFiles(url)
        files._walk("", ("",), entries_below(url))
        return files
    if not is_folder(root):
        raise DataError(f"{root}: {'this is not a folder' if Path(root).exists() else 'there is no such folder'}")
    files = ImageFiles(os.fspath(root))
    files._walk("", (os.path.realpath(root),))
    return files


def is_system_folder(name: str) -> bool:
    """Whether a folder is hidden, or one of the system's own (a recycle bin, thumbnails, snapshots ...), or an
    index that `divcon similar` wrote beside other images."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS or name.endswith(INDEX)


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden, or one of the system's own."""
    return is_system_folder(name) or name.casefold() in _SYSTEM_FILES


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder of this path.

    Raises:
        DataError: that cannot be known: a folder above it may not be read, or the name is too long.
    """
    try:
        return Path(path).is_dir()
    except OSError as error:
        raise DataError(f"{path}: this cannot be read ({error.strerror or error})") from None


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, by its ending alone."""
    ending = os.path.splitext(name.partition("?")[0])[1].lower()  # noqa: PTH122
    return ending in image_endings() and ending not in _NO_IMAGES


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, as Arrow and JSON need it. Python keeps other bytes of a name as lone surrogates."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def printable(name: str) -> str:
    """A name for messages, with ``\\xe9`` for each byte that is no text, and ``\\n`` and the like for characters that a
    terminal obeys in place of printing."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def check_name(path: str | os.PathLike[str]) -> None:
    """Raise DataError if a path, or a folder above it, has a name that is not UTF-8."""
    if not is_text(whole := os.path.abspath(path)):  # noqa: PTH100
        raise DataError(f"{printable(whole)}: this name is not UTF-8; rename it (convmv renames whole folders)")


def entries_of(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted by name.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: this folder cannot be read ({error.strerror or error}); change its permissions, or move it away"
        ) from None


def _is(test: Callable[[], bool]) -> bool:
    """The answer of an entry's test; False for a link that leads nowhere, or back to itself."""
    try:
        return test()
    except OSError:
        return False


def _kind_of(entry: os.DirEntry[str] | RemoteEntry) -> str | None:
    """What a file is skipped as; None: it is an image."""
    name = entry.name
    if not is_text(name):
        return _NO_TEXT
    if name.startswith(".") or name.casefold() in _SYSTEM_FILES:
        return HIDDEN
    # Windows drops dots and spaces at the end.
    ending = os.path.splitext(name.rstrip(". "))[1].lower()  # noqa: PTH122
    regular = _is(entry.is_file)
    if isinstance(entry, RemoteEntry):
        return _kind_at_address(entry, ending)
    if not regular and os.path.exists(entry.path):  # noqa: PTH110
        return _OTHER  # a pipe or socket: opening it would wait for ever
    if not regular:
        # A link to an image that is gone is reported where it is opened.
        return None if ending in image_endings() else _BROKEN
    if is_image_file(entry.path, ending):
        return None
    kind = next((kind for kind, _, endings in _UNREADABLE if ending in endings), None)
    if kind is None and ending and ending not in _NO_IMAGES and ending not in image_endings():
        kind = _MISNAMED if begins_as_image(entry.path) else None
    return kind or _OTHER


def _kind_at_address(entry: RemoteEntry, ending: str) -> str | None:
    """As `_kind_of`, by the name alone: to look into each file would take a request each. A file without an ending is
    an image: storages have many."""
    if (ending in image_endings() and ending not in _NO_IMAGES) or not ending:
        return None
    return next((kind for kind, _, endings in _UNREADABLE if ending in endings), _OTHER)


def _leads_back(real: str, chain: Sequence[str]) -> bool:
    """Whether a folder is one of the chain, or above one."""
    start = os.path.join(real, "")  # noqa: PTH118
    return any(folder == real or folder.startswith(start) for folder in chain)
