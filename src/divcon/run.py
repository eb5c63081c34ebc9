"""A run: train, judge each epoch on validation classes, keep the best, in a folder that can be gone on with.

``divcon.run(...)`` is the function `run`. The folder holds ``config.json`` (settings, source, versions),
``metrics.jsonl`` (a line an epoch), ``divisions/`` (a file a division), ``checkpoint`` (the last epoch's whole state)
and ``model/`` (the epoch that is kept).
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from divcon.callable_module import make_callable
from divcon.config import ModelConfig, RunConfig, flag
from divcon.data.dataset import undecodable
from divcon.data.image_set import Benchmark, ImageSet
from divcon.display import Display, Quiet
from divcon.errors import DataError, RunError
from divcon.evaluate.protocol import evaluate
from divcon.files import written_whole
from divcon.models import EmbeddingModel
from divcon.train.checkpoint import MAY_CHANGE, read_checkpoint
from divcon.train.loop import train
from divcon.train.report import Progress

CHECKPOINT = "checkpoint"
METRICS = "metrics.jsonl"


def run(
    data: Benchmark,
    out: str | Path,
    config: RunConfig | None = None,
    *,
    resume: bool = False,
    init: str | Path | None = None,
    source: dict[str, Any] | None = None,
    display: Display | None = None,
) -> EmbeddingModel:
    """Train a model on a benchmark's train classes and keep it in a run folder.

    The model that is kept is the epoch with the best Recall@1 on the validation classes; without validation classes it
    is the last epoch. The test classes are not looked at.

    Args:
        data: what `divcon.read` gave.
        out: the run folder.
        resume: go on where the run in ``out`` stopped; begin where there is nothing yet.
        init: a model's or run's folder, to start from its weights.
        source: what the data was read from, to be kept in ``config.json``.

    Returns:
        The model that is kept, in evaluation mode.

    Raises:
        RunError: ``out`` holds a run already, or one of other settings or data.
        DataError, ImageError, NonFiniteError: as in `divcon.train`; what the checkpoint holds stays.
    """
    config = config or RunConfig()
    display = display or Quiet()
    out = Path(out)
    if not len(data.train):
        raise DataError(f"{data.train.source}: has no train images; it can be evaluated on, not trained on")
    if config.data.on_bad_image == "skip":
        data = without_undecodable(data, config.train.workers, display.warn, display.progress)
    if config.data.validation:
        data = data.with_validation(config.data.validation_fraction, config.train.seed)
    done = _open(out, config, data, source, resume)
    lines = _metrics_until(out / METRICS, done)

    torch.manual_seed(config.train.seed)
    model = _create(config.model)
    if init is not None:
        model.adopt(EmbeddingModel.load(init))
    judged = data.validation if config.data.validation else None
    display.begin(config, data, done)
    epochs = train(model, data.train, config.train, checkpoint=out / CHECKPOINT, on_progress=display.progress)
    for epoch in epochs:
        line = epoch.to_dict()
        if epoch.redivided:
            epoch.division.save(out / "divisions" / f"epoch_{epoch.number:04d}.safetensors")
        last = epoch.number == config.train.epochs - 1
        started = time.perf_counter()
        if judged is not None and (last or (epoch.number + 1) % config.data.evaluate_every == 0):
            line["validation"] = evaluate(
                model,
                judged,
                clustering=False,
                workers=config.train.workers,
                on_progress=_stage(display.progress, epoch.number),
            )
        line["seconds_evaluating"] = time.perf_counter() - started
        if _is_kept(line, lines, last, judged is not None):
            model.save(out / "model")
        # Before the checkpoint, which is written when the loop goes on: a stop in between repeats this epoch, and
        # the line is then dropped and written again.
        _append(out / METRICS, line)
        lines.append(line)
        display.epoch(line)
    display.end(out, kept_epoch(lines))
    return EmbeddingModel.load(out / "model", device=model.device)


def kept_epoch(lines: list[dict[str, Any]]) -> int | None:
    """The epoch whose model is kept: the first of the best Recall@1 on validation classes, or the last."""
    judged = [line for line in lines if "validation" in line]
    if judged:
        return max(judged, key=lambda line: (line["validation"]["recall_at_1"], -line["epoch"]))["epoch"]
    return lines[-1]["epoch"] if lines else None


def read_metrics(out: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; one that a stop has cut short is left out."""
    path = Path(out) / METRICS
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def resumed_config(out: str | Path, asked: RunConfig) -> tuple[RunConfig, dict[str, Any] | None]:
    """The settings of the run in ``out``, with those of ``asked`` that may change, and the source of its data.

    Settings that ``asked`` leaves at their defaults are taken as not given.

    Raises:
        RunError: ``asked`` has another value than the run, or the run's ``config.json`` is missing or damaged.
    """
    path = Path(out) / "config.json"
    if not path.exists():
        return asked, None
    saved, record = _read_config(path)
    wrong, parts = [], {}
    for part in dataclasses.fields(RunConfig):
        mine, theirs = getattr(asked, part.name), getattr(saved, part.name)
        changes = {}
        for f in dataclasses.fields(mine):
            now, then = getattr(mine, f.name), getattr(theirs, f.name)
            if now == then or now == getattr(type(mine)(), f.name):
                continue
            if f.name in MAY_CHANGE:
                changes[f.name] = now
            else:
                wrong.append(f"{flag(f.name)} is {then} in the run, {now} now")
        parts[part.name] = dataclasses.replace(theirs, **changes)
    if wrong:
        raise RunError(
            f"{out}: cannot resume with other settings ({'; '.join(wrong)}); leave them out, or start anew with "
            "another --out"
        )
    return RunConfig(**parts), record.get("source")


