"""The ablation itself: trials on folds of the train classes, a choice for every arm, and only then the test classes."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from divcon.config.settings import RunConfig
from divcon.data.benchmark import Benchmark
from divcon.data.inputs import as_benchmark
from divcon.data.loading import only_decodable
from divcon.errors import ConfigError, DataError, NonFiniteError, RunError
from divcon.evaluation.protocol import evaluate
from divcon.experiments.arms import Arm, Settings, Tree, arms_of, chosen, config_of, draw_trials, folds_of, plain, shown
from divcon.experiments.results import Results, ResultsFile, draw, tabulate
from divcon.models import EmbeddingModel
from divcon.models.backbone import resolve_backbone
from divcon.runs.display import Display, NullDisplay
from divcon.runs.folder import RunFolder
from divcon.runs.run import run
from divcon.runtime.context import Context, Progress
from divcon.runtime.environment import machine
from divcon.runtime.files import atomic_write
from divcon.training.report import EpochReport
from divcon.training.setup import check


def check_numbers(seeds: Sequence[int], trials: int, folds: int, reference: str | None, arms: list[Arm]) -> None:
    """
    Raises:
        ConfigError: a number that cannot be, a seed that stands twice, a reference that is none of the arms.
    """
    if not seeds or min(seeds) < 0:
        raise ConfigError(
            f"`seeds` {','.join(map(str, seeds)) or 'is empty'}: list seeds of 0 or more, as in 0,1,2", field="seeds"
        )
    if len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"`seeds` {','.join(map(str, seeds))}: list each seed once; twice it would be the same run", field="seeds"
        )
    for name, value, least in (("trials", trials, 1), ("folds", folds, 2)):
        if value < least:
            raise ConfigError(f"`{name}` {value}: must be at least {least}", field=name)
    names = [arm.name for arm in arms]
    if reference is not None and reference not in names:
        raise ConfigError(
            f"`reference` {reference}: is none of the arms ({', '.join(names)}); add it to `arms`", field="reference"
        )


def prepared(base: RunConfig, data: Benchmark, display: Display) -> tuple[RunConfig, Benchmark]:
    """The base and the data as all runs have them: with its backbone's name; with all train classes in train, and
    without what does not decode.

    Raises:
        ConfigError: a base of one learner, or a backbone that the data is not for.
        DataError: no train or no test images.
    """
    if not len(data.query) or not len(data.gallery):
        raise DataError(f"{data.query.source}: there are no test images to compare arms on")
    if not len(data.train):
        raise DataError(f"{data.train.source}: has no train images; it can be evaluated on, not trained on")
    if base.model.num_learners < 2:
        why = "of `method=single` " if base.model.method == "single" else ""
        raise ConfigError(
            f"`num_learners` {base.model.num_learners} {why}is the base of all arms, and one learner has nothing to "
            "divide; use a base of at least two, whose method is not single",
            field="num_learners",
        )
    if base.data.on_bad_image == "skip":
        parts = ("train", "validation", "query", "gallery")
        data = only_decodable(data, parts, Context(base.train.workers, display.progress, display.warn))
    for note in data.notes:
        display.warn(note)
    vector_dim = None if data.train.vectors is None else data.train.vectors.shape[1]
    backbone = resolve_backbone(base.model.backbone, vector_dim, base.model.weights)
    base = RunConfig(  # slices, whatever the default is: results that are there already may have arms of no method
        dataclasses.replace(base.model, backbone=backbone, method="slices"),
        base.train,
        dataclasses.replace(base.data, on_bad_image="stop"),  # once for all runs, not in each
    )
    return base, dataclasses.replace(data.without_validation(), notes=())


def check_settings(arms: list[Arm], planned: dict[str, list[Settings]], base: RunConfig, data: Benchmark) -> None:
    """Find now, not after hours, what a run would refuse.

    Raises:
        ConfigError: settings that do not go together; with the arm and the trial.
        DataError: too few images or classes.
    """
    models: list[tuple[Any, EmbeddingModel]] = []
    vector_dim = None if data.train.vectors is None else data.train.vectors.shape[1]
    for arm in arms:
        for settings in planned[arm.name] or [{}]:
            config = config_of(base, arm.settings, settings)
            known = [model for made_of, model in models if made_of == config.model]
            try:
                if not known:
                    options = {**vars(config.model), "pretrained": False, "weights": None, "vector_dim": vector_dim}
                    known = [EmbeddingModel(**options)]
                    models.append((config.model, known[0]))
                check(known[0], data.train, config.train)
            except ConfigError as error:
                with_these = f" with {shown(settings)}" if settings else ""
                raise ConfigError(f"arm {arm.name!r}{with_these}: {error}") from None


def recorded(base: RunConfig) -> dict[str, Any]:
    """What of the base decides the results; no path of this machine."""
    tree = base.to_dict()
    for part, names in {
        "model": ("method",),
        "train": ("seed", "workers", "device"),
        "data": ("validation", "validation_fraction", "on_bad_image"),
    }.items():
        for name in names:
            del tree[part][name]
    if base.model.weights is not None:
        tree["model"]["weights"] = base.model.weights.name
    return tree


class Observer:
    """Evaluate on the test classes after epochs, keep the hits of one epoch that was chosen before, and record which
    training images were drawn. Both are saved in the run's folder, so that a run that was stopped resumes with them."""

    NAME = "observed.npz"

    def __init__(self, data: Benchmark, folder: Path, config: RunConfig, chosen_epoch: int, display: Display) -> None:
        self.chosen_epoch = chosen_epoch
        self._data = data
        self._path = folder / self.NAME
        self._config = config
        self._display = display

    def observe(self, model: EmbeddingModel, report: EpochReport) -> dict[str, Any]:
        """After an epoch; the result is for its line of ``metrics.jsonl``."""
        arrays = self.arrays() if report.number else {"drawn": np.zeros(len(self._data.train), bool)}
        arrays["drawn"][report.drawn] = True
        config, observed = self._config, {}
        last = report.number == config.train.epochs - 1
        if last or (report.number + 1) % config.data.evaluate_every == 0:
            result = evaluate(
                model,
                self._data,
                clustering=False,
                per_query=True,
                context=Context(config.train.workers, self._display.progress).subtask("evaluate", epoch=report.number),
            )
            observed["recall_at_1"] = result["recall_at_1"]
            if report.number == self.chosen_epoch:
                hits = result["per_query"]["recall_at_1"]
                kept = [i for i, hit in enumerate(hits) if hit is not None]
                arrays["hits"] = np.array([hits[i] for i in kept], np.int64)
                arrays["classes"] = self._data.query.labels[kept]
        with atomic_write(self._path) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        return observed

    def arrays(self) -> dict[str, np.ndarray]:
        """``drawn`` (N,) bool, the training images drawn so far; ``hits`` (Q,) int64 0 or 1 and ``classes`` (Q,) int64
        of the queries that have a match, once the chosen epoch is done."""
        with np.load(self._path) as found:
            return {name: found[name] for name in found.files}


