"""Images in tar archives, read in any order: the place and size of each are known."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from divcon.errors import ImageError
from divcon.runtime.places import is_url, text_of

_FILES_OPEN = 64


@dataclass(frozen=True)
class Archive:
    """A tar archive: a path, or an address with what its storage says of it."""

    name: str
    size: int
    version: str
    """The ETag, or the time of the last change; in another version the places are others."""


@dataclass(frozen=True, eq=False)
class TarMembers:
    """The encoded images in tar archives, indexed like an Arrow column, by rows numbered through all archives.

    A process keeps the archives open that it read last. Those at addresses are read by range, through the cache of
    blocks.
    """

    archives: tuple[Archive, ...]
    archive: np.ndarray
    """(N,) int32, the archive of each row."""
    offset: np.ndarray
    """(N,) int64, where the bytes of each image begin."""
    size: np.ndarray
    """(N,) int64, their number."""
    _opened: OrderedDict[tuple[int, int], Any] = field(default_factory=OrderedDict)

    def __reduce__(self) -> tuple[Any, ...]:
        return TarMembers, (self.archives, self.archive, self.offset, self.size)

    def __len__(self) -> int:
        return len(self.archive)

    def __getitem__(self, row: int) -> pa.Scalar:
        """The image of the row, a binary scalar.

        Raises:
            ImageError: its archive cannot be read any more, or has changed.
        """
        number, start, size = int(self.archive[row]), int(self.offset[row]), int(self.size[row])
        archive = self.archives[number]
        try:
            file = self._file(number)
            content = os.pread(file, size, start) if isinstance(file, int) else file.read_at(start, start + size)
        except OSError as error:
            raise ImageError(f"{text_of(archive.name)}: cannot be read any more ({error.strerror or error})") from None
        if len(content) != size:
            raise ImageError(f"{text_of(archive.name)}: has become shorter; has it changed?")
        return pa.scalar(content, pa.large_binary())

    def _file(self, number: int) -> Any:
        # A forked process needs its own.
        key = (os.getpid(), number)
        if key not in self._opened:
            archive = self.archives[number]
            if is_url(archive.name):
                from divcon.runtime.blocks import RemoteFile

                self._opened[key] = RemoteFile(archive.name, archive.size, archive.version)
            else:
                descriptor = os.open(archive.name, os.O_RDONLY)
                about = os.fstat(descriptor)
                if (about.st_size, str(about.st_mtime_ns)) != (archive.size, archive.version):
                    os.close(descriptor)
                    raise OSError(0, "it has changed since it was indexed; read the data again")
                self._opened[key] = descriptor
            while len(self._opened) > _FILES_OPEN:
                (process, _), old = self._opened.popitem(last=False)
                if isinstance(old, int) and process == os.getpid():
                    os.close(old)
        self._opened.move_to_end(key)
        return self._opened[key]
