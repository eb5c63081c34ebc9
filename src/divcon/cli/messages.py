"""Messages as the command line shows them: settings that the library names in backticks become flags."""

from __future__ import annotations

import re

from divcon.config.fields import SHORT_NAMES

_FLAGS = {**{name: f"--{short}" for short, name in SHORT_NAMES.items()}, "trust": "--import", "arms": "--methods"}
_SETTING = re.compile(r"`(?!divcon\b|dc\.)([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)?)(?:=([^`]+))?`")


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def in_flags(text: str) -> str:
    """A message of the library with its settings as flags: `` `divide_by=class` `` is ``--divide-by class``.

    A setting that is true is its flag alone, one that is false is ``--no-`` and its name.
    """

    def shown(found: re.Match[str]) -> str:
        name, _, option = found[1].partition(".")
        value = found[2]
        if value == "False":
            return f"--no-{flag(name)[2:]}"
        called = flag(name) + (f".{option}" if option else "")
        return called if value in (None, "True") else f"{called} {value}"

    return _SETTING.sub(shown, text)
