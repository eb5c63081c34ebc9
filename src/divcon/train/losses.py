"""Losses and miners by name, one of each a learner and one for the full embedding."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from jaxtyping import Float, Int64
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor, nn

from divcon.config import TrainConfig
from divcon.errors import ConfigError, unknown
from divcon.models import SubspaceHead
from divcon.train.miner import DistanceWeightedMiner

DISTANCE_WEIGHTED = "distance-weighted"

_WITHOUT_LABELS = {
    "ManifoldLoss": "draws classes of its own and takes no labels",
    "VICRegLoss": "compares two views of an image and takes no labels",
    "SelfSupervisedLoss": "compares two views of an image and takes no labels",
    "CrossBatchMemory": "wraps another loss",
    "MultipleLosses": "combines other losses",
    "GenericPairLoss": "is a base for other losses",
    "BaseMetricLossFunction": "is a base for other losses",
    "BaseLossWrapper": "is a base for other losses",
}
_WITHOUT_TRIPLETS = {"BaseMiner", "EmbeddingsAlreadyPackagedAsTriplets"}


class Objective(nn.Module):
    """A loss and the miner that feeds it, in float32 under any precision."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Int64[Tensor, "B"]) -> Float[Tensor, ""]:
        """The loss, a scalar, of (B, d) embeddings and their (B,) labels."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            tuples = self.miner(embeddings, labels) if self.miner is not None else None
            return self.loss(embeddings, labels, tuples)


def create_objectives(config: TrainConfig, head: SubspaceHead, num_classes: int) -> nn.ModuleList:
    """K + 1 objectives: number k is learner k's, the last is the full embedding's (joint and finetune phases).

    Args:
        num_classes: C; labels are 0 to C - 1.

    Raises:
        ConfigError: an unknown loss, miner or argument (the nearest names are suggested), or one that takes no labels.
    """
    dims = [head.subspace_dim(k) for k in range(head.num_learners)] + [head.embedding_dim]
    objectives = nn.ModuleList(Objective(_create_loss(config, dim, num_classes), _create_miner(config)) for dim in dims)
    _try(objectives[-1], head.embedding_dim, config)
    return objectives


def _try(objective: nn.Module, dim: int, config: TrainConfig) -> None:
    """A step on random embeddings: what an argument of the wrong kind does shows here, and not in the first epoch."""
    with torch.random.fork_rng(devices=[]):
        embeddings = nn.functional.normalize(torch.randn(8, dim), dim=1).requires_grad_()
        try:
            copy.deepcopy(objective)(embeddings, torch.arange(8) // 4)
        except Exception as error:
            raise ConfigError(
                f"{config.loss} with miner {config.miner} cannot compute a loss ({error}); look at its arguments: "
                f"{config.loss_options} {config.miner_options}"
            ) from error


def loss_names() -> list[str]:
    """The losses that `TrainConfig.loss` takes."""
    return [
        name
        for name, value in vars(pml_losses).items()
        if inspect.isclass(value)
        and issubclass(value, pml_losses.BaseMetricLossFunction)
        and name not in _WITHOUT_LABELS
    ]


def miner_names() -> list[str]:
    """The miners that `TrainConfig.miner` takes."""
    named = [name for name, value in vars(pml_miners).items() if inspect.isclass(value)]
    return ["auto", "none", DISTANCE_WEIGHTED, *(name for name in named if name not in _WITHOUT_TRIPLETS)]


def _loss_class(name: str) -> type[nn.Module]:
    if name in _WITHOUT_LABELS:
        raise ConfigError(f"loss {name!r} {_WITHOUT_LABELS[name]}; divcon trains losses of embeddings and labels")
    if name not in loss_names():
        raise ConfigError(unknown("loss", name, loss_names()))
    return getattr(pml_losses, name)


def _create_miner(config: TrainConfig) -> nn.Module | None:
    name = config.miner
    if name == "auto":
        name = DISTANCE_WEIGHTED if config.loss in ("MarginLoss", "TripletMarginLoss") else "none"
    if name == "none":
        if config.miner_options:
            raise ConfigError(f"--miner-options are given, but loss {config.loss} has no miner; name one with --miner")
        return None
    if name == DISTANCE_WEIGHTED:
        return _create(DistanceWeightedMiner, config.miner_options, "miner")
    if name not in miner_names():
        raise ConfigError(unknown("miner", name, miner_names()))
    return _create(getattr(pml_miners, name), config.miner_options, "miner")


def _create_loss(config: TrainConfig, dim: int, num_classes: int) -> nn.Module:
    kind = _loss_class(config.loss)
    sizes = {"embedding_size": dim, "descriptors_dim": dim, "num_classes": num_classes}
    known = _arguments(kind)
    # MarginLoss takes num_classes for one beta a class, which without learn_beta is a constant by another name.
    filled = {} if kind is pml_losses.MarginLoss else {name: size for name, size in sizes.items() if name in known}
    return _create(kind, {**filled, **config.loss_options}, "loss")


def _create(kind: type[nn.Module], options: dict[str, Any], what: str) -> nn.Module:
    known = _arguments(kind)
    for option in options:
        if option not in known:
            raise ConfigError(unknown(f"argument of {kind.__name__}", option, known))
    try:
        return kind(**options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{kind.__name__} cannot be made of {options} ({error}); give its arguments as --{what}-options.NAME VALUE"
        ) from error


def _arguments(kind: type[nn.Module]) -> set[str]:
    """The names that a class's constructor takes, those it hands on to its bases included."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base is nn.Module:
            break
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            names |= {p.name for p in parameters if p.kind in named}
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
                break
    return names - {"self"}
