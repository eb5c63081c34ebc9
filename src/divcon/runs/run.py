"""A run: train, judge each epoch on validation classes, keep the best, in a folder that can be gone on with.

``divcon.run(...)`` is the function `run`.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from divcon.config.settings import ModelConfig, RunConfig
from divcon.data.benchmark import Benchmark
from divcon.data.loading import only_decodable, worker_death
from divcon.errors import DataError, RunError, Stopped
from divcon.evaluation.protocol import evaluate
from divcon.models import EmbeddingModel
from divcon.models.backbone import resolve_backbone
from divcon.models.embedding_model import own_backbone
from divcon.runs.display import Display, NullDisplay
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.report import write_report
from divcon.runtime.context import Context
from divcon.runtime.device import resolve_device
from divcon.runtime.distributed import ProcessGroup
from divcon.runtime.environment import not_repeatable
from divcon.runtime.importing import Trust
from divcon.runtime.launch import is_main_process, launch
from divcon.runtime.lock import FolderLock
from divcon.runtime.signals import SignalHandler
from divcon.training.checkpoint import model_in
from divcon.training.loop import train
from divcon.training.report import EpochReport

HEAD_SETTINGS = ("method", "embedding_dim", "num_learners", "head_options", "pooling")
"""The settings that two models must have in common for the head of one to serve the other."""


def run(
    data: Benchmark,
    out: str | Path,
    config: RunConfig | None = None,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    source: dict[str, Any] | None = None,
    display: Display | None = None,
    observe: Callable[[EmbeddingModel, EpochReport], dict[str, Any]] | None = None,
    report: bool = True,
    trust: Trust = (),
) -> EmbeddingModel:
    """Train a model on a benchmark's train classes and keep it in a run folder (see `divcon.runs.folder`).

    The model that is kept is the epoch with the best Recall@1 on the validation classes; without validation classes it
    is the last epoch. The test classes are not looked at.

    Args:
        data: what `divcon.read` gave.
        out: the run folder.
        resume: go on where the run in ``out`` stopped; begin where no epoch is done yet.
        init: a model's or run's folder, to start from its weights: the model that is kept, or what a run that has not
            kept one yet has trained so far.
        source: what the data was read from, to be kept in ``config.json``.
        observe: called with the model after each epoch; what it gives stands in the epoch's line of ``metrics.jsonl``
            under ``observed``. Nothing is chosen by it, and its time is of ``seconds_evaluating``. An epoch that a stop
            cut short is observed again.
        report: write ``report.html`` in the end (see `divcon.runs.report.report`). Where that fails, it is a warning.
        trust: modules of your own that ``init`` may import code from (see `EmbeddingModel.load`).

    Returns:
        The model that is kept, in evaluation mode.

    Raises:
        Stopped: SIGINT or SIGTERM asked for it; the last whole batch is kept. A second SIGINT is a KeyboardInterrupt at
            once, and what is on the disk is whole all the same.
        RunError: ``out`` holds a run already, or one of other settings or data; or another process is training it.
        ConfigError: settings that do not go together, or not with the data: a backbone of images for vectors, say.
        OutputError: ``out`` cannot be written.
        DataError, ImageError: as in `divcon.train`; the last whole batch is kept, or where steps are of several, what
            the checkpoint holds.
        WorkerError: a process that decodes images, or trains along, was killed; what the checkpoint holds stays.
        NonFiniteError: as in `divcon.train`; what the checkpoint holds stays.
    """
    config = config or RunConfig()
    display = display or NullDisplay()
    folder = RunFolder(out)
    folder.check_mine()
    options = config.train
    device = resolve_device(options.device)
    given = (data, out, config, resume, init, trust)
    try:
        with ExitStack() as kept:
            if is_main_process():
                lock = kept.enter_context(FolderLock(folder.path, "training it", RunError))
                for message in folder.after_a_kill(lock):
                    display.warn(message)
            processes = kept.enter_context(launch(options.num_devices, options.across, device, _worker, *given))
            stop = kept.enter_context(SignalHandler())
            display = display if processes.is_main else NullDisplay()
            return _run(data, folder, config, resume, init, trust, source, display, observe, report, stop, processes)
    except RuntimeError as error:  # PyTorch tells of a killed worker wherever the main process is, here at the end too
        raise worker_death(error) or error from None


def _worker(
    processes: ProcessGroup,
    data: Benchmark,
    out: str | Path,
    config: RunConfig,
    resume: bool,
    init: str | Path | None,
    trust: Trust,
) -> None:
    stop = SignalHandler()
    _run(data, RunFolder(out), config, resume, init, trust, None, NullDisplay(), None, False, stop, processes)


def _run(
    data: Benchmark,
    folder: RunFolder,
    config: RunConfig,
    resume: bool,
    init: str | Path | None,
    trust: Trust,
    source: dict[str, Any] | None,
    display: Display,
    observe: Callable[[EmbeddingModel, EpochReport], dict[str, Any]] | None,
    report: bool,
    stop: SignalHandler,
    processes: ProcessGroup,
) -> EmbeddingModel:
    """`run`, in each of the processes that train together; the first alone writes to the folder."""
    processes.barrier()  # nobody reads before what a kill has left is put in order
    if not len(data.train):
        raise DataError(f"{data.train.source}: has no train images; it can be evaluated on, not trained on")
    vector_dim = None if data.train.vectors is None else data.train.vectors.shape[1]
    backbone = resolve_backbone(config.model.backbone, vector_dim, config.model.weights)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone))
    done = folder.check(config, data, resume)
    found = folder.read()
    if found is not None and resume and init is None and found[1].get("init"):
        init = found[1]["init"]
    told: list[str] = []

    def warn(message: str) -> None:
        told.append(message)
        display.warn(message)

    context = Context(config.train.workers, display.progress, warn, processes)
    data = _shared_out(data, config, context)

    # Errors in the settings are raised before anything is written: `train` checks them when it is called.
    torch.manual_seed(config.train.seed)
    model = _begin(config.model, vector_dim, init, trust, done, context)
    epochs: Any = train(model, data.train, config.train, checkpoint=folder.checkpoint, stop=stop, context=context)
    for message in not_repeatable(
        resolve_device(config.train.device), found[1] if found is not None and done else None
    ):
        warn(message)
    lines: list[dict[str, Any]] = []
    if processes.is_main:
        folder.begin(config, data, source, None if init is None else Path(init))
        lines = folder.keep_lines(done)
    judged = data.validation
    display.begin(config, data, done)

    def judge(epoch: EpochReport) -> None:
        line = epoch.to_dict()
        last = epoch.number == config.train.epochs - 1
        started = time.perf_counter()
        if judged is not None and (last or (epoch.number + 1) % config.data.evaluate_every == 0):
            line["validation"] = evaluate(
                model,
                judged,
                clustering=False,
                context=context.subtask("evaluate", epoch=epoch.number),
            )
        if not processes.is_main:
            return
        if epoch.redivided:
            epoch.division.save(folder.divisions / f"epoch_{epoch.number:04d}.safetensors")
        if observe is not None:
            line["observed"] = observe(model, epoch)
        line["seconds_evaluating"] = time.perf_counter() - started
        if kept_epoch([*lines, line]) == epoch.number if judged is not None else last:
            model.save(folder.model)
        # Before the checkpoint, which is written when the loop goes on: a stop in between repeats this epoch, and
        # the line is then dropped and written again.
        folder.append(line)
        lines.append(line)
        display.epoch(line)

    for epoch in epochs:
        try:
            judge(epoch)
        except (Exception, Stopped) as error:
            # Told there, the loop keeps what the epoch has trained.
            epochs.throw(worker_death(error) or error)
    processes.barrier()  # the last model is kept
    model = EmbeddingModel.load(folder.model, device=model.device, backbone=own_backbone(model))
    if not processes.is_main:
        return model
    folder.previous.unlink(missing_ok=True)
    if report:
        try:
            write_report(
                folder,
                data,
                model,
                notes=[*data.notes, *told],
                context=context.alone().subtask("evaluate", epoch=config.train.epochs - 1),
            )
        except Exception as error:  # the run is done, and nothing that goes wrong from here on may lose it
            display.warn(f"no report was written ({error!r}); the run is whole. Try: divcon report {folder.path}")
    display.end(folder.path, kept_epoch(lines))
    return model


def model_settings(init: str | Path) -> dict[str, Any]:
    """The settings of `divcon.ModelConfig` that the model in ``init``, a run's or a model's folder, has.

    Raises:
        WeightsError: no model there, or a damaged one.
    """
    config = _model_in(init).config
    if "of" in config["head_options"]:  # of a head that pruning derived: a new training begins with one of its own
        config = {name: value for name, value in config.items() if name not in HEAD_SETTINGS or name == "pooling"}
    return {f.name: config[f.name] for f in dataclasses.fields(ModelConfig) if f.name in config}


def check_unseen(run: str | Path, data: Benchmark, source_given: bool) -> str | None:
    """What a person should know before they believe a score: test classes that the run has trained on.

    Args:
        source_given: whether the data is other than what the run was trained on; without, it must be the same.

    Raises:
        RunError: the data is the run's own, and its split has changed since.
    """
    folder = RunFolder(run)
    found = folder.origin()
    if found is None:
        return None
    if not source_given and not data.has_split(found[1].get("split_hash")):
        raise RunError(
            f"{run}: its data has changed since it was trained (split {found[1].get('split_hash')} then, "
            f"{data.split_hash} now), so that test classes may have been trained on; to score it all the same, give "
            "DATA"
        )
    seen = folder.seen_classes() & {data.query.label_names[c] for c in data.query.classes}
    if seen:
        first = sorted(seen)[0]
        return f"{len(seen)} of the test classes have names that the model was trained on ({first!r}, for one)"
    return None


def _shared_out(data: Benchmark, config: RunConfig, context: Context) -> Benchmark:
    """The benchmark with validation classes, or with all of them in train, and without what does not decode."""
    if config.data.on_bad_image == "skip":
        data = only_decodable(data, ("train", "validation"), context)
    if config.data.validation:
        return data.with_validation(config.data.validation_fraction, config.train.seed)
    return data.without_validation()


def _begin(
    config: ModelConfig,
    vector_dim: int | None,
    init: str | Path | None,
    trust: Trust,
    epochs_done: int,
    context: Context,
) -> EmbeddingModel:
    """The model as it is before training; a run that goes on takes its weights from the checkpoint."""
    options = {**vars(config), "vector_dim": vector_dim}
    if epochs_done or init is not None:
        options |= {"pretrained": False, "weights": None}
    model = EmbeddingModel(**options)
    if init is not None and not epochs_done:
        kept = model.warm_start(_model_in(init, trust, copy.deepcopy(own_backbone(model))))
        if not kept:
            context.warn(
                "the head starts from new weights: `method`, `embedding_dim`, `num_learners` and `pooling` are not all "
                f"those of {init}"
            )
    return model


def _model_in(init: str | Path, trust: Trust = (), backbone: nn.Module | None = None) -> EmbeddingModel:
    """The model that a run keeps; where it keeps none yet, as its last epoch left it."""
    folder = RunFolder(init)
    if folder.checkpoint.exists() and not folder.model.exists():
        return model_in(folder.checkpoint, trust=trust, backbone=backbone)
    return EmbeddingModel.load(init, trust=trust, backbone=backbone)
