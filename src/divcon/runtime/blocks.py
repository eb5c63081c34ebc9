"""Remote files read piece by piece: by range requests, through a cache on disk that all processes share.

A file is read in blocks of 1 MiB, each a file of the cache folder, named for the address, the version and the place.
A block is written beside its place and renamed, and begins with its checksum: half of one is never read, and a damaged
one is fetched again. Blocks that were used longest ago are removed when the cache grows beyond its limit. (fsspec's own
cache of blocks has neither checksums nor a limit.)
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import threading
import time
import zlib
from collections import OrderedDict
from pathlib import Path

from divcon.errors import ConfigError, RemoteError
from divcon.runtime import remote
from divcon.runtime.places import CACHE_SIZE, cache_folder, without_secrets

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BLOCK = 1 << 20
_A_REQUEST = 16 * BLOCK
"""The most that one request asks for."""
_IN_MEMORY = 8
"""Blocks of a file that stay in memory: a table's end and a row group are read in many small pieces."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_KEPT_COPIES = 7 * 24 * 3600
"""Seconds in which a whole copy is not removed after its last use: a process may read it again."""


class RemoteFile(io.RawIOBase):
    """A remote file for reading, from where one seeks to; thread-safe are `read_at` and what a caller locks.

    Args:
        size, version: as the storage says; asked for if left out.

    Raises:
        RemoteError: there is no such file, or it cannot be read; also from reading.
    """

    def __init__(self, url: str, size: int | None = None, version: str | None = None) -> None:
        super().__init__()
        if size is None or version is None:
            about = remote.info(url)
            if about is None or about.folder:
                raise remote.RemoteMissingError(without_secrets(url), "there is no such file")
            size, version = about.size, about.version
        if size is None:
            raise RemoteError(without_secrets(url), "the server does not say how large it is; download it first")
        self.url, self.size, self.version = url, size, version
        self._key = hashlib.sha256(f"{url}\0{version}\0{size}".encode()).hexdigest()[:40]
        self.ahead = 1
        """The fewest blocks that a request asks for: more where the file is read from start to end."""
        self._at = 0
        self._near: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[RemoteFile], tuple[str, int, str]]:
        return RemoteFile, (self.url, self.size, self.version)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self.size if size is None or size < 0 else min(self.size, self._at + size)
        content = self.read_at(self._at, stop)
        self._at += len(content)
        return content

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read_at(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` to ``stop``."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        first, last = start // BLOCK, (stop - 1) // BLOCK
        with self._lock:
            blocks = {number: self._here(number) for number in range(first, last + 1)}
            missing = [number for number, content in blocks.items() if content is None]
            for run in _runs(missing):
                last_of_file = (self.size - 1) // BLOCK
                blocks |= self._fetch(run[0], min(max(run[-1], run[0] + self.ahead - 1), last_of_file))
            content = b"".join(blocks[number] or b"" for number in range(first, last + 1))
            for number in sorted(blocks)[-_IN_MEMORY:]:
                self._near[number] = blocks[number] or b""
                self._near.move_to_end(number)
            while len(self._near) > _IN_MEMORY:
                self._near.popitem(last=False)
        return content[start - first * BLOCK : stop - first * BLOCK]

    def _length(self, number: int) -> int:
        return min(BLOCK, self.size - number * BLOCK)

    def _path(self, number: int) -> Path:
        return cache_folder() / "blocks" / self._key[:2] / f"{self._key}-{number}"

    def _here(self, number: int) -> bytes | None:
        if number in self._near:
            return self._near[number]
        path = self._path(number)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if len(content) != 4 + self._length(number) or zlib.crc32(content[4:]).to_bytes(4, "little") != content[:4]:
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        _touch(path)
        return content[4:]

    def _fetch(self, first: int, last: int) -> dict[int, bytes]:
        start, stop = first * BLOCK, min((last + 1) * BLOCK, self.size)
        content = remote.read_range(self.url, start, stop)
        if len(content) == self.size and stop - start < self.size:  # a server without ranges sends all
            every = {n: content[n * BLOCK : (n + 1) * BLOCK] for n in range(-(-self.size // BLOCK))}
            self._keep(every)
            return {number: every[number] for number in range(first, last + 1)}
        if len(content) != stop - start:
            raise RemoteError(without_secrets(self.url), f"{stop - start} bytes were asked for, {len(content)} came")
        blocks = {n: content[n * BLOCK - start : (n + 1) * BLOCK - start] for n in range(first, last + 1)}
        self._keep(blocks)
        return blocks

    def _keep(self, blocks: dict[int, bytes]) -> None:
        # Without room on the disk the file is read all the same.
        with contextlib.suppress(OSError):
            for number, content in blocks.items():
                path = self._path(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
                try:
                    beside.write_bytes(zlib.crc32(content).to_bytes(4, "little") + content)
                    beside.replace(path)
                finally:
                    beside.unlink(missing_ok=True)
            written(sum(map(len, blocks.values())))


def _runs(numbers: list[int]) -> list[list[int]]:
    """Consecutive numbers together, as many as one request asks for."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1 and len(runs[-1]) < _A_REQUEST // BLOCK:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _touch(path: Path) -> None:
    """Note that a file is used; once an hour, which is exact enough."""
    with contextlib.suppress(OSError):
        now = time.time()
        if now - path.stat().st_mtime > 3600:
            os.utime(path, (now, now))


def parse_size(text: str) -> int:
    """Bytes of a text such as ``50GB`` or ``512MiB``.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if match is None:
        raise ConfigError(f"`cache_size` {text!r}: is no size; write it as 50GB or 512MB", field="cache_size")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def cache_limit() -> int:
    """The size in bytes that the cache folder may have: DIVCON_CACHE_SIZE, or half of what is free on its disk with
    what it has.

    Raises:
        ConfigError: the variable is no size.
    """
    if named := os.environ.get(CACHE_SIZE):
        return parse_size(named)
    folder = cache_folder()
    there = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    return shutil.disk_usage(there).free // 2


_written = 0


def written(size: int) -> None:
    """Count what this process has written to the cache; now and then remove what was used longest ago."""
    global _written
    _written += size
    if _written * 20 > (limit := cache_limit()) or _written > 1 << 30:
        _written = 0
        trim(limit)


def trim(limit: int) -> None:
    """Remove blocks and copies that were used longest ago, until the cache folder has at most ``limit`` bytes; one
    process at a time does. Copies of whole files stay for a week after their last use, and while they hold something
    that is not uploaded."""
    from divcon.runtime.copies import removable

    folder = cache_folder()
    with contextlib.suppress(OSError), (folder / "trim.lock").open("a") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
        files = [(each.stat(), each) for each in _files(folder / "blocks")]
        copies = [(each.stat(), each) for each in _files(folder / "at")]
        total = sum(about.st_size for about, _ in [*files, *copies])
        if total <= limit:
            return
        old = time.time() - _KEPT_COPIES
        files += [(about, path) for about, path in copies if about.st_atime < old and about.st_mtime < old]
        for about, path in sorted(files, key=lambda item: max(item[0].st_mtime, item[0].st_atime)):
            if total <= limit * 0.95:
                return
            if path.is_relative_to(folder / "at") and not removable(path):
                continue
            with contextlib.suppress(OSError):
                path.unlink()
                total -= about.st_size


def _files(folder: Path) -> list[Path]:
    found = []
    for top, _, names in os.walk(folder):
        found += [Path(top, name) for name in names]
    return found
