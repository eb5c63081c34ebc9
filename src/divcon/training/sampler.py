"""The batches of an epoch: one class-balanced stream of batches for each learner, and the learners take turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from divcon.config.settings import Rounds, SmallClasses
from divcon.division import Division
from divcon.errors import DataError


@dataclass(frozen=True, eq=False)
class Batch:
    """The images of a batch, all from one learner's cluster."""

    learner: int
    indices: np.ndarray
    """(B,) int64 into the training images."""


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """All batches of an epoch."""

    batches: list[Batch]
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
        return float(np.mean([len(np.unique(batch.indices)) for batch in self.batches]))


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
            places with other images of the cluster (2021).
        rounds: ``epoch``: N // B batches. ``longest``, ``shortest``: each learner has as many as the largest, or the
            smallest, cluster of n images has, n // B.

    Raises:
        DataError: no learner has two classes with a positive pair.
    """
    num_batches = max(1, len(labels) // batch_size)
    num_learners = num_learners or division.num_learners
    lengths: list[int] = []
    streams: list[tuple[int, Iterator[np.ndarray]]] = []
    warnings: list[str] = []
    for learner in range(num_learners):
        indices = division.indices(learner)
        by_class = _by_class(indices, labels[indices])
        if len(by_class) < 2:
            warnings.append(
                f"learner {learner} sits epoch {epoch} out: its {len(indices)} images are of {len(by_class)} "
                "classes with a positive pair, and a batch needs two"
            )
            continue
        fill = small_classes == "fill"
        size = _size(by_class, batch_size, images_per_class, fill)
        if size < batch_size:
            warnings.append(
                f"learner {learner} has batches of {size} images, not {batch_size}: its cluster has {len(by_class)} "
                f"classes, {len(indices)} images"
            )
        rng = np.random.default_rng([seed, epoch, learner])
        lengths.append(max(1, len(indices) // batch_size))
        streams.append((learner, _stream(by_class, batch_size, images_per_class, fill, rng)))
    if not streams:
        raise DataError(
            "no learner has two classes with two images each, so no batch has both a positive and a negative pair; "
            "use fewer learners (`num_learners`), divide by class (`divide_by=class`), or add images to the classes"
        )
    # Turns continue across epochs, so that it is not always the same learner that has one batch more.
    first = epoch * num_batches
    if rounds != "epoch":
        first, num_batches = 0, len(streams) * (max if rounds == "longest" else min)(lengths)
    turns = (number % len(streams) for number in range(first, first + num_batches))
    return EpochPlan([Batch(streams[t][0], next(streams[t][1])) for t in turns], tuple(warnings), num_learners)


def _by_class(indices: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The images of each class with at least two."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    pairs = zip(starts, counts, strict=True)
    return [indices[order[start : start + count]] for start, count in pairs if count >= 2]


def _size(by_class: list[np.ndarray], batch_size: int, images_per_class: int, fill: bool) -> int:
    """The number of images in a batch of the cluster."""
    if fill:
        return min(batch_size, sum(map(len, by_class)))
    if len(by_class) >= batch_size // images_per_class:
        return batch_size
    return sum(_images_per_class(by_class, batch_size, images_per_class))


def _images_per_class(by_class: list[np.ndarray], batch_size: int, images_per_class: int) -> list[int]:
    """The number of images of each class in a batch with all classes: M, and the remaining places go one by one to
    classes that have more images."""
    take = [images_per_class] * len(by_class)
    left = batch_size - sum(take)
    open_classes = [c for c, images in enumerate(by_class) if len(images) > images_per_class]
    while left > 0 and open_classes:
        for c in open_classes[:left]:
            take[c] += 1
        left -= min(left, len(open_classes))
        open_classes = [c for c in open_classes if len(by_class[c]) > take[c]]
    return take


def _stream(
    by_class: list[np.ndarray], batch_size: int, images_per_class: int, fill: bool, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    num_classes = batch_size // images_per_class
    images = [_Deck(members, rng) for members in by_class]
    if fill:
        everything, size = _Deck(np.concatenate(by_class), rng), _size(by_class, batch_size, images_per_class, fill)
        take = [min(images_per_class, len(members)) for members in by_class]
    elif len(by_class) < num_classes:
        take = _images_per_class(by_class, batch_size, images_per_class)
    else:
        take = [images_per_class] * len(by_class)
    classes = _Deck(np.arange(len(by_class)), rng)
    while True:
        chosen = range(len(by_class)) if len(by_class) < num_classes else classes.deal(num_classes)
        batch = np.concatenate([images[c].deal(take[c]) for c in chosen])
        yield np.concatenate([batch, everything.deal_others(batch, size - len(batch))]) if fill else batch


class _Deck:
    """Cards dealt at random, each once before any comes twice; a hand repeats a card only if it is larger than the
    deck."""

    def __init__(self, cards: np.ndarray, rng: np.random.Generator) -> None:
        self._cards = cards
        self._rng = rng
        self._pile = iter(())

    def deal(self, number: int) -> np.ndarray:
        hand = list(islice(self._pile, number))
        while len(hand) < number:
            fresh = self._rng.permutation(self._cards)
            # Cards that are in the hand already go to the end.
            last = np.isin(fresh, hand[-len(fresh) :] if len(hand) < len(fresh) else [])
            self._pile = iter(np.concatenate([fresh[~last], fresh[last]]).tolist())
            hand += islice(self._pile, number - len(hand))
        return np.array(hand, dtype=np.int64)

    def deal_others(self, hand: np.ndarray, number: int) -> np.ndarray:
        """``number`` cards that are not in ``hand``; those that are in it are skipped."""
        excluded, dealt = set(hand.tolist()), []
        while len(dealt) < number:
            card = int(self.deal(1)[0])
            if card not in excluded:
                excluded.add(card)
                dealt.append(card)
        return np.array(dealt, dtype=np.int64)
