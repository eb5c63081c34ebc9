"""A server over an index: an API to search it, and a page to see it."""

from __future__ import annotations

from divcon.serve.app import create_app
from divcon.serve.limits import Limits

__all__ = ["Limits", "create_app"]
