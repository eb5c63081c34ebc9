"""Run the blocks of a page of the documentation in the working directory, in order, as a reader would:

    python tests/run_page.py docs/tutorials/config.md

Blocks of ``python`` share their names, and all share the folder. Those in HTML comments, which set up what a reader has
already, run too. A block of ``output`` is what the block before it prints, where ``...`` stands for anything. Other
blocks are only shown.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = re.compile(r"^```(python|bash|output)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    language: str
    text: str
    line: int
    """Of the page, where the text begins."""


def blocks_of(text: str) -> list[Block]:
    """The blocks that are run, and the outputs they are to give."""
    return [Block(m[1], m[2], text[: m.start()].count("\n") + 2) for m in BLOCK.finditer(text)]


def run_page(page: Path) -> None:
    """
    Raises:
        SystemExit: a block fails, or prints something else than the page says; with the page and line.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    sys.path.insert(0, "")  # a module that a block writes is imported as it is at a prompt or in a notebook
    printed = ""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        where = f"{page}:{block.line}"
        started = time.perf_counter()
        if block.language == "output":
            if not doctest.OutputChecker().check_output(block.text, printed, OPTIONS):
                sys.exit(f"{where}: the page says\n{block.text}and the block before it printed\n{printed}")
            continue
        printed = _python(block, names, where) if block.language == "python" else _bash(block, where)
        print(f"{where}: {block.language}, {time.perf_counter() - started:.1f} s\n{printed}", flush=True)


def _python(block: Block, names: dict[str, Any], where: str) -> str:
    code = compile("\n" * (block.line - 1) + block.text, where.rpartition(":")[0], "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def _bash(block: Block, where: str) -> str:
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if (server := os.environ.get("DIVCON_TESTS_FORK_SERVER")) is not None:
        folders.insert(0, str(Path(server).parent))  # where its `divcon` is
    path = os.pathsep.join(folders)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{where}: exit code {done.returncode}\n{block.text}{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    run_page(Path(sys.argv[1]).absolute())
