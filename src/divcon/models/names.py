"""Names of methods, backbones and embeddings, and their checks, for modules that do without PyTorch."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from divcon.errors import ConfigError, unknown
from divcon.runtime.importing import is_named

AUTO = {"images": "resnet50.tv_in1k", "vectors": "none"}
"""The backbone ``auto``, by what the data holds."""
VECTOR_BACKBONES = ("none", "mlp")

Embedding = Literal["head", "features", "pca"]
EMBEDDING_NAMES: dict[str, str] = {"head": "head", "features": "pooled features", "pca": "PCA of the pooled features"}
"""In words."""

METHODS = ("single", "slices", "masks")
"""The built-in methods; see `divcon.models.heads.methods` for all."""


def known_methods() -> list[str]:
    """The methods that have a short name: the built-in ones, and those of modules that are imported."""
    if "divcon.models.heads" not in sys.modules:
        return list(METHODS)
    from divcon.models.heads import methods

    return list(methods())


def check_method_name(method: object, known: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: it is a short name, and none of those known.
    """
    if isinstance(method, str) and method not in known and not is_named(method):
        raise ConfigError(
            f"{unknown('method', method, known)}; for a head of your own write module:Name, or import its module first",
            field="method",
        )


def check_backbone_name(backbone: object) -> None:
    """Check, without importing timm, that a backbone's name is one of timm's, of divcon's for vectors, or your own.

    Raises:
        ConfigError: it is none (the message suggests the nearest).
    """
    if not isinstance(backbone, str) or is_named(backbone) or backbone in ("auto", *VECTOR_BACKBONES):
        return
    architecture = backbone.partition(".")[0]
    if "timm" in sys.modules:  # where a module of the user's may have registered more
        timm: Any = sys.modules["timm"]
        known, missing = timm.list_models(), not timm.is_model(architecture)
    else:
        known, old = _backbones_in_source()
        missing = bool(known) and architecture not in known | old
    if missing:
        raise ConfigError(unknown("backbone", backbone, known), field="backbone")


@cache
def _backbones_in_source() -> tuple[frozenset[str], frozenset[str]]:
    """The models that timm registers, and the names that they once had, as its source has them: importing it takes
    seconds. Empty where its source is not there, or written in another way; then its own registry decides later."""
    spec = importlib.util.find_spec("timm")
    names: set[str] = set()
    old: set[str] = set()
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in Path(folder, "models").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            names.update(re.findall(r"^@register_model\s*\ndef (\w+)\(", text, re.MULTILINE))
            renamed = text.partition("register_model_deprecations(")[2]
            old.update(re.findall(r"^\s+'(\w+)': '[\w.]+',", renamed, re.MULTILINE))
    return frozenset(names), frozenset(old)


def check_learner(learner: int, num_learners: int) -> None:
    """
    Raises:
        ConfigError: a model of so many learners has no such learner.
    """
    if not 0 <= learner < num_learners:
        raise ConfigError(f"`learner` {learner}: the model has learners 0 to {num_learners - 1}", field="learner")


def own_parts(config: Mapping[str, Any]) -> list[str]:
    """The code of the user's own that a model's `EmbeddingModel.config` names, each as ``module:Name``."""
    names = [config.get("backbone"), config.get("eval_transform")]
    head: Any = config
    while isinstance(head, Mapping):  # a pruned head names the head that it was cut from
        names.append(head.get("method"))
        options = head.get("head_options")
        head = options.get("of") if isinstance(options, Mapping) else None
    return [str(name) for name in names if is_named(name) and not str(name).startswith("divcon.")]
