"""A server over an index: an API to search it, and a page to see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.serve.app import create_app
    from divcon.serve.limits import Limits

__all__ = ["Limits", "create_app"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Limits": "limits",
        "create_app": "app",
    },
)
