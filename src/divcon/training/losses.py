"""Losses: one for each learner and one for the full embedding, each with the miner that picks its pairs or triplets.

A loss is named as its class in pytorch-metric-learning, or is a part of your own: ``module:Name``, a class, an object,
or a function of embeddings and labels.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.reducers import DivisorReducer
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor, nn
from torch.nn import functional as F

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.models import SubspaceHead
from divcon.runtime.device import to_device
from divcon.runtime.importing import is_named
from divcon.training.cross_batch_memory import CrossBatchMemory, check_cross_batch_memory
from divcon.training.instantiate import arguments, instantiate, parameters_of
from divcon.training.miners import TripletMiner, create_miner
from divcon.training.names import REFUSED, check_loss_name
from divcon.training.own import name_in_words, resolve
from divcon.training.proxies import ClusterProxies

_SIZES = ("embedding_size", "descriptors_dim")


def create_objectives(config: TrainConfig, head: SubspaceHead, num_classes: int) -> nn.ModuleList:
    """Create K + 1 objectives: number k is learner k's, the last is the full embedding's (joint and finetune phases).

    The losses' own parameters are initialised from ``config.seed``, whatever random numbers are drawn before.

    Args:
        num_classes: C; labels are 0 to C - 1.

    Raises:
        ConfigError: an unknown loss, miner or argument (the nearest names are suggested), a loss that cannot be
            trained or cannot have a cross-batch memory, or arguments that cannot work; the message says why.
    """
    part = _resolve_loss(config.loss)
    if config.memory_size:
        check_cross_batch_memory(config, part)
    dims = [head.subspace_dim(k) for k in range(head.max_learners)] + [head.embedding_dim]
    if isinstance(part, nn.Module):
        _check_classes(part, dims, num_classes, head.max_learners)
    if config.loss_options and not isinstance(part, type):
        raise ConfigError(
            f"`loss_options` are the arguments of a class, and `loss` is an object, {name_in_words(part)}: leave the "
            "options out, or pass the class",
            field="loss_options",
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        objectives = nn.ModuleList(_create_objective(config, part, dim, num_classes) for dim in dims)
        for dim in sorted(set(dims)):
            _try(objectives[dims.index(dim)], part, dim, config, num_classes)
    return objectives


def create_losses(
    head: SubspaceHead,
    num_classes: int,
    *,
    loss: Any = "MarginLoss",
    loss_options: Mapping[str, Any] | None = None,
    miner: Any = "auto",
    miner_options: Mapping[str, Any] | None = None,
    images_per_class: int = 4,
    seed: int = 0,
) -> nn.ModuleList:
    """The losses of a training loop of your own: number k is learner k's, the last is the full embedding's.

    Each is called with (B, d) embeddings and (B,) int64 labels, and computes in float32::

        losses = create_losses(head, num_classes)
        losses[learner](head(features, learner=learner), labels)  # divide
        losses[-1](head(features), labels)  # conquer

    Some have parameters of their own, such as proxies: pass ``losses.parameters()`` to the optimiser, and after each
    division call ``losses[k].set_classes(...)`` with the classes of learner k's cluster.

    Args:
        head: as `divcon.models.create_head` creates it, or ``model.head`` of a `divcon.EmbeddingModel`.
        num_classes: C; labels are 0 to C - 1.
        loss, loss_options, miner, miner_options: as of `divcon.TrainConfig`: names of pytorch-metric-learning, or your
            own; miner ``auto``: that of the loss, ours for MarginLoss.
        images_per_class: M, images of a class in a batch.
        seed: of the losses' own parameters.

    Raises:
        ConfigError: as `create_objectives`.
    """
    options: dict[str, Any] = {"loss_options": dict(loss_options or {}), "miner_options": dict(miner_options or {})}
    config = TrainConfig(loss=loss, miner=miner, images_per_class=images_per_class, seed=seed, **options)
    return create_objectives(config, head, num_classes)


def similarity_distillation(
    embeddings: Float[Tensor, "B D"], features: Float[Tensor, "B F"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Similarity distillation (S2SD; Roth et al., ICML 2021, eq. 2): how far the similarities of the embeddings are
    from those of the pooled features, which are the target and get no gradient.

    For each image, a softmax turns its cosines to the others of the batch, divided by the temperature, into a
    distribution. The loss is the Kullback-Leibler divergence of the embeddings' distribution from the features',
    averaged over images and multiplied by the squared temperature.

    Args:
        embeddings: (B, D), of length one.
        features: (B, F), of any length.
    """
    if len(embeddings) < 2:
        return embeddings.sum() * 0.0
    with torch.autocast(embeddings.device.type, enabled=False):
        student, teacher = embeddings.float(), F.normalize(features.detach().float(), dim=1)
        student, teacher = (torch.log_softmax(_off_diagonal(x @ x.T) / temperature, dim=1) for x in (student, teacher))
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _off_diagonal(square: Float[Tensor, "B B"]) -> Float[Tensor, "B B-1"]:
    """Each row without its element of the diagonal: by views, as a boolean mask would wait for an accelerator."""
    size = len(square)
    return square.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def keeps_state(objective: nn.Module, dim: int, config: TrainConfig) -> bool:
    """Whether an objective, for embeddings of ``dim`` dimensions, keeps state of earlier batches, besides the
    parameters that the optimiser changes."""
    with torch.random.fork_rng(devices=[]):
        after, _ = _step_of_copy(objective, dim, config)
    before = objective.state_dict()
    return any(value.shape != before[n].shape or not value.equal(before[n]) for n, value in after.state_dict().items())


