"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from divcon.errors import OutputError


@contextmanager
def atomic_write(path: str | Path, *, previous: Path | None = None) -> Iterator[Path]:
    """A path beside ``path`` to write to, which becomes ``path`` when the block ends; its folder is made.

    A block that fails leaves what was there before, and nothing beside it. Neither a kill nor a loss of power leaves
    half a file.

    Args:
        previous: what was at ``path`` is kept there.

    Raises:
        OutputError: the file cannot be written; the message names it and says why.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        beside.replace(path)
        _sync_names(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """A second name for a file, so that there is one at ``path`` all the time."""
    beside = previous.with_name(previous.name + ".new")
    beside.unlink(missing_ok=True)
    # A kill may have left both names to one file; a renaming of one to the other would then do nothing.
    if previous.exists() and previous.samefile(path):
        return
    try:
        beside.hardlink_to(path)
    except OSError:  # not all file systems have them
        shutil.copyfile(path, beside)
    beside.replace(previous)


def _sync_names(folder: Path) -> None:
    """A renaming is on the disk only when its folder is."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(opened)
    except OSError:
        pass  # some network file systems know no such thing, and the file is there
    finally:
        os.close(opened)


def check_writable(path: str | Path) -> None:
    """Find out before hours of work whether ``path`` can be written afterwards; what is there stays.

    Raises:
        OutputError: it cannot.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; give the name of a file")
    probe = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


_NAME = "sha256"


class DamagedTensorsError(ValueError):
    """The file is not as it was written."""


def write_tensors(path: Path, content: bytes) -> None:
    """Write what safetensors' ``save`` gave, whole or not at all, with a checksum of it in the header's metadata.

    Raises:
        OutputError: the file cannot be written.
    """
    header, body = _parts(memoryview(content))
    header["__metadata__"] = {**header.get("__metadata__", {}), _NAME: _digest(header, body)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as beside, beside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(body)


def checked_tensors(path: Path) -> bytes:
    """The content of a file, for safetensors' ``load``, compared with its checksum; one without, of another program or
    an earlier version, passes.

    Raises:
        OSError: it cannot be read. DamagedTensorsError: it is damaged.
    """
    content = path.read_bytes()
    header, body = _parts(memoryview(content))
    written = header.get("__metadata__", {}).get(_NAME)
    if written is not None and written != _digest(header, body):
        raise DamagedTensorsError("its checksum is another one")
    return content


def _parts(content: memoryview) -> tuple[dict[str, Any], memoryview]:
    """The header, and the bytes of the tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(bytes(content[8:end]))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict) or end > len(content):
        raise DamagedTensorsError("its header is damaged")
    return header, content[end:]


def _digest(header: dict[str, Any], body: memoryview) -> str:
    """Of the names, kinds, shapes and bytes of the tensors."""
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    digest = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    digest.update(body)
    return digest.hexdigest()
