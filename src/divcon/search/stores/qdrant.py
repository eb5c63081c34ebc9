"""`QdrantStore`: a store in Qdrant: a collection of points, and a collection ``NAME_about`` with what the index is and
who writes to it. Qdrant runs as a server, or embedded in one process (`qdrant_client`'s local mode)."""

from __future__ import annotations

import atexit
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pyarrow as pa

from divcon.errors import ConfigError, StoreError, first_line
from divcon.runtime.lease import Lease
from divcon.search.about import About
from divcon.search.filters import Condition, matches
from divcon.search.stores.base import (
    NO_INDEX,
    Store,
    StoredItem,
    as_array,
    ids_and_embeddings,
    joined,
    schema_of,
)

API_KEY = "QDRANT_API_KEY"
"""The variable that has the key of a server."""
_AT_ONCE = 512
"""Points in one request."""
_ABOUT, _LOCK = 0, 1
"""The points of the collection ``NAME_about``."""
_OPTIMIZE_SECONDS = 3600.0


class QdrantStore(Store):
    """Qdrant, as a server or embedded. A server's approximate index is HNSW, and the effort is ``hnsw_ef``; embedded,
    every search is exact."""

    max_k = 10_000

    def __init__(self, uri: str) -> None:
        """
        Args:
            uri: ``qdrant://HOST:PORT/COLLECTION`` (``qdrants://`` for https), whose key is in the environment; or
                ``qdrant:///FOLDER?collection=NAME``: embedded.

        Raises:
            ConfigError: the address is none, or the package qdrant-client is not installed.
        """
        try:
            import qdrant_client
            import qdrant_client.models
        except ImportError:
            raise ConfigError('Qdrant needs a package: pip install "divcon[qdrant]"') from None
        self._models: Any = qdrant_client.models
        parts = urlsplit(uri)
        options = dict(parse_qsl(parts.query))
        embedded = not parts.netloc
        self._rows = options.pop("collection", "divcon") if embedded else parts.path.strip("/")
        if options or not self._rows or "/" in self._rows or (embedded and not parts.path.strip("/")):
            raise ConfigError(
                f"{uri}: write qdrant://HOST:PORT/COLLECTION (qdrants:// for https), or, embedded, qdrant:///FOLDER "
                "(?collection=NAME for another collection than divcon)",
                field="store",
            )
        self._about = f"{self._rows}_about"
        if embedded:
            folder = Path(parts.path).absolute()
            self.uri = f"qdrant://{folder}" + (f"?collection={self._rows}" if self._rows != "divcon" else "")
            self._client_of: Callable[[], Any] = lambda: _embedded(folder)
        else:
            secure = parts.scheme == "qdrants"
            place = f"{parts.hostname}:{parts.port or 6333}"
            self.uri = f"{parts.scheme}://{place}/{self._rows}"
            self._client_of = lambda: qdrant_client.QdrantClient(
                url=f"http{'s' if secure else ''}://{place}",
                api_key=os.environ.get(API_KEY) or None,
                timeout=60,
                check_compatibility=False,
            )
        self._embedded = embedded
        self._opened: Any = None
        self._opening = threading.Lock()
        self._lease = Lease(self.uri, "writing to it", StoreError, _LockPoint(self))

    # ------------------------------------------------------------------------------------------------ about the index

    def create(self, about: About) -> None:
        models = self._models
        for name, size in ((self._rows, about.dims), (self._about, 1)):
            if not (name == self._about and self._run(lambda client: client.collection_exists(self._about))):
                vectors = models.VectorParams(size=size, distance=models.Distance.DOT)  # their lengths are one
                self._run(lambda client, name=name: client.delete_collection(name))
                self._run(lambda client, name=name, v=vectors: client.create_collection(name, vectors_config=v))
        if not self._embedded:
            keyword = models.PayloadSchemaType.KEYWORD
            self._run(lambda client: client.create_payload_index(self._rows, "key", keyword, wait=True))
        super().create(about)

    def read_about(self) -> dict[str, Any] | None:
        saved = self.note(_ABOUT)
        return saved or None

    def write_about(self, about: dict[str, Any]) -> None:
        self.write_note(_ABOUT, about)

    def note(self, point: int) -> dict[str, Any]:
        """What a point of the collection about the index holds; empty: there is none."""

        def read(client: Any) -> dict[str, Any]:
            if not client.collection_exists(self._about):
                return {}
            points = client.retrieve(self._about, [point], with_payload=True)
            return json.loads(points[0].payload["json"]) if points else {}

        return self._run(read)

    def write_note(self, point: int, content: Mapping[str, Any], *, new: bool = False) -> None:
        """Write a point of that collection; with ``new`` only where there is none."""
        models = self._models
        mode = {"update_mode": models.UpdateMode.INSERT_ONLY} if new else {}

        def write(client: Any) -> None:
            if not client.collection_exists(self._about):
                vectors = models.VectorParams(size=1, distance=models.Distance.DOT)
                client.create_collection(self._about, vectors_config=vectors)
            # As text: a server would merge, and order, the keys of a dictionary.
            points = [models.PointStruct(id=point, vector=[1.0], payload={"json": json.dumps(content)})]
            client.upsert(self._about, points, wait=True, **mode)

        self._run(write)

    def remove_note(self, point: int) -> None:
        """Remove a point of that collection."""
        self._run(lambda client: client.delete(self._about, self._models.PointIdsList(points=[point]), wait=True))

    # -------------------------------------------------------------------------------------------------------- writing

    def writing(self) -> AbstractContextManager[None]:
        if self._embedded:  # no other process can open the folder
            return self._only_thread(self._run(lambda client: vars(client).setdefault("writing", threading.Lock())))
        return self._lease.held()

    def write(self, rows: pa.Table) -> None:
        models, names = self._models, [name for name in rows.column_names if name not in ("id", "embedding")]
        self._lease.check()
        for start in range(0, len(rows), _AT_ONCE):
            some = rows.slice(start, _AT_ONCE)
            payloads = [{k: v for k, v in row.items() if v is not None} for row in some.select(names).to_pylist()]
            vectors = as_array(some["embedding"]).tolist()
            points = models.Batch(ids=some["id"].to_pylist(), vectors=vectors, payloads=payloads)
            self._run(lambda client, points=points: client.upsert(self._rows, points, wait=True))

    def drop_columns(self, names: Sequence[str]) -> None:
        everywhere = self._models.FilterSelector(filter=self._models.Filter())
        if names:
            self._run(lambda client: client.delete_payload(self._rows, list(names), everywhere, wait=True))

    def delete(self, ids: np.ndarray) -> None:
        self._lease.check()
        for start in range(0, len(ids), _AT_ONCE):
            some = self._models.PointIdsList(points=ids[start : start + _AT_ONCE].tolist())
            self._run(lambda client, some=some: client.delete(self._rows, some, wait=True))

    # -------------------------------------------------------------------------------------------------------- reading

    def count(self) -> int:
        return self._run(lambda client: client.count(self._rows, exact=True).count)

    def lookup(self, keys: Sequence[str]) -> dict[str, StoredItem]:
        models, items = self._models, {}
        for start in range(0, len(keys), _AT_ONCE):
            any_of = models.MatchAny(any=list(keys[start : start + _AT_ONCE]))
            of_keys = models.Filter(must=[models.FieldCondition(key="key", match=any_of)])
            for block in self._scroll(["id", "key", "content", "details"], of_keys):
                items |= {row.pop("key"): StoredItem(**row) for row in block.to_pylist()}
        return items

    def rows(self, ids: np.ndarray) -> pa.Table:
        schema = schema_of(self.about())
        columns = [name for name in schema.names if name != "embedding"]
        return pa.concat_tables([self._table([], columns, schema), *self._retrieve(ids, columns, schema)])

    def embeddings(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        schema = schema_of(self.about())
        blocks = self._retrieve(ids, ["id", "embedding"], schema)
        return joined([ids_and_embeddings(block) for block in blocks], self.about().dims)

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return self._scroll(list(columns), None)

    def _matching(self, columns: list[str], conditions: Sequence[Condition]) -> Iterator[pa.Table]:
        # Qdrant has no order of texts, and compares integers as floats: it selects by equality, and the rest, of what
        # it has selected, is compared here.
        needed = list(dict.fromkeys([*columns, *(c.stored for c in conditions)]))
        for block in self._scroll(needed, self._equal(conditions)):
            yield block.filter(matches(block, conditions)) if conditions else block

    def _equal(self, conditions: Sequence[Condition]) -> Any:
        models = self._models
        exact = [c for c in conditions if c.operator == "=" and c.type == "text"]
        must = [models.FieldCondition(key=c.stored, match=models.MatchAny(any=list(c.values))) for c in exact]
        return models.Filter(must=must) if must else None

    def _scroll(self, columns: list[str], selected: Any) -> Iterator[pa.Table]:
        schema, offset = schema_of(self.about()), None
        options = {"with_payload": [c for c in columns if c not in ("id", "embedding")], "scroll_filter": selected}
        options |= {"with_vectors": "embedding" in columns, "limit": 4 * _AT_ONCE}
        options["with_payload"] = options["with_payload"] or False
        while True:
            points, offset = self._run(
                lambda client, offset=offset: client.scroll(self._rows, offset=offset, **options)
            )
            if points:
                yield self._table(points, columns, schema)
            if offset is None:
                return

    def _retrieve(self, ids: np.ndarray, columns: list[str], schema: pa.Schema) -> Iterator[pa.Table]:
        payload = [c for c in columns if c not in ("id", "embedding")] or False
        vectors = "embedding" in columns
        for start in range(0, len(ids), _AT_ONCE):
            some = np.unique(ids[start : start + _AT_ONCE]).tolist()
            points = self._run(
                lambda client, some=some: client.retrieve(self._rows, some, with_payload=payload, with_vectors=vectors)
            )
            if points:
                yield self._table(points, columns, schema)

    def _table(self, points: Sequence[Any], columns: Sequence[str], schema: pa.Schema) -> pa.Table:
        arrays = []
        for name in columns:
            kind = schema.field(name).type
            if name == "id":
                arrays.append(pa.array([point.id for point in points], kind))
            elif name == "embedding":
                flat = np.asarray([point.vector for point in points], np.float32).reshape(-1)
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.list_size))
            else:
                values = [(point.payload or {}).get(name) for point in points]
                arrays.append(pa.array(values, kind))
        return pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns]))

    # ---------------------------------------------------------------------------------------------- approximate index

    def optimize(self, ann: bool) -> bool:
        """Wait until the server has built its index, if there is a server."""
        if self._embedded or not ann:
            return False
        green, deadline = self._models.CollectionStatus.GREEN, time.monotonic() + _OPTIMIZE_SECONDS
        while self._run(lambda client: client.get_collection(self._rows).status) != green:
            if time.monotonic() > deadline:
                return False
            time.sleep(1.0)
        return True

    def efforts(self) -> list[int]:
        return [] if self._embedded else [32, 64, 128, 256, 512, 1024, 2048]

    def approximate(self, vector: np.ndarray, k: int, effort: int) -> tuple[np.ndarray, np.ndarray]:
        effort_of = self._models.SearchParams(hnsw_ef=max(int(effort), k))
        points = self._run(
            lambda client: (
                client.query_points(
                    self._rows, query=vector.tolist(), limit=k, search_params=effort_of, with_vectors=True
                ).points
            )
        )
        return ids_and_embeddings(self._table(points, ["id", "embedding"], schema_of(self.about())))

    # --------------------------------------------------------------------------------------------------------- Qdrant

    def close(self) -> None:
        with self._opening:
            opened, self._opened = self._opened, None
        if opened is not None:
            _release(opened) if self._embedded else opened.close()

    def _run(self, act: Callable[[Any], Any]) -> Any:
        """The result of ``act`` with the client; its errors become StoreErrors."""
        try:
            with self._opening:
                if self._opened is None:
                    self._opened = self._client_of()
                client = self._opened
            if not self._embedded:
                return act(client)
            with _access:  # its rows are lists and arrays in this process
                return act(client)
        except StoreError:
            raise
        except Exception as error:
            words = _in_words(error)
            if "not found" in words or "doesn't exist" in words:
                words = NO_INDEX
            raise StoreError(f"{self.uri}: {words}") from None


