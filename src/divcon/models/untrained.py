"""A model before any training: a backbone with its pretrained weights, at a size and fit that suit the images."""

from __future__ import annotations

from collections.abc import Callable

import torch

from divcon.config.from_data import fit_images
from divcon.config.image_size import saved_size
from divcon.config.pixel_range import saved_pixel_range
from divcon.config.settings import ModelConfig
from divcon.data.labeled_set import LabeledSet
from divcon.data.shapes import facts_to_choose_by
from divcon.models.backbone import resolve_backbone, sizes_of
from divcon.models.embedding_model import EmbeddingModel
from divcon.models.pruning import with_embedding


def untrained_model(
    settings: ModelConfig, images: LabeledSet, on_choice: Callable[[str], None] | None = None
) -> EmbeddingModel:
    """The backbone of ``settings``, with its pretrained weights. It embeds by its pooled features (F), L2-normalised;
    those of vectors are the vectors.

    The head, which nothing has trained, is zero: two models of one backbone are equal.

    Args:
        settings: ``image_size``, ``fit`` and ``pixel_range``, where they are left out, are chosen from the images as
            `divcon.run` chooses them.
        on_choice: called with what is chosen, in words.

    Raises:
        ConfigError: the backbone is unknown, or not for these images or vectors.
        WeightsError: its weights cannot be downloaded or read.
    """
    vector_dim = None if images.vectors is None else images.vectors.shape[1]
    backbone = resolve_backbone(settings.backbone, vector_dim, settings.weights)
    facts = facts_to_choose_by(settings, images)
    if facts is not None:
        settings, reasons = fit_images(settings, facts, **sizes_of(backbone))
        if reasons and on_choice is not None:
            chosen = {**vars(settings), "image_size": saved_size(settings.image_size)}
            chosen["pixel_range"] = saved_pixel_range(settings.pixel_range)
            on_choice("; ".join(f"`{name}={chosen[name]}` ({why})" for name, why in reasons.items()))
    options = {name: settings.network[name] for name in ("weights", "image_size", "fit", "pixel_range")}
    if vector_dim is not None:
        options = {"vector_dim": vector_dim}
    with torch.random.fork_rng(devices=[]):
        model = EmbeddingModel(backbone, embedding_dim=1, **options)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
    return with_embedding(model, "features")
