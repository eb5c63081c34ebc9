"""What an exported model says of itself, whatever the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import divcon
from divcon.data.transforms import EVAL_RESIZE
from divcon.models import EmbeddingModel
from divcon.run_folder import RunFolder

KEY = "divcon"
"""Of an ONNX file's metadata: JSON of what `about_model` gives; in a ``.pt2`` the extra file ``divcon.json``."""


def about_model(model: EmbeddingModel, learner: int | None, run: str | Path | None) -> dict[str, Any]:
    """Plain values: ``divcon`` (the version), ``model`` (what it was made with), ``learner``, ``input`` and ``output``
    (name, dtype, shape), ``preprocessing`` (None of vectors), and of its run ``benchmark``, ``protocol``,
    ``split_hash`` (None where it is of no run).

    In ``preprocessing`` the shorter side of an image is brought to ``resize`` pixels, and ``size`` x ``size`` cut out
    of the middle; an image of just that size is taken whole. ``mean`` and ``std`` are of each channel, on a scale of 0
    to 1.
    """
    found = None if run is None else RunFolder(run).origin()
    record = found[1] if found else {}
    width = model.embedding_dim if learner is None else model.head.subspace_dim(learner)
    seen: dict[str, Any]
    if model.vector_dim is None:
        size = model.image_size
        seen = {"name": "images", "dtype": "uint8", "shape": ["batch", 3, size, size]}
    else:
        seen = {"name": "vectors", "dtype": "float32", "shape": ["batch", model.vector_dim]}
    return {
        "divcon": divcon.__version__,
        "model": model.made_with,
        "learner": learner,
        "input": seen,
        "output": {"name": "embeddings", "dtype": "float32", "shape": ["batch", width]},
        "preprocessing": _preprocessing(model),
        **{name: record.get(name) for name in ("benchmark", "protocol", "split_hash")},
    }


def _preprocessing(model: EmbeddingModel) -> dict[str, Any] | None:
    if model.vector_dim is not None:
        return None
    seen = model.preprocessing
    return {
        "size": model.image_size,
        "resize": round(model.image_size * EVAL_RESIZE),
        "interpolation": seen.interpolation,
        "mean": list(seen.mean),
        "std": list(seen.std),
    }