def run_source(out: str | Path) -> dict[str, Any] | None:
    """What the run in ``out`` read its data from, as `divcon.read` takes it; None where it does not say."""
    path = Path(out) / "config.json"
    return _read_config(path)[1].get("source") if path.exists() else None


def without_undecodable(
    data: Benchmark,
    workers: int,
    warn: Callable[[str], None],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Benchmark:
    """The benchmark without the images that do not decode, each named by ``warn``; every image is decoded once.

    Raises:
        DataError: none of a part's images decodes.
    """
    parts = {"train": data.train, "query": data.query, "validation": data.validation}
    parts = {name: decodable(images, workers, warn, on_progress) for name, images in parts.items() if images}
    gallery = data.gallery
    same = gallery is data.query
    parts["gallery"] = parts.get("query", gallery) if same else decodable(gallery, workers, warn, on_progress)
    return dataclasses.replace(data, **parts)


def decodable(
    images: ImageSet,
    workers: int,
    warn: Callable[[str], None],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> ImageSet:
    """The images that decode; ``warn`` names the others.

    Raises:
        DataError: none decodes.
    """
    keep = np.ones(len(images), bool)
    for index, message in undecodable(images, workers=workers):
        on_progress(Progress("check", 0, index + 1, len(images)))
        if message is not None:
            keep[index] = False
            warn(f"left out: {message}")
    if not keep.any():
        raise DataError(f"{images.source}: none of its {len(images)} images decodes")
    return images if keep.all() else images.subset(keep)


def _create(config: ModelConfig) -> EmbeddingModel:
    return EmbeddingModel(**vars(config))


def _read_config(path: Path) -> tuple[RunConfig, dict[str, Any]]:
    try:
        record = json.loads(path.read_text())
        parts = {f.name: record[f.name] for f in dataclasses.fields(RunConfig)}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: damaged, or not of a divcon run ({error})") from None
    return RunConfig.from_dict(parts, str(path)), record


def _open(out: Path, config: RunConfig, data: Benchmark, source: dict[str, Any] | None, resume: bool) -> int:
    """Make the run folder, or check that it can be gone on with; returns how many epochs are done."""
    path = out / "config.json"
    if path.exists():
        if not resume:
            raise RunError(f"{out}: holds a run already; go on with it (--resume), or give another folder (--out)")
        saved, record = _read_config(path)
        if record.get("split_hash") != data.split_hash:
            raise RunError(
                f"{out}: the data has changed since the run began (split {record.get('split_hash')} then, "
                f"{data.split_hash} now); resume with the same data"
            )
        if (saved.model, saved.data) != (config.model, config.data):
            raise RunError(f"{out}: cannot resume with other model or data settings than {path} has")
    elif out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty and holds no run; give another folder (--out)")
    (out / "divisions").mkdir(parents=True, exist_ok=True)
    if not path.exists():
        packages = ("torch", "torchvision", "timm", "pytorch-metric-learning", "numpy")
        config.save(
            path,
            source=source,
            benchmark=data.name,
            protocol=data.protocol,
            split_hash=data.split_hash,
            versions={"divcon": version("divcon"), "python": platform.python_version()}
            | {name: version(name) for name in packages},
        )
    checkpoint = out / CHECKPOINT
    return read_checkpoint(checkpoint)["epochs_done"] if checkpoint.exists() else 0


def _is_kept(line: dict[str, Any], before: list[dict[str, Any]], last: bool, judged: bool) -> bool:
    if not judged:
        return last
    return kept_epoch([*before, line]) == line["epoch"]


def _metrics_until(path: Path, epochs_done: int) -> list[dict[str, Any]]:
    """The lines of the epochs that the checkpoint holds; later ones are dropped from the file, to be written again."""
    lines = [line for line in read_metrics(path.parent) if line["epoch"] < epochs_done]
    with written_whole(path) as beside:
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _stage(progress: Callable[[Progress], None], epoch: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(Progress("evaluate", epoch, done, total))


make_callable(__name__)