class _LockPoint:
    """The lock of a collection on a server: a point that is inserted only where there is none."""

    def __init__(self, store: QdrantStore) -> None:
        self._store = store

    def put(self, content: Mapping[str, Any], *, new: bool = False) -> bool:
        self._store.write_note(_LOCK, content, new=new)
        return (self.get() or {}).get("token") == content["token"]

    def get(self) -> dict[str, Any] | None:
        return self._store.note(_LOCK) or None

    def remove(self) -> None:
        self._store.remove_note(_LOCK)


_clients: dict[Path, Any] = {}
_users: dict[Path, int] = {}
_access = threading.RLock()


def _embedded(folder: Path) -> Any:
    """The one client of this process for a folder, which no other process can open meanwhile; see `_release`."""
    import qdrant_client

    with _access:
        if folder not in _clients:
            try:
                _clients[folder] = qdrant_client.QdrantClient(path=str(folder), force_disable_check_same_thread=True)
            except RuntimeError as error:
                if "already accessed" not in str(error):
                    raise
                raise StoreError(
                    f"qdrant://{folder}: another process has it open, and an embedded Qdrant is for one process; end "
                    "that one, or start a server of Qdrant (qdrant://HOST:6333/COLLECTION)"
                ) from None
        _users[folder] = _users.get(folder, 0) + 1
        return _clients[folder]


def _release(client: Any) -> None:
    """Close a client that no other store of this process uses."""
    with _access:
        folder = next(folder for folder, known in _clients.items() if known is client)
        _users[folder] -= 1
        if not _users[folder]:
            _clients.pop(folder).close()


@atexit.register
def _close_all() -> None:
    """Before the interpreter ends, when qdrant-client cannot close what it has open any more."""
    for client in _clients.values():
        client.close()
    _clients.clear()


def _in_words(error: Exception) -> str:
    status = getattr(error, "status_code", None)
    if status in (401, 403):
        return f"the server refuses the key; set {API_KEY}"
    if type(error).__name__ == "ResponseHandlingException":
        return f"the server cannot be reached ({error})"
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        return str(json.loads(error.content)["status"]["error"])  # type: ignore[attr-defined]
    return first_line(error)
