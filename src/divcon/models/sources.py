"""Backbones that timm has no name for: repositories of the Hugging Face hub (``hf-hub:user/model``) and folders
(``local-dir:FOLDER``) that timm's ``save_for_hf`` or ``push_to_hf_hub`` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divcon.config.backbone_names import FOLDER, HUB, SOURCES
from divcon.errors import WeightsError, first_line
from divcon.models.weights import check_answers, no_weights

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pth", "pytorch_model.pth")
_OF_IMAGES = ("input_size", "fixed_input_size", "mean", "std", "interpolation", "crop_pct", "pool_size", "license")
_NO_ARGS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes")
"""Arguments of timm's that choose weights, which a file from elsewhere does not."""
_OF_WEIGHTS = ("num_classes", "first_conv", "classifier")


def is_sourced(name: object) -> bool:
    """Whether a backbone is named by where it is, and not by a name of timm's."""
    return isinstance(name, str) and name.startswith(SOURCES)


def repository_of(name: str) -> tuple[str, str | None]:
    """The repository of ``hf-hub:user/model@revision``, and the revision."""
    repository, _, revision = name.removeprefix(HUB).partition("@")
    return repository, revision or None


def read_source(name: str) -> dict[str, Any]:
    """What creates a backbone: ``architecture``, ``model_args`` (arguments of timm's) and ``pretrained_cfg`` (input and
    preprocessing), from the ``config.json`` of a repository or folder. That of a repository is taken from the hub's
    cache where it is there, and else downloaded.

    Raises:
        WeightsError: there is none, or it is not of a model that timm wrote.
    """
    path = _file(name, (CONFIG,))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"backbone {name!r}: {path} cannot be read ({error})") from None
    of_weights = config.get("pretrained_cfg", config)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not isinstance(of_weights, Mapping):
        kind = (config.get("architectures") or [config.get("model_type")])[0]
        what = f" (it is {kind}, of transformers)" if isinstance(kind, str) else ""
        raise WeightsError(
            f"backbone {name!r}: its {CONFIG} names no architecture of timm's{what}; use timm's name of the model, "
            "or a module:Name of your own that returns it"
        )
    return {
        "architecture": architecture,
        "model_args": arguments_in(config),
        "pretrained_cfg": {
            **{key: of_weights[key] for key in (*_OF_IMAGES, *_OF_WEIGHTS) if of_weights.get(key) is not None},
            **({"num_classes": config["num_classes"]} if isinstance(config.get("num_classes"), int) else {}),
        },
    }


def arguments_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the architecture in a ``config.json``, without those that would choose weights."""
    arguments = config.get("model_args") or {}
    return {name: value for name, value in dict(arguments).items() if name not in _NO_ARGS}


def weights_file(name: str) -> Path:
    """The file of weights of a repository or folder; downloaded into the hub's cache where it is not there yet.

    Raises:
        WeightsError: there is none, or the hub cannot be reached.
    """
    return _file(name, WEIGHTS)


def _file(name: str, names: tuple[str, ...]) -> Path:
    """The first of these files that there is."""
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        path = next((folder / file for file in names if (folder / file).is_file()), None)
        if path is None:
            raise WeightsError(f"backbone {name!r}: there is no {' or '.join(names)} in {folder}")
        return path
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repository, revision = repository_of(name)
    for file in names:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    file = check_answers(
        repository, revision, names, lambda why: no_weights(name, f"its files could not be downloaded: {why}")
    )
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        raise no_weights(name, f"{file} could not be downloaded ({first_line(error)})") from error
