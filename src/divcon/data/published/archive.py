"""Unpack a downloaded archive beside itself: once, atomically, and nothing outside of its folder."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from divcon.errors import DataError, OutputError
from divcon.runtime.context import DEFAULT, Context

try:
    import fcntl
except ImportError:  # Windows, where two at a time are not kept apart
    fcntl = None

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz")
MOST_BYTES = 64 << 30
"""The most bytes to unpack; the largest of these data sets has a tenth of it."""
MOST_FILES = 1_000_000
_MARK = ".divcon-unpacked"
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError),
    UnicodeDecodeError,  # of a name
)


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive that `unpacked` can unpack."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpacked(archive: Path, context: Context = DEFAULT) -> Path:
    """Unpack ``NAME.zip`` (.tar, .tgz, .tar.gz) into ``NAME.unpacked`` beside it, unless that folder exists; return it.

    The archive is unpacked into ``NAME.unpacking``, which is renamed when it is complete: after an interruption, the
    next call starts again. A second process waits for the first.

    Args:
        context: reports the bytes unpacked.

    Raises:
        DataError: it is no such archive, broken, encrypted or too large, or contains links, devices or a path that
            leads outside; or ``NAME.unpacked`` is of another archive.
        OutputError: there is no space beside it, or no permission to write there.
    """
    stem = archive.name[: -len(next(s for s in sorted(ARCHIVE_SUFFIXES, key=len)[::-1] if _ends(archive, s)))]
    whole, part = (archive.with_name(f"{stem}.{state}") for state in ("unpacked", "unpacking"))
    try:
        with archive.open("rb") as file, _alone(file):
            size = os.fstat(file.fileno()).st_size
            if whole.exists():
                return _checked(whole, archive, size)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                unpack = _unpack_zip if _ends(archive, ".zip") else _unpack_tar
                unpack(archive, file, size, part, context)
                (part / _MARK).write_text(f"{size}\n")
                part.rename(whole)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except _BROKEN as error:
        raise DataError(
            f"{archive}: cannot be unpacked ({error or type(error).__name__}); if the download was cut short, fetch it "
            "again"
        ) from None
    except OSError as error:
        raise OutputError(
            f"{archive}: cannot be unpacked beside itself ({error.strerror or error}); unpack it where there is room, "
            "and give that folder"
        ) from error
    return whole


def _ends(archive: Path, suffix: str) -> bool:
    return archive.name.lower().endswith(suffix)


@contextmanager
def _alone(file: IO[bytes]) -> Iterator[None]:
    """Hold a lock on the file, which ends with the process; wait for it while another process holds it."""
    if fcntl is not None:
        with suppress(OSError):  # a file system that has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _checked(whole: Path, archive: Path, size: int) -> Path:
    mark = whole / _MARK
    unpacked_size = mark.read_text().strip() if mark.is_file() else ""
    if unpacked_size == str(size):
        return whole
    if unpacked_size.isdigit():
        what = f"was unpacked from an archive of {int(unpacked_size):,} bytes"
    else:
        what = "was not unpacked by divcon"
    raise DataError(
        f"{whole}: {what}, and {archive.name} has {size:,}; remove the folder to unpack anew, or give it in place of "
        "the archive"
    )


def _unpack_zip(archive: Path, file: IO[bytes], size: int, into: Path, context: Context) -> None:
    with zipfile.ZipFile(file) as held:
        members = held.infolist()
        # A zip lists its files before anything is written, and never yields more bytes than it lists.
        limit = _Limit(archive)
        for member in members:
            _check_name(archive, member.filename)
            limit.add(member.file_size)
            if stat.S_IFMT(mode := member.external_attr >> 16) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise DataError(f"{archive}: holds a link or device ({member.filename}), which is not unpacked")
            if member.flag_bits & 1:
                raise DataError(
                    f"{archive}: is encrypted; unpack it with the password that came with the data, and give the folder"
                )
        _check_room(archive, into, limit.bytes)
        done = 0
        for member in members:
            held.extract(member, into)
            done += member.file_size
            context.progress("unpack", done, limit.bytes)


def _unpack_tar(archive: Path, file: IO[bytes], size: int, into: Path, context: Context) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            f"{archive}: this Python unpacks no tar safely; update it (3.11.4), or unpack the archive first"
        )
    _check_room(archive, into, size)
    limit = _Limit(archive)
    with tarfile.open(fileobj=file, mode="r:*") as held:
        for member in held:
            _check_name(archive, member.name)
            limit.add(member.size)
            if not (member.isreg() or member.isdir()):
                raise DataError(f"{archive}: holds a link or device ({member.name}), which is not unpacked")
            held.extract(member, into, filter="data")
            # A compressed tar does not say how large its files are: progress is in bytes of the archive.
            context.progress("unpack", file.tell(), size)
        # A tar that was cut off between two members lacks only the zeros at its end.
        assert held.fileobj is not None
        held.fileobj.seek(held.offset)
        if held.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise EOFError("it ends before its end mark")


class _Limit:
    """Counts the files and bytes of an archive, and refuses too many."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.files = self.bytes = 0

    def add(self, size: int) -> None:
        self.files += 1
        self.bytes += size
        if self.files > MOST_FILES or self.bytes > MOST_BYTES:
            raise DataError(
                f"{self.archive}: holds more than {MOST_FILES:,} files or {MOST_BYTES >> 30} GiB; this is none of the "
                "data sets that are read here"
            )


def _check_name(archive: Path, name: str) -> None:
    # On Windows a backslash separates folders, and a colon ends a drive's name.
    parts = re.split(r"[/\\]", name)
    if ".." in parts or not parts[0] or ":" in parts[0] or "\0" in name:
        raise DataError(f"{archive}: holds a path that leads outside ({name!r}); nothing of it is unpacked")


def _check_room(archive: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OutputError(
            f"{archive}: needs {size / 1e9:.1f} GB beside it, and {free / 1e9:.1f} GB are free; unpack it where there "
            "is room, and give that folder"
        )
