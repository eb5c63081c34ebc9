"""What a setting declares beside its type and default: whether it takes a part of the user's own, and its earlier
names and values; and the checks that every config section runs when it is created.

**Doors.** A setting declared with ``door=True`` (`TrainConfig.loss`, `ModelConfig.backbone` ...) takes a part of the
user's own. It holds what it was set to:

- a string: a built-in name, or ``module:Name``; from the command line and from files it is always one of these;
- from Python also the part itself: a class, a function, or an object (``TripletMarginLoss(margin=0.1)``).

Creating a config imports nothing. Whoever uses the setting resolves ``module:Name`` with
`divcon.runtime.importing.load_part`. A name that comes out of a file is checked first: `check_doors` raises TrustError
unless the user has allowed its module.

Files (``config.json``, checkpoints) keep what `saved` returns: a string as it is, ``module:Name`` for a class or a
function, and ``module:Name()`` for an object, without its arguments. A resumed run compares these, so that the same
part passed again from Python resumes its run. ``module:Name()`` in a file cannot be created again:
`load_part` refuses it, and the user passes the object.

**Earlier versions.** A setting that was added later declares the value that runs used before it existed where that is
not its default (``before=0.0``); one that was renamed, its old names and values (``old_names``, ``old_values``).
`restored` reads what any earlier version saved, so that old runs are read and resumed.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from divcon.errors import ConfigError, unknown
from divcon.runtime.importing import Trust, check_trusted, is_named, name_of
from divcon.runtime.places import text_of

Part: TypeAlias = str | Any
"""The type of a door: a built-in name, ``module:Name``, or the part itself."""

Option: TypeAlias = float | int | bool | str
"""What files and the command line may set an argument of a loss, miner, head ... to. From Python it may be anything."""

SHORT_NAMES = {"learners": "num_learners", "dim": "embedding_dim", "size": "image_size"}
"""Short names that settings have on the command line."""

_UNSET: Any = dataclasses.MISSING


def setting(
    default: Any = _UNSET,
    *,
    default_factory: Any = _UNSET,
    door: bool = False,
    known: tuple[str, ...] = (),
    options_of: str = "",
    before: Any = _UNSET,
    old_names: tuple[str, ...] = (),
    old_values: Mapping[Any, Any] | None = None,
    read: Callable[[Any], Any] | None = None,
    write: Callable[[Any], Any] | None = None,
) -> Any:
    """A field of a config section; one with only a type and a default needs no such declaration.

    Args:
        door: it takes a part of the user's own (see the module).
        known: the built-in names of a door, where creating a config can check them without importing anything.
        options_of: it holds the arguments of the part that this setting names: another part does not take them.
        before: the value that runs used before the setting existed; its default where left out.
        old_names: its names in earlier versions.
        old_values: maps values of earlier versions to today's.
        read: makes the value of what Python, a file or the command line (as text) sets; raises ValueError.
        write: makes of the value what files keep; ``read`` takes it.
    """
    meta = {
        "door": door,
        "known": known,
        "options_of": options_of,
        "old_names": old_names,
        "old_values": old_values or {},
        "read": read,
        "write": write,
    }
    if before is not _UNSET:
        meta["before"] = before
    if default_factory is not _UNSET:
        return dataclasses.field(default_factory=default_factory, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def saved(config: Any) -> dict[str, Any]:
    """A section's settings as files keep them: plain values, doors by name."""
    return {
        field.name: saved_value((field.metadata.get("write") or (lambda value: value))(getattr(config, field.name)))
        for field in dataclasses.fields(config)
    }


def saved_value(value: Any) -> Any:
    """A setting's value as files keep it."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Path):
        return text_of(value)
    if isinstance(value, Mapping):
        return {key: saved_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [saved_value(inner) for inner in value]
    is_definition = isinstance(value, type) or hasattr(value, "__qualname__")
    return name_of(value) + ("" if is_definition else "()")


def restored(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """What any version saved of a section, in today's names and values; settings that did not exist then have the value
    that runs used.

    Unknown names stay as they are.
    """
    result = dict(values)
    for field in dataclasses.fields(kind):
        for old in field.metadata.get("old_names", ()):
            if old in result:
                result.setdefault(field.name, result.pop(old))
        if field.name not in result:
            result[field.name] = _before(field)
        result[field.name] = _renamed(field, result[field.name])
    return result


def _before(field: dataclasses.Field[Any]) -> Any:
    if "before" in field.metadata:
        return field.metadata["before"]
    return field.default_factory() if callable(field.default_factory) else field.default


def _renamed(field: dataclasses.Field[Any], value: Any) -> Any:
    old_values = field.metadata.get("old_values", {})
    return old_values[value] if isinstance(value, str) and value in old_values else value


def differences(then: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two sections of a kind: by name, both values as files keep them."""
    first, second = saved(then), saved(now)
    return {name: (first[name], second[name]) for name in first if first[name] != second[name]}


def doors(kind: type) -> tuple[str, ...]:
    """The settings of a section that take parts of the user's own, or arguments of these."""
    return tuple(
        field.name
        for field in dataclasses.fields(kind)
        if field.metadata.get("door") or field.metadata.get("options_of")
    )


