"""Modules of the user's own: those of ``--import``, and those of parts that are typed as ``module:Name``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from divcon.runtime.importing import is_named, trust_module


def look_in_current_folder() -> None:
    """Have Python find modules in the current folder too, after all other places: nothing there hides a package."""
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:  # python -m has it already
        sys.path.append(here)


def import_modules(modules: Iterable[str]) -> None:
    """Import modules, and allow files to name what is in them.

    Raises:
        ConfigError: one cannot be imported.
    """
    for module in modules:
        trust_module(module)


def allow_typed(value: object) -> None:
    """Allow the module of a value on the command line that names a part of the user's own; other values pass.

    Raises:
        ConfigError: the module cannot be imported.
    """
    if is_named(value):
        import_modules([str(value).partition(":")[0]])
