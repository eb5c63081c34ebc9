"""Backbones for vectors that another model made of images, texts or sounds: none, or a small residual network."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from divcon.errors import ConfigError, unknown

VECTOR_BACKBONES = ("none", "mlp")


class ToScaleOne(nn.Module):
    """Each vector divided by its root mean square over the dimensions.

    Learning rates then mean the same for the unit vectors of one model as for the raw features of another, and the
    cosines between vectors are what they were. A vector of zeros stays one.
    """

    def forward(self, vectors: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        return F.normalize(vectors, dim=1) * vectors.shape[1] ** 0.5


class ResidualMlp(nn.Module):
    """``x + W2 gelu(W1 x)``, as wide inside as outside. W2 begins at zero: training starts from x itself."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, dim)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, vectors: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        return vectors + self.outer(F.gelu(self.inner(vectors)))


def create_vector_backbone(name: str, vector_dim: int) -> nn.Module:
    """What maps (B, F) float vectors to (B, F) features: ``none`` brings them to one scale, ``mlp`` also trains a
    residual network on them.

    Raises:
        ConfigError: no such backbone, or vectors without a dimension.
    """
    if name not in VECTOR_BACKBONES:
        raise ConfigError(unknown("backbone for vectors", name, VECTOR_BACKBONES))
    if vector_dim < 1:
        raise ConfigError(f"vectors of {vector_dim} dimensions: there must be one at least")
    return ToScaleOne() if name == "none" else nn.Sequential(ToScaleOne(), ResidualMlp(vector_dim))
