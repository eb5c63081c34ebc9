"""The folder of a saved model: ``config.json`` and ``model.safetensors``, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from divcon.errors import WeightsError
from divcon.files import written_whole
from divcon.tensor_file import checked_tensors, write_tensors

FORMAT = 1


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write both files, each whole or not at all.

    Raises:
        OutputError: a file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_tensors(folder / "model.safetensors", save(tensors))
    with written_whole(folder / "config.json") as beside:
        beside.write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """What `write_model` was given as ``config``.

    Raises:
        WeightsError: no model there, a damaged one, or one of another version.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        begun = "; its run has not kept an epoch yet: go on with --resume" if folder.name == "model" else ""
        raise WeightsError(f"{folder}: no model there (config.json is missing){begun}") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{folder / 'config.json'}: damaged ({error})") from None
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT or "freeze_batch_norm" not in config:
        raise WeightsError(f"{folder / 'config.json'}: not a model of this version of divcon")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights, on the CPU.

    Raises:
        OSError, SafetensorError, DamagedTensorsError: they are missing or damaged.
    """
    return load(checked_tensors(folder / "model.safetensors"))
