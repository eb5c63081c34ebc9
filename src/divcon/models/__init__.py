"""Models: a timm backbone and the head that K learners share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.models.backbone import create_backbone
    from divcon.models.embedding_model import EmbeddingModel, as_model
    from divcon.models.heads import MaskHead, SliceHead, SubspaceHead, create_head
    from divcon.models.pca import can_start_as_pca, start_as_pca
    from divcon.models.pooling import GeM
    from divcon.models.pruning import keep_components, keep_learner, keep_subspaces, with_embedding

__all__ = [
    "EmbeddingModel",
    "GeM",
    "MaskHead",
    "SliceHead",
    "SubspaceHead",
    "as_model",
    "can_start_as_pca",
    "create_backbone",
    "create_head",
    "keep_components",
    "keep_learner",
    "keep_subspaces",
    "start_as_pca",
    "with_embedding",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EmbeddingModel": "embedding_model",
        "GeM": "pooling",
        "MaskHead": "heads",
        "SliceHead": "heads",
        "SubspaceHead": "heads",
        "as_model": "embedding_model",
        "can_start_as_pca": "pca",
        "create_backbone": "backbone",
        "create_head": "heads",
        "keep_components": "pruning",
        "keep_learner": "pruning",
        "keep_subspaces": "pruning",
        "start_as_pca": "pca",
        "with_embedding": "pruning",
    },
)
