"""A run: train a model, evaluate it on validation classes after each epoch, and keep the best, in a folder."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from divcon.config.settings import ModelConfig, RunConfig
from divcon.data.benchmark import Benchmark
from divcon.data.inputs import as_benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import only_decodable, worker_death
from divcon.data.read import is_dataset_name
from divcon.errors import DataError, RunError, Stopped
from divcon.evaluation.protocol import evaluate
from divcon.evaluation.subspaces import MAX_MONITORED, learner_similarity, sample_of
from divcon.models import EmbeddingModel
from divcon.models.backbone import resolve_backbone
from divcon.models.embedding_model import own_backbone, own_transform
from divcon.runs.display import Display, NullDisplay
from divcon.runs.folder import RunFolder, kept_epoch, trained_model
from divcon.runs.notes import learners_are_one
from divcon.runs.report import write_report
from divcon.runtime.context import Context
from divcon.runtime.device import resolve_device
from divcon.runtime.distributed import ProcessGroup
from divcon.runtime.environment import not_repeatable
from divcon.runtime.importing import Trust
from divcon.runtime.launch import is_main_process, launch
from divcon.runtime.lock import FolderLock
from divcon.runtime.signals import SignalHandler
from divcon.training.loop import train
from divcon.training.report import EpochReport

Observe = Callable[[EmbeddingModel, EpochReport], dict[str, Any]]

HEAD_SETTINGS = ("method", "embedding_dim", "num_learners", "head_options", "pooling")
"""The settings that two models share where one can take the head of the other."""


def run(
    data: Benchmark | str | os.PathLike[str],
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
) -> EmbeddingModel:
    """Train a model on a benchmark's train classes, in a run folder (see `divcon.runs.folder`).

    The run keeps the model of the epoch with the best Recall@1 on validation classes; without validation classes, that
    of the last epoch. It never uses the test classes.

    Args:
        data: what `divcon.read` returns, or a path or name that it takes.
        out: the run folder.
        resume: continue the run in ``out``; start it where no epoch is done yet.
        init: the folder of a run or model whose weights to start from: of a run, the model that it has saved, or the
            one in its checkpoint where it has saved none yet.
        source: what the data was read from, for ``config.json``; None: ``data``, where that is a path or name.
        observe: called with the model after each epoch. What it returns is written to the epoch's line of
            ``metrics.jsonl`` as ``observed``, and its time counts as ``seconds_evaluating``; nothing is chosen by it.
            An epoch that was interrupted is observed again.
        report: write ``report.html`` at the end (see `divcon.report`). If that fails, it is a warning.
        trust: modules of your own that ``init`` may import code from (see `divcon.EmbeddingModel.load`).

    Returns:
        The model that is kept, in evaluation mode.

    Raises:
        Stopped: SIGINT or SIGTERM arrived; the last finished batch is saved. A second SIGINT raises KeyboardInterrupt
            at once, and what is on disk is complete all the same.
        RunError: ``out`` holds a run already, or one of other settings or data; or another process trains it.
        ConfigError: settings do not go together, or not with the data: a backbone of images for vectors, say.
        OutputError: ``out`` cannot be written.
        DataError, ImageError: as in `divcon.train`; the last finished batch is saved, or with several processes what
            the checkpoint holds.
        WorkerError: a process that decodes images or trains was killed; what the checkpoint holds stays.
        NonFiniteError: as in `divcon.train`; what the checkpoint holds stays.
    """
    config, display = config or RunConfig(), display or NullDisplay()
    benchmark = as_benchmark(data, Context(config.train.workers, display.progress, display.warn))
    if source is None and isinstance(data, (str, os.PathLike)):
        source = source_of(data) | {"fingerprint": benchmark.train_fingerprint}
    folder = RunFolder(out)
    folder.check_usable()
    job = _Job(benchmark, folder.path, config, resume, init, trust, source, display, observe, report)
    options = config.train
    device = resolve_device(options.device)
    try:
        with ExitStack() as stack:
            if is_main_process():
                lock = stack.enter_context(FolderLock(folder.path, "training it", RunError))
                for message in folder.recover(lock):
                    display.warn(message)
            group = launch(options.num_devices, options.across, device, _train_in_worker, job.for_worker())
            group = stack.enter_context(group)
            stop = stack.enter_context(SignalHandler())
            return _Run(job if group.is_main else job.for_worker(), group, stop).train()
    except RuntimeError as error:  # PyTorch reports a killed worker wherever the main process is
        raise worker_death(error) or error from None


def source_of(data: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Where data was read from, for ``config.json``; a path is absolute, so that it works in any working directory."""
    name = os.fspath(data)
    if not is_dataset_name(name) and Path(name).exists():
        name = str(Path(name).absolute())
    return {"data": name, "root": None if root is None else str(Path(root).absolute())}


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

    def for_worker(self) -> _Job:
        """The arguments that ranks other than 0 need; they can be pickled."""
        return _Job(self.data, self.out, self.config, self.resume, self.init, self.trust)


