"""Callbacks: what a run calls as it goes on, such as the trackers of `divcon.runs.trackers`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divcon.errors import ConfigError, RunError, unknown
from divcon.runtime.importing import is_named

if TYPE_CHECKING:
    from divcon.config.settings import RunConfig
    from divcon.data.benchmark import Benchmark
    from divcon.division import Division
    from divcon.models import EmbeddingModel

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""The trackers by name; the package of each, and the extra that installs it, are called the same."""
TRACKERS_FILE = "trackers.json"


class Callback:
    """Called by a run as it goes on, in the process of rank 0 alone; override what you need.

    An error that a method raises ends the run as an error of the run does: the last finished batch is saved.

    >>> class Print(Callback):
    ...     def on_epoch(self, line, model):
    ...         print(line["epoch"], line["loss"])
    """

    def on_start(self, run: Path, config: RunConfig, data: Benchmark, lines: Sequence[dict[str, Any]]) -> None:
        """The run starts, or resumes.

        Args:
            run: its folder.
            data: with the validation classes.
            lines: of ``metrics.jsonl``, of the epochs that are done; the next epoch has their number.
        """

    def on_division(self, epoch: int, division: Division) -> None:
        """The training images were divided anew at the start of an epoch that is done now; before its `on_epoch`."""

    def on_epoch(self, line: dict[str, Any], model: EmbeddingModel) -> None:
        """An epoch is done. ``line`` is its line of ``metrics.jsonl``; the model is in evaluation mode."""

    def on_warning(self, message: str) -> None:
        """The run warns the user."""

    def on_baselines(self, scores: dict[str, Any]) -> None:
        """The kept model was compared with untrained features on the validation classes; ``scores`` is what
        `divcon.evaluate` returned with ``baselines=True``."""

    def on_end(self, model: EmbeddingModel, kept_epoch: int | None) -> None:
        """The run is complete, and ``model``, of ``kept_epoch``, is saved."""

    def on_stop(self, error: BaseException) -> None:
        """The run ends before its end: stopped by a signal (`divcon.errors.Stopped`), or by an error."""


class Callbacks(Callback):
    """Several, one after another."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._all = list(callbacks)
        self._started: list[Callback] = []
        """Those whose `on_start` has returned; only these are called again."""

    def on_start(self, run: Path, config: RunConfig, data: Benchmark, lines: Sequence[dict[str, Any]]) -> None:
        for callback in self._all:
            callback.on_start(run, config, data, lines)
            self._started.append(callback)

    def on_division(self, epoch: int, division: Division) -> None:
        for callback in self._started:
            callback.on_division(epoch, division)

    def on_epoch(self, line: dict[str, Any], model: EmbeddingModel) -> None:
        for callback in self._started:
            callback.on_epoch(line, model)

    def on_warning(self, message: str) -> None:
        for callback in self._started:
            callback.on_warning(message)

    def on_baselines(self, scores: dict[str, Any]) -> None:
        for callback in self._started:
            callback.on_baselines(scores)

    def on_end(self, model: EmbeddingModel, kept_epoch: int | None) -> None:
        while self._started:
            self._started.pop(0).on_end(model, kept_epoch)

    def on_stop(self, error: BaseException) -> None:
        while self._started:
            self._started.pop(0).on_stop(error)


def check_callbacks(callbacks: Iterable[object]) -> None:
    """
    Raises:
        ConfigError: there is no such tracker, its package is not installed, or a value is no callback.
    """
    for callback in callbacks:
        if isinstance(callback, Callback) or is_named(callback):
            continue
        if not isinstance(callback, str):
            raise ConfigError(
                f"`callbacks`: {callback!r} is neither the name of a tracker ({', '.join(TRACKERS)}) nor an object of "
                "divcon.runs.callbacks.Callback"
            )
        if callback not in TRACKERS:
            raise ConfigError(unknown("tracker", callback, TRACKERS))
        if importlib.util.find_spec(callback) is None:
            raise ConfigError(f'the tracker {callback} needs the package {callback}: pip install "divcon[{callback}]"')


def names_kept(run: Path) -> list[str]:
    """The trackers that a run goes on with where it is resumed."""
    return [name for name in read_identities(run) if name in TRACKERS]


def read_identities(run: Path) -> dict[str, str | None]:
    """What each tracker calls a run, by the tracker's name.

    Raises:
        RunError: the file is damaged.
    """
    file = run / TRACKERS_FILE
    try:
        known = json.loads(file.read_text())
        return {str(name): identity for name, identity in known.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{file}: cannot be read ({error}); delete it, and trackers begin anew") from None
