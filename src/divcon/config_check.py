"""What makes a setting a good one: its bounds, its type, its name; and the words for one that is not."""

from __future__ import annotations

import functools
import os
import re
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from divcon.errors import ConfigError, unknown

Where = Callable[..., str]
"""``where("train", "epochs")``: the place of a key, for messages."""

_FLAGS = {"num_learners": "--learners", "embedding_dim": "--dim", "image_size": "--size"}


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def at_least(config: Any, **bounds: int) -> None:
    """
    Raises:
        ConfigError: a setting is below its bound.
    """
    for name, bound in bounds.items():
        if getattr(config, name) < bound:
            raise ConfigError(f"{flag(name)} {getattr(config, name)}: must be at least {bound}")


def finite(config: Any, *names: str) -> None:
    """
    Raises:
        ConfigError: a setting that is given is negative, infinite or not a number.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < float("inf"):
            must = "must be finite" if value > 0 else "must not be negative"
            raise ConfigError(f"{flag(name)} {value}: {must}")


def option_value(hint: Any, tokens: Any) -> Any:
    """A word of the command line as a number, true or false, or text: what an option of a loss, say, is given as.

    ``3`` is a whole number and ``3.0`` is not, which matters to the losses that take either.
    """
    word = tokens if isinstance(tokens, str) else tokens[0].value
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(word.lower(), word)


def typed(part: str, kind: type, values: Any, where: Where, folder: Path | None, part_of: Mapping[str, str]) -> dict:
    """The values for a dataclass ``kind``, each of its field's type.

    An int is taken for a float; nothing else is converted but paths, which start from ``folder`` where one is given.

    Args:
        part_of: the part that each setting belongs to, for the words about one that stands in the wrong place.

    Raises:
        ConfigError: no mapping; an unknown name, with the nearest ones; another type than the field's.
    """
    if values is None:  # a part that is named in YAML, with nothing below it
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where(part)}: {part}: expected a mapping of names to values, not {_shown(values)}")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{where(part, str(name))}: {stranger(str(name), part, known, part_of)}")
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values:
            raise ConfigError(f"{where(part)}: {part}: {field.name} is missing")
    return {name: typed_value(hints[name], values[name], (part, name), where, folder) for name in values}


def placed(error: ConfigError, places: Mapping[str, str]) -> ConfigError:
    """The error of a check, with the places of the settings it speaks of before it.

    Args:
        places: by the setting's name, for those that a file gave; they are called as the file calls them.
    """
    text = str(error)
    spoken = set(re.findall(r"--[a-z][a-z-]*", text))
    names = [name for name in places if flag(name) in spoken]
    for name in names:
        text = re.sub(re.escape(flag(name)) + r"(?![a-z-])", name, text)
    before = ", ".join(dict.fromkeys(places[name] for name in names))
    return ConfigError(f"{before}: {text}" if before else text)


def stranger(name: str, part: str, known: Collection[str], part_of: Mapping[str, str]) -> str:
    """The words for a key that is not known where it stands: what it is called, where it belongs, what is near it.

    Args:
        part: the part it stands in; empty outside all.
    """
    by_flag = {flag(setting)[2:]: setting for setting in part_of}
    meant = name if name in part_of else by_flag.get(name.removeprefix("--").replace("_", "-"))
    if meant is None:
        near = unknown("setting" if part else "part", name, known)
        return f"{near} (in {part})" if part else near
    called = "" if meant == name else f"; it is called {meant!r} in a file"
    if part_of[meant] == part:
        return f"unknown setting {name!r}{called}"
    return f"{name!r} is a setting of {part_of[meant]}: it belongs below that{called}"


def typed_value(hint: Any, value: Any, keys: tuple[str, ...], where: Where, folder: Path | None) -> Any:
    """The value that stands under ``keys``, of the type ``hint``.

    Raises:
        ConfigError: it is of another type; the message says where it stands and what is expected.
    """
    from pydantic import ValidationError

    try:
        value = _adapter(hint).validate_python(value)
    except ValidationError as error:
        if isinstance(value, dict) and (wrong := error.errors()[0]["loc"][:1]):  # the key, or what stands under it
            named = isinstance(key := wrong[0], str)
            keys, value, hint = (*keys, str(key)), value.get(key) if named else key, typing.get_args(hint)[named]
        raise ConfigError(
            f"{where(*keys)}: {'.'.join(keys)}: expected {_expected(hint)}, not {_shown(value)}{_nearest(hint, value)}"
        ) from None
    return folder / value.expanduser() if isinstance(value, Path) and folder is not None else value


@functools.cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    is_path = Path in (hint, *typing.get_args(hint))  # a file has paths as text, which is not strict
    return TypeAdapter(hint, config=ConfigDict(strict=not is_path))


def _nearest(hint: Any, value: Any) -> str:
    said = unknown("", str(value), typing.get_args(hint)) if typing.get_origin(hint) is Literal else ""
    return f"; {said.partition('; ')[2]}" if "did you mean" in said else ""


def _expected(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, arguments)) if len(arguments) < 3 else f"one of {', '.join(map(str, arguments))}"
    if typing.get_origin(hint) is dict:
        return f"a mapping of names to values, each {_expected(arguments[-1])}"
    if arguments:
        said = list(dict.fromkeys(_expected(a) for a in arguments if not (a is int and float in arguments)))
        return f"{', '.join(said[:-1])} or {said[-1]}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(hint, "null")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"the text {value!r}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def started_by_torchrun() -> int | None:
    """How many processes torchrun has started, of which this is one; None where it has not started this one."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


Option = Annotated[float | int | bool | str, Parameter(converter=option_value)]
"""A value of an argument that is handed on to a loss, a miner or a head."""
