"""Doubling a division: merging gives the parent back, and each half can learn; seeds are tried until it can."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.division import Division, divide
from divcon.division.kmeans import KMeans
from divcon.errors import DataError

cases = st.tuples(
    st.integers(1, 3),  # parents
    st.integers(8, 20),  # classes
    st.integers(2, 5),  # images a class
    st.sampled_from(["image", "class", "random"]),
    st.integers(0, 1000),
)


def data_of(num_classes: int, num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), num_images)
    centres = rng.normal(size=(num_classes, 6))
    return (centres[labels] + 0.1 * rng.normal(size=(len(labels), 6))).astype(np.float32), labels


def classes_with_pairs(division: Division, labels: np.ndarray, k: int) -> int:
    return sum(n >= 2 for n in Counter(labels[division.indices(k)].tolist()).values())


@pytest.mark.heavy
@given(cases)
@settings(max_examples=60, deadline=None)
def test_merging_the_halves_gives_the_parent_back(case: tuple) -> None:
    num_parents, num_classes, num_images, by, seed = case
    features, labels = data_of(num_classes, num_images, seed)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assignment = np.random.default_rng(seed).integers(0, num_parents, num_classes)[labels]
    assignment[: 2 * num_parents : 2] = -1  # sits out, and goes on sitting out
    middles = [unit[assignment == k].mean(0) if (assignment == k).any() else np.zeros(6) for k in range(num_parents)]
    parent = Division(assignment, np.array(middles, np.float32))
    try:
        children = parent.doubled(features, labels, by=by, seed=seed)
    except DataError as error:
        assert "the hierarchy cannot split learner" in str(error)
        return
    assert children.num_learners == 2 * num_parents
    np.testing.assert_array_equal(children.merged().learner, parent.learner)
    for k in range(children.num_learners):
        assert classes_with_pairs(children, labels, k) >= 2
    if by == "image":
        np.testing.assert_allclose(children.merged().centroids, parent.centroids, atol=1e-4)
    if by == "class":
        for label in range(num_classes):
            assert len(set(children.learner[(labels == label) & (children.learner >= 0)])) <= 1


def test_a_hierarchy_doubles_clusters_that_were_matched_first() -> None:
    features, labels = data_of(24, 5, seed=1)
    one = divide(features, labels, 1, seed=0)
    two = divide(features, labels, 1, previous=one, double=True, seed=1)
    assert two.num_learners == 2
    four = divide(features, labels, 2, previous=two, double=True, seed=2)
    flat = divide(features, labels, 2, previous=two, seed=2)
    both = (four.learner >= 0) & (flat.learner >= 0)
    assert both.any()
    np.testing.assert_array_equal(four.merged().learner[both], flat.learner[both])
    # What has no positive pair in its half sits out, though it had one in its parent.
    assert four.num_left_out >= flat.num_left_out


def test_what_sat_out_of_the_parent_for_want_of_a_pair_is_split_too() -> None:
    features, labels = data_of(12, 4, seed=0)
    labels[0] = 99  # alone in its class
    children = divide(features, labels, 1, previous=Division.whole(labels), double=True)
    assert children.learner[0] == -1
    assert (children.learner >= 0).sum() > 0.5 * len(labels)


def test_a_cluster_that_cannot_be_split_is_named_and_what_to_do() -> None:
    features, labels = data_of(3, 4, seed=0)
    with pytest.raises(
        DataError, match=r"cannot split learner 0 of 1: of its 12 images, 3 classes .*5 seeds tried.*`num_learners=1`"
    ):
        divide(features, labels, 1, double=True, tries=5)
    same = np.ones_like(features)
    with pytest.raises(DataError, match="cannot split learner 0"):
        divide(same, labels, 1, double=True)
    with pytest.raises(DataError, match="cannot split learner 1 of 2"):
        features, labels = data_of(9, 2, seed=0)
        assignment = np.where(labels < 8, 0, 1)
        Division(assignment, np.zeros((2, 6), np.float32)).doubled(features, labels, by="random")


def test_seeds_are_tried_until_each_cluster_has_two_classes_with_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat(np.arange(4), 4)
    bad = np.where(labels < 3, 0, 1)  # the second has one class
    good = np.where(labels < 2, 0, 1)
    tried: list[tuple[int, ...]] = []

    def fake(points: np.ndarray, num_clusters: int, *, seed: tuple[int, ...], **others: object) -> KMeans:
        tried.append(seed)
        return KMeans(good if len(tried) == 3 else bad, np.zeros((2, 6), np.float32), 0.0, 1)

    monkeypatch.setattr("divcon.division.division.kmeans", fake)
    features = np.ones((16, 6), np.float32)
    division = divide(features, labels, 2, seed=(7, 0))
    assert tried == [(7, 0), (7, 0, 1), (7, 0, 2)]
    np.testing.assert_array_equal(division.learner, good)
    tried.clear()
    division = divide(features, labels, 2, seed=(7, 0), tries=2)
    assert len(tried) == 2  # the first of the best is taken where none is good
    np.testing.assert_array_equal(division.learner, bad)
