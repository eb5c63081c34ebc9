"""Files that are written whole or not at all, and checksums of tensors in files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from divcon.errors import OutputError
from divcon.runtime.copies import uploaded
from divcon.runtime.places import place, text_of, url_of


@contextmanager
def atomic_write(path: str | Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Write a file whole or not at all: yields a path beside ``path``, which replaces ``path`` when the block ends.

    The folder is created. If the block fails, ``path`` stays as it was, and nothing is left beside it. Neither a kill
    nor a loss of power leaves half a file. If ``path`` is an address, or stands for one (`divcon.runtime.places`), the
    file is written here and then uploaded, when the block ends.

    Args:
        previous: a path to keep the old file at.

    Raises:
        OutputError: the file cannot be written; the message names it and says why.
    """
    path = place(path)
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep_previous(path, previous)
        beside.replace(path)
        _sync_names(path.parent)
        uploaded(path)
    except OSError as error:
        raise OutputError(f"{text_of(path)}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _keep_previous(path: Path, previous: Path) -> None:
    """Give the file a second name, so that a file is at ``path`` at all times."""
    beside = previous.with_name(previous.name + ".new")
    beside.unlink(missing_ok=True)
    # A kill may have left one file with both names; renaming one to the other would then do nothing.
    if previous.exists() and previous.samefile(path):
        return
    try:
        beside.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, beside)
    beside.replace(previous)


def _sync_names(folder: Path) -> None:
    """Write a folder's names to the disk: without that, a loss of power may undo a renaming."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot, and the file is there
    finally:
        os.close(descriptor)


def check_writable(path: str | Path) -> None:
    """Check, before hours of work, that ``path`` can be written; a file that is there stays as it is.

    Raises:
        OutputError: it cannot be written.
    """
    path = place(path)
    if (url := url_of(path)) is not None:
        _check_upload(url)
        return
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: all ranks of a group check at once, and another process may be writing beside the path.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}."):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def check_folder(path: str | Path) -> None:
    """Check, before any work, that files can be written into a folder, which need not exist yet.

    Raises:
        OutputError: it is a file, or cannot be written.
    """
    path = place(path)
    if (url := url_of(path)) is not None:
        _check_upload(f"{url}/divcon")
        return
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; give the name of a folder")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise OutputError(f"{path}: cannot be written ({there} is a file)")
    if not os.access(there, os.W_OK):
        raise OutputError(f"{path}: cannot be written (no permission to write in {there})")


def _check_upload(url: str) -> None:
    """Write a small file beside the address, and remove it: storages have no other way to ask."""
    from divcon.runtime import remote

    probe = f"{url}.{os.getpid()}.test"
    try:
        remote.put_bytes(b"divcon can write here\n", probe)
        remote.remove(probe)
    except OSError as error:
        raise OutputError(f"{text_of(url)}: cannot be written ({error.strerror or error})") from error


_CHECKSUM = "sha256"


class DamagedTensorsError(ValueError):
    """A file of tensors differs from what was written."""


def write_tensors(path: Path, content: bytes) -> None:
    """Write the bytes that safetensors' ``save`` returned, with a checksum in the metadata of the header.

    Raises:
        OutputError: the file cannot be written.
    """
    header, body = _split(memoryview(content))
    header["__metadata__"] = {**header.get("__metadata__", {}), _CHECKSUM: _digest(header, body)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as beside, beside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(body)


def checked_tensors(path: Path) -> bytes:
    """Read a file for safetensors' ``load``, and compare it with its checksum. A file without one, from another program
    or an earlier version, passes.

    Raises:
        OSError: the file cannot be read.
        DamagedTensorsError: the file is damaged.
    """
    content = path.read_bytes()
    header, body = _split(memoryview(content))
    checksum = header.get("__metadata__", {}).get(_CHECKSUM)
    if checksum is not None and checksum != _digest(header, body):
        raise DamagedTensorsError("its checksum differs")
    return content


def _split(content: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Split the content into the header and the bytes of the tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(bytes(content[8:end]))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict) or end > len(content):
        raise DamagedTensorsError("its header is damaged")
    return header, content[end:]


def _digest(header: dict[str, Any], body: memoryview) -> str:
    """The digest of the names, dtypes, shapes and bytes of the tensors."""
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    digest.update(body)
    return digest.hexdigest()
