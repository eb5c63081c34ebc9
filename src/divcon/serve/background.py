"""What takes longer than a request may, computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Works in one thread, and keeps each result until what it was made of changes."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="divcon-background")
        self._kept: dict[str, tuple[str, Future[Any]]] = {}
        self._lock = threading.Lock()

    def get(self, name: str, version: str, act: Callable[[], Any]) -> Any | None:
        """What ``act`` gives, or None while it is at work; what it raises is raised, and it is tried again next time.

        Args:
            name: of the result.
            version: of what it is made of; with another one it is made anew.
        """
        with self._lock:
            kept = self._kept.get(name)
            if kept is None or kept[0] != version:
                kept = self._kept[name] = (version, self._pool.submit(act))
            future = kept[1]
            if future.done() and future.exception() is not None:
                del self._kept[name]
        return future.result() if future.done() else None

    def close(self) -> None:
        """Take no more on."""
        self._pool.shutdown(wait=False, cancel_futures=True)
