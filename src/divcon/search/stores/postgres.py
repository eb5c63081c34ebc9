"""`PostgresStore`: a store in PostgreSQL: a table with pgvector's type, and a table with one row about it."""

from __future__ import annotations

import json
import queue
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import pyarrow as pa

from divcon.errors import ConfigError, StoreError, first_line
from divcon.search.about import About, Column
from divcon.search.filters import Condition
from divcon.search.stores.base import (
    BLOCK,
    FIXED_COLUMNS,
    NO_INDEX,
    Store,
    StoredItem,
    as_array,
    joined,
    schema_of,
)

_TYPES = {"int": "bigint", "float": "double precision", "bool": "boolean"}
"""The types of columns that are not text in the table."""
_TABLE_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
MAX_DIMS = 2000
"""The largest dimension of a vector that pgvector indexes."""
MAX_EFFORT = 1000
"""pgvector's largest ``hnsw.ef_search``: an approximate search returns no more rows."""
_BUILD_MEMORY_MB = 512


class PostgresStore(Store):
    """PostgreSQL with pgvector. Its approximate index is HNSW; the effort is ``hnsw.ef_search``."""

    max_k = MAX_EFFORT

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query))
        self.table = options.pop("table", "divcon")
        if not _TABLE_NAME.fullmatch(self.table):
            raise ConfigError(
                f"table={self.table}: a table's name has up to 40 lower-case letters, digits and _, and begins with no "
                "digit",
                field="store",
            )
        # Messages and pages show this address: without the password.
        shown = parts._replace(netloc=re.sub(r":[^@]*@", "@", parts.netloc), query=urlencode({"table": self.table}))
        self.uri = urlunsplit(shown)
        address = urlunsplit(parts._replace(query=urlencode(options, safe="/")))
        self._connections = Connections(address, self.uri)
        self._psycopg = self._connections.psycopg

    # ------------------------------------------------------------------------------------------------ about the index

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
        columns |= {column.stored: _sql_type(column) for column in about.columns}
        pairs = [self._sql("{name} {kind}", name=name, kind=_Raw(kind)) for name, kind in columns.items()]
        with self._cursor() as cursor:
            cursor.execute(self._sql("DROP TABLE IF EXISTS {rows}, {about}"))
            cursor.execute(self._sql("CREATE TABLE {rows} (") + self._psycopg.sql.SQL(", ").join(pairs) + _sql(")"))
            cursor.execute(self._sql("CREATE TABLE {about} (version bigint NOT NULL, about jsonb NOT NULL)"))
            cursor.execute(self._sql("INSERT INTO {about} VALUES (0, %s)"), [json.dumps(about.to_dict())])

    def read_about(self) -> dict[str, Any] | None:
        try:
            with self._cursor() as cursor:
                row = cursor.execute(self._sql("SELECT about FROM {about}")).fetchone()
        except MissingTable:
            return None
        return None if row is None else row[0]

    def write_about(self, about: dict[str, Any]) -> None:
        with self._change() as cursor:
            cursor.execute(self._sql("UPDATE {about} SET about = %s"), [json.dumps(about)])

    def set_about(self, about: About) -> None:
        with self._cursor() as cursor:
            for column in about.columns:
                text = "ALTER TABLE {rows} ADD COLUMN IF NOT EXISTS {name} {kind}"
                cursor.execute(self._sql(text, name=column.stored, kind=_Raw(_sql_type(column))))
        self.write_about(about.to_dict())

    # -------------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        # The lock is the session's: PostgreSQL releases it when the writer dies.
        lock = [f"divcon {self.table}"]
        with self._connections.borrow() as connection:
            locked = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s))", lock).fetchone()
            connection.commit()
            if not locked[0]:
                raise StoreError(f"{self.uri}: another process is writing to it; wait until it has ended")
            try:
                yield
            finally:
                with suppress(self._psycopg.Error):
                    connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", lock)
                    connection.commit()

    def version(self) -> str:
        with self._cursor() as cursor:
            row = cursor.execute(self._sql("SELECT about->>'made', version FROM {about}")).fetchone()
        return f"{row[0]} {row[1]}" if row else ""

    def changing(self) -> nullcontext[None]:
        return nullcontext()

    def append(self, rows: pa.Table) -> None:
        self._insert(rows, replacing=False)

    def write(self, rows: pa.Table) -> None:
        self._insert(rows, replacing=True)

    def _insert(self, rows: pa.Table, replacing: bool) -> None:
        sql = self._psycopg.sql
        names = rows.column_names
        columns = sql.SQL(", ").join(map(sql.Identifier, names))
        changes = sql.SQL(", ").join(self._sql("{name} = excluded.{name}", name=name) for name in names)
        types = ["vector" if pa.types.is_fixed_size_list(field.type) else _pg(field.type) for field in rows.schema]
        vectors = as_array(rows["embedding"])
        plain = rows.drop_columns(["embedding"]).to_pylist()
        self._check_texts(plain)
        with self._change() as cursor:
            cursor.execute(self._sql("CREATE TEMP TABLE incoming (LIKE {rows}) ON COMMIT DROP"))
            with cursor.copy(self._sql("COPY incoming ({c}) FROM STDIN (FORMAT BINARY)", c=columns)) as copy:
                copy.set_types(types)
                for row, vector in zip(plain, vectors, strict=True):
                    copy.write_row([vector if name == "embedding" else row[name] for name in names])
            insert = self._sql("INSERT INTO {rows} ({c}) SELECT {c} FROM incoming", c=columns)
            cursor.execute(insert + sql.SQL(" ON CONFLICT (id) DO UPDATE SET ") + changes if replacing else insert)

    def _check_texts(self, rows: list[dict[str, Any]]) -> None:
        """Raise StoreError for text that PostgreSQL cannot hold, with the item."""
        for row in rows:
            for name, value in row.items():
                if isinstance(value, str) and "\0" in value:
                    raise StoreError(
                        f"{self.uri}: {row['path']!r}: the column {name!r} holds {value!r}, with a character NUL, "
                        "which PostgreSQL's text cannot have; take it out"
                    )

    def retype(self, types: Mapping[str, str], values: pa.Table) -> None:
        # In one transaction, so that the columns keep their names.
        about = self.about()
        columns = [replace(c, type=types[c.name], guessed=False) if c.name in types else c for c in about.columns]
        changed = [column for column in columns if column.name in types]
        sql = self._psycopg.sql
        names = sql.SQL(", ").join(map(sql.Identifier, values.column_names))
        with self._change() as cursor:
            for column in changed:
                kind = _Raw(_sql_type(column))
                cursor.execute(self._sql("ALTER TABLE {rows} DROP COLUMN {name}", name=column.stored))
                cursor.execute(self._sql("ALTER TABLE {rows} ADD COLUMN {name} {kind}", name=column.stored, kind=kind))
            cursor.execute(
                self._sql("CREATE TEMP TABLE new_values ON COMMIT DROP AS SELECT {c} FROM {rows} WHERE false", c=names)
            )
            with cursor.copy(self._sql("COPY new_values ({c}) FROM STDIN (FORMAT BINARY)", c=names)) as copy:
                copy.set_types([_pg(field.type) for field in values.schema])
                for row in values.to_pylist():
                    copy.write_row(list(row.values()))
            pairs = [self._sql("{name} = new_values.{name}", name=name) for name in values.column_names if name != "id"]
            update = self._sql("UPDATE {rows} SET ") + sql.SQL(", ").join(pairs)
            cursor.execute(update + self._sql(" FROM new_values WHERE {rows}.id = new_values.id"))
            saved = replace(about, columns=tuple(columns)).to_dict()
            cursor.execute(self._sql("UPDATE {about} SET about = %s"), [json.dumps(saved)])

    def delete(self, ids: np.ndarray) -> None:
        with self._change() as cursor:
            cursor.execute(self._sql("DELETE FROM {rows} WHERE id = ANY(%s)"), [_numbers(ids)])

    # -------------------------------------------------------------------------------------------------------- reading

    def count(self) -> int:
        with self._cursor() as cursor:
            return cursor.execute(self._sql("SELECT count(*) FROM {rows}")).fetchone()[0]

    def next_id(self) -> int:
        with self._cursor() as cursor:
            return cursor.execute(self._sql("SELECT coalesce(max(id) + 1, 0) FROM {rows}")).fetchone()[0]

    def ids(self, conditions: Sequence[Condition] = ()) -> np.ndarray:
        filters, values = self._filters(conditions)
        with self._cursor() as cursor:
            rows = cursor.execute(self._sql("SELECT id FROM {rows}") + filters, values).fetchall()
        return np.sort(np.fromiter((row[0] for row in rows), np.int64, len(rows)))

    def lookup(self, keys: Sequence[str]) -> dict[str, StoredItem]:
        text = "SELECT key, id, content, details FROM {rows} WHERE key = ANY(%s)"
        with self._cursor() as cursor:
            return {row[0]: StoredItem(*row[1:]) for row in cursor.execute(self._sql(text), [list(keys)])}

    def rows(self, ids: np.ndarray) -> pa.Table:
        schema = schema_of(self.about()).remove(len(FIXED_COLUMNS))
        text = self._sql("SELECT {c} FROM {rows} WHERE id = ANY(%s)", c=self._columns(schema.names))
        with self._cursor() as cursor:
            return _table(cursor.execute(text, [_numbers(ids)]).fetchall(), schema)

    def embeddings(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        text = "SELECT id, vector_send(embedding) FROM {rows} WHERE id = ANY(%s)"
        with self._cursor(binary=True) as cursor:
            rows = cursor.execute(self._sql(text), [_numbers(ids)]).fetchall()
        return joined([_arrays(rows)] if rows else [], self.about().dims)

    def scan(self, conditions: Sequence[Condition] = ()) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from map(_arrays, self._scan(["id", "embedding"], conditions))

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        full = schema_of(self.about())
        schema = pa.schema([full.field(name) for name in columns])
        for rows in self._scan(columns, ()):
            yield _table(rows, schema)

    def _scan(self, columns: Sequence[str], conditions: Sequence[Condition]) -> Iterator[list[tuple[Any, ...]]]:
        filters, values = self._filters(conditions)
        # A server-side cursor: rows arrive as they are read, not all at once.
        with self._connections.borrow() as connection, self._connections.errors():
            with connection.cursor(name="scan", binary=True) as cursor:
                text = self._sql("SELECT {c} FROM {rows}", c=self._columns(columns)) + filters + _sql(" ORDER BY id")
                cursor.execute(text, values)
                while rows := cursor.fetchmany(BLOCK):
                    yield rows
            connection.rollback()

    # ---------------------------------------------------------------------------------------------- approximate index

    def optimize(self, ann: bool) -> bool:
        name = f"{self.table}_embedding"
        with self._cursor() as cursor:
            has_ann = cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [name]).fetchone()[0]
            if ann and not has_ann and self.about().dims <= MAX_DIMS:
                cursor.execute(f"SET LOCAL maintenance_work_mem = '{_BUILD_MEMORY_MB}MB'")
                # Workers would need as much shared memory, of which containers have little.
                cursor.execute("SET LOCAL max_parallel_maintenance_workers = 0")
                text = "CREATE INDEX {name} ON {rows} USING hnsw (embedding vector_cosine_ops)"
                cursor.execute(self._sql(text, name=name))
                has_ann = True
            cursor.execute(self._sql("ANALYZE {rows}"))
        return has_ann

    def efforts(self) -> list[int]:
        return [40, 80, 160, 320, 640, MAX_EFFORT]

    def approximate(self, vector: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        with self._cursor(binary=True) as cursor:
            cursor.execute(f"SET LOCAL hnsw.ef_search = {min(max(int(effort), k), MAX_EFFORT)}")
            cursor.execute("SET LOCAL enable_seqscan = off")
            text = self._sql("SELECT id, vector_send(embedding) FROM {rows} ORDER BY embedding <=> %s LIMIT %s")
            rows = cursor.execute(text, [vector, k]).fetchall()
        return joined([_arrays(rows)] if rows else [], len(vector))

    # ------------------------------------------------------------------------------------------------------------ SQL

    def close(self) -> None:
        self._connections.close()

    def _filters(self, conditions: Sequence[Condition]) -> tuple[Any, list[Any]]:
        """`` WHERE ...`` with placeholders, and the values for them, which psycopg sends apart from the text."""
        sql, clauses, values = self._psycopg.sql, [], []
        for condition in conditions:
            as_text = "{name}" if condition.type in _TYPES else '{name} COLLATE "C"'
            text = "{name}::numeric" if condition.type == "decimal" else as_text
            column = self._sql(text, name=condition.stored)
            each = sql.SQL(f" {'<>' if condition.operator == '!=' else condition.operator} %s")
            clauses.append(sql.SQL("(") + sql.SQL(" OR ").join(column + each for _ in condition.values) + sql.SQL(")"))
            values += condition.values
        return (sql.SQL(" WHERE ") + sql.SQL(" AND ").join(clauses) if clauses else sql.SQL("")), values

    def _columns(self, names: Sequence[str]) -> Any:
        sql = self._psycopg.sql
        vector = sql.SQL("vector_send(embedding)")
        return sql.SQL(", ").join(vector if name == "embedding" else sql.Identifier(name) for name in names)

    def _sql(self, text: str, **names: Any) -> Any:
        """SQL with names in place of ``{...}``; every text is an identifier, and quoted as one."""
        sql = self._psycopg.sql
        parts = {name: sql.SQL(value) if isinstance(value, _Raw) else value for name, value in names.items()}
        parts = {name: sql.Identifier(value) if isinstance(value, str) else value for name, value in parts.items()}
        return sql.SQL(text).format(
            rows=sql.Identifier(self.table), about=sql.Identifier(f"{self.table}_about"), **parts
        )

    @contextmanager
    def _change(self) -> Iterator[Any]:
        """A transaction that increments the version."""
        with self._cursor() as cursor:
            yield cursor
            cursor.execute(self._sql("UPDATE {about} SET version = version + 1"))

    @contextmanager
    def _cursor(self, binary: bool = False) -> Iterator[Any]:
        """A cursor in a transaction of its own."""
        with self._connections.borrow() as connection, self._connections.errors(), connection.transaction():
            yield connection.cursor(binary=binary)


class MissingTable(StoreError):
    """There is no table of this name in the database."""


class Connections:
    """A pool of connections to one database."""

    def __init__(self, address: str, shown: str) -> None:
        """
        Args:
            address: what psycopg connects to.
            shown: the address as messages show it.

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
    def borrow(self) -> Iterator[Any]:
        """A connection for this block alone, which knows pgvector's type if the database does.

        Raises:
            StoreError: the server cannot be reached.
        """
        connection = None
        with suppress(queue.Empty):
            connection = self._idle.get_nowait()
        with self.errors():
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
        """Whether an idle connection still works: the server may have been restarted."""
        try:
            connection.execute("SELECT 1")
            return True
        except self.psycopg.Error:
            connection.close()
            return False

    @contextmanager
    def errors(self) -> Iterator[None]:
        """PostgreSQL's errors become StoreErrors."""
        try:
            yield
        except self.psycopg.Error as error:
            if isinstance(error, self.psycopg.errors.UndefinedTable):
                raise MissingTable(f"{self._shown}: {NO_INDEX}") from None
            reason = first_line(error)
            raise StoreError(f"{self._shown}: {reason}") from None

    def close(self) -> None:
        """Close those that are idle."""
        while not self._idle.empty():
            with suppress(queue.Empty):
                self._idle.get_nowait().close()


def _sql_type(column: Column) -> str:
    return _TYPES.get(column.type, "text")


def _numbers(ids: np.ndarray) -> list[int]:
    return np.asarray(ids, np.int64).tolist()


def _arrays(rows: list[tuple[int, bytes]] | list[tuple[Any, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of an id and a vector, of which there is at least one, as (n,) int64 and (n, D) float32."""
    ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    return ids, _vectors([row[1] for row in rows])


def _vectors(sent: Sequence[bytes]) -> np.ndarray:
    """pgvector sends two integers of two bytes, then the numbers, each with the highest byte first."""
    width = (len(sent[0]) - 4) // 4
    layout = np.dtype([("head", ">u2", 2), ("vector", ">f4", width)])
    return np.frombuffer(b"".join(sent), layout)["vector"].astype(np.float32)


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    if not rows:
        return schema.empty_table()
    arrays = []
    for values, field in zip(zip(*rows, strict=True), schema, strict=True):
        if field.name == "embedding":
            flat = pa.array(_vectors(values).reshape(-1))
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=schema)


class _Raw(str):
    """SQL that this module wrote itself."""


def _sql(text: str) -> Any:
    from psycopg import sql

    return sql.SQL(text)  # type: ignore[arg-type]


def _pg(kind: pa.DataType) -> str:
    return {pa.int64(): "int8", pa.float64(): "float8", pa.bool_(): "bool"}.get(kind, "text")
