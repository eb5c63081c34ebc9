"""The threads of each rank that learn, while its main thread computes or waits, what happened to the others: one was
asked to stop, or its machine is gone.

The death of a process closes its connections, which the others notice. Of a machine that lost its power or its network
nobody hears: without a sign of life from it, the others would wait for hours.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from torch.distributed import PrefixStore  # type: ignore[reportPrivateImportUsage]

from divcon.errors import DivconError, as_text, error_of
from divcon.runtime.signals import announced, deliver

POLL_S = 1.0
"""Seconds between two looks at whether another rank was asked to stop."""
BEAT_S = 5.0
"""Seconds between two signs of life."""
LOST_S = 120.0
"""Seconds without a sign of life after which a rank counts as lost; threads share Python's lock."""
GONE_S = 10.0
"""Seconds that rank 0, whose process may hold the store, waits for the others to learn why it ends."""


class Watch:
    """A context manager around what the ranks do together.

    Args:
        store: of the group, with keys of its own.
        beats: whether the ranks give signs of life: those of several machines.
    """

    def __init__(self, store: Any, rank: int, size: int, *, beats: bool) -> None:
        # A connection of its own, as the main thread may wait in the store. A store in a file has none, and counts its
        # copies.
        self._store: Any = PrefixStore("watch", store)
        if beats:
            self._store = self._store.clone()
        self._rank, self._size, self._beats = rank, size, beats
        self._ended = threading.Event()
        self._stopped: int | None = None
        self._answered = time.monotonic()

    def __enter__(self) -> Watch:
        self._announced = announced(self._announce)
        self._announced.__enter__()
        if self._beats:
            self._store.set(f"beat {self._rank}", "0")
            threading.Thread(target=self._watch_store, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ended.set()
        self._announced.__exit__(None, None, None)
        with suppress(Exception):
            self._store.set(f"beat {self._rank}", "left")

    def stopped(self) -> int | None:
        """The signal that has asked a rank for a stop; None where there was none."""
        if self._stopped is None:
            with suppress(Exception):
                if self._store.check(["stop"]):
                    self._stopped = int(self._store.get("stop"))
        return self._stopped

    def announce_error(self, error: DivconError) -> None:
        """Let the other ranks report an error of this one."""
        with suppress(Exception):
            self._store.set("error", json.dumps([self._rank, socket.gethostname(), as_text(error)]))

    def error(self) -> tuple[int, str, DivconError] | None:
        """The rank whose error has ended the work, its machine, and the error; None where there was none."""
        with suppress(Exception):
            if self._store.check(["error"]):
                rank, machine, text = json.loads(self._store.get("error"))
                return rank, machine, error_of(text)
        return None

    def wait_for_others(self) -> None:
        """Say that this rank has learned why the work ended; rank 0 waits for the others to."""
        with suppress(Exception):
            self._store.set(f"gone {self._rank}", "1")
            until = time.monotonic() + GONE_S
            others = [f"gone {rank}" for rank in range(1, self._size)]
            while self._rank == 0 and not self._store.check(others) and time.monotonic() < until:
                time.sleep(0.1)

    def _announce(self, number: int) -> None:
        self._stopped = number
        with suppress(Exception):
            self._store.set("stop", str(number))

    def _watch(self) -> None:
        count, beaten = 0, 0.0
        seen: dict[int, tuple[str, float]] = {}
        while not self._ended.wait(POLL_S):
            with suppress(Exception):  # the store is gone: so is rank 0, which `_watch_store` notices
                if self._stopped is None and self.stopped() is not None:
                    deliver(self._stopped)  # type: ignore[arg-type]
                if self._beats and time.monotonic() - beaten >= BEAT_S:
                    count, beaten = count + 1, time.monotonic()
                    self._store.set(f"beat {self._rank}", str(count))
                    if self._store.check(["lost"]):
                        self._end(self._store.get("lost").decode())
                    self._look_for_lost(seen)
                self._answered = time.monotonic()

    def _look_for_lost(self, seen: dict[int, tuple[str, float]]) -> None:
        """Rank 0 looks at all other ranks, and these at rank 0."""
        now = time.monotonic()
        ranks = list(range(1, self._size)) if self._rank == 0 else [0]
        for rank, sign in zip(ranks, self._store.multi_get([f"beat {rank}" for rank in ranks]), strict=True):
            text = sign.decode()
            if rank not in seen or seen[rank][0] != text or text == "left":
                seen[rank] = text, now
            elif now - seen[rank][1] > LOST_S:
                message = f"rank {rank} of {self._size} has given no sign of life for {LOST_S:.0f} seconds"
                self._store.set("lost", message)
                time.sleep(BEAT_S)  # so that the others read it before the store ends with this process
                self._end(message)

    def _watch_store(self) -> None:
        while not self._ended.wait(BEAT_S):
            if time.monotonic() - self._answered > LOST_S:
                self._end(f"the store of the process group has not answered for {LOST_S:.0f} seconds")

    def _end(self, why: str) -> None:
        """End this process, whose main thread may wait for a rank that is lost."""
        if self._ended.is_set():
            return
        logging.getLogger("divcon").critical(
            "%s: its machine or the network between is gone. The last checkpoint stays: torchrun --max-restarts starts "
            "the processes again, which resume the run; else resume it",
            why,
        )
        os._exit(1)
