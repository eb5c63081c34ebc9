"""A process that has everything imported; for each line of its input it forks a process that runs a divcon command.

The forked processes are real and die as such, but start at once, where importing PyTorch takes seconds.
A line is JSON: ``arguments`` (as after ``divcon``), ``output`` (a file), ``events`` (a file), ``kill`` (or null):
``[stage, number, delay]``, to be killed by SIGKILL ``delay`` seconds after the number-th event of that stage,
``victim`` (``worker``: not it is killed, but a process that decodes for it; ``group``: SIGTERM to all of them; a
number: it gets that signal), and ``clock`` (true: the clock jumps). Answers the process's number, and in the end how
it ended.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lancedb  # noqa: F401 — imported once
import pyarrow.parquet  # noqa: F401 — imported once

import divcon.cli
import divcon.data.pack
import divcon.runs.folder
import divcon.runs.report.write
import divcon.runs.run
import divcon.search.commits
import divcon.search.items
import divcon.training.dividing
import divcon.training.loop
from divcon.training.feature_bank import FeatureBank


class Events:
    """Counts what happens, by stage, and kills."""

    def __init__(self, path: str, kill: list[Any] | None, victim: str) -> None:
        self._victim = victim
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._kill = kill
        self._count: dict[str, int] = {}

    def happens(self, stage: str) -> None:
        number = self._count[stage] = self._count.get(stage, 0) + 1
        os.write(self._file, f"{stage}\n".encode())
        if self._kill is None or [stage, number] != self._kill[:2]:
            return
        if self._kill[2]:
            threading.Timer(self._kill[2], self._die).start()
        else:
            self._die()

    def _die(self) -> None:
        if self._victim == "worker":
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            return
        if self._victim == "group":
            # From another process, as a scheduler is: workers take the signal of their own parent for the end.
            subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"], check=True, start_new_session=True)
            return
        if self._victim:
            os.kill(os.getpid(), int(self._victim))
            return
        os.write(self._file, b"killed\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, stage: str) -> None:
        """An event before, and one after, each call."""
        function = getattr(owner, name)

        def called(*arguments: Any, **options: Any) -> Any:
            self.happens(stage)
            try:
                return function(*arguments, **options)
            finally:
                self.happens(stage)

        setattr(owner, name, called)

    def before(self, owner: Any, name: str, stage: str) -> None:
        """An event before each call."""
        function: Callable[..., Any] = getattr(owner, name)

        def called(*arguments: Any, **options: Any) -> Any:
            self.happens(stage)
            return function(*arguments, **options)

        setattr(owner, name, called)


def child(order: dict[str, Any]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    events = Events(order["events"], order["kill"], order["victim"])
    for name in ("replace", "rename", "fsync", "unlink", "ftruncate"):
        events.around(os, name, "saving")
    events.around(divcon.training.dividing, "divide", "dividing")
    events.around(FeatureBank, "features_to_divide", "dividing")
    events.before(divcon.training.loop, "take_step", "training")
    events.around(divcon.runs.run, "evaluate", "evaluating")
    if order["arguments"][0] == "index":
        from divcon.search.stores.lance import LanceStore

        # Some items at a time, so that there is an inside to be killed in.
        divcon.search.items.chunks_of.__defaults__ = (48,)
        divcon.search.commits.COMMIT_SECONDS = 0.0
        for name in ("create", "set_about", "append", "append_all", "write", "delete", "optimize"):
            events.around(LanceStore, name, "indexing")
    if order["arguments"][0] == "pack":
        divcon.data.pack.IMAGES_A_FILE = 12
        events.around(divcon.data.pack.Packing, "of", "packing")
    if order.get("clock"):
        now, jumps = time.time, random.Random(0)
        time.time = lambda: now() + jumps.choice([-86400.0 * 400, 0.0, 86400.0 * 400])
    divcon.cli.main(order["arguments"])


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            code = 0
            try:
                child(order)
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 99
            # As an interpreter does when it ends: workers are stopped, files are closed.
            import atexit

            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(code)
        print(pid, flush=True)
        status = os.waitpid(pid, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