def loss_names() -> list[str]:
    """The losses that `TrainConfig.loss` takes by name."""
    return [
        name
        for name, value in vars(pml_losses).items()
        if inspect.isclass(value) and issubclass(value, pml_losses.BaseMetricLossFunction) and name not in REFUSED
    ]


class Objective(nn.Module):
    """A loss and its miner, in float32 under any precision.

    ``state_dict`` has everything that training changes, as tensors and plain numbers: proxies and betas, the
    cross-batch memory with its position, histograms. It does not have the classes of `set_classes`: the training loop
    sets them again after a resume.

    Args:
        loss: called as pytorch-metric-learning's are; it may be a `ClusterProxies` or `CrossBatchMemory`.
        miner: picks the pairs or triplets of a batch; None: all of them, or those of the memory's miner.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        for module in self.modules():
            _tensors_to_buffers(module)

    def set_classes(self, classes: Int64[Tensor, "c"] | Int64[np.ndarray, "c"] | None) -> None:
        """Set the (c,) classes of the learner's cluster; None: all. From then on a loss with proxies compares only with
        theirs, and does not change the others; other losses ignore it."""
        for module in self.modules():
            if isinstance(module, ClusterProxies):
                module.set_classes(classes)

    def reset_memory(self) -> None:
        """Empty the cross-batch memory, if there is one: it holds images of another cluster."""
        if isinstance(self.loss, CrossBatchMemory):
            self.loss.reset()

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Int64[Tensor, "B"]) -> Float[Tensor, ""]:
        """The loss, a scalar, of (B, d) embeddings and their (B,) labels. If the labels are on the CPU, what depends on
        them alone is computed there, and nothing waits for an accelerator.

        Raises:
            ConfigError: loss or miner cannot compute this batch; the message says why and what to do.
            ValueError: a label is not of the classes set by `set_classes`.
        """
        on_cpu = labels.cpu()
        for module in self.modules():
            if isinstance(module, ClusterProxies):
                module.check_labels(on_cpu)
        labels = to_device(on_cpu, embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            # A zero embedding (of a dead mask) has no direction: normalised once more in the loss, it would get the
            # gradient divided by the normalisation's epsilon, 10^12 times too large.
            alive = (embeddings != 0).any(dim=1, keepdim=True)
            embeddings = torch.where(alive, embeddings, embeddings.detach())
            try:
                ours = isinstance(self.miner, TripletMiner)
                tuples = self.miner(embeddings, on_cpu if ours else labels) if self.miner is not None else None
                loss = self.loss(embeddings, labels, tuples)
                loss = _connected(loss.reshape(()), embeddings)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:
                raise self._failure(on_cpu, error) from error
        for module in self.loss.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.requires_grad:  # DynamicSoftMarginLoss's histogram would keep the graphs of all past batches
                    setattr(module, name, buffer.detach())
        return loss

    def _failure(self, labels: Int64[Tensor, "B"], error: Exception) -> ConfigError:
        loss: Any = self.loss
        while isinstance(loss, (CrossBatchMemory, ClusterProxies, AdaptedLoss)):
            loss = loss.loss
        miner = self.loss.miner if isinstance(self.loss, CrossBatchMemory) else self.miner
        names = name_in_words(loss) + ("" if miner is None else f" with miner {name_in_words(miner)}")
        counts = labels.unique(return_counts=True)[1].tolist()
        fields, reason = ("loss", "miner"), str(error).strip().rstrip(".")
        advice = "look at their arguments, or use another `loss` or `miner`"
        if "indices_tuple is not supported" in reason:
            fields, reason, advice = ("miner",), "this loss picks its pairs itself", "use `miner=none`"
        elif isinstance(error, IndexError) or "out of bounds" in reason:
            reason = f"a distance or a number is out of the range that it works for: {reason}"
        elif not reason:
            reason = f"{type(error).__name__} in the loss or miner"
        sizes = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        return ConfigError(
            f"{names} cannot compute a batch of {len(labels)} images, {len(counts)} classes with {sizes} images each: "
            f"{reason}; {advice}",
            field=fields,
        )


class AdaptedLoss(nn.Module):
    """Calls a loss that takes fewer arguments than those of pytorch-metric-learning.

    Args:
        loss: a module or function of embeddings and labels, and optionally ``indices_tuple``, ``ref_emb`` and
            ``ref_labels``.
    """

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss
        self._argument_names = parameters_of(loss.forward if isinstance(loss, nn.Module) else loss)

    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int64[Tensor, "B"],
        indices_tuple: Any = None,
        ref_emb: Float[Tensor, "R D"] | None = None,
        ref_labels: Int64[Tensor, "R"] | None = None,
    ) -> Any:
        """The loss of the batch.

        Raises:
            ValueError: an argument is passed that the loss does not take.
        """
        optional = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels}
        for name, value in optional.items():
            if name not in self._argument_names and value is not None:
                raise ValueError(f"it takes no argument `{name}`")
        return self.loss(
            embeddings, labels, **{name: v for name, v in optional.items() if name in self._argument_names}
        )


def _create_objective(config: TrainConfig, part: Any, dim: int, num_classes: int) -> Objective:
    miner = create_miner(config)
    if isinstance(part, type):
        create = partial(_create_loss, config, part, dim)
        classes = _num_classes(config, part, num_classes)
        loss = ClusterProxies(create, classes) if ClusterProxies.needed(create) else create(classes)
    else:
        loss = _adapted(copy.deepcopy(part))
    if config.memory_size:
        return Objective(CrossBatchMemory(loss, dim, config.memory_size, miner))
    return Objective(loss, miner)


def _try(objective: nn.Module, part: Any, dim: int, config: TrainConfig, num_classes: int) -> None:
    """Take a step on random embeddings, so that wrong arguments are reported before the first epoch."""
    where = f"(options {config.loss_options} {config.miner_options}, embeddings of {dim} dimensions)"
    if isinstance(part, nn.Module):
        where = f"(embeddings of {dim} dimensions)"
        if any(True for _ in part.parameters()):
            where += f"; if its parameters are for another number of dimensions or classes: {_pass_the_class(part)}"
    try:
        _, loss = _step_of_copy(objective, dim, config, num_classes)
    except Exception as error:
        fields = error.fields if isinstance(error, ConfigError) else ("loss",)
        raise ConfigError(f"{error} {where}", field=fields) from error
    if not torch.isfinite(loss):
        raise ConfigError(
            f"{name_in_words(part)} is {loss.item()} for random embeddings {where}; look at its arguments",
            field=("loss_options", "loss"),
        )


def _step_of_copy(
    objective: nn.Module, dim: int, config: TrainConfig, num_classes: int = 2
) -> tuple[nn.Module, Tensor]:
    """A copy of the objective after a batch of two classes, the first and the last, and its loss."""
    stepped, each = copy.deepcopy(objective), min(4, config.images_per_class or 4)
    embeddings = nn.functional.normalize(torch.randn(2 * each, dim), dim=1).requires_grad_()
    loss = stepped(embeddings, (num_classes - 1) * (torch.arange(2 * each) // each))
    loss.backward()
    return stepped, loss


def _resolve_loss(loss: Any) -> Any:
    """The class of a loss, or the module or function itself."""
    if isinstance(loss, str) and not is_named(loss):
        check_loss_name(loss, loss_names())
        part = getattr(pml_losses, loss)
    else:
        part = resolve(loss, "loss")
    kind = part if isinstance(part, type) else type(part)
    name = kind.__name__
    if getattr(pml_losses, name, None) is kind:
        if name in REFUSED and not (name == "MultipleLosses" and part is not kind):
            raise ConfigError(f"loss {name!r} {REFUSED[name]}", field="loss")
        if name == "SmoothAPLoss" and part is kind:
            return SmoothAPLoss
    if not callable(part):
        raise ConfigError(
            f"`loss` is {part!r}: pass the name of a loss of pytorch-metric-learning, or your own as module:Name, a "
            "class, or a torch.nn.Module called with embeddings and labels",
            field="loss",
        )
    return part


def _check_classes(loss: nn.Module, dims: list[int], num_classes: int, num_learners: int) -> None:
    """Refuse an object with parameters for each class where there are several learners."""
    shapes = {name: tuple(parameter.shape) for name, parameter in loss.named_parameters()}
    counts = any(getattr(module, "num_classes", None) for module in loss.modules())
    for name, shape in shapes.items():
        if num_learners > 1 and (counts or (num_classes in shape and num_classes not in dims)):
            raise ConfigError(
                f"{type(loss).__name__} has parameters for each class ({name}, of shape {shape}), and a learner "
                f"compares with the classes of its own cluster alone; {_pass_the_class(loss)}",
                field="loss",
            )


def _pass_the_class(loss: nn.Module) -> str:
    return (
        f"pass the class and its arguments, `loss={type(loss).__name__}` and `loss_options`, and each learner's is "
        "created for its own dimensions and classes"
    )


def _create_loss(config: TrainConfig, kind: type, dim: int, num_classes: int) -> nn.Module:
    known = arguments(kind)
    options: dict[str, Any] = dict(config.loss_options)
    for name in _SIZES:
        if name in known and options.get(name, dim) != dim:
            raise ConfigError(
                f"`loss_options` {name} is {options[name]}: leave it out, it is the embedding's ({dim})",
                field="loss_options",
            )
    sizes: Mapping[str, int] = dict.fromkeys(_SIZES, dim)
    if kind is not pml_losses.MarginLoss:
        sizes = {**sizes, "num_classes": num_classes}
    if "num_classes" in known and "num_classes" in options:
        options["num_classes"] = num_classes
    return _adapted(instantiate(kind, options, "loss", sizes), clamp="distance" not in options)


def _num_classes(config: TrainConfig, kind: type, num_classes: int) -> int:
    """The number of classes of the loss: C, or more if the options say so."""
    option = config.loss_options.get("num_classes")
    if option is None or "num_classes" not in arguments(kind):
        return num_classes
    if isinstance(option, str) or option < num_classes or option != int(option):
        raise ConfigError(
            f"`loss_options` num_classes is {option}: the training images have {num_classes} classes; pass as many or "
            "more, or leave it out",
            field="loss_options",
        )
    if kind is pml_losses.MarginLoss and not config.loss_options.get("learn_beta"):
        raise ConfigError(
            "`loss_options` num_classes of MarginLoss gives each class a beta, which is a constant unless it is "
            "learned; leave it out, or add learn_beta=True",
            field="loss_options",
        )
    return int(option)


def _adapted(loss: Any, *, clamp: bool = True) -> nn.Module:
    """The loss, to be called as pytorch-metric-learning's are; parts of those that do not work are replaced."""
    if not isinstance(loss, nn.Module) or not isinstance(loss, pml_losses.BaseMetricLossFunction):
        loss = AdaptedLoss(loss)
    for module in list(loss.modules()):
        if type(module) is pml_losses.SmoothAPLoss:
            module.__class__ = SmoothAPLoss
        needs_clamped = isinstance(module, (pml_losses.HistogramLoss, pml_losses.TupletMarginLoss))
        if clamp and needs_clamped and type(module.distance) is CosineSimilarity:
            module.distance = ClampedCosine()
        for child, part in module.named_children():
            if type(part) is DivisorReducer:
                setattr(module, child, MeanOverPairs())
        if isinstance(module, pml_losses.DynamicSoftMarginLoss):
            # The library's histogram lacks a bin for the upper end of the range; empty bins change nothing.
            module.hist_ = torch.zeros(module.num_bins + 2)
    return loss


