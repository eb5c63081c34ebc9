"""Search: embeddings of images or vectors in a store, and the items that are like one."""

from divcon.search.index import Hit, Index
from divcon.search.store import Store, open_store
from divcon.search.update import Changes

__all__ = ["Changes", "Hit", "Index", "Store", "open_store"]
