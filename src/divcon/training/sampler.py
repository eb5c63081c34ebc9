"""The batches of an epoch: one class-balanced stream of batches for each learner, and the learners take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from torch.utils.data import Sampler

from divcon.config.settings import Rounds, SmallClasses
from divcon.division import Division
from divcon.errors import DataError
from divcon.training.decks import Cluster, deal

BLOCK = 1 << 20
"""Images that are compared at once."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The images of a batch, all from one learner's cluster."""

    learner: int
    indices: np.ndarray
    """(B,) int64 into the training images."""


class Batches(Sequence[Batch]):
    """The batches of an epoch, one after the other in arrays: a batch is created when it is asked for, as ten million
    images make more of them than Python holds in little memory."""

    def __init__(self, learners: np.ndarray, indices: np.ndarray, starts: np.ndarray) -> None:
        self.learners = learners
        """(n,) int64, the learner of each batch."""
        self.indices = indices
        """The images of all batches, int64."""
        self.starts = starts
        """(n + 1,) int64: batch i has the images from ``starts[i]`` to ``starts[i + 1]``."""

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Batches:
        """Of single batches."""
        indices = [batch.indices for batch in batches]
        starts = np.cumsum([0, *map(len, indices)])
        return cls(np.array([b.learner for b in batches], np.int64), np.concatenate([*indices, []]).astype(int), starts)

    def __len__(self) -> int:
        return len(self.learners)

    @overload
    def __getitem__(self, number: int) -> Batch: ...
    @overload
    def __getitem__(self, number: slice) -> list[Batch]: ...
    def __getitem__(self, number: int | slice) -> Batch | list[Batch]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        i = range(len(self))[number]
        return Batch(int(self.learners[i]), self.indices[self.starts[i] : self.starts[i + 1]])


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """All batches of an epoch."""

    batches: Batches
    warnings: tuple[str, ...]
    """Learners that sit the epoch out, and batches that cannot be filled."""
    num_learners: int

    def steps(self, learners_per_step: int, first: int = 0) -> Iterator[range]:
        """The batch numbers of each step of the optimiser, starting with batch ``first``."""
        for start in range(first, len(self.batches), learners_per_step):
            yield range(start, min(start + learners_per_step, len(self.batches)))

    @property
    def distinct_images(self) -> float:
        """Mean number of distinct images per batch."""
        starts, indices = self.batches.starts, self.batches.indices
        sizes, counts = np.diff(starts), np.empty(len(self.batches))
        for size in np.unique(sizes).tolist():
            of_size = np.flatnonzero(sizes == size)
            step = max(1, BLOCK // max(1, size))
            for i in range(0, len(of_size), step):
                some = of_size[i : i + step]
                rows = np.sort(indices[starts[some, None] + np.arange(size)], axis=1)
                counts[some] = (rows[:, 1:] != rows[:, :-1]).sum(axis=1) + (size > 0)
        return float(counts.mean())


def plan_epoch(
    division: Division,
    labels: np.ndarray,
    *,
    num_learners: int | None = None,
    batch_size: int,
    images_per_class: int,
    small_classes: SmallClasses = "repeat",
    rounds: Rounds = "epoch",
    seed: int,
    epoch: int,
) -> EpochPlan:
    """Plan the batches of an epoch; the plan depends on the arguments alone.

    Args:
        labels: (N,) int64, of all training images.
        num_learners: the number of learners that take turns; None: that of the division. Any number can share a
            division of one cluster, each with a stream of its own.
        batch_size: B; a batch has B // M classes of M images. From a cluster with fewer classes it has more images of
            each.
        images_per_class: M.
        small_classes: for a class with fewer than M images in its cluster: ``repeat`` them (2019), or ``fill`` its
            places with other images of the cluster (2021). Where the cluster has C < B // M classes, ``fill`` takes
            B // C of each.
        rounds: ``epoch``: N // B batches. ``longest``, ``shortest``: each learner has as many as the largest, or the
            smallest, cluster of n images has, n // B.

    Raises:
        DataError: no learner has two classes with a positive pair.
    """
    num_batches = max(1, len(labels) // batch_size)
    num_learners = num_learners or division.num_learners
    lengths: list[int] = []
    streams: list[_Stream] = []
    warnings: list[str] = []
    fill = small_classes == "fill"
    cluster = None
    for learner in range(num_learners):
        if cluster is None or division.num_learners > 1:
            cluster = Cluster.of(division.indices(learner), labels)
        if cluster.num_classes < 2:
            warnings.append(
                f"learner {learner} sits epoch {epoch} out: its {cluster.size} images are of {cluster.num_classes} "
                "classes with a positive pair, and a batch needs two"
            )
            continue
        take, size = _take(cluster, batch_size, images_per_class, fill)
        if size < batch_size // images_per_class * images_per_class:
            warnings.append(
                f"learner {learner} has batches of {size} images, not {batch_size}: its cluster has "
                f"{cluster.num_classes} classes, {cluster.size} images"
            )
        lengths.append(max(1, cluster.size // batch_size))
        streams.append(_Stream(learner, cluster, take, size))
    if not streams:
        raise DataError(
            "no learner has two classes with two images each, so no batch has both a positive and a negative pair; "
            "use fewer learners (`num_learners`), divide by class (`divide_by=class`), or add images to the classes"
        )
    # Turns continue across epochs, so that it is not always the same learner that has one batch more.
    first = epoch * num_batches
    if rounds != "epoch":
        first, num_batches = 0, len(streams) * (max if rounds == "longest" else min)(lengths)
    turns = np.arange(first, first + num_batches) % len(streams)
    starts = np.concatenate([[0], np.cumsum(np.array([stream.size for stream in streams])[turns])])
    indices = np.empty(starts[-1], np.int64)
    for turn, stream in enumerate(streams):
        begins = starts[:-1][turns == turn]
        rng = np.random.default_rng([seed, epoch, stream.learner])
        done = 0
        for batches in deal(stream.cluster, len(begins), stream.take, batch_size // images_per_class, stream.size, rng):
            indices[begins[done : done + len(batches), None] + np.arange(stream.size)] = batches
            done += len(batches)
    learners = np.array([stream.learner for stream in streams], np.int64)[turns]
    return EpochPlan(Batches(learners, indices, starts), tuple(warnings), num_learners)


class LearnerBatchSampler(Sampler[list[int]]):
    """The batches of `plan_epoch` for a training loop of your own: ``DataLoader(dataset, batch_sampler=sampler)``.

    Each batch is of one learner's cluster, class-balanced, and the learners take turns; ``learners`` has the learner of
    each batch of the epoch::

        sampler.division = dc.divide(features, labels, num_learners, previous=sampler.division)
        sampler.set_epoch(epoch)
        for learner, (images, targets) in zip(sampler.learners, loader):
            ...

    Args:
        labels: (N,) ints or strings, of all items of the data set, in its order.
        batch_size, images_per_class, small_classes, rounds, seed: as of `plan_epoch`.
        division: of the N items among the learners; None: all items in one cluster, as to conquer.
        num_learners: as of `plan_epoch`.
        rank, world_size: of several processes, each takes every ``world_size``-th batch, so that a step trains as many
            learners at once; a last step that not every process has a batch for is left out.

    Raises:
        ValueError: a number out of bounds, or a division of another number of items.
        DataError: no learner has two classes with a positive pair (when the batches are asked for).
    """

    def __init__(
        self,
        labels: object,
        batch_size: int,
        images_per_class: int = 4,
        *,
        division: Division | None = None,
        num_learners: int | None = None,
        small_classes: SmallClasses = "repeat",
        rounds: Rounds = "epoch",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        values: Any = labels
        values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
        self.labels = np.unique(np.asarray(values), return_inverse=True)[1].astype(np.int64)
        """(N,) int64, from 0 on in the order of the sorted labels: what the losses take."""
        if not 1 <= images_per_class <= batch_size // 2:
            raise ValueError(
                f"images_per_class {images_per_class} in a batch of {batch_size}: a batch needs two classes at least"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes: must be 0 to {world_size - 1}")
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "images_per_class": images_per_class,
            "rounds": rounds,
            "seed": seed,
        }
        self._options |= {"small_classes": small_classes, "num_learners": num_learners}
        self._rank, self._world_size, self._epoch = rank, world_size, 0
        self._plan: EpochPlan | None = None
        self.division = division

    @property
    def division(self) -> Division | None:
        """The division of the items among the learners; set another one between epochs. None: one cluster of all."""
        return self._division

    @division.setter
    def division(self, division: Division | None) -> None:
        if division is not None and len(division.learner) != len(self.labels):
            raise ValueError(
                f"the division is of {len(division.learner):,} items, and there are {len(self.labels):,} labels"
            )
        self._division, self._plan = division, None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0 on, which the batches depend on: call it before each."""
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, None

    @property
    def plan(self) -> EpochPlan:
        """All batches of this epoch, those of other processes too, with ``warnings``: the learners that sit it out."""
        if self._plan is None:
            division = Division.whole(self.labels) if self._division is None else self._division
            self._plan = plan_epoch(division, self.labels, epoch=self._epoch, **self._options)
        return self._plan

    @property
    def _numbers(self) -> range:
        whole = len(self.plan.batches) // self._world_size * self._world_size
        return range(self._rank, whole, self._world_size)

    @property
    def learners(self) -> list[int]:
        """The learner of each batch of this epoch."""
        return [int(self.plan.batches.learners[number]) for number in self._numbers]

    def __iter__(self) -> Iterator[list[int]]:
        for number in self._numbers:
            yield self.plan.batches[number].indices.tolist()

    def __len__(self) -> int:
        return len(self._numbers)


@dataclass(frozen=True, eq=False)
class _Stream:
    """The batches of a learner."""

    learner: int
    cluster: Cluster
    take: np.ndarray
    """(C,) int64: the number of images of each class in a batch."""
    size: int
    """The number of images in a batch."""


def _take(cluster: Cluster, batch_size: int, images_per_class: int, fill: bool) -> tuple[np.ndarray, int]:
    """(C,) int64, the number of images of each class in a batch: M, or with ``fill`` as many as there are. In a batch
    with all classes the remaining places go one by one to classes that have more images; with ``fill`` each class has
    B // C of them, before places go to other images. And the size of a batch."""
    counts, places = cluster.counts, batch_size // images_per_class
    if fill:
        each = images_per_class if len(counts) >= places else batch_size // len(counts)
        return np.minimum(each, counts), min(batch_size, len(cluster.cards))
    take = np.full(len(counts), images_per_class)
    if len(counts) >= places:
        return take, places * images_per_class
    left = batch_size - int(take.sum())
    while left > 0 and len(open_classes := np.flatnonzero(counts > take)):
        take[open_classes[:left]] += 1
        left -= min(left, len(open_classes))
    return take, int(take.sum())
