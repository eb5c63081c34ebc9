"""The arms of an ablation: the settings of each over a common base, its values to search, its trials, and the choice
among them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from divcon.config.fields import saved_value
from divcon.config.files import ConfigFile, Where, read_config_file, unknown_key
from divcon.config.settings import OPTIONS_OF, SECTION_OF, SECTIONS, RunConfig, SelectBy, sections_in
from divcon.errors import ConfigError, unknown
from divcon.models.names import known_methods

Tree = Mapping[str, Mapping[str, Any]]
"""Settings by config section: ``{"train": {"lr": 1e-4}}``."""

Settings = dict[str, dict[str, Any]]
"""As `Tree`, to be changed."""

_SECTIONS = ("model", "train")
"""The config sections in which arms may differ."""
DEFAULT_ARMS = ("single", "slices", "masks")
DEFAULT_SEEDS = (0, 1, 2)
_BUDGET = ("epochs", "batch_size", "rounds", "seed")


@dataclass(frozen=True)
class Arm:
    """A way to train, by name: settings over the common base, and values to search."""

    name: str
    settings: Tree = field(default_factory=dict)
    """What differs from the base: ``{"model": {"method": "masks"}, "train": {"hierarchy": True}}``."""
    space: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    """Values to search, by section and setting: ``{"train": {"lr": [1e-4, 1e-3]}}``."""
    about: str = ""
    """A description."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", self.name):
            raise ConfigError(f"arm {self.name!r}: is also the name of a folder; use only letters, digits and . _ + -")
        for what, tree in (("settings", self.settings), ("space", self.space)):
            where = f"arm {self.name!r}, {what}"
            for section, values in tree.items():
                _check_names(section, values, lambda *_, where=where: where)
                if what == "space":
                    for name, listed in values.items():
                        _check_list(f"{where}: {section}.{name}", listed)

    def searching(self, space: Tree) -> Arm:
        """The arm with the values to search for all arms added; the arm's own settings and values take precedence."""
        merged = {}
        for section in _SECTIONS:
            fixed = self.settings.get(section, {})
            common = {name: values for name, values in space.get(section, {}).items() if name not in fixed}
            both = {**common, **self.space.get(section, {})}
            if both:
                merged[section] = both
        return dataclasses.replace(self, space=merged)

    def to_dict(self) -> dict[str, Any]:
        """``settings`` and ``space`` as JSON keeps them."""
        return {"settings": saved_value(self.settings), "space": saved_value(self.space)}


def _check_names(section: str, values: Mapping[str, Any], where: Where) -> None:
    """
    Raises:
        ConfigError: a section or setting in which arms cannot differ; with its place.
    """
    if section not in _SECTIONS:
        raise ConfigError(f"{where(section)}: {unknown('section', section, _SECTIONS)}; arms differ in model and train")
    known = {f.name for f in dataclasses.fields(SECTIONS[section])}
    for name in values:
        if name not in known:
            raise ConfigError(f"{where(section, str(name))}: {unknown_key(str(name), section, known, SECTION_OF)}")
        if name in _BUDGET:
            raise ConfigError(
                f"{where(section, name)}: {name} is the same for all arms, which have one budget; set it for all of "
                "them (`epochs`, `batch_size`, `rounds`, `seeds`)"
            )


def _check_list(what: str, listed: Any) -> None:
    """
    Raises:
        ConfigError: an empty list of values to search, or a repeated value.
    """
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ConfigError(f"{what}: expected a list of values to search, as in [1e-4, 1e-3], not {listed!r}")
    if any(value in listed[:place] for place, value in enumerate(listed)):
        raise ConfigError(f"{what}: a value is listed twice in {listed!r}")


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
"""The built-in arms, by name."""

BASE = Arm("base")
"""The base as it is: what `varied` changes where no arm is named."""


def arms_of(names: Sequence[str | Arm], own: Mapping[str, Arm] | None = None) -> list[Arm]:
    """Arms by name: of ``own``, the built-in ones, and any method of `divcon.models.heads.methods`.

    Raises:
        ConfigError: an unknown name (the message suggests the nearest), a repeated name, or none at all.
    """
    known = known_arms(own)
    arms = []
    for name in names:
        if isinstance(name, str) and name not in known:
            raise ConfigError(f"`arms`: {unknown('arm', name, known)}", field="arms")
        arm = known[name] if isinstance(name, str) else name
        if arm.name in [other.name for other in arms]:
            raise ConfigError(f"`arms`: {arm.name!r} is listed twice; list each arm once", field="arms")
        arms.append(arm)
    if not arms:
        raise ConfigError(f"`arms`: is empty; known: {', '.join(known)}", field="arms")
    return arms


def known_arms(own: Mapping[str, Arm] | None = None) -> dict[str, Arm]:
    """All arms by name: the built-in ones, one for each other method, and ``own``, which replace those of their
    names."""
    others = {name: _arm(name, "", name) for name in known_methods() if name not in ARMS}
    return {**ARMS, **others, **(own or {})}


