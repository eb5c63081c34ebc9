"""Search: embeddings of images or vectors in a store, and the items that are like one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.search.index import Hit, Index
    from divcon.search.stores import open_store
    from divcon.search.stores.base import Store
    from divcon.search.update import Changes

__all__ = ["Changes", "Hit", "Index", "Store", "open_store"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Changes": "update",
        "Hit": "index",
        "Index": "index",
        "Store": "stores.base",
        "open_store": "stores",
    },
)
