"""The average of the weights over the last epochs, which is evaluated and saved in place of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of a model's weights, updated once an epoch.

    Training goes on from the weights themselves. The average of the last epochs moves less from one epoch to the next,
    and generalises better (Izmailov et al., UAI 2018, average them alike).

    Args:
        decay: the share of the old average that an update keeps; 0: no average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._average: dict[str, Tensor] = {}
        """Of each weight and statistic by name; empty before the first update."""
        self._before: dict[str, Tensor] = {}
        """The average before the last update, until that epoch is over."""

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights of the epoch that has ended."""
        if not self._decay:
            return
        current, self._before = self._weights(), self._average
        if not self._average:
            self._average = {name: value.detach().clone() for name, value in current.items()}
            return
        self._average = {name: self._average[name].lerp(value, 1 - self._decay) for name, value in current.items()}

    def restart(self) -> None:
        """Begin again with the next update: learners that have doubled have no weights of before."""
        self._average = {}

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Within, the model has the average as its weights. It keeps it where the caller leaves a generator for good
        (GeneratorExit), so that the model is the one that was evaluated. After any other error the last update is
        undone, as the end of the epoch is repeated by a resume."""
        if not self._average:
            yield
            return
        trained = {name: value.detach().clone() for name, value in self._weights().items()}
        self.copy_to_model()
        try:
            yield
        except GeneratorExit:
            raise
        except BaseException:
            self._copy(trained)
            self._average = self._before
            raise
        self._copy(trained)
        self._before = {}

    def copy_to_model(self) -> None:
        """Give the model the average as its weights, for good."""
        self._copy(self._average)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        current = self._weights()
        for name, value in values.items():
            current[name].copy_(value)

    def _weights(self) -> dict[str, Tensor]:
        """Parameters, and statistics such as those of BatchNorm; no counters."""
        named = (*self._model.named_parameters(), *self._model.named_buffers())
        return {name: value for name, value in named if value.is_floating_point()}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        current = self._weights()
        self._average = {name: value.to(current[name].device) for name, value in state.items()}
