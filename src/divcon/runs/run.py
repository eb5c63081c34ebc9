"""A run: train a model, evaluate it on validation classes after each epoch, and keep the best, in a folder."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from divcon.config.fields import doors
from divcon.config.from_data import fit, fit_data, with_choices_of
from divcon.config.settings import SECTION_OF, SECTIONS, SPLITTING, DataConfig, ModelConfig, RunConfig
from divcon.data.benchmark import Benchmark, folds_of
from divcon.data.inputs import as_benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import only_decodable, worker_death
from divcon.data.read import is_dataset_name, read, splitting_for
from divcon.data.shapes import facts_to_choose_by
from divcon.errors import ConfigError, DataError, RunError, Stopped, WeightsError
from divcon.evaluation.protocol import chosen_threshold, evaluate
from divcon.evaluation.subspaces import MAX_MONITORED, learner_similarity, sample_of
from divcon.evaluation.threshold import forget_threshold, read_threshold, write_threshold
from divcon.evaluation.threshold import in_words as in_words_of
from divcon.models import EmbeddingModel, can_start_as_pca, start_as_pca
from divcon.models.backbone import resolve_backbone, sizes_of
from divcon.models.embedding_model import model_of_main, own_backbone, own_transform
from divcon.models.folder import read_config
from divcon.models.pruning import embedding_head
from divcon.models.sources import is_sourced, read_source
from divcon.runs import selection
from divcon.runs.callbacks import Callback, Callbacks, check_callbacks, names_kept
from divcon.runs.display import Display, NullDisplay
from divcon.runs.embedding import (
    check_embedding,
    choose_embedding,
    finish_replacing,
    forget_record,
    in_words,
    read_record,
    save_with_record,
)
from divcon.runs.folder import RunFolder, kept_epoch, trained_model
from divcon.runs.like import check_like, settings_like
from divcon.runs.notes import learners_are_one
from divcon.runs.report import write_report
from divcon.runs.trackers import created
from divcon.runtime.context import Context
from divcon.runtime.copies import send_rest
from divcon.runtime.device import resolve_device, torch_threads
from divcon.runtime.distributed import ProcessGroup
from divcon.runtime.environment import not_repeatable
from divcon.runtime.exchange import check_alike, from_main
from divcon.runtime.importing import Trust
from divcon.runtime.launch import begun_before_restart, current_group, join, launch, note_begun
from divcon.runtime.launchers import is_first, started_size
from divcon.runtime.lock import FolderLock
from divcon.runtime.places import absolute, exists_here, place
from divcon.runtime.signals import SignalHandler
from divcon.training.checkpoint import weights_in
from divcon.training.checkpoint_file import read_checkpoint
from divcon.training.loop import train
from divcon.training.report import EpochReport
from divcon.training.schedule import difference_until
from divcon.training.setup import on_started_group

Observe = Callable[[EmbeddingModel, EpochReport], dict[str, Any]]

HEAD_SETTINGS = ("method", "embedding_dim", "num_learners", "head_options", "pooling")
"""The settings that two models share where one can take the head of the other."""


def run(
    data: Any,
    out: str | Path,
    config: RunConfig | None = None,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    source: dict[str, Any] | None = None,
    display: Display | None = None,
    observe: Observe | None = None,
    report: bool = True,
    trust: Trust = (),
    like: str | Path | None = None,
    callbacks: Sequence[str | Callback] | None = None,
) -> EmbeddingModel:
    """Train a model on a benchmark's train classes, in a run folder (see `divcon.runs.folder`).

    The run keeps the model of the epoch that is best on validation classes (see ``select_by`` of `divcon.DataConfig`);
    without validation classes, that of the last epoch. The model of the last epoch is saved in ``last`` too. It never
    uses the test classes.
    In the end both embed by what ``config.model.embed`` says (see `divcon.runs.embedding.choose_embedding`).

    Args:
        data: what `divcon.read` returns, or takes: a path or name, a data frame, a Dataset ...
        out: the run folder.
        resume: continue the run in ``out``; start it where no epoch is done yet. With more ``epochs`` than the run had
            it is made longer, where its schedule allows that; phases that began at the default begin where they did.
        init: the folder of a run or model whose weights to start from: of a run, the model that it has saved, or the
            one in its checkpoint where it has saved none yet.
        source: what the data was read from, for ``config.json``; None: ``data``, where that is a path or name.
        observe: called with the model after each epoch. What it returns is written to the epoch's line of
            ``metrics.jsonl`` as ``observed``, and its time counts as ``seconds_evaluating``; nothing is chosen by it.
            An epoch that was interrupted is observed again.
        report: write ``report.html`` at the end (see `divcon.report`). If that fails, it is a warning.
        trust: modules of your own that ``init`` may import code from (see `divcon.EmbeddingModel.load`).
        like: the folder of a complete run: train a model for use, on all classes, those of test and validation too,
            with that run's settings (or ``config``'s, where passed) and with as many batches as its kept epoch had
            seen; see `divcon.runs.like.settings_like`. The model has no test score of its own.
        callbacks: called as the run goes on: the names of trackers (tensorboard, wandb, mlflow, trackio), and objects
            of `divcon.runs.callbacks.Callback`. None: the trackers that a run which is resumed has, or none.

    Returns:
        The model that is kept, in evaluation mode.

    Raises:
        Stopped: SIGINT or SIGTERM arrived; the last finished batch is saved. A second SIGINT raises KeyboardInterrupt
            at once, and what is on disk is complete all the same.
        RunError: ``out`` holds a run already, or one of other settings or data; or another process trains it; or the
            run cannot have another number of epochs, as what is done would not be the same.
        ConfigError: settings do not go together, or not with the data: a backbone of images for vectors, say.
        OutputError: ``out`` cannot be written.
        DataError, ImageError: as in `divcon.train`; the last finished batch is saved, or with several processes what
            the checkpoint holds.
        WorkerError: a process that decodes images or trains was killed; what the checkpoint holds stays.
        NonFiniteError: as in `divcon.train`; what the checkpoint holds stays.
    """
    display = display or NullDisplay()
    with join() as group:
        return _run(data, out, config, resume, init, source, display, observe, report, trust, like, callbacks, group)


def _run(
    data: Any,
    out: str | Path,
    config: RunConfig | None,
    resume: bool,
    init: str | Path | None,
    source: dict[str, Any] | None,
    display: Display,
    observe: Observe | None,
    report: bool,
    trust: Trust,
    like: str | Path | None,
    callbacks: Sequence[str | Callback] | None,
    group: ProcessGroup,
) -> EmbeddingModel:
    """As `run`, by a rank of the group that a launcher has started; rank 0 alone uses the folders."""
    length = ""
    asked = config or from_main(group, lambda: _config_of(like)) or RunConfig()
    options = splitting_for(data, asked.data.splitting) if isinstance(data, (str, os.PathLike)) else {}
    context = Context(asked.train.workers, display.progress, display.warn)
    # A value that is no set has a test too: `read` splits its classes.
    own = isinstance(data, (Benchmark, LabeledSet))
    benchmark = as_benchmark(data) if own else read(data, context=context, **options)
    if like is not None:
        check_like(config or RunConfig(data=DataConfig(train_on="all")), like)
        if config is None:
            run_like, all_of = like, benchmark
            config, length = from_main(group, lambda: settings_like(run_like, all_of))
    config = _with_splitting(config or asked, benchmark)
    folder = RunFolder(out)
    restarted = group.is_main and not resume and begun_before_restart(folder.path)
    resume = from_main(group, lambda: resume or restarted)
    goes_on = from_main(group, lambda: resume and folder.checkpoint.exists())
    config = dataclasses.replace(config, train=on_started_group(config.train, resumed=goes_on))
    if source is None and isinstance(data, (str, os.PathLike)):
        source = source_of(data) | {"fingerprint": benchmark.train_fingerprint}
    if callbacks is None:
        callbacks = names_kept(folder.path) if resume and group.is_main else ()
    check_callbacks(callbacks)
    if group.is_main:
        folder.check_usable()
    like = None if like is None else place(like)
    job = _Job(benchmark, folder.path, config, resume, init, trust, source, display, observe, report, like=like)
    job = dataclasses.replace(job, callbacks=tuple(callbacks))
    if length:
        display.warn(length)
    return _start(job)


def _start(job: _Job) -> EmbeddingModel:
    """Lock the folder, train the folds if there are any, launch the processes, and train."""
    folder, config, options = RunFolder(job.out), job.config, job.config.train
    device = resolve_device(options.device)
    try:
        with ExitStack() as stack:
            if is_first():
                lock = stack.enter_context(FolderLock(folder.path, "training it", RunError))
                for message in folder.recover(lock):
                    job.display.warn(message)
                for saved in (folder.model, folder.last):
                    finish_replacing(saved)
                send_rest(folder.path)
            if config.data.validation_folds is not None:
                job = dataclasses.replace(job, over_folds=_train_folds(job, config.data.validation_folds))
            stack.enter_context(torch_threads(options.num_threads, options.num_devices))
            joined = launch(options.num_devices, options.across, device, _train_in_worker, job.for_worker())
            group = stack.enter_context(joined)
            stop = stack.enter_context(SignalHandler())
            return _Run(job if group.is_main else job.for_worker(), group, stop).train()
    except RuntimeError as error:  # PyTorch reports a killed worker wherever the main process is
        raise worker_death(error) or error from None


def source_of(data: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Where data was read from, for ``config.json``; a path is absolute, so that it works in any working directory."""
    name = os.fspath(data)
    if not is_dataset_name(name) and exists_here(name):
        name = str(Path(name).absolute())
    return {"data": name, "root": None if root is None else absolute(root)}


