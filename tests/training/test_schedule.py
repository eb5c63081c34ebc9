"""Phases and learning rates as functions of the epoch."""

from __future__ import annotations

import pytest

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.training.schedule import Phase, divides_at, learning_rates, lr_factor, phase_at


def phases(config: TrainConfig, num_learners: int = 4) -> str:
    return "".join(str(phase_at(epoch, config, num_learners))[0] for epoch in range(config.epochs))


def test_phases() -> None:
    assert phases(TrainConfig(epochs=6)) == "ssssff"
    assert phases(TrainConfig(epochs=6, finetune_epoch=5)) == "sssssf"
    assert phases(TrainConfig(epochs=6, finetune_epoch=5, joint_epoch=2)) == "ssjjjf"
    assert phases(TrainConfig(epochs=6, finetune_epoch=6, joint_epoch=0)) == "jjjjjj"
    assert phases(TrainConfig(epochs=6, finetune_epoch=99)) == "ssssss"
    assert phases(TrainConfig(epochs=6), num_learners=1) == "ffffff"
    with pytest.raises(ConfigError, match="`joint_epoch` 5 comes after `finetune_epoch` 4"):
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


def test_no_more_divisions_from_an_epoch_on_and_then_the_backbone_trains() -> None:
    """As the 2021 code does once it has all clusters (--stop-recluster)."""
    config = TrainConfig(epochs=10, finetune_epoch=9, freeze_backbone_epochs=1, redivide_until=5, lr=0.1)
    assert [epoch for epoch in range(10) if divides_at(epoch, config)] == [0, 2, 4]
    rates = [learning_rates(epoch + 0.5, phase_at(epoch, config, 4), config)["backbone"] for epoch in range(10)]
    assert rates == [0, 0.1, 0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0.1]
    with pytest.raises(ConfigError, match="`redivide_until` 0: must be at least 1"):
        TrainConfig(redivide_until=0)


def test_the_backbone_rests_after_each_division_and_masks_end_with_the_subspaces() -> None:
    config = TrainConfig(epochs=8, redivide_every=2, freeze_backbone_epochs=1, joint_epoch=4, finetune_epoch=6, lr=0.1)
    rates = [learning_rates(epoch + 0.5, phase_at(epoch, config, 4), config) for epoch in range(8)]
    # 2021's SOP command: every even epoch, the joint phase's included.
    assert [r["backbone"] for r in rates] == [0, 0.1, 0, 0.1, 0, 0.1, 0.1, 0.1]
    assert [r["masks"] for r in rates] == [10, 10, 10, 10, 0, 0, 0, 0]
    assert {r["head"] for r in rates} == {config.head_lr}
    halved = TrainConfig(epochs=8, mask_lr=0.5, lr_schedule="step", lr_step_epochs=2, lr_gamma=0.5)
    assert learning_rates(2.0, Phase.SUBSPACE, halved)["masks"] == 0.25
    with pytest.raises(ConfigError, match="leaves no epoch in which the backbone trains"):
        TrainConfig(redivide_every=2, freeze_backbone_epochs=2)
