"""The flags of a run's settings, and where each setting comes from: the command line, a file (--config), the run to
resume (--resume), a preset (--preset), the model to start from (--init), or its default.

`gather` hands the command's parser what is not on the command line, so that all is checked together, once.
"""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import UNSET, App, Argument, ArgumentCollection, Group, Parameter, Token

from divcon.cli.app import Reading, note, to_path
from divcon.cli.imports import allow_typed
from divcon.cli.messages import flag, in_flags
from divcon.config.fields import check_doors, doors, field_docs, file_types
from divcon.config.files import ConfigFile, as_yaml, placed, read_config_file
from divcon.config.settings import OPTIONS_OF, SECTION_OF, SECTIONS, RunConfig, sections_in
from divcon.errors import ConfigError, DivconError, unknown
from divcon.runtime.copies import here
from divcon.runtime.launchers import is_first
from divcon.runtime.places import absolute, is_url, place

COMMAND_LINE = "command line"

_DOORS = {name for kind in SECTIONS.values() for name in doors(kind)}


_GROUPS = {
    "model": Group("Model", sort_key=1),
    "train": Group("Training", sort_key=2),
    "data": Group("Data and validation", sort_key=3),
}


def option_value(hint: Any, tokens: Any) -> Any:
    """A word of the command line as a number, true or false, or text: the value of an argument of a loss, say.

    ``3`` is a whole number and ``3.0`` is not, which matters to the losses that take either.
    """
    word = tokens if isinstance(tokens, str) else tokens[0].value
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(word.lower(), word)


def unread(hint: Any, tokens: Any) -> Any:
    """A word of the command line as it is typed, or the value of a file, a run or a preset as it is."""
    if isinstance(tokens, str):
        return tokens
    return tokens[0].value if tokens[0].implicit_value is UNSET else tokens[0].implicit_value


def _settings_class() -> type:
    """A flat dataclass of the settings of all sections, each with its flag, its help and the group of its section."""
    fields: list[tuple[str, Any, Any]] = []
    for section, kind in SECTIONS.items():
        types, docs = file_types(kind), field_docs(kind)
        for each in dataclasses.fields(kind):
            options: dict[str, Any] = {"group": _GROUPS[section], "help": in_flags(docs[each.name])}
            hint = types[each.name]
            if each.name in OPTIONS_OF:
                hint = dict[str, Annotated[float | int | bool | str, Parameter(converter=option_value)]]
            elif Path in typing.get_args(hint):
                options["converter"] = to_path
            elif each.metadata.get("read"):  # checked where the section is made, with the other settings
                hint = Annotated[Any, Parameter(converter=unread)]
            if each.name not in OPTIONS_OF and flag(each.name) != (by_name := "--" + each.name.replace("_", "-")):
                options["name"] = (flag(each.name), by_name)
            if old := each.metadata.get("old_values"):  # accepted, but not shown
                choices = typing.get_args(hint)
                hint = Literal[(*choices, *old)]
                options |= {"show_choices": False, "help": f"{options['help']} [choices: {', '.join(choices)}]"}
            is_factory = each.default_factory is not dataclasses.MISSING
            default = field(default_factory=each.default_factory) if is_factory else each.default
            fields.append((each.name, Annotated[hint, Parameter(**options)], default))
    settings = dataclasses.make_dataclass("Settings", fields, frozen=True)
    settings.__module__ = __name__  # Python 3.11 says `types`, whose classes cyclopts takes for built-in ones
    return Parameter(name="*")(settings)


if TYPE_CHECKING:

    class Settings:
        """The settings of a run as flags: all of `divcon.config.settings`, flat."""

else:
    Settings = _settings_class()

DEFAULTS = Settings()


