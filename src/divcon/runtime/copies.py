"""Copies on this machine of files at addresses, at the places that stand for them (`divcon.runtime.places`).

`here` brings what an address holds to its place, if it has changed; `uploaded` sends a file from there. Beside each
copy a record says which version of the file it is, so that a change here, which an upload that failed has left, is
not taken for a change there.

Parquet files are not copied: their place holds an empty file, and `opened` reads them block by block.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from divcon.runtime.places import cache_folder, place, url_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STREAMED = (".parquet", ".pq", ".tar")
"""Endings of files that are read block by block."""
_UNSAVED = ".unsaved"
_OF_ANOTHER = ".previous"
"""The ending of a checkpoint before the last, which is of this machine alone."""

_known: set[Path] = set()
"""What this process has brought already."""


def here(path: str | os.PathLike[str], *, without: Sequence[str] = ()) -> Path:
    """The path where a file or folder can be read: a path of this machine as it is, of an address its place, with a
    copy of what is there now. Asked again, the same process has it already.

    Args:
        without: names in a folder that are left out, of files and folders.

    Raises:
        RemoteError: the storage cannot be reached, or refuses. That there is nothing is no error: then there is
            nothing at the place.
    """
    target = place(path)
    url = url_of(target)
    if url is None or target in _known:
        return target
    from divcon.runtime import hub, remote

    with hub.pinned():
        about = remote.info(url)
        if about is not None and not about.folder:
            bring(target, url, about)
        else:
            files = remote.listing(url) if about is not None else {}
            kept = {
                name: each
                for name, each in files.items()
                if name.split("/")[0] not in without and not _is_private(name.rsplit("/", 1)[-1])
            }
            for name, each in kept.items():
                bring(target / name, f"{url}/{name}", each)
            _settle(target, files)
    _known.add(target)
    return target


def forget(path: str | os.PathLike[str]) -> None:
    """Let `here` look again at what is at an address: it may have changed since this process looked."""
    target = place(path)
    for known in [each for each in _known if each == target or each.is_relative_to(target)]:
        _known.discard(known)


def uploaded(path: Path) -> None:
    """Send a file to the address that its path stands for; of other paths, nothing is done.

    Raises:
        RemoteError: it cannot be written there. The file stays here, and `here` sends it later.
    """
    url = url_of(path)
    if url is None or any(map(_is_private, path.relative_to(cache_folder()).parts)):
        return
    from divcon.runtime import remote
    from divcon.runtime.lease import check_not_lost

    check_not_lost(url)
    with _locked(path):
        about = path.stat()
        remote.put(path, url)
        there = remote.info(url)
        streamed = path.suffix.lower() in STREAMED
        if streamed:
            _blank(path)
            about = path.stat()
        _record(path, url, there, about, streamed=streamed)


def removed(path: Path) -> None:
    """Remove a file or folder here, and at the address that its path stands for; it is no error if there is none.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if (url := url_of(path)) is None:
        return
    from divcon.runtime import remote

    for name in remote.listing(url):
        remote.remove(f"{url}/{name}")
    remote.remove(url)


def opened(path: str | os.PathLike[str]) -> Any:
    """What Arrow and others read a file from: the path, or of a file that is not copied, a `RemoteFile`.

    Raises:
        RemoteError: as of `here`.
    """
    url = url_of(path)
    if url is None:
        return path
    target = place(path)
    record = _read_record(target)
    if record is None or not record.get("streamed") or not target.exists():
        target = here(target)
        record = _read_record(target)
        if record is None or not record.get("streamed"):
            return target
    from divcon.runtime.blocks import RemoteFile

    return RemoteFile(url, record["size"], record["version"])


def open_binary(path: Path) -> BinaryIO:
    """A file for reading, from here or block by block.

    Raises:
        OSError: it cannot be read.
    """
    source = opened(path)
    return source.open("rb") if isinstance(source, Path) else source


def read_file(file: str | os.PathLike[str]) -> bytes:
    """The content of a path or address, which is not copied.

    Raises:
        OSError: it cannot be read.
    """
    url = url_of(file)
    if url is None:
        return Path(file).read_bytes()
    from divcon.runtime import remote

    return remote.read(url)


