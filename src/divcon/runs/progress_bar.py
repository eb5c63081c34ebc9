"""A progress bar of one line, however narrow the terminal: what does not fit is left out, the least important first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style

from divcon.runtime.context import Progress as Step

SHORTEST, LONGEST = 8, 40
"""Cells of the bar itself."""

STAGES = {
    "unpack": "unpacking",
    "decode": "decoding",
    "compare": "comparing",
    "pack": "packing",
    "fetch": "fetching",
    "embed": "embedding",
    "divide": "dividing",
    "train": "training",
    "evaluate": "evaluating",
    "index": "indexing",
}
"""What a stage of `divcon.runtime.context.Progress` is called on a terminal."""


def fitted(width: int, what: str, share: str, left: str, details: Sequence[str]) -> tuple[str, int, str]:
    """The texts before and after a bar, and the cells of the bar between them, so that all fit into one line.

    Args:
        width: cells of the line.
        what: what is done; cut with an ellipsis where it does not fit.
        share: the share that is done, such as ``43%``; empty where it is unknown.
        left: the time left.
        details: shown where there is room, the first ones first.
    """
    words = [word for word in (share, left) if word]
    for detail in details:
        longer = [*words[:1], *words[1:-1], detail, words[-1]] if len(words) > 1 else [*words, detail]
        if cell_len(what) + 2 + SHORTEST + cell_len(" ".join(longer)) > width:
            break
        words = longer
    after = " ".join(words)
    bar = width - cell_len(what) - cell_len(after) - 2
    if bar >= SHORTEST:
        return what, min(bar, LONGEST), after
    room = width - cell_len(after) - 1
    if room < cell_len(what):
        what = what[: max(0, room - 1)] + "…" if room > 1 else ""
    return what, 0, after[:width]


class _Line:
    """The line of a task, drawn for the width that the console has."""

    def __init__(self, what: str, share: str, left: str, details: Sequence[str], bar: ProgressBar) -> None:
        self._texts = what, share, left, details
        self._bar = bar

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        what, cells, after = fitted(options.max_width, *self._texts)
        yield Segment(what)
        if cells:
            yield Segment(" ")
            self._bar.width = cells
            yield from (segment for segment in console.render(self._bar, options) if segment.text != "\n")
        if what or cells:
            yield Segment(" ")
        yield Segment(after, Style.parse("cyan"))


class OneLine(ProgressColumn):
    """The only column of a bar. It shows a task's description, its share, its time left, and the list of texts
    ``task.fields["details"]``."""

    def __init__(self, time_left: Callable[[Task], float | None] = lambda task: task.time_remaining) -> None:
        self._time_left = time_left
        super().__init__()

    def render(self, task: Task) -> Any:
        share = "" if task.total is None else f"{task.percentage:.0f}%"
        seconds = None if task.total is None else self._time_left(task)
        bar = ProgressBar(total=task.total, completed=task.completed, pulse=task.total is None)
        bar.animation_time = task.get_time()
        elapsed = f"{_clock(task.elapsed or 0)} elapsed"
        left = elapsed if task.total is None else f"{'-:--:--' if seconds is None else _clock(seconds)} left"
        details = [*task.fields.get("details", ()), *([] if left == elapsed else [elapsed])]
        return _Line(task.description, share, left, details, bar)


def _clock(seconds: float) -> str:
    hours, minutes = int(seconds) // 3600, int(seconds) // 60 % 60
    return f"{hours}:{minutes:02d}:{int(seconds) % 60:02d}"


def bar_on(console: Console, column: ProgressColumn | None = None) -> Progress:
    """A bar of one line that is removed when it ends; nothing where the console is no terminal."""
    return Progress(column or OneLine(), console=console, transient=True, expand=True, disable=not console.is_terminal)


@contextmanager
def stage_bar(console: Console, unit: str = "images", total: int | None = None) -> Iterator[Callable[[Step], None]]:
    """Show a bar with rate and time left; yields the ``on_progress`` of a `divcon.Context` that moves it. Each stage,
    and each part of one with a total of its own, begins the bar again.

    Args:
        console: where to show it.
        unit: what is counted.
        total: of work that does not know how much it is.
    """
    with bar_on(console) as bar:
        task = bar.add_task("reading", total=None, details=[])
        before: tuple[str, int | None, int] = ("", None, 0)

        def on_progress(step: Step) -> None:
            nonlocal before
            whole = total if step.total is None else step.total
            if (step.stage, whole) != before[:2] or step.done < before[2]:
                bar.reset(task, total=whole, description=STAGES.get(step.stage, step.stage))
            before = (step.stage, whole, step.done)
            size, of_what = {"unpack": (1_000_000, "MB"), "fetch": (1, "files")}.get(step.stage, (1, unit))
            of = "" if whole is None else f"/{whole // size:,}"
            speed = bar.tasks[0].speed
            rate = [f"{speed / size:,.0f} {of_what}/s"] if speed else []
            count = f"{step.done // size:,}{of} {of_what}"
            bar.update(task, completed=step.done, total=whole, details=[*rate, count])

        yield on_progress
