"""Run an ablation: trials on folds of the train classes, a choice for every arm, then runs on the test classes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from divcon.config.fields import saved_value
from divcon.config.from_data import LEARNERS, fit
from divcon.config.settings import ModelConfig, RunConfig
from divcon.data.benchmark import Benchmark, folds_of
from divcon.data.inputs import as_benchmark
from divcon.data.loading import only_decodable
from divcon.data.shapes import facts_to_choose_by
from divcon.errors import ConfigError, DataError, NonFiniteError, RunError, WeightsError
from divcon.evaluation.baselines import starting_weights
from divcon.evaluation.metrics import scores_in
from divcon.evaluation.protocol import evaluate
from divcon.experiments.arms import (
    DEFAULT_ARMS,
    DEFAULT_SEEDS,
    Arm,
    Settings,
    Tree,
    arms_of,
    best_trial,
    check_numbers,
    config_of,
    draw_trials,
    mean_at,
    settings_text,
)
from divcon.experiments.results import Results, ResultsFile, draw, tabulate
from divcon.models import EmbeddingModel, with_embedding
from divcon.models.backbone import resolve_backbone, sizes_of
from divcon.runs.callbacks import Callback, check_callbacks
from divcon.runs.display import Display, NullDisplay
from divcon.runs.folder import RunFolder
from divcon.runs.notes import template
from divcon.runs.run import run
from divcon.runtime.context import Context, Progress
from divcon.runtime.copies import removed
from divcon.runtime.device import resolve_device
from divcon.runtime.environment import machine
from divcon.runtime.files import atomic_write
from divcon.training.report import EpochReport
from divcon.training.setup import check


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
    clustering: bool = True,
    display: Display | None = None,
    tell: Callable[[str], None] = lambda line: None,
    callbacks: Sequence[str | Callback] | None = None,
) -> Results:
    """Train several arms at the same budget and compare them on the test classes.

    Where there are values to search, each arm has the same number of trials, evaluated on folds of the train classes.
    After the choices of all arms are written to ``choices.json``, each arm trains on all train classes once a seed, and
    is evaluated on the test classes after its epochs; nothing is chosen by these scores.

    Args:
        data: what `divcon.read` returns, or a path or name that it takes. Validation classes count as train classes.
        out: the folder: ``results.json`` (enough to resume), ``choices.json``, ``table.md``,
            ``recall.svg``, ``recall.png``, and the folders of the runs. Trials and runs that it has are not repeated.
        arms: names of `divcon.experiments.ARMS` or of methods, or arms of your own, in the order of the table.
        base: the settings that all arms share. Its method, seed, validation, validation_folds and patience are not
            used; an arm that names no method trains slices. Its ``head_options`` and ``hierarchy`` are those of its
            method: arms of other methods train without them. By its ``select_by`` the trials are compared: recall_at_1,
            or MAP@R; last takes the last epoch of each.
        seeds: of the runs that are compared; the trials use the first.
        space: values to search for every arm: ``{"train": {"lr": [1e-4, 1e-3]}}``. There are no trials where neither
            this nor any arm has values to search.
        trials: number of trials of each arm; the first has the arm's own settings, if they are in its space.
        folds: number of folds of the train classes; each trial trains once for each fold, on all other folds, and is
            evaluated on that fold.
        reference: the arm that the others are compared with; None: single, or else the first.
        keep_models: keep the models and checkpoints of the runs.
        clustering: score each run's chosen epoch, and the pretrained features, by NMI and AMI too.
        tell: called with a line of text before and after each run.
        callbacks: of each run that is compared, as of `divcon.run`; trials have none.

    Returns:
        What ``results.json`` holds: ``settings``, ``environment``, ``trials``, ``choices``, ``runs``, and
        ``untrained``, the scores of the pretrained features.

    Raises:
        ConfigError: an invalid arm, setting, seed or number, or settings that do not go together; before anything is
            trained.
        DataError: too few train classes for the folds, or no test images.
        RunError: ``out`` holds something else, or an ablation of other data, settings or values to search; or every
            trial of an arm failed.
        OutputError, ImageError, NonFiniteError: as in `divcon.run`.
    """
    display = display or NullDisplay()
    check_callbacks(callbacks or ())
    listed = [arm.searching(space or {}) for arm in arms_of(arms)]
    check_numbers(seeds, trials, folds, reference, listed)
    data = as_benchmark(data)
    file = ResultsFile(out)
    base = base or RunConfig()
    listed = [_of_method(arm, base) for arm in listed]
    base, data = _prepared(base, data, display)
    before = file.results["settings"]
    seed = before.get("trial_seed", seeds[0])
    # Where other arms have trials, an arm that is added has them too, if only to choose the number of epochs.
    searched = any(arm.space for arm in listed) or before.get("trials", 0) > 0
    planned = {arm.name: draw_trials(arm, base, trials, seed) if searched else [] for arm in listed}
    benchmarks = folds_of(data, folds, seed) if searched else []
    _check_settings(listed, planned, base, data)
    then = before.get("data", {})
    file.resume(
        {
            "data": {
                "name": data.name,
                "train": then["train"] if data.train.has_fingerprint(then.get("train")) else data.train.fingerprint,
                "split_hash": then["split_hash"] if data.has_split(then.get("split_hash")) else data.split_hash,
                "protocol": data.protocol,
            },
            "base": _recorded(base),
            "arms": {arm.name: arm.to_dict() for arm in listed},
            "seeds": list(seeds),
            "trials": trials if searched else 0,
            "folds": folds if searched else 0,
            "trial_seed": seed,
        }
    )
    total = sum(map(len, planned.values())) * len(benchmarks) + len(seeds) * len(listed)
    ablation = _Ablation(data, base, file, keep_models, clustering, display, tell, total, callbacks)
    for arm in listed:
        if searched and len(planned[arm.name]) < trials:
            tell(f"note: {arm.name} has {len(planned[arm.name])} combinations to try, fewer than `trials` {trials}")
        ablation.choose(arm, planned[arm.name], benchmarks, seed)
    file.write()
    file.write_choices()
    if "untrained" not in file.results:
        file.results["untrained"] = _untrained(base, data, clustering, display)
        file.write()
    for run_seed in seeds:
        for arm in listed:
            ablation.compare(arm, run_seed)
            tabulate(file.out, file.results, [a.name for a in listed], seeds, reference)
    draw(file.out, file.results, [arm.name for arm in listed], seeds, Context(on_warning=display.warn))
    return file.results


def _prepared(base: RunConfig, data: Benchmark, display: Display) -> tuple[RunConfig, Benchmark]:
    """The base and the data of all runs: ``auto`` resolved to a backbone; validation classes in train, and images that
    do not decode left out.

    Raises:
        ConfigError: a base of one learner, or a backbone that does not take the data.
        DataError: no train or no test images.
    """
    if not len(data.query) or not len(data.gallery):
        raise DataError(f"{data.query.source}: there are no test images to compare arms on")
    if not len(data.train):
        raise DataError(f"{data.train.source}: has no train images; it can be evaluated on, not trained on")
    if not base.model.num_learners:  # few images are a reason for one learner, not for an ablation without several
        base = dataclasses.replace(base, model=dataclasses.replace(base.model, num_learners=LEARNERS))
    vector_dim = None if data.train.vectors is None else data.train.vectors.shape[1]
    backbone = resolve_backbone(base.model.backbone, vector_dim, base.model.weights)
    train = data.without_validation().train
    base, _ = fit(base, train.labels, facts_to_choose_by(base.model, train), **sizes_of(backbone))
    closed = {name: base.model.network[name] for name in ("image_size", "fit", "pixel_range")}  # of vectors: unused
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, **closed))
    if base.model.num_learners < 2:
        why = "of `method=single` " if base.model.method == "single" else ""
        raise ConfigError(
            f"`num_learners` {base.model.num_learners} {why}is the base of all arms, and one learner has nothing to "
            "divide; use a base of at least two, whose method is not single",
            field="num_learners",
        )
    if base.data.on_bad_image == "skip":
        splits = ("train", "validation", "query", "gallery")
        data = only_decodable(data, splits, Context(base.train.workers, display.progress, display.warn))
    for note in data.notes:
        display.warn(note)
    # The last epoch of each arm is compared, as it was trained: there are no validation classes to choose by.
    embed = "head" if base.model.embed == "auto" else base.model.embed
    options = base.model.head_options if base.model.method == "slices" else {}  # else its arms have them (`_of_method`)
    base = RunConfig(  # older results may have arms without a method, which trained slices
        dataclasses.replace(base.model, backbone=backbone, method="slices", head_options=options, embed=embed),
        base.train,
        # Images are checked above, once for all runs. All runs have the same epochs.
        dataclasses.replace(base.data, on_bad_image="stop", patience=None, validation_folds=None),
    )
    return base, dataclasses.replace(data.without_validation(), notes=())


def _of_method(arm: Arm, base: RunConfig) -> Arm:
    """The arm with what the base's settings mean for it, where they are of another method or other phases: an arm of
    the base's method has its ``head_options``, and one of another method no hierarchy; one that conquers before the
    base's joint phase starts has none."""
    of_base: dict[str, dict[str, Any]] = {}
    own = arm.settings.get("train", {})
    if arm.settings.get("model", {}).get("method", "slices") != base.model.method:
        of_base["train"] = {"hierarchy": False} if base.train.hierarchy else {}
    elif base.model.head_options and base.model.method != "slices":
        of_base["model"] = {"head_options": base.model.head_options}
    if "finetune_epoch" in own and own["finetune_epoch"] < (base.train.joint_epoch or 0):
        of_base.setdefault("train", {})["joint_epoch"] = own["finetune_epoch"]
    names = [name for name in {**arm.settings, **of_base} if name in arm.settings or of_base[name]]
    settings = {name: {**of_base.get(name, {}), **arm.settings.get(name, {})} for name in names}
    return dataclasses.replace(arm, settings=settings)


