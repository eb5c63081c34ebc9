"""Search: embeddings of images or vectors in a store, and the items that are like one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divcon.search.index import Hit, Index
    from divcon.search.stores import open_store
    from divcon.search.stores.base import Store
    from divcon.search.update import Changes

# Imported at first use: PyTorch takes seconds, and finding a mistake in a command does not need it.
_HOME = {"Changes": "update", "Hit": "index", "Index": "index", "Store": "stores.base", "open_store": "stores"}

__all__ = ["Changes", "Hit", "Index", "Store", "open_store"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'divcon.search' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"divcon.search.{_HOME[name]}"), name)
    globals()[name] = value
    return value
