"""A store in PostgreSQL: a table with pgvector's type, and a row that says what it is."""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import pyarrow as pa

from divcon.errors import ConfigError, StoreError
from divcon.search.about import About
from divcon.search.filters import Condition
from divcon.search.stores.base import BLOCK, FIXED_COLUMNS, Known, Store, as_array, schema


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


_TYPES = {"text": "text", "integer": "bigint", "number": "double precision", "boolean": "boolean"}
_TABLE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
MOST_DIMS = 2000
"""Of a vector that pgvector indexes."""
MOST_EFFORT = 1000
"""pgvector's largest ``hnsw.ef_search``: an approximate search finds no more rows."""
_BUILD_MEMORY_MB = 512


class PostgresStore(Store):
    """PostgreSQL with pgvector. Its approximate index is HNSW; the effort is ``hnsw.ef_search``."""

    most_found = MOST_EFFORT

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query))
        self.table = options.pop("table", "divcon")
        if not _TABLE_NAME.fullmatch(self.table):
            raise ConfigError(
                f"table={self.table}: a table's name is up to 40 small letters, digits and _, and begins with no digit"
            )
        # A message, or a page, must not tell the password.
        shown = parts._replace(netloc=re.sub(r":[^@]*@", "@", parts.netloc), query=urlencode({"table": self.table}))
        self.uri = urlunsplit(shown)
        address = urlunsplit(parts._replace(query=urlencode(options, safe="/")))
        self._connections = Connections(address, self.uri)
        self._psycopg = self._connections.psycopg

    def exists(self) -> bool:
        with self._cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{self.table}_about"])
            return cursor.fetchone()[0] and cursor.execute(self._sql("SELECT 1 FROM {about}")).fetchone() is not None

    def create(self, about: About) -> None:
        try:
            with self._cursor() as cursor:
                cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except StoreError as error:
            raise StoreError(f"{error}; it needs pgvector: install it there, and CREATE EXTENSION vector") from None
        columns = dict.fromkeys(FIXED_COLUMNS, "text") | {
            "id": "bigint PRIMARY KEY",
            "key": "text UNIQUE NOT NULL",
            "embedding": f"vector({int(about.dims)}) NOT NULL",
        }
        columns |= {column.stored: _TYPES[column.kind] for column in about.columns}
        pairs = [self._sql("{name} {kind}", name=name, kind=_Raw(kind)) for name, kind in columns.items()]
        with self._cursor() as cursor:
            cursor.execute(self._sql("DROP TABLE IF EXISTS {rows}, {about}"))
            cursor.execute(self._sql("CREATE TABLE {rows} (") + self._psycopg.sql.SQL(", ").join(pairs) + _sql(")"))
            cursor.execute(self._sql("CREATE TABLE {about} (version bigint NOT NULL, about jsonb NOT NULL)"))
            cursor.execute(self._sql("INSERT INTO {about} VALUES (0, %s)"), [json.dumps(about.to_dict())])

    def about(self) -> About:
        with self._cursor() as cursor:
            found = cursor.execute(self._sql("SELECT about FROM {about}")).fetchone()
        if found is None:
            raise StoreError(f"{self.uri}: there is no store; make one with divcon index RUN IMAGES --store")
        return About.from_dict(found[0], self.uri)

    def set_about(self, about: About) -> None:
        with self._changing() as cursor:
            for column in about.columns:
                text = "ALTER TABLE {rows} ADD COLUMN IF NOT EXISTS {name} {kind}"
                cursor.execute(self._sql(text, name=column.stored, kind=_Raw(_TYPES[column.kind])))
            cursor.execute(self._sql("UPDATE {about} SET about = %s"), [json.dumps(about.to_dict())])

    @contextmanager
    def writing(self) -> Iterator[None]:
        # The lock is the session's: a writer that dies lets go of it.
        with self._connections.one() as connection:
            took = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", [f"divcon {self.table}"]).fetchone()
            connection.commit()
            if not took[0]:
                raise StoreError(f"{self.uri}: another process is writing to it; wait until it has ended")
            try:
                yield
            finally:
                with suppress(self._psycopg.Error):
                    connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", [f"divcon {self.table}"])
                    connection.commit()

    def version(self) -> str:
        with self._cursor() as cursor:
            found = cursor.execute(self._sql("SELECT about->>'made', version FROM {about}")).fetchone()
        return f"{found[0]} {found[1]}" if found else ""

    def count(self) -> int:
        with self._cursor() as cursor:
            return cursor.execute(self._sql("SELECT count(*) FROM {rows}")).fetchone()[0]

    def next_id(self) -> int:
        with self._cursor() as cursor:
            return cursor.execute(self._sql("SELECT coalesce(max(id) + 1, 0) FROM {rows}")).fetchone()[0]

    def known(self, keys: Sequence[str]) -> dict[str, Known]:
        text = "SELECT key, id, content, details FROM {rows} WHERE key = ANY(%s)"
        with self._cursor() as cursor:
            return {row[0]: Known(*row[1:]) for row in cursor.execute(self._sql(text), [list(keys)])}

    def write(self, rows: pa.Table, new: bool) -> None:
        sql = self._psycopg.sql
        names = rows.column_names
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        changes = sql.SQL(", ").join(self._sql("{name} = excluded.{name}", name=name) for name in names)
        types = ["vector" if pa.types.is_fixed_size_list(field.type) else _pg(field.type) for field in rows.schema]
        vectors = as_array(rows["embedding"], rows.schema.field("embedding").type.list_size)
        plain = rows.drop_columns(["embedding"]).to_pylist()
        with self._changing() as cursor:
            cursor.execute(self._sql("CREATE TEMP TABLE incoming (LIKE {rows}) ON COMMIT DROP"))
            with cursor.copy(self._sql("COPY incoming ({c}) FROM STDIN (FORMAT BINARY)", c=columns)) as copy:
                copy.set_types(types)
                for row, vector in zip(plain, vectors, strict=True):
                    copy.write_row([vector if name == "embedding" else row[name] for name in names])
            insert = self._sql("INSERT INTO {rows} ({c}) SELECT {c} FROM incoming", c=columns)
            cursor.execute(insert if new else insert + sql.SQL(" ON CONFLICT (id) DO UPDATE SET ") + changes)

    def delete(self, ids: np.ndarray) -> None:
        with self._changing() as cursor:
            cursor.execute(self._sql("DELETE FROM {rows} WHERE id = ANY(%s)"), [ids.tolist()])

    def ids(self) -> np.ndarray:
        return self.select(())

    def rows(self, ids: np.ndarray) -> pa.Table:
        about = self.about()
        kinds = schema(about).remove(len(FIXED_COLUMNS))
        names = self._psycopg.sql.SQL(", ").join(map(self._psycopg.sql.Identifier, kinds.names))
        with self._cursor() as cursor:
            found = cursor.execute(self._sql("SELECT {c} FROM {rows} WHERE id = ANY(%s)", c=names), [ids.tolist()])
            columns = list(zip(*found.fetchall(), strict=True)) or [()] * len(kinds)
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, kinds, strict=True)], schema=kinds)

    def vectors(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        text = "SELECT id, vector_send(embedding) FROM {rows} WHERE id = ANY(%s)"
        with self._cursor(binary=True) as cursor:
            return self._arrays(cursor.execute(self._sql(text), [ids.tolist()]).fetchall())

    def scan(self, conditions: Sequence[Condition] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        filters, values = self._filters(conditions)
        # A cursor of the server's: rows come as they are wanted, not all at once.
        with self._connections.one() as connection, self._connections.told():
            with connection.cursor(name="scan", binary=True) as cursor:
                text = self._sql("SELECT id, vector_send(embedding) FROM {rows}") + filters + _sql(" ORDER BY id")
                cursor.execute(text, values)
                while found := cursor.fetchmany(BLOCK):
                    yield self._arrays(found)
            connection.rollback()

    def select(self, conditions: Sequence[Condition]) -> np.ndarray:
        filters, values = self._filters(conditions)
        with self._cursor() as cursor:
            found = cursor.execute(self._sql("SELECT id FROM {rows}") + filters, values).fetchall()
        return np.sort(np.fromiter((row[0] for row in found), np.int64, len(found)))

    def finish(self, ann: bool) -> bool:
        name = f"{self.table}_embedding"
        with self._cursor() as cursor:
            has_ann = cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [name]).fetchone()[0]
            if ann and not has_ann and self.about().dims <= MOST_DIMS:
                cursor.execute(f"SET LOCAL maintenance_work_mem = '{_BUILD_MEMORY_MB}MB'")
                # Workers would need as much shared memory, of which containers have little.
                cursor.execute("SET LOCAL max_parallel_maintenance_workers = 0")
                text = "CREATE INDEX {name} ON {rows} USING hnsw (embedding vector_cosine_ops)"
                cursor.execute(self._sql(text, name=name))
                has_ann = True
            cursor.execute(self._sql("ANALYZE {rows}"))
        return has_ann

    def efforts(self) -> list[int]:
        return [40, 80, 160, 320, 640, MOST_EFFORT]

    def approximate(self, vector: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        with self._cursor(binary=True) as cursor:
            cursor.execute(f"SET LOCAL hnsw.ef_search = {min(max(int(effort), k), MOST_EFFORT)}")
            cursor.execute("SET LOCAL enable_seqscan = off")
            text = self._sql("SELECT id, vector_send(embedding) FROM {rows} ORDER BY embedding <=> %s LIMIT %s")
            return self._arrays(cursor.execute(text, [vector, k]).fetchall())

    def close(self) -> None:
        self._connections.close()

    def _arrays(self, found: list[tuple[int, bytes]]) -> tuple[np.ndarray, np.ndarray]:
        """pgvector sends two numbers of two bytes, then the vector, the highest byte first."""
        if not found:
            return np.empty(0, np.int64), np.empty((0, 1), np.float32)
        width = (len(found[0][1]) - 4) // 4
        sent = np.frombuffer(
            b"".join(row[1] for row in found), np.dtype([("head", ">u2", 2), ("vector", ">f4", width)])
        )
        ids = np.fromiter((row[0] for row in found), np.int64, len(found))
        return ids, sent["vector"].astype(np.float32)

    def _filters(self, conditions: Sequence[Condition]) -> tuple[Any, list[Any]]:
        """`` WHERE ...`` with places for the values, which go to the server apart from it."""
        sql, parts, values = self._psycopg.sql, [], []
        for condition in conditions:
            plain = condition.kind == "text"
            column = self._sql('{name} COLLATE "C"' if plain else "{name}", name=condition.stored)
            each = sql.SQL(f" {'<>' if condition.operator == '!=' else condition.operator} %s")
            parts.append(sql.SQL("(") + sql.SQL(" OR ").join(column + each for _ in condition.values) + sql.SQL(")"))
            values += condition.values
        return (sql.SQL(" WHERE ") + sql.SQL(" AND ").join(parts) if parts else sql.SQL("")), values

    def _sql(self, text: str, **names: Any) -> Any:
        sql = self._psycopg.sql
        made = {name: sql.SQL(value) if isinstance(value, _Raw) else value for name, value in names.items()}
        made = {name: sql.Identifier(value) if isinstance(value, str) else value for name, value in made.items()}
        return sql.SQL(text).format(
            rows=sql.Identifier(self.table), about=sql.Identifier(f"{self.table}_about"), **made
        )

    @contextmanager
    def _changing(self) -> Iterator[Any]:
        """A transaction that counts as a new version."""
        with self._cursor() as cursor:
            yield cursor
            cursor.execute(self._sql("UPDATE {about} SET version = version + 1"))

    @contextmanager
    def _cursor(self, binary: bool = False) -> Iterator[Any]:
        """A transaction of its own."""
        with self._connections.one() as connection, self._connections.told(), connection.transaction():
            yield connection.cursor(binary=binary)


class _Raw(str):
    """SQL of this module's own."""


def _sql(text: str) -> Any:
    from psycopg import sql

    return sql.SQL(text)  # type: ignore[arg-type]


def _pg(kind: pa.DataType) -> str:
    return {pa.int64(): "int8", pa.float64(): "float8", pa.bool_(): "bool"}.get(kind, "text")
