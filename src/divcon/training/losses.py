"""Losses and miners by name, one of each a learner and one for the full embedding."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import SmoothAPLoss as _SmoothAPLoss
from pytorch_metric_learning.reducers import DivisorReducer
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from pytorch_metric_learning.utils.common_functions import TorchInitWrapper
from torch import Tensor, nn

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError, unknown
from divcon.models import SubspaceHead
from divcon.runtime.device import to_device
from divcon.training.cross_batch_memory import Memory, check_memory
from divcon.training.miners import DistanceWeightedMiner, NearestNegativesMiner, TripletMiner
from divcon.training.proxies import ClusterProxies

_MODULES = {
    "distance": distances,
    "reducer": reducers,
    "embedding_regularizer": regularizers,
    "weight_regularizer": regularizers,
}
_NOT_BY_NAME = {
    "BatchedDistance": "wraps another distance",
    "MultipleReducers": "needs reducers for parts of a loss, and divcon makes it where a loss has parts",
    "DoNothingReducer": "does not reduce a loss to one number",
    "ClassWeightedReducer": "needs a tensor of weights",
}


def create(
    kind: type[nn.Module], options: Mapping[str, Any], what: str, sizes: Mapping[str, int] | None = None
) -> nn.Module:
    """An instance of a loss or miner.

    Args:
        kind: its class.
        options: arguments of its constructor, plain values. For an argument that takes an object, the name of its
            class, made with its defaults: ``distance="CosineSimilarity"``, ``reducer="MeanReducer"``,
            ``embedding_regularizer="ZeroMeanRegularizer"``, ``weight_regularizer="RegularFaceRegularizer"``; for
            ``weight_init_func`` the name of a function of ``torch.nn.init``; for a range ``"0.2,0.8"``. Embeddings have
            length one, so that the dot product is the cosine, and a regularizer of lengths (LpRegularizer) is a
            constant.
        what: ``loss`` or ``miner``, for the errors.
        sizes: arguments that are filled in where the class takes them and ``options`` leaves them out.

    Raises:
        ConfigError: an unknown argument or class (the nearest names are suggested), or values it cannot be made of.
    """
    known = arguments(kind)
    for option in options:
        if option not in known:
            raise ConfigError(unknown(f"argument of {kind.__name__}", option, known))
    given = {**{name: size for name, size in (sizes or {}).items() if name in known}, **options}
    values = {name: _value(kind, name, value, given, what) for name, value in given.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{kind.__name__} cannot be made of {given} ({error}); give its arguments as --{what}-options.NAME VALUE"
        ) from error


def arguments(kind: type[nn.Module]) -> dict[str, Any]:
    """The arguments that a class's constructor takes, those it hands on to its bases included, with their defaults
    (`inspect.Parameter.empty` where there is none)."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if base is nn.Module:
            break
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            found = {**{p.name: p.default for p in parameters if p.kind in named}, **found}
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
                break
    return {name: default for name, default in found.items() if name not in ("self", "mat_based_loss")}


def _value(kind: type[nn.Module], name: str, value: Any, given: Mapping[str, Any], what: str) -> Any:
    where = f"--{what}-options.{name} of {kind.__name__}"
    if name in _MODULES:
        return _by_class(kind, name, value, given, where)
    if name == "weight_init_func":
        known = [key for key in vars(nn.init) if key.endswith("_") and not key.startswith("_")]
        if value not in known:
            raise ConfigError(f"{where}: {unknown('function of torch.nn.init', str(value), known)}")
        return TorchInitWrapper(getattr(nn.init, value))
    if name.endswith("_range"):
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            raise ConfigError(f"{where} {value!r}: give two numbers with a comma between, as in 0.2,0.8") from None
        return low, high
    # A size must be whole, and 10.0 is how some writers of files put 10.
    whole = isinstance(value, float) and value.is_integer() and not isinstance(arguments(kind)[name], float)
    return int(value) if whole else value


def _by_class(kind: type[nn.Module], name: str, value: Any, given: Mapping[str, Any], where: str) -> nn.Module:
    classes: dict[str, Any] = {key: item for key, item in vars(_MODULES[name]).items() if inspect.isclass(item)}
    if value in _NOT_BY_NAME and value in classes:
        raise ConfigError(f"{where}: {value} {_NOT_BY_NAME[value]}")
    known = [key for key in classes if key not in _NOT_BY_NAME and not key.startswith("Base")]
    if value not in known:
        raise ConfigError(f"{where}: {unknown('class', str(value), known)}")
    # SparseCentersRegularizer is made for as many centres as its loss has.
    defaults = arguments(kind)
    centres = next((given.get(c, defaults[c]) for c in ("centers_per_class", "sub_centers") if c in defaults), 1)
    sizes = {"num_classes": given.get("num_classes"), "centers_per_class": int(centres)}
    made: type[nn.Module] = classes[value]
    try:
        return made(**{key: size for key, size in sizes.items() if key in arguments(made)})
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{where}: {value} cannot be made with its defaults ({error})") from error


