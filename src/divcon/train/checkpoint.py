"""Everything that the next epoch depends on, in one file that is there whole or not at all."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from divcon.config import TrainConfig
from divcon.divide import Division
from divcon.errors import RunError
from divcon.files import written_whole
from divcon.models import EmbeddingModel
from divcon.train.feature_memory import FeatureMemory

FORMAT = 2
MAY_CHANGE = {"workers", "device"}
"""Settings that may differ between the parts of a resumed training: they do not change what is trained."""


@dataclasses.dataclass
class TrainState:
    """What training changes. Random numbers are not part of it: each batch draws its own from (seed, epoch, number)."""

    model: EmbeddingModel
    objectives: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Any
    """Fabric's precision plugin, which holds the gradient scaler under fp16."""
    features: FeatureMemory
    division: Division | None = None
    epochs_done: int = 0

    def save(self, path: Path, config: TrainConfig, images: str) -> None:
        """Write, whole or not at all.

        Raises:
            OutputError: the file cannot be written; the previous one is kept.
        """
        division = self.division
        content = {
            "format": FORMAT,
            "epochs_done": self.epochs_done,
            "config": dataclasses.asdict(config),
            "images": images,
            "made_with": self.model.made_with,
            "freeze_batch_norm": self.model.freeze_batch_norm,
            "model": self.model.state_dict(),
            "objectives": self.objectives.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state_dict(),
            "features": self.features.state_dict(),
            "division": None
            if division is None
            else {
                "learner": torch.from_numpy(division.learner),
                "centroids": torch.from_numpy(division.centroids),
            },
        }
        # By way of memory: PyTorch's own writer says of a full disk only that an assertion failed.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with written_whole(path) as beside:
            beside.write_bytes(buffer.getbuffer())

    def load(self, path: Path, config: TrainConfig, images: str) -> None:
        """Go on from ``path``.

        Raises:
            RunError: the file is damaged, or belongs to a training with other settings or data.
        """
        content = read_checkpoint(path)
        # Begun before there was a choice, it is of Adam, with no loss on the full embedding, divided on fresh features.
        saved = {"optimizer": "adam", "full_weight": 0.0, "divide_on": "fresh", **content["config"]}
        asked = dataclasses.asdict(config)
        changed = [name for name in asked if name not in MAY_CHANGE and saved.get(name) != asked[name]]
        if changed:
            listed = "; ".join(f"{name}: {saved.get(name)} then, {asked[name]} now" for name in changed)
            raise RunError(f"{path}: cannot go on with other settings than it began with ({listed})")
        if content["images"] != images:
            raise RunError(f"{path}: the training images or their labels have changed since; resume with the same data")
        self.model.freeze_batch_norm = content["freeze_batch_norm"]
        self.model.load_state_dict(content["model"])
        self.objectives.load_state_dict(content["objectives"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.precision.load_state_dict(content["precision"])
        if "features" in content:
            self.features.load_state_dict(content["features"])
        division = content["division"]
        if division is not None:
            self.division = Division(np.asarray(division["learner"]), np.asarray(division["centroids"]))
        self.epochs_done = content["epochs_done"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, of tensors and plain values only: no code in it is run.

    Raises:
        RunError: the file is damaged or of another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader fails in a dozen ways on bytes that are not its own
        raise RunError(
            f"{path}: the checkpoint is damaged ({type(error).__name__}); begin anew in another --out, from the model "
            "that is kept with --init"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path}: not a checkpoint of this version of divcon")
    return content


def model_in(path: Path) -> EmbeddingModel:
    """The model as the last epoch that the checkpoint holds left it, in evaluation mode.

    Raises:
        RunError: the file is damaged or of another format.
    """
    content = read_checkpoint(path)
    model = EmbeddingModel(**content["made_with"], pretrained=False)
    model.load_state_dict(content["model"])
    model.freeze_batch_norm = content["freeze_batch_norm"]
    return model.eval()
