"""Everything that the next batch depends on, as a checkpoint holds it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from divcon.config import TrainConfig
from divcon.data.file_sizes import resized
from divcon.divide import Division
from divcon.errors import RunError
from divcon.models import EmbeddingModel
from divcon.train.checkpoint_file import read_checkpoint, write_checkpoint
from divcon.train.feature_memory import FeatureMemory

MAY_CHANGE = {"workers", "device", "devices", "across", "checkpoint_minutes"}
"""Settings that may differ between the parts of a resumed training: they do not change what is trained."""


@dataclasses.dataclass
class Inside:
    """How far an epoch is that has been divided for."""

    previous: Division | None
    """The division of the epoch before."""
    batches: int = 0
    """Batches done."""
    losses: list[float] = dataclasses.field(default_factory=list)
    full_losses: list[float] = dataclasses.field(default_factory=list)
    seconds_dividing: float = 0.0
    seconds_training: float = 0.0


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
    file_sizes: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """(N,) int64, of the training images; empty where they are no files."""
    changed_files: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """(n,) int64, the training images whose files had another size when the training was kept."""
    inside: Inside | None = None
    """Of the epoch after those that are done; None before it is divided for."""

    def save(self, path: Path, config: TrainConfig, images: str) -> None:
        """Write, whole or not at all.

        Raises:
            OutputError: the file cannot be written; the previous one is kept.
        """
        content = {
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
            "division": _plain(self.division),
            "file_sizes": torch.from_numpy(self.file_sizes),
            "inside": None,
        }
        if self.inside is not None:
            same = self.inside.previous is self.division
            content["inside"] = {
                **vars(self.inside),
                "previous": None if same else _plain(self.inside.previous),
                "redivided": not same,
                "losses": torch.tensor(self.inside.losses, dtype=torch.float64),
                "full_losses": torch.tensor(self.inside.full_losses, dtype=torch.float64),
            }
        write_checkpoint(path, content)

    def load(self, path: Path, config: TrainConfig, images: str) -> None:
        """Go on from ``path``.

        Raises:
            RunError: the file is damaged, or belongs to a training with other settings or data.
        """
        content = read_checkpoint(path)
        # Begun before there was a choice, it is of Adam, with no loss on the full embedding, divided on fresh features.
        saved = {
            "optimizer": "adam",
            "full_weight": 0.0,
            "divide_on": "fresh",
            "learners_per_step": 1,
            "fused": False,
            "compile": False,
            **content["config"],
        }
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
        self.division = _division(content["division"])
        self.epochs_done = content["epochs_done"]
        then = content.get("file_sizes")  # like the following, not in format 2
        if then is not None:
            self.changed_files = resized(then.numpy(), self.file_sizes)
        inside = content.get("inside")
        if inside is not None:
            previous = _division(inside["previous"]) if inside.pop("redivided") else self.division
            losses = {name: inside[name].tolist() for name in ("losses", "full_losses")}
            self.inside = Inside(**{**inside, "previous": previous, **losses})


def model_in(path: Path) -> EmbeddingModel:
    """The model as the last training that the checkpoint holds left it, in evaluation mode.

    Raises:
        RunError: the file is damaged or of another format.
    """
    content = read_checkpoint(path)
    model = EmbeddingModel(**content["made_with"], pretrained=False)
    model.load_state_dict(content["model"])
    model.freeze_batch_norm = content["freeze_batch_norm"]
    return model.eval()


def _plain(division: Division | None) -> dict[str, torch.Tensor] | None:
    if division is None:
        return None
    return {"learner": torch.from_numpy(division.learner), "centroids": torch.from_numpy(division.centroids)}


def _division(held: dict[str, torch.Tensor] | None) -> Division | None:
    return None if held is None else Division(np.asarray(held["learner"]), np.asarray(held["centroids"]))
