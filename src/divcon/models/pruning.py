"""Change the embedding of a trained model without training: the head's, the pooled features or their PCA; or fewer
dimensions, of some of the subspaces or by PCA."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from divcon.errors import ConfigError
from divcon.models.embedding_model import EmbeddingModel
from divcon.models.heads import SubspaceHead, linear_head
from divcon.models.names import EMBEDDING_NAMES, Embedding, check_learner
from divcon.models.pca import principal_components


def with_embedding(
    model: EmbeddingModel,
    kind: Embedding,
    features: Float32[np.ndarray, "N F"] | None = None,
    *,
    dims: int | None = None,
) -> EmbeddingModel:
    """A copy of a model with another full embedding. Backbone, learners and their subspaces stay as they are, so that
    a copy can be changed again, and back: ``kind="head"`` is what was trained.

    Args:
        kind: ``head``: the embedding of the head that was trained (D). ``features``: the pooled features, L2-normalised
            (F). ``pca``: the L2-normalised features minus their mean, projected to their first principal axes, each
            divided by its standard deviation (whitening), and L2-normalised again: the usual recipe of image retrieval
            (Jegou and Chum, ECCV 2012).
        features: pooled features of training images to fit the PCA to (see `EmbeddingModel.features`).
        dims: dimensions of the PCA; None: those of the head that was trained.

    Raises:
        ConfigError: there is no such kind; ``pca`` without features, or of more dimensions than the features have, or
            than there are images but one.
    """
    return model.with_head(embedding_head(model, kind, features, dims=dims))


def embedding_head(
    model: EmbeddingModel,
    kind: Embedding,
    features: Float32[np.ndarray, "N F"] | None = None,
    *,
    dims: int | None = None,
) -> SubspaceHead:
    """The head of `with_embedding`; its arguments and errors."""
    trained = model.head.trained
    if kind == "features":
        return trained.as_features()
    if kind == "pca":
        if features is None:
            raise ConfigError("`features`: a PCA is fitted to the pooled features of training images; pass them")
        count, what = (trained.embedding_dim, "embed=pca") if dims is None else (dims, "")
        return trained.as_pca(*principal_components(unit(features), count, what).whitening())
    if kind != "head":
        raise ConfigError(f"`embed` {kind}: must be head, features or pca", field="embed")
    head = copy.deepcopy(trained)
    head.dropout.p = model.head.dropout.p
    return head


def unit(features: Float32[np.ndarray, "N F"]) -> Float[np.ndarray, "N F"]:
    """Each row of length one, in float64."""
    rows = features.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


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
    if model.head.embedding != "head":
        raise no_subspaces(model)
    if not subspaces:
        raise ConfigError(
            f"method {model.config['method']}: learners share the dimensions of the embedding, so that none can be "
            "cut off with its learner; prune with `by=pca`",
            field="by",
        )
    if not kept or kept[0] < 0 or kept[-1] >= len(subspaces):
        raise ConfigError(f"learners {list(learners)}: choose among the model's, 0 to {len(subspaces) - 1}")
    return model.with_head(model.head.keep_subspaces(kept))


def no_subspaces(model: EmbeddingModel) -> ConfigError:
    """The error for a model that embeds by its features, whose subspaces are asked for."""
    return ConfigError(
        f"`by=subspaces`: the model embeds by the {EMBEDDING_NAMES[model.head.embedding]}, in which learners have no "
        "dimensions of their own; prune with `by=pca`, or make it embed by the head again first (`by=head`)",
        field="by",
    )


def keep_learner(model: EmbeddingModel, learner: int) -> EmbeddingModel:
    """The model of one learner whose embedding is that of the learner's subspace, (B, d_k): what ``learner=k`` returns.

    Raises:
        ConfigError: there is no such learner.
    """
    check_learner(learner, model.num_learners)
    return model.with_head(model.head.keep_learner(learner))


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
