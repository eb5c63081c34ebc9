"""The file of a checkpoint: tensors and plain values, with a checksum, and the one before it."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from divcon.errors import RunError
from divcon.files import written_whole

FORMAT = 3
READ = (2, 3)
"""The formats that are read: 2 had no checksum and was written between epochs alone."""

_MARK = b"\nsha256 of all above: "
_LENGTH = len(_MARK) + 64 + 1


class DamagedError(RunError):
    """A checkpoint's bytes are not those that were written."""


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is."""
    return path.with_name(path.name + ".previous")


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write, whole or not at all; what was there becomes the previous one.

    Raises:
        OutputError: the file cannot be written; what was there is kept.
    """
    # By way of memory: PyTorch's own writer says of a full disk only that an assertion failed.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.seek(0, io.SEEK_END)
    # After the end, where PyTorch's reader, like any of zip files, passes it over.
    buffer.write(_MARK + digest.encode() + b"\n")
    with written_whole(path, previous=previous_of(path)) as beside:
        beside.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, of tensors and plain values only: no code in it is run.

    Raises:
        RunError: the file is damaged (`DamagedError`), cannot be read, or is of a format that this version does not
            know.
    """
    try:
        checked = _checked(path)
    except OSError as error:
        raise RunError(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's reader fails in a dozen ways on bytes that are not its own, OSError among them.
        raise _damaged(path, type(error).__name__) from None
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise RunError(f"{path}: is no checkpoint of divcon; give another --out, or remove it to begin anew")
    if found not in READ:
        raise RunError(
            f"{path}: the checkpoint has format {found}, and this version of divcon reads {READ[0]} to {READ[-1]}; go "
            "on with the version that wrote it (versions in config.json), or begin anew in another --out, from the "
            "model that is kept with --init"
        )
    if found >= FORMAT and not checked:
        raise _damaged(path, "its checksum is missing")
    return content


def mend(path: Path) -> str | None:
    """Put the previous checkpoint in the place of one that is damaged.

    Returns:
        What a person should know; None where there was nothing to mend, or nothing to mend it with.
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
            f"{path}: the checkpoint was damaged, and the one before it is used, of {before['epochs_done']} "
            f"epochs{inside}; what was trained since is trained again"
        )
    except (RunError, OSError):
        pass  # said by who reads it
    return None


def _checked(path: Path) -> bool:
    """Whether the file has a checksum. Raises DamagedError where it has another content."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _LENGTH))
        found = re.fullmatch(re.escape(_MARK) + rb"([0-9a-f]{64})\n", file.read())
        if found is None:
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - _LENGTH
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    if digest.hexdigest().encode() != found[1]:
        raise _damaged(path, "its checksum is another one")
    return True


def _damaged(path: Path, how: str) -> DamagedError:
    also = " and so is the one before it" if previous_of(path).exists() else ""
    return DamagedError(
        f"{path}: the checkpoint is damaged ({how}){also}; begin anew in another --out, from the model that is kept "
        "with --init"
    )
