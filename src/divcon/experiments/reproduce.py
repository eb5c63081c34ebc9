"""Reproduce a published result: train a preset, evaluate it, and compare its scores with the published ones.

``divcon.reproduce(...)`` is the function `reproduce`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from divcon.config.presets import PUBLISHED_RESULTS, changed
from divcon.config.presets import preset as settings_of
from divcon.config.settings import RunConfig
from divcon.data.benchmark import Benchmark
from divcon.data.inputs import as_benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, OutputError
from divcon.runs.callbacks import Callback, check_callbacks
from divcon.runs.display import Display, NullDisplay
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runtime.context import Context
from divcon.runtime.environment import environment

if TYPE_CHECKING:
    from divcon.models import EmbeddingModel
    from divcon.training.report import EpochReport

_FEWEST_CLASSES = 8
_FEWEST_EPOCHS = 6
"""With ``fraction`` below 1: enough for every phase of every preset."""


def reproduce(
    data: Benchmark | str | os.PathLike[str],
    preset: str,
    out: str | Path,
    *,
    config: RunConfig | None = None,
    fraction: float = 1.0,
    clustering: bool = True,
    source: dict[str, Any] | None = None,
    display: Display | None = None,
    callbacks: Sequence[str | Callback] | None = None,
) -> dict[str, Any]:
    """Train a preset on a benchmark in a run folder, and evaluate it. A run in the folder is resumed.

    The model is evaluated on the test classes every ``config.data.evaluate_every`` epochs, as in the papers; nothing is
    chosen by these scores, and the result is the last epoch's.

    Args:
        data: what `divcon.read` returns, or a path or name that it takes.
        preset: a name of `divcon.config.presets.PRESETS`.
        out: the run folder.
        config: settings in place of the preset's; the result lists those that differ.
        fraction: below 1, the same steps on that share of the classes and epochs.
        clustering: as of `divcon.evaluate`, of the result.
        source: what the data was read from, for ``config.json``.
        callbacks: as of `divcon.run`.

    Returns:
        What `divcon.evaluate` returns with ``per_query=True``, and under ``reproduced``: ``preset``, ``fraction``,
        ``settings``, ``changed`` (settings that differ from the preset, by name: the preset's value and the run's),
        ``environment``, ``seconds``; ``published`` (``recall_at_1`` and ``source``, or None), ``difference`` from it
        (None where nothing is published, or ``fraction`` is below 1); and ``papers_rule``, the best Recall@1 on the
        test classes with its epoch, from 0.

    Raises:
        ConfigError: there is no such preset, ``fraction`` is not above 0 and at most 1, or settings do not go together.
        RunError, DataError, ImageError, NonFiniteError, OutputError: as of `divcon.run`.
    """
    check_fraction(fraction)
    check_callbacks(callbacks or ())
    from divcon.evaluation.protocol import evaluate
    from divcon.runs.embedding import read_record
    from divcon.runs.report import add_test_scores
    from divcon.runs.run import run, source_of

    display = display or NullDisplay()
    if source is None and isinstance(data, (str, os.PathLike)):
        source = source_of(data)
    data = as_benchmark(data, Context(on_progress=display.progress, on_warning=display.warn))
    config = config or settings_of(preset, data.name)
    differing = changed(config, preset, data.name)
    if fraction < 1:
        data, config = part_of(data, fraction, config.train.seed), shortened(config, fraction)
        source = None  # a share of the data cannot be read again
    every, last = config.data.evaluate_every, config.train.epochs - 1

    of_last: dict[str, Any] = {}

    def observe(model: EmbeddingModel, report: EpochReport) -> dict[str, Any]:
        if report.number == last:
            of_last.update(scored(model, last, clustering=clustering, per_query=True))
            return {"recall_at_1": of_last["recall_at_1"]}
        if (report.number + 1) % every:
            return {}
        return {"recall_at_1": scored(model, report.number, clustering=False)["recall_at_1"]}

    def scored(model: EmbeddingModel, epoch: int, **options: Any) -> dict[str, Any]:
        context = Context(config.train.workers, display.progress, display.warn)
        return evaluate(model, data, context=context.subtask("evaluate", epoch=epoch), **options)

    options: dict[str, Any] = {"source": source, "display": display, "observe": observe, "callbacks": callbacks}
    model = run(data, out, config, resume=True, **options)
    lines = RunFolder(out).lines()
    # The scores of the last epoch are missing where the run was complete already, and with validation classes another
    # epoch may be kept.
    result = (
        of_last if of_last and kept_epoch(lines) == last else scored(model, last, clustering=clustering, per_query=True)
    )
    record = read_record(RunFolder(out).model)
    if result is not of_last or record is None or record["chosen"] == "head":  # scores of the kept model
        try:
            add_test_scores(out, result)
        except OutputError as error:
            display.warn(f"the scores are not in the report of the run: {error}")
    best = max((line for line in lines if line["observed"]), key=lambda line: line["observed"]["recall_at_1"])
    known = PUBLISHED_RESULTS.get(preset, {}).get(data.name)
    result["reproduced"] = {
        "preset": preset,
        "fraction": fraction,
        "published": None if known is None else dataclasses.asdict(known),
        "difference": None if known is None or fraction < 1 else result["recall_at_1"] - known.recall_at_1,
        "papers_rule": {"recall_at_1": best["observed"]["recall_at_1"], "epoch": best["epoch"]},
        "changed": differing,
        "settings": config.to_dict(),
        "environment": environment(),
        "seconds": sum(value for line in lines for name, value in line.items() if name.startswith("seconds_")),
    }
    return result


def check_fraction(fraction: float) -> None:
    """
    Raises:
        ConfigError: it is no share.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"`fraction` {fraction}: must be above 0 and at most 1", field="fraction")


