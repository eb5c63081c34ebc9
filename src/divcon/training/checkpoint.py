"""What keeps a training: after each epoch, every so many minutes inside of one, and when it is to stop."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import time
from collections.abc import Iterator
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
from divcon.division import Division
from divcon.errors import DataError, RunError, Stopped, WorkerError
from divcon.models import EmbeddingModel
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.files import atomic_write
from divcon.runtime.importing import Trust
from divcon.runtime.signals import SignalHandler
from divcon.training.feature_bank import FeatureBank
from divcon.training.loader import TrainLoader
from divcon.training.report import EpochReport, LossRecord
from divcon.training.sampler import Batch, EpochPlan

FORMAT = 3
READ = (2, 3)
"""The formats that are read: 2 had no checksum and was written between epochs alone."""

_MARK = b"\nsha256 of all above: "
_LENGTH = len(_MARK) + 64 + 1


class DamagedError(RunError):
    """A checkpoint's bytes are not those that were written."""


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` is."""
    return path.with_name(path.name + ".previous")


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write, whole or not at all; what was there becomes the previous one.

    Raises:
        OutputError: the file cannot be written; what was there is kept.
    """
    # By way of memory: PyTorch's own writer says of a full disk only that an assertion failed.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.seek(0, io.SEEK_END)
    # After the end, where PyTorch's reader, like any of zip files, passes it over.
    buffer.write(_MARK + digest.encode() + b"\n")
    with atomic_write(path, previous=previous_of(path)) as beside:
        beside.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, of tensors and plain values only: no code in it is run.

    Raises:
        RunError: the file is damaged (`DamagedError`), cannot be read, or is of a format that this version does not
            know.
    """
    try:
        checked = _checked(path)
    except OSError as error:
        raise RunError(f"{path}: the checkpoint cannot be read ({error.strerror or error})") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's reader fails in a dozen ways on bytes that are not its own, OSError among them.
        raise _damaged(path, type(error).__name__) from None
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise RunError(f"{path}: is no checkpoint of divcon; give another --out, or remove it to begin anew")
    if found not in READ:
        raise RunError(
            f"{path}: the checkpoint has format {found}, and this version of divcon reads {READ[0]} to {READ[-1]}; go "
            "on with the version that wrote it (versions in config.json), or begin anew in another --out, from the "
            "model that is kept with --init"
        )
    if found >= FORMAT and not checked:
        raise _damaged(path, "its checksum is missing")
    return content


def mend(path: Path) -> str | None:
    """Put the previous checkpoint in the place of one that is damaged.

    Returns:
        What a person should know; None where there was nothing to mend, or nothing to mend it with.
    """
    previous = previous_of(path)
    if not (path.exists() and previous.exists()):
        return None
    try:
        if not _checked(path):
            read_checkpoint(path)
    except DamagedError:
        try:
            before = read_checkpoint(previous)
        except RunError:
            return None
        previous.replace(path)
        inside = f" and {before['inside']['batches']} batches" if before.get("inside") else ""
        return (
            f"{path}: the checkpoint was damaged, and the one before it is used, of {before['epochs_done']} "
            f"epochs{inside}; what was trained since is trained again"
        )
    except (RunError, OSError):
        pass  # said by who reads it
    return None


def _checked(path: Path) -> bool:
    """Whether the file has a checksum. Raises DamagedError where it has another content."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _LENGTH))
        found = re.fullmatch(re.escape(_MARK) + rb"([0-9a-f]{64})\n", file.read())
        if found is None:
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - _LENGTH
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    if digest.hexdigest().encode() != found[1]:
        raise _damaged(path, "its checksum is another one")
    return True


def _damaged(path: Path, how: str) -> DamagedError:
    also = " and so is the one before it" if previous_of(path).exists() else ""
    return DamagedError(
        f"{path}: the checkpoint is damaged ({how}){also}; begin anew in another --out, from the model that is kept "
        "with --init"
    )


MAY_CHANGE = {"workers", "device", "devices", "across", "checkpoint_minutes"}
"""Settings that may differ between the parts of a resumed training: they do not change what is trained."""


@dataclasses.dataclass
class Inside:
    """How far an epoch is that has been divided for."""

    previous: Division | None
    """The division of the epoch before."""
    batches: int = 0
    """Batches done."""
    losses: list[float] = dataclasses.field(default_factory=list)
    full_losses: list[float] = dataclasses.field(default_factory=list)
    seconds_dividing: float = 0.0
    seconds_training: float = 0.0


@dataclasses.dataclass
class TrainState:
    """What training changes. Random numbers are not part of it: each batch draws its own from (seed, epoch, number)."""

    model: EmbeddingModel
    objectives: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Any
    """Fabric's precision plugin, which holds the gradient scaler under fp16."""
    features: FeatureBank
    division: Division | None = None
    epochs_done: int = 0
    file_sizes: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """(N,) int64, of the training images; empty where they are no files."""
    changed_files: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """(n,) int64, the training images whose files had another size when the training was kept."""
    inside: Inside | None = None
    """Of the epoch after those that are done; None before it is divided for."""

    def save(self, path: Path, config: TrainConfig, images: str) -> None:
        """Write, whole or not at all.

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
            "features": self.features.state_dict(),
            "division": _plain(self.division),
            "file_sizes": torch.from_numpy(self.file_sizes),
            "inside": None,
        }
        if self.inside is not None:
            same = self.inside.previous is self.division
            content["inside"] = {
                **vars(self.inside),
                "previous": None if same else _plain(self.inside.previous),
                "redivided": not same,
                "losses": torch.tensor(self.inside.losses, dtype=torch.float64),
                "full_losses": torch.tensor(self.inside.full_losses, dtype=torch.float64),
            }
        write_checkpoint(path, content)

    def load(self, path: Path, config: TrainConfig, images: LabeledSet) -> None:
        """Go on from ``path``.

        Raises:
            RunError: the file is damaged, or belongs to a training with other settings or data.
        """
        content = read_checkpoint(path)
        then, now = restored(type(config), content["config"]), saved(config)
        changed = [name for name in now if name not in MAY_CHANGE and then[name] != now[name]]
        if changed:
            listed = "; ".join(f"`{name}`: {then[name]} then, {now[name]} now" for name in changed)
            raise RunError(f"{path}: cannot go on with other settings than it began with ({listed})")
        if not images.has_fingerprint(content["images"]):
            raise RunError(f"{path}: the training images or their labels have changed since; resume with the same data")
        self.model.freeze_batch_norm = content["freeze_batch_norm"]
        self.model.load_state_dict(content["model"])
        self.objectives.load_state_dict(content["objectives"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.precision.load_state_dict(content["precision"])
        if "features" in content:
            self.features.load_state_dict(content["features"])
        self.division = _division(content["division"])
        self.epochs_done = content["epochs_done"]
        then = content.get("file_sizes")  # like the following, not in format 2
        if then is not None:
            self.changed_files = resized(then.numpy(), self.file_sizes)
        inside = content.get("inside")
        if inside is not None:
            previous = _division(inside["previous"]) if inside.pop("redivided") else self.division
            losses = {name: inside[name].tolist() for name in ("losses", "full_losses")}
            self.inside = Inside(**{**inside, "previous": previous, **losses})


def model_in(path: Path, *, trust: Trust = (), backbone: nn.Module | None = None) -> EmbeddingModel:
    """The model of a checkpoint, in evaluation mode.

    Args:
        trust, backbone: as `EmbeddingModel.load` takes them.

    Raises:
        RunError: the file is damaged or of another format.
        WeightsError: the model cannot be created here. TrustError: as `EmbeddingModel.load`.
    """
    content = read_checkpoint(path)
    model = EmbeddingModel.from_config(content["made_with"], path, trust=trust, backbone=backbone)
    model.load_state_dict(content["model"])
    model.freeze_batch_norm = content["freeze_batch_norm"]
    return model.eval()


def _plain(division: Division | None) -> dict[str, torch.Tensor] | None:
    if division is None:
        return None
    return {"learner": torch.from_numpy(division.learner), "centroids": torch.from_numpy(division.centroids)}


def _division(held: dict[str, torch.Tensor] | None) -> Division | None:
    return None if held is None else Division(np.asarray(held["learner"]), np.asarray(held["centroids"]))


class Checkpointer:
    """Keeps the state of a training in a file, and goes on from what is there.

    A context manager around the training: where it is stopped, or where its data fails it, the state is kept as the
    last whole batch left it.

    Args:
        path: the file; None keeps nothing. All processes read it, and the first writes it.
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
        self._path = None if path is None else Path(path)
        self._config = config
        self._images = images
        self._fingerprint = "" if path is None else images.fingerprint
        self._told: tuple[str, ...] = ()
        self._stop = stop or SignalHandler()
        self._group = group = context.group
        self._record: LossRecord | None = None
        self._batches = 0
        if self._path is not None:
            if group.is_main and (mended := mend(self._path)):
                context.warn(mended)
            group.barrier()  # nobody reads before it is mended
            state.file_sizes = file_sizes(images)
            if self._path.exists():
                state.load(self._path, config, images)
                self._told = self._other_files(state.changed_files, "before the stop")
        group.broadcast_parameters(state.model, state.objectives)
        self.resumes = state.inside is not None
        """Whether the epoch at hand was divided for before a stop."""
        self._saved = time.perf_counter()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Of other errors nobody knows whether the weights are whole: they may have come in the middle of a step.
        if isinstance(error, (Stopped, DataError, WorkerError)) and self._between_steps():
            self._save()
        if isinstance(error, Stopped):
            error.args = (f"stopped {self._where()}",)
        # PyTorch tells of a killed worker wherever the main process is at that moment.
        if error is not None and (told := worker_death(error)) is not None:
            raise told from None

    @property
    def previous(self) -> Division | None:
        """The division of the epoch before the one at hand."""
        return self._state.division if self._state.inside is None else self._state.inside.previous

    def divided(self, division: Division, previous: Division | None) -> None:
        """The epoch at hand trains on this division."""
        self._state.division = division
        if not self.resumes:
            self._state.inside = Inside(previous)

    def steps(
        self, loader: TrainLoader, plan: EpochPlan, labels: np.ndarray, report: EpochReport, record: LossRecord
    ) -> Iterator[tuple[range, Iterator[tuple[int, Batch, Tensor, Tensor]]]]:
        """The steps of the epoch at hand that are not done yet, each with those of its batches that this process
        trains on. What ``record`` and ``report`` knew before a stop they know again.

        Raises:
            Stopped: that was asked for, and the step is done.
            OutputError: the state cannot be kept.
            ImageError: an image does not decode.
        """
        inside = self._state.inside
        assert inside is not None, "divided before"
        if self.resumes:
            record.restore(inside.losses, inside.full_losses, inside.seconds_training)
            report.seconds_dividing = inside.seconds_dividing
        inside.seconds_dividing = report.seconds_dividing
        report.warnings += self._told
        self._told = ()
        self.resumes, self._record, self._batches = False, record, len(plan.batches)
        with self._stop.deferred():
            steps = list(plan.steps(self._config.batches_per_step, inside.batches))
            numbers = [number for step in steps for number in self._group.batches(step)]
            mine = loader.batches(plan, report.number, labels, numbers)
            for step in steps:
                yield step, islice(mine, len(self._group.batches(step)))
                inside.batches = step.stop
                if not record.settled and not self._group.alone:
                    continue  # the others know losses that are to be kept, too
                minutes = (time.perf_counter() - self._saved) / 60
                if self._config.checkpoint_minutes and minutes >= self._config.checkpoint_minutes:
                    self._save()
                self._stop.check()
        if report.number == self._config.epochs - 1 and self._path is not None and self._group.is_main:
            replaced = resized(self._state.file_sizes, file_sizes(self._images))
            report.warnings += self._other_files(replaced, "when the training began")

    def epoch_done(self, epoch: int) -> None:
        """Keep the state after an epoch.

        Raises:
            Stopped: that was asked for meanwhile.
            OutputError: the state cannot be kept.
        """
        with self._stop.deferred():
            self._state.epochs_done, self._state.inside, self._record = epoch + 1, None, None
            self._save()
        self._stop.check()

    def _between_steps(self) -> bool:
        inside = self._state.inside
        if self._record is None or inside is None or self._record.inside_a_step:
            return False
        return self._record.settled or self._group.alone

    def _save(self) -> None:
        if self._path is None or not self._group.is_main:
            return
        inside = self._state.inside
        if inside is not None and self._record is not None:
            if self._group.alone:
                self._record.settle()
            inside.losses, inside.full_losses = self._record.values, self._record.full_values
            inside.seconds_training = self._record.seconds
        with self._stop.deferred():
            self._state.save(self._path, self._config, self._fingerprint)
        self._saved = time.perf_counter()

    def _other_files(self, which: np.ndarray, when: str) -> tuple[str, ...]:
        if not len(which):
            return ()
        return (
            f"{len(which)} training images have other files than {when} (the first: {self._images.where(which[0])}); "
            "each was trained on as it was found, and the run is not bit for bit what it would have been",
        )

    def _where(self) -> str:
        inside, epoch = self._state.inside, self._state.epochs_done
        if inside is None or self._record is None:
            return f"before the first batch of epoch {epoch}"
        return f"in epoch {epoch} after {inside.batches} of {self._batches} batches"
