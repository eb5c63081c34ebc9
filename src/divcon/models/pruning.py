"""A model with fewer dimensions, made of a trained one without training: some of its subspaces, or their PCA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divcon.errors import ConfigError
from divcon.models.embedding_model import EmbeddingModel
from divcon.models.heads import MaskHead, SliceHead


def keep_subspaces(model: EmbeddingModel, learners: Sequence[int]) -> EmbeddingModel:
    """The model with the subspaces of some learners alone, of the same method.

    Its embedding is the model's, cut to the dimensions of these learners and brought to length one: the same vectors,
    not an approximation. Learners and dimensions stay in the model's order.

    Args:
        learners: numbers of the model's learners, each once, in any order.

    Raises:
        ConfigError: learners share dimensions; or there is none, or no such learner.
    """
    parts = model.head.dimensions()
    kept = sorted(set(learners))
    if not isinstance(model.head, (SliceHead, MaskHead)) or not parts:
        raise ConfigError(
            f"method {model.config['method']}: learners share the dimensions of the embedding, so that none can be "
            "cut off with its learner; prune by pca"
        )
    if not kept or kept[0] < 0 or kept[-1] >= len(parts):
        raise ConfigError(f"learners {list(learners)}: give some of the model's, 0 to {len(parts) - 1}")
    rows = sorted(d for k in kept for d in parts[k])
    small = _made_anew(model, embedding_dim=len(rows), num_learners=len(kept))
    with torch.no_grad():
        _set_linear(small, model.head.linear.weight[rows], model.head.linear.bias[rows])
        if isinstance(model.head, MaskHead) and isinstance(small.head, MaskHead):
            # Those of a hierarchy are not the masks that a new head begins with.
            small.head.masks.copy_(model.head.masks[kept][:, rows])
    return small


def keep_learner(model: EmbeddingModel, learner: int) -> EmbeddingModel:
    """The model of one learner whose embedding is that of the learner's subspace alone, (B, d_k), as ``learner=k``
    gives it.

    Raises:
        ConfigError: there is no such learner, or the method is one of your own.
    """
    if not 0 <= learner < model.num_learners:
        raise ConfigError(f"learner {learner}: the model has learners 0 to {model.num_learners - 1}")
    if isinstance(model.head, SliceHead):
        return keep_subspaces(model, [learner])
    if not isinstance(model.head, MaskHead):
        raise ConfigError(
            f"method {model.config['method']}: divcon cannot cut a learner out of a method of your own, since it "
            "does not know how its embedding comes of the linear layer"
        )
    small = _made_anew(model, num_learners=1, method="single", head_options={})
    with torch.no_grad():
        mask = model.head.masks[learner].relu()
        _set_linear(small, model.head.linear.weight * mask[:, None], model.head.linear.bias * mask)
    return small


def keep_components(model: EmbeddingModel, features: np.ndarray, dims: int) -> EmbeddingModel:
    """The model of method ``single`` whose ``dims`` dimensions keep the embeddings' inner products best.

    The head's linear layer is followed by a rotation and a cut, which together are a linear layer again. The rotation
    is that of a principal component analysis of the embeddings, without centring: what a search compares are inner
    products of embeddings of length one, and among all projections this one keeps those with the least squared error
    (Eckart and Young); to take the mean away first would change them even with all dimensions kept. What is left is
    brought to length one, as any embedding is.

    Slices are brought to length one each before they are joined, which is not linear: here each is divided by its mean
    length over ``features`` in its place.

    Args:
        features: (N, F) float32, pooled features of the images to analyse.

    Raises:
        ConfigError: ``dims`` is below 1, or not below the model's; or the method is one of your own, of which divcon
            does not know how the embedding comes of the linear layer.
    """
    if not 1 <= dims < model.embedding_dim:
        raise ConfigError(f"{dims} dimensions: the model has {model.embedding_dim}; give at least 1 and fewer")
    weight, bias = _scaled_linear(model, features)
    with torch.no_grad():
        seen = torch.from_numpy(features).to(weight)
        embeddings = torch.nn.functional.normalize(seen @ weight.T + bias, dim=1)
        # Eigenvectors come by rising eigenvalue.
        basis = torch.linalg.eigh(embeddings.T @ embeddings).eigenvectors.flip(1)[:, :dims].T
        # Either sign is an eigenvector: the same one on every machine.
        largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
        basis = basis * torch.where(largest < 0, -1.0, 1.0)
        small = _made_anew(model, embedding_dim=dims, num_learners=1, method="single", head_options={})
        _set_linear(small, basis @ weight, basis @ bias)
    return small


@torch.no_grad()
def _scaled_linear(model: EmbeddingModel, features: np.ndarray) -> tuple[Tensor, Tensor]:
    """Weight (D, F) and bias (D,), float64 on the CPU, whose output has the direction of the embedding."""
    head = model.head
    weight, bias = (value.detach().cpu().double() for value in (head.linear.weight, head.linear.bias))
    if isinstance(head, SliceHead):
        outputs = torch.from_numpy(features).double() @ weight.T + bias
        scale = torch.ones_like(bias)
        if head.num_learners > 1:
            for part in head.dimensions():
                scale[part] = 1 / outputs[:, part].norm(dim=1).mean().clamp_min(1e-12)
    elif isinstance(head, MaskHead):
        masked = model.config["head_options"].get("full") == "masked"
        masks = head.masks[: head.num_learners].detach().cpu().double()
        scale = masks.relu().sum(dim=0) if masked else torch.ones_like(bias)
    else:
        raise ConfigError(
            f"method {model.config['method']}: divcon cannot prune a method of your own, since it does not know how "
            "the embedding comes of the linear layer"
        )
    return weight * scale[:, None], bias * scale


def _made_anew(model: EmbeddingModel, **changes: Any) -> EmbeddingModel:
    """A model of the same backbone and pooling and their weights, with another head."""
    small = EmbeddingModel(**{**model.config, **changes}, pretrained=False)
    small.backbone.load_state_dict(model.backbone.state_dict())
    small.pooling.load_state_dict(model.pooling.state_dict())
    small.freeze_batch_norm = model.freeze_batch_norm
    return small.to(model.device).eval()


def _set_linear(model: EmbeddingModel, weight: Tensor, bias: Tensor) -> None:
    model.head.linear.weight.copy_(weight)
    model.head.linear.bias.copy_(bias)