def check_doors(kind: type, values: Mapping[str, Any], where: str, trust: Trust = ()) -> None:
    """Check the settings of a section that a file sets.

    Args:
        where: the file, for the message.

    Raises:
        TrustError: one names a part in a module that the user has not allowed.
    """
    for name in doors(kind):
        for part in named_parts(values.get(name)):
            check_trusted(part, where, trust)


def named_parts(value: Any) -> list[str]:
    """All ``module:Name`` in a setting's value: itself, or values of options."""
    inner = value.values() if isinstance(value, Mapping) else [value]
    return [part for part in inner if is_named(part)]


def check_types(config: Any) -> None:
    """Check, in ``__post_init__``, that each setting has a value of its type.

    NumPy numbers become Python's, whole numbers become floats, text becomes a path, old values become today's;
    nothing else is converted.

    Raises:
        ConfigError: a value is of another type.
    """
    for field, hint in _typed_fields(type(config)):
        value = getattr(config, field.name)
        if value is field.default:
            continue
        converted = _converted(field, hint, value)
        if converted is not value:
            object.__setattr__(config, field.name, converted)


def _converted(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    if (renamed := _renamed(field, value)) is not value:
        warnings.warn(f"`{field.name}={value}` is called `{field.name}={renamed}` now", FutureWarning, stacklevel=5)
        return renamed
    if field.metadata.get("door"):
        return _checked_door(field, value)
    if field.metadata.get("options_of"):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong(field.name, "a dict of argument names to values", value)
        return dict(value)
    if (read := field.metadata.get("read")) is not None:
        try:
            return read(value)
        except ValueError as error:
            raise ConfigError(f"`{field.name}`: {error}", field=field.name) from None
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    from pydantic import ValidationError

    try:
        return adapter(hint).validate_python(value)
    except ValidationError:
        expected = expected_words(hint, {bool: "True or False", type(None): "None"})
        raise _wrong(field.name, expected, value, nearest(hint, value)) from None


def _checked_door(field: dataclasses.Field[Any], value: Any) -> Any:
    if isinstance(value, str):
        known = field.metadata["known"]
        if known and value not in known and not is_named(value):
            words = unknown(f"`{field.name}`", value, known)
            raise ConfigError(f"{words} (a part of your own is named module:Name)", field=field.name)
    elif value is None or isinstance(value, (bool, int, float, bytes, Mapping, list, tuple, set, Path)):
        raise _wrong(field.name, "a name, module:Name, or the part itself (a class, a function or an object)", value)
    return value


def _wrong(name: str, expected: str, value: Any, hint: str = "") -> ConfigError:
    shown = f"the text {value!r}" if isinstance(value, str) else repr(value)
    return ConfigError(f"`{name}`: expected {expected}, not {shown}{hint}", field=name)


@functools.cache
def _typed_fields(kind: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind))


@functools.cache
def file_types(kind: type) -> dict[str, Any]:
    """The type that each setting of a section has in a file."""
    types = {}
    for field, hint in _typed_fields(kind):
        if field.metadata.get("door"):
            hint = str | None if field.default is None else str
        types[field.name] = dict[str, Option] if field.metadata.get("options_of") else hint
    return types


@functools.cache
def adapter(hint: Any) -> Any:
    """The pydantic adapter that checks values of a type without converting them."""
    from pydantic import ConfigDict, TypeAdapter

    is_path = Path in (hint, *typing.get_args(hint))  # a file has paths as text, which is not strict
    return TypeAdapter(hint, config=ConfigDict(strict=not is_path))


def nearest(hint: Any, value: Any) -> str:
    """``; did you mean 'image'?`` for a value that is near one of a Literal; else empty."""
    words = unknown("", str(value), typing.get_args(hint)) if typing.get_origin(hint) is Literal else ""
    return f"; {words.partition('; ')[2]}" if "did you mean" in words else ""


def expected_words(hint: Any, language: Mapping[Any, str]) -> str:
    """A type in words; ``language`` names bool and None, which Python and files write differently."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, arguments)) if len(arguments) < 3 else f"one of {', '.join(map(str, arguments))}"
    if typing.get_origin(hint) is dict:
        return f"a mapping of names to values, each {expected_words(arguments[-1], language)}"
    if arguments:
        without_int = [a for a in arguments if not (a is int and float in arguments)]
        words = list(dict.fromkeys(expected_words(a, language) for a in without_int))
        return f"{', '.join(words[:-1])} or {words[-1]}"
    return {int: "a whole number", float: "a number", str: "text", Path: "a path", **language}.get(hint, str(hint))


def at_least(config: Any, **bounds: int) -> None:
    """
    Raises:
        ConfigError: a setting is below its bound.
    """
    for name, bound in bounds.items():
        if getattr(config, name) < bound:
            raise ConfigError(f"`{name}` {getattr(config, name)}: must be at least {bound}", field=name)


def finite(config: Any, *names: str) -> None:
    """
    Raises:
        ConfigError: a setting is negative, infinite or not a number; None passes.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < float("inf"):
            must = "must be finite" if value > 0 else "must not be negative"
            raise ConfigError(f"`{name}` {value}: {must}", field=name)


@functools.cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, on one line; it names other settings in backticks."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, below in itertools.pairwise(body.body):
        doc = below.value if isinstance(below, ast.Expr) else None
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and doc is not None:
            docs[statement.target.id] = " ".join(ast.literal_eval(doc).split())
    return docs
