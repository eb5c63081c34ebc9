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
from divcon.evaluation.metrics import Metric, metrics_of
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
    learners: bool = False,
    metrics: Sequence[str | Metric] = (),
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
        learners: also evaluate each learner's subspace alone, before they are merged (after the last epoch of the
            subspace phase) and at the end.
        metrics: as of `divcon.evaluate`, of the result; ``marp`` is among them where it is published.
        source: what the data was read from, for ``config.json``.
        callbacks: as of `divcon.run`.

    Returns:
        What `divcon.evaluate` returns with ``per_query=True``, and under ``reproduced``: ``preset``, ``fraction``,
        ``settings``, ``changed`` (settings that differ from the preset, by name: the preset's value and the run's),
        ``environment``, ``seconds``; ``published`` (``scores``, all published columns by name, and ``source``; or
        None), ``differences`` from them by name (None where nothing is published, or ``fraction`` is below 1);
        ``papers_rule``, the best Recall@1 on the test classes with its epoch, from 0; and with ``learners``
        ``learners``: ``before`` and ``after`` merging, each the ``epoch``, Recall@1 of the full embedding
        (``recall_at_1``) and of each learner (``alone``); ``before`` is None where there is no subspace phase, or where
        that epoch was trained without ``learners``.

    Raises:
        ConfigError: there is no such preset or metric, ``fraction`` is not above 0 and at most 1, or settings do not go
            together.
        RunError, DataError, ImageError, NonFiniteError, OutputError: as of `divcon.run`.
    """
    check_fraction(fraction)
    check_callbacks(callbacks or ())
    asked = metrics_of(metrics)
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
    known = PUBLISHED_RESULTS.get(preset, {}).get(data.name)
    if known is not None and "marp" in known.scores:
        asked = metrics_of([*asked, "marp"])
    merging = _last_subspace_epoch(config)

    of_last: dict[str, Any] = {}

    def observe(model: EmbeddingModel, report: EpochReport) -> dict[str, Any]:
        apart = learners and report.number in (merging, last)
        if report.number == last:
            of_last.update(scored_at_the_end(model))
            return _observed(of_last, apart)
        if (report.number + 1) % every and not apart:
            return {}
        return _observed(scored(model, report.number, clustering=False, parts=apart), apart)

    def scored(model: EmbeddingModel, epoch: int, **options: Any) -> dict[str, Any]:
        context = Context(config.train.workers, display.progress, display.warn)
        # Each learner alone, and not the best few of them, which are chosen on other images.
        no_others = dataclasses.replace(data, train=data.train.subset(np.empty(0, np.int64)), validation=None)
        within = context.subtask("evaluate", epoch=epoch)
        return evaluate(model, data, order_by=no_others, context=within, **options)

    def scored_at_the_end(model: EmbeddingModel) -> dict[str, Any]:
        return scored(model, last, clustering=clustering, per_query=True, parts=learners, metrics=asked)

    options: dict[str, Any] = {"source": source, "display": display, "observe": observe, "callbacks": callbacks}
    model = run(data, out, config, resume=True, **options)
    lines = RunFolder(out).lines()
    # The scores of the last epoch are missing where the run was complete already, and with validation classes another
    # epoch may be kept.
    result = of_last if of_last and kept_epoch(lines) == last else scored_at_the_end(model)
    record = read_record(RunFolder(out).model)
    if result is not of_last or record is None or record["chosen"] == "head":  # scores of the kept model
        try:
            add_test_scores(out, result)
        except OutputError as error:
            display.warn(f"the scores are not in the report of the run: {error}")
    best = max((line for line in lines if line["observed"]), key=lambda line: line["observed"]["recall_at_1"])
    result["reproduced"] = {
        "preset": preset,
        "fraction": fraction,
        "published": None if known is None else {"scores": dict(known.scores), "source": known.source},
        "differences": None
        if known is None or fraction < 1
        else {name: result[name] - value for name, value in known.scores.items() if name in result},
        "papers_rule": {"recall_at_1": best["observed"]["recall_at_1"], "epoch": best["epoch"]},
        "changed": differing,
        "settings": config.to_dict(),
        "environment": environment(),
        "seconds": sum(value for line in lines for name, value in line.items() if name.startswith("seconds_")),
    }
    if learners:
        before = next((line for line in lines if line["epoch"] == merging), {"observed": {}})
        result["reproduced"]["learners"] = {
            "before": {"epoch": merging, **before["observed"]} if "alone" in before["observed"] else None,
            "after": {"epoch": last, **_observed(result, True)},
        }
    return result


def _observed(scores: dict[str, Any], apart: bool) -> dict[str, Any]:
    """What the line of an epoch keeps of its scores."""
    alone = {"alone": [learner["recall_at_1"] for learner in scores["learners"]]} if apart else {}
    return {"recall_at_1": scores["recall_at_1"], **alone}


def _last_subspace_epoch(config: RunConfig) -> int | None:
    """The epoch after which the learners are merged; None where there is no subspace phase."""
    from divcon.training.schedule import Phase, phase_at

    subspace = [
        epoch
        for epoch in range(config.train.epochs)
        if phase_at(epoch, config.train, config.model.num_learners) is Phase.SUBSPACE
    ]
    return subspace[-1] if subspace else None


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
    stays = train.redivide_until
    changes: dict[str, Any] = {"epochs": epochs, "lr_step_epochs": max(1, scaled(train.lr_step_epochs))}
    changes |= {"joint_epoch": scaled(joint), "finetune_epoch": scaled(finetune)}
    changes |= {} if stays is None else {"redivide_until": scaled(stays)}
    model = config.model
    if train.hierarchy:
        doublings = (changes["joint_epoch"] - 1) // train.redivide_every
        model = dataclasses.replace(model, num_learners=min(model.num_learners, 2 ** max(1, doublings)))
    return dataclasses.replace(config, model=model, train=dataclasses.replace(train, **changes))
