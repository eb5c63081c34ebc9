"""What keeps a training: after each epoch, every so many minutes inside of one, and when it is to stop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor

from divcon.config import TrainConfig
from divcon.data.file_sizes import file_sizes, resized
from divcon.data.image_set import ImageSet
from divcon.data.workers import worker_death
from divcon.divide import Division
from divcon.errors import DataError, Stopped, WorkerError
from divcon.processes import ALONE, Processes
from divcon.train.checkpoint import Inside, TrainState
from divcon.train.checkpoint_file import mend
from divcon.train.loader import TrainLoader
from divcon.train.report import EpochReport, LossRecord
from divcon.train.sampler import Batch, EpochPlan
from divcon.train.stop import Stop


class Keeper:
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
        images: ImageSet,
        stop: Stop | None,
        processes: Processes = ALONE,
    ) -> None:
        self._state = state
        self._path = None if path is None else Path(path)
        self._config = config
        self._images = images
        self._fingerprint = "" if path is None else images.fingerprint
        self._told: tuple[str, ...] = ()
        self._stop = stop or Stop()
        self._processes = processes
        self._record: LossRecord | None = None
        self._batches = 0
        if self._path is not None:
            if processes.first and (mended := mend(self._path)):
                warnings.warn(mended, stacklevel=3)
            processes.wait()  # nobody reads before it is mended
            state.file_sizes = file_sizes(images)
            if self._path.exists():
                state.load(self._path, config, self._fingerprint)
                self._told = self._other_files(state.changed_files, "before the stop")
        processes.begin_alike(state.model, state.objectives)
        self.resumes = state.inside is not None
        """Whether the epoch at hand was divided for before a stop."""
        self._saved = time.perf_counter()

    def __enter__(self) -> Keeper:
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
        with self._stop.held():
            steps = list(plan.steps(self._config.batches_per_step, inside.batches))
            numbers = [number for step in steps for number in self._processes.batches(step)]
            mine = loader.batches(plan, report.number, labels, numbers)
            for step in steps:
                yield step, islice(mine, len(self._processes.batches(step)))
                inside.batches = step.stop
                if not record.settled and not self._processes.alone:
                    continue  # the others know losses that are to be kept, too
                minutes = (time.perf_counter() - self._saved) / 60
                if self._config.checkpoint_minutes and minutes >= self._config.checkpoint_minutes:
                    self._save()
                self._stop.check()
        if report.number == self._config.epochs - 1 and self._path is not None and self._processes.first:
            replaced = resized(self._state.file_sizes, file_sizes(self._images))
            report.warnings += self._other_files(replaced, "when the training began")

    def epoch_done(self, epoch: int) -> None:
        """Keep the state after an epoch.

        Raises:
            Stopped: that was asked for meanwhile.
            OutputError: the state cannot be kept.
        """
        with self._stop.held():
            self._state.epochs_done, self._state.inside, self._record = epoch + 1, None, None
            self._save()
        self._stop.check()

    def _between_steps(self) -> bool:
        inside = self._state.inside
        if self._record is None or inside is None or self._record.inside_a_step:
            return False
        return self._record.settled or self._processes.alone

    def _save(self) -> None:
        if self._path is None or not self._processes.first:
            return
        inside = self._state.inside
        if inside is not None and self._record is not None:
            if self._processes.alone:
                self._record.settle()
            inside.losses, inside.full_losses = self._record.values, self._record.full_values
            inside.seconds_training = self._record.seconds
        with self._stop.held():
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
