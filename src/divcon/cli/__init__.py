"""The command line: parse, call, print."""

from __future__ import annotations

import os
import sys

from rich.text import Text

from divcon.cli import (
    ablate,
    check,
    compare,
    completion,
    curves,
    demo,
    encode,
    evaluate,
    export,
    features,
    index,
    map,
    pack,
    prune,
    report,
    reproduce,
    search,
    serve,
    similar,
    train,
)
from divcon.cli.app import app, notes
from divcon.cli.messages import in_flags
from divcon.cli.settings import current_origins
from divcon.errors import DivconError, ImageError, Stopped

__all__ = [
    "ablate",
    "check",
    "compare",
    "completion",
    "curves",
    "demo",
    "encode",
    "evaluate",
    "export",
    "features",
    "index",
    "main",
    "map",
    "pack",
    "prune",
    "report",
    "reproduce",
    "search",
    "serve",
    "similar",
    "train",
]


_SKIP_IMAGES = ("train", "evaluate", "compare", "encode", "index", "features", "pack")
"""Commands that can leave out images that do not decode."""


def _advice(error: DivconError, arguments: list[str] | None) -> str:
    """What to do about an image that does not decode, unless the error names a setting that would mend it."""
    command = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    if not isinstance(error, ImageError) or "`" in str(error) or command not in _SKIP_IMAGES:
        return ""
    return "; --on-bad-image skip leaves such images out, and divcon check --fix writes a table without them"


def main(arguments: list[str] | None = None) -> None:
    """Run a command; errors of the input are one line and exit code 2."""
    # Before PyTorch loads: its threads spin while they wait for each other, and where decoding workers or other
    # programs need the same cores, a step then takes two to three times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    current_origins(anew=True)
    try:
        app.meta(arguments)
    except DivconError as error:
        if error.elsewhere:
            sys.exit(2)
        message = in_flags(str(current_origins().placed(error))) + _advice(error, arguments)
        notes.print(Text.assemble(("error: ", "bold red"), message))
        sys.exit(2)
    except Stopped as stopped:
        notes.print(str(stopped), markup=False)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
