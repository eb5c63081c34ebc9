"""What training says of itself: a report an epoch, progress after each batch, and a stop where a loss is not finite."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
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
from divcon.training.sampler import EpochPlan
from divcon.training.schedule import Phase

_WHOSE = ("", "full embedding, ")


class LossRecord:
    """The losses of an epoch's batches, checked to be finite, and told to all processes.

    On an accelerator a check waits for the device, so it is made every ``EVERY`` steps; on the CPU (``immediate``) it
    costs nothing and is made before the weights change.
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
        self._losses = np.full((2, len(plan.batches)), np.nan)
        """Of each batch its own, and that on the full embedding beside it; those beyond ``_settled`` may be another
        process's, or not computed yet."""
        self._waiting: list[tuple[int, int, Tensor]] = []
        self._settled = 0
        self._steps_waiting = 0
        self.batches_done = 0
        """Of whole steps."""
        self.inside_a_step = False
        """Whether a loss of the next step was computed."""
        self._shown = np.cumsum([0, *(len(batch.indices) for batch in plan.batches)])
        self.started = time.perf_counter()

    def loss(self, number: int, objective: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of batch ``number``, a scalar, recorded.

        Raises:
            ConfigError: the loss or its miner cannot do with such a batch.
            NonFiniteError: on the CPU: the embeddings (before a loss or miner stumbles over them) or the loss are NaN
                or infinite.
        """
        return self._recorded(0, number, objective, embeddings, labels)

    def full_loss(self, number: int, objective: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss on the full embedding beside the batch's own, a scalar, recorded apart.

        Raises:
            ConfigError, NonFiniteError: as `loss`.
        """
        return self._recorded(1, number, objective, embeddings, labels)

    def _recorded(self, row: int, number: int, objective: nn.Module, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self._immediate and not torch.isfinite(embeddings).all():
            self._stop(number, "the embeddings hold NaN or infinite values", _WHOSE[row])
        try:
            loss = objective(embeddings, labels)
        except ConfigError as error:
            raise ConfigError(f"{_WHOSE[row]}{self._named(number)}: {error}") from error
        self.inside_a_step = True
        self._waiting.append((row, number, loss.detach()))
        if self._immediate:
            self._look()
        return loss

    def step_done(self, step: range) -> None:
        """The batches with these numbers are done, in whatever process.

        Raises:
            NonFiniteError: a loss that was recorded since the last check is NaN or infinite.
        """
        self.batches_done, self._steps_waiting = step.stop, self._steps_waiting + 1
        self.inside_a_step = False
        last = step.stop == len(self._plan.batches)
        if self._immediate or last or self._steps_waiting >= self.EVERY:
            self.settle()

    @property
    def settled(self) -> bool:
        """Whether all processes know the losses of all batches that are done."""
        return self._settled == self.batches_done

    def settle(self) -> None:
        """Check the losses that were not checked yet; all processes at once, for they tell each other theirs.

        Raises:
            NonFiniteError: one is NaN or infinite.
        """
        self._look()
        new = slice(self._settled, self.batches_done)
        if not self._group.alone and self._group.across == "learners":
            mine = np.nan_to_num(self._losses[:, new])
            told = self._group.all_reduce(np.stack([mine, ~np.isnan(self._losses[:, new])]))
            self._losses[:, new] = np.where(told[1] > 0, told[0], np.nan)
        self._settled, self._steps_waiting = self.batches_done, 0

    def _look(self) -> None:
        values = torch.stack([loss for _, _, loss in self._waiting]).float().tolist() if self._waiting else []
        for (row, number, _), value in zip(self._waiting, values, strict=True):
            if not np.isfinite(value):
                self._stop(number, f"the loss is {value}", _WHOSE[row])
            self._losses[row, number] = value
        self._waiting.clear()

    def restore(self, values: list[float], full_values: list[float], seconds: float) -> None:
        """Go on with an epoch that was stopped after these losses and so many seconds."""
        self._losses[0, : len(values)], self._losses[1, : len(full_values)] = values, full_values
        self._settled = self.batches_done = len(values)
        self.started -= seconds

    @property
    def values(self) -> list[float]:
        """The losses of the first batches, as far as all are known."""
        return self._losses[0, : self._settled].tolist()

    @property
    def full_values(self) -> list[float]:
        """Likewise of those on the full embedding beside them; empty where there are none."""
        return [] if np.isnan(self._losses[1]).all() else self._losses[1, : self._settled].tolist()

    @property
    def seconds(self) -> float:
        """Spent on the epoch's batches so far."""
        return time.perf_counter() - self.started

    def _stop(self, number: int, what: str, whose: str) -> NoReturn:
        raise NonFiniteError(
            f"{whose}{self._named(number)}: {what}; training stops, and the last checkpoint stays as it is. A smaller "
            "--lr or --head-lr, --warmup-epochs, or --precision fp32 may help"
        )

    def _named(self, number: int) -> str:
        batch = self._plan.batches[number]
        names = ", ".join(self._images.path(i) for i in batch.indices[:3])
        return (
            f"learner {batch.learner}, epoch {self._epoch}, batch {number} ({len(batch.indices)} images: {names} ...)"
        )

    @property
    def images_done(self) -> tuple[int, int]:
        """Images shown so far, and in the whole epoch."""
        return int(self._shown[self.batches_done]), int(self._shown[-1])

    @property
    def mean(self) -> float:
        return float(self._losses[0, : self._settled].mean()) if self._settled else float("nan")

    @property
    def full_mean(self) -> float | None:
        """None where the full embedding had no loss beside the learners'."""
        return float(np.mean(self.full_values)) if self.full_values else None

    def by_learner(self, num_learners: int) -> list[float | None]:
        """The mean loss of each learner; None where it had no batch."""
        learner = np.array([batch.learner for batch in self._plan.batches])
        values = np.array(self.values)
        return [float(values[learner == k].mean()) if (learner == k).any() else None for k in range(num_learners)]


@dataclass
class EpochReport:
    """What happened in an epoch."""

    number: int
    """From 0."""
    phase: Phase
    loss: float = float("nan")
    """Mean over the batches."""
    learner_loss: list[float | None] = field(default_factory=list)
    """Mean over each learner's batches; None where it had none."""
    full_loss: float | None = None
    """Mean over the batches of the loss on the full embedding beside the learner's, not weighted; None where there is
    none."""
    division: Division = field(default=None, repr=False)  # type: ignore[assignment]
    """The division that the batches came from."""
    redivided: bool = False
    """Whether it was made in this epoch."""
    classes: tuple[int, ...] = ()
    """Classes that each learner has images of."""
    kept_pairs: float = 0.0
    """Share of all positive pairs whose two images are with the same learner."""
    changed: float | None = None
    """Share of the images that changed learner since the last division (in a hierarchy that has grown: of which the
    new learner is no child of the old one); None where there is none to compare."""
    nmi_previous: float | None = None
    """Normalised mutual information with the last division, over the images that are in both."""
    batches: int = 0
    images: int = 0
    """Images shown, repeats included."""
    distinct_images: float = 0.0
    """Mean number of distinct images a batch."""
    drawn: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    """(n,) int64, the training images that any batch held, ascending."""
    penalty: float | None = None
    """What the head's penalty is at the end of the epoch, before it is multiplied: the mean cosine of two masks under
    masks; None from the joint phase on."""
    lr: float = 0.0
    """The backbone's learning rate at the end of the epoch (the head's, where the backbone has nothing to learn)."""
    seconds_dividing: float = 0.0
    seconds_training: float = 0.0
    warnings: tuple[str, ...] = ()
    """Learners that sat out, batches that could not be filled."""

    def divided(self, division: Division, previous: Division | None, labels: np.ndarray, seconds: float) -> None:
        """Take in the division that this epoch trains on."""
        self.division = division
        self.redivided = division is not previous
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

    def trained(
        self,
        plan: EpochPlan,
        record: LossRecord,
        groups: list[dict[str, Any]],
        head: SubspaceHead,
    ) -> None:
        """Take in what the epoch's batches gave."""
        self.loss = record.mean
        self.learner_loss = record.by_learner(plan.num_learners)
        self.full_loss = record.full_mean
        self.batches = len(plan.batches)
        self.images = sum(len(batch.indices) for batch in plan.batches)
        self.distinct_images = plan.distinct_images
        self.drawn = np.unique(np.concatenate([batch.indices for batch in plan.batches]))
        self.lr = groups[0]["lr"]
        self.seconds_training = record.seconds
        self.warnings += plan.warnings
        if self.phase is Phase.SUBSPACE:
            self.penalty = float(head.penalty().detach())
            self.warnings += tuple(
                f"learner {k} is dead: its mask is zero in every dimension, so its embeddings are zero and it learns "
                "no more; give a smaller --mask-lr or --mask-penalty"
                for k in head.dead_learners()
            )

    def progress(self, record: LossRecord) -> Progress:
        """How far the training of this epoch is."""
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
        """As ``metrics.jsonl`` holds it: plain values, the division by its sizes."""
        values = {k: v for k, v in vars(self).items() if k not in ("division", "drawn")}
        values["phase"] = str(self.phase)
        values["sizes"] = list(self.division.sizes)
        values["left_out"] = self.division.num_left_out
        values["classes"] = list(self.classes)
        values["warnings"] = list(self.warnings)
        return {"epoch": values.pop("number"), **values}
