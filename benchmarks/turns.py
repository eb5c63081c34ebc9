"""Time contenders in turns, each run in a process of its own, so that a busy machine slows all of them equally.

Timing starts when the input is in memory and imports are done. Memory is the peak of the process, and its increase
during the run. Work of less than a second runs in turns within one process, many times, because the speed of a shared
machine varies for seconds; its memory is still measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Contender:
    """An implementation to compare."""

    package: str
    what: str
    against: str
    """The contender of ours whose time is divided by this one's."""


def installed(contender: Contender) -> bool:
    """Whether its package is installed; prints a note if not."""
    try:
        version(contender.package)
    except PackageNotFoundError:
        print(f"without {contender.package}, which is not installed", file=sys.stderr)
        return False
    return True


def peak_mb() -> float:
    """The peak memory of this process (Linux counts in KiB, macOS in bytes)."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def run_one(work: Callable[[], dict[str, float]]) -> None:
    """Do the work once; print its time, memory and results as the last line."""
    before, start = peak_mb(), time.perf_counter()
    results = work()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "added_mb": peak_mb() - before, "found": results}))


def alternate(
    script: str, contenders: Mapping[str, Contender], sizes: Mapping[str, object], turns: int
) -> dict[str, list[dict[str, Any]]]:
    """The runs of each contender, each in a process of its own."""
    flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for turn in range(turns):
        for name, done in runs.items():
            command = [sys.executable, script, "--contender", name, *flags]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            done.append(json.loads(output.splitlines()[-1]))
            print(f"turn {turn + 1}: {name} {done[-1]['seconds']:.2f} s", file=sys.stderr)
    return runs


def alternate_closely(
    works: Mapping[str, Callable[[], object]], apart: Mapping[str, list[dict[str, Any]]], turns: int
) -> dict[str, list[dict[str, Any]]]:
    """Time each work ``turns`` times in this process, in another order each turn; memory and results are those of its
    first run in ``apart``."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order, draw = list(works), random.Random(0)
    for _ in range(turns):
        draw.shuffle(order)
        for name in order:
            start = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: [{**apart[name][0], "seconds": taken} for taken in seconds[name]] for name in works}


def summed_up(contenders: Mapping[str, Contender], runs: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per contender; ratios are medians of turns, each against ours in the same turn."""
    rows = []
    for name, contender in contenders.items():
        seconds = [run["seconds"] for run in runs[name]]
        ratios = [
            mine["seconds"] / run["seconds"] for mine, run in zip(runs[contender.against], runs[name], strict=True)
        ]
        rows.append(
            {
                "contender": name,
                "package": contender.package,
                "version": version(contender.package),
                "what": contender.what,
                "median_seconds": statistics.median(seconds),
                "seconds": seconds,
                "ours_to_this": statistics.median(ratios),
                "peak_mb": max(run["peak_mb"] for run in runs[name]),
                "added_mb": max(run["added_mb"] for run in runs[name]),
                "found": runs[name][0]["found"],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| | computes | median s | fastest – slowest s | divcon's time / this | peak MB | added MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['package']} {row['version']} | {row['what']} | {row['median_seconds']:.2f} "
            f"| {min(row['seconds']):.2f} – {max(row['seconds']):.2f} | {row['ours_to_this']:.2f} "
            f"| {row['peak_mb']:.0f} | {row['added_mb']:.0f} |"
        )
    return "\n".join(lines)


def compare(
    script: str,
    about: str | None,
    contenders: Mapping[str, Contender],
    sizes: Mapping[str, tuple[Any, str]],
    title: str,
    prepare: Callable[..., Callable[[], dict[str, float]]],
    *,
    turns: int = 5,
    closely: bool = False,
) -> None:
    """The command line of a script whose contenders take turns.

    Args:
        sizes: options by name, each with its default and help.
        title: with the sizes in braces.
        prepare: called with a contender's name and the sizes by name; imports what it needs, and returns the work to
            time.
        turns: the default number of turns.
        closely: run in one process, and once in a process of its own to measure memory.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, description) in sizes.items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"{description} (default: %(default)s)"
        )
    parser.add_argument("--turns", type=int, default=turns, help="runs of each contender (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=contenders, help="contenders that take part (default: all)")
    parser.add_argument("--json", type=Path, default=Path(f"build/{Path(script).stem}.json"), help="where results go")
    parser.add_argument("--contender", choices=contenders, help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = {name: getattr(options, name) for name in sizes}
    if options.contender:
        run_one(prepare(options.contender, **chosen))
        return
    named = options.only or [name for name, contender in contenders.items() if installed(contender)]
    taking_part = {
        name: c for name, c in contenders.items() if name in named or name in {contenders[n].against for n in named}
    }
    apart = 1 if closely else options.turns
    runs = alternate(script, taking_part, chosen, apart)
    if closely:
        runs = alternate_closely({name: prepare(name, **chosen) for name in taking_part}, runs, options.turns)
    write(options.json, title.format(**chosen), chosen, options.turns, summed_up(taking_part, runs))


def write(path: Path, title: str, sizes: Mapping[str, object], turns: int, rows: list[dict[str, Any]]) -> None:
    """Write the results as JSON, and print the table."""
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"title": title, "sizes": dict(sizes), "turns": turns, "machine": machine, "results": rows}
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(section(results))


def section(results: dict[str, Any]) -> str:
    """The title and table of the results, in Markdown."""
    about = f"{results['title']}; {results['machine']['cores']} cores, {results['turns']} turns"
    return f"{about}\n\n{table(results['results'])}\n"
