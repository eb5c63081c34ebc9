"""Where a LanceDB store is: a folder of this machine, or object storage (``s3://bucket/index``); each with the file
about the index, and the lock of its only writer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from divcon.errors import OutputError, RemoteError, RemoteMissingError, StoreError
from divcon.runtime.files import atomic_write
from divcon.runtime.lease import FileNote, Lease
from divcon.runtime.lock import FolderLock
from divcon.runtime.places import without_secrets

ABOUT_FILE = "divcon.json"
"""The file that makes a place a store."""
SCHEMES = ("s3", "gs", "az")
"""The kinds of object storage that LanceDB and fsspec both know."""
FRESH_SECONDS = 2.0
"""How old what is known of an index in object storage may be: each look is a request."""


class FolderPlace:
    """A folder of this machine."""

    consistency = timedelta(0)
    """How old LanceDB's view may be. Other processes' writes are visible at the next read."""
    options: dict[str, str] | None = None
    """LanceDB's storage options."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = self.address = str(folder)
        self._about_file = folder / ABOUT_FILE
        self._known: tuple[object, bytes] | None = None

    def is_there(self) -> bool:
        """Whether the folder exists."""
        return self.folder.is_dir()

    def exists(self) -> bool:
        """Whether there is an index."""
        return self._about_file.is_file()

    def read_about(self) -> bytes | None:
        """The file about the index; None: there is none."""
        try:
            status = self._about_file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._known  # each search asks several times
            if known is None or known[0] != stamp:
                known = self._known = (stamp, self._about_file.read_bytes())
            return known[1]
        except FileNotFoundError:
            return None

    def write_about(self, content: bytes) -> None:
        """Replace the file about the index."""
        with atomic_write(self._about_file) as beside:
            beside.write_bytes(content)

    def names(self) -> set[str]:
        """The names of what is there."""
        return {entry.name for entry in self.folder.iterdir()} if self.folder.is_dir() else set()

    def is_file(self) -> bool:
        """Whether a file is in the place of the folder."""
        return self.folder.is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer.

        Raises:
            StoreError: another process is writing.
        """
        lock = FolderLock(self.folder, "writing to it", StoreError)
        try:
            lock.acquire()
        except OutputError as error:
            raise StoreError(str(error)) from None
        try:
            yield
        finally:
            lock.release()

    def check_lock(self) -> None:
        """The kernel holds the lock: it is not lost."""


class BucketPlace:
    """A prefix in object storage: ``s3://bucket/path``."""

    folder = None
    consistency = timedelta(seconds=FRESH_SECONDS)

    def __init__(self, url: str) -> None:
        self.address = url.rstrip("/")
        self.uri = without_secrets(self.address)
        self._about: tuple[float, bytes | None] | None = None
        self._lease = Lease(self.uri, "writing to it", StoreError, _StoreNote(FileNote(self.address)))

    @property
    def options(self) -> dict[str, str]:
        """LanceDB's storage options: the endpoint that boto3 and fsspec take from the environment, and few retries."""
        limits = {"connect_timeout": "5s", "client_max_retries": "2", "client_retry_timeout": "30"}
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT")
        endpoint = next((os.environ[name] for name in names if os.environ.get(name)), None)
        if not self.address.startswith("s3://") or endpoint is None:
            return limits
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        insecure = {"allow_http": "true"} if endpoint.startswith("http://") else {}
        return {**limits, "aws_endpoint": endpoint, "aws_region": region, **insecure}

    def is_there(self) -> bool:
        return True

    def exists(self) -> bool:
        return self.read_about() is not None

    def read_about(self) -> bytes | None:
        from divcon.runtime import remote

        known = self._about
        if known is not None and known[0] > time.monotonic() - FRESH_SECONDS:
            return known[1]
        with _store_errors():
            try:
                content = remote.read(f"{self.address}/{ABOUT_FILE}")
            except RemoteMissingError as error:
                if error.bucket:
                    raise
                content = None
        self._about = (time.monotonic(), content)
        return content

    def write_about(self, content: bytes) -> None:
        from divcon.runtime import remote

        with _store_errors():
            remote.put_bytes(content, f"{self.address}/{ABOUT_FILE}")
        self._about = (time.monotonic(), content)

    def names(self) -> set[str]:
        from divcon.runtime import remote

        with _store_errors():
            return remote.names(self.address)

    def is_file(self) -> bool:
        return False

    def lock(self) -> AbstractContextManager[None]:
        """Be the only writer: see `Lease`.

        Raises:
            StoreError: another process is writing, or the storage cannot be written.
        """
        return self._lease.held()

    def check_lock(self) -> None:
        """Check that this process still has the lock that it took.

        Raises:
            StoreError: another process has taken it over.
        """
        self._lease.check()


class _StoreNote:
    """A note whose errors are those of a store."""

    def __init__(self, note: FileNote) -> None:
        self._note = note

    def put(self, content: Mapping[str, Any], *, new: bool = False) -> bool:
        with _store_errors():
            return self._note.put(content, new=new)

    def get(self) -> dict[str, Any] | None:
        with _store_errors():
            return self._note.get()

    def remove(self) -> None:
        with _store_errors():
            self._note.remove()


@contextmanager
def _store_errors() -> Iterator[None]:
    """Errors of the storage become StoreErrors, except that a file is missing."""
    try:
        yield
    except RemoteMissingError as error:
        if not error.bucket:
            raise
        raise StoreError(str(error)) from None
    except RemoteError as error:
        raise StoreError(str(error)) from None


Place = FolderPlace | BucketPlace
