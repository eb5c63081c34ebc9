"""`PartFolder`: a folder of parquet files, on a disk or at an address such as ``s3://bucket/parts``."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divcon.errors import OutputError, StoreError
from divcon.runtime import remote
from divcon.runtime.blocks import RemoteFile
from divcon.runtime.files import atomic_write, check_folder
from divcon.runtime.places import is_url, text_of


class PartFolder:
    """Files that are written whole or not at all, also by several processes at once: the last one stays.

    Args:
        address: a path, or what fsspec opens.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = text_of(address)
        self.remote = is_url(self.address)

    def __str__(self) -> str:
        return self.address

    def __reduce__(self) -> tuple[Any, ...]:
        return PartFolder, (self.address,)

    def where(self, name: str) -> str:
        """The path or address of a file in it."""
        return f"{self.address.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """The names of its files, none where there is no such folder."""
        if not self.remote:
            folder = Path(self.address)
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return [name for name in remote.listing(self.address) if "/" not in name]

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a parquet file.

        Raises:
            OutputError: it cannot be written.
        """
        if self.remote:
            content = io.BytesIO()
            pq.write_table(table, content)
            self._put(name, content.getvalue())
            return
        path = Path(self.where(name))
        # Two processes may write it at once: one that was taken for dead, and the one that does its work again.
        own = path.with_name(f".{name}.{uuid.uuid4().hex}")
        try:
            with atomic_write(own) as beside:
                pq.write_table(table, beside)
            own.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
        finally:
            with suppress(OSError):
                own.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file.

        Raises:
            OutputError: it cannot be written.
        """
        if self.remote:
            self._put(name, text.encode())
            return
        with atomic_write(self.where(name)) as beside:
            beside.write_text(text)

    def read_text(self, name: str) -> str:
        """The text of a file."""
        return remote.read(self.where(name)).decode() if self.remote else Path(self.where(name)).read_text()

    def about(self, name: str) -> tuple[dict[bytes, bytes], int] | None:
        """What a parquet file's schema says beside its columns, and the number of rows; None if there is no such file,
        or a damaged one."""
        try:
            with self._opened(name) as file:
                parquet = pq.ParquetFile(file)
                return dict(parquet.schema_arrow.metadata or {}), parquet.metadata.num_rows
        except (OSError, pa.ArrowException):
            return None

    def read_table(self, name: str) -> pa.Table:
        """A parquet file.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._opened(name) as file:
                return pq.ParquetFile(file).read()
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.where(name)}: cannot be read ({error}); remove it, and write it again") from None

    def batches(self, name: str, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of a parquet file, ``rows`` at a time, without what its schema says beside its columns.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._opened(name) as file:
                for batch in pq.ParquetFile(file).iter_batches(rows):
                    yield batch.replace_schema_metadata(None)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.where(name)}: cannot be read ({error}); remove it, and write it again") from None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.remote:
            remote.remove(self.where(name))
            return
        Path(self.where(name)).unlink(missing_ok=True)

    def remove_all(self) -> None:
        """Remove the files that are there, and the folder where that leaves nothing in it."""
        for name in self.names():
            self.remove(name)
        if not self.remote:
            with suppress(OSError):
                Path(self.address).rmdir()

    def remove_left_over(self) -> None:
        """Remove what killed writers have left. No process may be writing."""
        for name in [] if self.remote else self.names():
            if name.startswith(".part-"):
                self.remove(name)

    def check(self) -> None:
        """Check that files can be written.

        Raises:
            OutputError: they cannot.
        """
        check_folder(self.address)

    def _opened(self, name: str) -> Any:
        return RemoteFile(self.where(name)) if self.remote else Path(self.where(name)).open("rb")

    def _put(self, name: str, content: bytes) -> None:
        try:
            remote.put_bytes(content, self.where(name))
        except OSError as error:
            raise OutputError(f"{self.where(name)}: cannot be written ({error.strerror or error})") from None
