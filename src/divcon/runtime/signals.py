"""Stop a training by signal: the batch is finished, the state saved, and `Stopped` raised."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from divcon.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalHandler:
    """Turns the first SIGINT or SIGTERM into `Stopped`; a second SIGINT is a plain KeyboardInterrupt, at once.

    A context manager: it handles signals inside of the block, in the main thread alone (Python delivers them to no
    other). Signals that are ignored (``nohup``) stay ignored. On exit the handlers from before are restored.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal that asked for a stop; None where there was none."""
        self._deferred = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer `Stopped` inside of the block, so that it is not cut short: `check` raises it."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def check(self) -> None:
        """Raise `Stopped` if a signal asked for it."""
        if self.asked is not None:
            raise Stopped("stopped", self.asked)

    def _handle(self, number: int, frame: object) -> None:
        again, self.asked = self.asked is not None, number if self.asked is None else self.asked
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not again and not self._deferred:
            self.check()