def _config_of(like: str | Path | None) -> RunConfig | None:
    """The settings of the run in a folder; None where there is none, which is reported later."""
    saved = None if like is None else RunFolder(like).read()
    return None if saved is None else saved[0]


def _with_splitting(config: RunConfig, data: Benchmark) -> RunConfig:
    """The settings, with those of the split as the benchmark was read.

    Raises:
        ConfigError: they say that it is split in another way.
    """
    for name, default in SPLITTING.items():
        asked = getattr(config.data, name)
        if name == "test_fraction" and name not in data.splitting and asked is None:
            continue  # as all runs of earlier versions have it, those on data with a split too
        if asked not in (default, was := data.splitting.get(name, default)):
            raise ConfigError(
                f"`{name}={asked}`: the data was read with `{name}={was}`; pass `{name}` to divcon.read, or pass the "
                "path of the data in place of what was read",
                field=name,
            )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data.splitting))


@dataclass(frozen=True)
class _Plan:
    """What rank 0 knows from the run's folder before training."""

    config: RunConfig
    """Resolved; settings that are objects of the user's own are the rank's own."""
    epochs_done: int
    has_checkpoint: bool
    init: str | Path | None


@dataclass(frozen=True)
class _Job:
    """The arguments of a run."""

    data: Benchmark
    out: Path
    config: RunConfig
    resume: bool
    init: str | Path | None
    trust: Trust
    # Only rank 0 uses the fields below.
    source: dict[str, Any] | None = None
    display: Display = field(default_factory=NullDisplay)
    observe: Observe | None = None
    report: bool = False
    over_folds: dict[str, Any] | None = None
    """What `divcon.runs.selection.select_over_folds` returned; None without folds."""
    is_fold: bool = False
    """Whether the run is of a fold, in which no epoch is chosen."""
    like: Path | None = None
    """The run whose settings and length it has."""
    callbacks: Sequence[str | Callback] = ()

    def plan(self, folder: RunFolder, group: ProcessGroup, data: Benchmark) -> _Plan:
        """The plan that rank 0 makes, for all ranks.

        Args:
            data: what the run in the folder must have been trained on.

        Raises:
            RunError: as `RunFolder.check`.
        """
        own: list[_Plan] = []

        def made() -> _Plan:
            config = self.config_for(folder)
            done = folder.check(config, data, self.resume)
            own.append(_Plan(config, done, folder.checkpoint.exists(), self.init_for(folder)))
            defaults = RunConfig(**{name: type(getattr(config, name))() for name in SECTIONS})
            return dataclasses.replace(own[0], config=_with_plain(config, defaults))

        sent = from_main(group, made)
        return own[0] if own else dataclasses.replace(sent, config=_with_plain(sent.config, self.config))

    def config_for(self, folder: RunFolder) -> RunConfig:
        """The settings, with the backbone resolved, those left at 0 chosen from the data (or as the run that is resumed
        has them), and the phases of a run that is made longer."""
        vectors = self.data.train.vectors
        vector_dim = None if vectors is None else vectors.shape[1]
        backbone = resolve_backbone(self.config.model.backbone, vector_dim, self.config.model.weights)
        model = dataclasses.replace(self.config.model, backbone=backbone)
        config = dataclasses.replace(self.config, model=model)
        saved = folder.read() if self.resume and folder.checkpoint.exists() else None
        if saved is not None:
            then = saved[0].train.learners_per_step
            if config.train.learners_per_step == started_size() and then is not None and started_size():
                # The default of a group of this size, where the run was begun by another.
                train = dataclasses.replace(config.train, learners_per_step=None, devices=1)
                train = dataclasses.replace(train, learners_per_step=then)
                train = on_started_group(train, resumed=True)
                config = dataclasses.replace(config, train=train)
            return folder.settled(with_choices_of(config, saved[0]))
        data, held_out = fit_data(config.data, len(self.data.train))
        config = dataclasses.replace(config, data=data)
        train = _split(self.data, config).train
        facts = facts_to_choose_by(config.model, train)
        config, reasons = fit(config, train.labels, facts, **sizes_of(backbone))
        if config.data.validation and config.data.validation_folds is None and self.data.validation is None:
            reasons |= held_out
        if reasons and not self.is_fold and self.over_folds is None:
            values = {name: config.to_dict()[SECTION_OF[name]][name] for name in reasons}
            self.display.chosen({name: (value, reasons[name]) for name, value in values.items()})
        return folder.settled(config)

    def init_for(self, folder: RunFolder) -> str | Path | None:
        """``init``, or that of the run that is resumed."""
        saved = folder.read()
        return self.init or (saved[1].get("init") if self.resume and saved is not None else None)

    def for_worker(self) -> _Job:
        """The arguments that ranks other than 0 need; they can be pickled."""
        return _Job(self.data, self.out, self.config, self.resume, self.init, self.trust)


