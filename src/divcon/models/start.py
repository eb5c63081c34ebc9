"""The weights that a model's training started from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divcon.runtime.places import place


@dataclass(frozen=True)
class Start:
    """The weights that training started from."""

    pretrained: bool
    """timm's weights of the backbone, where there are neither of the two below."""
    weights: Path | None = None
    """A file of backbone weights."""
    init: Path | None = None
    """The folder of another run or model."""
    recorded: bool = True
    """Whether this is known; else ``pretrained`` is what the model's frozen BatchNorm suggests."""

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any], *, frozen: bool) -> Start:
        """The start of a model that was saved to ``folder``, as its run recorded it.

        Args:
            config: of the model.
            frozen: whether its BatchNorm's running statistics are frozen, as they are after pretraining.
        """
        for file in (folder / "run.json", folder.parent / "config.json"):
            try:
                record = json.loads(file.read_text())
                settings = record["model"]
                if "train" not in record or settings["backbone"] != config["backbone"]:
                    continue
                weights, init = settings["weights"], record.get("init")
                return cls(bool(settings["pretrained"]), weights and place(weights), init and place(init))
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue  # no file of a run: the folder was copied out of it, or exported
        return cls(frozen, recorded=False)
