"""A run that is asked to stop finishes its batch, keeps what it has done, and says so."""

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

    A context manager: it listens inside of the block, in the main thread alone (Python gives signals to no other), and
    leaves signals that are ignored (``nohup``) to be ignored. What was there before is put back.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        """The signal that asked for it."""
        self._held = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: handler for n, handler in found.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._hear)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What the block does is not torn apart: `Stopped` waits for `check`, or for the end of the block."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def check(self) -> None:
        """Raises Stopped, if that was asked for."""
        if self.asked is not None:
            raise Stopped("stopped", self.asked)

    def _hear(self, number: int, frame: object) -> None:
        again, self.asked = self.asked is not None, number if self.asked is None else self.asked
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not again and not self._held:
            self.check()
