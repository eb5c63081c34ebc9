"""The file of a checkpoint: written whole, with a checksum, and the one before it kept. PyTorch is imported only where
its content is read or written."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divcon.errors import RunError
from divcon.runtime.files import atomic_write

MAY_CHANGE = {"workers", "device", "devices", "across", "num_threads", "checkpoint_minutes"}
"""Settings that a resumed training may change: they do not change what is computed, only the rounding."""

FORMAT = 3
READABLE = (2, 3)
"""The formats that can be read: 2 has no checksum, and is only saved between epochs."""

_MARK = b"\nsha256 of all above: "
_LENGTH = len(_MARK) + 64 + 1


class DamagedError(RunError):
    """A checkpoint's bytes are not those that were written."""


def previous_of(path: Path) -> Path:
    """The file of the checkpoint before the one at ``path``."""
    return path.with_name(path.name + ".previous")


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically; the one that was there becomes the previous one.

    Raises:
        OutputError: the file cannot be written; what was there is kept.
    """
    import torch

    # To memory first: PyTorch's own writer reports a full disk as a failed assertion.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.seek(0, io.SEEK_END)
    # After the end, where PyTorch's reader, like any of zip files, ignores it.
    buffer.write(_MARK + digest.encode() + b"\n")
    with atomic_write(path, previous=previous_of(path)) as beside:
        beside.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, which holds tensors and plain values only: no code in it is run.

    Raises:
        RunError: the file is damaged (`DamagedError`), cannot be read, or is of a format that this version does not
            know.
    """
    try:
        checked = _checked(path)  # before PyTorch is imported
    except OSError as error:
        raise RunError(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from None
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's reader fails in a dozen ways on bytes that are not its own, OSError among them.
        raise _damaged(path, type(error).__name__) from None
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise RunError(f"{path}: is no checkpoint of divcon; use another file, or remove it to start over")
    if version not in READABLE:
        raise RunError(
            f"{path}: the checkpoint has format {version}, and this version of divcon reads {READABLE[0]} to "
            f"{READABLE[-1]}; resume with the version that wrote it (a run's config.json names it), or start another "
            "run from this one's model (`init`)"
        )
    if version >= FORMAT and not checked:
        raise _damaged(path, "its checksum is missing")
    return content


def number_of_epochs(content: Mapping[str, Any]) -> float:
    """How many epochs are done in a checkpoint; with a half for one that is not complete."""
    return content["epochs_done"] + (0.5 if content.get("inside") else 0.0)


def restore_previous(path: Path) -> str | None:
    """Replace a damaged checkpoint by the previous one.

    Returns:
        A warning that says so; None where the checkpoint is not damaged, or there is no previous one.
    """
    previous = previous_of(path)
    if not (path.exists() and previous.exists()):
        return None
    try:
        if not _checked(path):
            read_checkpoint(path)
    except DamagedError:
        try:
            before = read_checkpoint(previous)
        except RunError:
            return None
        previous.replace(path)
        inside = f" and {before['inside']['batches']} batches" if before.get("inside") else ""
        return (
            f"{path}: the checkpoint was damaged; training resumes from the one before it, after "
            f"{before['epochs_done']} epochs{inside}"
        )
    except (RunError, OSError):
        pass  # reported when it is read
    return None


def _checked(path: Path) -> bool:
    """Whether the file has a checksum. Raises DamagedError where the checksum is wrong."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _LENGTH))
        match = re.fullmatch(re.escape(_MARK) + rb"([0-9a-f]{64})\n", file.read())
        if match is None:
            return False
        file.seek(0)
        digest, remaining = hashlib.sha256(), size - _LENGTH
        while remaining and (block := file.read(min(remaining, 1 << 20))):
            digest.update(block)
            remaining -= len(block)
    if digest.hexdigest().encode() != match[1]:
        raise _damaged(path, "its checksum is wrong")
    return True


def _damaged(path: Path, how: str) -> DamagedError:
    also = " and so is the one before it" if previous_of(path).exists() else ""
    return DamagedError(
        f"{path}: the checkpoint is damaged ({how}){also}; start another run, from this one's model if it has one "
        "(`init`)"
    )
