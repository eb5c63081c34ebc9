"""Divisions: matching against all permutations, leaving out and pairs against loops."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.division import Division, divide
from divcon.division.division import groups, has_pair
from divcon.errors import DataError


def with_middles(learner: list[int] | np.ndarray, num_learners: int) -> Division:
    """A division whose centroid k is (k,), so that a renumbering shows."""
    return Division(np.array(learner), np.arange(num_learners, dtype=np.float32)[:, None])


@pytest.mark.parametrize("cycle", [[1, 2, 0], [2, 0, 1], [1, 2, 3, 0], [3, 0, 1, 2], [1, 0, 3, 2]])
def test_a_renumbering_of_the_same_clusters_is_undone(cycle: list[int]) -> None:
    previous = with_middles(np.repeat(np.arange(len(cycle)), 5), len(cycle))
    renumbered = Division(np.array(cycle)[previous.learner], previous.centroids[np.argsort(cycle)])
    matched = renumbered.matched_to(previous)
    np.testing.assert_array_equal(matched.learner, previous.learner)
    np.testing.assert_array_equal(matched.centroids, previous.centroids)


divisions = st.integers(2, 6).flatmap(
    lambda k: st.integers(k, 40).flatmap(
        lambda n: st.tuples(
            st.just(k),
            st.lists(st.integers(-1, k - 1), min_size=n, max_size=n),
            st.lists(st.integers(-1, k - 1), min_size=n, max_size=n),
        )
    )
)


@given(divisions)
@settings(max_examples=150, deadline=None)
def test_matching_is_a_permutation_and_the_best_of_all(case: tuple[int, list[int], list[int]]) -> None:
    k, then, now = case
    previous, new = with_middles(then, k), with_middles(now, k)
    matched = new.matched_to(previous)
    # A permutation: the same clusters under other numbers, each with its own centroid.
    order = [int(c[0]) for c in matched.centroids]
    assert sorted(order) == list(range(k))
    for number, old in enumerate(order):
        np.testing.assert_array_equal(matched.learner == number, new.learner == old)

    def kept(learner: list[int]) -> int:
        return sum(a == b and a >= 0 for a, b in zip(learner, then, strict=True))

    best = max(kept([p[c] if c >= 0 else -1 for c in now]) for p in permutations(range(k)))
    assert kept(matched.learner.tolist()) == best


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 4)), min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_leaving_out_and_kept_pairs_equal_loops(images: list[tuple[int, int]]) -> None:
    learner, labels = (np.array(side) for side in zip(*images, strict=True))
    division = with_middles(learner, 4)
    left = division.without_singletons(labels)
    for i in range(len(labels)):
        mates = [j for j in range(len(labels)) if j != i and labels[j] == labels[i] and learner[j] == learner[i]]
        assert left.learner[i] == (learner[i] if mates else -1)
    pairs = [(i, j) for i, j in combinations(range(len(labels)), 2) if labels[i] == labels[j]]
    kept = [p for p in pairs if learner[p[0]] == learner[p[1]] >= 0]
    assert division.kept_pairs(labels) == pytest.approx(len(kept) / len(pairs) if pairs else 0.0)
    assert left.kept_pairs(labels) == division.kept_pairs(labels)
    for k in range(4):
        assert division.classes_per_learner(labels)[k] == len(set(labels[learner == k].tolist()))


@pytest.mark.parametrize("by", ["image", "class", "random", "random-class"])
def test_a_division_is_a_partition_of_what_is_not_left_out(by: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 30, 300))
    features = (rng.normal(size=(30, 16))[labels] + rng.normal(size=(300, 16))).astype(np.float32)
    division = divide(features, labels, 4, by=by)  # type: ignore[arg-type]
    parts = [division.indices(k) for k in range(4)]
    together = np.concatenate([*parts, np.flatnonzero(division.learner < 0)])
    assert sorted(together.tolist()) == list(range(300))
    assert division.sizes == tuple(len(part) for part in parts)
    assert division.num_left_out == 300 - sum(division.sizes)
    if by.endswith("class"):
        assert division.kept_pairs(labels) == 1.0
        for label in range(30):
            assert len(set(division.learner[labels == label])) == 1
    if by == "random":
        assert division.kept_pairs(labels) == pytest.approx(0.25, abs=0.05)
        assert max(division.sizes) - min(division.sizes) <= division.num_left_out + 1
    if by == "random-class":
        classes = division.classes_per_learner(labels)
        assert max(classes) - min(classes) <= 1
        again = divide(features, labels, 4, by="random-class", seed=1)
        assert (again.learner != division.learner).any()
    if by == "image":
        assert division.kept_pairs(labels) > 0.3


def test_features_are_normalised_before_they_are_clustered() -> None:
    angles = np.repeat([0.0, 1.5], 20)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lengths = np.tile([1.0, 50.0], 20)[:, None]
    division = divide((directions * lengths).astype(np.float32), np.zeros(40, np.int64), 2)
    assert len(set(division.learner[:20])) == len(set(division.learner[20:])) == 1
    assert division.learner[0] != division.learner[20]


@pytest.mark.heavy
def test_previous_division_gives_the_numbers() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 8)).astype(np.float32)
    labels = np.zeros(200, np.int64)
    first = divide(features, labels, 4, seed=0)
    for seed in range(1, 6):
        again = divide(features + 0.01, labels, 4, seed=0, previous=divide(features, labels, 4, seed=0))
        assert (again.learner == first.learner).mean() > 0.9
        other = divide(features, labels, 4, seed=seed, previous=first)
        assert np.trace(other.overlap(first)) >= 50  # a renumbering keeps a quarter at the very least


def test_one_cluster_for_all_leaves_out_classes_of_one_image() -> None:
    assert Division.whole(np.array([0, 0, 1, 2, 2])).learner.tolist() == [0, 0, -1, 0, 0]


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    division = with_middles([0, 1, -1, 1], 2)
    division.save(tmp_path / "d.safetensors")
    again = Division.load(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(again.learner, division.learner)
    np.testing.assert_array_equal(again.centroids, division.centroids)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"outside -1 \.\. 1"):
        with_middles([0, 2], 2)
    with pytest.raises(ValueError, match="3 clusters cannot be matched to 2"):
        with_middles([0, 1, 2], 3).matched_to(with_middles([0, 1, 1], 2))
    with pytest.raises(ValueError, match="2 and of 3 images"):
        with_middles([0, 1], 2).matched_to(with_middles([0, 1, 1], 2))
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    with pytest.raises(DataError, match="2 classes cannot be divided among 3 learners by class"):
        divide(features, np.array([0, 0, 0, 1, 1, 1]), 3, by="class")
    with pytest.raises(DataError, match="6 points cannot be divided into 7"):
        divide(features, np.arange(6), 7)
    with pytest.raises(DataError, match="6 images cannot be divided among 7"):
        divide(features, np.arange(6), 7, by="random")


@pytest.mark.parametrize("dense", [0, 1, 100])
def test_groups_are_those_of_a_loop(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divcon.division.division.DENSE", dense)
    rng = np.random.default_rng(0)
    learner, labels = rng.integers(-1, 4, 60), rng.integers(0, 9, 60)
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(learner.tolist(), labels.tolist(), strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    of, count = groups(learner, labels)
    assert list(zip(of.tolist(), count.tolist(), strict=True)) == [(k, counts[k, c]) for k, c in sorted(counts)]
    expected = [counts[pair] >= 2 for pair in zip(learner.tolist(), labels.tolist(), strict=True)]
    assert has_pair(learner, labels).tolist() == expected
