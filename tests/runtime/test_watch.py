"""What a rank learns of the others while its main thread waits: a stop, an error, a machine that is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[reportPrivateImportUsage]

from divcon.errors import DataError, Stopped
from divcon.runtime import watch
from divcon.runtime.signals import SignalHandler
from divcon.runtime.watch import Watch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    monkeypatch.setattr(watch, "BEAT_S", 0.02)


def wait_for(what: Any) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_signal_of_one_rank_reaches_the_other_wherever_it_is() -> None:
    store = HashStore()
    other = Watch(store, 1, 2, beats=False)
    with Watch(store, 0, 2, beats=False) as mine, SignalHandler() as stop:
        assert (mine.stopped(), other.stopped()) == (None, None)
        with pytest.raises(Stopped) as stopped:
            threading.Thread(target=other._announce, args=(signal.SIGINT,)).start()
            wait_for(lambda: False)
        assert stopped.value.exit_code == 130
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)  # the launcher's, to all ranks: one stop is enough
        assert stop.asked == signal.SIGINT


def test_a_signal_is_announced_once_and_held_where_it_is_deferred() -> None:
    store = HashStore()
    with Watch(store, 0, 2, beats=False) as mine, SignalHandler() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.asked, mine.stopped()) == (signal.SIGTERM, signal.SIGTERM)
        assert Watch(store, 1, 2, beats=False).stopped() == signal.SIGTERM


def test_without_a_handler_nothing_is_stopped() -> None:
    store = HashStore()
    with Watch(store, 0, 2, beats=False) as mine:
        Watch(store, 1, 2, beats=False)._announce(signal.SIGTERM)
        wait_for(lambda: mine._stopped is not None)


def test_an_error_is_known_to_all() -> None:
    store = HashStore()
    mine, other = (Watch(store, rank, 2, beats=False) for rank in range(2))
    assert mine.error() is None
    other.announce_error(DataError("its image is gone"))
    announced = mine.error()
    assert announced is not None
    assert (announced[0], type(announced[2]), str(announced[2])) == (1, DataError, "its image is gone")


def test_rank_0_waits_until_the_others_know(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    mine, other = (Watch(store, rank, 2, beats=False) for rank in range(2))
    threading.Timer(0.2, other.wait_for_others).start()
    mine.wait_for_others()
    assert store.check(["watch/gone 1"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_a_sign_of_life_ends_the_others(
    rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(watch, "LOST_S", 0.3)
    monkeypatch.setattr(watch.os, "_exit", codes.append)
    store = HashStore()
    store.set(f"watch/beat {1 - rank}", "0")
    with Watch(store, rank, 2, beats=True):
        wait_for(lambda: codes)
    assert codes[0] == 1
    assert f"rank {1 - rank} of 2 has given no sign of life" in caplog.text
    assert store.check(["watch/lost"])  # so that all others know


def test_a_rank_that_has_left_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(watch, "LOST_S", 0.2)
    monkeypatch.setattr(watch.os, "_exit", codes.append)
    store = HashStore()
    with Watch(store, 1, 2, beats=True):
        pass
    with Watch(store, 0, 2, beats=True):
        time.sleep(0.5)
    assert not codes
