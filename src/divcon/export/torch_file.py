"""A program of `torch.export`, in a ``.pt2``, which PyTorch runs without divcon."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from divcon.export.about import KEY
from divcon.export.program import check_equal, trace
from divcon.files import written_whole
from divcon.models import EmbeddingModel


def write_program(model: EmbeddingModel, out: Path, about: dict[str, Any], learner: int | None) -> tuple[str, float]:
    """
    Returns:
        What read it again, and the largest difference from the model's embeddings.

    Raises:
        ConfigError, OutputError: as `divcon.export.export`.
    """
    with written_whole(out) as beside:
        written = io.BytesIO()  # by name, it would have to end in .pt2
        torch.export.save(trace(model, learner), written, extra_files={f"{KEY}.json": json.dumps(about)})
        beside.write_bytes(written.getbuffer())
        written.seek(0)
        program = torch.export.load(written).module()
        difference = check_equal(model, learner, program, out)
    return f"PyTorch {torch.__version__}", difference
