"""Reduce a trained model to fewer dimensions without training: keep some of its subspaces, or their PCA."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from divcon.errors import ConfigError
from divcon.models.embedding_model import EmbeddingModel
from divcon.models.heads import linear_head


def keep_subspaces(model: EmbeddingModel, learners: Sequence[int]) -> EmbeddingModel:
    """The model with the subspaces of some learners only.

    Its embedding is the model's, cut to the dimensions of these learners and L2-normalised: the same vectors, not an
    approximation. Learners and dimensions stay in the model's order.

    Args:
        learners: numbers of the model's learners, each once, in any order.

    Raises:
        ConfigError: learners share dimensions, or there is no such learner, or none is passed.
    """
    subspaces = model.head.dimensions()
    kept = sorted(set(learners))
    if not subspaces:
        raise ConfigError(
            f"method {model.config['method']}: learners share the dimensions of the embedding, so that none can be "
            "cut off with its learner; prune with `by=pca`",
            field="by",
        )
    if not kept or kept[0] < 0 or kept[-1] >= len(subspaces):
        raise ConfigError(f"learners {list(learners)}: choose among the model's, 0 to {len(subspaces) - 1}")
    return model.with_head(model.head.keep_subspaces(kept))


def keep_learner(model: EmbeddingModel, learner: int) -> EmbeddingModel:
    """The model of one learner whose embedding is that of the learner's subspace, (B, d_k): what ``learner=k`` returns.

    Raises:
        ConfigError: there is no such learner.
    """
    check_learner(model, learner)
    return model.with_head(model.head.keep_learner(learner))


def check_learner(model: EmbeddingModel, learner: int) -> None:
    """
    Raises:
        ConfigError: the model has no such learner.
    """
    if not 0 <= learner < model.num_learners:
        raise ConfigError(f"`learner` {learner}: the model has learners 0 to {model.num_learners - 1}", field="learner")


@torch.no_grad()
def keep_components(model: EmbeddingModel, features: Float32[np.ndarray, "N F"], dims: int) -> EmbeddingModel:
    """The model of one learner whose ``dims`` dimensions keep the embeddings' inner products best.

    The embedding is rotated and cut, by a principal component analysis of the embeddings without centring: a search
    compares inner products of embeddings of length one, and among all projections this one keeps them with the least
    squared error (Eckart and Young); subtracting the mean first would change them even with all dimensions kept. The
    result is L2-normalised, as any embedding is.

    If the head is one linear layer, it is merged with the projection into one: the result has method ``single``. Slices
    are L2-normalised before they are concatenated, which is not linear: here each is divided by its mean length over
    ``features`` instead. After any other head the projection is a layer of its own, and exact.

    Args:
        features: pooled features of the images to analyse.

    Raises:
        ConfigError: ``dims`` is below 1, or not fewer than the model's.
    """
    if not 1 <= dims < model.embedding_dim:
        raise ConfigError(
            f"`dims` {dims}: the model has {model.embedding_dim} dimensions; choose at least 1 and fewer", field="dims"
        )
    head = model.head
    linear = head.as_linear(features=torch.from_numpy(features))
    if linear is None:
        return model.with_head(
            head.projected(_principal(torch.from_numpy(model.embed(features)).double(), dims).float())
        )
    weight, bias = linear
    embeddings = F.normalize(torch.from_numpy(features).to(weight) @ weight.T + bias, dim=1)
    basis = _principal(embeddings, dims)
    return model.with_head(linear_head(basis @ weight, basis @ bias, dropout=head.dropout.p))


def _principal(embeddings: Float[Tensor, "N D"], dims: int) -> Float[Tensor, "d D"]:
    """The first principal axes, without centring, in float64."""
    # eigh sorts by ascending eigenvalue.
    basis = torch.linalg.eigh(embeddings.T @ embeddings).eigenvectors.flip(1)[:, :dims].T
    # Both signs are eigenvectors: fix one, so that every machine has the same.
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    return basis * torch.where(largest < 0, -1.0, 1.0)