def run_config(settings: Settings) -> RunConfig:
    """The config of the flags and the layers below them.

    Raises:
        ConfigError: a setting is out of bounds, or some do not go together.
    """
    values = vars(settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        sections = {
            section: kind(**{each.name: values[each.name] for each in dataclasses.fields(kind)})
            for section, kind in SECTIONS.items()
        }
    for warning in caught:
        note(str(warning.message))
    return RunConfig(**sections)


@dataclass
class Origins:
    """Where the settings of one command line come from."""

    file: ConfigFile | None = None
    places: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Where each value that is not at its default comes from: by the setting's name, and the key of an option."""
    in_file: set[str] = field(default_factory=set)
    """The settings, and those of data, root and init, that the file sets."""
    in_layers: set[str] = field(default_factory=set)
    """The settings that the file, the run or the model sets; of options, beside those of the command line."""

    @property
    def explicit(self) -> set[str]:
        """The settings that the command line or the file sets, at their defaults or not."""
        return self.in_file | {keys[0] for keys, place in self.places.items() if place == COMMAND_LINE}

    def placed(self, error: DivconError) -> DivconError:
        """An error about settings, with the file and line of those that a file sets."""
        if not isinstance(error, ConfigError):
            return error
        return placed(error, {keys[0]: place for keys, place in self.places.items() if keys[0] in self.in_file})


@dataclass(frozen=True)
class _Layer:
    values: dict[str, Any]
    place: Callable[..., str]
    file: bool = False


_current = Origins()


def current_origins(*, anew: bool = False) -> Origins:
    """Where the settings of the current command line come from; ``anew`` starts another command line."""
    global _current
    if anew:
        _current = Origins()
    return _current


def gather(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Add the settings of the file, the run, the preset and the model to a command's arguments, below its flags.

    A hook of cyclopts, for commands whose parameters are named as those of ``train``; resume, init, preset and config
    may be missing, and the data is the parameter ``data`` or ``name``.

    Raises:
        ConfigError: the file cannot be read, or holds something that is not a setting; or there is no such preset.
        RunError, WeightsError: the run or the model cannot be read.
    """
    origins = current_origins(anew=True)
    options = {a.field_info.name: a for a in arguments if not a.keys}
    settings = {a.keys[0]: a for a in arguments if len(a.keys) == 1}
    for argument in arguments:
        for token in argument.tokens:
            name = argument.keys[-1] if argument.keys else argument.field_info.name
            origins.places[(name, *token.keys)] = COMMAND_LINE
            if name in _DOORS:
                allow_typed(token.value)
    if not is_first():  # rank 0 has the files, and the settings of all ranks
        return
    layers = []
    if "config" in options and (path := _word(options["config"])) is not None:
        layers.append(_file_layer(here(path), options, origins))
        _put_reading(origins, settings)
    # By now the options hold the data and init that the file names.
    words = {name: _word(argument) for name, argument in options.items()}
    resume, out, init, like = (words.get(name) for name in ("resume", "out", "init", "like"))
    run = _run_layer(place(out)) if resume and out else None
    if run is not None:
        layers.append(run)
    if like is not None and not resume:
        layers.append(_like_layer(place(like)))
    preset = words.get("preset") or (options["preset"].field_info.default if "preset" in options else None)
    if run is not None and preset is not None:
        raise ConfigError(f"--preset {preset}: the run in {out} is resumed with its own settings; leave it out")
    if preset is not None:
        layers.append(_preset_layer(preset, words["data" if "data" in words else "name"]))
    for layer in layers:
        _put(layer, settings, origins)
    unset = [name for name, section in SECTION_OF.items() if section == "model" and not settings[name].tokens]
    if init is not None and run is None and unset:
        _put(_model_layer(place(init)), settings, origins)


def as_file(settings: RunConfig, source: dict[str, Any] | None, init: Path | None) -> str:
    """The settings as YAML that ``--config`` takes, with the origin of each at the end of its line."""
    origins = current_origins()
    tree: dict[str, Any] = {}
    if source is not None:
        tree["source"] = {name: source[name] for name in ("data", "root")}
        if source.get("options"):
            tree["source"]["options"] = dict(source["options"])
    if init is not None:
        tree["init"] = absolute(init)
    comments: dict[tuple[str, ...], str] = {}
    comments |= {("source", name): origins.places.get((name,), "") for name in ("data", "root")}
    comments[("init",)] = origins.places.get(("init",), "")
    tree |= settings.to_dict()
    meanings = _meanings(settings)
    for name, section in SECTION_OF.items():
        place = origins.places.get((name,), "default")
        comments[(section, name)] = f"{place}: {meanings[name]}" if name in meanings else place
        value, is_options = tree[section][name], name in OPTIONS_OF
        for key in value if isinstance(value, dict) else ():
            comments[(section, name, key)] = origins.places.get((name, key) if is_options else (name,), "default")
        if isinstance(value, dict) and value:
            del comments[(section, name)]
    return as_yaml(tree, {keys: text for keys, text in comments.items() if text})


def _put(layer: _Layer, settings: dict[str, Argument], origins: Origins) -> None:
    replaced = {
        options
        for options, owner in OPTIONS_OF.items()
        if owner in layer.values and (word := _word(settings[owner])) is not None and word != layer.values[owner]
    }
    for name, value in layer.values.items():
        argument = settings[name]
        there = {token.keys for token in argument.tokens}
        if () in there or name in replaced or name in origins.in_layers:
            continue
        origins.in_layers.add(name)
        origins.places.setdefault((name,), layer.place(name))
        pairs = [((key,), inner) for key, inner in value.items()] if name in OPTIONS_OF else [((), value)]
        for keys, inner in pairs:
            if keys not in there:
                argument.append(Token(keyword=name, keys=keys, implicit_value=inner, source=layer.place(name, *keys)))
                origins.places[(name, *keys)] = layer.place(name, *keys)
        if layer.file:
            origins.in_file.add(name)


def _file_layer(path: Path, options: dict[str, Argument], origins: Origins) -> _Layer:
    origins.file = file = read_config_file(path)
    sections = sections_in(file.values, file.where, path.absolute().parent)

    def set_option(name: str, value: Any, *keys: str) -> None:
        if value is not None and name not in options:
            raise ConfigError(f"{file.where(*keys)}: this command takes no {name}; leave it out of the file")
        if value is not None and not options[name].tokens:
            options[name].append(Token(keyword=name, implicit_value=value, source=file.where(*keys)))
            origins.places[(name,)] = file.where(*keys)
            origins.in_file.add(name)

    if "source" in sections and not options["data"].tokens:
        set_option("data", _data(file, sections["source"]["data"]), "source", "data")
        set_option("root", sections["source"].get("root"), "source", "root")
    set_option("init", sections.get("init"), "init")
    values = {name: value for section in SECTIONS for name, value in sections.get(section, {}).items()}
    return _Layer(values, lambda name, *keys: file.where(SECTION_OF[name], name, *keys), file=True)


READING = tuple(each.name for each in dataclasses.fields(Reading))
"""The options of `divcon.read` that a file may set, under ``source.options``."""


def _put_reading(origins: Origins, settings: dict[str, Argument]) -> None:
    """Take how the data is read from the file, where the data is the file's."""
    file = origins.file
    if file is None or "data" not in origins.in_file:
        return
    for name, value in (file.values["source"].get("options") or {}).items():
        place = file.where("source", "options", str(name))
        if name not in READING:
            raise ConfigError(f"{place}: {unknown('option', str(name), READING)}")
        if not settings[name].tokens:
            settings[name].append(Token(keyword=name, implicit_value=value, source=place))
            origins.places[(name,)] = place


def _data(file: ConfigFile, data: str) -> str:
    """The name of a data set, or of a reader that the user has allowed, as it is; a path, from the file's folder."""
    from divcon.data.read import NAMED
    from divcon.runtime.importing import check_trusted, is_named

    if is_url(data):
        return data
    path = file.path.absolute().parent / Path(data).expanduser()
    if data in NAMED or path.exists():
        return data if data in NAMED else str(path)
    if is_named(data):
        check_trusted(data, file.where("source", "data"))
        return data
    words = unknown("data set", data, NAMED)
    raise ConfigError(f"{file.where('source', 'data')}: {path}: there is no such file or folder; {words}")


def _run_layer(out: Path) -> _Layer | None:
    from divcon.runs.folder import RunFolder

    saved = RunFolder(out).read()
    if saved is None:
        return None
    config, _ = saved
    for section, kind in SECTIONS.items():
        check_doors(kind, vars(getattr(config, section)), str(RunFolder(out).config))
    values = {name: getattr(getattr(config, section), name) for name, section in SECTION_OF.items()}
    return _Layer(values, lambda *_: f"run {out}")


def _like_layer(like: Path) -> _Layer:
    from divcon.runs.like import NOT_LIKE

    layer = _run_layer(like)
    if layer is None:
        raise ConfigError(f"--like {like}: holds no run; give the folder of a run that is complete")
    return _Layer({name: value for name, value in layer.values.items() if name not in NOT_LIKE}, layer.place)


def _preset_layer(name: str, data: str | None) -> _Layer:
    from divcon.config.presets import decided, preset

    return _Layer(decided(preset(name, data or "")), lambda *_: f"preset {name}")


def _model_layer(init: Path) -> _Layer:
    from divcon.runs.folder import check_trained

    check_trained(init)
    from divcon.runs.run import model_settings

    return _Layer(model_settings(init), lambda *_: f"model {init}")


def _word(argument: Argument) -> Any:
    """The value that the command line or a layer above sets for an argument; None if none does, or it is false."""
    if not argument.tokens:
        return None
    token = argument.tokens[-1]
    value = token.value if token.implicit_value is UNSET else token.implicit_value
    return None if argument.hint is bool and str(value).lower() in ("false", "no", "n", "0", "f") else value


def _meanings(settings: RunConfig) -> dict[str, str]:
    """The values that are computed from settings such as ``auto`` and None."""
    train, computed = settings.train, {}
    if settings.model.method == "single":
        computed["num_learners"] = "1, of method single"
    if settings.model.backbone == "auto":
        computed["backbone"] = "resnet50.tv_in1k for images, none for vectors"
    if train.joint_epoch is None:
        computed["joint_epoch"] = "no joint phase"
    if train.finetune_epoch is None:
        computed["finetune_epoch"] = f"{train.phase_starts[1]}, two thirds of the epochs"
    if train.miner == "auto":
        computed["miner"] = f"{train.chosen_miner}, of {train.loss}"
    if train.mask_lr is None:
        computed["mask_lr"] = f"{train.chosen_mask_lr:g}, 100 times lr"
    if train.flip is None:
        computed["flip"] = "as the data set says"
    if train.device == "auto":
        computed["device"] = "cuda, then mps, then cpu"
    return computed