def varied(arms: Sequence[Arm], setting: str, values: Sequence[Any]) -> list[Arm]:
    """Each of the arms with each value of a setting: ``single`` and ``slices`` with ``lr`` of 0.1 and 0.01 are
    ``single+lr-0.1``, ``single+lr-0.01``, ``slices+lr-0.1`` and ``slices+lr-0.01``. An arm without a name takes the
    rest for its name: ``lr-0.1``.

    Args:
        values: of the setting's type, or as a settings file has them.

    Raises:
        ConfigError: there is no such setting, arms cannot differ in it, a value is of another type, or listed twice.
    """
    section = SECTION_OF.get(setting)
    if section is None:
        raise ConfigError(f"`vary`: {unknown('setting', setting, SECTION_OF)}", field="vary")
    where: Where = lambda *_: "`vary`"  # noqa: E731
    try:
        _check_names(section, {setting: None}, where)
        _check_list(f"`vary`: {setting}", list(values))
        typed = [sections_in({section: {setting: value}}, where)[section][setting] for value in values]
    except ConfigError as error:
        raise ConfigError(str(error), field="vary") from None
    changed = []
    for arm in arms:
        for value, of_type in zip(values, typed, strict=True):
            settings = {name: dict(arm.settings.get(name, {})) for name in _SECTIONS}
            _override(settings, {section: {setting: of_type}})
            suffix = re.sub(r"[^\w.+-]+", "-", f"{setting}-{saved_value(value)}").strip("-")
            name = suffix if arm is BASE else f"{arm.name}+{suffix}"
            changed.append(Arm(name, {name: values for name, values in settings.items() if values}, arm.space))
    return changed


def check_numbers(seeds: Sequence[int], trials: int, folds: int, reference: str | None, arms: list[Arm]) -> None:
    """
    Raises:
        ConfigError: a number out of bounds, a repeated seed, or a reference that is not one of the arms.
    """
    if not seeds or min(seeds) < 0:
        raise ConfigError(
            f"`seeds` {','.join(map(str, seeds)) or 'is empty'}: list seeds of 0 or more, as in 0,1,2", field="seeds"
        )
    if len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"`seeds` {','.join(map(str, seeds))}: list each seed once; a repeated seed would be the same run",
            field="seeds",
        )
    for name, value, least in (("trials", trials, 1), ("folds", folds, 2)):
        if value < least:
            raise ConfigError(f"`{name}` {value}: must be at least {least}", field=name)
    names = [arm.name for arm in arms]
    if reference is not None and reference not in names:
        raise ConfigError(
            f"`reference` {reference}: is none of the arms ({', '.join(names)}); add it to `arms`", field="reference"
        )


def config_of(base: RunConfig, *settings: Tree) -> RunConfig:
    """The base with settings over it, the later ones over the earlier.

    Raises:
        ConfigError: settings that do not go together.
    """
    sections = {name: dict(vars(getattr(base, name))) for name in SECTIONS}
    for tree in settings:
        _override(sections, tree)
    return RunConfig(**{name: SECTIONS[name](**values) for name, values in sections.items()})


def _override(sections: Settings, tree: Tree) -> None:
    """Set ``tree`` over ``sections``, in place; options of a loss, miner or head that it replaces are dropped."""
    for options, owner in OPTIONS_OF.items():
        section = SECTION_OF[owner]
        values = tree.get(section, {})
        if owner in values and values[owner] != sections[section].get(owner):
            sections[section].pop(options, None)
    for section, values in tree.items():
        sections[section] |= values


def settings_text(settings: Tree) -> str:
    """``lr 0.001, loss TripletMarginLoss``."""
    return ", ".join(f"{name} {value}" for values in settings.values() for name, value in values.items())


def read_space(path: str | Path) -> tuple[dict[str, Arm], Tree]:
    """The arms that a file defines, and its values to search for all arms.

    ``arms`` maps names to ``like`` (the arm that it starts from), ``model`` and ``train`` (settings over that) and
    ``space`` (values of its own to search); ``space`` maps model and train to settings, and those to lists of values.
    An arm with the name of a known one, and without ``like``, starts from the known one.

    Raises:
        ConfigError: the file cannot be read, or holds an invalid arm, setting or list; with the line.
    """
    file = read_config_file(path)
    for key in file.values:
        if key not in ("arms", "space"):
            raise ConfigError(f"{file.where(str(key))}: {unknown('section', str(key), ('arms', 'space'))}")
    arms: dict[str, Arm] = {}
    for name, value in _mapping(file, file.values.get("arms"), "arms").items():
        arms[str(name)] = _arm_in(file, str(name), _mapping(file, value, "arms", str(name)), known_arms(arms))
    return arms, _space_in(file, file.values.get("space"), "space")


