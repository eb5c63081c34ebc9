"""The arms of an ablation: what each changes of the base of all, and what is searched for it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from divcon.config.files import ConfigFile, Where, read_config_file, unknown_key
from divcon.config.settings import OPTIONS_OF, SECTION_OF, SECTIONS, RunConfig, sections_in
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, DataError, unknown
from divcon.models.heads import methods

Tree = Mapping[str, Mapping[str, Any]]
"""Settings by part: ``{"train": {"lr": 1e-4}}``."""

ARM_PARTS = ("model", "train")
"""The parts that arms may differ in."""

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
    """Arms by name: those of ``own`` go over the known ones, and any method of `divcon.models.heads.methods` is one.

    Raises:
        ConfigError: an unknown name (the message suggests the nearest), a name that stands twice, or none at all.
    """
    known = known_arms(own)
    found = []
    for name in names:
        if isinstance(name, str) and name not in known:
            raise ConfigError(f"`arms`: {unknown('arm', name, known)}", field="arms")
        arm = known[name] if isinstance(name, str) else name
        if arm.name in [other.name for other in found]:
            raise ConfigError(f"`arms`: {arm.name!r} is listed twice; list each arm once", field="arms")
        found.append(arm)
    if not found:
        raise ConfigError(f"`arms`: is empty; known: {', '.join(known)}", field="arms")
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
    parts = {part: dict(vars(getattr(base, part))) for part in SECTIONS}
    for tree in settings:
        for options, owner in OPTIONS_OF.items():
            part = SECTION_OF[owner]
            given = tree.get(part, {})
            if owner in given and given[owner] != parts[part][owner]:
                parts[part][options] = {}
        for part, values in tree.items():
            parts[part] |= values
    return RunConfig(**{part: SECTIONS[part](**values) for part, values in parts.items()})


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
    known = {f.name for f in dataclasses.fields(SECTIONS[part])}
    for name in values:
        if name not in known:
            raise ConfigError(f"{where(part, str(name))}: {unknown_key(str(name), part, known, SECTION_OF)}")
        if name in _BUDGET:
            raise ConfigError(
                f"{where(part, name)}: {name} is the same for all arms, which have one budget; give it for all of them "
                "(`epochs`, `batch_size`, `rounds`, `seeds`)"
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
        _arm("masks-memory", "masks, divided on the features of the training batches", "masks", divide_on="bank"),
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
        arms[str(name)] = _arm_in(file, str(name), _mapping(file, value, "arms", str(name)), known_arms(arms))
    return arms, _space(file, file.values.get("space"), "space")


def _arm_in(file: ConfigFile, name: str, value: Mapping[str, Any], known: Mapping[str, Arm]) -> Arm:
    where: Where = lambda *keys: file.where("arms", name, *keys)  # noqa: E731
    for key in value:
        if key not in ("like", "space", *ARM_PARTS):
            words = unknown_key(str(key), "", ["like", "space", *ARM_PARTS], SECTION_OF)
            raise ConfigError(f"{where(str(key))}: {words} (in arm {name!r})")
    like = str(value.get("like", name))
    if "like" in value and like not in known:
        raise ConfigError(f"{where('like')}: {unknown('arm', like, known)}")
    begun = known.get(like, Arm(name))
    own = sections_in({part: value[part] for part in ARM_PARTS if part in value}, where, file.path.absolute().parent)
    settings = {part: dict(begun.settings.get(part, {})) for part in ARM_PARTS}
    for part, values in own.items():
        check_names(part, values, where)
        for options, owner in OPTIONS_OF.items():
            owners_part = SECTION_OF[owner]
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
            typed = [sections_in({part: {name: value}}, where, file.path.absolute().parent) for value in listed]
            space.setdefault(part, {})[name] = [value[part][name] for value in typed]
    return space


def _mapping(file: ConfigFile, value: Any, *keys: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{file.where(*keys)}: {'.'.join(keys)}: expected a mapping, not {value!r}")
    return value


Settings = dict[str, dict[str, Any]]


def draw_trials(arm: Arm, base: RunConfig, count: int, seed: int) -> list[Settings]:
    """What each trial of an arm sets over its settings: drawn without replacement from all combinations of its lists.

    The arm's own values, where the lists hold them, are the first trial, so that the default is always tried. Where
    there are fewer different runs than ``count``, all of them.

    Raises:
        ConfigError: a combination does not go together, or with the base.
    """
    lists = [(part, name, list(values)) for part, tree in arm.space.items() for name, values in tree.items()]
    settled = config_of(base, arm.settings)
    trials: list[Settings] = []
    seen: list[RunConfig] = []
    for settings in _combinations(lists, settled, seed):
        try:
            config = config_of(base, arm.settings, settings)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name!r} with {shown(settings)}: {error}") from None
        if config not in seen:  # single has one learner, whatever a list of numbers of learners says
            seen.append(config)
            trials.append(settings)
        if len(trials) == count:
            break
    return trials


def _combinations(lists: list[tuple[str, str, list[Any]]], settled: RunConfig, seed: int) -> Iterator[Settings]:
    def combination(number: int) -> Settings:
        settings: Settings = {}
        for part, name, values in lists:
            number, place = divmod(number, len(values))
            settings.setdefault(part, {})[name] = values[place]
        return settings

    own = {(part, name): getattr(getattr(settled, part), name) for part, name, _ in lists}
    if all(own[part, name] in values for part, name, values in lists):
        default: Settings = {}
        for part, name, _ in lists:
            default.setdefault(part, {})[name] = own[part, name]
        yield default
    total = math.prod(len(values) for _, _, values in lists)
    # A number stands for a combination, so that millions of them need not be listed.
    drawn = np.random.default_rng([seed, 0x7A1A]).choice(total, min(total, 100_000), replace=False)
    for number in drawn.tolist():
        yield combination(number)


def folds_of(data: Benchmark, count: int, seed: int) -> list[Benchmark]:
    """``count`` benchmarks: in each, another part of the train classes is held out for validation, equal parts but for
    one class. A class of one image has no match to be evaluated by, and always trains.

    Raises:
        DataError: fewer than two classes of two images and more a fold.
    """
    sizes = np.bincount(data.train.labels)
    classes = np.flatnonzero(sizes >= 2)
    if len(classes) < 2 * count:
        raise DataError(
            f"{data.train.source}: {len(classes)} train classes of two images and more are too few for {count} folds "
            "of two classes; use fewer `folds`, or more classes"
        )
    parts = np.array_split(np.random.default_rng([seed, 0xF01D]).permutation(classes), count)
    folds = []
    for part in parts:
        held = np.isin(data.train.labels, part)
        folds.append(
            dataclasses.replace(data, train=data.train.subset(~held), validation=data.train.subset(held), notes=())
        )
    return folds


def chosen(curves: list[list[list[dict[str, Any]]]]) -> tuple[int, int, float]:
    """The best trial: its number, its number of epochs, and its score.

    Args:
        curves: by trial and fold, ``{"epoch": ..., "recall_at_1": ...}`` of each evaluated epoch.

    Returns:
        That of the best mean over the folds, over trials and epochs; of equal ones the earlier trial and epoch.
    """
    best = (0, 0, -1.0)
    for trial, folds in enumerate(curves):
        if not all(folds):  # one went wrong
            continue
        for points in zip(*folds, strict=True):
            score = float(np.mean([point["recall_at_1"] for point in points]))
            if score > best[2]:
                best = (trial, points[0]["epoch"] + 1, score)
    return best


def shown(settings: Settings) -> str:
    """``lr 0.001, loss TripletMarginLoss``."""
    return ", ".join(f"{name} {value}" for values in settings.values() for name, value in values.items())
