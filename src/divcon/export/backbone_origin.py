"""Where the weights came from that a model began with, and under what licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm

from divcon.config import RunConfig
from divcon.export.marks import TO_FILL_IN
from divcon.models import EmbeddingModel


@dataclass(frozen=True)
class Origin:
    """Of a backbone's weights."""

    said: str
    """Their licence and where they come from, in Markdown."""
    hub_id: str | None = None
    """Their name on the Hugging Face hub, where they are timm's beyond doubt."""


def backbone_origin(model: EmbeddingModel, found: tuple[RunConfig, dict[str, Any]] | None) -> Origin:
    """What is known of the weights that training began with.

    Args:
        found: of the model's run; see `divcon.run_folder.RunFolder.origin`.
    """
    if model.vector_dim is not None:
        return Origin(f"none were taken; **{TO_FILL_IN}:** which model made the vectors, and its licence")
    name = model.made_with["backbone"]
    by_timm = _by_timm(name)
    if found is None:
        if not model.freeze_batch_norm:
            return Origin(f"none were taken, or **{TO_FILL_IN}**")
        return Origin(f"{by_timm}, if it began from those; **{TO_FILL_IN}** otherwise")
    config, record = found
    if record.get("init"):
        return Origin(f"**{TO_FILL_IN}:** it began from another model of divcon's; {by_timm} of this name")
    if config.model.weights is not None:
        return Origin(f"**{TO_FILL_IN}:** they came from a file, `{config.model.weights.name}`")
    if not config.model.pretrained:
        return Origin("none were taken: it began from random weights")
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return Origin(by_timm, known.hf_hub_id if known else None)


def _by_timm(name: str) -> str:
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if known is None or not known.license:
        return f"timm does not say: **{TO_FILL_IN}**"
    full = ".".join(part for part in (known.architecture, known.tag) if part)
    return f"{known.license}, as timm {timm.__version__} says of `{full}`"