class Objective(nn.Module):
    """A loss and the miner that feeds it, in float32 under any precision.

    All that training changes in it is in ``state_dict``, as tensors and plain numbers: proxies and betas, the memory
    with its position, histograms. The classes that `divided` was told are not: it is called again after a resume.

    Args:
        loss: of pytorch-metric-learning, or a `ClusterProxies` or `Memory` around one.
        miner: what picks the pairs or triplets of a batch. None: all of them, or those that a `Memory`'s miner picks.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        for module in self.modules():
            _tensors_to_buffers(module)

    def divided(self, classes: Int64[Tensor, "c"] | Int64[np.ndarray, "c"] | None) -> None:
        """The learner's cluster has these (c,) classes; None: all. A loss with proxies compares with theirs alone from
        now on, and leaves the others as they are; other losses know no classes, and ignore it."""
        for module in self.modules():
            if isinstance(module, ClusterProxies):
                module.divided(classes)

    def forget(self) -> None:
        """Empty the memory, if there is one: what is in it are images of another cluster."""
        if isinstance(self.loss, Memory):
            self.loss.forget()

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Int64[Tensor, "B"]) -> Float[Tensor, ""]:
        """The loss, a scalar, of (B, d) embeddings and their (B,) labels, which are on the CPU: what follows from them
        alone is then known there, and an accelerator need not be waited for.

        Raises:
            ConfigError: loss or miner cannot compute this batch; the message says why and what to do.
            ValueError: a label is not of the classes that `divided` was told.
        """
        known = labels.cpu()
        for module in self.modules():
            if isinstance(module, ClusterProxies):
                module.check(known)
        labels = to_device(known, embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            # An embedding that is zero (of a dead mask) has no direction: normalised once more in the loss, it would
            # get the gradient divided by the normalisation's epsilon, a million millions times too large.
            alive = (embeddings != 0).any(dim=1, keepdim=True)
            embeddings = torch.where(alive, embeddings, embeddings.detach())
            try:
                own = isinstance(self.miner, TripletMiner)
                tuples = self.miner(embeddings, known if own else labels) if self.miner is not None else None
                loss = self.loss(embeddings, labels, tuples)
                loss = loss.reshape(())
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:
                raise ConfigError(self._cannot(known, error)) from error
        for module in self.loss.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.requires_grad:  # DynamicSoftMarginLoss's histogram would keep the graphs of all past batches
                    setattr(module, name, buffer.detach())
        return loss

    def _cannot(self, labels: Int64[Tensor, "B"], error: Exception) -> str:
        loss = self.loss
        while isinstance(loss, (Memory, ClusterProxies)):
            loss = loss.loss  # type: ignore[assignment]
        miner = self.loss.miner if isinstance(self.loss, Memory) else self.miner
        names = type(loss).__name__ + ("" if miner is None else f" with miner {type(miner).__name__}")
        counts = labels.unique(return_counts=True)[1].tolist()
        reason, todo = str(error).strip().rstrip("."), "look at their arguments, or use another --loss or --miner"
        if "indices_tuple is not supported" in reason:
            reason, todo = "this loss picks its pairs itself", "use --miner none"
        elif isinstance(error, IndexError) or "out of bounds" in reason:
            reason = f"a distance or a number is outside of what it was made for: {reason}"
        elif not reason:
            reason = f"{type(error).__name__} inside the library"
        sizes = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        return (
            f"{names} cannot compute a batch of {len(labels)} images, {len(counts)} classes with {sizes} images each: "
            f"{reason}; {todo}"
        )


def _tensors_to_buffers(module: nn.Module) -> None:
    """Plain tensors of a loss, such as a histogram that grows with each batch, become buffers: saved with a checkpoint,
    and moved to the device."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and not isinstance(module, (ClusterProxies, Memory)):
            delattr(module, name)
            # Not every device knows float64.
            module.register_buffer(name, value.float() if value.dtype == torch.float64 else value)


class SmoothAPLoss(_SmoothAPLoss):
    """One minus the average precision of each image as a query to its batch, ranks softened by a sigmoid (Brown et al.,
    "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020). As there, a query is one of its own
    positives.

    pytorch-metric-learning's needs every class equally often, in the order of the classes, and (version 2.9) takes the
    number of images a class for the number of classes: it is right only where the two are equal, and equals this there.

    Args:
        temperature: of the sigmoid.
    """

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        """The losses of all queries, (B,)."""
        similarity = self.distance(embeddings)
        same = (labels[:, None] == labels[None, :]).to(similarity.dtype)
        # before[q, r, j]: how much j is before r in q's list.
        before = torch.sigmoid((similarity[:, None, :] - similarity[:, :, None]) / self.temperature)
        before = before * (1 - torch.eye(len(labels), dtype=before.dtype, device=before.device))
        rank = 1 + before.sum(dim=2)
        rank_among_positives = 1 + (before * same[:, None, :]).sum(dim=2)
        precision = (rank_among_positives / rank * same).sum(dim=1) / same.sum(dim=1)
        weights = lmu.convert_to_weights(indices_tuple, labels, dtype=precision.dtype)
        return {
            "ap_loss": {
                "losses": (1 - precision) * weights,
                "indices": torch.arange(len(labels), device=labels.device),
                "reduction_type": "element",
            }
        }


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
    loss = ClusterProxies(make, classes) if ClusterProxies.needed(make) else make(classes)
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
