"""The head: one linear layer whose embedding K learners share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from divcon.errors import ConfigError


class SubspaceHead(nn.Module, ABC):
    """Pooled features (B, F) to embeddings of length one.

    ``head(features)`` is the full embedding, (B, D). ``head(features, learner=k)`` is learner k's, (B, d_k): the part
    of the embedding that it trains (2019, section 3.2). Calling it changes nothing.
    """

    def __init__(self, num_features: int, embedding_dim: int, num_learners: int, dropout: float) -> None:
        super().__init__()
        self.num_learners = num_learners
        self.embedding_dim = embedding_dim
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, embedding_dim)

    def forward(self, features: Float[Tensor, "B F"], learner: int | None = None) -> Float[Tensor, "B d"]:
        features = self.dropout(features)
        return self.full(features) if learner is None else self.subspace(features, learner)

    @abstractmethod
    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """The full embedding, (B, D), each row of length one."""

    @abstractmethod
    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        """Learner k's embedding, (B, d_k), each row of length one."""

    @abstractmethod
    def subspace_dim(self, learner: int) -> int:
        """d_k: how many dimensions learner k's embedding has."""


class SliceHead(SubspaceHead):
    """D split into K consecutive slices whose sizes differ by at most one (2019). With K = 1 this is the ordinary head
    of one metric.

    The full embedding is the concatenation of the K normalised slices divided by the square root of K, so that it has
    length one as each slice has: margins and cutoffs mean the same in every phase.
    """

    def __init__(self, num_features: int, embedding_dim: int, num_learners: int, dropout: float) -> None:
        if embedding_dim < num_learners:
            raise ConfigError(f"an embedding of {embedding_dim} dimensions cannot be cut into {num_learners} slices")
        super().__init__(num_features, embedding_dim, num_learners, dropout)
        small, larger = divmod(embedding_dim, num_learners)
        self._sizes = [small + (k < larger) for k in range(num_learners)]
        starts = [sum(self._sizes[:k]) for k in range(num_learners)]
        self._slices = [slice(start, start + size) for start, size in zip(starts, self._sizes, strict=True)]
        # Each slice on its own: Xavier's variance depends on the number of outputs, and a learner has d_k of them.
        for part in self._slices:
            nn.init.xavier_normal_(self.linear.weight.data[part])
        nn.init.zeros_(self.linear.bias)

    def subspace(self, features: Float[Tensor, "B F"], learner: int) -> Float[Tensor, "B d"]:
        part = self._slices[learner]
        return F.normalize(F.linear(features, self.linear.weight[part], self.linear.bias[part]), dim=1)

    def full(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        parts = self.linear(features).split(self._sizes, dim=1)
        return torch.cat([F.normalize(part, dim=1) for part in parts], dim=1) / self.num_learners**0.5

    def subspace_dim(self, learner: int) -> int:
        return self._sizes[learner]


def create_head(
    method: str, num_features: int, embedding_dim: int, num_learners: int, dropout: float = 0.01
) -> SubspaceHead:
    """The head of a method: ``single`` (one learner) or ``slices``.

    Raises:
        ConfigError: no such method, more than one learner under ``single``, or more learners than dimensions.
    """
    if method == "single":
        if num_learners != 1:
            raise ConfigError(f"method single has one learner, not {num_learners}")
        return SliceHead(num_features, embedding_dim, 1, dropout)
    if method == "slices":
        return SliceHead(num_features, embedding_dim, num_learners, dropout)
    raise ConfigError(f"unknown method {method!r}; known: single, slices")