def _train_folds(job: _Job, count: int) -> dict[str, Any]:
    """Train a run for each fold of the train classes, or resume it, and choose the epoch that is best over them.

    Returns:
        What `divcon.runs.selection.select_over_folds` returns.
    """
    folder, warn, group = RunFolder(job.out), job.display.warn, current_group()
    if not len(job.data.train):
        raise DataError(f"{job.data.train.source}: has no train images; it can be evaluated on, not trained on")
    data = job.data.without_validation()
    plan = job.plan(folder, group, data)
    config, init = plan.config, plan.init
    folds = folds_of(data, count, config.train.seed, "validation_folds")
    if group.is_main:
        folder.begin(config, data, job.source, None if init is None else place(init))  # so that it can be resumed
        note_begun(folder.path)
    if not plan.has_checkpoint:
        warn(
            f"cross-validation over {count} folds of the train classes: {count + 1} trainings of {config.train.epochs} "
            "epochs, the last of them on all train classes"
        )
    of_fold = dataclasses.replace(config, data=dataclasses.replace(config.data, validation_folds=None))
    lines = []
    for number, fold in enumerate(folds):
        out = folder.folds / str(number)
        warn(f"fold {number} of 0-{count - 1}, in {out}")
        options: dict[str, Any] = {"data": fold, "out": out, "config": of_fold, "resume": True, "init": init}
        _start(dataclasses.replace(job, **options, observe=None, report=False, is_fold=True, callbacks=()))
        lines.append(from_main(group, RunFolder(out).lines))
    chosen = selection.select_over_folds(lines, config)
    if group.is_main:
        folder.write_selection_over_folds(chosen)
    warn(f"all folds are trained: epoch {chosen['epoch']} will be kept ({selection.reason([], config, chosen)})")
    return chosen


