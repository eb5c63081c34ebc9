"""Miners pick the pairs or triplets of a batch: distance-weighted sampling of negatives, the nearest negatives of the
2019 code, every miner of pytorch-metric-learning by name, or one of your own."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor, nn

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.runtime.device import to_device
from divcon.runtime.importing import is_named
from divcon.training.instantiate import instantiate, parameters_of
from divcon.training.names import NO_MINERS, check_miner_name
from divcon.training.own import name_in_words, resolve


def miner_names() -> list[str]:
    """The miners that `TrainConfig.miner` takes by name."""
    named = [name for name, value in vars(pml_miners).items() if inspect.isclass(value)]
    return ["auto", "none", *OWN_MINERS, *(name for name in named if name not in NO_MINERS)]


def create_miner(config: TrainConfig) -> nn.Module | None:
    """Create the miner that ``config`` names, or copy the one it holds; None for ``none``.

    Raises:
        ConfigError: an unknown miner or argument (the nearest names are suggested), or options for what takes none.
    """
    chosen = config.chosen_miner
    if isinstance(chosen, str) and not is_named(chosen):
        if chosen == "none":
            if config.miner_options:
                raise ConfigError(
                    "`miner_options` are set, and there is no miner; name one with `miner`",
                    field=("miner_options", "miner"),
                )
            return None
        check_miner_name(chosen, miner_names())
        part = OWN_MINERS.get(chosen) or getattr(pml_miners, chosen)
    else:
        part = resolve(chosen, "miner")
    if isinstance(part, type):
        miner = instantiate(part, config.miner_options, "miner")
    elif config.miner_options:
        raise ConfigError(
            f"`miner_options` are the arguments of a class, and `miner` is an object, {name_in_words(part)}: leave the "
            "options out, or pass the class",
            field="miner_options",
        )
    else:
        miner = copy.deepcopy(part)
    if not callable(miner):
        raise ConfigError(
            f"`miner` is {miner!r}: pass the name of a miner, or your own as module:Name, a class, or a function of "
            "embeddings and labels",
            field="miner",
        )
    is_known = isinstance(miner, (TripletMiner, pml_miners.BaseMiner))
    return miner if is_known else AdaptedMiner(miner)  # type: ignore[return-value]


class TripletMiner(nn.Module, ABC):
    """For each positive pair one negative. Distances are computed in float32, without gradient.

    With labels on the CPU, the positive pairs are computed there, and nothing waits for an accelerator.
    """

    @torch.no_grad()
    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int64[Tensor, "B"],
        ref_emb: Float[Tensor, "R D"] | None = None,
        ref_labels: Int64[Tensor, "R"] | None = None,
        own: Int64[Tensor, "B"] | None = None,
    ) -> tuple[Int64[Tensor, "T"], Int64[Tensor, "T"], Int64[Tensor, "T"]]:
        """Triplets of (B, D) embeddings of length one and their (B,) labels, which may be on the CPU.

        Args:
            ref_emb: the embeddings to pick positives and negatives from, (R, D), of length one; None: the batch itself.
            ref_labels: their (R,) labels, on the device of ``labels``, as is ``own``.
            own: (B,) the positions in ``ref_emb`` of the batch itself, so that no image is its own positive.

        Returns:
            Anchors (into the batch), positives and negatives (into ``ref_emb``), (T,) int64 each, on the device of the
            embeddings, T the number of ordered positive pairs whose anchor has a negative.
        """
        if ref_emb is None or ref_labels is None:
            ref_emb, ref_labels, own = embeddings, labels, torch.arange(len(labels), device=labels.device)
        different = labels[:, None] != ref_labels[None, :]
        positive = ~different
        if own is not None:
            positive[torch.arange(len(labels), device=labels.device), own] = False
        anchors, positives = torch.nonzero(positive & different.any(dim=1, keepdim=True), as_tuple=True)
        different, anchors, positives = (to_device(t, embeddings.device) for t in (different, anchors, positives))
        if len(anchors) == 0:
            return anchors, positives, anchors
        return anchors, positives, self.negatives(_distances(embeddings, ref_emb), different, anchors, embeddings)

    @abstractmethod
    def negatives(
        self,
        distances: Float[Tensor, "B R"],
        different: Bool[Tensor, "B R"],
        anchors: Int64[Tensor, "T"],
        embeddings: Float[Tensor, "B D"],
    ) -> Int64[Tensor, "T"]:
        """A negative for each positive pair: (T,) columns of ``distances`` where ``different``. ``anchors`` are the
        pairs' anchors, in ascending order; each has at least one negative."""


