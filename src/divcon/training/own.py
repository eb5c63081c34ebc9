"""Parts of a training that are the user's own, by name or as objects."""

from __future__ import annotations

from typing import Any

from divcon.errors import ConfigError
from divcon.runtime.importing import is_named, load_part


def resolve(part: Any, setting: str) -> Any:
    """Import a part that is named ``module:Name``; anything else is returned as it is.

    Raises:
        ConfigError: the module cannot be imported, or has no such name.
    """
    if not is_named(part):
        return part
    try:
        return load_part(part, setting)
    except ConfigError as error:
        raise ConfigError(str(error), field=setting) from error


def name_in_words(part: Any) -> str:
    """The name of a part in messages: that of its class or function."""
    return getattr(part, "__name__", None) or type(part).__name__
