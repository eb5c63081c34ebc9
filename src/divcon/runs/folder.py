"""A run's folder: what is in it, and when it may be begun, gone on with, or must be left alone."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from divcon.config.fields import restored
from divcon.config.settings import SECTION_OF, SECTIONS, RunConfig
from divcon.data.benchmark import Benchmark
from divcon.data.loading import only_decodable
from divcon.data.read import read_source
from divcon.errors import ConfigError, DataError, OutputError, RunError
from divcon.evaluation.subspaces import sample_of
from divcon.models.backbone import AUTO
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.environment import machine, run_versions
from divcon.runtime.files import atomic_write
from divcon.runtime.importing import Trust
from divcon.runtime.lock import LOCK_FILE, FolderLock
from divcon.training.checkpoint import MAY_CHANGE, previous_of, read_checkpoint, restore_previous

ORIGIN = "run.json"
"""In the folder of a model that is made of a run's: the ``config.json`` of the run."""


class RunFolder:
    """``config.json``, ``classes.json``, ``metrics.jsonl``, ``divisions/``, ``checkpoint``, ``model/`` and
    ``report.html``.

    Until the first epoch is done there is nothing to lose: a folder without ``checkpoint`` may be begun anew, with
    other settings too.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.classes = self.path / "classes.json"
        self.metrics = self.path / "metrics.jsonl"
        self.divisions = self.path / "divisions"
        self.checkpoint = self.path / "checkpoint"
        self.previous = previous_of(self.checkpoint)
        self.model = self.path / "model"
        self.report = self.path / "report.html"

    def epochs_done(self) -> int:
        return read_checkpoint(self.checkpoint)["epochs_done"] if self.checkpoint.exists() else 0

    def read(self) -> tuple[RunConfig, dict[str, Any]] | None:
        """The run's settings, and all of ``config.json``: ``source``, ``init``, ``split_hash``, ``versions``; None
        where no run was begun (a model's folder has a ``config.json`` of its own).

        Raises:
            RunError: the file is damaged.
        """
        return _read(self.config)

    def origin(self) -> tuple[RunConfig, dict[str, Any]] | None:
        """As `read`; for the folder of a model that `pass_on` was told of, what it keeps of its run.

        Raises:
            RunError: the file is damaged.
        """
        return self.read() or _read(self.path / ORIGIN)

    def pass_on(self, folder: Path, **more: Any) -> None:
        """Keep in the folder of a model that is made of this run's what `origin` and `seen_classes` need.

        Args:
            more: what else is to be known of the model, under names that ``config.json`` does not have.

        Raises:
            OutputError: the folder cannot be written.
        """
        found = self.origin()
        if found is None:
            return
        with atomic_write(folder / ORIGIN) as beside:
            beside.write_text(json.dumps(found[1] | more, indent=2) + "\n")
        if self.classes.exists():
            with atomic_write(folder / self.classes.name) as beside:
                beside.write_bytes(self.classes.read_bytes())

    def check_mine(self) -> None:
        """
        Raises:
            RunError: there is something here, and it is no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; give a folder (--out)")
        there = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        if self.read() is None and not there <= {LOCK_FILE, f"{self.config.name}.new"}:
            raise RunError(f"{self.path}: is not empty and holds no run; give another folder (--out)")

    def after_a_kill(self, lock: FolderLock) -> list[str]:
        """Put in order what a kill has left of the checkpoints; what a person should know of it."""
        told = []
        if lock.left_by is not None:
            told.append(f"{self.path}: the process that trained this run was killed ({lock.left_by})")
        if not lock.locks:
            told.append(
                f"{self.path}: its file system has no locks, so nothing keeps a second process from training this run "
                "too; see that none does"
            )
        mended = restore_previous(self.checkpoint)
        return told if mended is None else [*told, mended]

    def check(self, config: RunConfig, data: Benchmark, resume: bool) -> int:
        """How many epochs are done; nothing is written.

        Raises:
            RunError: a run is here and ``resume`` is not asked for, or it has other settings or data.
        """
        found = self.read()
        if found is None or not self.checkpoint.exists():
            return 0
        saved, record = found
        if not resume:
            raise RunError(f"{self.path}: holds a run already; go on with it (--resume), or give another --out")
        if not data.has_split(record.get("split_hash")):
            raise RunError(
                f"{self.path}: the data has changed since the run began (split {record.get('split_hash')} then, "
                f"{data.split_hash} now); resume with the same data"
            )
        wrong = _differences(saved, config)
        if wrong:
            raise RunError(f"{self.path}: cannot resume with other settings ({'; '.join(wrong)})")
        return self.epochs_done()

    def begin(self, config: RunConfig, data: Benchmark, source: dict[str, Any] | None, init: Path | None) -> None:
        """Write what the run is; one without an epoch done is begun anew.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.checkpoint.exists():
            return
        config.save(
            self.config,
            source=source,
            init=None if init is None else str(init.absolute()),
            benchmark=data.name,
            protocol=data.protocol,
            split_hash=data.split_hash,
            packed=data.packed or None,
            versions=run_versions(),
            machine=machine(),
        )
        seen = {name: [s.label_names[c] for c in s.classes] for name, s in _parts(data) if s is not None}
        with atomic_write(self.classes) as beside:
            beside.write_text(json.dumps(seen) + "\n")

    def classes_of(self, part: str) -> list[str]:
        """The names of the classes that the run trained on (``train``), or that were held out of them
        (``validation``); empty where it does not say."""
        return json.loads(self.classes.read_text()).get(part, []) if self.classes.exists() else []

    def seen_classes(self) -> set[str]:
        """The names of the classes that the run trained on or was validated on; empty where it does not say."""
        return {name for part in ("train", "validation") for name in self.classes_of(part)}

    def validation_classes(self) -> set[str]:
        """The names of the classes that were held out of the run's train classes; empty where there were none."""
        return set(self.classes_of("validation"))

    def lines(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; one that a stop has cut short is left out.

        Raises:
            RunError: one is damaged.
        """
        lines = []
        texts = self.metrics.read_bytes().split(b"\n") if self.metrics.exists() else [b""]
        for number, text in enumerate(texts[:-1], 1):
            try:
                lines.append({**json.loads(text)})
            except (ValueError, TypeError, RecursionError) as error:
                raise RunError(
                    f"{self.metrics}: line {number} is damaged ({error}); put it right, or delete it: all else goes on "
                    "without"
                ) from None
        return lines

    def keep_lines(self, epochs_done: int) -> list[dict[str, Any]]:
        """Drop the lines of epochs that the checkpoint does not hold, to be written again; returns the others."""
        lines = [line for line in self.lines() if line["epoch"] < epochs_done]
        with atomic_write(self.metrics) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return lines

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.metrics}: cannot be written ({error.strerror}); resume when it can") from error

    def resumed(self, asked: RunConfig, given: Collection[str] | None = None) -> tuple[RunConfig, dict[str, Any]]:
        """The settings to go on with, and the record of the run: the run's own settings, but those of ``asked`` that
        do not change what is trained (or, before the first epoch is done, all that are given).

        Args:
            given: the names of the settings that ``asked`` means; None: those that are not at their defaults.

        Raises:
            RunError: there is no run here, or a setting that is given has another value in it.
        """
        found = self.read()
        if found is None:
            raise RunError(f"{self.path}: there is no run here to resume; give DATA to begin one")
        saved, record = found
        free = not self.checkpoint.exists()
        if given is None:
            given = RunConfig().differences(asked).keys()
        wrong: list[str] = []
        changes: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        for name, (then, now) in saved.differences(asked).items():
            if name not in given or (name == "backbone" and now == "auto" and then in AUTO.values()):
                continue
            if free or name in MAY_CHANGE:
                changes[SECTION_OF[name]][name] = getattr(getattr(asked, SECTION_OF[name]), name)
            else:
                wrong.append(f"`{name}` is {then} in the run, {now} now")
        if wrong:
            raise RunError(
                f"{self.path}: cannot resume with other settings ({'; '.join(wrong)}); leave them out, or begin anew "
                "in another --out"
            )
        sections = {name: dataclasses.replace(getattr(saved, name), **changes[name]) for name in SECTIONS}
        return RunConfig(**sections), record


def kept_epoch(lines: list[dict[str, Any]]) -> int | None:
    """The epoch whose model is kept: the first of the best Recall@1 on validation classes, or the last.

    Args:
        lines: of ``metrics.jsonl``.
    """
    judged = [line for line in lines if "validation" in line]
    if judged:
        return max(judged, key=lambda line: (line["validation"]["recall_at_1"], -line["epoch"]))["epoch"]
    return lines[-1]["epoch"] if lines else None


def _read(path: Path) -> tuple[RunConfig, dict[str, Any]] | None:
    """The settings in a run's ``config.json``, and all of it; None where there is none, or it is a model's."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if "format" in record:
            return None
        sections = {name: restored(kind, record[name]) for name, kind in SECTIONS.items()}
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise RunError(f"{path}: damaged, or not of a divcon run ({error})") from None
    try:
        return RunConfig.from_dict(sections, str(path)), record
    except ConfigError as error:
        raise RunError(str(error)) from None


def _parts(data: Benchmark) -> list[tuple[str, Any]]:
    return [("train", data.train), ("validation", data.validation)]


def _differences(saved: RunConfig, asked: RunConfig) -> list[str]:
    return [
        f"`{name}` is {then} in the run, {now} now"
        for name, (then, now) in saved.differences(asked).items()
        if name not in MAY_CHANGE
    ]


def own_benchmark(
    run: str | Path,
    given: Benchmark | None = None,
    *,
    must_be_own: bool = False,
    whole: bool = False,
    trust: Trust = (),
    context: Context = DEFAULT,
) -> Benchmark:
    """The benchmark that a run's model was trained on, with its validation classes where it had any; of train and
    validation classes only a sample (see `divcon.evaluation.subspaces.sample_of`), unless asked for ``whole``.

    Args:
        run: a run's folder, or that of a model that was made of a run's.
        given: data that was read already; taken where it is the run's own, or the model knows of no run.
        must_be_own: data that is given and not the run's own is an error; else the run's own is read.
        whole: all train and validation images, in the order in which the run's divisions number them.
        trust: modules of readers that the run's folder may name: True for all, or their names.
        context: of `divcon.data.loading.only_decodable`; a run that left out images that do not decode leaves them out
            here too.

    Raises:
        TrustError: the run's data is a reader whose module the user has not allowed.
        RunError: the folder does not say what its model was trained on, that is not there any more, or it has changed.
        DataError: none of its images decodes.
    """
    found = RunFolder(run).origin()
    if found is None:
        if given is None:
            raise RunError(f"{run}: does not say what it was trained on; give DATA")
        return given if whole else _sampled(given)
    config, record = found
    if given is not None and must_be_own and (changed := _changed(record, given)):
        raise RunError(
            f"{given.name}: is not what {run} was trained on ({changed}), so that classes it is judged on may be among "
            "those to choose by; give its own data"
        )
    if given is None or _changed(record, given):
        source = record.get("source")
        if source is None:
            raise RunError(f"{run}: does not say what it was trained on; give DATA")
        try:
            given = read_source(source, str(RunFolder(run).config), trust=trust)
        except DataError as error:
            raise RunError(
                f"{run}: what it was trained on cannot be read ({error}); give DATA where it is now"
            ) from None
        if changed := _changed(record, given):
            raise RunError(
                f"{run}: its data has changed since it was trained ({changed}), so that classes it is judged on may be "
                "among those to choose by; give DATA as it was"
            )
    data = _shared_out(given, RunFolder(run).validation_classes())
    if not whole:
        data = _sampled(data)
    if config.data.on_bad_image == "skip":
        data = only_decodable(data, [name for name in ("train", "validation") if data.parts.get(name)], context)
    return data


def _changed(record: dict[str, Any], data: Benchmark) -> str:
    """How the data differs from what the run was trained and is judged on; empty where it does not."""
    split, trained = record.get("split_hash"), (record.get("source") or {}).get("fingerprint")
    changes = []
    if not data.has_split(split):
        changes.append(f"test {split} then, {data.split_hash} now")
    if trained and not data.has_train_fingerprint(trained):
        changes.append(f"train {trained} then, {data.train_fingerprint} now")
    return ", ".join(changes)


def _shared_out(data: Benchmark, validation_classes: set[str]) -> Benchmark:
    """Train and validation classes as the run had them."""
    data = data.without_validation()
    held_out = np.array([name in validation_classes for name in data.train.label_names])[data.train.labels]
    if not held_out.any():
        return data
    return dataclasses.replace(data, train=data.train.subset(~held_out), validation=data.train.subset(held_out))


def _sampled(data: Benchmark) -> Benchmark:
    validation = None if data.validation is None else sample_of(data.validation)
    return dataclasses.replace(data, train=sample_of(data.train), validation=validation)