class Once(Display):
    """What another display shows of many runs: the bar, and once what would be said for each; no line an epoch."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._said: set[str] = set()

    def begin(self, config: RunConfig, data: Benchmark, epochs_done: int) -> None:
        self._display.begin(config, data, epochs_done)

    def progress(self, progress: Progress) -> None:
        self._display.progress(progress)

    def epoch(self, line: dict[str, Any]) -> None:
        for warning in line["warnings"]:
            self.warn(warning)

    def warn(self, message: str) -> None:
        # The same words of another epoch say nothing new.
        words = re.sub(r"\d+", "#", message)
        if words not in self._said:
            self._said.add(words)
            self._display.warn(message)

    def end(self, out: Path, kept_epoch: int | None) -> None:
        pass


def trial_record(folder: Path) -> dict[str, Any]:
    """The curve of a trial on its fold's validation classes, and its seconds."""
    lines = RunFolder(folder).lines()
    validated = [line for line in lines if "validation" in line]
    curve = [{"epoch": line["epoch"], "recall_at_1": line["validation"]["recall_at_1"]} for line in validated]
    return {"curve": curve, "seconds": sum(map(_seconds, lines))}


def run_record(folder: Path, observer: Observer) -> dict[str, Any]:
    """What a run has cost and what it gave. Its seconds are those of training and dividing."""
    lines = RunFolder(folder).lines()
    images, seconds = np.cumsum([line["images"] for line in lines]), np.cumsum([_seconds(line) for line in lines])
    curve = [
        {
            "epoch": line["epoch"],
            "images_seen": int(images[place]),
            "seconds": float(seconds[place]),
            "recall_at_1": line["observed"]["recall_at_1"],
        }
        for place, line in enumerate(lines)
        if line["observed"]
    ]
    found = observer.arrays()
    return {
        "batches": sum(line["batches"] for line in lines),
        "images_seen": int(images[-1]),
        "distinct_images_seen": int(found["drawn"].sum()),
        "seconds": float(seconds[-1]),
        "seconds_dividing": sum(line["seconds_dividing"] for line in lines),
        "kept_pairs": [line["kept_pairs"] for line in lines if line["redivided"] and len(line["sizes"]) > 1],
        "epochs": observer.chosen_epoch + 1,
        "recall_at_1": next(point["recall_at_1"] for point in curve if point["epoch"] == observer.chosen_epoch),
        "recall_at_1_last": curve[-1]["recall_at_1"],
        "curve": curve,
        "hits": found["hits"].tolist(),
        "classes": found["classes"].tolist(),
    }


