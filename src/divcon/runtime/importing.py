"""The user's own parts by name, ``module:Name``, or as objects from Python.

Importing a module runs its code. A name that the user types, or writes in Python, is imported. A name in a file (a
model's folder, an index, a run, a settings file) may come from somebody else, and is imported only if the user allows
its module: ``trust`` in Python, ``--import`` on the command line.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection
from typing import Any

from divcon.errors import ConfigError, TrustError, unknown

Trust = bool | Collection[str]
"""Modules whose code a file may name: True for all, or their names."""

_trusted: set[str] = set()

_NAMED = re.compile(r"(?!open_clip:)[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[\w<>]+)*(\(\))?")


def trust_module(module: str) -> None:
    """Import a module, and allow files to name its contents, until this process ends.

    Raises:
        ConfigError: it cannot be imported.
    """
    _import(module, module)
    _trusted.add(module)


def is_named(value: object) -> bool:
    """Whether a setting's value names the user's own code: ``module:Name``. ``open_clip:RN50`` is a pretrained model
    (see `divcon.config.backbone_names`)."""
    return isinstance(value, str) and _NAMED.fullmatch(value) is not None


def name_of(part: Any) -> str:
    """``module:Name`` of a class, a function, or an object's class, to save in a file."""
    kind = part if isinstance(part, type) or hasattr(part, "__qualname__") else type(part)
    return f"{kind.__module__}:{kind.__qualname__}"


def check_trusted(name: object, where: str, trust: Trust = ()) -> None:
    """Check a value that a file holds; a value that names no code of the user's own passes.

    Args:
        where: the file, for the message.

    Raises:
        TrustError: it names a module that the user has not allowed.
    """
    if trust is True or not is_named(name):
        return
    module = str(name).partition(":")[0]
    allowed = {*_trusted, *(() if isinstance(trust, bool) else trust)}
    if module not in allowed:
        raise TrustError(f"{where}: names {name}, and loading it would run code of the module {module!r}", module)


def load_part(name: str, what: str) -> Any:
    """What ``module:Name`` names.

    Args:
        what: what it is to be, for the message: ``loss``, say.

    Raises:
        ConfigError: the module cannot be imported, or has no such name.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(f"{what} {name!r}: a part of your own is named module:Name")
    if name.endswith("()"):
        raise ConfigError(
            f"{what} {name!r}: is an object that was passed from Python; files keep only its class, so pass the object "
            "again"
        )
    value = _import(module, f"{what} {name!r}")
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ConfigError(f"{what} {name!r}: {unknown(f'name in {module}', part, vars(value))}")
        value = getattr(value, part)
    return value


def _import(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(
            f"{what}: the module {module!r} cannot be imported ({reason}); it is looked for where Python finds packages"
        ) from error
