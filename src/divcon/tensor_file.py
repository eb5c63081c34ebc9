"""Safetensors files with a checksum, so that one flipped bit is no other model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from divcon.files import written_whole

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
    with written_whole(path) as beside, beside.open("wb") as file:
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
