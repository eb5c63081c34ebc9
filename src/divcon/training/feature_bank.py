"""What is divided: the features of all training images, taken from the training forward where that has seen them."""

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
"""What share of a remembered feature is the last view's."""


class FeatureBank:
    """The features of N training images as training saw them, so that a division embeds only those that it has not seen
    since the last one: left out, or not drawn.

    A feature is an exponential mean over the views of an image, each L2-normalised: the share of the newest is
    `NEWEST`. Views are of augmented images and of weights on their way; what is embedded to divide is moved to where
    the views lie, by the difference of the means. Half precision holds them, on the device that trains.

    Args:
        num_images: N.
        num_features: F.
        kept: False keeps nothing: all images are embedded at each division (2019 and 2021).
    """

    def __init__(self, num_images: int, num_features: int, device: torch.device, *, kept: bool) -> None:
        self._kept = kept
        self._features = torch.zeros((num_images if kept else 0, num_features), dtype=torch.half).to(device)
        self._seen = np.zeros(num_images, bool)

    def forget(self) -> None:
        """There will be no division any more: let go of all features, and take in no others."""
        self._kept, self._features = False, self._features[:0].clone()

    def saw(self, indices: np.ndarray, features: Float[Tensor, "B F"]) -> None:
        """Take in the features of a batch: ``indices``, (B,) int64, are its images. Nothing waits for the device."""
        if not self._kept:
            return
        # Of an image that is in the batch twice, the last: the order of writes to one place is no device's promise.
        images, back = np.unique(indices[::-1], return_index=True)
        self._seen[images] = True
        places, rows = (
            to_device(torch.from_numpy(numbers), self._features.device) for numbers in (images, len(indices) - 1 - back)
        )
        views = F.normalize(features.detach()[rows].float(), dim=1)
        self._features[places] = torch.lerp(self._features[places].float(), views, NEWEST).half()

    def refreshed(
        self,
        model: EmbeddingModel,
        loader: TrainLoader,
        epoch: int,
        context: Context = DEFAULT,
    ) -> Float32[np.ndarray, "N F"]:
        """The features of all training images, to divide them by: those not seen since the last call are embedded now,
        as evaluation sees them; the processes of the group share them, and each gets all features.

        Raises:
            ImageError: an image does not decode.
            NonFiniteError: a feature is NaN or infinite; the message names the images.
        """
        unseen = np.flatnonzero(~self._seen)
        features = np.empty((len(self._seen), self._features.shape[1]), np.float32)
        if self._kept:
            np.copyto(features, self._features.cpu().numpy())
        group = context.group
        mine = unseen[group.shard(len(unseen))]
        model.pool(loader.as_evaluated(mine, epoch), features)
        if not group.alone:
            features[unseen] = group.all_gather(torch.from_numpy(features[mine]), len(unseen)).numpy()
        check_finite(features, loader.images, f"epoch {epoch}, dividing")
        if self._kept:
            fresh = F.normalize(torch.from_numpy(features[unseen]), dim=1)
            if 0 < len(unseen) < len(features):
                # Augmented views lie apart from images as they are, and k-means would tell the one from the other.
                fresh += torch.from_numpy(features[self._seen].mean(axis=0)) - fresh.mean(dim=0)
            features[unseen] = fresh.numpy()
            self._features[torch.from_numpy(unseen).to(self._features.device)] = fresh.half().to(self._features.device)
        self._seen[:] = False
        return features

    def state_dict(self) -> dict[str, Tensor]:
        return {"features": self._features, "seen": torch.from_numpy(self._seen)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self._kept and not len(state["features"]):
            self.forget()
        self._features.copy_(state["features"])
        self._seen[:] = state["seen"].numpy()
