"""Settings in a file: YAML, TOML or JSON read into plain values with their lines, and written as YAML.

`divcon.config.settings` says what a file may hold. YAML is 1.2: ``yes`` and ``no`` are text, ``1e-4`` is a number.
"""

from __future__ import annotations

import io
import json
import re
import tomllib
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from divcon.config.fields import SHORT_NAMES, adapter, expected_words, file_types, nearest
from divcon.errors import ConfigError, unknown
from divcon.runtime.copies import here
from divcon.runtime.places import is_url, place

Keys = tuple[str, ...]

SUFFIXES = (".yaml", ".yml", ".toml", ".json")
"""Suffixes of the files that can be read."""


@dataclass(frozen=True)
class ConfigFile:
    """The content of a file of settings."""

    path: Path
    values: dict[str, Any]
    lines: dict[Keys, int]
    """The line, from 1, of each key, where known."""

    def where(self, *keys: str) -> str:
        """The file, and the line of the key or of the nearest above it: ``run.yaml line 3``."""
        for depth in range(len(keys), 0, -1):
            if keys[:depth] in self.lines:
                return f"{self.path} line {self.lines[keys[:depth]]}"
        return str(self.path)


def read_config_file(path: str | Path) -> ConfigFile:
    """Read a file of settings, in the format of its suffix.

    Raises:
        ConfigError: there is no such file; it is not YAML, TOML or JSON; a key is repeated; it is empty, or not a
            mapping. The message has the line where it is known.
    """
    path = here(path)
    if path.is_dir():
        of_run = path / "config.json"
        hint = f"pass {of_run}" if of_run.exists() else f"pass a file ({', '.join(SUFFIXES)})"
        raise ConfigError(f"{path}: is a folder; {hint}")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: settings are read from {', '.join(SUFFIXES)}; pass a file that ends in one of them")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file of settings") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    read = {".toml": _toml, ".json": _json}.get(path.suffix.lower(), _yaml)
    values, lines = read(text, path) if text.strip() else (None, {})
    if values is None:
        raise ConfigError(f"{path}: is empty; it should hold settings, as in: train: {{epochs: 60}}")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: should map sections to settings, as in train: {{epochs: 60}}; it holds {values!r}")
    return ConfigFile(path, values, lines)


