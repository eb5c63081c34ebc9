"""Phases and learning rates as functions of the epoch."""

from __future__ import annotations

import pytest

from divcon.config import TrainConfig
from divcon.errors import ConfigError
from divcon.train.schedule import lr_factor, phase_at


def phases(config: TrainConfig, num_learners: int = 4) -> str:
    return "".join(str(phase_at(epoch, config, num_learners))[0] for epoch in range(config.epochs))


def test_phases() -> None:
    assert phases(TrainConfig(epochs=6)) == "ssssff"
    assert phases(TrainConfig(epochs=6, finetune_epoch=5)) == "sssssf"
    assert phases(TrainConfig(epochs=6, finetune_epoch=5, joint_epoch=2)) == "ssjjjf"
    assert phases(TrainConfig(epochs=6, finetune_epoch=6, joint_epoch=0)) == "jjjjjj"
    assert phases(TrainConfig(epochs=6, finetune_epoch=99)) == "ssssss"
    assert phases(TrainConfig(epochs=6), num_learners=1) == "ffffff"
    with pytest.raises(ConfigError, match="--joint-epoch 5 comes after --finetune-epoch 4"):
        TrainConfig(epochs=6, finetune_epoch=4, joint_epoch=5)


def test_learning_rates() -> None:
    constant = TrainConfig(epochs=10)
    assert [lr_factor(e, constant) for e in (0, 5, 9.9)] == [1, 1, 1]
    cosine = TrainConfig(epochs=10, lr_schedule="cosine")
    assert [round(lr_factor(e, cosine), 6) for e in (0, 5, 10)] == [1, 0.5, 0]
    step = TrainConfig(epochs=10, lr_schedule="step", lr_step_epochs=4, lr_gamma=0.5)
    assert [lr_factor(e, step) for e in (0, 3.99, 4, 8)] == [1, 1, 0.5, 0.25]
    warmup = TrainConfig(epochs=10, warmup_epochs=2)
    assert [lr_factor(e, warmup) for e in (0, 0.5, 1, 2, 3)] == [0, 0.25, 0.5, 1, 1]