def _untrained(base: RunConfig, data: Benchmark, clustering: bool, display: Display) -> dict[str, Any]:
    """The scores on the test classes of the features that the base's backbone has before training, with ``of`` and
    ``per_class``; or ``note``, why there are none."""
    vectors = data.query.vectors
    context = Context(base.train.workers, display.progress, display.warn)
    if vectors is None and not base.model.pretrained and base.model.weights is None:
        return {"note": "no scores of pretrained features: training starts from random weights"}
    options = {**base.model.network, "vector_dim": None if vectors is None else vectors.shape[1]}
    try:
        model = EmbeddingModel(**options).to(resolve_device(base.train.device)).eval()
    except WeightsError as error:
        return {"note": f"no scores of pretrained features: {error}"}
    result = evaluate(with_embedding(model, "features"), data, clustering=clustering, per_query=True, context=context)
    return {"of": starting_weights(model), **_scores_of(result), "per_class": _per_class(result)}


def _scores_of(result: dict[str, Any]) -> dict[str, float]:
    return {score.name: score.value for score in scores_in(result)}


def _per_class(result: dict[str, Any]) -> dict[str, list[float]]:
    """The mean of each score of the queries of each class, in the order of the classes' names, in six digits; ``num``
    has the numbers of queries."""
    each = result["per_query"]
    values = {name: np.array(each[name], np.float64) for name in _scores_of(result) if name in each}
    kept = ~np.isnan(np.array(each["recall_at_1"], np.float64))
    code = np.unique(np.asarray(each["label"])[kept], return_inverse=True)[1]
    num = np.bincount(code)
    means = {name: np.bincount(code, weights=of[kept]) / num for name, of in values.items()}
    return {"num": num.tolist()} | {name: [float(f"{v:.6g}") for v in of] for name, of in means.items()}


