"""Names of losses and miners, and their checks, without importing PyTorch."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Collection
from functools import cache
from pathlib import Path

from divcon.config.settings import ModelConfig, TrainConfig
from divcon.errors import ConfigError, unknown
from divcon.models.folder import check_weights
from divcon.models.names import check_backbone_name, check_method_name, known_methods
from divcon.runtime.importing import is_named

OWN_MINERS = ("distance-weighted", "nearest-negatives")
"""divcon's own."""
NO_MINERS = frozenset({"BaseMiner", "EmbeddingsAlreadyPackagedAsTriplets"})
"""What is beside the miners in pytorch-metric-learning."""

REFUSED = {
    "ManifoldLoss": "draws classes of its own and takes no labels; divcon trains losses of embeddings and labels",
    "VICRegLoss": "compares two views of an image and takes no labels; divcon trains losses of embeddings and labels",
    "SelfSupervisedLoss": "compares two views of an image and takes no labels; divcon trains losses of embeddings and "
    "labels",
    "InstanceLoss": "takes image number n of a batch for class number n in pytorch-metric-learning, and so draws "
    "unlike images together; use NormalizedSoftmaxLoss or NTXentLoss",
    "IntraPairVarianceLoss": "evens out similarities without telling classes apart, and is meant to be added to "
    "another loss; use MultiSimilarityLoss",
    "CrossBatchMemory": "wraps another loss: set `loss` to that one, and `memory_size`",
    "MultipleLosses": "combines other losses: name one of them, or pass the object from Python",
    "GenericPairLoss": "is a base class of other losses",
    "BaseMetricLossFunction": "is a base class of other losses",
    "BaseLossWrapper": "is a base class of other losses",
}
"""The losses of pytorch-metric-learning that cannot be trained by name, and why."""


def check_names(model: ModelConfig, train: TrainConfig) -> None:
    """Check the names of method, backbone, loss and miner, and that there is a file of weights, before PyTorch is
    imported. What passes is checked with all its options when it is used.

    Raises:
        ConfigError: a name is unknown (the message suggests the nearest), or a loss cannot be trained.
        WeightsError: there is no file of weights.
    """
    check_method_name(model.method, known_methods())
    check_backbone_name(model.backbone)
    if model.weights is not None:
        check_weights(model.weights)
    check_loss_name(train.loss, _exported("losses") - REFUSED.keys())
    miners = _exported("miners") - NO_MINERS
    check_miner_name(train.chosen_miner, miners and miners | {"auto", "none", *OWN_MINERS})


def check_loss_name(loss: object, known: Collection[str]) -> None:
    """
    Args:
        known: the names of losses; empty: they are not known here, and nothing is checked but what is refused.

    Raises:
        ConfigError: it is a name, and none of a loss that can be trained.
    """
    if not isinstance(loss, str) or is_named(loss):
        return
    if loss in REFUSED:
        raise ConfigError(f"loss {loss!r} {REFUSED[loss]}", field="loss")
    if known and loss not in known:
        raise ConfigError(unknown("loss", loss, known), field="loss")


def check_miner_name(miner: object, known: Collection[str]) -> None:
    """
    Args:
        known: as of `check_loss_name`.

    Raises:
        ConfigError: it is a name, and none of a miner.
    """
    if isinstance(miner, str) and not is_named(miner) and known and miner not in known:
        raise ConfigError(unknown("miner", miner, known), field="miner")


@cache
def _exported(package: str) -> frozenset[str]:
    """The classes that a package of pytorch-metric-learning has, as its source has them. Empty where it has none there;
    then the names are checked when they are used."""
    spec = importlib.util.find_spec("pytorch_metric_learning")
    names: set[str] = set()
    for folder in (spec and spec.submodule_search_locations) or ():
        source = Path(folder, package, "__init__.py").read_text(encoding="utf-8")
        imports = (node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom))
        names.update(alias.asname or alias.name for node in imports for alias in node.names)
    return frozenset(name for name in names if not name.endswith("Mixin"))
