"""Distance-weighted sampling of negatives (Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class DistanceWeightedMiner(nn.Module):
    """For each positive pair one negative, drawn so that the distances to the anchor come out evenly spread.

    On the unit sphere of D dimensions distances have density ``d^(D-2) (1 - d^2/4)^((D-3)/2)``; a negative at distance
    d is drawn with the inverse of it as weight. Every positive pair is kept: an anchor without a negative nearer than
    ``nonzero_loss_cutoff`` draws evenly from all its negatives.

    pytorch-metric-learning's miner of this name takes one maximum of the log weights over the whole batch, so that at
    D = 512 one near pair leaves the other anchors with weights of zero; here each anchor has its own.

    Args:
        cutoff: distances below are taken as this, so that noisy near negatives do not draw all the weight.
        nonzero_loss_cutoff: negatives farther than this have no loss and are not drawn while nearer ones exist.
    """

    def __init__(self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff

    @torch.no_grad()
    def forward(
        self, embeddings: Float[Tensor, "B D"], labels: Int64[Tensor, "B"]
    ) -> tuple[Int64[Tensor, "T"], Int64[Tensor, "T"], Int64[Tensor, "T"]]:
        """Triplets of (B, D) embeddings of length one and their (B,) labels.

        Returns:
            Anchors, positives and negatives, (T,) int64 each, T the number of ordered positive pairs whose anchor
            has a negative in the batch.
        """
        weights = self.weights(embeddings, labels)
        same = labels[:, None] == labels[None, :]
        positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        anchors, positives = torch.nonzero(positive & (~same).any(dim=1, keepdim=True), as_tuple=True)
        if len(anchors) == 0:
            return anchors, positives, anchors
        return anchors, positives, torch.multinomial(weights[anchors], 1).flatten()

    def weights(self, embeddings: Float[Tensor, "B D"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "B B"]:
        """(B, B) float32: row i holds the weights with which anchor i draws its negatives; zero for its own class."""
        embeddings = embeddings.float()
        dim = embeddings.shape[1]
        different = labels[:, None] != labels[None, :]
        distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
        near = different & (distances < self.nonzero_loss_cutoff)
        clamped = distances.clamp(min=self.cutoff)
        log_density = (dim - 2) * clamped.log() + (dim - 3) / 2 * (1 - clamped**2 / 4).clamp(min=1e-8).log()
        log_weights = torch.where(near, -log_density, -torch.inf)
        # Relative to the anchor's own largest: the weights span hundreds of orders of magnitude.
        largest = log_weights.max(dim=1, keepdim=True).values
        weights = torch.where(near, (log_weights - largest).exp(), 0.0)
        return torch.where(near.any(dim=1, keepdim=True), weights, different.float())
