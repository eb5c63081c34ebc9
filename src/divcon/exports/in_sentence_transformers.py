"""The module that sentence-transformers imports for a model of divcon; a folder of `EmbeddingModel.save_pretrained` or
``divcon export --format hf`` names it in ``modules.json``.

Nothing else imports this file: sentence-transformers is not needed for anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule

from divcon.data.loading import needed_pixels
from divcon.models import EmbeddingModel
from divcon.models.batches import input_batches
from divcon.models.inputs import as_set
from divcon.runtime.context import DEFAULT


class Embedding(InputModule):
    """Images to embeddings, (B, D) float32 of length one: those of `EmbeddingModel.encode`.

    Args:
        model: of images of colours.
    """

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = model

    @property
    def modalities(self) -> list[Any]:
        return ["image"]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, torch.Tensor]:
        """``pixels``, (B, 3, H, W) uint8, of images: files, PIL images, arrays (H, W, 3) of uint8, or a dictionary with
        one of these as ``image``.

        Raises:
            DataError, ImageError: as `EmbeddingModel.encode`.
        """
        images = [each["image"] if isinstance(each, dict) and set(each) == {"image"} else each for each in inputs]
        transform = self.model.eval_transform
        read = as_set(images, needed_pixels(transform), DEFAULT)
        batches = input_batches(read, transform, batch_size=len(images), context=DEFAULT, pin_memory=False)
        pixels: dict[int, torch.Tensor] = {}
        for batch, rows in batches:
            pixels.update(zip(rows.tolist(), batch, strict=True))
        return {"pixels": torch.stack([pixels[row] for row in range(len(images))])}

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        features["sentence_embedding"] = self.model(self.model.normalize(features["pixels"]))
        return features

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.model.embedding_dim

    def get_config_dict(self) -> dict[str, Any]:
        return self.model.config

    def save(self, output_path: str, *arguments: Any, **options: Any) -> None:
        """See `EmbeddingModel.save_pretrained`; sentence-transformers writes a card of its own.

        Raises:
            OutputError: a file cannot be written.
        """
        self.model.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Embedding:
        """See `EmbeddingModel.from_pretrained`. ``trust_remote_code`` allows a model's own parts too, of modules that
        are installed here."""
        model = EmbeddingModel.from_pretrained(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
            trust=bool(trust_remote_code),
        )
        return cls(model)
