"""A file that defines arms of one's own and what is searched for them: YAML, TOML or JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divcon.ablation.arms import ARM_PARTS, OWNERS, Arm, Tree, check_list, check_names, known_arms
from divcon.config import PARTS, settings_in
from divcon.config_check import Where, stranger
from divcon.config_file import ConfigFile, read_config_file
from divcon.errors import ConfigError, unknown


def read_space(path: str | Path) -> tuple[dict[str, Arm], Tree]:
    """The arms that a file defines, and what it has searched for every arm.

    ``arms`` maps names to ``like`` (the arm that it begins as), ``model`` and ``train`` (settings over that) and
    ``space`` (lists of its own); ``space`` maps model and train to settings, and those to lists of values. An arm that
    is called as a known one and is not like another begins as the known one.

    Raises:
        ConfigError: the file cannot be read, or holds what is no arm, setting or list; with the line.
    """
    file = read_config_file(path)
    for key in file.values:
        if key not in ("arms", "space"):
            raise ConfigError(f"{file.where(str(key))}: {unknown('part', str(key), ('arms', 'space'))}")
    arms: dict[str, Arm] = {}
    for name, value in _mapping(file, file.values.get("arms"), "arms").items():
        arms[str(name)] = _arm(file, str(name), _mapping(file, value, "arms", str(name)), known_arms(arms))
    return arms, _space(file, file.values.get("space"), "space")


def _arm(file: ConfigFile, name: str, value: Mapping[str, Any], known: Mapping[str, Arm]) -> Arm:
    where: Where = lambda *keys: file.where("arms", name, *keys)  # noqa: E731
    part_of = {f.name: part for part, kind in PARTS.items() for f in dataclasses.fields(kind)}
    for key in value:
        if key not in ("like", "space", *ARM_PARTS):
            words = stranger(str(key), "", ["like", "space", *ARM_PARTS], part_of)
            raise ConfigError(f"{where(str(key))}: {words} (in arm {name!r})")
    like = str(value.get("like", name))
    if "like" in value and like not in known:
        raise ConfigError(f"{where('like')}: {unknown('arm', like, known)}")
    begun = known.get(like, Arm(name))
    own = settings_in({part: value[part] for part in ARM_PARTS if part in value}, where, file.path.absolute().parent)
    settings = {part: dict(begun.settings.get(part, {})) for part in ARM_PARTS}
    for part, values in own.items():
        check_names(part, values, where)
        for options, (owners_part, owner) in OWNERS.items():
            if owners_part == part and values.get(owner, settings[part].get(owner)) != settings[part].get(owner):
                settings[part].pop(options, None)
        settings[part] |= values
    space = _space(file, value.get("space"), "arms", name, "space")
    searched = Arm(name, space=space).searching(begun.space).space
    return Arm(name, {part: values for part, values in settings.items() if values}, searched)


def _space(file: ConfigFile, tree: Any, *above: str) -> dict[str, dict[str, list[Any]]]:
    where: Where = lambda *keys: file.where(*above, *keys)  # noqa: E731
    space: dict[str, dict[str, list[Any]]] = {}
    for part, lists in _mapping(file, tree, *above).items():
        lists = _mapping(file, lists, *above, str(part))
        check_names(str(part), lists, where)
        for name, listed in lists.items():
            check_list(f"{where(part, name)}: {part}.{name}", listed)
            typed = [settings_in({part: {name: value}}, where, file.path.absolute().parent) for value in listed]
            space.setdefault(part, {})[name] = [value[part][name] for value in typed]
    return space


def _mapping(file: ConfigFile, value: Any, *keys: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{file.where(*keys)}: {'.'.join(keys)}: expected a mapping, not {value!r}")
    return value