class DistanceWeightedMiner(TripletMiner):
    """For each positive pair one negative, drawn so that its distance to the anchor is spread evenly (Wu et al.,
    "Sampling Matters in Deep Embedding Learning", ICCV 2017).

    On the unit sphere of D dimensions distances have density ``d^(D-2) (1 - d^2/4)^((D-3)/2)``; a negative at distance
    d is drawn with a weight of one over that. Every positive pair is kept: an anchor without a negative nearer than
    ``nonzero_loss_cutoff`` draws evenly from all its negatives.

    pytorch-metric-learning's miner of this name takes one maximum of the log weights over the whole batch, so that at
    D = 512 one near pair leaves the other anchors with weights of zero; here each anchor has its own.

    Args:
        cutoff: smaller distances count as this one, so that noisy near negatives do not get all the weight.
        nonzero_loss_cutoff: negatives farther than this have no loss and are not drawn while nearer ones exist.
        replacement: draw each pair's negative from all negatives (Wu et al.'s code), so that an anchor's nearest one
            may come for most of its pairs. False: an anchor's pairs have different negatives while there are enough
            (the 2021 code). At D 128, with 4 images of a class, the nearest comes for a third of the pairs at most.
    """

    _WEIGHTS_AT_ONCE = 2**24
    """The maximum number of weights in memory, a row per positive pair: a large cross-batch memory has many pairs."""

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, replacement: bool = True) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff
        self.replacement = replacement

    def negatives(
        self,
        distances: Float[Tensor, "B R"],
        different: Bool[Tensor, "B R"],
        anchors: Int64[Tensor, "T"],
        embeddings: Float[Tensor, "B D"],
    ) -> Int64[Tensor, "T"]:
        if not self.replacement:
            return _in_turn(self._drawn_order(distances, different, embeddings.shape[1]), different, anchors)
        weights = self._weights(distances, different, embeddings.shape[1])
        chunks = anchors.split(max(1, self._WEIGHTS_AT_ONCE // distances.shape[1]))
        return torch.cat([_draw(weights[chunk]) for chunk in chunks])

    def weights(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int64[Tensor, "B"],
        ref_emb: Float[Tensor, "R D"] | None = None,
        ref_labels: Int64[Tensor, "R"] | None = None,
    ) -> Float[Tensor, "B R"]:
        """(B, R) float32: row i holds the weights with which anchor i draws its negatives; zero for its own class.
        Without ``ref_emb`` and ``ref_labels``, negatives come from the batch, R = B."""
        if ref_emb is None or ref_labels is None:
            ref_emb, ref_labels = embeddings, labels
        different = labels[:, None] != ref_labels[None, :]
        return self._weights(_distances(embeddings, ref_emb), different, embeddings.shape[1])

    def _weights(
        self, distances: Float[Tensor, "B R"], different: Bool[Tensor, "B R"], dim: int
    ) -> Float[Tensor, "B R"]:
        near = different & (distances < self.nonzero_loss_cutoff)
        log_weights = torch.where(near, self._log_weights(distances, dim), -torch.inf)
        # Relative to the anchor's own largest: the weights span hundreds of orders of magnitude.
        largest = log_weights.max(dim=1, keepdim=True).values
        weights = torch.where(near, (log_weights - largest).exp(), 0.0)
        return torch.where(near.any(dim=1, keepdim=True), weights, different.float())

    def _log_weights(self, distances: Float[Tensor, "B R"], dim: int) -> Float[Tensor, "B R"]:
        clamped = distances.clamp(min=self.cutoff)
        return -((dim - 2) * clamped.log() + (dim - 3) / 2 * (1 - clamped**2 / 4).clamp(min=1e-8).log())

    def _drawn_order(
        self, distances: Float[Tensor, "B R"], different: Bool[Tensor, "B R"], dim: int
    ) -> Int64[Tensor, "B R"]:
        """The order in which each anchor draws its negatives, without replacement: those with a loss by their weights,
        then the farther ones evenly, then all that are none."""
        # The order of log weights plus Gumbel noise is that of draws without replacement. Not of the weights: all but
        # the nearest may be zero in float32.
        noise = -torch.empty_like(distances).exponential_().log()
        near = different & (distances < self.nonzero_loss_cutoff)
        keys = torch.where(near, self._log_weights(distances, dim) + noise, noise)
        order = keys.argsort(dim=1, descending=True)
        groups = (different.int() + near.int()).gather(1, order)
        return order.gather(1, groups.argsort(dim=1, descending=True, stable=True))


class NearestNegativesMiner(TripletMiner):
    """For each anchor its nearest negatives that are at least ``cutoff`` away, as many as it has positives: the sampler
    of the 2019 code. Nothing is drawn at random.

    An anchor's first positive, in the order of the batch, gets its nearest negative, the second the next, and so on.
    If there are not enough negatives that far away, those nearer than ``cutoff`` come next, the farthest first; if
    there are fewer negatives than positives, they repeat.

    Args:
        cutoff: nearer negatives come last: at the start of training they have the noisiest gradients.
    """

    def __init__(self, cutoff: float = 0.5) -> None:
        super().__init__()
        self.cutoff = cutoff

    def negatives(
        self,
        distances: Float[Tensor, "B R"],
        different: Bool[Tensor, "B R"],
        anchors: Int64[Tensor, "T"],
        embeddings: Float[Tensor, "B D"],
    ) -> Int64[Tensor, "T"]:
        far = distances.max() + 1
        rank = torch.where(distances >= self.cutoff, distances, far + self.cutoff - distances)
        nearest = torch.where(different, rank, torch.inf).argsort(dim=1, stable=True)
        return _in_turn(nearest, different, anchors)


OWN_MINERS = {"distance-weighted": DistanceWeightedMiner, "nearest-negatives": NearestNegativesMiner}
"""divcon's own miners, by name."""


class AdaptedMiner(nn.Module):
    """Calls a miner of your own as pytorch-metric-learning's are called, and checks its result.

    Args:
        miner: a function or module of embeddings and labels, and optionally ``ref_emb`` and ``ref_labels``, that
            returns triplets (anchors, positives, negatives) or pairs (anchors, positives, anchors, negatives) of
            indices.
    """

    def __init__(self, miner: Any) -> None:
        super().__init__()
        self.miner = miner
        self.takes_refs = {"ref_emb", "ref_labels"} <= parameters_of(
            miner.forward if isinstance(miner, nn.Module) else miner
        )
        self.__name__ = name_in_words(miner)

    @torch.no_grad()
    def forward(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int64[Tensor, "B"],
        ref_emb: Float[Tensor, "R D"] | None = None,
        ref_labels: Int64[Tensor, "R"] | None = None,
    ) -> tuple[Tensor, ...]:
        """The indices that the miner returns.

        Raises:
            ValueError: the miner returns something else, or takes no ``ref_emb`` when one is passed.
        """
        if ref_emb is None:
            picked = self.miner(embeddings, labels)
        elif self.takes_refs:
            picked = self.miner(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels)
        else:
            raise ValueError("the miner takes no `ref_emb` and `ref_labels`, which a cross-batch memory passes")
        groups = ((0, 1, 2),) if len(picked) == 3 else ((0, 1), (2, 3)) if len(picked) == 4 else ()
        if not groups or any(len({len(picked[i]) for i in group}) > 1 for group in groups):
            raise ValueError(
                "the miner must return triplets (anchors, positives, negatives) or pairs (anchors, positives, anchors, "
                "negatives), tensors of indices of one length"
            )
        return tuple(picked)


def _in_turn(
    order: Int64[Tensor, "B R"], different: Bool[Tensor, "B R"], anchors: Int64[Tensor, "T"]
) -> Int64[Tensor, "T"]:
    """Of each anchor's negatives, which come first in its row of ``order``, the first for its first positive, the
    second for its second ...; they repeat where there are fewer."""
    # 0 for an anchor's first positive, 1 for its second ...; anchors are in ascending order.
    turn = torch.arange(len(anchors), device=anchors.device) - torch.searchsorted(anchors, anchors)
    return order[anchors, turn % different.sum(dim=1)[anchors]]


def _draw(weights: Float[Tensor, "T R"]) -> Int64[Tensor, "T"]:
    """Draw a column for each row with its weights as probabilities: the same columns as `torch.multinomial` draws of
    the same random numbers, which first waits for the device to check the weights."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(dim=1)


def _distances(embeddings: Float[Tensor, "B D"], ref_emb: Float[Tensor, "R D"]) -> Float[Tensor, "B R"]:
    return torch.cdist(embeddings.float(), ref_emb.float(), compute_mode="donot_use_mm_for_euclid_dist")
