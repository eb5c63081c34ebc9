"""The folder of a model: ``config.json`` and ``model.safetensors``. What can be checked there without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from divcon.errors import ConfigError, WeightsError
from divcon.models.names import check_learner
from divcon.runtime import hub
from divcon.runtime.copies import here
from divcon.runtime.places import place, text_of, url_of

FORMAT = 1
WEIGHTS = "model.safetensors"
_OF_OTHERS = ("model_type", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
"""What transformers reads and writes in ``config.json``."""


def model_folder(folder: str | Path) -> Path:
    """The folder of the model that the folder of a run or model stands for."""
    folder = place(folder)
    if url_of(folder) is not None:
        if (here(folder / "model") / "config.json").exists():
            return folder / "model"
        here(folder, without=("checkpoint", "divisions", "last", "folds", "index"))
    is_run = (folder / "model").is_dir() or (folder / "metrics.jsonl").exists()
    return folder / "model" if is_run else folder


def check_model(folder: str | Path, *, learner: int | None = None) -> dict[str, Any]:
    """Check, before PyTorch is imported, that there is a model in the folder of a run or model, and return its
    ``config``.

    Args:
        learner: one that it must have.

    Raises:
        WeightsError: there is no model, or its ``config.json`` is damaged, or another version wrote it.
        ConfigError: the model has no such learner.
    """
    folder = model_folder(folder)
    config = read_config(folder)
    if not (folder / WEIGHTS).exists():
        raise WeightsError(f"{folder}: the weights are missing or damaged ({WEIGHTS} is not there)")
    if learner is not None and isinstance(config.get("num_learners"), int):
        check_learner(learner, config["num_learners"])
    return config


def index_beside(folder: str | Path) -> str:
    """The address of the index in the folder of a run or model.

    Raises:
        ConfigError: the model is on the Hugging Face Hub, where no index is kept.
    """
    url = url_of(place(folder))
    if url is not None and hub.address_of(url) is not None:
        raise ConfigError(
            f"`store` is missing: {url} is on the Hub, and an index needs a folder of its own", field="store"
        )
    return text_of(place(folder) / "index")


def check_weights(path: str | Path) -> None:
    """
    Raises:
        WeightsError: there is no file of weights.
    """
    if not here(path).is_file():
        raise WeightsError(f"{path}: there is no such file of weights")


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config`` of the model in its folder.

    Raises:
        WeightsError: there is no model, or it is damaged, or another version wrote it.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        advice = "; its run has not saved an epoch yet: go on with `resume=True`" if folder.name == "model" else ""
        if not folder.exists() and url_of(folder) is None and hub.is_name(str(folder)):
            advice = f"; of the Hugging Face Hub, write hf://{folder}"
        missing = "config.json is missing" if folder.exists() else "there is no such folder"
        raise WeightsError(f"{folder}: no model there ({missing}){advice}") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: damaged ({error})") from None
    if not isinstance(config, dict) or "format" not in config:
        raise WeightsError(f"{file}: not the file of a model of divcon")
    if (version := config.pop("format")) != FORMAT:
        raise WeightsError(f"{file}: written by another version of divcon (format {version}, this one reads {FORMAT})")
    if "freeze_batch_norm" not in config:
        raise WeightsError(f"{file}: damaged (freeze_batch_norm is missing)")
    return {name: value for name, value in config.items() if name not in _OF_OTHERS}