def _train_in_worker(group: ProcessGroup, job: _Job) -> None:
    _Run(job, group, SignalHandler()).train()


class _Run:
    """A run in progress, in one of its processes. Only rank 0 writes to the folder."""

    def __init__(self, job: _Job, group: ProcessGroup, stop: SignalHandler) -> None:
        self.job, self.group, self.stop = job, group, stop
        self.folder, self.display = RunFolder(job.out), job.display
        self.warnings: list[str] = []
        self.lines: list[dict[str, Any]] = []
        """Of ``metrics.jsonl``."""
        self.context = Context(job.config.train.workers, job.display.progress, self._warn, group)

    def train(self) -> EmbeddingModel:
        """Train, evaluate and save each epoch, and return the model that is kept."""
        self.group.barrier()  # rank 0 has recovered the folder
        epochs = self._prepare()
        for epoch in epochs:
            try:
                self._end_epoch(epoch)
            except (Exception, Stopped) as error:
                epochs.throw(worker_death(error) or error)  # so that the loop saves a checkpoint
        self.group.barrier()  # the last model is saved
        own: Any = {"backbone": own_backbone(self.model), "eval_transform": own_transform(self.model)}
        model = EmbeddingModel.load(self.folder.model, device=self.model.device, **own)
        if self.group.is_main:
            self._finish(model)
        return model

    def _prepare(self) -> Any:
        """Check all arguments, then write ``config.json``, and return the epochs."""
        job, folder = self.job, self.folder
        if not len(job.data.train):
            raise DataError(f"{job.data.train.source}: has no train images; it can be evaluated on, not trained on")
        vectors = job.data.train.vectors
        vector_dim = None if vectors is None else vectors.shape[1]
        backbone = resolve_backbone(job.config.model.backbone, vector_dim, job.config.model.weights)
        self.config = config = dataclasses.replace(
            job.config, model=dataclasses.replace(job.config.model, backbone=backbone)
        )
        epochs_done = folder.check(config, job.data, job.resume)
        saved = folder.read()
        record = saved[1] if saved is not None else {}
        init = job.init or (record.get("init") if job.resume else None)
        self.data = _with_validation(job.data, config, self.context)
        torch.manual_seed(config.train.seed)
        self.model = _initial_model(config.model, vector_dim, init, job.trust, epochs_done, self.context)
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
        if self.group.is_main:
            folder.begin(config, self.data, job.source, None if init is None else Path(init))
            self.lines = folder.drop_lines_from(epochs_done)
        self.display.begin(config, self.data, epochs_done)
        return epochs

    def _end_epoch(self, epoch: EpochReport) -> None:
        """Evaluate the epoch, keep its model where it is the best, and write its line."""
        line = epoch.to_dict()
        last = epoch.number == self.config.train.epochs - 1
        started = time.perf_counter()
        validation = self.data.validation
        due = last or (epoch.number + 1) % self.config.data.evaluate_every == 0
        within = self.context.subtask("evaluate", epoch=epoch.number)
        if validation is not None and due:
            line["validation"] = evaluate(self.model, validation, clustering=False, similarity=True, context=within)
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
            line["observed"] = self.job.observe(self.model, epoch)
        line["seconds_evaluating"] = time.perf_counter() - started
        best = last if validation is None else kept_epoch([*self.lines, line]) == epoch.number
        if best:
            self.model.save(self.folder.model)
        # Before the checkpoint, which is saved when the loop goes on. A stop in between repeats this epoch; its line is
        # then dropped and written again.
        self.folder.append(line)
        self.lines.append(line)
        self.display.epoch(line)

    @cached_property
    def _monitored(self) -> LabeledSet:
        """Train images on which learners are compared where there are no validation classes."""
        return sample_of(self.data.train, MAX_MONITORED)

    def _finish(self, model: EmbeddingModel) -> None:
        folder = self.folder
        folder.previous.unlink(missing_ok=True)
        kept = kept_epoch(self.lines)
        last = self.config.train.epochs - 1
        within = self.context.alone().subtask("evaluate", epoch=last)
        if (note := learners_are_one(self.config.model, self.lines, kept)) is not None:
            self.display.warn(note)
        if (validation := self.data.validation) is not None:
            try:
                self._compare_with_baselines(model, validation, kept, within)
            except Exception as error:  # the run is done, and nothing that fails from here on may lose it
                self.display.warn(f"the kept model was not compared with untrained features ({error!r})")
        if self.job.report:
            try:
                write_report(folder, self.data, model, notes=[*self.data.notes, *self.warnings], context=within)
            except Exception as error:
                self.display.warn(
                    f"no report was written ({error!r}); the run is complete. Try: {folder.command('report')}"
                )
        self.display.end(folder.path, kept)

    def _compare_with_baselines(
        self, model: EmbeddingModel, validation: LabeledSet, kept: int | None, context: Context
    ) -> None:
        """Score the kept model's pooled features, and those of the network before training, on the validation
        classes."""
        options: dict[str, Any] = {"clustering": False, "baselines": True, "context": context}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of downloading weights were shown when the run started
            scores = {"epoch": kept, **evaluate(model, validation, **options)}
        self.folder.write_baselines(scores)
        self.display.baselines(scores)
        for advice in scores.get("advice", []):
            self.display.warn(advice)

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.display.warn(message)


