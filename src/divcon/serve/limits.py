"""The limits of the server, and the threads that answer requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from divcon.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Limits of requests; one beyond them is refused."""

    upload_mb: float = 20
    """The size of a request's body in megabytes (10^6 bytes)."""
    megapixels: float = 50
    """The size of an image in millions of pixels, read from its header before it is decoded."""
    most_k: int = 200
    """The largest k, and the largest page of items."""
    at_once: int = 4
    """Requests that are processed at the same time."""
    waiting: int = 64
    """Requests that may wait; further ones are refused."""
    seconds: float = 30
    """The time of a request, with its upload."""

    def __post_init__(self) -> None:
        for name in ("upload_mb", "megapixels", "most_k", "at_once", "seconds"):
            if not 0 < getattr(self, name) < 1e9:
                raise ConfigError(f"`{name}` {getattr(self, name)}: pass a number above 0", field=name)
        if self.waiting < 0:
            raise ConfigError(f"`waiting` {self.waiting}: pass 0 or more", field="waiting")

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_mb * 1e6)

    @property
    def pixels(self) -> int:
        return int(self.megapixels * 1e6)


class Refusal(Exception):
    """An error that is answered with an HTTP status and a message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}

    @classmethod
    def busy(cls, message: str) -> Refusal:
        """Status 503, with the time to retry after."""
        return cls(503, message, {"Retry-After": "1"})


class Threads:
    """A thread pool with limits. A call that takes too long is answered with an error, and keeps its thread until it
    ends."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._pool = ThreadPoolExecutor(limits.at_once, thread_name_prefix="divcon-serve")
        self._pending = 0

    async def run(self, act: Callable[..., T], *args: Any) -> T:
        """Call ``act`` in a thread, and return its result.

        Raises:
            Refusal: too many calls are waiting, or it takes too long.
        """
        if self._pending >= self.limits.at_once + self.limits.waiting:
            raise Refusal.busy("the server is busy; try again in a second")
        self._pending += 1
        future = self._pool.submit(act, *args)
        loop = asyncio.get_running_loop()
        # The callback runs in the worker's thread; only the event loop changes the count.
        future.add_done_callback(lambda _: _call(loop, self._free))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.seconds)
        except TimeoutError:
            raise Refusal.busy(f"this took longer than {self.limits.seconds:g} seconds") from None

    def _free(self) -> None:
        self._pending -= 1

    def close(self) -> None:
        """Take no more calls; those that have begun end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _call(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(act)


class Background:
    """One thread for long computations; it keeps each result until its input changes."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="divcon-background")
        self._results: dict[str, tuple[str, Future[Any]]] = {}
        self._lock = threading.Lock()

    def get(self, name: str, version: str, act: Callable[[], Any]) -> Any | None:
        """The result of ``act``; None while it is being computed. An error is raised, and the next call tries again.

        Args:
            name: the name of the result.
            version: the version of its input; for another version it is computed again.
        """
        with self._lock:
            result = self._results.get(name)
            if result is None or result[0] != version:
                result = self._results[name] = (version, self._pool.submit(act))
            future = result[1]
            if future.done() and future.exception() is not None:
                del self._results[name]
        return future.result() if future.done() else None

    def close(self) -> None:
        """Take no more calls."""
        self._pool.shutdown(wait=False, cancel_futures=True)