def _check_settings(arms: list[Arm], planned: dict[str, list[Settings]], base: RunConfig, data: Benchmark) -> None:
    """Check the settings of all trials and runs before any of them starts.

    Raises:
        ConfigError: settings do not go together; the message names the arm and the trial.
        DataError: too few images or classes.
    """
    models: list[tuple[ModelConfig, EmbeddingModel]] = []
    vector_dim = None if data.train.vectors is None else data.train.vectors.shape[1]
    for arm in arms:
        for settings in planned[arm.name] or [{}]:
            config = config_of(base, arm.settings, settings)
            model = next((model for of, model in models if of == config.model), None)
            try:
                if model is None:
                    options = {**config.model.network, "pretrained": False, "weights": None, "vector_dim": vector_dim}
                    model = EmbeddingModel(**options)
                    models.append((config.model, model))
                check(model, data.train, config.train)
            except ConfigError as error:
                with_these = f" with {settings_text(settings)}" if settings else ""
                raise ConfigError(f"arm {arm.name!r}{with_these}: {error}") from None


def _recorded(base: RunConfig) -> dict[str, Any]:
    """The settings of the base that decide the results, without paths of this machine."""
    tree = base.to_dict()
    for section, names in {
        "model": ("method",),
        "train": ("seed", "workers", "num_threads", "device"),
        "data": ("validation", "validation_fraction", "validation_folds", "patience", "on_bad_image"),
    }.items():
        for name in names:
            del tree[section][name]
    if base.model.weights is not None:
        tree["model"]["weights"] = base.model.weights.name
    return tree


