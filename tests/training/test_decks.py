"""Plans of all batches at once against decks that are dealt card by card; what a seed gives; and the memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.config.settings import Rounds, SmallClasses
from divcon.division import Division
from divcon.errors import DataError
from divcon.training.decks import _stable_order
from divcon.training.sampler import Batch, Batches, plan_epoch


class Deck:
    """Cards dealt one hand after the other."""

    def __init__(self, cards: np.ndarray, rng: np.random.Generator) -> None:
        self.cards, self.rng, self.pile = cards, rng, iter(())

    def deal(self, number: int) -> list[int]:
        hand = list(islice(self.pile, number))
        while len(hand) < number:
            fresh = self.rng.permutation(self.cards).tolist()
            held = hand if len(hand) < len(fresh) else []
            self.pile = iter([card for card in fresh if card not in held] + [card for card in fresh if card in held])
            hand += islice(self.pile, number - len(hand))
        return hand

    def deal_others(self, hand: list[int], number: int) -> list[int]:
        dealt: list[int] = []
        while len(dealt) < number:
            [card] = self.deal(1)
            if card not in hand + dealt:
                dealt.append(card)
        return dealt


def stream(
    cluster: np.ndarray, labels: np.ndarray, size: int, each: int, fill: bool, rng: np.random.Generator
) -> Iterator[list[int]]:
    """The batches of a cluster of at least two classes with pairs."""
    members = [cluster[labels[cluster] == c] for c in np.unique(labels[cluster])]
    members = [images for images in members if len(images) > 1]
    all_of_them = len(members) < size // each
    even = size // len(members) if all_of_them else each
    take = [min(even, len(images)) if fill else each for images in members]
    if all_of_them and not fill:
        while sum(take) < size and any(len(images) > t for images, t in zip(members, take, strict=True)):
            for c, images in enumerate(members):
                # One more of each class in turn, as long as it has one and there is a place.
                if (
                    len(images) > max(take[c], 0)
                    and sum(take) < size
                    and take[c] == min(t for t, m in zip(take, members, strict=True) if len(m) > t)
                ):
                    take[c] += 1
    decks = [Deck(images, rng) for images in members]
    everything, classes = Deck(np.concatenate(members), rng), Deck(np.arange(len(members)), rng)
    while True:
        chosen = range(len(members)) if all_of_them else classes.deal(size // each)
        batch = [card for c in chosen for card in decks[c].deal(take[c])]
        if fill:
            batch += everything.deal_others(batch, min(size, sum(map(len, members))) - len(batch))
        yield batch


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**16),
    st.sampled_from([(8, 2), (8, 4), (12, 3), (20, 4), (6, 2)]),
    st.sampled_from([0.3, 1.0, 20.0]),
    st.sampled_from(["repeat", "fill"]),
    st.booleans(),
)
def test_all_at_once_is_card_by_card(
    seed: int, sizes: tuple[int, int], evenness: float, small_classes: SmallClasses, in_order: bool
) -> None:
    rng = np.random.default_rng(seed)
    num_learners, num_images = int(rng.integers(1, 4)), int(rng.integers(8, 300))
    shares = rng.gamma(evenness, size=int(rng.integers(2, 60))) + 1e-9
    labels = rng.choice(len(shares), num_images, p=shares / shares.sum())
    labels = np.sort(labels) if in_order else labels
    division = Division(rng.integers(0, num_learners, num_images), np.zeros((num_learners, 0), np.float32))
    division = division.without_singletons(labels)
    size, each = sizes
    try:
        plan = plan_epoch(
            division,
            labels,
            batch_size=size,
            images_per_class=each,
            small_classes=small_classes,
            rounds="longest",
            seed=seed,
            epoch=2,
        )
    except DataError:
        return
    streams = {
        learner: stream(
            division.indices(learner),
            labels,
            size,
            each,
            small_classes == "fill",
            np.random.default_rng([seed, 2, learner]),
        )
        for learner in np.unique(plan.batches.learners).tolist()
    }
    for batch in plan.batches:
        assert batch.indices.tolist() == next(streams[batch.learner])
    assert plan.distinct_images == np.mean([len(set(batch.indices.tolist())) for batch in plan.batches])


DIGESTS: dict[str, tuple[tuple[int, int, int, int, int, SmallClasses, Rounds, int | None], str]] = {
    "skewed": ((700, 80, 4, 24, 4, "repeat", "epoch", None), "5e2f2485921c3e8b"),
    "skewed, filled": ((700, 80, 4, 24, 4, "fill", "epoch", None), "cfb7d2fe062955d1"),
    "few classes": ((400, 6, 2, 40, 4, "repeat", "longest", None), "14a2d7ca963e9ff7"),
    "few classes, filled": ((400, 6, 2, 40, 4, "fill", "longest", None), "50eda56e5edeeab7"),
    "pairs": ((900, 300, 3, 20, 4, "repeat", "shortest", None), "8e09896a470cc723"),
    "pairs, filled": ((900, 300, 3, 20, 4, "fill", "longest", None), "d1519a158f6b910a"),
    "as many classes as places": ((300, 10, 1, 20, 2, "repeat", "longest", None), "26abff81332682fe"),
    "a class more": ((300, 11, 1, 20, 2, "repeat", "longest", None), "e8a2ba5ce4e74b11"),
    "one for all": ((500, 50, 1, 20, 2, "fill", "epoch", 5), "6c34f082647af290"),
    "tiny clusters": ((60, 12, 4, 20, 4, "fill", "epoch", None), "925e27a9a396de1c"),
    "tiny clusters, repeated": ((60, 12, 4, 20, 4, "repeat", "longest", None), "7d083009a79ec919"),
    "not divisible": ((500, 40, 2, 30, 4, "fill", "epoch", None), "2955b6ed8c6c35fc"),
}
"""Number of images, classes, clusters, images in a batch and of a class, ..., and learners that share one cluster."""


@pytest.mark.parametrize("name", DIGESTS)
def test_a_seed_gives_the_plans_that_it_has_always_given(name: str) -> None:
    (number, classes, learners, size, each, small_classes, rounds, shared), expected = DIGESTS[name]
    rng = np.random.default_rng([number, classes, learners])
    shares = rng.gamma(1.0, size=classes)
    labels = rng.choice(classes, number, p=shares / shares.sum())
    learner = rng.choice(learners, number, p=np.arange(1, learners + 1) / (learners * (learners + 1) / 2))
    division = Division(learner, np.zeros((learners, 0), np.float32)).without_singletons(labels)
    digest = hashlib.sha256()
    for epoch in range(4):
        plan = plan_epoch(
            division,
            labels,
            num_learners=shared,
            batch_size=size,
            images_per_class=each,
            small_classes=small_classes,
            rounds=rounds,
            seed=7,
            epoch=epoch,
        )
        for batch in plan.batches:
            digest.update(np.array([batch.learner, len(batch.indices), *batch.indices], np.int64).tobytes())
        digest.update("|".join(plan.warnings).encode())
        digest.update(repr(plan.distinct_images).encode())
    assert digest.hexdigest()[:16] == expected


@pytest.mark.heavy
@pytest.mark.parametrize(("classes", "learners", "small_classes"), [(10**4, 4, "fill"), (10**5, 32, "repeat")])
def test_a_plan_takes_fifty_bytes_an_image(classes: int, learners: int, small_classes: SmallClasses) -> None:
    rng, number = np.random.default_rng(0), 3 * 10**5
    labels = rng.integers(0, classes, number)
    division = Division(rng.integers(0, learners, number), np.zeros((learners, 0), np.float32))
    division = division.without_singletons(labels)
    tracemalloc.start()
    try:
        plan = plan_epoch(
            division, labels, batch_size=80, images_per_class=4, small_classes=small_classes, seed=0, epoch=0
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(plan.batches) == number // 80
    assert peak < 50 * number + 2 * 10**7  # and what is dealt at once


def test_batches_are_a_sequence() -> None:
    batches = Batches.of([Batch(1, np.array([4, 5])), Batch(0, np.array([6])), Batch(2, np.array([], np.int64))])
    assert [(b.learner, b.indices.tolist()) for b in batches] == [(1, [4, 5]), (0, [6]), (2, [])]
    assert batches[-1].learner == 2
    assert [b.learner for b in batches[:2]] == [1, 0]
    with pytest.raises(IndexError):
        batches[3]
    assert len(Batches.of([])) == 0


@pytest.mark.parametrize("most", [1, 2**16, 2**20, 2**33])
def test_labels_are_sorted_as_by_numpy(most: int) -> None:
    labels = np.random.default_rng(0).integers(0, most, 3000)
    np.testing.assert_array_equal(_stable_order(labels), np.argsort(labels, kind="stable"))