def _train_in_worker(group: ProcessGroup, job: _Job) -> None:
    with SignalHandler() as stop:
        _Run(job, group, stop).train()


class _Run:
    """A run in progress, in one of its processes. Only rank 0 writes to the folder."""

    def __init__(self, job: _Job, group: ProcessGroup, stop: SignalHandler) -> None:
        self.job, self.group, self.stop = job, group, stop
        self.folder, self.display = RunFolder(job.out), job.display
        self.warnings: list[str] = []
        self.callbacks = Callbacks(created(job.callbacks, self._warn))
        self.lines: list[dict[str, Any]] = []
        """Of ``metrics.jsonl``."""
        self.trained = False
        """Whether any epoch was trained by this process, after those that a resumed run had."""
        self.kept_is_lost = False
        """Whether ``model`` may be that of an epoch whose line was dropped, so that the next one replaces it."""
        self.context = Context(job.config.train.workers, job.display.progress, self._warn, group)

    def train(self) -> EmbeddingModel:
        """Train, evaluate and save each epoch, and return the model that is kept."""
        try:
            return self._train()
        except BaseException as error:
            self.callbacks.on_stop(error)
            raise

    def _train(self) -> EmbeddingModel:
        epochs = self._prepare()
        if self._ends_early():
            epochs.close()
            weights = from_main(self.group, lambda: weights_in(read_checkpoint(self.folder.checkpoint)))
            self.model.load_state_dict(weights)
        for epoch in epochs:
            try:
                self._end_epoch(epoch)
                self.trained = True
                ends = self._ends_early()
            except (Exception, Stopped) as error:
                epochs.throw(worker_death(error) or error)  # so that the loop saves a checkpoint
            else:
                if ends:
                    with suppress(StopIteration):
                        epochs.send(True)
                    break
        self._choose_embedding(self.folder.model)
        if self.group.is_main:
            self._save_last()
        self._choose_embedding(self.folder.last)
        model = self._load_for_all(self.folder.model)
        if self.group.is_main:
            self._finish(model)
        return model

    def _load(self, folder: Path) -> EmbeddingModel:
        return EmbeddingModel.load(folder, device=self.model.device, **self._own)

    def _load_for_all(self, folder: Path) -> EmbeddingModel:
        return model_of_main(self.group, lambda: self._load(folder), device=self.model.device, **self._own)

    @property
    def _own(self) -> Any:
        return {"backbone": own_backbone(self.model), "eval_transform": own_transform(self.model)}

    def _choose_embedding(self, folder: Path) -> None:
        """Give the model in a folder the embedding that ``embed`` says, unless it has it already."""
        embed = self.config.model.embed
        if embed == "head" or from_main(self.group, lambda: read_record(folder) is not None):
            return
        model, record = choose_embedding(
            self._load_for_all(folder),
            self.data.train,
            self.data.validation_task,
            embed,
            **self._budget,
            context=self.context.subtask("evaluate", epoch=selection.last_epoch(self.config)),
        )
        if self.group.is_main:
            save_with_record(model, folder, record)
            if folder == self.folder.model:
                self.display.embedding(in_words(record))

    def _prepare(self) -> Any:
        """Check all arguments, then write ``config.json``, and return the epochs."""
        job, folder = self.job, self.folder
        if not len(job.data.train):
            raise DataError(f"{job.data.train.source}: has no train images; it can be evaluated on, not trained on")
        vectors = job.data.train.vectors
        vector_dim = None if vectors is None else vectors.shape[1]
        plan = job.plan(folder, self.group, job.data)
        self.config = config = plan.config
        epochs_done, init = plan.epochs_done, plan.init
        saved = folder.read() if self.group.is_main else None
        record = saved[1] if saved is not None else {}
        self.like = job.like or (place(record["like"]) if job.resume and record.get("like") else None)
        self.data = _with_validation(job.data, config, self.context)
        if not self.group.alone:
            advice = "each machine needs the same data: a copy of its own, or a shared folder"
            check_alike(self.group, self.data.name, f"{self.data.train_fingerprint} {self.data.split_hash}", advice)
        torch.manual_seed(config.train.seed)
        self.model, new_head = _initial_model(
            config.model, vector_dim, init, job.trust, epochs_done, self.context, folder
        )
        check_embedding(config.model, self.model, self.data.train)
        epochs = train(  # checks its arguments now
            self.model,
            self.data.train,
            config.train,
            checkpoint=folder.checkpoint,
            stop=self.stop,
            context=self.context,
        )
        device = resolve_device(config.train.device)
        for message in not_repeatable(device, record if saved is not None and epochs_done else None):
            self._warn(message)
        starts = config.model.head_init == "pca" or (
            config.model.head_init == "auto" and can_start_as_pca(self.model, self.data.train)
        )
        if starts and new_head and not plan.has_checkpoint:
            self.model.to(device)
            start_as_pca(self.model, self.data.train, seed=config.train.seed, context=self.context)
        if self.data.for_use:
            self._warn(
                "trained on all classes, those of test too, without validation: this model has no test score of its own"
                + (f"; {self.like} has that of its settings" if self.like else " (`like` takes a validated length)")
            )
        if self.group.is_main:
            folder.begin(config, self.data, job.source, None if init is None else place(init), self.like)
            note_begun(folder.path)
            kept = kept_epoch(folder.lines())
            self.lines = folder.drop_lines_from(epochs_done)
            self.kept_is_lost = kept is not None and kept_epoch(self.lines) != kept
        self.display.begin(self._shown(epochs_done), self.data, epochs_done)
        self.callbacks.on_start(folder.path, config, self.data, self.lines)
        if epochs_done >= config.train.epochs and not job.is_fold:
            self.display.warn(_how_to_train_on(config))
        return epochs

    def _shown(self, epochs_done: int) -> RunConfig:
        """The settings to show: of a run that has ended early, with the epochs that it has."""
        if not (self.group.is_main and selection.ended_early(self.lines, self.config)):
            return self.config
        phase = self.config.train.phase_starts[1]
        train = dataclasses.replace(self.config.train, epochs=epochs_done, finetune_epoch=phase)
        return dataclasses.replace(self.config, train=train)

    def _ends_early(self) -> bool:
        """Whether the run ends now; the same on all ranks, of which only rank 0 has the lines."""
        if self.config.data.patience is None and self.config.data.end_epoch is None:
            return False
        ends = selection.ended_early(self.lines, self.config)
        return bool(self.group.broadcast(np.array([ends], np.int64))[0])

    def _end_epoch(self, epoch: EpochReport) -> None:
        """Evaluate the epoch, keep its model where it is the best, and write its line."""
        line = epoch.to_dict()
        last = epoch.number == selection.last_epoch(self.config)
        started = time.perf_counter()
        validation = self.data.validation_task
        due = last or (epoch.number + 1) % self.config.data.evaluate_every == 0
        within = self.context.subtask("evaluate", epoch=epoch.number)
        if validation is not None and due:
            line["validation"] = evaluate(
                self._evaluated, validation, clustering=False, similarity=True, context=within, **self._budget
            )
        if not self.group.is_main:
            return
        if validation is not None and due:
            line["learner_similarity"] = line["validation"].pop("learner_similarity")
        elif due and self.model.num_learners > 1:
            with torch.random.fork_rng(devices=[]):  # without validation nothing else draws here
                features = self.model.features(self._monitored, context=within.alone().silent())
            line["learner_similarity"] = learner_similarity(self.model, features)
        if epoch.redivided:
            epoch.division.save(self.folder.division(epoch.number))
        if self.job.observe is not None:
            line["observed"] = self.job.observe(self._evaluated, epoch)
        line["seconds_evaluating"] = time.perf_counter() - started
        line["kept"] = self._is_kept(line)
        # Both before the checkpoint, which is saved when the loop goes on. A stop in between repeats this epoch; its
        # line is then dropped and written again. The line comes first, so that it says which epoch `model` may be of.
        self.folder.append(line)
        self.lines.append(line)
        if line["kept"]:
            forget_record(self.folder.model)
            forget_threshold(self.folder.model)
            self.model.save(self.folder.model)
        self.display.epoch(line)
        if epoch.redivided:
            self.callbacks.on_division(epoch.number, epoch.division)
        self.callbacks.on_epoch(line, self._evaluated)

    def _is_kept(self, line: dict[str, Any]) -> bool:
        if self.job.over_folds is not None:
            return line["epoch"] == self.job.over_folds["epoch"]
        if self.data.validation is None:
            return line["epoch"] == selection.last_epoch(self.config)
        lost = self.kept_is_lost and "validation" in line
        self.kept_is_lost = self.kept_is_lost and not lost
        return lost or selection.is_better(line, self.lines, self.config)

    @property
    def _budget(self) -> dict[str, Any]:
        """The validation queries that are searched for: the same in each evaluation."""
        return {"max_queries": self.config.data.validation_queries or None, "seed": self.config.train.seed}

    @property
    def _evaluated(self) -> EmbeddingModel:
        """The model that an epoch is evaluated by: the one in training, or its pooled features where the finished model
        will embed by them."""
        if self.config.model.embed != "features":
            return self.model
        return self.model.with_head(embedding_head(self.model, "features"), shared=True)

    def _save_last(self) -> None:
        """Save the model of the last epoch, unless that was done before (a finished run that is resumed)."""
        folder, line = self.folder.last, self.lines[-1]
        if not self.trained and (folder / "config.json").exists():
            return
        self.folder.write_origin(folder, last_epoch={"epoch": line["epoch"], "validation": line.get("validation")})
        record = read_record(self.folder.model)
        if record is not None and kept_epoch(self.lines) == line["epoch"]:
            forget_threshold(folder)
            save_with_record(self._load(self.folder.model), folder, record)  # chosen once, for both
            return
        forget_record(folder)
        forget_threshold(folder)
        self.model.save(folder)

    @cached_property
    def _monitored(self) -> LabeledSet:
        """Train images on which learners are compared where there are no validation classes."""
        return sample_of(self.data.train, MAX_MONITORED)

    def _finish(self, model: EmbeddingModel) -> None:
        folder, last = self.folder, self.lines[-1]["epoch"]
        folder.previous.unlink(missing_ok=True)
        kept = kept_epoch(self.lines)
        if selection.ended_by_patience(self.lines, self.config):
            self.display.warn(selection.patience_note(self.lines, self.config))
        if not self.job.is_fold:
            for message in selection.notes(self.lines, self.config, self.job.over_folds):
                self.display.warn(message)  # the report has them of its own
        within = self.context.alone().subtask("evaluate", epoch=last)
        if (note := learners_are_one(self.config.model, self.lines, kept)) is not None:
            self.display.warn(note)  # the report has it of its own
        threshold = None
        if (validation := self.data.validation_task) is not None and not self.job.is_fold:
            try:
                threshold = self._compare_with_baselines(model, validation, kept, within)
            except Exception as error:  # the run is done, and nothing that fails from here on may lose it
                self.display.warn(f"the kept model was not compared with untrained features ({error!r})")
        if not self.job.is_fold:
            try:
                self._choose_thresholds(threshold, within)
            except Exception as error:
                self.display.warn(f"no threshold was chosen ({error!r})")
        if self.job.report:
            try:
                write_report(folder, self.data, model, notes=[*self.data.notes, *self.warnings], context=within)
            except Exception as error:
                self.display.warn(
                    f"no report was written ({error!r}); the run is complete. Try: {folder.command('report')}"
                )
        self.callbacks.on_end(model, kept)
        self.display.end(folder.path, kept)

    def _compare_with_baselines(
        self, model: EmbeddingModel, validation: LabeledSet | Benchmark, kept: int | None, context: Context
    ) -> dict[str, Any] | None:
        """Score the kept model's pooled features, and those of the network before training, on the validation classes.
        Returns the kept model's threshold, from the same embeddings; None where there are too few classes."""
        options: dict[str, Any] = {"clustering": False, "baselines": True, "threshold": "best", "context": context}
        options |= self._budget
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of downloading weights were shown when the run started
            scores = {"epoch": kept, **evaluate(model, validation, **options)}
        threshold = scores.pop("threshold", None)
        self.folder.write_baselines(scores)
        self.display.baselines(scores)
        self.callbacks.on_baselines(scores)
        for advice in scores.get("advice", []):
            self.display.warn(advice)
        return threshold

    def _choose_thresholds(self, of_kept: dict[str, Any] | None, context: Context) -> None:
        """Choose the similarity from which on a neighbour counts as known, of the kept and of the last model, on the
        validation classes; a model for use has that of the run that it is like."""
        task, kept = self.data.validation_task, kept_epoch(self.lines)
        for folder in (self.folder.model, self.folder.last):
            if read_threshold(folder) is not None:
                continue
            record = None
            if task is not None:
                if folder == self.folder.model:
                    scores = of_kept
                elif kept == self.lines[-1]["epoch"]:
                    scores = read_threshold(self.folder.model)
                else:
                    scores = None
                scores = scores or chosen_threshold(self._load(folder), task, context=context, **self._budget)
                record = None if scores is None else scores | {"chosen_on": "validation"}
            elif self.like is not None and (of_run := read_threshold(self.like)) is not None:
                record = of_run | {"of_run": str(self.like)}
            if record is None:
                return
            write_threshold(folder, record)
            if folder == self.folder.model:
                where = "on validation" if task is not None else f"of {self.like}"
                self.display.threshold(f"{in_words_of(record)} ({where})")

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.display.warn(message)
        self.callbacks.on_warning(message)