def _arm_in(file: ConfigFile, name: str, value: Mapping[str, Any], known: Mapping[str, Arm]) -> Arm:
    where: Where = lambda *keys: file.where("arms", name, *keys)  # noqa: E731
    for key in value:
        if key not in ("like", "space", *_SECTIONS):
            words = unknown_key(str(key), "", ["like", "space", *_SECTIONS], SECTION_OF)
            raise ConfigError(f"{where(str(key))}: {words} (in arm {name!r})")
    like = str(value.get("like", name))
    if "like" in value and like not in known:
        raise ConfigError(f"{where('like')}: {unknown('arm', like, known)}")
    start = known.get(like, Arm(name))
    own = {section: value[section] for section in _SECTIONS if section in value}
    own = sections_in(own, where, file.path.absolute().parent)
    for section, values in own.items():
        _check_names(section, values, where)
    settings = {section: dict(start.settings.get(section, {})) for section in _SECTIONS}
    _override(settings, own)
    space = _space_in(file, value.get("space"), "arms", name, "space")
    searched = Arm(name, space=space).searching(start.space).space
    return Arm(name, {section: values for section, values in settings.items() if values}, searched)


def _space_in(file: ConfigFile, tree: Any, *above: str) -> Settings:
    where: Where = lambda *keys: file.where(*above, *keys)  # noqa: E731
    space: Settings = {}
    for section, lists in _mapping(file, tree, *above).items():
        lists = _mapping(file, lists, *above, str(section))
        _check_names(str(section), lists, where)
        for name, listed in lists.items():
            _check_list(f"{where(section, name)}: {section}.{name}", listed)
            typed = [sections_in({section: {name: value}}, where, file.path.absolute().parent) for value in listed]
            space.setdefault(section, {})[name] = [value[section][name] for value in typed]
    return space


def _mapping(file: ConfigFile, value: Any, *keys: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{file.where(*keys)}: {'.'.join(keys)}: expected a mapping, not {value!r}")
    return value


def draw_trials(arm: Arm, base: RunConfig, count: int, seed: int) -> list[Settings]:
    """The settings of each trial of an arm, drawn without replacement from all combinations of its values to search.

    The first trial has the arm's own values, where these are among the values to search. There are fewer trials where
    there are fewer than ``count`` different runs.

    Raises:
        ConfigError: settings of a combination do not go together, or not with the base.
    """
    lists = [(section, name, list(values)) for section, tree in arm.space.items() for name, values in tree.items()]
    own = config_of(base, arm.settings)
    trials: list[Settings] = []
    configs: list[RunConfig] = []
    for settings in _combinations(lists, own, seed):
        try:
            config = config_of(base, arm.settings, settings)
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name!r} with {settings_text(settings)}: {error}") from None
        if config not in configs:  # different settings may be one run: single has one learner for any num_learners
            configs.append(config)
            trials.append(settings)
        if len(trials) == count:
            break
    return trials


def _combinations(lists: list[tuple[str, str, list[Any]]], own: RunConfig, seed: int) -> Iterator[Settings]:
    """The combination of ``own``, where the lists hold it, then all others in random order, at most 100,000."""

    def combination(number: int) -> Settings:
        settings: Settings = {}
        for section, name, values in lists:
            number, place = divmod(number, len(values))
            settings.setdefault(section, {})[name] = values[place]
        return settings

    default: Settings = {}
    for section, name, _ in lists:
        default.setdefault(section, {})[name] = getattr(getattr(own, section), name)
    if all(default[section][name] in values for section, name, values in lists):
        yield default
    total = math.prod(len(values) for _, _, values in lists)
    # Combinations are numbered, so that millions of them need not be listed.
    drawn = np.random.default_rng([seed, 0x7A1A]).choice(total, min(total, 100_000), replace=False)
    for number in drawn.tolist():
        yield combination(number)


def best_trial(curves: list[list[list[dict[str, Any]]]], select_by: SelectBy = "auto") -> tuple[int, int, float]:
    """The best trial: its number, its number of epochs, and its score.

    Args:
        curves: by trial and fold, ``{"epoch": ..., "recall_at_1": ..., "map_at_r": ...}`` of each evaluated epoch;
            empty for a trial that failed.
        select_by: the score: recall_at_1, or else MAP@R (Recall@1 where a curve of an earlier version lacks that); with
            last, that of the last epoch.

    Returns:
        The trial and epoch with the highest mean over the folds: of equal epochs the last, of equal trials the first.
        The score is -1 where all failed.
    """
    points = [point for folds in curves for fold in folds for point in fold]
    by = "recall_at_1" if select_by == "recall_at_1" or any("map_at_r" not in p for p in points) else "map_at_r"
    best = (0, 0, -1.0)
    for trial, folds in enumerate(curves):
        if not folds or not all(folds):
            continue
        epochs = [point["epoch"] for point in folds[0]]
        scores = [mean_at(folds, epoch, by) for epoch in (epochs[-1:] if select_by == "last" else epochs)]
        if max(scores) > best[2]:
            last = max(place for place, score in enumerate(scores) if score == max(scores))
            best = (trial, epochs[last - len(scores)] + 1, scores[last])
    return best


def mean_at(folds: list[list[dict[str, Any]]], epoch: int, name: str) -> float:
    """The mean over the folds of a score of an epoch."""
    return float(np.mean([next(point[name] for point in fold if point["epoch"] == epoch) for fold in folds]))
