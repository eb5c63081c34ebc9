"""The feature bank: the features of all training images that a division clusters."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from divcon.models import EmbeddingModel
from divcon.models.inputs import check_finite
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.device import to_device
from divcon.training.loader import TrainLoader

NEWEST = 0.5
"""Weight of an image's newest view in its feature."""


class FeatureBank:
    """The features of N training images that training has computed, so that a division embeds only the other images:
    those that were in no batch since the last division.

    A feature is an exponential moving average over the views of an image, each L2-normalised; the newest has weight
    `NEWEST`. Views are of augmented images and of changing weights; the mean of what a division embeds is shifted to
    that of the views. The bank is in half precision, on the device that trains.

    Args:
        num_images: N.
        num_features: F.
        enabled: False keeps nothing: all images are embedded at each division (2019 and 2021).
    """

    def __init__(self, num_images: int, num_features: int, device: torch.device, *, enabled: bool) -> None:
        self._enabled = enabled
        self._features = torch.zeros((num_images if enabled else 0, num_features), dtype=torch.half).to(device)
        self._has_feature = np.zeros(num_images, bool)

    def disable(self) -> None:
        """Free all features, and keep no more: no further division needs them."""
        self._enabled, self._features = False, self._features[:0].clone()

    def update(self, indices: np.ndarray, features: Float[Tensor, "B F"]) -> None:
        """Add the features of a batch of the images ``indices``, (B,) int64. Does not wait for the device."""
        if not self._enabled:
            return
        # Of an image that is twice in the batch, the last: no device promises an order of writes to one place.
        images, from_the_end = np.unique(indices[::-1], return_index=True)
        self._has_feature[images] = True
        places, rows = (
            to_device(torch.from_numpy(numbers), self._features.device)
            for numbers in (images, len(indices) - 1 - from_the_end)
        )
        views = F.normalize(features.detach()[rows].float(), dim=1)
        self._features[places] = torch.lerp(self._features[places].float(), views, NEWEST).half()

    def features_to_divide(
        self, model: EmbeddingModel, loader: TrainLoader, epoch: int, context: Context = DEFAULT
    ) -> Float32[np.ndarray, "N F"]:
        """The features of all training images. Images without one since the last call are embedded now, with the
        evaluation transform; all processes share that work, and return all features.

        Raises:
            ImageError: an image does not decode.
            NonFiniteError: a feature is NaN or infinite; the message names the images.
        """
        missing = np.flatnonzero(~self._has_feature)
        features = np.empty((len(self._has_feature), self._features.shape[1]), np.float32)
        if self._enabled:
            np.copyto(features, self._features.cpu().numpy())
        group = context.group
        mine = missing[group.shard(len(missing))]
        model.pool(loader.evaluation_batches(mine, epoch), features)
        if not group.alone:
            features[missing] = group.all_gather(torch.from_numpy(features[mine]), len(missing)).numpy()
        check_finite(features, loader.images, f"epoch {epoch}, dividing")
        if self._enabled:
            fresh = F.normalize(torch.from_numpy(features[missing]), dim=1)
            if 0 < len(missing) < len(features):
                # Views of augmented images have another mean, by which k-means would separate the two kinds.
                fresh += torch.from_numpy(features[self._has_feature].mean(axis=0)) - fresh.mean(dim=0)
            features[missing] = fresh.numpy()
            self._features[torch.from_numpy(missing).to(self._features.device)] = fresh.half().to(self._features.device)
        self._has_feature[:] = False
        return features

    def state_dict(self) -> dict[str, Tensor]:
        return {"features": self._features, "seen": torch.from_numpy(self._has_feature)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self._enabled and not len(state["features"]):
            self.disable()
        self._features.copy_(state["features"])
        self._has_feature[:] = state["seen"].numpy()