def _how_to_train_on(config: RunConfig) -> str:
    """How to train on from a run of which all epochs are done."""
    train = config.train
    pinned = dataclasses.replace(train, finetune_epoch=train.phase_starts[1])
    longer = dataclasses.replace(pinned, epochs=2 * train.epochs)
    fixed = config.data.validation_folds is not None
    if fixed or difference_until(train.epochs, pinned, longer, config.model.num_learners):
        why = "folds have chosen its epoch" if fixed else "its learning rates depend on `epochs`"
        return f"all {train.epochs} epochs are done; to train on, start another run from this model (`init`), as {why}"
    return f"all {train.epochs} epochs are done; to train longer, resume with more `epochs`"


def _with_validation(data: Benchmark, config: RunConfig, context: Context) -> Benchmark:
    """The benchmark with validation classes, or with all of them in train; without images that do not decode."""
    skip = config.data.on_bad_image == "skip"
    if skip and config.data.train_on != "all":
        data = only_decodable(data, ("train", "validation"), context)
    data = _split(data, config)
    return only_decodable(data, ("train",), context) if skip and data.for_use else data


def _split(data: Benchmark, config: RunConfig) -> Benchmark:
    if config.data.train_on == "all":
        return data.on_all()
    if config.data.validation and config.data.validation_folds is None:
        return data.with_validation(config.data.validation_fraction, config.train.seed)
    return data.without_validation()


