"""Trials and folds: drawn by a seed, without repeats, the default first; the choice by the mean over folds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import divcon as dc
from divcon.data.benchmark import Benchmark, folds_of
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError
from divcon.experiments import ARMS, Arm
from divcon.experiments.arms import best_trial, draw_trials

BASE = dc.RunConfig(dc.ModelConfig(num_learners=4, embedding_dim=16))
SPACE = {"train": {"lr": [1e-3, 1e-4, 1e-5], "head_lr": [1e-2, 1e-3]}, "model": {"dropout": [0.0, 0.01]}}


@given(st.integers(1, 14), st.integers(0, 20))
def test_trials_are_different_combinations_with_the_default_first(count: int, seed: int) -> None:
    trials = draw_trials(Arm("a", space=SPACE), BASE, count, seed)
    assert len(trials) == min(count, 12)
    assert trials[0] == {"train": {"lr": 1e-4, "head_lr": 1e-3}, "model": {"dropout": 0.01}}
    assert all(trial not in trials[:place] for place, trial in enumerate(trials))
    for trial in trials:
        for part, values in trial.items():
            assert all(value in SPACE[part][name] for name, value in values.items())
    assert trials == draw_trials(Arm("a", space=SPACE), BASE, count, seed)


def test_another_seed_draws_others_and_no_default_is_invented() -> None:
    space = {"train": {"lr": [float(n) for n in range(1, 40)], "head_lr": [float(n) for n in range(1, 40)]}}
    drawn = [draw_trials(Arm("a", space=space), BASE, 4, seed) for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    assert all(trial["train"]["lr"] >= 1 for trials in drawn for trial in trials)


def test_what_an_arm_makes_equal_is_tried_once() -> None:
    arm = Arm("single", ARMS["single"].settings, {"model": {"num_learners": [2, 4, 8], "dropout": [0.0, 0.5]}})
    assert len(draw_trials(arm, BASE, 8, 0)) == 2


def test_nothing_to_search_is_one_trial() -> None:
    assert draw_trials(ARMS["slices"], BASE, 8, 0) == [{}]


def test_a_combination_that_cannot_be_names_the_arm() -> None:
    with pytest.raises(ConfigError, match=r"arm 'a' with dropout 1.5: `dropout` 1.5: must be"):
        draw_trials(Arm("a", space={"model": {"dropout": [1.5]}}), BASE, 8, 0)


def dataset(sizes: list[int]) -> Benchmark:
    def of(first: int) -> LabeledSet:
        labels = np.repeat(np.arange(len(sizes)), sizes) + first
        names = tuple(f"c{i:03d}" for i in range(2 * len(sizes)))
        vectors = np.zeros((len(labels), 3), np.float32)
        rows = np.arange(len(labels)) + 1000 * first
        return LabeledSet(labels, names, pa.array([f"{i}" for i in rows]), rows, "made", vectors=vectors)

    test = of(len(sizes))
    return Benchmark("made", of(0), test, test)


@given(st.lists(st.integers(1, 4), min_size=12, max_size=20).filter(lambda s: sum(n > 1 for n in s) >= 6))
def test_folds_hold_each_class_with_a_pair_out_once(sizes: list[int]) -> None:
    data = dataset(sizes)
    folds = folds_of(data, 3, 0)
    held = [fold.validation.classes.tolist() for fold in folds]  # type: ignore[union-attr]
    assert sorted(c for classes in held for c in classes) == [c for c, size in enumerate(sizes) if size > 1]
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for fold, classes in zip(folds, held, strict=True):
        assert sorted([*fold.train.classes.tolist(), *classes]) == data.train.classes.tolist()
        assert fold.split_hash == data.split_hash
    assert held == [fold.validation.classes.tolist() for fold in folds_of(data, 3, 0)]  # type: ignore[union-attr]


def test_too_few_classes_for_the_folds_is_reported() -> None:
    with pytest.raises(DataError, match="5 train classes of two images and more are too few for 3 folds"):
        folds_of(dataset([2] * 5 + [1] * 5), 3, 0)


def curve(*scores: float) -> list[dict]:
    return [{"epoch": 2 * i + 1, "recall_at_1": score, "map_at_r": score / 2} for i, score in enumerate(scores)]


def test_the_choice_is_the_best_mean_over_folds_the_later_of_equal_epochs_the_first_of_equal_trials() -> None:
    assert best_trial([[curve(0.1, 0.4, 0.2), curve(0.3, 0.4, 0.8)]], "recall_at_1") == (0, 6, pytest.approx(0.5))
    assert best_trial([[curve(0.5, 0.5)], [curve(0.5, 0.5)]]) == (0, 4, 0.25)
    assert best_trial([[curve(0.5, 0.5)], [curve(0.6, 0.4)]]) == (1, 2, 0.3)


def test_the_score_of_a_choice_is_that_of_select_by() -> None:
    one = [{"epoch": 0, "recall_at_1": 0.9, "map_at_r": 0.1}, {"epoch": 1, "recall_at_1": 0.8, "map_at_r": 0.3}]
    assert best_trial([[one]]) == (0, 2, 0.3)
    assert best_trial([[one]], "recall_at_1") == (0, 1, 0.9)
    assert best_trial([[one[::-1]]], "last") == (0, 1, 0.1)
    # Curves of an earlier version have Recall@1 alone.
    old = [{"epoch": 0, "recall_at_1": 0.9}, {"epoch": 1, "recall_at_1": 0.8}]
    assert best_trial([[old], [one]]) == (0, 1, 0.9)


def test_a_trial_with_a_fold_that_went_wrong_is_not_chosen() -> None:
    assert best_trial([[curve(0.9, 0.9), []], [curve(0.1, 0.2), curve(0.1, 0.2)]]) == (1, 4, pytest.approx(0.1))
    assert best_trial([[[]]])[2] < 0
