"""The folder of a run: its files, and the checks before a run starts or resumes in it."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from divcon.config.fields import restored
from divcon.config.settings import SECTION_OF, SECTIONS, SPLITTING, RunConfig
from divcon.data.benchmark import Benchmark
from divcon.data.read import read_source
from divcon.errors import ConfigError, DataError, OutputError, RunError
from divcon.evaluation.subspaces import sample_of
from divcon.models.folder import check_model
from divcon.models.names import AUTO
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here, uploaded
from divcon.runtime.environment import machine, run_versions
from divcon.runtime.files import atomic_write
from divcon.runtime.importing import Trust, is_named
from divcon.runtime.lock import LOCK_FILE, FolderLock
from divcon.runtime.places import absolute, place, text_of
from divcon.training.checkpoint_file import (
    MAY_CHANGE,
    number_of_epochs,
    previous_of,
    read_checkpoint,
    restore_previous,
)
from divcon.training.schedule import difference_until

if TYPE_CHECKING:
    from torch import nn

    from divcon.data.transforms import Own
    from divcon.models import EmbeddingModel

ORIGIN = "run.json"
"""In the folder of a model that was derived from a run's model (pruned, say): the ``config.json`` of that run."""

SELECTION = "selection.json"
"""In the folder of a run's folds: the scores over the folds, and the epoch that they choose."""

_HEAVY = ("checkpoint", "divisions", "last", "folds", "index")
"""What is fetched from a run at an address only when it is needed."""

LENGTH = {"epochs", "patience"}
"""Settings that a resumed run may change where what is done stays as it is."""