def _initial_model(
    config: ModelConfig,
    vector_dim: int | None,
    init: str | Path | None,
    trust: Trust,
    epochs_done: int,
    context: Context,
    folder: RunFolder,
) -> tuple[EmbeddingModel, bool]:
    """The model before training, and whether its head has new weights; a resumed run takes all weights from the
    checkpoint."""
    group = context.group
    options = {**config.network, "vector_dim": vector_dim}
    if is_sourced(config.backbone):
        options["backbone_config"] = from_main(group, lambda: _backbone_config(config.backbone, folder))
    if epochs_done or init is not None or not group.is_main:
        options |= {"pretrained": False, "weights": None}
    model = EmbeddingModel(**options)
    new_head = True
    if init is not None and not epochs_done and group.is_main:
        new_head = _start_from(model, config, init, trust, context)
    if not group.alone:  # rank 0 alone has read weights
        new_head, frozen, weights = from_main(group, lambda: (new_head, model.freeze_batch_norm, model.state_dict()))
        model.freeze_batch_norm = frozen
        model.load_state_dict(weights)
    return model, new_head


def _backbone_config(name: str, folder: RunFolder) -> dict[str, Any]:
    """What creates a backbone of the hub: as the run has it already, or as the hub has it now."""
    with suppress(WeightsError):
        if (known := read_config(folder.model).get("backbone_config")) is not None:
            return known
    return read_source(name)


