"""Settings: their bounds, and that they are written and read back the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from divcon.config.fields import field_docs, saved
from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from divcon.errors import ConfigError, TrustError


def test_written_and_read_back_it_is_the_same(tmp_path: Path) -> None:
    config = RunConfig(
        ModelConfig(weights=Path("w.safetensors"), num_learners=8),
        TrainConfig(loss="TripletMarginLoss", loss_options={"margin": 0.1}, finetune_epoch=3, joint_epoch=2),
        DataConfig(validation=False),
    )
    config.save(tmp_path / "config.json", source="here")
    record = json.loads((tmp_path / "config.json").read_text())
    assert record.pop("source") == "here"
    assert RunConfig.from_dict(record) == config


def test_unknown_settings_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"run/config\.json: unknown setting 'epoch'; did you mean 'epochs'"):
        RunConfig.from_dict({"train": {"epoch": 3}}, "run/config.json")
    with pytest.raises(ConfigError, match="unknown section 'trian'; did you mean 'train'"):
        RunConfig.from_dict({"trian": {}})


def test_the_method_is_slices_by_default() -> None:
    assert ModelConfig().method == "slices"
    assert RunConfig.from_dict({"model": {"num_learners": 2}}).model.method == "slices"


def test_single_has_one_learner() -> None:
    assert ModelConfig(method="single").num_learners == 1


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            ModelConfig,
            {"embedding_dim": 3, "num_learners": 4},
            "`embedding_dim` 3 cannot be divided among `num_learners` 4",
        ),
        (ModelConfig, {"image_size": -1}, "`image_size` -1: height and width must be from 1 to 8,192"),
        (ModelConfig, {"image_size": (8, 9000)}, "`image_size` 8x9000: height and width must be from 1 to 8,192"),
        (ModelConfig, {"image_size": (0, 8)}, "`image_size` 0x8: height and width must be from 1 to 8,192"),
        (ModelConfig, {"dropout": 1.0}, "`dropout` 1.0"),
        (
            TrainConfig,
            {"batch_size": 7, "images_per_class": 4},
            "`batch_size` 7 holds fewer than two classes of `images_per_class` 4",
        ),
        (TrainConfig, {"images_per_class": 1}, "`images_per_class` 1: must be at least 2"),
        (TrainConfig, {"lr": -1.0}, "`lr` -1.0: must not be negative"),
        (TrainConfig, {"lr": float("nan")}, "`lr` nan: must not be negative"),
        (TrainConfig, {"workers": -1}, "`workers` -1"),
        (DataConfig, {"validation_fraction": 1.0}, "`validation_fraction` 1.0"),
        (DataConfig, {"evaluate_every": 0}, "`evaluate_every` 0"),
    ],
)
def test_bounds(kind: type, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        kind(**values)
    assert caught.value.field == next(iter(values))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainConfig, {"lr": "1e-4"}, "`lr`: expected a number, not the text '1e-4'"),
        (TrainConfig, {"epochs": 2.5}, "`epochs`: expected a whole number, not 2.5"),
        (TrainConfig, {"epochs": True}, "`epochs`: expected a whole number, not True"),
        (TrainConfig, {"flip": "yes"}, "`flip`: expected True or False or None, not the text 'yes'"),
        (TrainConfig, {"divide_by": "imge"}, "`divide_by`: expected one of .*; did you mean 'image'"),
        (TrainConfig, {"loss_options": 3}, "`loss_options`: expected a dict of argument names to values, not 3"),
        (TrainConfig, {"loss_options": {1: 2}}, "`loss_options`: expected a dict"),
        (TrainConfig, {"loss": 3}, "`loss`: expected a name, module:Name, or the part itself"),
        (TrainConfig, {"miner": None}, "`miner`: expected a name"),
        (TrainConfig, {"optimizer": "adm"}, "unknown `optimizer` 'adm'; did you mean 'adam' or 'adamw'"),
        (ModelConfig, {"embedding_dim": "128"}, "`embedding_dim`: expected a whole number, not the text '128'"),
        (ModelConfig, {"weights": 3}, "`weights`: expected a path or None, not 3"),
        (DataConfig, {"validation": "no"}, "`validation`: expected True or False, not the text 'no'"),
        (RunConfig, {"train": ModelConfig()}, "`train`: expected a TrainConfig, not ModelConfig"),
        (RunConfig, {"model": {"num_learners": 2}}, "`model`: expected a ModelConfig, not dict"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_name(kind: type, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        kind(**values)
    assert caught.value.field == next(iter(values))


def test_numbers_of_numpy_and_whole_numbers_are_converted() -> None:
    config = TrainConfig(epochs=np.int64(3), lr=np.float32(0.5), weight_decay=0, fused=np.bool_(True))
    assert (config.epochs, config.lr, config.weight_decay, config.fused) == (3, 0.5, 0.0, True)
    assert [type(v) for v in (config.epochs, config.lr, config.weight_decay, config.fused)] == [int, float, float, bool]
    json.dumps(saved(config))


def test_an_old_value_is_taken_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="`divide_on=memory` is called `divide_on=bank` now"):
        assert TrainConfig(divide_on="memory").divide_on == "bank"  # type: ignore[arg-type]


class Loss:
    def __init__(self, margin: float = 0.1) -> None:
        self.margin = margin


def test_a_part_of_the_users_own_is_kept_as_it_is_and_saved_by_name(tmp_path: Path) -> None:
    loss = Loss(0.2)
    config = RunConfig(train=TrainConfig(loss=loss, miner=Loss, optimizer="mine:SGD", loss_options={"distance": loss}))
    assert config.train.loss is loss
    assert config.train.miner is Loss
    config.save(tmp_path / "config.json")
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["train"]["loss"] == f"{__name__}:Loss()"
    assert record["train"]["loss_options"] == {"distance": f"{__name__}:Loss()"}
    assert record["train"]["miner"] == f"{__name__}:Loss"
    assert record["train"]["optimizer"] == "mine:SGD"

    # The same parts again are the same settings; nothing is imported by reading them.
    with pytest.raises(TrustError, match=rf"config\.json line \d+: names {__name__}:Loss\(\)"):
        RunConfig.load(tmp_path / "config.json")
    with pytest.raises(TrustError, match="names mine:SGD"):
        RunConfig.load(tmp_path / "config.json", trust=[__name__])
    read = RunConfig.load(tmp_path / "config.json", trust=True)
    assert read.differences(config) == {}
    assert read.differences(dataclasses.replace(config, train=TrainConfig())).keys() == {
        "loss",
        "loss_options",
        "miner",
        "optimizer",
    }


def test_every_setting_has_help() -> None:
    for kind in (ModelConfig, TrainConfig, DataConfig):
        docs = field_docs(kind)
        for field in dataclasses.fields(kind):
            assert docs[field.name], field.name
            assert "--" not in docs[field.name], field.name
