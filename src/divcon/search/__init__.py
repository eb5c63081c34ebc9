"""Search: embeddings of images or vectors in a store, and the items that are like one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.search.encode import Encoded
    from divcon.search.index import Hit, Index
    from divcon.search.on_ray import Ray
    from divcon.search.sources import StreamSource
    from divcon.search.stores import open_store
    from divcon.search.stores.base import Store
    from divcon.search.update import Changes

__all__ = ["Changes", "Encoded", "Hit", "Index", "Ray", "Store", "StreamSource", "open_store"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Changes": "update",
        "Encoded": "encode",
        "Hit": "index",
        "Index": "index",
        "Ray": "on_ray",
        "StreamSource": "sources",
        "Store": "stores.base",
        "open_store": "stores",
    },
)