def _start_from(model: EmbeddingModel, config: ModelConfig, init: str | Path, trust: Trust, context: Context) -> bool:
    """Start from the weights of the model in ``init``. Returns whether the head has new weights."""
    own: Any = {"backbone": copy.deepcopy(own_backbone(model)), "eval_transform": own_transform(model)}
    new_head = not model.warm_start(trained_model(init, trust=trust, **own))
    if new_head:
        context.warn(
            "the head starts from new weights: `method`, `embedding_dim`, `num_learners` and `pooling` are not all "
            f"those of {init}"
        )
    elif config.head_init == "pca":
        context.warn(f"`head_init=pca` has no effect: the head starts from the weights of {init}")
    return new_head


def _with_plain(config: RunConfig, own: RunConfig) -> RunConfig:
    """The settings, but for objects of the user's own, which are those of ``own``: other ranks have made theirs."""
    sections = {}
    for section in SECTIONS:
        mine, theirs = getattr(own, section), getattr(config, section)
        values = {name: getattr(mine, name) for name in doors(type(theirs)) if not _is_plain(getattr(theirs, name))}
        sections[section] = dataclasses.replace(theirs, **values)
    return RunConfig(**sections)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return (
        all(map(_is_plain, value))
        if isinstance(value, (tuple, list))
        else isinstance(value, (str, int, float, type(None)))
    )


def model_settings(init: str | Path) -> dict[str, Any]:
    """The settings of `divcon.ModelConfig` of the model in ``init``, the folder of a run or model.

    Raises:
        WeightsError: there is no model, or it is damaged.
    """
    model = trained_model(init)
    config = model.config | model.head.trained.config
    if "of" in config["head_options"]:  # a head that pruning derived: a new run starts with a new head
        config = {name: value for name, value in config.items() if name not in HEAD_SETTINGS or name == "pooling"}
    return {f.name: config[f.name] for f in dataclasses.fields(ModelConfig) if f.name in config}
