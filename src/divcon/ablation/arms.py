"""The arms of an ablation: what each changes of the base of all, and what is searched for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divcon.config import PARTS, RunConfig
from divcon.config_check import Where, stranger
from divcon.errors import ConfigError, unknown
from divcon.models.head import methods

Tree = Mapping[str, Mapping[str, Any]]
"""Settings by part: ``{"train": {"lr": 1e-4}}``."""

ARM_PARTS = ("model", "train")
"""The parts that arms may differ in."""

OWNERS = {
    "loss_options": ("train", "loss"),
    "miner_options": ("train", "miner"),
    "head_options": ("model", "method"),
}
"""Whose arguments the options are: another loss does not take them."""

_BUDGET = ("epochs", "batch_size", "rounds", "seed")


@dataclass(frozen=True)
class Arm:
    """A way to train, by name: settings over the base of all arms, and values to search among."""

    name: str
    settings: Tree = field(default_factory=dict)
    """What differs from the base: ``{"model": {"method": "masks"}, "train": {"hierarchy": True}}``."""
    space: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    """Values to search, by part and setting: ``{"train": {"lr": [1e-4, 1e-3]}}``."""
    about: str = ""
    """What it is for."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", self.name):
            raise ConfigError(f"arm {self.name!r}: a folder is named so; use letters, digits and . _ + - alone")
        for what, tree in (("settings", self.settings), ("space", self.space)):
            where = f"arm {self.name!r}, {what}"
            for part, values in tree.items():
                check_names(part, values, lambda *_, where=where: where)
                if what == "space":
                    for name, listed in values.items():
                        check_list(f"{where}: {part}.{name}", listed)

    def searching(self, space: Tree) -> Arm:
        """The arm with what is searched for every arm beside its own: what its settings or its space say stays."""
        merged = {}
        for part in ARM_PARTS:
            settled = self.settings.get(part, {})
            common = {name: values for name, values in space.get(part, {}).items() if name not in settled}
            both = {**common, **self.space.get(part, {})}
            if both:
                merged[part] = both
        return dataclasses.replace(self, space=merged)

    def to_dict(self) -> dict[str, Any]:
        """``settings`` and ``space`` as JSON gives them back."""
        return {"settings": plain(self.settings), "space": plain(self.space)}


def arms_of(names: Sequence[str | Arm], own: Mapping[str, Arm] | None = None) -> list[Arm]:
    """Arms by name: those of ``own`` go over the known ones, and any method of `divcon.models.head.methods` is one.

    Raises:
        ConfigError: an unknown name (the message suggests the nearest), a name that stands twice, or none at all.
    """
    known = known_arms(own)
    found = []
    for name in names:
        if isinstance(name, str) and name not in known:
            raise ConfigError(f"--methods: {unknown('arm', name, known)}")
        arm = known[name] if isinstance(name, str) else name
        if arm.name in [other.name for other in found]:
            raise ConfigError(f"--methods: {arm.name!r} stands there twice; give each arm once")
        found.append(arm)
    if not found:
        raise ConfigError(f"--methods: names no arm; known: {', '.join(known)}")
    return found


def known_arms(own: Mapping[str, Arm] | None = None) -> dict[str, Arm]:
    """All arms by name: the known ones, the other methods, and ``own`` over them."""
    others = {name: _arm(name, "", name) for name in methods() if name not in ARMS}
    return {**ARMS, **others, **(own or {})}


def config_of(base: RunConfig, *settings: Tree) -> RunConfig:
    """The base with settings over it, the later ones over the earlier.

    Options of a loss, miner or head that another one takes the place of are left behind, unless they are given too.

    Raises:
        ConfigError: settings that do not go together.
    """
    parts = {part: dict(vars(getattr(base, part))) for part in PARTS}
    for tree in settings:
        for options, (part, owner) in OWNERS.items():
            given = tree.get(part, {})
            if owner in given and given[owner] != parts[part][owner]:
                parts[part][options] = {}
        for part, values in tree.items():
            parts[part] |= values
    return RunConfig(**{part: PARTS[part](**values) for part, values in parts.items()})


def plain(value: Any) -> Any:
    """A tree as JSON gives it back: tuples are lists, paths are text."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def check_names(part: str, values: Mapping[str, Any], where: Where) -> None:
    """
    Raises:
        ConfigError: no part or setting that arms may differ in; with where it stands.
    """
    if part not in ARM_PARTS:
        raise ConfigError(f"{where(part)}: {unknown('part', part, ARM_PARTS)}; arms differ in model and train")
    known = {f.name for f in dataclasses.fields(PARTS[part])}
    part_of = {f.name: name for name, kind in PARTS.items() for f in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise ConfigError(f"{where(part, str(name))}: {stranger(str(name), part, known, part_of)}")
        if name in _BUDGET:
            raise ConfigError(
                f"{where(part, name)}: {name} is the same for all arms, which have one budget; give it for all of them "
                "(--epochs, --batch-size, --rounds, --seeds)"
            )


def check_list(what: str, listed: Any) -> None:
    """
    Raises:
        ConfigError: nothing to search, or a value that stands twice.
    """
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ConfigError(f"{what}: expected a list of values to search, as in [1e-4, 1e-3], not {listed!r}")
    if any(value in listed[:place] for place, value in enumerate(listed)):
        raise ConfigError(f"{what}: a value stands there twice in {listed!r}")


def _arm(name: str, about: str, method: str, **train: Any) -> Arm:
    return Arm(name, {"model": {"method": method}} | ({"train": train} if train else {}), about=about)


ARMS = {
    arm.name: arm
    for arm in (
        _arm("single", "one learner, ordinary metric learning: the baseline", "single"),
        _arm("slices", "a slice of the embedding for each learner (CVPR 2019)", "slices"),
        _arm("masks", "a mask over the embedding for each learner (TPAMI 2021)", "masks"),
        _arm("hierarchy", "masks, with twice the learners at each division", "masks", hierarchy=True),
        _arm(
            "masks-alone",
            "masks, without the loss on the full embedding beside the learner's",
            "masks",
            full_weight=0.0,
        ),
        _arm("masks-memory", "masks, divided on the features that training has seen", "masks", divide_on="memory"),
        _arm("masks-all-data", "masks, each learner trained on all images", "masks", divide_by="none"),
        _arm("normalised-slices", "the head of slices, one loss, all data: no division", "slices", finetune_epoch=0),
        _arm("clustered", "masks, one loss on all of the embedding, batches of one cluster", "masks", joint_epoch=0),
        _arm(
            "clustered-slices",
            "slices, one loss on all of the embedding, batches of one cluster",
            "slices",
            joint_epoch=0,
        ),
        _arm("random-images", "slices, the images divided at random", "slices", divide_by="random"),
        _arm("random-classes", "slices, the classes divided at random", "slices", divide_by="random-class"),
        _arm("slices-all-data", "slices, each learner trained on all images", "slices", divide_by="none"),
    )
}
"""The known arms, by name."""