def _with_validation(data: Benchmark, config: RunConfig, context: Context) -> Benchmark:
    """The benchmark with validation classes, or with all of them in train; without images that do not decode."""
    if config.data.on_bad_image == "skip":
        data = only_decodable(data, ("train", "validation"), context)
    if config.data.validation:
        return data.with_validation(config.data.validation_fraction, config.train.seed)
    return data.without_validation()


def _initial_model(
    config: ModelConfig,
    vector_dim: int | None,
    init: str | Path | None,
    trust: Trust,
    epochs_done: int,
    context: Context,
) -> EmbeddingModel:
    """The model before training; a resumed run takes its weights from the checkpoint."""
    options = {**vars(config), "vector_dim": vector_dim}
    if epochs_done or init is not None:
        options |= {"pretrained": False, "weights": None}
    model = EmbeddingModel(**options)
    if init is None or epochs_done:
        return model
    own: Any = {"backbone": copy.deepcopy(own_backbone(model)), "eval_transform": own_transform(model)}
    if not model.warm_start(trained_model(init, trust=trust, **own)):
        context.warn(
            "the head starts from new weights: `method`, `embedding_dim`, `num_learners` and `pooling` are not all "
            f"those of {init}"
        )
    return model


def model_settings(init: str | Path) -> dict[str, Any]:
    """The settings of `divcon.ModelConfig` of the model in ``init``, the folder of a run or model.

    Raises:
        WeightsError: there is no model, or it is damaged.
    """
    config = trained_model(init).config
    if "of" in config["head_options"]:  # a head that pruning derived: a new run starts with a new head
        config = {name: value for name, value in config.items() if name not in HEAD_SETTINGS or name == "pooling"}
    return {f.name: config[f.name] for f in dataclasses.fields(ModelConfig) if f.name in config}