class _Ablation:
    """An ablation in progress: runs its trials, chooses, and runs the choices."""

    def __init__(
        self,
        data: Benchmark,
        base: RunConfig,
        file: ResultsFile,
        keep_models: bool,
        clustering: bool,
        display: Display,
        tell: Callable[[str], None],
        total: int,
        callbacks: Sequence[str | Callback] | None,
    ) -> None:
        self.data = data
        self.base = base
        self.file = file
        self.keep_models = keep_models
        self.clustering = clustering
        self.display = _DisplayOfMany(display)
        self.tell = tell
        self.total = total
        """Runs, with those of trials."""
        self.callbacks = callbacks
        self._number = 0

    def choose(self, arm: Arm, trials: list[Settings], folds: list[Benchmark], seed: int) -> None:
        """Run the arm's trials that are not done yet, and record its choice."""
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
                record = next((r for r in records if all(r[name] == key[name] for name in key)), None)
                if record is None:
                    what = f"trial {number} of {arm.name}" + (f" ({settings_text(settings)})" if settings else "")
                    self.tell(f"run {self._number} of {self.total}: {what}, fold {place}")
                    settings_of_trial = {"train": {"seed": seed}, "data": {"validation": True}}
                    config = config_of(self.base, arm.settings, settings, settings_of_trial)
                    record = {**key, "settings": saved_value(settings), "seed": seed}
                    record |= self._trial(fold, folder, config)
                    self.file.add("trials", record)
                if not self.keep_models:
                    _delete_models(folder)
                curves[-1].append(record["curve"])
        if not trials:
            choices[arm.name] = {"trial": None, "settings": {}, "epochs": self.base.train.epochs, "recall_at_1": None}
            return
        trial, epochs, score = best_trial(curves, self.base.data.select_by)
        if score < 0:
            failed = [record["failed"] for record in records if record["method"] == arm.name and "failed" in record]
            raise RunError(f"{arm.name}: every trial failed; search other values (the first: {failed[0]})")
        choices[arm.name] = {
            "trial": trial,
            "settings": saved_value(trials[trial]),
            "epochs": epochs,
            "recall_at_1": mean_at(curves[trial], epochs - 1, "recall_at_1"),
        }
        self.file.write()

    def _trial(self, fold: Benchmark, folder: Path, config: RunConfig) -> dict[str, Any]:
        try:
            run(fold, folder, config, resume=True, display=self.display, report=False)
        except NonFiniteError as error:  # a learning rate that is too high must not end the ablation
            self.tell(f"  failed: {error}")
            return {"curve": [], "failed": str(error)}
        record = _trial_record(folder)
        self.tell(f"  best Recall@1 {100 * max(point['recall_at_1'] for point in record['curve']):.1f}")
        return record

    def compare(self, arm: Arm, seed: int) -> None:
        """Train the arm's choice on all train classes with one seed, unless it is done."""
        self._number += 1
        runs, choice = self.file.results["runs"], self.file.results["choices"][arm.name]
        folder = self.file.out / "runs" / arm.name / f"seed-{seed}"
        if not any(record["method"] == arm.name and record["seed"] == seed for record in runs):
            self.tell(f"run {self._number} of {self.total}: {arm.name}, seed {seed}")
            settings = {"train": {"seed": seed}, "data": {"validation": False}}
            config = config_of(self.base, arm.settings, choice["settings"], settings)
            observer = _Observer(self.data, folder, config, choice["epochs"] - 1, self.clustering, self.display)
            options: dict[str, Any] = {"observe": observer.observe, "callbacks": self.callbacks}
            run(self.data, folder, config, resume=True, display=self.display, **options)
            record = {
                "method": arm.name,
                "settings": _changes(self.base, config),
                "seed": seed,
                "data": self.data.name,
                "split_hash": self.data.split_hash,
                "protocol": self.data.protocol,
                "machine": machine(),
                **_run_record(folder, observer),
            }
            self.file.add("runs", record)
            self.tell(f"  Recall@1 {100 * record['recall_at_1']:.1f} on the test classes, {record['seconds']:.0f} s")
        if not self.keep_models:
            _delete_models(folder)


