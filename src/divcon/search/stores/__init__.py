"""Vector stores: a folder or object storage (LanceDB), PostgreSQL with pgvector, Qdrant, or a store of your own."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from urllib.parse import parse_qsl

from divcon.errors import ConfigError
from divcon.runtime.importing import load_part
from divcon.runtime.places import is_url, place, text_of, without_secrets
from divcon.search.stores.base import Store

Address = str | Path | Store | type[Store]
"""A folder, ``s3://BUCKET/PATH``, ``postgresql://USER@HOST/DATABASE``, ``qdrant://HOST:PORT/COLLECTION``,
``module:Name`` of a store of your own, or a `Store` itself."""

_NAMED = re.compile(r"(?P<part>[A-Za-z_][\w.]*:[A-Za-z_][\w.]*)(?:\?(?P<options>.*))?", re.DOTALL)


def open_store(store: Address) -> Store:
    """The store at an address, which need not exist yet.

    Args:
        store: a folder; ``s3://BUCKET/PATH``, or ``gs://`` and ``az://`` alike; ``postgresql://USER@HOST/DATABASE``,
            with ``?table=NAME`` for another table than ``divcon``; ``qdrant://HOST:PORT/COLLECTION`` or
            ``qdrant:///FOLDER``; a `Store`; or ``module:Name`` of a class of stores. ``module:Name?path=shop.db`` calls
            it with ``path="shop.db"``. A folder whose name looks like that is written with its path, ``./a:b``. The
            folder of a run stands for the index in it, if it has one.

    Raises:
        ConfigError: an address of another kind, or a package that the store needs is missing.
    """
    if isinstance(store, Store):
        return store
    if isinstance(store, type) and issubclass(store, Store):
        return _created(store, store.__name__, {})
    if not isinstance(store, str | Path):
        raise ConfigError(
            f"`store`: {store!r} is none; pass a folder, an address or a divcon.search.Store", field="store"
        )
    text = text_of(store)
    if text.startswith(("postgresql://", "postgres://")):
        from divcon.search.stores.postgres import PostgresStore

        return PostgresStore(text)
    if text.startswith(("qdrant://", "qdrants://")):
        from divcon.search.stores.qdrant import QdrantStore

        return QdrantStore(text)
    if is_url(text):
        return _in_bucket(text)
    if "://" in text.partition("?")[0]:
        raise ConfigError(f"{text}: {_ADDRESSES}", field="store")
    if isinstance(store, str) and (named := _NAMED.fullmatch(text)) and not Path(text).exists():
        kind = _load(named["part"])
        options = dict(parse_qsl(named["options"] or "", keep_blank_values=True))
        own = _created(kind, named["part"], options)
        if own.uri == type(own).__name__:
            own.uri = text
        return own
    from divcon.search.stores.lance import LanceStore
    from divcon.search.stores.places import ABOUT_FILE

    folder = place(text)
    in_run = folder / "index"
    return LanceStore(in_run if (in_run / ABOUT_FILE).is_file() and not (folder / ABOUT_FILE).exists() else folder)


_ADDRESSES = (
    "write a folder, s3://BUCKET/PATH (gs://, az://), postgresql://USER@HOST/DATABASE or qdrant://HOST:PORT/COLLECTION"
)


def _in_bucket(url: str) -> Store:
    """A store in object storage, or that of a run there."""
    from divcon.search.stores.places import SCHEMES

    if url.partition("://")[0].lower() not in SCHEMES or not url.partition("://")[2].strip("/"):
        raise ConfigError(f"{without_secrets(url)}: {_ADDRESSES}", field="store")
    from divcon.search.stores.lance import LanceStore

    store = LanceStore(url)
    if not store.exists():
        of_run = LanceStore(f"{url.rstrip('/')}/index")
        if of_run.exists():
            return of_run
    return store


def _load(name: str) -> object:
    try:
        return load_part(name, "store")
    except ConfigError as error:
        raise ConfigError(str(error), field="store") from error


def _created(kind: object, name: str, options: dict[str, str]) -> Store:
    if not callable(kind):
        raise ConfigError(f"{name}: is no class of stores", field="store")
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise ConfigError(f"{name}: does not implement {', '.join(missing)}", field="store")
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}; pass options as {name}?OPTION=VALUE", field="store") from None
    store = kind(**options)
    if not isinstance(store, Store):
        raise ConfigError(f"{name}: {type(store).__name__} is no divcon.search.Store", field="store")
    return store
