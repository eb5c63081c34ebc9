"""Smooth-AP for batches of any composition."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.losses import SmoothAPLoss as _SmoothAPLoss
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor


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
