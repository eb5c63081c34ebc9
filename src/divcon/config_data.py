"""The settings of the data, with the bounds that each must keep.

The text under each field is what ``divcon train --help`` shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cyclopts import Group, Parameter

from divcon.config_check import at_least
from divcon.errors import ConfigError

OnBadImage = Literal["stop", "skip"]


@Parameter(name="*", group=Group("Data and validation", sort_key=3))
@dataclass(frozen=True)
class DataConfig:
    """What it is trained and judged on."""

    validation: bool = True
    """Hold validation classes out of the training classes and keep the best epoch by their Recall@1.
    --no-validation trains on all of them, those that the data names for validation too, and keeps the last epoch, as
    the papers do."""
    validation_fraction: float = 0.1
    """Share of the training classes that is held out, where the data does not name validation classes."""
    evaluate_every: int = 1
    """Epochs between evaluations on the validation classes (the last epoch is always evaluated)."""
    on_bad_image: OnBadImage = "stop"
    """An image that does not decode: stop with its name; or skip: decode all images once before training, and leave
    those out that fail, listing them."""

    def __post_init__(self) -> None:
        at_least(self, evaluate_every=1)
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"--validation-fraction {self.validation_fraction}: must be between 0 and 1")