def part_of(data: Benchmark, fraction: float, seed: int) -> Benchmark:
    """The benchmark with a share of its train classes and of its test classes, drawn by ``seed``."""
    rng = np.random.default_rng([seed, 0xF4AC])

    def drawn(images: LabeledSet) -> set[str]:
        classes = images.classes
        count = max(_FEWEST_CLASSES, round(fraction * len(classes)))
        return {images.label_names[c] for c in rng.permutation(classes)[:count]}

    def those(images: LabeledSet, names: set[str]) -> LabeledSet:
        return images.subset(np.array([name in names for name in images.label_names])[images.labels])

    data = data.without_validation()
    train, tested = drawn(data.train), drawn(data.query)
    query = those(data.query, tested)
    gallery = query if data.gallery is data.query else those(data.gallery, tested)
    return dataclasses.replace(data, train=those(data.train, train), query=query, gallery=gallery)


def shortened(config: RunConfig, fraction: float) -> RunConfig:
    """The settings with a share of the epochs, in each phase, and no more learners than a hierarchy reaches in them."""
    train = config.train
    epochs = min(train.epochs, max(_FEWEST_EPOCHS, round(fraction * train.epochs)))

    def scaled(epoch: int) -> int:
        return min(max(1, round(epoch * epochs / train.epochs)), epochs - 1 if epoch < train.epochs else epochs)

    joint, finetune = train.phase_starts
    changes: dict[str, Any] = {"epochs": epochs, "lr_step_epochs": max(1, scaled(train.lr_step_epochs))}
    changes |= {"joint_epoch": scaled(joint), "finetune_epoch": scaled(finetune)}
    model = config.model
    if train.hierarchy:
        doublings = (changes["joint_epoch"] - 1) // train.redivide_every
        model = dataclasses.replace(model, num_learners=min(model.num_learners, 2 ** max(1, doublings)))
    return dataclasses.replace(config, model=model, train=dataclasses.replace(train, **changes))
