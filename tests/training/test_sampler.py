"""The plan of an epoch: what every batch must hold, and what is shown how often."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.config.settings import Rounds, SmallClasses
from divcon.division import Division
from divcon.errors import DataError
from divcon.training.sampler import EpochPlan, plan_epoch


def division_of(learner: np.ndarray, labels: np.ndarray) -> Division:
    return Division(learner, np.zeros((int(learner.max()) + 1, 0), np.float32)).without_singletons(labels)


def plan(
    division: Division,
    labels: np.ndarray,
    batch_size: int = 8,
    images_per_class: int = 2,
    epoch: int = 0,
    small_classes: SmallClasses = "repeat",
) -> EpochPlan:
    return plan_epoch(
        division,
        labels,
        batch_size=batch_size,
        images_per_class=images_per_class,
        small_classes=small_classes,
        seed=0,
        epoch=epoch,
    )


cases = st.tuples(
    st.integers(1, 3),  # learners
    st.integers(4, 10),  # classes
    st.integers(2, 9),  # most images a class
    st.sampled_from([(8, 2), (8, 4), (12, 3), (10, 4)]),
    st.integers(0, 1000),
)


@given(cases)
@settings(max_examples=80, deadline=None)
def test_every_batch_is_of_one_cluster_balanced_and_as_large_as_it_can_be(case: tuple) -> None:
    num_learners, num_classes, most, (batch_size, images_per_class), seed = case
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), rng.integers(1, most + 1, num_classes))
    division = division_of(rng.permutation(len(labels)) % num_learners, labels)
    try:
        epoch_plan = plan(division, labels, batch_size, images_per_class)
    except DataError:
        for k in range(division.num_learners):
            counts = Counter(labels[division.indices(k)].tolist())
            assert sum(n >= 2 for n in counts.values()) < 2
        return
    assert len(epoch_plan.batches) == max(1, len(labels) // batch_size)
    for batch in epoch_plan.batches:
        assert set(division.learner[batch.indices]) == {batch.learner}
        in_cluster = Counter(labels[division.indices(batch.learner)].tolist())
        in_batch = Counter(labels[batch.indices].tolist())
        distinct = Counter(labels[np.unique(batch.indices)].tolist())
        assert len(in_batch) == min(len(in_cluster), batch_size // images_per_class) >= 2
        for label, n in in_batch.items():
            # All different, until the class has no more to give; then each as often as any other.
            assert distinct[label] == min(n, in_cluster[label])
            times = Counter(i for i in batch.indices.tolist() if labels[i] == label)
            assert max(times.values()) - min(times.values()) <= 1
        if len(in_cluster) >= batch_size // images_per_class:
            assert set(in_batch.values()) == {images_per_class}
        else:
            assert len(batch.indices) <= batch_size
            spare = [label for label, n in in_cluster.items() if n > in_batch[label]]
            assert len(batch.indices) == batch_size or not spare


@given(cases)
@settings(max_examples=80, deadline=None)
def test_places_of_small_classes_go_to_other_images_and_none_is_repeated(case: tuple) -> None:
    num_learners, num_classes, most, (batch_size, images_per_class), seed = case
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), rng.integers(1, most + 1, num_classes))
    division = division_of(rng.permutation(len(labels)) % num_learners, labels)
    try:
        epoch_plan = plan(division, labels, batch_size, images_per_class, small_classes="fill")
    except DataError:
        return
    shown: Counter[int] = Counter()
    for batch in epoch_plan.batches:
        cluster = division.indices(batch.learner)
        assert set(batch.indices) <= set(cluster)
        assert len(set(batch.indices)) == len(batch.indices) == min(batch_size, len(cluster))
        in_cluster = Counter(labels[cluster].tolist())
        in_batch = Counter(labels[batch.indices].tolist())
        chosen = min(len(in_cluster), batch_size // images_per_class)
        # Classes with all that M asks for, or all that they have; a class beside them comes in as filling. A batch of
        # all classes is shared out evenly among them (2021's sampler: B // C each).
        few = len(in_cluster) < batch_size // images_per_class
        each = batch_size // len(in_cluster) if few else images_per_class
        whole = [label for label, n in in_batch.items() if n >= min(each, in_cluster[label])]
        assert len(whole) >= chosen >= 2
        shown.update(batch.indices.tolist())
    if len(epoch_plan.batches) * batch_size >= 20 * len(labels):
        assert set(shown) == set(np.flatnonzero(division.learner >= 0))


def test_a_batch_of_few_classes_is_shared_out_evenly_when_it_is_filled() -> None:
    """Three classes in a batch of 12 with 2 of each: 4 of each, though one class has most of the images."""
    labels = np.repeat(np.arange(3), [40, 4, 6])
    division = division_of(np.zeros(50, np.int64), labels)
    for batch in plan(division, labels, 12, 2, small_classes="fill").batches:
        assert np.bincount(labels[batch.indices]).tolist() == [4, 4, 4]
    # A class that has fewer leaves its places to other images.
    labels = np.repeat(np.arange(3), [40, 2, 6])
    division = division_of(np.zeros(48, np.int64), labels)
    for batch in plan(division, labels, 12, 2, small_classes="fill").batches:
        counts = np.bincount(labels[batch.indices])
        assert counts[1] == 2
        assert counts.min() >= 2
        assert counts[0] >= 4
        assert counts[2] >= 4
        assert counts.sum() == 12


def test_filling_differs_from_repeating_only_where_classes_are_small() -> None:
    labels = np.repeat(np.arange(6), 4)
    division = division_of(np.zeros(24, np.int64), labels)
    for filled, repeated in zip(
        plan(division, labels, small_classes="fill").batches, plan(division, labels).batches, strict=True
    ):
        np.testing.assert_array_equal(filled.indices, repeated.indices)


def test_no_image_is_shown_twice_before_the_others_of_its_class_once() -> None:
    labels = np.repeat(np.arange(10), [4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    division = division_of(np.zeros(len(labels), np.int64), labels)
    shown: dict[int, list[int]] = {label: [] for label in range(10)}
    for epoch in range(3):
        for batch in plan(division, labels, batch_size=16, images_per_class=4, epoch=epoch).batches:
            for index in batch.indices.tolist():
                shown[labels[index]].append(index)
        for label, images in shown.items():
            size = int((labels == label).sum())
            for start in range(0, len(images) - size + 1, size):
                assert len(set(images[start : start + size])) == size
            images.clear()


def test_no_class_comes_twice_before_the_others_once() -> None:
    labels = np.repeat(np.arange(12), 10)
    division = division_of(np.zeros(120, np.int64), labels)
    classes = [
        label for b in plan(division, labels, 20, 4).batches for label in dict.fromkeys(labels[b.indices].tolist())
    ]
    for start in range(0, len(classes) - 11, 12):
        assert len(set(classes[start : start + 12])) == 12


def test_learners_take_turns_across_epochs() -> None:
    labels = np.tile(np.repeat(np.arange(4), 4), 3)
    division = division_of(np.repeat([0, 1, 2], 16), labels)  # 48 images: batches of 8 are 6 an epoch; of 9, 5
    turns = [b.learner for epoch in range(3) for b in plan(division, labels, 9, 2, epoch).batches]
    assert turns == [t % 3 for t in range(15)]


def test_it_is_a_function_of_seed_and_epoch() -> None:
    labels = np.repeat(np.arange(10), 6)
    division = division_of(np.arange(60) % 2, labels)

    def images(epoch: int) -> list[list[int]]:
        return [batch.indices.tolist() for batch in plan(division, labels, epoch=epoch).batches]

    assert images(3) == images(3)
    assert images(3) != images(4)


def test_a_learner_without_two_classes_sits_out_and_is_named() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    division = division_of(np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]), labels)
    epoch_plan = plan(division, labels, batch_size=4, images_per_class=2)
    assert {batch.learner for batch in epoch_plan.batches} == {1}
    assert len(epoch_plan.warnings) == 1
    assert "learner 0 sits epoch 0 out: its 4 images are of 1 classes" in epoch_plan.warnings[0]


def test_a_batch_that_cannot_be_filled_has_a_warning() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    epoch_plan = plan(division_of(np.zeros(8, np.int64), labels), labels, batch_size=16, images_per_class=4)
    assert len(epoch_plan.batches) == 1
    assert len(epoch_plan.batches[0].indices) == 9  # four of the class of three, all of the class of five
    assert "batches of 9 images, not 16" in epoch_plan.warnings[0]


def test_distinct_images_counts_repeats_once() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    epoch_plan = plan(division_of(np.zeros(6, np.int64), labels), labels, batch_size=8, images_per_class=4)
    assert epoch_plan.distinct_images == 4


def test_no_learner_with_two_classes_is_an_error_that_says_what_to_do() -> None:
    labels = np.array([0, 0, 1, 1])
    with pytest.raises(DataError, match=r"no learner has two classes.*`num_learners`.*`divide_by=class`"):
        plan(division_of(np.array([0, 0, 1, 1]), labels), labels)


def test_rounds_follow_the_largest_or_the_smallest_cluster() -> None:
    # 40 images with learner 0, 16 with learner 1; batches of 8.
    labels = np.repeat(np.arange(14), 4)
    division = division_of(np.where(labels < 10, 0, 1), labels)

    def turns(rounds: Rounds) -> list[int]:
        epoch_plan = plan_epoch(division, labels, batch_size=8, images_per_class=2, rounds=rounds, seed=0, epoch=1)
        return [batch.learner for batch in epoch_plan.batches]

    assert turns("longest") == [0, 1] * 5
    assert turns("shortest") == [0, 1] * 2
    assert Counter(turns("epoch")) == {0: 3, 1: 4}  # 7 batches, and the turn that epoch 0 left off at


def test_learners_that_share_a_cluster_have_streams_of_their_own() -> None:
    labels = np.repeat(np.arange(20), 4)
    epoch_plan = plan_epoch(
        Division.whole(labels), labels, num_learners=4, batch_size=8, images_per_class=2, seed=0, epoch=0
    )
    assert [batch.learner for batch in epoch_plan.batches] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    first = [set(batch.indices.tolist()) for batch in epoch_plan.batches[:4]]
    assert all(a != b for i, a in enumerate(first) for b in first[i + 1 :])
