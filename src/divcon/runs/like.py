"""Settings of a model for use, trained on all classes, from a run in which validation has chosen its length."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from divcon.config.settings import SECTION_OF, SECTIONS, RunConfig
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, RunError
from divcon.runs.embedding import read_record
from divcon.runs.folder import RunFolder, kept_epoch

NOT_LIKE = ("validation", "validation_folds", "patience", "end_epoch", "train_on")
"""Settings of how a run validates, which a model for use does not."""


def check_like(config: RunConfig, like: str | Path) -> None:
    """
    Raises:
        ConfigError: the settings are not of a model for use.
    """
    if config.data.train_on != "all":
        raise ConfigError(
            f"`like` {like}: gives the length of a training on all classes; add `train_on=all`. To repeat that run, "
            "use its settings (`config`)",
            field=("train_on", "like"),
        )


def settings_like(
    run: str | Path,
    data: Benchmark,
    config: RunConfig | None = None,
    explicit: Collection[str] = (),
) -> tuple[RunConfig, str]:
    """The settings of a training on all classes that has as many batches as the run's kept epoch had seen, its phases
    and learning rates at the same places, and the embedding that validation has chosen.

    Args:
        run: the folder of a run that is complete.
        data: the benchmark, of which all images train.
        config: settings in place of the run's; None: the run's.
        explicit: names of settings of ``config`` that stay as they are.

    Returns:
        The settings, and in words, how long the run trained and how long this is.

    Raises:
        RunError: there is no run, or it is not complete.
        ConfigError: a run for use itself has no validated length; or settings do not go together.
    """
    folder = RunFolder(run)
    saved = folder.read()
    if saved is None:
        raise RunError(f"{run}: holds no run; `like` takes the folder of a run that is complete")
    then, lines = saved[0], folder.lines()
    if then.data.train_on == "all":
        raise ConfigError(
            f"`like` {run}: was itself trained on all classes, so that validation has chosen nothing; use the run that "
            f"it was trained like{f' ({like})' if (like := saved[1].get('like')) else ''}",
            field="like",
        )
    kept = kept_epoch(lines)
    if kept is None or not (folder.last / "config.json").exists():
        raise RunError(f"{run}: is not complete, so that it has chosen no epoch; resume it first")
    config = config or then
    values: dict[str, Any] = {name: value for name, value in _validated(folder, then).items() if name not in explicit}
    values |= {"train_on": "all"}
    done = sum(line["batches"] for line in lines if line["epoch"] <= kept)
    batches = _batches_an_epoch(config, lines, data)
    ratio = done / (kept + 1) / batches
    values |= {
        name: value
        for name, value in _scaled(then, kept, ratio).items()
        if name not in explicit and not (name == "end_epoch" and "epochs" in explicit)
    }
    sections: dict[str, Any] = {}
    for section in SECTIONS:
        changed = {name: value for name, value in values.items() if SECTION_OF[name] == section}
        sections[section] = dataclasses.replace(getattr(config, section), **changed)
    config = RunConfig(**sections)
    end = config.train.epochs if config.data.end_epoch is None else config.data.end_epoch + 1
    words = (
        f"as in {run}, which kept epoch {kept} after {done:,} batches: {end} epoch{'s' * (end != 1)} of "
        f"{batches:,.10g} batches on all classes, {round(end * batches):,} in all"
    )
    return config, words


def _validated(folder: RunFolder, then: RunConfig) -> dict[str, Any]:
    """The settings that validation has decided."""
    record = read_record(folder.model)
    embed = record["chosen"] if record is not None else "head" if then.model.embed == "auto" else then.model.embed
    return {"validation": True, "validation_folds": None, "patience": None, "embed": embed}


def _batches_an_epoch(config: RunConfig, lines: list[dict[str, Any]], data: Benchmark) -> float:
    """The batches of an epoch on all images."""
    images = len(data.on_all().train)
    if config.train.rounds == "epoch":
        return max(1, images // config.train.batch_size)
    # The rounds depend on the clusters, which grow with the images.
    then = lines[0]["left_out"] + sum(lines[0]["sizes"])
    return sum(line["batches"] for line in lines) / len(lines) * images / then


def _scaled(then: RunConfig, kept: int, ratio: float) -> dict[str, Any]:
    """The settings that count epochs, where each has ``1 / ratio`` times as many batches."""
    train = then.train
    end = max(0, round((kept + 1) * ratio) - 1)
    epochs = max(end + 1, round(train.epochs * ratio))

    def begin(epoch: int) -> int:
        """Where a phase begins, so that the last epoch is of the phase that the kept one was of."""
        return min(round(epoch * ratio), end) if epoch <= kept else max(round(epoch * ratio), end + 1)

    joint, finetune = train.phase_starts
    values: dict[str, Any] = {
        "epochs": epochs,
        "end_epoch": None if end == epochs - 1 else end,
        "finetune_epoch": begin(finetune),
        "joint_epoch": None if train.joint_epoch is None else begin(joint),
        "warmup_epochs": train.warmup_epochs * ratio,
    }
    if train.lr_schedule == "step":
        values["lr_step_epochs"] = max(1, round(train.lr_step_epochs * ratio))
    return values
