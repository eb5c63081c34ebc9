"""The settings of the model, with the bounds that each must keep.

The text under each field is what ``divcon train --help`` shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from divcon.config_check import Option, at_least
from divcon.errors import ConfigError

Pooling = Literal["auto", "avg", "max", "gem", "token"]


@Parameter(name="*", group=Group("Model", sort_key=1))
@dataclass(frozen=True)
class ModelConfig:
    """What is trained: a backbone and a head (see `divcon.EmbeddingModel`)."""

    method: str = "masks"
    """How the embedding is divided among learners: single (one learner: ordinary metric learning, the baseline),
    slices (CVPR 2019: K consecutive parts of the one embedding), or masks (TPAMI 2021: K masks over all of it)."""
    num_learners: Annotated[int, Parameter(name=("--learners", "--num-learners"))] = 4
    """K, the number of learners, and of clusters that the training images are divided into; 1 under single."""
    embedding_dim: Annotated[int, Parameter(name=("--dim", "--embedding-dim"))] = 128
    """D, the length of the embedding."""
    head_options: dict[str, Option] = field(default_factory=dict)
    """Arguments of the method's head. Of masks: kind (learned, or fixed: consecutive parts) and full (plain, or masked:
    the full embedding is multiplied with the sum of the masks), as in --head-options.kind fixed."""
    backbone: str = "auto"
    """The network before the head: any timm model by name; for vectors none (the head alone) or mlp (a small residual
    network). auto: resnet50.tv_in1k for images, none for vectors."""
    pretrained: bool = True
    """Start from the backbone's pretrained weights."""
    weights: Path | None = None
    """Start the backbone from this file (.safetensors, or .pth of tensors only) in place of timm's weights."""
    image_size: Annotated[int, Parameter(name=("--size", "--image-size"))] = 224
    """Height and width, in pixels, of what the backbone sees; not for vectors. For a vision transformer a multiple of
    its patch size (14 or 16, say); its position embeddings are resampled to it."""
    pooling: Pooling = "auto"
    """How the backbone's features of all places become one vector, before the head: auto (as the backbone does), avg,
    max, gem (Radenovic et al., TPAMI 2018: a mean of p-th powers, where p is learned and starts at 3; what is negative
    counts as zero), or token (a vision transformer's class token). In a vision transformer avg, max and gem are over
    the tokens of the patches alone. Not for vectors."""
    dropout: float = 0.01
    """Share of the pooled features that is dropped before the head in training."""

    def __post_init__(self) -> None:
        if self.method == "single" and self.num_learners != 1:
            object.__setattr__(self, "num_learners", 1)
        if self.weights is not None:  # so that it is found from another working directory, too
            object.__setattr__(self, "weights", Path(self.weights).absolute())
        at_least(self, num_learners=1, embedding_dim=1, image_size=1)
        if self.embedding_dim < self.num_learners:
            raise ConfigError(
                f"--dim {self.embedding_dim} cannot be divided among --learners {self.num_learners}: each learner "
                "needs at least one dimension; give a larger --dim or fewer --learners"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"--dropout {self.dropout}: must be at least 0 and below 1")
