"""Connections to PostgreSQL, kept and shared out, one a thread at a time."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from divcon.errors import ConfigError, StoreError


class Connections:
    """Gives connections to one address."""

    def __init__(self, address: str, shown: str) -> None:
        """
        Args:
            address: what psycopg connects to.
            shown: how messages name it.

        Raises:
            ConfigError: psycopg or pgvector is not installed.
        """
        try:
            import pgvector.psycopg
            import psycopg
        except ImportError:
            raise ConfigError('PostgreSQL needs two packages: pip install "divcon[postgres]"') from None
        self.psycopg: Any = psycopg
        self._register: Any = pgvector.psycopg.register_vector
        self._address = address
        self._shown = shown
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()

    @contextmanager
    def one(self) -> Iterator[Any]:
        """A connection that nobody else has until the block ends, which knows pgvector's type where the database does.

        Raises:
            StoreError: the server cannot be reached.
        """
        connection = None
        with suppress(queue.Empty):
            connection = self._idle.get_nowait()
        with self.told():
            if connection is None or connection.closed or not self._alive(connection):
                connection = self.psycopg.connect(self._address, connect_timeout=10)
            if connection.adapters.types.get("vector") is None:
                with suppress(self.psycopg.ProgrammingError):
                    self._register(connection)
            connection.rollback()
        try:
            yield connection
        finally:
            with suppress(self.psycopg.Error):
                connection.rollback()
            if not connection.closed:
                self._idle.put(connection)

    def _alive(self, connection: Any) -> bool:
        """Whether a connection that lay idle still leads somewhere: the server may have started anew."""
        try:
            connection.execute("SELECT 1")
            return True
        except self.psycopg.Error:
            connection.close()
            return False

    @contextmanager
    def told(self) -> Iterator[None]:
        """What PostgreSQL says is wrong becomes a StoreError."""
        try:
            yield
        except self.psycopg.Error as error:
            what = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if isinstance(error, self.psycopg.errors.UndefinedTable):
                what = "there is no store; make one with divcon index RUN IMAGES --store"
            raise StoreError(f"{self._shown}: {what}") from None

    def close(self) -> None:
        """Close those that are idle."""
        while not self._idle.empty():
            with suppress(queue.Empty):
                self._idle.get_nowait().close()