def tidied(folder: Path, keep_models: bool) -> None:
    """Delete what a run that is recorded needs no more, and what takes most space."""
    if keep_models:
        return
    run = RunFolder(folder)
    shutil.rmtree(run.model, ignore_errors=True)
    run.checkpoint.unlink(missing_ok=True)
    run.previous.unlink(missing_ok=True)
    (folder / Observer.NAME).unlink(missing_ok=True)


def _seconds(line: dict[str, Any]) -> float:
    return line["seconds_dividing"] + line["seconds_training"]


DEFAULT_ARMS = ("single", "slices", "masks")
DEFAULT_SEEDS = (0, 1, 2)


def ablate(
    data: Benchmark | str | os.PathLike[str],
    out: str | Path,
    *,
    arms: Sequence[str | Arm] = DEFAULT_ARMS,
    base: RunConfig | None = None,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    space: Tree | None = None,
    trials: int = 8,
    folds: int = 3,
    reference: str | None = None,
    keep_models: bool = False,
    display: Display | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Results:
    """Train several arms at the same budget and compare them on the test classes.

    Where there are values to search, each arm has the same number of trials, evaluated on folds of the train classes.
    After all arms' choices are written to ``choices.json``, each trains on all train classes once a seed; the test
    classes are looked at for the curve, and nothing is chosen by it.

    Args:
        data: what `divcon.read` returns, or a path or name that it takes. Validation classes count as train classes.
        out: the folder: ``results.json`` (all that is needed to go on), ``choices.json``, ``table.md``,
            ``recall.svg``, ``recall.png``, and the folders of the runs. What it holds already is not done again.
        arms: names of `divcon.experiments.ARMS` or of methods, or arms of your own, in the order of the table.
        base: what all arms have but for their own settings. Its method, seed and validation are not used; an
            arm that names no method trains slices.
        seeds: of the runs that are compared; the trials have the first.
        space: what is searched for every arm: ``{"train": {"lr": [1e-4, 1e-3]}}``. No trial is made where neither this
            nor any arm has something to search.
        trials: for each arm, the default settings first, if they are in its space.
        folds: parts of the train classes; each trial trains on all but one and is evaluated on that, once for each.
        reference: the arm that the others are compared with; None: single, or else the first.
        keep_models: keep the models and checkpoints of the runs.
        tell: called with a line for people before and after each run.

    Returns:
        What ``results.json`` holds: ``settings``, ``environment``, ``trials``, ``choices`` and ``runs``.

    Raises:
        ConfigError: an arm, setting, seed or number that cannot be, or settings that do not go together; before
            anything is trained.
        DataError: too few train classes for the folds, or no test images.
        RunError: ``out`` holds something else, or an ablation of other data, settings or lists; or every trial of an
            arm went wrong.
        OutputError, ImageError, NonFiniteError: as in `divcon.run`.
    """
    display = display or NullDisplay()
    listed = [arm.searching(space or {}) for arm in arms_of(arms)]
    check_numbers(seeds, trials, folds, reference, listed)
    data = as_benchmark(data)
    file = ResultsFile(out)
    base = base or RunConfig()
    base, data = prepared(base, data, display)
    held = file.results["settings"]
    seed = held.get("trial_seed", seeds[0])
    # Once arms have had trials, an arm that is added has them too, if only to choose the number of epochs.
    searched = any(arm.space for arm in listed) or held.get("trials", 0) > 0
    planned = {arm.name: draw_trials(arm, base, trials, seed) if searched else [] for arm in listed}
    parts = folds_of(data, folds, seed) if searched else []
    check_settings(listed, planned, base, data)
    then = held.get("data", {})
    file.go_on_with(
        {
            "data": {
                "name": data.name,
                "train": then["train"] if data.train.has_fingerprint(then.get("train")) else data.train.fingerprint,
                "split_hash": then["split_hash"] if data.has_split(then.get("split_hash")) else data.split_hash,
                "protocol": data.protocol,
            },
            "base": recorded(base),
            "arms": {arm.name: arm.to_dict() for arm in listed},
            "seeds": list(seeds),
            "trials": trials if searched else 0,
            "folds": folds if searched else 0,
            "trial_seed": seed,
        }
    )
    study = _Study(data, base, file, keep_models, display, tell)
    study.total = sum(map(len, planned.values())) * len(parts) + len(seeds) * len(listed)
    for arm in listed:
        if searched and len(planned[arm.name]) < trials:
            tell(f"note: {arm.name} has {len(planned[arm.name])} combinations to try, fewer than `trials` {trials}")
        study.choose(arm, planned[arm.name], parts, seed)
    file.write()
    file.write_choices()
    for number in seeds:
        for arm in listed:
            study.compare(arm, number)
            tabulate(file.out, file.results, [a.name for a in listed], seeds, reference)
    draw(file.out, file.results, [arm.name for arm in listed], seeds, Context(on_warning=display.warn))
    return file.results


class _Study:
    """One ablation under way."""

    def __init__(
        self,
        data: Benchmark,
        base: RunConfig,
        file: ResultsFile,
        keep_models: bool,
        display: Display,
        tell: Callable[[str], None],
    ) -> None:
        self.data = data
        self.base = base
        self.file = file
        self.keep_models = keep_models
        self.display = Once(display)
        self.tell = tell
        self.total = 0
        self._number = 0

    def choose(self, arm: Arm, trials: list[Settings], folds: list[Benchmark], seed: int) -> None:
        """Make the trials that are still to be made, and write down the arm's choice."""
        records, choices = self.file.results["trials"], self.file.results["choices"]
        if arm.name in choices:
            self._number += len(trials) * len(folds)
            return
        curves: list[list[list[dict[str, Any]]]] = []
        for number, settings in enumerate(trials):
            curves.append([])
            for place, fold in enumerate(folds):
                self._number += 1
                key = {"method": arm.name, "trial": number, "fold": place}
                folder = self.file.out / "trials" / arm.name / f"t{number}" / f"fold-{place}"
                found = [record for record in records if all(record[name] == key[name] for name in key)]
                if not found:
                    what = f"trial {number} of {arm.name}" + (f" ({shown(settings)})" if settings else "")
                    self.tell(f"run {self._number} of {self.total}: {what}, fold {place}")
                    settings_of_trial = {"train": {"seed": seed}, "data": {"validation": True}}
                    config = config_of(self.base, arm.settings, settings, settings_of_trial)
                    found = [{**key, "settings": plain(settings), "seed": seed, **self._trial(fold, folder, config)}]
                    self.file.add("trials", found[0])
                tidied(folder, self.keep_models)
                curves[-1].append(found[0]["curve"])
        if not trials:
            choices[arm.name] = {"trial": None, "settings": {}, "epochs": self.base.train.epochs, "recall_at_1": None}
            return
        trial, epochs, score = chosen(curves)
        if score < 0:
            failed = [record["failed"] for record in records if record["method"] == arm.name and "failed" in record]
            raise RunError(f"{arm.name}: every trial went wrong; give other values to search (the first: {failed[0]})")
        choices[arm.name] = {
            "trial": trial,
            "settings": plain(trials[trial]),
            "epochs": epochs,
            "recall_at_1": score,
        }
        self.file.write()

    def _trial(self, fold: Benchmark, folder: Path, config: RunConfig) -> dict[str, Any]:
        try:
            run(fold, folder, config, resume=True, display=self.display, report=False)
        except NonFiniteError as error:  # a learning rate that is too high is a bad choice, not the end of the study
            self.tell(f"  went wrong: {error}")
            return {"curve": [], "failed": str(error)}
        record = trial_record(folder)
        self.tell(f"  Recall@1 {100 * max(point['recall_at_1'] for point in record['curve']):.1f} at best")
        return record

    def compare(self, arm: Arm, seed: int) -> None:
        """Train the arm's choice on all train classes with one seed, unless that is done."""
        self._number += 1
        runs, choice = self.file.results["runs"], self.file.results["choices"][arm.name]
        folder = self.file.out / "runs" / arm.name / f"seed-{seed}"
        if not any(record["method"] == arm.name and record["seed"] == seed for record in runs):
            self.tell(f"run {self._number} of {self.total}: {arm.name}, seed {seed}")
            settings = {"train": {"seed": seed}, "data": {"validation": False}}
            config = config_of(self.base, arm.settings, choice["settings"], settings)
            observer = Observer(self.data, folder, config, choice["epochs"] - 1, self.display)
            run(self.data, folder, config, resume=True, display=self.display, observe=observer.observe)
            record = {
                "method": arm.name,
                "settings": _changes(self.base, config),
                "seed": seed,
                "data": self.data.name,
                "split_hash": self.data.split_hash,
                "protocol": self.data.protocol,
                "machine": machine(),
                **run_record(folder, observer),
            }
            self.file.add("runs", record)
            self.tell(f"  Recall@1 {100 * record['recall_at_1']:.1f} on the test classes, {record['seconds']:.0f} s")
        tidied(folder, self.keep_models)


def _changes(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """What a run has over the base, by part."""
    before, after = base.to_dict(), config.to_dict()
    changes = {part: {k: v for k, v in after[part].items() if v != before[part][k]} for part in ("model", "train")}
    changes["model"]["method"] = config.model.method
    changes["train"].pop("seed", None)
    return {part: values for part, values in changes.items() if values}
