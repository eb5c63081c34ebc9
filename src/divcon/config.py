"""Every setting of a run: the one source of command-line flags, of files of settings, of the run's ``config.json``, and
of their help. They stand in `divcon.config_model`, `divcon.config_train` and `divcon.config_data`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from divcon.config_check import Where, flag, placed, stranger, typed, typed_value
from divcon.config_data import DataConfig, OnBadImage
from divcon.config_file import as_yaml, read_config_file
from divcon.config_model import ModelConfig, Pooling
from divcon.config_train import (
    Device,
    DivideBy,
    DivideOn,
    LrSchedule,
    Optimizer,
    Precision,
    Rounds,
    SmallClasses,
    TrainConfig,
)
from divcon.errors import ConfigError
from divcon.files import written_whole

__all__ = [
    "DataConfig",
    "Device",
    "DivideBy",
    "DivideOn",
    "LrSchedule",
    "ModelConfig",
    "OnBadImage",
    "Optimizer",
    "Pooling",
    "Precision",
    "Rounds",
    "RunConfig",
    "SmallClasses",
    "Source",
    "TrainConfig",
    "flag",
    "settings_in",
]


@dataclass(frozen=True)
class Source:
    """What a run trains on, as its ``config.json`` holds it beside the settings: what `divcon.read` takes."""

    data: str
    root: Path | None = None
    fingerprint: str | None = None
    """Of what there was to train on, so that a run is repeated on the same."""


@Parameter(name="*")
@dataclass(frozen=True)
class RunConfig:
    """A whole run, as its ``config.json`` holds it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def to_dict(self) -> dict[str, Any]:
        return {
            part.name: {k: str(v) if isinstance(v, Path) else v for k, v in vars(getattr(self, part.name)).items()}
            for part in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> RunConfig:
        """The inverse of `to_dict`; what is left out is at its default, what a run's ``config.json`` holds beside the
        settings is passed over.

        Raises:
            ConfigError: a part or setting is unknown (the message suggests the nearest names), of another type, or out
                of bounds.
        """
        return cls._checked(values, lambda *keys: source)

    @classmethod
    def load(cls, path: str | Path) -> RunConfig:
        """The settings in a YAML, TOML or JSON file: one of your own, or a run's ``config.json``.

        Relative paths start from the file's folder. What the file says to train on is `read_config_file`'s to tell.

        Raises:
            ConfigError: as of `from_dict` and `divcon.config_file.read_config_file`; with the file and, where it is
                known, the line.
        """
        file = read_config_file(path)
        return cls._checked(file.values, file.where, file.path.absolute().parent)

    @classmethod
    def _checked(cls, values: Mapping[str, Any], where: Where, folder: Path | None = None) -> RunConfig:
        found = settings_in(values, where, folder)
        made = {}
        for name, kind in PARTS.items():
            try:
                made[name] = kind(**found.get(name, {}))
            except ConfigError as error:
                raise placed(error, {key: where(name, key) for key in found.get(name, {})}) from None
        return cls(**made)

    def save(self, path: str | Path, **more: Any) -> None:
        """Write as JSON, or as YAML where the name ends in .yaml or .yml, with ``more`` beside the settings (what the
        run read, say).

        Raises:
            ConfigError: the name ends in something else.
            OutputError: the file cannot be written.
        """
        path, tree = Path(path), {**self.to_dict(), **more}
        if path.suffix.lower() not in (".json", ".yaml", ".yml"):
            raise ConfigError(f"{path}: settings are written as .json or .yaml")
        with written_whole(path) as beside:
            text = json.dumps(tree, indent=2) + "\n" if path.suffix.lower() == ".json" else as_yaml(tree)
            beside.write_text(text, encoding="utf-8")


PARTS = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}
RECORDED = ("benchmark", "protocol", "split_hash", "packed", "versions", "machine")
"""What a run's ``config.json`` holds beside settings, source and init."""


def settings_in(values: Mapping[str, Any], where: Where, folder: Path | None = None) -> dict[str, Any]:
    """What a file of settings holds, each value of its type: ``{"train": {"epochs": 60}, "init": Path(...)}``.

    Raises:
        ConfigError: as of `RunConfig.from_dict`, without the bounds: other values may yet go over these.
    """
    if "format" in values:
        raise ConfigError(f"{where()}: describes a model, not a run; start from it with --init {Path(where()).parent}")
    part_of = {f.name: part for part, kind in PARTS.items() for f in dataclasses.fields(kind)}
    kinds = {**PARTS, "source": Source}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "init":
            found[name] = typed_value(Path | None, value, (name,), where, folder)
        elif name in kinds and (value is not None or name != "source"):
            found[name] = typed(name, kinds[name], value, where, folder, part_of)
        elif name not in (*RECORDED, "source"):
            words = stranger(str(name), "", [*kinds, "init"], part_of)
            raise ConfigError(f"{where(str(name))}: {words}")
    return found
