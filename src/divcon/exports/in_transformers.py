"""The classes that transformers imports for a model of divcon; a folder of `EmbeddingModel.save_pretrained` or ``divcon
export --format hf`` names them in ``config.json``. After ``import divcon.exports.in_transformers``, `AutoModel` knows
them without ``trust_remote_code``.

Nothing else imports this file: transformers is not needed for anything else. A class of our own in place of
transformers' ``TimmWrapperModel``: that has no head, no pooling of ours, and other names of weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from divcon.models import EmbeddingModel
from divcon.runtime.importing import Trust


class DivconConfig(PretrainedConfig):
    """What ``config.json`` holds."""

    model_type = "divcon"


class DivconModel(PreTrainedModel):
    """A model of divcon, of images of colours, as transformers uses models.

    Args:
        config: of the model.
        model: the model itself.
    """

    config_class = DivconConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"

    def __init__(self, config: DivconConfig, model: EmbeddingModel) -> None:
        super().__init__(config)
        self.model = model

    def forward(
        self, pixel_values: Tensor, return_dict: bool | None = None, **options: Any
    ) -> BaseModelOutputWithPooling | tuple[Tensor, Tensor]:
        """(B, 3, H, W) pixels, normalised as ``preprocessor_config.json`` says, to ``pooler_output``: embeddings, (B,
        D) of length one; and ``last_hidden_state``: the pooled features that they are of, (B, 1, F)."""
        _, embeddings, features = self.model(pixel_values.to(self.device), with_all=True)
        features = features[:, None]
        if return_dict is False:
            return features, embeddings
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=embeddings)

    def encode(self, images: Any, **options: Any) -> Any:
        """See `EmbeddingModel.encode`."""
        return self.model.encode(images, **options)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # type: ignore[override]
        """See `EmbeddingModel.save_pretrained`."""
        self.model.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *arguments: Any,
        config: DivconConfig | None = None,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        trust: Trust = (),
        **options: Any,
    ) -> DivconModel:
        """See `EmbeddingModel.from_pretrained`. ``device_map``: a device; ``dtype``: of the weights, float32 by
        default."""
        model = EmbeddingModel.from_pretrained(
            pretrained_model_name_or_path,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            trust=trust,
        )
        loaded = cls(config or DivconConfig(**model.config), model).eval()
        number = dtype or torch_dtype
        if isinstance(number, str):
            number = None if number == "auto" else getattr(torch, number)
        if number is not None:
            loaded.model.to(dtype=number)
        if device_map not in (None, "auto"):
            loaded.model.to(device=device_map)
        return loaded


AutoConfig.register("divcon", DivconConfig, exist_ok=True)
AutoModel.register(DivconConfig, DivconModel, exist_ok=True)