class RunFolder:
    """``config.json``, ``classes.json``, ``metrics.jsonl``, ``divisions/``, ``checkpoint``, ``model/``, ``last/``,
    ``baselines.json``, ``report.html`` and, once evaluated, ``test.json``; with ``validation_folds`` also ``folds/``, a
    run for each fold.

    ``model`` is the model that the run keeps, ``last`` that of the last epoch, a model folder that knows its run.

    A run may be at an address (``s3://bucket/runs/x``): ``path`` is then its place on this machine
    (`divcon.runtime.places`), where what is written is uploaded at once, and what is read is what is there now.

    Until the first epoch is done there is nothing to lose: a run may start again in a folder without ``checkpoint``,
    with other settings too.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = here(path, without=_HEAVY)
        self.config = self.path / "config.json"
        self.classes = self.path / "classes.json"
        self.metrics = self.path / "metrics.jsonl"
        self.model = self.path / "model"
        self.baselines = self.path / "baselines.json"
        self.test = self.path / "test.json"
        self.report = self.path / "report.html"

    @cached_property
    def checkpoint(self) -> Path:
        return here(self.path / "checkpoint")

    @property
    def previous(self) -> Path:
        return previous_of(self.checkpoint)

    @cached_property
    def last(self) -> Path:
        return here(self.path / "last")

    @cached_property
    def folds(self) -> Path:
        return here(self.path / "folds")

    def division(self, epoch: int) -> Path:
        """The file of an epoch's division."""
        return here(self.path / "divisions" / f"epoch_{epoch:04d}.safetensors")

    def command(self, name: str, *options: str) -> str:
        """A ``divcon`` command on this run that works in any working directory."""
        words = ["divcon", name, absolute(self.path), *options]
        for module in self._own_modules():
            words += ["--import", module]
        return shlex.join(words)

    def _own_modules(self) -> list[str]:
        """The modules of the user's own parts that the run's folder names."""
        origin = self.origin()
        if origin is None:
            return []
        record = origin[1]
        values = [*record.get("model", {}).values(), *record.get("data", {}).values()]
        values.append((record.get("source") or {}).get("data"))
        return sorted({value.partition(":")[0] for value in values if is_named(value)})

    def epochs_done(self) -> int:
        return read_checkpoint(self.checkpoint)["epochs_done"] if self.checkpoint.exists() else 0

    def read(self) -> tuple[RunConfig, dict[str, Any]] | None:
        """The run's settings, and all of ``config.json``: ``source``, ``init``, ``split_hash``, ``versions``; None
        where no run has started (the folder of a model has a ``config.json`` of its own).

        Raises:
            RunError: the file is damaged.
        """
        return _read(self.config)

    def origin(self) -> tuple[RunConfig, dict[str, Any]] | None:
        """As `read`, also of a model that was derived from a run's (see `write_origin`).

        Raises:
            RunError: the file is damaged.
        """
        return self.read() or _read(self.path / ORIGIN)

    def write_origin(self, folder: Path, **more: Any) -> None:
        """Write what `origin` and `used_classes` read into the folder of a model that was derived from this run's.

        Args:
            more: more facts of the model, under names that ``config.json`` does not have.

        Raises:
            OutputError: the folder cannot be written.
        """
        origin = self.origin()
        if origin is None:
            return
        with atomic_write(folder / ORIGIN) as beside:
            beside.write_text(json.dumps(origin[1] | more, indent=2) + "\n")
        if self.classes.exists():
            with atomic_write(folder / self.classes.name) as beside:
                beside.write_bytes(self.classes.read_bytes())

    def check_usable(self, *, resume: bool = True) -> None:
        """
        Args:
            resume: whether a run in the folder is to be resumed.

        Raises:
            RunError: the folder is not empty and holds no run; or it holds one that is not to be resumed.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; `out` is the folder of the run")
        entries = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        if self.read() is None and not entries <= {LOCK_FILE, f"{self.config.name}.new"}:
            raise RunError(f"{self.path}: is not empty and holds no run; choose another folder as `out`")
        if not resume and self.read() is not None and self.checkpoint.exists():
            raise self._holds_a_run()

    def _holds_a_run(self) -> RunError:
        return RunError(f"{self.path}: holds a run already; resume it (`resume=True`), or choose another `out`")

    def recover(self, lock: FolderLock) -> list[str]:
        """Repair the checkpoints after a process was killed.

        Returns:
            Warnings for the user.
        """
        warnings = []
        if lock.left_by is not None:
            warnings.append(f"{self.path}: the process that trained this run was killed ({lock.left_by})")
        if not lock.locks:
            warnings.append(
                f"{self.path}: its file system has no locks, so nothing stops a second process from training this run "
                "too; make sure that none does"
            )
        recovered = restore_previous(self.checkpoint)
        return warnings if recovered is None else [*warnings, recovered]

    def check(self, config: RunConfig, data: Benchmark, resume: bool) -> int:
        """The number of epochs done. It writes nothing.

        Raises:
            RunError: the folder holds a run, and ``resume`` is False or the run has other settings or data.
        """
        saved_record = self.read()
        if saved_record is None or not self.checkpoint.exists():
            return 0
        saved, record = saved_record
        if not resume:
            raise self._holds_a_run()
        if not data.has_split(record.get("split_hash")):
            raise RunError(
                f"{self.path}: the data has changed since the run started (split {record.get('split_hash')} then, "
                f"{data.split_hash} now); resume with the same data{_read_as(saved, data)}"
            )
        may_change = MAY_CHANGE | LENGTH
        if saved.train.epochs != config.train.epochs and saved.train.phase_starts == config.train.phase_starts:
            may_change.add("finetune_epoch")  # at the default then, and where that was now
        changed = [
            f"`{name}` is {then} in the run, {now} now"
            for name, (then, now) in saved.differences(config).items()
            if name not in may_change
        ]
        if changed:
            raise RunError(f"{self.path}: cannot resume with other settings ({'; '.join(changed)})")
        self._check_length(saved, config)
        return self.epochs_done()

    def _check_length(self, then: RunConfig, now: RunConfig) -> None:
        """
        Raises:
            RunError: the run cannot have another number of epochs.
        """
        done, epochs = number_of_epochs(read_checkpoint(self.checkpoint)), now.train.epochs
        if epochs == then.train.epochs:
            return
        if epochs <= done:
            raise RunError(
                f"{self.path}: `epochs` {epochs}: {int(done)} epochs of this run are done already; pass a larger "
                "number, or leave `epochs` out"
            )
        why = difference_until(done, then.train, now.train, now.model.num_learners)
        if then.data.validation_folds is not None:
            why = "its `validation_folds` have chosen the epoch to keep among those that were planned"
        if why:
            raise RunError(
                f"{self.path}: a run of {then.train.epochs} epochs cannot have {epochs} `epochs`: {why}; start "
                f"another run from its model, in another `out` (`init={self.path}`)"
            )

    def settled(self, config: RunConfig) -> RunConfig:
        """The settings to resume with: where a run is made longer, the phases that began at the default begin where
        they did before."""
        saved_record = self.read()
        if saved_record is None or not self.checkpoint.exists() or config.train.finetune_epoch is not None:
            return config
        (saved, record), train = saved_record, config.train
        longer = saved.train.finetune_epoch is None and saved.train.epochs != train.epochs
        if not longer and "finetune_epoch" not in record.get("pinned", ()):
            return config
        train = dataclasses.replace(train, finetune_epoch=saved.train.phase_starts[1])
        return dataclasses.replace(config, train=train)

    def begin(
        self,
        config: RunConfig,
        data: Benchmark,
        source: dict[str, Any] | None,
        init: Path | None,
        like: Path | None = None,
    ) -> None:
        """Write the settings and classes of a run that starts; those of a run with a checkpoint stay, but for its
        length.

        Args:
            like: the run whose settings and length it has.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.checkpoint.exists():
            self._write_length(config)
            return
        config.save(
            self.config,
            source=source,
            init=None if init is None else absolute(init),
            benchmark=data.name,
            protocol=data.protocol,
            split_hash=data.split_hash,
            packed=data.packed or None,
            like=None if like is None else absolute(like),
            versions=run_versions(),
            machine=machine(),
        )
        splits = {"train": data.train, "validation": data.validation}
        names = {split: [s.label_names[c] for c in s.classes] for split, s in splits.items() if s is not None}
        with atomic_write(self.classes) as beside:
            beside.write_text(json.dumps(names) + "\n")

    def _write_length(self, config: RunConfig) -> None:
        saved_record = self.read()
        assert saved_record is not None
        saved, record = saved_record
        differences = saved.differences(config)
        changed = {name: now for name, (_, now) in differences.items() if name in LENGTH | {"finetune_epoch"}}
        for name, now in changed.items():
            record[SECTION_OF[name]][name] = now
        if "finetune_epoch" in changed:
            record["pinned"] = ["finetune_epoch"]
        if changed:
            with atomic_write(self.config) as beside:
                beside.write_text(json.dumps(record, indent=2) + "\n")

    def selection_over_folds(self) -> dict[str, Any] | None:
        """What `divcon.runs.selection.select_over_folds` returned for this run; None where there are no folds, or not
        all are done."""
        path = self.folds / SELECTION
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except (ValueError, OSError) as error:
            raise RunError(f"{path}: is damaged ({error}); resume the run to write it again") from None

    def write_selection_over_folds(self, selection: dict[str, Any]) -> None:
        """
        Raises:
            OutputError: the folder cannot be written.
        """
        with atomic_write(self.folds / SELECTION) as beside:
            beside.write_text(json.dumps(selection, indent=2) + "\n")

    def classes_of(self, split: Literal["train", "validation"]) -> list[str]:
        """The names of the classes that the run trained on, or held out for validation; empty where unknown."""
        return json.loads(self.classes.read_text()).get(split, []) if self.classes.exists() else []

    def used_classes(self) -> set[str]:
        """The names of the classes that the run trained on or was validated on; empty where unknown."""
        return {*self.classes_of("train"), *self.classes_of("validation")}

    def check_test_classes(self, data: Benchmark, *, own: bool) -> str | None:
        """A warning where the model was trained on test classes of the data that it is to be evaluated on.

        Args:
            own: the data is what the run was trained on, and must not have changed.

        Raises:
            RunError: the data is the run's own, and its split has changed since.
        """
        origin = self.origin()
        if origin is None:
            return None
        split = origin[1].get("split_hash")
        if own and not data.has_split(split):
            raise RunError(
                f"{self.path}: its data has changed since it was trained (split {split} then, {data.split_hash} now"
                f"{_read_as(origin[0], data)}), so that test classes may have been trained on; to evaluate on it "
                "anyway, pass the data"
            )
        if own and origin[0].data.train_on == "all":
            like = origin[1].get("like")
            of = f"; that of its settings is the score of {like}" if like else ""
            raise RunError(
                f"{self.path}: was trained on all classes of its data, those of test too (`train_on=all`), so that it "
                f"has no test score of its own{of}; to evaluate it on other data, pass that"
            )
        if self.trained_on_test(data):
            return (
                "the model was trained on all classes of this data, those of test too (`train_on=all`), so that these "
                "are no scores of a test"
            )
        if data.closed and data.has_split(split):
            return None
        shared = self.used_classes() & {data.query.label_names[c] for c in data.query.classes}
        if not shared:
            return None
        return (
            f"{len(shared)} of the test classes have names of classes that the model was trained on "
            f"({min(shared)!r}, for one){_read_as(origin[0], data)}"
        )

    def trained_on_test(self, data: Benchmark) -> bool:
        """Whether the model was trained on all classes of this data (``train_on=all``), the test classes too."""
        origin = self.origin()
        return origin is not None and origin[0].data.train_on == "all" and data.has_split(origin[1].get("split_hash"))

    def lines(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, without a last one that was cut short.

        Raises:
            RunError: a line is damaged.
        """
        lines = []
        texts = self.metrics.read_bytes().split(b"\n") if self.metrics.exists() else [b""]
        for number, text in enumerate(texts[:-1], 1):
            try:
                lines.append({**json.loads(text)})
            except (ValueError, TypeError, RecursionError) as error:
                raise RunError(
                    f"{self.metrics}: line {number} is damaged ({error}); correct or delete it: everything else works "
                    "without it"
                ) from None
        return lines

    def drop_lines_from(self, epoch: int) -> list[dict[str, Any]]:
        """Drop the lines of this epoch and later ones, which are trained again; returns the others."""
        lines = [line for line in self.lines() if line["epoch"] < epoch]
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
            uploaded(self.metrics)
        except OSError as error:
            raise OutputError(
                f"{text_of(self.metrics)}: cannot be written ({error.strerror}); resume when it can"
            ) from error

    def write_baselines(self, scores: dict[str, Any]) -> None:
        """Write what `baselines_of` reads.

        Raises:
            OutputError: the file cannot be written.
        """
        with atomic_write(self.baselines) as beside:
            beside.write_text(json.dumps(scores, indent=1) + "\n")

    def baselines_of(self, epoch: int | None) -> dict[str, Any] | None:
        """The scores of the model of an epoch on the validation classes, with those of the baselines (``baselines``,
        see `divcon.evaluate`); None where there are none, or where they are of another epoch."""
        try:
            scores = json.loads(self.baselines.read_text())
            return scores if scores["epoch"] == epoch and isinstance(scores["baselines"], dict) else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def write_test_scores(self, scores: dict[str, Any]) -> None:
        """Write what `test_scores_of` reads.

        Raises:
            OutputError: the file cannot be written.
        """
        with atomic_write(self.test) as beside:
            beside.write_text(json.dumps(scores, indent=1) + "\n")

    def test_scores_of(self, epoch: int | None, embed: str | None) -> dict[str, Any] | None:
        """The scores of a model on the test classes (see `divcon.evaluate`); None where it was not evaluated.

        Args:
            epoch: of the model.
            embed: what it embeds by, as in the record of that choice; None where there is no record.
        """
        try:
            scores = json.loads(self.test.read_text())
            return scores if (scores["epoch"], scores["embed"]) == (epoch, embed) else None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def resumed(self, asked: RunConfig, explicit: Collection[str] | None = None) -> tuple[RunConfig, dict[str, Any]]:
        """The settings to resume with, and all of ``config.json``: the run's own settings, with those of ``asked`` that
        do not change what is trained, ``epochs`` and ``patience`` among them (before the first epoch is done, all that
        are set).

        Args:
            explicit: the names of the settings of ``asked`` that are set; None: those that are not at their defaults.

        Raises:
            RunError: there is no run in the folder, or a setting that is set has another value in the run.
        """
        saved_record = self.read()
        if saved_record is None:
            raise RunError(f"{self.path}: there is no run here to resume; pass data to start one")
        saved, record = saved_record
        no_epoch_done = not self.checkpoint.exists()
        if explicit is None:
            explicit = RunConfig().differences(asked).keys()
        refused: list[str] = []
        changes: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        for name, (then, now) in saved.differences(asked).items():
            if name not in explicit or (name == "backbone" and now == "auto" and then in AUTO.values()):
                continue
            if no_epoch_done or name in MAY_CHANGE | LENGTH:
                changes[SECTION_OF[name]][name] = getattr(getattr(asked, SECTION_OF[name]), name)
            else:
                refused.append(f"`{name}` is {then} in the run, {now} now")
        if refused:
            raise RunError(
                f"{self.path}: cannot resume with other settings ({'; '.join(refused)}); leave them out, or start "
                "another run in another `out`"
            )
        sections = {name: dataclasses.replace(getattr(saved, name), **changes[name]) for name in SECTIONS}
        return RunConfig(**sections), record


def kept_epoch(lines: Sequence[dict[str, Any]]) -> int | None:
    """The number of the epoch whose model is kept, in ``model/``; None where none is kept yet.

    An epoch's line says whether its model replaced the one that was kept before (``kept``, see
    `divcon.runs.selection.is_better`). Lines of earlier versions do not: their runs kept the first epoch with the best
    Recall@1 on validation classes, or without these the last.

    Args:
        lines: of ``metrics.jsonl``.
    """
    marked = [line for line in lines if line.get("kept")]
    if marked:
        return marked[-1]["epoch"]
    old = [line for line in lines if "kept" not in line]
    validated = [line for line in old if "validation" in line]
    if validated:
        return max(validated, key=lambda line: (line["validation"]["recall_at_1"], -line["epoch"]))["epoch"]
    return old[-1]["epoch"] if old else None


def run_of(folder: str | Path) -> Path:
    """The folder of the run that a path is of: of ``RUN/last`` and ``RUN/model`` it is ``RUN``, else the path."""
    path = place(folder).absolute()
    is_model = path.name in ("last", "model") and RunFolder(path).read() is None
    return path.parent if is_model and RunFolder(path.parent).read() is not None else place(folder)


def begun(folder: str | Path) -> tuple[RunConfig, dict[str, Any], list[dict[str, Any]]]:
    """What `RunFolder.read` and `RunFolder.lines` return of a run of which at least one epoch is done.

    Raises:
        RunError: the folder holds no run, none of its epochs is done, or a file of it is damaged.
    """
    run = RunFolder(folder)
    if (of := run_of(folder)) != place(folder):
        raise RunError(f"{folder}: holds no run, but a model of the run {of}; pass that")
    saved = run.read()
    if saved is None:
        raise RunError(f"{folder}: holds no run (no config.json of a run); pass a run folder")
    lines = run.lines()
    if not lines:
        raise RunError(f"{folder}: no epoch of this run is done yet, so there is nothing to report")
    return *saved, lines


def _read(path: Path) -> tuple[RunConfig, dict[str, Any]] | None:
    """The settings in a run's ``config.json``, and all of it; None where the file is missing, or a model's."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        if "format" in record:
            return None
        sections = {name: restored(kind, record[name]) for name, kind in SECTIONS.items()}
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise RunError(f"{path}: is damaged, or not of a divcon run ({error})") from None
    try:
        return RunConfig.from_dict(sections, str(path)), record
    except ConfigError as error:
        raise RunError(str(error)) from None