def size_of(path: Path) -> int:
    """The size of a file in bytes, also of one that is not copied.

    Raises:
        OSError: there is no such file.
    """
    size = path.stat().st_size
    record = _read_record(path) if url_of(path) is not None else None
    return record["size"] if record is not None and record.get("streamed") else size


def removable(path: Path) -> bool:
    """Whether a copy is the same as the file at its address, so that it may be removed from here."""
    record = _read_record(path)
    return record is not None and not _differs(path, record)


def bring(path: Path, url: str, about: Any) -> None:
    """Make the copy of a file what is at the address, unless there is something here that is to be sent."""
    record = _read_record(path)
    streamed = path.suffix.lower() in STREAMED and about.size is not None
    if record is not None and path.exists() and not _differs(path, record) and _is_of(record, about):
        with contextlib.suppress(OSError):
            os.utime(_record_path(path))
        return
    from divcon.runtime import remote
    from divcon.runtime.blocks import written

    with _locked(path):
        # Another process may have changed both meanwhile.
        record, about = _read_record(path), remote.info(url) or about
        if path.exists() and (record is None or _differs(path, record)):
            if record is not None and _is_of(record, about):
                _send(path, url)
                return
            if record is None and path.stat().st_size == about.size and not streamed:
                # Sent, and killed before that was recorded; or changed. What is there counts.
                pass
            else:
                path.replace(path.with_name(path.name + _UNSAVED))
        elif record is not None and path.exists() and _is_of(record, about):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if streamed:
            _blank(path)
        else:
            beside = path.with_name(f".{path.name}.{os.getpid()}.part")
            try:
                remote.get(url, beside)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
        _record(path, url, about, path.stat(), streamed=streamed)
        written(0 if streamed else path.stat().st_size)


def _settle(folder: Path, there: dict[str, Any]) -> None:
    """Remove copies of files that are gone from an address, and folders that this leaves empty. What was written here
    and not sent stays: whoever writes the folder goes on with it."""
    for top, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(top, name)
            record = _read_record(path)
            if _is_private(name):
                gone = not there and name.endswith(_OF_ANOTHER)  # of a run that was removed
            else:
                gone = path.relative_to(folder).as_posix() not in there and record is not None
                gone = gone and not _differs(path, record or {})
            if gone:
                with contextlib.suppress(OSError):
                    path.unlink()
                    _record_path(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            Path(top).rmdir()


def send_rest(folder: Path) -> None:
    """Send what was written into the place of a folder, and could not be sent then.

    Raises:
        RemoteError: it cannot be written.
    """
    if url_of(folder) is None:
        return
    for top, _, names in os.walk(folder):
        for name in names:
            path = Path(top, name)
            if not _is_private(name) and ((record := _read_record(path)) is None or _differs(path, record)):
                uploaded(path)


def _is_private(name: str) -> bool:
    """Whether a file is of this machine alone: a lock, one that is being written, the checkpoint before the last."""
    return name.startswith(".") or name.endswith((".new", ".part", ".lock", _UNSAVED, _OF_ANOTHER))


def _send(path: Path, url: str) -> None:
    from divcon.runtime import remote

    about = path.stat()
    remote.put(path, url)
    _record(path, url, remote.info(url), about)


def _blank(path: Path) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_bytes(b"")
    beside.replace(path)


def _is_of(record: dict[str, Any], about: Any) -> bool:
    """Whether a record is of the version that the storage has. A server that names no version has always another."""
    return (
        about is not None
        and about.version != ""
        and (record["version"], record["size"])
        == (
            about.version,
            about.size,
        )
    )


def _differs(path: Path, record: dict[str, Any]) -> bool:
    """Whether a file was changed here since it was copied or sent."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns] != record["here"]


def _record_path(path: Path) -> Path:
    digest = hashlib.sha256(os.fspath(path).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / "records" / digest[:2] / f"{digest}.json"


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(_record_path(path).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "here" in record else None


def _record(path: Path, url: str, about: Any, local: os.stat_result, *, streamed: bool = False) -> None:
    record = {
        "url": url,
        "version": "" if about is None else about.version,
        "size": local.st_size if about is None or about.size is None else about.size,
        "here": [local.st_size, local.st_mtime_ns],
        "streamed": streamed,
    }
    target = _record_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_text(json.dumps(record))
    beside.replace(target)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time changes a copy and its record."""
    lock = _record_path(path).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
