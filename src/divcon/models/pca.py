"""Principal components of pooled features: of the embedding after training, and of the head before it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError
from divcon.models.embedding_model import EmbeddingModel, shared_features
from divcon.runtime.context import DEFAULT, Context

MAX_IMAGES = 20_000
"""Images that a PCA is fitted to, at most."""


@dataclass(frozen=True)
class Components:
    """The first D principal components of N features."""

    mean: Float64[np.ndarray, " F"]
    axes: Float64[np.ndarray, "D F"]
    """Orthonormal rows, by descending variance; the largest number of each is positive."""
    variances: Float64[np.ndarray, " D"]

    def whitening(self) -> tuple[Float32[Tensor, "D F"], Float32[Tensor, " D"]]:
        """Weight and bias of the linear layer whose outputs have mean 0 and variance 1; 0 along axes along which the
        features do not vary but for rounding."""
        constant = self.variances <= 1e-10 * self.variances.max(initial=0)
        scale = np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, self.variances)))
        return self._linear(self.axes * scale[:, None])

    def rotated(self, seed: int) -> tuple[Float32[Tensor, "D F"], Float32[Tensor, " D"]]:
        """Weight and bias of the linear layer whose outputs are the components, turned by a random rotation, so that
        all dimensions vary alike."""
        normal = np.random.default_rng([seed, 0x9CA]).normal(size=(len(self.axes), len(self.axes)))
        rotation, upper = np.linalg.qr(normal)
        return self._linear((rotation * np.sign(np.diag(upper))) @ self.axes)

    def _linear(self, weight: np.ndarray) -> tuple[Float32[Tensor, "D F"], Float32[Tensor, " D"]]:
        return torch.from_numpy(weight).float(), torch.from_numpy(-weight @ self.mean).float()


def principal_components(features: Float[np.ndarray, "N F"], dims: int, what: str = "") -> Components:
    """The first ``dims`` principal components, in float64, by scikit-learn; the same on every machine up to rounding.

    Raises:
        ConfigError: as `check_dims`.
    """
    check_dims(dims, features.shape[1], len(features), what)
    from sklearn.decomposition import PCA  # takes a second to import

    rows = features.astype(np.float64)
    # The covariance is the fast way where there are many images; few images have fewer components than features.
    solver = "covariance_eigh" if len(rows) > rows.shape[1] else "full"
    fitted = PCA(dims, svd_solver=solver).fit(rows)
    return Components(fitted.mean_, np.asarray(fitted.components_), np.asarray(fitted.explained_variance_))


def check_dims(dims: int, num_features: int, num_images: int, what: str = "") -> None:
    """
    Args:
        what: the setting that asks for a PCA of ``embedding_dim`` dimensions, for the message: ``embed=pca``. Without
            one, the number is that of ``dims``.

    Raises:
        ConfigError: a PCA of so many images has fewer components.
    """
    most = min(num_features, num_images - 1)
    if not 1 <= dims <= most:
        why = f"the backbone has {num_features:,} features" if most == num_features else f"of {num_images:,} images"
        name = "embedding_dim" if what else "dims"
        asked = f"`{what}` with `embedding_dim` {dims}" if what else f"`dims` {dims}"
        raise ConfigError(
            f"{asked}: a PCA has at most {most:,} dimensions here ({why}); use a smaller `{name}`",
            field=(name, what.partition("=")[0]) if what else name,
        )


def sample_to_fit(images: LabeledSet, seed: int) -> LabeledSet:
    """The images that a PCA is fitted to: all, or `MAX_IMAGES` of them, drawn by ``seed``."""
    if len(images) <= MAX_IMAGES:
        return images
    drawn = np.random.default_rng([seed, 0x9CA]).choice(len(images), MAX_IMAGES, replace=False)
    return images.subset(np.sort(drawn))


def can_start_as_pca(model: EmbeddingModel, images: LabeledSet) -> bool:
    """Whether `start_as_pca` can start the model's head from these training images."""
    try:
        _check_start(model, images)
    except ConfigError:
        return False
    return True


def _check_start(model: EmbeddingModel, images: LabeledSet) -> None:
    head = model.head
    check_dims(head.embedding_dim, model.num_features, min(len(images), MAX_IMAGES), "head_init=pca")
    zeros = torch.zeros(head.embedding_dim, model.num_features)
    copy.deepcopy(head).start_from(zeros, zeros[:, 0])


def start_as_pca(model: EmbeddingModel, images: LabeledSet, *, seed: int = 0, context: Context = DEFAULT) -> None:
    """Start the head from the principal components of the model's pooled features, in place of random weights.

    The linear layer then maps the mean to zero, and keeps the distances along the first D principal axes; a random
    rotation makes all dimensions, and so the slices of learners, vary alike.

    Args:
        images: training images; at most `MAX_IMAGES` of them are used.
        seed: draws the images and the rotation.

    Raises:
        ConfigError: the head has more dimensions than the backbone features, or than there are images but one; or it
            has no linear layer to start (see `divcon.models.SubspaceHead.start_from`).
    """
    head = model.head
    _check_start(model, images)  # now, not after the features are computed
    with torch.random.fork_rng(devices=[]):  # data loaders draw a number, and more of them with more workers
        features = shared_features(model, sample_to_fit(images, seed), context=context)
    weight, bias = principal_components(features, head.embedding_dim, "head_init=pca").rotated(seed)
    head.start_from(weight, bias)
