"""Losses and miners by name, one of each a learner and one for the full embedding."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.reducers import DivisorReducer
from torch import Tensor, nn

from divcon.config import TrainConfig
from divcon.errors import ConfigError, unknown
from divcon.models import SubspaceHead
from divcon.train.class_rows import ClassRows
from divcon.train.memory import Memory, check_memory
from divcon.train.miner import DistanceWeightedMiner, NearestNegativesMiner
from divcon.train.objective import Objective
from divcon.train.pml_options import arguments, create
from divcon.train.smooth_ap import SmoothAPLoss

OWN_MINERS = {"distance-weighted": DistanceWeightedMiner, "nearest-negatives": NearestNegativesMiner}

_OWN_LOSSES: dict[str, type[nn.Module]] = {"SmoothAPLoss": SmoothAPLoss}
_REFUSED = {
    "ManifoldLoss": "draws classes of its own and takes no labels; divcon trains losses of embeddings and labels",
    "VICRegLoss": "compares two views of an image and takes no labels; divcon trains losses of embeddings and labels",
    "SelfSupervisedLoss": "compares two views of an image and takes no labels; divcon trains losses of embeddings and "
    "labels",
    "InstanceLoss": "takes image number n of a batch for class number n in pytorch-metric-learning, and so draws "
    "unlike images together; use NormalizedSoftmaxLoss or NTXentLoss",
    "IntraPairVarianceLoss": "evens out similarities without telling classes apart, and is meant to be added to "
    "another loss; use MultiSimilarityLoss",
    "CrossBatchMemory": "wraps another loss; use --memory-size",
    "MultipleLosses": "combines other losses; name one of them",
    "GenericPairLoss": "is a base for other losses",
    "BaseMetricLossFunction": "is a base for other losses",
    "BaseLossWrapper": "is a base for other losses",
}
_REFUSED_MINERS = {"BaseMiner", "EmbeddingsAlreadyPackagedAsTriplets"}
_SIZES = ("embedding_size", "descriptors_dim")
_NEEDS_CLAMPED = ("HistogramLoss", "TupletMarginLoss")


class ClampedCosine(CosineSimilarity):
    """The cosine, kept just inside of -1 and 1: rounding lets the cosine of an image with itself, which a small class
    repeats in a batch, exceed 1, where an arc cosine is NaN and a histogram has no bin."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """(B, R) cosines."""
        return super().compute_mat(query_emb, ref_emb).clamp(-1 + 1e-6, 1 - 1e-6)


class Quotient(DivisorReducer):
    """The sum of a loss over the number of pairs that have one; 0 without any. The library asks the device whether
    there are any, and waits for the answer."""

    def sum_and_divide(self, losses: Tensor, embeddings: Tensor, divisor: Tensor | int) -> Tensor:
        """A scalar, of (T,) losses."""
        if not isinstance(divisor, Tensor):
            return super().sum_and_divide(losses, embeddings, divisor)
        return torch.where(divisor == 0, self.zero_loss(embeddings), losses.sum() / divisor.clamp(min=1))


def create_objectives(config: TrainConfig, head: SubspaceHead, num_classes: int) -> nn.ModuleList:
    """K + 1 objectives: number k is learner k's, the last is the full embedding's (joint and finetune phases). The
    losses' own parameters begin as ``config.seed`` says, whatever random numbers were drawn before.

    Args:
        num_classes: C; labels are 0 to C - 1.

    Raises:
        ConfigError: an unknown loss, miner or argument (the nearest names are suggested), a loss that cannot be trained
            or cannot have a memory, or arguments that cannot work; the message says why.
    """
    kind = _loss_class(config.loss)
    if config.memory_size:
        check_memory(config)
    dims = [head.subspace_dim(k) for k in range(head.max_learners)] + [head.embedding_dim]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        objectives = nn.ModuleList(_create_objective(config, kind, dim, num_classes) for dim in dims)
        for dim in sorted(set(dims)):
            _try(objectives[dims.index(dim)], dim, config)
    return objectives


def keeps_state(objective: nn.Module, dim: int, config: TrainConfig) -> bool:
    """Whether an objective, of embeddings of ``dim`` dimensions, computes with what earlier batches have left in it,
    beside what the optimiser changes."""
    with torch.random.fork_rng(devices=[]):
        after, _ = _stepped(objective, dim, config)
    before = objective.state_dict()
    return any(value.shape != before[n].shape or not value.equal(before[n]) for n, value in after.state_dict().items())


def loss_names() -> list[str]:
    """The losses that `TrainConfig.loss` takes."""
    return [
        name
        for name, value in vars(pml_losses).items()
        if inspect.isclass(value) and issubclass(value, pml_losses.BaseMetricLossFunction) and name not in _REFUSED
    ]


def miner_names() -> list[str]:
    """The miners that `TrainConfig.miner` takes."""
    named = [name for name, value in vars(pml_miners).items() if inspect.isclass(value)]
    return ["auto", "none", *OWN_MINERS, *(name for name in named if name not in _REFUSED_MINERS)]


def _create_objective(config: TrainConfig, kind: type[nn.Module], dim: int, num_classes: int) -> Objective:
    miner = _create_miner(config)
    make = partial(_create_loss, config, kind, dim)
    classes = _num_classes(config, kind, num_classes)
    loss = ClassRows(make, classes) if ClassRows.needed(make) else make(classes)
    return Objective(Memory(loss, dim, config.memory_size, miner)) if config.memory_size else Objective(loss, miner)


def _try(objective: nn.Module, dim: int, config: TrainConfig) -> None:
    """A step on random embeddings: what an argument of the wrong kind does shows here, and not in the first epoch."""
    where = f"(options {config.loss_options} {config.miner_options}, embeddings of {dim} dimensions)"
    try:
        _, loss = _stepped(objective, dim, config)
    except Exception as error:
        raise ConfigError(f"{error} {where}") from error
    if not torch.isfinite(loss):
        raise ConfigError(f"{config.loss} is {loss.item()} for random embeddings {where}; look at its arguments")


def _stepped(objective: nn.Module, dim: int, config: TrainConfig) -> tuple[nn.Module, Tensor]:
    """A copy of the objective after a batch of two classes, and its loss."""
    stepped, each = copy.deepcopy(objective), min(4, config.images_per_class)
    embeddings = nn.functional.normalize(torch.randn(2 * each, dim), dim=1).requires_grad_()
    loss = stepped(embeddings, torch.arange(2 * each) // each)
    loss.backward()
    return stepped, loss


def _loss_class(name: str) -> type[nn.Module]:
    if name in _REFUSED:
        raise ConfigError(f"loss {name!r} {_REFUSED[name]}")
    if name not in loss_names():
        raise ConfigError(unknown("loss", name, loss_names()))
    return _OWN_LOSSES.get(name) or getattr(pml_losses, name)


def _create_miner(config: TrainConfig) -> nn.Module | None:
    name = config.chosen_miner
    if name == "none":
        if config.miner_options:
            raise ConfigError(f"--miner-options are given, but loss {config.loss} has no miner; name one with --miner")
        return None
    if name not in miner_names():
        raise ConfigError(unknown("miner", name, miner_names()))
    return create(OWN_MINERS.get(name) or getattr(pml_miners, name), config.miner_options, "miner")


def _create_loss(config: TrainConfig, kind: type[nn.Module], dim: int, num_classes: int) -> nn.Module:
    known = arguments(kind)
    options: dict[str, Any] = dict(config.loss_options)
    for name in _SIZES:
        if name in known and options.get(name, dim) != dim:
            raise ConfigError(f"--loss-options.{name} {options[name]}: leave it out, it is the embedding's ({dim})")
    sizes: Mapping[str, int] = dict.fromkeys(_SIZES, dim)
    if kind is not pml_losses.MarginLoss:
        sizes = {**sizes, "num_classes": num_classes}
    if "num_classes" in known and "num_classes" in options:
        options["num_classes"] = num_classes
    loss = create(kind, options, "loss", sizes)
    if config.loss in _NEEDS_CLAMPED and "distance" not in options:
        loss.distance = ClampedCosine()
    for module in list(loss.modules()):
        for name, part in module.named_children():
            if type(part) is DivisorReducer:
                setattr(module, name, Quotient())
    if isinstance(loss, pml_losses.DynamicSoftMarginLoss):
        # The library's histogram has no place for the upper end of the last bins; empty ones change nothing.
        loss.hist_ = torch.zeros(loss.num_bins + 2)
    return loss


def _num_classes(config: TrainConfig, kind: type[nn.Module], num_classes: int) -> int:
    """How many classes the loss is made for: C, or more where the options say so."""
    given = config.loss_options.get("num_classes")
    if given is None or "num_classes" not in arguments(kind):
        return num_classes
    if isinstance(given, str) or given < num_classes or given != int(given):
        raise ConfigError(
            f"--loss-options.num_classes {given}: the training images have {num_classes} classes; give as many or "
            "more, or leave it out"
        )
    if kind is pml_losses.MarginLoss and not config.loss_options.get("learn_beta"):
        raise ConfigError(
            "--loss-options.num_classes of MarginLoss makes one beta a class, which is a constant unless it is "
            "learned; leave it out, or give --loss-options.learn_beta true as well"
        )
    return int(given)
