"""What the server takes on, and the threads that do it."""

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
    """Beyond these a request is refused; the server goes on."""

    upload_mb: float = 20
    """Megabytes (10^6 bytes) of a request's body."""
    megapixels: float = 50
    """Millions of pixels of an image, read from its header before it is decoded."""
    most_k: int = 200
    """The largest k, and the most items of a page of items."""
    at_once: int = 4
    """Requests that are worked on at the same time."""
    waiting: int = 64
    """Requests that wait for these; a further one is refused."""
    seconds: float = 30
    """For a request, its upload included."""

    def __post_init__(self) -> None:
        for name in ("upload_mb", "megapixels", "most_k", "at_once", "seconds"):
            if not 0 < getattr(self, name) < 1e9:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a number above 0")
        if self.waiting < 0:
            raise ConfigError(f"--waiting {self.waiting}: give 0 or more")

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_mb * 1e6)

    @property
    def pixels(self) -> int:
        return int(self.megapixels * 1e6)


class Refusal(Exception):
    """A request that is answered with a status and what is wrong."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}

    @classmethod
    def busy(cls, message: str) -> Refusal:
        """503, and when to try again."""
        return cls(503, message, {"Retry-After": "1"})


class Threads:
    """Works in threads, a limited number at once. What takes too long is given up, and keeps its thread until it has
    ended."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._pool = ThreadPoolExecutor(limits.at_once, thread_name_prefix="divcon-serve")
        self._taken = 0

    async def run(self, act: Callable[..., T], *args: Any) -> T:
        """What ``act`` gives.

        Raises:
            Refusal: too many wait already, or it takes too long.
        """
        if self._taken >= self.limits.at_once + self.limits.waiting:
            raise Refusal.busy("the server is busy; try again in a second")
        self._taken += 1
        future = self._pool.submit(act, *args)
        loop = asyncio.get_running_loop()
        # Called in the thread that ends it: the count is the loop's.
        future.add_done_callback(lambda _: _call(loop, self._free))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.seconds)
        except TimeoutError:
            raise Refusal.busy(f"this took longer than {self.limits.seconds:g} seconds") from None

    def _free(self) -> None:
        self._taken -= 1

    def close(self) -> None:
        """Take no more on; what has begun ends."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _call(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(act)


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
