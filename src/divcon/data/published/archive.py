"""Archives as a data set is downloaded, unpacked beside themselves: once, whole or not at all, and nothing outside."""

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
"""More than this, unpacked, is no data set that is read here: the largest has a tenth of it."""
MOST_FILES = 1_000_000
_MARK = ".divcon-unpacked"
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError),
    UnicodeDecodeError,  # of a name
)


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive which `unpacked` takes."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpacked(archive: Path, context: Context = DEFAULT) -> Path:
    """The folder ``NAME.unpacked`` beside the archive ``NAME.zip`` (.tar, .tgz, .tar.gz), made where it is not there.

    What is unpacked is first in ``NAME.unpacking``, which gets its name when all is there, so that an interrupted
    unpacking is never taken for a whole one: the next one starts anew. Two at a time wait for each other.

    Args:
        context: reports the bytes unpacked.

    Raises:
        DataError: it is no such archive, broken, encrypted or too large, or holds links, devices, or a path that leads
            outside; or ``NAME.unpacked`` is there and was made of another archive.
        OutputError: there is no room beside it, or it may not be written there.
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
    """Wait until no other process has the file so; a process that dies lets go of it."""
    if fcntl is not None:
        with suppress(OSError):  # a file system that has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _checked(whole: Path, archive: Path, size: int) -> Path:
    mark = whole / _MARK
    made_of = mark.read_text().strip() if mark.is_file() else ""
    if made_of == str(size):
        return whole
    what = f"was unpacked from an archive of {int(made_of):,} bytes" if made_of.isdigit() else "was not made by divcon"
    raise DataError(
        f"{whole}: {what}, and {archive.name} has {size:,}; remove the folder to unpack anew, or give it in place of "
        "the archive"
    )


def _unpack_zip(archive: Path, file: IO[bytes], size: int, into: Path, context: Context) -> None:
    with zipfile.ZipFile(file) as held:
        members = held.infolist()
        # A zip says before anything is written what it holds; what it then gives is never more than that.
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
            # How large all of it is, a compressed tar does not say; how much of the archive is read, we know.
            context.progress("unpack", file.tell(), size)
        # A tar that was cut short between two members reads like a whole one, but for the zeros that end it.
        assert held.fileobj is not None
        held.fileobj.seek(held.offset)
        if held.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise EOFError("it ends before its end mark")


class _Limit:
    """What was unpacked, and that it is not too much."""

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
    # Windows takes a backslash for a slash, and a colon for a drive's.
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
