"""Miners of triplets: distance-weighted sampling of negatives, and the nearest negatives of the 2019 code."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from divcon.runtime.device import to_device


class TripletMiner(nn.Module, ABC):
    """For each positive pair one negative. Distances are computed in float32, without gradient.

    Labels on the CPU spare an accelerator a wait: which pairs there are is then known without asking it.
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
            ref_emb: where positives and negatives are looked for: (R, D), of length one; the batch itself if None.
            ref_labels: their (R,) labels, on the device of ``labels``, as is ``own``.
            own: (B,) the places in ``ref_emb`` that hold the batch itself, so that no image is its own positive.

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
        different, anchors, positives = (to_device(part, embeddings.device) for part in (different, anchors, positives))
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
        """A negative for each of the anchors of the positive pairs, which are in ascending order and have at least one:
        (T,) columns of ``distances`` where ``different``."""


class DistanceWeightedMiner(TripletMiner):
    """For each positive pair one negative, drawn so that the distances to the anchor come out evenly spread (Wu et al.,
    "Sampling Matters in Deep Embedding Learning", ICCV 2017).

    On the unit sphere of D dimensions distances have density ``d^(D-2) (1 - d^2/4)^((D-3)/2)``; a negative at distance
    d is drawn with the inverse of it as weight. Every positive pair is kept: an anchor without a negative nearer than
    ``nonzero_loss_cutoff`` draws evenly from all its negatives.

    pytorch-metric-learning's miner of this name takes one maximum of the log weights over the whole batch, so that at
    D = 512 one near pair leaves the other anchors with weights of zero; here each anchor has its own.

    Args:
        cutoff: distances below are taken as this, so that noisy near negatives do not draw all the weight.
        nonzero_loss_cutoff: negatives farther than this have no loss and are not drawn while nearer ones exist.
    """

    _MOST = 2**24
    """Weights that are laid out at once, one row a positive pair: a memory of many embeddings has many pairs."""

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff

    def negatives(
        self,
        distances: Float[Tensor, "B R"],
        different: Bool[Tensor, "B R"],
        anchors: Int64[Tensor, "T"],
        embeddings: Float[Tensor, "B D"],
    ) -> Int64[Tensor, "T"]:
        weights = self._weights(distances, different, embeddings.shape[1])
        parts = anchors.split(max(1, self._MOST // distances.shape[1]))
        return torch.cat([_drawn(weights[part]) for part in parts])

    def weights(
        self,
        embeddings: Float[Tensor, "B D"],
        labels: Int64[Tensor, "B"],
        ref_emb: Float[Tensor, "R D"] | None = None,
        ref_labels: Int64[Tensor, "R"] | None = None,
    ) -> Float[Tensor, "B R"]:
        """(B, R) float32: row i holds the weights with which anchor i draws its negatives; zero for its own class.
        Without ``ref_emb`` and ``ref_labels`` they are drawn from the batch, R = B."""
        if ref_emb is None or ref_labels is None:
            ref_emb, ref_labels = embeddings, labels
        different = labels[:, None] != ref_labels[None, :]
        return self._weights(_distances(embeddings, ref_emb), different, embeddings.shape[1])

    def _weights(
        self, distances: Float[Tensor, "B R"], different: Bool[Tensor, "B R"], dim: int
    ) -> Float[Tensor, "B R"]:
        near = different & (distances < self.nonzero_loss_cutoff)
        clamped = distances.clamp(min=self.cutoff)
        log_density = (dim - 2) * clamped.log() + (dim - 3) / 2 * (1 - clamped**2 / 4).clamp(min=1e-8).log()
        log_weights = torch.where(near, -log_density, -torch.inf)
        # Relative to the anchor's own largest: the weights span hundreds of orders of magnitude.
        largest = log_weights.max(dim=1, keepdim=True).values
        weights = torch.where(near, (log_weights - largest).exp(), 0.0)
        return torch.where(near.any(dim=1, keepdim=True), weights, different.float())


class NearestNegativesMiner(TripletMiner):
    """For each anchor its nearest negatives that are at least ``cutoff`` away, as many as it has positives: the sampler
    of the 2019 code. Nothing is drawn at random.

    An anchor's first positive, in the order of the batch, gets its nearest negative, the second the next, and so on.
    Where there are fewer negatives so far away, those nearer than ``cutoff`` follow, the farthest first; where there
    are fewer negatives than positives, they begin anew.

    Args:
        cutoff: nearer negatives are passed over: at the start of training they have the noisiest gradients.
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
        # The how manieth positive of its anchor each pair has; anchors are in ascending order.
        first = torch.searchsorted(anchors, anchors)
        turn = torch.arange(len(anchors), device=anchors.device) - first
        return nearest[anchors, turn % different.sum(dim=1)[anchors]]


def _drawn(weights: Float[Tensor, "T R"]) -> Int64[Tensor, "T"]:
    """A column for each row, as likely as its weight: what `torch.multinomial` draws of the same random numbers, but it
    waits for the device to tell it that the weights are in order."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(dim=1)


def _distances(embeddings: Float[Tensor, "B D"], ref_emb: Float[Tensor, "R D"]) -> Float[Tensor, "B R"]:
    return torch.cdist(embeddings.float(), ref_emb.float(), compute_mode="donot_use_mm_for_euclid_dist")