def _connected(loss: Tensor, embeddings: Tensor) -> Tensor:
    """The loss, with a gradient of zero if it has none, as for a batch without pairs.

    Raises:
        ValueError: the loss has no gradient, and is not zero.
    """
    if loss.requires_grad or not embeddings.requires_grad:
        return loss
    if loss != 0:
        raise ValueError("it has no gradient: it is not computed of the embeddings by PyTorch, or is detached")
    return loss + 0 * embeddings.sum()


def _tensors_to_buffers(module: nn.Module) -> None:
    """Turn a loss's plain tensors, such as a histogram that grows with each batch, into buffers: saved with a
    checkpoint, and moved to the device."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor) and not isinstance(module, (ClusterProxies, CrossBatchMemory)):
            delattr(module, name)
            # Not every device knows float64.
            module.register_buffer(name, value.float() if value.dtype == torch.float64 else value)


class SmoothAPLoss(pml_losses.SmoothAPLoss):
    """One minus the average precision of each image as a query to its batch, ranks softened by a sigmoid (Brown et al.,
    "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020). As there, a query is one of its own
    positives.

    pytorch-metric-learning's needs the same number of images of every class, sorted by class, and (version 2.9)
    confuses that number with the number of classes: it is correct only where the two are equal, and equal to this one
    there.

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


class ClampedCosine(CosineSimilarity):
    """The cosine, kept between -1 and 1. By rounding, the cosine of an image with itself, which a small class repeats
    in a batch, may exceed 1, where an arc cosine is NaN and a histogram has no bin."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """(B, R) cosines."""
        return super().compute_mat(query_emb, ref_emb).clamp(-1 + 1e-6, 1 - 1e-6)


class MeanOverPairs(DivisorReducer):
    """The sum of a loss divided by the number of pairs with a loss; 0 if there are none. Unlike the library's, it does
    not wait for the device to know whether there are any."""

    def sum_and_divide(self, losses: Tensor, embeddings: Tensor, divisor: Tensor | int) -> Tensor:
        """A scalar, of (T,) losses."""
        if not isinstance(divisor, Tensor):
            return super().sum_and_divide(losses, embeddings, divisor)
        return torch.where(divisor == 0, self.zero_loss(embeddings), losses.sum() / divisor.clamp(min=1))