def trained_model(
    folder: str | Path, *, trust: Trust = (), backbone: nn.Module | None = None, eval_transform: Own | None = None
) -> EmbeddingModel:
    """The model in the folder of a run or model; of a run that has saved none yet, the one in its checkpoint.

    Args:
        trust, backbone, eval_transform: as of `divcon.EmbeddingModel.load`.

    Raises:
        WeightsError: there is no model, or it is damaged.
    """
    from divcon.models import EmbeddingModel

    run = RunFolder(folder)
    if run.checkpoint.exists() and not run.model.exists():
        from divcon.training.checkpoint import model_in

        return model_in(run.checkpoint, trust=trust, backbone=backbone, eval_transform=eval_transform)
    return EmbeddingModel.load(folder, trust=trust, backbone=backbone, eval_transform=eval_transform)


def check_trained(folder: str | Path) -> None:
    """Check, before PyTorch is imported, that there is a model for `trained_model`.

    Raises:
        WeightsError: there is none.
    """
    run = RunFolder(folder)
    if not run.checkpoint.exists() or run.model.exists():
        check_model(folder)


def own_benchmark(
    run: str | Path,
    data: Benchmark | None = None,
    *,
    must_be_own: bool = False,
    whole: bool = False,
    trust: Trust = (),
    context: Context = DEFAULT,
) -> Benchmark:
    """The benchmark that a run's model was trained on, with the validation classes of the run.

    Args:
        run: the folder of a run, or of a model that was derived from a run's.
        data: a benchmark that was read already: it is returned where it is the run's own, or where the model does not
            know its run.
        must_be_own: raise where ``data`` is not the run's own, in place of reading the run's own.
        whole: all train and validation images, in the order in which the run's divisions number them; else a sample of
            them (see `divcon.evaluation.subspaces.sample_of`).
        trust: modules of readers that the run's folder may name: True for all, or their names.
        context: a run that left out images that do not decode leaves them out here too, and reports them.

    Raises:
        TrustError: the run's data is a reader whose module the user has not allowed.
        RunError: the folder does not say what its model was trained on, or that data is gone or has changed.
        DataError: none of its images decodes.
    """
    folder = RunFolder(run)
    origin = folder.origin()
    if origin is None:
        if data is None:
            raise RunError(f"{run}: does not say what it was trained on; pass the data")
        return data if whole else _sampled(data)
    config, record = origin
    if data is not None and must_be_own and (changed := _changed(record, data)):
        raise RunError(
            f"{data.name}: is not what {run} was trained on ({changed}), so that the run's test classes may be in it; "
            "pass the run's own data"
        )
    if data is None or _changed(record, data):
        source = record.get("source")
        if source is None:
            raise RunError(f"{run}: does not say what it was trained on; pass the data")
        try:
            data = read_source(source, str(folder.config), trust=trust, **config.data.splitting)
        except DataError as error:
            raise RunError(
                f"{run}: the data it was trained on cannot be read ({error}); pass it from where it is now"
            ) from None
        if changed := _changed(record, data):
            raise RunError(
                f"{run}: its data has changed since it was trained ({changed}), so that its test classes may be in it; "
                "pass the data as it was"
            )
    data = _split_as_trained(data, set(folder.classes_of("validation")), config)
    if not whole:
        data = _sampled(data)
    if config.data.on_bad_image == "skip":
        from divcon.data.loading import only_decodable

        splits = [split for split in ("train", "validation") if data.parts.get(split)]
        data = only_decodable(data, splits, context)
    return data


