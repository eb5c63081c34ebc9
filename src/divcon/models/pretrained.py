"""The files beside a model that let others load its folder: sentence-transformers, transformers, and the Hugging Face
Hub's pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divcon.models.preprocessing import about_preprocessing, processor_of
from divcon.runtime.files import atomic_write

if TYPE_CHECKING:
    from divcon.models.embedding_model import EmbeddingModel

CARD = "README.md"
PROCESSOR = "preprocessor_config.json"
_CODE = "modeling_divcon.py"
_CODE_TEXT = '''"""Lets transformers load this model (AutoModel, trust_remote_code=True). It needs divcon."""

from divcon.exports.in_transformers import DivconConfig, DivconModel

__all__ = ["DivconConfig", "DivconModel"]
'''
_MODULES = "modules.json"
_SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
MODULE = "divcon.exports.in_sentence_transformers.Embedding"
"""The module that sentence-transformers imports."""

OF_TRANSFORMERS: dict[str, Any] = {
    "model_type": "divcon",
    "architectures": ["DivconModel"],
    "auto_map": {"AutoConfig": "modeling_divcon.DivconConfig", "AutoModel": "modeling_divcon.DivconModel"},
}
"""What transformers reads of ``config.json``."""

FILES = (PROCESSOR, _CODE, _MODULES, _SENTENCE_TRANSFORMERS, "embedding.json", "threshold.json")
"""What a folder may have and another model's may not, beside its card and the model itself."""


def extra_config(model: EmbeddingModel) -> dict[str, Any]:
    """What ``config.json`` has beside the model's own configuration."""
    return OF_TRANSFORMERS if _takes_colours(model) else {}


def write_extras(folder: Path, model: EmbeddingModel, card: str | None) -> None:
    """Write the files beside a model, each atomically. Those of other programs only where these can use the model: it
    embeds images of colours.

    Args:
        card: the text of its card; None: it has one, which stays.

    Raises:
        OutputError: a file cannot be written.
    """
    texts: dict[str, str] = {} if card is None else {CARD: card}
    if (processor := processor_of(about_preprocessing(model))) is not None:
        texts[PROCESSOR] = _json(processor)
    if _takes_colours(model):
        texts[_CODE] = _CODE_TEXT
        texts[_MODULES] = _json([{"idx": 0, "name": "0", "path": "", "type": MODULE}])
        about = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None}
        texts[_SENTENCE_TRANSFORMERS] = _json({**about, "similarity_fn_name": "cosine"})
    for name, text in texts.items():
        with atomic_write(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")


def _takes_colours(model: EmbeddingModel) -> bool:
    return model.vector_dim is None and model.channels == 3


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
