"""Search: embeddings of images or vectors in a store, and the items that are like one."""

from __future__ import annotations

from divcon.search.index import Hit, Index
from divcon.search.stores import open_store
from divcon.search.stores.base import Store
from divcon.search.update import Changes

__all__ = ["Changes", "Hit", "Index", "Store", "open_store"]
