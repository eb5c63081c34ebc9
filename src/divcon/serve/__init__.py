"""A server over an index: an API to search it, and a page to see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divcon.serve.app import create_app
    from divcon.serve.limits import Limits

__all__ = ["Limits", "create_app"]


def __getattr__(name: str) -> Any:
    # At first use: FastAPI is an extra, and the maps that are written as files need none of it.
    if name == "create_app":
        from divcon.serve.app import create_app

        return create_app
    if name == "Limits":
        from divcon.serve.limits import Limits

        return Limits
    raise AttributeError(f"module 'divcon.serve' has no attribute {name!r}")