def _changes(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The settings of a run that differ from the base, by section."""
    before, after = base.to_dict(), config.to_dict()
    changes = {s: {k: v for k, v in after[s].items() if v != before[s][k]} for s in ("model", "train")}
    changes["model"]["method"] = config.model.method
    changes["train"].pop("seed", None)
    return {section: values for section, values in changes.items() if values}


class _DisplayOfMany(Display):
    """Show many runs on another display: the bar, and each warning once; no line an epoch."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._warned: set[str] = set()

    def begin(self, config: RunConfig, data: Benchmark, epochs_done: int) -> None:
        self._display.begin(config, data, epochs_done)

    def progress(self, progress: Progress) -> None:
        self._display.progress(progress)

    def epoch(self, line: dict[str, Any]) -> None:
        for warning in line["warnings"]:
            self.warn(warning)

    def warn(self, message: str) -> None:
        # Warnings that differ only in numbers, such as the epoch, are the same.
        words = template(message)
        if words not in self._warned:
            self._warned.add(words)
            self._display.warn(message)

    def end(self, out: Path, kept_epoch: int | None) -> None:
        pass


class _Observer:
    """Evaluate a run on the test classes after its epochs; keep the hits of the chosen epoch, and the training images
    that were drawn. Both are saved in the run's folder, for a run that is resumed."""

    NAME = "observed.npz"

    def __init__(
        self,
        data: Benchmark,
        folder: Path,
        config: RunConfig,
        chosen_epoch: int,
        clustering: bool,
        display: Display,
    ) -> None:
        self.chosen_epoch = chosen_epoch
        self._clustering = clustering
        self._data = data
        self._path = folder / self.NAME
        self._config = config
        self._display = display

    def observe(self, model: EmbeddingModel, report: EpochReport) -> dict[str, Any]:
        """Called after an epoch; returns what to write to its line of ``metrics.jsonl``."""
        arrays = self.arrays() if report.number else {"drawn": np.zeros(len(self._data.train), bool)}
        arrays["drawn"][report.drawn] = True
        config, observed = self._config, {}
        last = report.number == config.train.epochs - 1
        if last or (report.number + 1) % config.data.evaluate_every == 0:
            chosen = report.number == self.chosen_epoch
            result = evaluate(
                model,
                self._data,
                clustering=self._clustering and chosen,
                per_query=True,
                baselines=("pooled_features",) if chosen else (),
                context=Context(config.train.workers, self._display.progress).subtask("evaluate", epoch=report.number),
            )
            observed["recall_at_1"] = result["recall_at_1"]
            if chosen:
                observed["pooled_recall_at_1"] = result["baselines"]["pooled_features"]["recall_at_1"]
                observed |= _scores_of(result)
                arrays |= {f"class/{name}": np.array(of) for name, of in _per_class(result).items()}
                hits = result["per_query"]["recall_at_1"]
                kept = [i for i, hit in enumerate(hits) if hit is not None]
                arrays["hits"] = np.array([hits[i] for i in kept], np.int64)
                arrays["classes"] = self._data.query.labels[kept]
        with atomic_write(self._path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        return observed

    def arrays(self) -> dict[str, np.ndarray]:
        """``drawn`` (N,) bool, the training images drawn so far; ``hits`` (Q,) int64 0 or 1 and ``classes`` (Q,) int64
        of the queries that have a match, and ``class/NAME`` (C,) as of `_per_class`, once the chosen epoch is done."""
        with np.load(self._path) as file:
            return {name: file[name] for name in file.files}


def _trial_record(folder: Path) -> dict[str, Any]:
    """The curve of a trial on the validation classes of its fold, and its seconds."""
    lines = RunFolder(folder).lines()
    validated = [line for line in lines if "validation" in line]
    names = ("recall_at_1", "map_at_r")
    curve = [{"epoch": line["epoch"], **{name: line["validation"][name] for name in names}} for line in validated]
    return {"curve": curve, "seconds": sum(map(_seconds, lines))}


def _run_record(folder: Path, observer: _Observer) -> dict[str, Any]:
    """The cost and the scores of a run; its seconds are those of training and dividing."""
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
    arrays = observer.arrays()
    chosen = next(line["observed"] for line in lines if line["epoch"] == observer.chosen_epoch)
    pooled = chosen.get("pooled_recall_at_1")  # a run that was resumed may have passed the epoch before this was kept
    per_class = {name.removeprefix("class/"): of.tolist() for name, of in arrays.items() if name.startswith("class/")}
    scores = {name: value for name, value in chosen.items() if name != "pooled_recall_at_1"}
    return {
        **({} if pooled is None else {"pooled_recall_at_1": pooled}),
        **({"scores": scores, "per_class": per_class} if per_class else {}),
        "batches": sum(line["batches"] for line in lines),
        "images_seen": int(images[-1]),
        "distinct_images_seen": int(arrays["drawn"].sum()),
        "seconds": float(seconds[-1]),
        "seconds_dividing": sum(line["seconds_dividing"] for line in lines),
        "kept_pairs": [line["kept_pairs"] for line in lines if line["redivided"] and len(line["sizes"]) > 1],
        "epochs": observer.chosen_epoch + 1,
        "recall_at_1": chosen["recall_at_1"],
        "recall_at_1_last": curve[-1]["recall_at_1"],
        "curve": curve,
        "hits": arrays["hits"].tolist(),
        "classes": arrays["classes"].tolist(),
    }


def _seconds(line: dict[str, Any]) -> float:
    return line["seconds_dividing"] + line["seconds_training"]


def _delete_models(folder: Path) -> None:
    """Delete the model and the checkpoints of a run that is recorded, which take most of its space."""
    run = RunFolder(folder)
    for path in (run.model, run.last, run.checkpoint, run.previous, folder / _Observer.NAME):
        with contextlib.suppress(OSError):
            removed(path)
