"""Settings: their bounds, and that they are written and read back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from divcon.errors import ConfigError


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


def test_the_method_is_masks_unless_told_otherwise() -> None:
    assert ModelConfig().method == "masks"
    assert RunConfig.from_dict({"model": {"num_learners": 2}}).model.method == "masks"


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
        (ModelConfig, {"image_size": 0}, "`image_size` 0: must be at least 1"),
        (ModelConfig, {"dropout": 1.0}, "`dropout` 1.0"),
        (TrainConfig, {"batch_size": 7}, "`batch_size` 7 holds fewer than two classes of `images_per_class` 4"),
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
