"""The report of an epoch, and the record of its losses, which stops training where one is not finite."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from divcon.data.labeled_set import LabeledSet
from divcon.division import Division
from divcon.errors import ConfigError, NonFiniteError
from divcon.models import SubspaceHead
from divcon.runtime.context import DEFAULT, Context, Progress
from divcon.training.losses import similarity_distillation
from divcon.training.sampler import EpochPlan
from divcon.training.schedule import Phase

_ROWS = ("", "full embedding, ", "distillation, ")
"""What messages call the losses of a batch."""


class LossRecord:
    """The losses of an epoch's batches, checked to be finite, and shared among all processes.

    On an accelerator a check waits for the device, so there is one every ``EVERY`` steps; on the CPU (``immediate``) it
    costs nothing, and comes before the weights change.
    """

    EVERY = 16

    def __init__(
        self, images: LabeledSet, plan: EpochPlan, epoch: int, context: Context = DEFAULT, *, immediate: bool
    ) -> None:
        self._images = images
        self._plan = plan
        self._epoch = epoch
        self._group = context.group
        self._immediate = immediate
        self._losses = np.full((len(_ROWS), len(plan.batches)), np.nan)
        """Row 0: the loss of each batch; row 1: the additional loss on the full embedding; row 2: the distillation of
        the features' similarities. Those from ``_synced`` on may be missing: not computed yet, or by another
        process."""
        self._unchecked: list[tuple[int, int, Tensor]] = []
        self._synced = 0
        self._steps_since_check = 0
        self.batches_done = 0
        """Batches of complete steps."""
        self.inside_a_step = False
        """Whether a loss of the next step was computed."""
        self._images_up_to = plan.batches.starts
        self.started = time.perf_counter()

    def loss(self, number: int, objective: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute and record the loss of batch ``number``, a scalar.

        Raises:
            ConfigError: the loss or its miner cannot compute such a batch.
            NonFiniteError: on the CPU: the embeddings (before a loss or miner fails on them) or the loss are NaN or
                infinite.
        """
        return self._recorded(0, number, objective, embeddings, labels)

    def full_loss(self, number: int, objective: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Compute and record the additional loss on the full embedding of batch ``number``, a scalar.

        Raises:
            ConfigError, NonFiniteError: as `loss`.
        """
        return self._recorded(1, number, objective, embeddings, labels)

    def distillation(self, number: int, embeddings: Tensor, features: Tensor, temperature: float) -> Tensor:
        """Compute and record the distillation of batch ``number``, a scalar (see `similarity_distillation`).

        Raises:
            NonFiniteError: as `loss`.
        """
        distil = partial(similarity_distillation, temperature=temperature)
        return self._recorded(2, number, distil, embeddings, features)

    def _recorded(
        self, row: int, number: int, objective: Callable[..., Tensor], embeddings: Tensor, target: Tensor
    ) -> Tensor:
        if self._immediate and not torch.isfinite(embeddings).all():
            self._stop(row, number, "the embeddings hold NaN or infinite values")
        try:
            loss = objective(embeddings, target)
        except ConfigError as error:
            raise ConfigError(f"{self._where(row, number)}: {error}", field=error.fields) from error
        self.inside_a_step = True
        self._unchecked.append((row, number, loss.detach()))
        if self._immediate:
            self._check()
        return loss

    def step_done(self, step: range) -> None:
        """Record that all processes have trained on the batches with these numbers.

        Raises:
            NonFiniteError: a loss that was recorded since the last check is NaN or infinite.
        """
        self.batches_done, self._steps_since_check = step.stop, self._steps_since_check + 1
        self.inside_a_step = False
        last = step.stop == len(self._plan.batches)
        if self._immediate or last or self._steps_since_check >= self.EVERY:
            self.sync()

    @property
    def synced(self) -> bool:
        """Whether all processes have the losses of all batches that are done."""
        return self._synced == self.batches_done

    def sync(self) -> None:
        """Check the losses that were not checked yet, and share them; all processes must call this.

        Raises:
            NonFiniteError: one is NaN or infinite.
        """
        self._check()
        new = slice(self._synced, self.batches_done)
        if not self._group.alone and self._group.across == "learners":
            mine = np.nan_to_num(self._losses[:, new])
            total, count = self._group.all_reduce(np.stack([mine, ~np.isnan(self._losses[:, new])]))
            self._losses[:, new] = np.where(count > 0, total, np.nan)
        self._synced, self._steps_since_check = self.batches_done, 0

    def _check(self) -> None:
        values = torch.stack([loss for _, _, loss in self._unchecked]).float().tolist() if self._unchecked else []
        for (row, number, _), value in zip(self._unchecked, values, strict=True):
            if not np.isfinite(value):
                self._stop(row, number, f"the loss is {value}")
            self._losses[row, number] = value
        self._unchecked.clear()

    def restore(
        self, values: list[float], full_values: list[float], distillation_values: list[float], seconds: float
    ) -> None:
        """Continue an epoch that was stopped after these losses and so many seconds."""
        for row, these in enumerate((values, full_values, distillation_values)):
            self._losses[row, : len(these)] = these
        self._synced = self.batches_done = len(values)
        self.started -= seconds

    @property
    def values(self) -> list[float]:
        """The losses of all batches up to the last that all processes have."""
        return self._losses[0, : self._synced].tolist()

    @property
    def full_values(self) -> list[float]:
        """The additional losses on the full embedding of the same batches; empty where there are none."""
        return [] if np.isnan(self._losses[1]).all() else self._losses[1, : self._synced].tolist()

    @property
    def distillation_values(self) -> list[float]:
        """The distillations of the same batches; empty where there are none."""
        return [] if np.isnan(self._losses[2]).all() else self._losses[2, : self._synced].tolist()

    @property
    def seconds(self) -> float:
        """Time spent on the epoch's batches so far."""
        return time.perf_counter() - self.started

    def _stop(self, row: int, number: int, reason: str) -> NoReturn:
        raise NonFiniteError(
            f"{self._where(row, number)}: {reason}; training stops, and the last checkpoint stays as it is. A smaller "
            "`lr` or `head_lr`, `warmup_epochs`, or `precision=fp32` may help"
        )

    def _where(self, row: int, number: int) -> str:
        batch = self._plan.batches[number]
        names = ", ".join(self._images.path(i) for i in batch.indices[:3])
        return (
            f"{_ROWS[row]}learner {batch.learner}, epoch {self._epoch}, batch {number} ({len(batch.indices)} images: "
            f"{names} ...)"
        )

    @property
    def images_done(self) -> tuple[int, int]:
        """Images trained on so far, and in the whole epoch."""
        return int(self._images_up_to[self.batches_done]), int(self._images_up_to[-1])

    @property
    def mean(self) -> float:
        return float(self._losses[0, : self._synced].mean()) if self._synced else float("nan")

    @property
    def full_mean(self) -> float | None:
        """The mean of the additional losses on the full embedding; None where there are none."""
        return float(np.mean(self.full_values)) if self.full_values else None

    @property
    def distillation_mean(self) -> float | None:
        """The mean of the distillations; None where there are none."""
        return float(np.mean(self.distillation_values)) if self.distillation_values else None

    def by_learner(self, num_learners: int) -> list[float | None]:
        """The mean loss of each learner; None for a learner without batches."""
        learner = self._plan.batches.learners
        values = np.array(self.values)
        return [float(values[learner == k].mean()) if (learner == k).any() else None for k in range(num_learners)]


@dataclass
class EpochReport:
    """The report of an epoch."""

    number: int
    """From 0."""
    phase: Phase
    loss: float = float("nan")
    """Mean over the batches."""
    learner_loss: list[float | None] = field(default_factory=list)
    """Mean over the batches of each learner; None for a learner without batches."""
    full_loss: float | None = None
    """Mean over the batches of the additional loss on the full embedding, before its weight; None where there is
    none."""
    distillation: float | None = None
    """Mean over the batches of the distillation of the features' similarities, before its weight; None where there is
    none."""
    division: Division = field(default=None, repr=False)  # type: ignore[assignment]
    """The division that the batches come from."""
    redivided: bool = False
    """Whether it is new in this epoch."""
    division_sample: int | None = None
    """Number of images (by class: of classes) that k-means was fitted on; None: all."""
    classes: tuple[int, ...] = ()
    """Number of classes of each learner."""
    kept_pairs: float = 0.0
    """Share of all positive pairs whose two images have the same learner."""
    changed: float | None = None
    """Share of the images that changed learner since the last division (in a hierarchy that has doubled: whose learner
    is no child of the old one); None where there is no division to compare with."""
    nmi_previous: float | None = None
    """Normalised mutual information with the last division, over the images in both."""
    batches: int = 0
    images: int = 0
    """Images trained on, repeats included."""
    distinct_images: float = 0.0
    """Mean number of distinct images a batch."""
    drawn: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    """(n,) int64, the training images in any batch, ascending."""
    penalty: float | None = None
    """The head's penalty at the end of the epoch, before its weight: for masks the mean cosine of two masks; None from
    the joint phase on."""
    lr: float = 0.0
    """The backbone's learning rate at the end of the epoch (the head's, where the backbone has no weights)."""
    seconds_dividing: float = 0.0
    seconds_training: float = 0.0
    warnings: tuple[str, ...] = ()
    """Learners that sat the epoch out, batches that could not be filled, changed files."""

    def record_division(
        self, division: Division, previous: Division | None, labels: np.ndarray, seconds: float
    ) -> None:
        """Record the division that this epoch trains on."""
        self.division = division
        self.redivided = division is not previous
        self.division_sample = division.sample
        self.classes = division.classes_per_learner(labels)
        self.kept_pairs = division.kept_pairs(labels)
        self.seconds_dividing = seconds
        if self.redivided and previous is not None and 2 * previous.num_learners == division.num_learners:
            division = division.merged()
        if self.redivided and previous is not None and previous.num_learners == division.num_learners:
            both = (division.learner >= 0) & (previous.learner >= 0)
            if both.any():
                now, then = division.learner[both], previous.learner[both]
                self.changed = float((now != then).mean())
                self.nmi_previous = float(normalized_mutual_info_score(then, now))

    def record_training(
        self,
        plan: EpochPlan,
        record: LossRecord,
        groups: list[dict[str, Any]],
        head: SubspaceHead,
    ) -> None:
        """Record the epoch's losses, batches and learning rate."""
        self.loss = record.mean
        self.learner_loss = record.by_learner(plan.num_learners)
        self.full_loss = record.full_mean
        self.distillation = record.distillation_mean
        self.batches = len(plan.batches)
        self.images = len(plan.batches.indices)
        self.distinct_images = plan.distinct_images
        drawn = np.zeros(len(self.division.learner), bool)
        drawn[plan.batches.indices] = True
        self.drawn = np.flatnonzero(drawn)
        self.lr = groups[0]["lr"]
        self.seconds_training = record.seconds
        self.warnings += plan.warnings
        if self.phase is Phase.SUBSPACE:
            self.penalty = float(head.penalty().detach())
            self.warnings += tuple(
                f"learner {k} is dead: its mask is zero in every dimension, so its embeddings are zero and it learns "
                "no more; use a smaller `mask_lr` or `mask_penalty`"
                for k in head.dead_learners()
            )

    def progress(self, record: LossRecord) -> Progress:
        """The progress of this epoch's training."""
        done, total = record.images_done
        return Progress(
            "train",
            done,
            total,
            epoch=self.number,
            phase=self.phase,
            sizes=self.division.sizes,
            loss=record.mean,
            images_per_second=done / max(1e-9, record.seconds),
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as ``metrics.jsonl`` keeps it: plain values, of the division its sizes."""
        values = {k: v for k, v in vars(self).items() if k not in ("division", "drawn")}
        values["phase"] = str(self.phase)
        values["sizes"] = list(self.division.sizes)
        values["left_out"] = self.division.num_left_out
        values["classes"] = list(self.classes)
        values["warnings"] = list(self.warnings)
        return {"epoch": values.pop("number"), **values}
