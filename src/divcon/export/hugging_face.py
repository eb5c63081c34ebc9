"""A folder as Hugging Face has them: weights, configuration, preprocessing, model card."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from divcon.compare import read_scores
from divcon.errors import ConfigError, DataError, OutputError
from divcon.export.card import TO_FILL_IN, model_card
from divcon.export.program import Embedder, check_equal
from divcon.models import EmbeddingModel, keep_learner
from divcon.run_folder import RunFolder

_SAID = ("recall_at_1", "benchmark", "protocol", "split_hash", "num_queries", "num_gallery", "num_classes")


def write_folder(
    model: EmbeddingModel,
    out: Path,
    about: dict[str, Any],
    learner: int | None,
    run: str | Path | None,
    scores: str | Path | None,
) -> tuple[float, int]:
    """Write the folder beside, and put it in its place when `EmbeddingModel.load` gives the model's embeddings.

    Nothing of where the run or its data lie is in it.

    Returns:
        The largest difference from the model's embeddings, and how many places of the card are to be filled in.

    Raises:
        ConfigError, OutputError, DataError: as `divcon.export.export`.
    """
    folder = None if run is None else RunFolder(run)
    found = None if scores is None else _scores_of(scores, learner)
    kept = model if learner is None else keep_learner(model, learner)
    card = model_card(out.absolute().name, kept, about, folder, found)
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            made = Path(beside, target.name)
            kept.save(made)
            if about["preprocessing"] is not None:
                text = json.dumps(_processor(about["preprocessing"]), indent=2) + "\n"
                (made / "preprocessor_config.json").write_text(text)
            (made / "README.md").write_text(card, encoding="utf-8")
            difference = check_equal(model, learner, Embedder(EmbeddingModel.load(made), None), out)
            if target.exists():
                target.rmdir()
            made.replace(target)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return difference, card.count(TO_FILL_IN)


def _processor(seen: dict[str, Any]) -> dict[str, Any]:
    """``preprocessor_config.json``, as transformers' image processor that resizes the shorter side and crops has it."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": seen["resize"]},
        "resample": Image.Resampling[seen["interpolation"].upper()].value,
        "do_center_crop": True,
        "crop_size": {"height": seen["size"], "width": seen["size"]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": seen["mean"],
        "image_std": seen["std"],
    }


def _scores_of(path: str | Path, learner: int | None) -> dict[str, Any]:
    """The scores of the embedding, or of a learner's."""
    scores = read_scores(path)
    missing = [name for name in _SAID if name not in scores]
    if missing:
        raise DataError(f"{path}: holds no {' and no '.join(missing)}; give what divcon evaluate --json wrote")
    if learner is None:
        return scores
    alone = scores.get("learners")
    if not isinstance(alone, list) or learner >= len(alone):
        raise ConfigError(
            f"--scores {path}: has no scores of learner {learner} alone; give what divcon evaluate --parts --json wrote"
        )
    return {**{name: scores[name] for name in _SAID}, **alone[learner]}
