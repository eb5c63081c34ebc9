"""Where embeddings are kept: a folder (LanceDB), or PostgreSQL with pgvector. Both do the same."""

from __future__ import annotations

from pathlib import Path

from divcon.errors import ConfigError
from divcon.search.stores.base import Store


def open_store(uri: str | Path) -> Store:
    """The store that a folder or ``postgresql://...`` names; it need not be there yet. Another table than ``divcon``
    is ``postgresql://...?table=NAME``.

    Raises:
        ConfigError: the address is of another kind, or what the store needs is not installed.
    """
    text = str(uri)
    if text.startswith(("postgresql://", "postgres://")):
        from divcon.search.stores.postgres import PostgresStore

        return PostgresStore(text)
    if "://" in text:
        raise ConfigError(f"--store {text}: a store is a folder, or postgresql://USER@HOST/DATABASE")
    from divcon.search.stores.lance import LanceStore

    return LanceStore(Path(text))
