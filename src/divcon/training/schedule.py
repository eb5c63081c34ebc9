"""What an epoch is: its phase and its learning rate, both pure functions of the epoch."""

from __future__ import annotations

import math
from enum import StrEnum

from divcon.config.settings import TrainConfig


class Phase(StrEnum):
    """What the loss sees, and where the batches come from."""

    SUBSPACE = "subspace"
    """Learner k's loss sees subspace k, on batches of cluster k."""
    JOINT = "joint"
    """The loss sees the full embedding, on batches of one cluster at a time: hard negatives."""
    FINETUNE = "finetune"
    """The loss sees the full embedding, on batches of all data."""


def phase_at(epoch: int, config: TrainConfig, num_learners: int) -> Phase:
    """The phase of an epoch (from 0). One learner has nothing to divide or conquer: always finetune."""
    joint, finetune = config.phase_starts
    if num_learners == 1 or epoch >= finetune:
        return Phase.FINETUNE
    return Phase.JOINT if epoch >= joint else Phase.SUBSPACE


def lr_factor(epochs_done: float, config: TrainConfig) -> float:
    """What the learning rates are multiplied with after ``epochs_done`` epochs, a fraction within one."""
    warmup = min(1.0, epochs_done / config.warmup_epochs) if config.warmup_epochs else 1.0
    if config.lr_schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * epochs_done / config.epochs))
    if config.lr_schedule == "step":
        return warmup * config.lr_gamma ** (int(epochs_done) // config.lr_step_epochs)
    return warmup


def learning_rates(epochs_done: float, phase: Phase, config: TrainConfig) -> dict[str, float]:
    """The learning rate of each group of weights, by its name, after ``epochs_done`` epochs, a fraction within one.

    The backbone's is 0 in the first ``freeze_backbone_epochs`` epochs after each division, the joint phase's included;
    the masks' is 0 from the joint phase on (2021).
    """
    frozen = phase is not Phase.FINETUNE and int(epochs_done) % config.redivide_every < config.freeze_backbone_epochs
    rates = {
        "backbone": 0.0 if frozen else config.lr,
        "head": config.head_lr,
        "masks": config.chosen_mask_lr if phase is Phase.SUBSPACE else 0.0,
    }
    factor = lr_factor(epochs_done, config)
    return {name: rate * factor for name, rate in rates.items()}