def _changed(record: dict[str, Any], data: Benchmark) -> str:
    """How the data differs from the run's own; empty where it does not."""
    split, trained = record.get("split_hash"), (record.get("source") or {}).get("fingerprint")
    changes = []
    if not data.has_split(split):
        changes.append(f"test {split} then, {data.split_hash} now")
    if trained and not data.has_train_fingerprint(trained):
        changes.append(f"train {trained} then, {data.train_fingerprint} now")
    return ", ".join(changes)


def _read_as(config: RunConfig, data: Benchmark) -> str:
    """How to read the data as a run did, where it was split in another way; else empty."""
    drawn = "test_fraction" in data.splitting
    names = [name for name in SPLITTING if name != "test_fraction" or drawn]
    then = {name: getattr(config.data, name) for name in names}
    if then == {name: data.splitting.get(name, SPLITTING[name]) for name in names}:
        return ""
    words = ", ".join(f"`{name}={value}`" for name, value in then.items() if name in data.splitting or value)
    return f"; the run split its data with {words}"


def _split_as_trained(data: Benchmark, validation_classes: set[str], config: RunConfig) -> Benchmark:
    """The benchmark with the train and validation classes of the run; in a closed set, with the images."""
    if config.data.train_on == "all":
        return data.on_all()
    if data.closed:
        folds = config.data.validation_folds is not None
        if not config.data.validation or folds:
            return data.without_validation()
        return data.with_validation(config.data.validation_fraction, config.train.seed)
    data = data.without_validation()
    held_out = np.array([name in validation_classes for name in data.train.label_names])[data.train.labels]
    if not held_out.any():
        return data
    return dataclasses.replace(data, train=data.train.subset(~held_out), validation=data.train.subset(held_out))


def _sampled(data: Benchmark) -> Benchmark:
    validation = None if data.validation is None else sample_of(data.validation)
    return dataclasses.replace(data, train=sample_of(data.train), validation=validation)
