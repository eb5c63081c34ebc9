"""Checkpoints: the state of a training after each epoch, every few minutes inside one, and at a stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from divcon.config.fields import restored, saved
from divcon.config.settings import TrainConfig
from divcon.data.labeled_set import LabeledSet, file_sizes, resized
from divcon.data.loading import worker_death
from divcon.data.transforms import Own
from divcon.division import Division
from divcon.errors import DataError, RunError, Stopped, WorkerError
from divcon.models import EmbeddingModel
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.exchange import check_alike, from_main
from divcon.runtime.importing import Trust
from divcon.runtime.launch import ended_in_words
from divcon.runtime.signals import SIGNALS, SignalHandler
from divcon.training.averaging import WeightAverage
from divcon.training.checkpoint_file import (
    MAY_CHANGE,
    number_of_epochs,
    read_checkpoint,
    restore_previous,
    write_checkpoint,
)
from divcon.training.feature_bank import FeatureBank
from divcon.training.loader import TrainLoader
from divcon.training.precision import Precision
from divcon.training.report import EpochReport, LossRecord
from divcon.training.sampler import Batch, EpochPlan
from divcon.training.schedule import difference_until

_CHECK_S = 0.25
"""Seconds between two exchanges of ranks about whether one of them was asked to stop."""


class Checkpointer:
    """Saves the state of a training to a file, and resumes from that file if it exists.

    A context manager around the training: at a stop or an error in the data, it saves the state after the last complete
    step.

    Args:
        path: the file; None saves nothing. Rank 0 alone reads and writes it, and sends the others what it holds.
    """

    def __init__(
        self,
        state: TrainState,
        path: str | Path | None,
        config: TrainConfig,
        images: LabeledSet,
        stop: SignalHandler | None,
        context: Context = DEFAULT,
    ) -> None:
        self._state = state
        self._path = None if path is None else here(path) if context.group.is_main else Path(path)
        self._config = config
        self._images = images
        self._fingerprint = "" if path is None else images.fingerprint
        self._warnings: tuple[str, ...] = ()
        self._stop = stop or SignalHandler()
        self._group = group = context.group
        self._record: LossRecord | None = None
        self._batches = 0
        self._every = self._until_check = 1
        self._last_check = time.perf_counter()
        if not group.alone:
            advice = "each machine needs the same data: a copy of its own, or a shared folder"
            check_alike(group, "the training images", images.fingerprint, advice)
        if self._path is not None:
            if group.is_main:
                if message := restore_previous(self._path):
                    context.warn(message)
                state.file_sizes = file_sizes(images)
            content = from_main(group, partial(_content, self._path))
            if content is not None:
                state.load(self._path, content, config, images)
                self._warnings = self._changed_files(state.changed_files, "the stop")
        group.broadcast_parameters(state.model, state.objectives)
        self.resumes_inside_epoch = state.inside is not None
        """Whether the current epoch was divided before a stop."""
        self._last_saved = time.perf_counter()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            with ended_in_words():
                if error is not None:
                    raise error
        except Stopped as stopped:
            self._end(stopped)
            if stopped is not error:  # another rank was asked to stop, and its connections have ended
                raise
        except BaseException:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        # After any other error the weights may be those of the middle of a step.
        if isinstance(error, (Stopped, DataError, WorkerError)) and self._between_steps():
            self._save()
        if isinstance(error, Stopped):
            error.args = (f"stopped {self._where()}",)
        # PyTorch reports a killed worker wherever the main process is at that moment.
        if error is not None and (death := worker_death(error)) is not None:
            raise death from None

    @property
    def previous_division(self) -> Division | None:
        """The division of the epoch before the current one."""
        return self._state.division if self._state.inside is None else self._state.inside.previous

    def start_epoch(self, division: Division, previous: Division | None) -> None:
        """Record the division that the current epoch trains on."""
        self._state.division = division
        if not self.resumes_inside_epoch:
            self._state.inside = EpochProgress(previous)

    def steps(
        self, loader: TrainLoader, plan: EpochPlan, labels: np.ndarray, report: EpochReport, record: LossRecord
    ) -> Iterator[tuple[range, Iterator[tuple[int, Batch, Tensor, Tensor]]]]:
        """Iterate over the remaining steps of the current epoch, each with the batches that this process trains on.
        After a resume, ``record`` and ``report`` are restored to their state before the stop.

        Raises:
            Stopped: a stop was requested; raised after the step.
            OutputError: the state cannot be saved.
            ImageError: an image does not decode.
        """
        inside = self._state.inside
        assert inside is not None, "start_epoch comes first"
        if self.resumes_inside_epoch:
            record.restore(inside.losses, inside.full_losses, inside.distillations, inside.seconds_training)
            report.seconds_dividing = inside.seconds_dividing
        inside.seconds_dividing = report.seconds_dividing
        report.warnings += self._warnings
        self._warnings = ()
        self.resumes_inside_epoch, self._record, self._batches = False, record, len(plan.batches)
        with self._stop.deferred():
            steps = list(plan.steps(self._config.batches_per_step, inside.batches))
            numbers = [number for step in steps for number in self._group.batches(step)]
            mine = loader.training_batches(plan, report.number, labels, numbers)
            for step in steps:
                yield step, islice(mine, len(self._group.batches(step)))
                inside.batches = step.stop
                # Without this, other processes have losses that belong to the state.
                if record.synced or self._group.alone:
                    minutes = (time.perf_counter() - self._last_saved) / 60
                    if self._config.checkpoint_minutes and minutes >= self._config.checkpoint_minutes:
                        self._save()
                self._check_stop(record, last=step.stop == len(plan.batches))
        if report.number == self._config.epochs - 1 and self._path is not None and self._group.is_main:
            changed = resized(self._state.file_sizes, file_sizes(self._images))
            report.warnings += self._changed_files(changed, "training began")

    def epoch_done(self, epoch: int) -> None:
        """Save the state after an epoch.

        Raises:
            Stopped: a stop was requested meanwhile.
            OutputError: the state cannot be saved.
        """
        with self._stop.deferred():
            self._state.epochs_done, self._state.inside, self._record = epoch + 1, None, None
            self._save()
            self._check_stop(last=True)
        self._stop.check()

    def _check_stop(self, record: LossRecord | None = None, *, last: bool = False) -> None:
        """Raise `Stopped` if any rank was asked to stop, in all ranks after the same step. They ask each other after so
        many steps as take `_CHECK_S`; ``last``: at once."""
        if self._group.alone:
            self._stop.check()
            return
        self._until_check -= 1
        if self._until_check > 0 and not last:
            return
        steps, now = max(1, self._every - self._until_check), time.perf_counter()
        each = (now - self._last_check) / steps
        every = min(1000, max(1, round(_CHECK_S / max(each, 1e-6))))
        asked = [self._stop.asked == number for number in SIGNALS]
        *asked, every = self._group.all_reduce(np.array([*asked, every if self._group.is_main else 0])).tolist()
        self._every = self._until_check = int(every)
        self._last_check = now
        if any(asked):
            if record is not None and not record.synced:
                record.sync()
            if self._stop.asked is None:
                self._stop.asked = next(number for number, count in zip(SIGNALS, asked, strict=True) if count)
            self._stop.check()

    def _between_steps(self) -> bool:
        inside = self._state.inside
        if self._record is None or inside is None or self._record.inside_a_step:
            return False
        return self._record.synced or self._group.alone

    def _save(self) -> None:
        if self._path is None or not self._group.is_main:
            return
        inside = self._state.inside
        if inside is not None and self._record is not None:
            if self._group.alone:
                self._record.sync()
            inside.losses, inside.full_losses = self._record.values, self._record.full_values
            inside.distillations = self._record.distillation_values
            inside.seconds_training = self._record.seconds
        with self._stop.deferred():
            self._state.save(self._path, self._config, self._fingerprint)
        self._last_saved = time.perf_counter()

    def _changed_files(self, which: np.ndarray, when: str) -> tuple[str, ...]:
        if not len(which):
            return ()
        return (
            f"the files of {len(which)} training images have changed since {when} (the first: "
            f"{self._images.where(which[0])}); training used each as it was when it was read, so the run cannot be "
            "repeated bit for bit",
        )

    def _where(self) -> str:
        inside, epoch = self._state.inside, self._state.epochs_done
        if inside is None or self._record is None:
            return f"before the first batch of epoch {epoch}"
        return f"in epoch {epoch} after {inside.batches} of {self._batches} batches"


@dataclasses.dataclass
class TrainState:
    """Everything that training changes. Random state is not part of it: each batch is seeded by (seed, epoch,
    number)."""

    model: EmbeddingModel
    objectives: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    bank: FeatureBank
    average: WeightAverage
    division: Division | None = None
    epochs_done: int = 0
    division_budget: int = 0
    """Bytes that dividing may take in each process, as this training started with; 0: no limit."""
    file_sizes: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """(N,) int64, of the training images; empty where they do not come from files."""
    changed_files: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """(n,) int64, the training images whose files have another size than when the checkpoint was saved."""
    inside: EpochProgress | None = None
    """The progress inside the current epoch; None before its division."""

    def save(self, path: Path, config: TrainConfig, images: str) -> None:
        """Write a checkpoint atomically.

        Args:
            images: the fingerprint of the training images.

        Raises:
            OutputError: the file cannot be written; the previous one is kept.
        """
        content = {
            "epochs_done": self.epochs_done,
            "config": saved(config),
            "images": images,
            "made_with": self.model.config,
            "freeze_batch_norm": self.model.freeze_batch_norm,
            "model": self.model.state_dict(),
            "objectives": self.objectives.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state_dict(),
            "features": self.bank.state_dict(),
            "average": self.average.state_dict(),
            "division": _division_to_save(self.division),
            "division_budget": self.division_budget,
            "file_sizes": torch.from_numpy(self.file_sizes),
            "inside": None,
        }
        if self.inside is not None:
            same = self.inside.previous is self.division
            content["inside"] = {
                **vars(self.inside),
                "previous": None if same else _division_to_save(self.inside.previous),
                "redivided": not same,
                "losses": torch.tensor(self.inside.losses, dtype=torch.float64),
                "full_losses": torch.tensor(self.inside.full_losses, dtype=torch.float64),
                "distillations": torch.tensor(self.inside.distillations, dtype=torch.float64),
            }
        write_checkpoint(path, content)

    def load(self, path: Path, content: dict[str, Any], config: TrainConfig, images: LabeledSet) -> None:
        """Take over what a checkpoint holds, to resume from it.

        Raises:
            RunError: it belongs to a training with other settings or data.
        """
        then, now = restored(type(config), content["config"]), saved(config)
        changed = [name for name in now if name not in MAY_CHANGE and then[name] != now[name]]
        if "epochs" in changed:  # a training that is made longer
            lengths = {name: then[name] for name in ("epochs", "joint_epoch", "finetune_epoch")}
            shorter, learners = dataclasses.replace(config, **lengths), self.model.head.max_learners
            if why := difference_until(number_of_epochs(content), shorter, config, learners):
                raise RunError(
                    f"{path}: a training of {then['epochs']} epochs cannot have {config.epochs} `epochs`: {why}; start "
                    "another training from its model"
                )
            changed = [name for name in changed if name not in lengths]
        if changed:
            listed = "; ".join(f"`{name}`: {then[name]} then, {now[name]} now" for name in changed)
            raise RunError(f"{path}: cannot resume with other settings ({listed})")
        if not images.has_fingerprint(content["images"]):
            raise RunError(f"{path}: the training images or their labels have changed since; resume with the same data")
        self.model.freeze_batch_norm = content["freeze_batch_norm"]
        self.model.load_state_dict(content["model"])
        self.objectives.load_state_dict(content["objectives"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.precision.load_state_dict(content["precision"])
        if "features" in content:
            self.bank.load_state_dict(content["features"])
        self.average.load_state_dict(content.get("average", {}))
        self.division = _load_division(content["division"])
        self.epochs_done = content["epochs_done"]
        self.division_budget = content.get("division_budget", 0)
        sizes = content.get("file_sizes")  # format 2 has neither these nor ``inside``
        if sizes is not None:
            self.changed_files = resized(sizes.numpy(), self.file_sizes)
        inside = content.get("inside")
        if inside is not None:
            previous = _load_division(inside["previous"]) if inside.pop("redivided") else self.division
            # Checkpoints of before the distillation have none.
            names = [name for name in ("losses", "full_losses", "distillations") if name in inside]
            losses = {name: inside[name].tolist() for name in names}
            self.inside = EpochProgress(**{**inside, "previous": previous, **losses})


@dataclasses.dataclass
class EpochProgress:
    """How far the current epoch is, once its division is known."""

    previous: Division | None
    """The division of the epoch before."""
    batches: int = 0
    """Number of batches done."""
    losses: list[float] = dataclasses.field(default_factory=list)
    full_losses: list[float] = dataclasses.field(default_factory=list)
    distillations: list[float] = dataclasses.field(default_factory=list)
    seconds_dividing: float = 0.0
    seconds_training: float = 0.0


def _content(path: Path) -> dict[str, Any] | None:
    return read_checkpoint(path) if path.exists() else None


def model_in(
    path: Path, *, trust: Trust = (), backbone: nn.Module | None = None, eval_transform: Own | None = None
) -> EmbeddingModel:
    """The model of a checkpoint, in evaluation mode.

    Args:
        trust, backbone, eval_transform: as `EmbeddingModel.load` takes them.

    Raises:
        RunError: the file is damaged or of another format.
        WeightsError: the model cannot be created here. TrustError: as `EmbeddingModel.load`.
    """
    content = read_checkpoint(path)
    own: Any = {"backbone": backbone, "eval_transform": eval_transform}
    model = EmbeddingModel.from_config(content["made_with"], path, trust=trust, **own)
    model.load_state_dict(weights_in(content))
    model.freeze_batch_norm = content["freeze_batch_norm"]
    return model.eval()


def weights_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint's model: averaged, where the training averages them."""
    average = content.get("average", {})  # has buffers that are not saved, too
    return {name: average.get(name, value) for name, value in content["model"].items()}


def _division_to_save(division: Division | None) -> dict[str, torch.Tensor] | None:
    if division is None:
        return None
    return {name: torch.from_numpy(values) for name, values in division.tensors().items()}


def _load_division(tensors: dict[str, torch.Tensor] | None) -> Division | None:
    return None if tensors is None else Division.of_tensors({name: values.numpy() for name, values in tensors.items()})
