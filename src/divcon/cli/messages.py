"""Messages as the command line shows them: settings that the library names in backticks become flags."""

from __future__ import annotations

import re

from divcon.config.fields import SHORT_NAMES

_FLAGS = {**{name: f"--{short}" for short, name in SHORT_NAMES.items()}, "trust": "--import", "arms": "--methods"} | {
    "column_types": "--column-type"
}
_SETTING = re.compile(r"`(?!divcon\b|dc\.)([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)?)(?:=([^`]+))?`")


def flag(name: str) -> str:
    """The flag of a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def in_flags(text: str) -> str:
    """A message of the library with its settings as flags: `` `divide_by=class` `` becomes ``--divide-by class``.

    ``NAME=True`` becomes the flag alone, ``NAME=False`` the flag with ``--no-``.
    """

    def as_flag(match: re.Match[str]) -> str:
        name, _, option = match[1].partition(".")
        value = match[2]
        if value == "False":
            return f"--no-{flag(name)[2:]}"
        with_option = flag(name) + (f".{option}" if option else "")
        return with_option if value in (None, "True") else f"{with_option} {value}"

    return _SETTING.sub(as_flag, text)