def as_yaml(tree: Mapping[str, Any], comments: Mapping[Keys, str] | None = None) -> str:
    """A tree of plain values as YAML, with ``comments`` at the ends of the lines of their keys."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 1 << 30  # a folded line would separate a value from its comment
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    written = io.StringIO()
    yaml.dump(_commented(tree, comments or {}, ()), written)
    return written.getvalue()


def _commented(tree: Mapping[str, Any], comments: Mapping[Keys, str], above: Keys) -> Any:
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    mapped = CommentedMap()

    def text(value: Any) -> Any:  # escaped: YAML takes some of these characters for line breaks
        unclear = isinstance(value, str) and not value.isprintable()
        return DoubleQuotedScalarString(value) if unclear else value

    for key, value in tree.items():
        key = text(key)
        mapped[key] = _commented(value, comments, (*above, key)) if isinstance(value, Mapping) else text(value)
        if (*above, key) in comments:
            mapped.yaml_add_eol_comment(comments[(*above, key)], key, column=44)
    return mapped


def _yaml(text: str, path: Path) -> tuple[Any, dict[Keys, int]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        plain = YAML(typ="safe", pure=True)
        return plain.load(text), _lines_of(YAML().load(text), ())
    except DuplicateKeyError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        match = re.search(r'duplicate key "(.*?)"', error.problem or "")
        key = repr(match[1]) if match else "a key"
        raise ConfigError(f"{path}{line}: {key} is set here a second time; keep one of the two") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{path}{line}: is not YAML ({what})") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; settings are a section, a name and a value") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None


def _lines_of(node: Any, above: Keys) -> dict[Keys, int]:
    from ruamel.yaml.comments import CommentedMap

    if not isinstance(node, CommentedMap):
        return {}
    lines = {}
    for key, value in node.items():
        if key in (node.lc.data or {}):
            lines[(*above, str(key))] = node.lc.key(key)[0] + 1
        lines |= _lines_of(value, (*above, str(key)))
    return lines


def _json(text: str, path: Path) -> tuple[Any, dict[Keys, int]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            _yaml(text, path)  # raises with the line, where the JSON can be read as YAML
            key = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
            raise ConfigError(f"{path}: {key!r} is set here a second time; keep one of the two")
        return values

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} line {error.lineno}: is not JSON ({error.msg})") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; settings are a section, a name and a value") from None
    try:  # JSON is YAML except for rarities, such as tabs before keys: then the lines stay unknown
        return values, _yaml(text, path)[1]
    except ConfigError:
        return values, {}


_TABLE = re.compile(r"\s*\[\s*([\w.\s\"'-]+?)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"\s*([\w.\"'-]+(?:\s*\.\s*[\w\"'-]+)*)\s*=")


def _toml(text: str, path: Path) -> tuple[Any, dict[Keys, int]]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = f" line {match[1]}" if match else ""
        raise ConfigError(f"{path}{line}: is not TOML ({str(error).partition(' (at ')[0]})") from None
    # tomllib keeps no lines: look for keys at the start of a line, below their table.
    table: Keys = ()
    lines: dict[Keys, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            table = _dotted(match[1])
            lines.setdefault(table, number)
        elif match := _KEY.match(line):
            lines.setdefault(table + _dotted(match[1]), number)
    return values, lines


def _dotted(name: str) -> Keys:
    return tuple(key.strip().strip("\"'") for key in name.split("."))


Where = Callable[..., str]
"""``where("train", "epochs")``: the file and line of a key, for messages."""

_WORDS = {bool: "true or false", type(None): "null"}
"""Their names in YAML, TOML and JSON."""


def typed(
    section: str, kind: type, values: Any, where: Where, folder: Path | None, section_of: Mapping[str, str]
) -> dict[str, Any]:
    """The values for a dataclass ``kind``, each of its field's type.

    An int becomes a float where one is expected, and text a path, which starts from ``folder`` if that is passed;
    nothing else is converted.

    Args:
        section_of: the section of each setting, for the message about one in the wrong place.

    Raises:
        ConfigError: no mapping; an unknown name, with the nearest ones; a value of another type than the field's.
    """
    if values is None:  # a section without settings, in YAML
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where(section)}: {section}: expected a mapping of names to values, not {_shown(values)}")
    types = file_types(kind)
    old_values = {field.name: field.metadata.get("old_values", {}) for field in fields(kind)}
    read = {field.name: field.metadata.get("read") for field in fields(kind)}
    for name in values:
        if name not in types:
            raise ConfigError(f"{where(section, str(name))}: {unknown_key(str(name), section, types, section_of)}")
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values:
            raise ConfigError(f"{where(section)}: {section}: {field.name} is missing")
    return {
        name: value
        if isinstance(value, str) and value in old_values[name]  # the section converts it to today's
        else typed_value(types[name], value, (section, name), where, folder, read[name])
        for name, value in values.items()
    }


def placed(error: ConfigError, places: Mapping[str, str]) -> ConfigError:
    """The error with the file and line of its settings before it, and their names without backticks.

    Args:
        places: file and line by setting, for the settings that a file sets.
    """
    text = str(error)
    names = [name for name in error.fields if name in places]
    for name in names:
        text = re.sub(rf"`({name}(?:=[^`]*)?)`", r"\1", text)
    before = ", ".join(dict.fromkeys(places[name] for name in names))
    return ConfigError(f"{before}: {text}" if before else text, field=error.fields)


def unknown_key(name: str, section: str, known: Collection[str], section_of: Mapping[str, str]) -> str:
    """The message about a key that is unknown in its place: its right name, its right section, or similar names.

    Args:
        section: the section that the key is in; empty at the top level.
    """
    meant = name.removeprefix("--").replace("-", "_")
    meant = SHORT_NAMES.get(meant, meant)
    if meant not in section_of:
        near = unknown("setting" if section else "section", name, known)
        return f"{near} (in {section})" if section else near
    called = "" if meant == name else f"; it is called {meant!r} in a file"
    if section_of[meant] == section:
        return f"unknown setting {name!r}{called}"
    return f"{name!r} is a setting of {section_of[meant]}: move it into that section{called}"


def typed_value(
    hint: Any,
    value: Any,
    keys: tuple[str, ...],
    where: Where,
    folder: Path | None,
    read: Callable[[Any], Any] | None = None,
) -> Any:
    """The value under ``keys``, of the type ``hint``.

    Args:
        read: see `divcon.config.fields.setting`; it makes the value where the setting has one.

    Raises:
        ConfigError: it is of another type; the message has its place and what is expected.
    """
    if read is not None:
        try:
            return read(value)
        except ValueError as error:
            raise ConfigError(f"{where(*keys)}: {'.'.join(keys)}: {error}") from None
    from pydantic import ValidationError

    if is_url(value) and Path in (hint, *typing.get_args(hint)):
        return place(value)
    try:
        value = adapter(hint).validate_python(value)
    except ValidationError as error:
        if isinstance(value, dict) and (wrong := error.errors()[0]["loc"][:1]):  # the key, or the value under it
            named = isinstance(key := wrong[0], str)
            keys, value, hint = (*keys, str(key)), value.get(key) if named else key, typing.get_args(hint)[named]
        raise ConfigError(
            f"{where(*keys)}: {'.'.join(keys)}: expected {expected_words(hint, _WORDS)}, not {_shown(value)}"
            f"{nearest(hint, value)}"
        ) from None
    return folder / value.expanduser() if isinstance(value, Path) and folder is not None else value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value!r}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
