"""Arms and what is searched for them: by name, over the base, from a file; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import divcon as dc
from divcon.errors import ConfigError
from divcon.experiments import ARMS, Arm, arms_of, read_space
from divcon.experiments.arms import BASE, config_of, known_arms, varied

File = Callable[..., Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(text: str, name: str = "space.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_known_arms_are_settings_over_a_base() -> None:
    base = dc.RunConfig(dc.ModelConfig(num_learners=3, embedding_dim=9), dc.TrainConfig(epochs=7))
    configs = {name: config_of(base, arm.settings) for name, arm in ARMS.items()}
    assert configs["single"].model.num_learners == 1
    assert configs["slices"].model.num_learners == configs["masks"].model.num_learners == 3
    assert configs["hierarchy"].train.hierarchy
    assert configs["normalised-slices"].train.phase_starts == (0, 0)
    assert configs["clustered"].train.phase_starts[0] == configs["clustered-slices"].train.phase_starts[0] == 0
    assert configs["clustered"].model.method == "masks"
    assert {config.train.epochs for config in configs.values()} == {7}
    assert all(arm.about for arm in ARMS.values())
    assert set(ARMS) <= set(known_arms())


def test_options_stay_with_their_owner() -> None:
    base = dc.RunConfig(
        dc.ModelConfig(method="masks", head_options={"kind": "fixed"}),
        dc.TrainConfig(loss="TripletMarginLoss", loss_options={"margin": 0.1}),
    )
    assert config_of(base, ARMS["slices"].settings).model.head_options == {}
    assert config_of(base, ARMS["masks"].settings).model.head_options == {"kind": "fixed"}
    assert config_of(base, {"train": {"loss": "MarginLoss"}}).train.loss_options == {}
    again = config_of(base, {"train": {"loss": "MarginLoss", "loss_options": {"margin": 0.3}}})
    assert again.train.loss_options == {"margin": 0.3}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["single", "slcies"], "unknown arm 'slcies'; did you mean 'slices'"),
        (["single", "masks", "single"], "'single' is listed twice"),
        ([], "is empty; known: single, slices"),
    ],
)
def test_arms_that_cannot_be_are_reported(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arms_of(names)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (lambda: Arm("a/b"), "is also the name of a folder"),
        (lambda: Arm("a", {"train": {"learning_rate": 1}}), "arm 'a', settings: unknown setting 'learning_rate'"),
        (lambda: Arm("a", {"train": {"epochs": 1}}), "epochs is the same for all arms"),
        (lambda: Arm("a", space={"train": {"seed": [1]}}), "seed is the same for all arms"),
        (lambda: Arm("a", {"data": {"validation": True}}), "unknown section 'data'"),
        (lambda: Arm("a", space={"train": {"lr": 0.1}}), "train.lr: expected a list"),
        (lambda: Arm("a", space={"train": {"lr": []}}), "train.lr: expected a list"),
        (lambda: Arm("a", space={"train": {"lr": [0.1, 0.1]}}), "twice"),
    ],
)
def test_an_arm_that_cannot_be_is_refused(arm: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arm()


def test_what_an_arm_settles_is_not_searched_and_its_own_lists_go_first() -> None:
    common = {"train": {"lr": [1.0, 2.0], "finetune_epoch": [3, 4]}, "model": {"dropout": [0.1]}}
    arm = ARMS["normalised-slices"].searching(common)
    assert arm.space == {"train": {"lr": [1.0, 2.0]}, "model": {"dropout": [0.1]}}
    own = Arm("own", space={"train": {"lr": [5.0]}}).searching(common)
    assert own.space == {"train": {"lr": [5.0], "finetune_epoch": [3, 4]}, "model": {"dropout": [0.1]}}


def test_a_file_defines_arms_and_lists(file: File) -> None:
    path = file(
        "arms:\n"
        "  triplets: {like: masks, train: {loss: TripletMarginLoss}, space: {train: {lr: [1, 0.5]}}}\n"
        "  more: {like: triplets, model: {num_learners: 8}}\n"
        "  slices: {train: {redivide_every: 1}}\n"
        "  plain:\n"
        "space:\n"
        "  train: {head_lr: [1.0e-3, 1]}\n"
    )
    arms, space = read_space(path)
    assert space == {"train": {"head_lr": [1e-3, 1.0]}}
    assert arms["triplets"].settings == {"model": {"method": "masks"}, "train": {"loss": "TripletMarginLoss"}}
    assert arms["triplets"].space == {"train": {"lr": [1.0, 0.5]}}
    assert arms["more"].settings["model"] == {"method": "masks", "num_learners": 8}
    assert arms["more"].space == arms["triplets"].space
    assert arms["slices"].settings == {"model": {"method": "slices"}, "train": {"redivide_every": 1}}
    assert arms["plain"] == Arm("plain")
    assert [arm.name for arm in arms_of(["slices", "more"], arms)] == ["slices", "more"]
    assert arms_of(["slices"], arms)[0] is arms["slices"]


def test_toml_and_json_do_too(file: File) -> None:
    expected = ({"a": Arm("a", {"train": {"lr": 0.5}})}, {"model": {"dropout": [0.0, 0.5]}})
    toml = file("[arms.a.train]\nlr = 0.5\n[space.model]\ndropout = [0.0, 0.5]\n", "space.toml")
    text = '{"arms": {"a": {"train": {"lr": 0.5}}}, "space": {"model": {"dropout": [0.0, 0.5]}}}'
    assert read_space(toml) == read_space(file(text, "space.json")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm:\n  a: {}\n", r"line 1: unknown section 'arm'; did you mean 'arms'"),
        ("arms: [a]\n", r"line 1: arms: expected a mapping"),
        ("arms:\n  a: 3\n", r"line 2: arms.a: expected a mapping, not 3"),
        ("arms:\n  a:\n    like: slcies\n", r"line 3: unknown arm 'slcies'; did you mean 'slices'"),
        ("arms:\n  a:\n    lr: 1\n", r"line 3: 'lr' is a setting of train: move it into that section \(in arm 'a'\)"),
        ("arms:\n  a:\n    train:\n      l: 1\n", r"line 4: unknown setting 'l'"),
        ("arms:\n  a:\n    train:\n      lr: high\n", r"line 4: train.lr: expected a number"),
        ("arms:\n  a:\n    train:\n      epochs: 4\n", r"line 4: epochs is the same for all arms"),
        ("arms:\n  a:\n    space:\n      train:\n        lr: 3\n", r"line 5: train.lr: expected a list"),
        ("space:\n  train:\n    lr: [1, high]\n", r"line 3: train.lr: expected a number"),
        ("space:\n  train:\n    lr: [1, 2]\n    hed_lr: [1]\n", r"line 4: unknown setting 'hed_lr'"),
        ("space:\n  data:\n    validation: [true]\n", r"line 2: unknown section 'data'"),
        ("space:\n  train: [lr]\n", r"line 2: space.train: expected a mapping"),
    ],
)
def test_what_is_wrong_in_a_file_is_reported_with_its_line(file: File, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_space(file(text))


def test_an_arm_for_each_value_of_a_setting_and_all_combinations_of_several() -> None:
    over = varied([BASE], "num_learners", [1, 4])
    assert [arm.name for arm in over] == ["num_learners-1", "num_learners-4"]
    both = varied(varied(over[1:], "loss", ["MarginLoss", "TripletMarginLoss"]), "redivide_every", [2])
    assert [arm.name for arm in both] == [
        "num_learners-4+loss-MarginLoss+redivide_every-2",
        "num_learners-4+loss-TripletMarginLoss+redivide_every-2",
    ]
    base = dc.RunConfig(dc.ModelConfig(embedding_dim=8), dc.TrainConfig(loss_options={"margin": 0.1}))
    configs = [config_of(base, arm.settings) for arm in both]
    assert [config.train.loss_options for config in configs] == [{"margin": 0.1}, {}]  # of the other loss, none
    assert {(config.model.num_learners, config.train.redivide_every) for config in configs} == {(4, 2)}
    named = varied(arms_of(["single", "masks"]), "lr", [1e-3])
    assert [(arm.name, arm.settings["train"]["lr"]) for arm in named] == [
        ("single+lr-0.001", 1e-3),
        ("masks+lr-0.001", 1e-3),
    ]
    assert [arm.name for arm in varied([BASE], "augment", ["none", "rotation(degrees=10)"])] == [
        "augment-none",
        "augment-rotation-degrees-10",
    ]
    for setting, values, words in (
        ("learner", [1], "unknown setting 'learner'"),
        ("epochs", [1, 2], "epochs is the same for all arms"),
        ("test_fraction", [0.1], "arms differ in model and train"),
        ("lr", [], "expected a list of values"),
        ("lr", [1e-3, 1e-3], "a value is listed twice"),
        ("num_learners", ["many"], "expected a whole number, not the text 'many'"),
    ):
        with pytest.raises(ConfigError, match=words):
            varied([BASE], setting, values)
