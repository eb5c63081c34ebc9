"""The phase and the learning rates of an epoch: pure functions of the epoch, so that a resume has the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from divcon.config.fields import saved_value
from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.training.own import name_in_words, resolve

Schedule = Callable[[float, TrainConfig], float]
"""``schedule(epochs_done, config)``: the factor of all learning rates after ``epochs_done`` epochs, a fraction within
one."""


class Phase(StrEnum):
    """The embedding that the loss is computed on, and where the batches come from."""

    SUBSPACE = "subspace"
    """Learner k's loss is on its own subspace, on batches of cluster k."""
    JOINT = "joint"
    """The loss is on the full embedding, on batches of one cluster at a time: hard negatives."""
    FINETUNE = "finetune"
    """The loss is on the full embedding, on batches of all data."""


def phase_at(epoch: int, config: TrainConfig, num_learners: int) -> Phase:
    """The phase of an epoch (from 0). One learner has nothing to divide or conquer: always finetune."""
    joint, finetune = config.phase_starts
    if num_learners == 1 or epoch >= finetune:
        return Phase.FINETUNE
    return Phase.JOINT if epoch >= joint else Phase.SUBSPACE


def divides_at(epoch: int, config: TrainConfig) -> bool:
    """Whether the images are divided again before an epoch of the subspace or joint phase."""
    ends = config.redivide_until
    return epoch % config.redivide_every == 0 and (ends is None or epoch < ends)


def learning_rates(epochs_done: float, phase: Phase, config: TrainConfig) -> dict[str, float]:
    """The learning rate of each group of weights, by its name, after ``epochs_done`` epochs, a fraction within one.

    The backbone's is 0 in the first ``freeze_backbone_epochs`` epochs after each division, also in the joint phase, and
    before ``redivide_until``; the masks' is 0 from the joint phase on (2021).
    """
    epoch, ends = int(epochs_done), config.redivide_until
    frozen = phase is not Phase.FINETUNE and epoch % config.redivide_every < config.freeze_backbone_epochs
    frozen = frozen and (ends is None or epoch < ends)
    rates = {
        "backbone": 0.0 if frozen else config.lr,
        "head": config.head_lr,
        "masks": config.chosen_mask_lr if phase is Phase.SUBSPACE else 0.0,
    }
    factor = lr_factor(epochs_done, config)
    return {name: rate * factor for name, rate in rates.items()}


def lr_factor(epochs_done: float, config: TrainConfig) -> float:
    """The factor of all learning rates after ``epochs_done`` epochs, a fraction within one: the schedule's, times that
    of the warmup.

    Raises:
        ConfigError: your own schedule fails, or returns a negative or infinite factor.
    """
    warmup = min(1.0, epochs_done / config.warmup_epochs) if config.warmup_epochs else 1.0
    built_in = _BUILT_IN.get(config.lr_schedule) if isinstance(config.lr_schedule, str) else None
    if built_in is not None:
        return warmup * built_in(epochs_done, config)
    return warmup * _own_factor(resolve(config.lr_schedule, "lr_schedule"), epochs_done, config)


def difference_until(epochs_done: float, one: TrainConfig, other: TrainConfig, num_learners: int) -> str | None:
    """Why two trainings that differ in their number of epochs are not the same in the first ``epochs_done``; None where
    they are.

    Raises:
        ConfigError: see `lr_factor`.
    """
    for epoch in range(math.ceil(epochs_done)):
        phases = [phase_at(epoch, config, num_learners) for config in (one, other)]
        if phases[0] is not phases[1]:
            return (
                f"epoch {epoch}, which is done, was of the {phases[0]} phase and would be of {phases[1]} (set "
                f"`finetune_epoch={one.phase_starts[1]}`, where it began)"
            )
        for place in (0.0, 0.25, 0.5, 0.75):
            rates = [learning_rates(epoch + place, phases[0], config) for config in (one, other)]
            if rates[0] != rates[1]:
                name = saved_value(one.lr_schedule)
                return f"the learning rates of the epochs that are done depend on `epochs` (`lr_schedule={name}`)"
    return None


def check_schedule(config: TrainConfig) -> None:
    """Check that the schedule has a factor at the start of each epoch and at the end of the last.

    Raises:
        ConfigError: see `lr_factor`.
    """
    for epochs_done in range(config.epochs + 1):
        lr_factor(float(epochs_done), config)


def _own_factor(schedule: Any, epochs_done: float, config: TrainConfig) -> float:
    try:
        factor = float(schedule(epochs_done, config))
    except Exception as error:
        raise ConfigError(
            f"`lr_schedule` {name_in_words(schedule)!r} cannot compute a factor after {epochs_done:g} epochs "
            f"({type(error).__name__}: {error}); it is called as schedule(epochs_done, config)",
            field="lr_schedule",
        ) from error
    if not 0 <= factor < math.inf:
        raise ConfigError(
            f"`lr_schedule` {name_in_words(schedule)!r} returns {factor} after {epochs_done:g} epochs: the factor of "
            "the learning rates must be finite and not negative",
            field="lr_schedule",
        )
    return factor


def _cosine(epochs_done: float, config: TrainConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * epochs_done / config.epochs))


def _step(epochs_done: float, config: TrainConfig) -> float:
    return config.lr_gamma ** (int(epochs_done) // config.lr_step_epochs)


_BUILT_IN: dict[str, Schedule] = {"constant": lambda epochs_done, config: 1.0, "cosine": _cosine, "step": _step}
