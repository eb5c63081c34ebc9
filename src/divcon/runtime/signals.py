"""Stop a training by signal: the batch is finished, the state saved, and `Stopped` raised."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
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
        """The signal that asked for a stop, this process or another rank; None where there was none."""
        self._deferred = 0
        self._delivered: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._handle)
            _handling.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        if self in _handling:
            _handling.remove(self)
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

    def _deliver(self, number: int) -> None:
        """A signal that another rank has received; called by another thread than the main one."""
        if self.asked is not None:
            return
        if signal.SIGTERM in self._before:  # so that the main thread is interrupted wherever it is
            self._delivered = number
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.asked = number

    def _handle(self, number: int, frame: object) -> None:
        again, own = self.asked is not None, self._delivered is None
        if not again:
            self.asked = self._delivered or number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if again:
            return
        if own:
            for announce in _announcing:
                announce(number)
        if not self._deferred:
            self.check()


_handling: list[SignalHandler] = []
"""The handlers that are in force, the last of them the innermost."""

_announcing: list[Callable[[int], None]] = []


@contextmanager
def announced(announce: Callable[[int], None]) -> Iterator[None]:
    """Inside of the block, ``announce`` is called in the main thread with each signal that asks for a stop."""
    _announcing.append(announce)
    try:
        yield
    finally:
        _announcing.remove(announce)


def deliver(number: int) -> None:
    """Ask for a stop, as if this process had received the signal that another rank has. Nothing happens where no
    `SignalHandler` is in force: the other rank's end is noticed by itself. Called by any thread."""
    if _handling:
        _handling[-1]._deliver(number)
