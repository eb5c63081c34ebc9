"""Create a loss, a miner or an optimiser from its class and the plain values of settings."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning.utils.common_functions import TorchInitWrapper
from torch import nn

from divcon.errors import ConfigError, unknown

_CLASSES = {
    "distance": distances,
    "reducer": reducers,
    "embedding_regularizer": regularizers,
    "weight_regularizer": regularizers,
}
"""Arguments of pytorch-metric-learning's losses and miners that take an object, and the module of its class."""
_NOT_BY_NAME = {
    "BatchedDistance": "wraps another distance",
    "MultipleReducers": "needs a reducer for each part of a loss; divcon creates it where a loss has several",
    "DoNothingReducer": "does not reduce a loss to one number",
    "ClassWeightedReducer": "needs a tensor of weights",
}


def instantiate(kind: type, options: Mapping[str, Any], setting: str, sizes: Mapping[str, int] | None = None) -> Any:
    """Create a loss or miner.

    Args:
        kind: its class.
        options: keyword arguments of the class, plain values. Where an argument of pytorch-metric-learning takes an
            object, the name of its class does, created with its defaults: ``distance="CosineSimilarity"``,
            ``reducer="MeanReducer"``, ``embedding_regularizer="ZeroMeanRegularizer"``,
            ``weight_regularizer="RegularFaceRegularizer"``; for ``weight_init_func`` the name of a function of
            ``torch.nn.init``; for a range ``"0.2,0.8"``. Embeddings have length one, so the dot product is the cosine,
            and a regularizer of lengths (LpRegularizer) is a constant.
        setting: ``loss`` or ``miner``; the options are the setting ``loss_options`` or ``miner_options``.
        sizes: default arguments for a class that takes them.

    Raises:
        ConfigError: there is no such argument or class (the message suggests the nearest names), or the class refuses
            the values.
    """
    known = arguments(kind)
    for option in options:
        if option not in known and not takes_any_argument(kind):
            raise ConfigError(unknown(f"argument of {kind.__name__}", option, known), field=f"{setting}_options")
    merged = {**{name: size for name, size in (sizes or {}).items() if name in known}, **options}
    values = {name: _value(kind, name, value, merged, setting) for name, value in merged.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{kind.__name__} cannot be created with {merged} ({error}); pass its arguments as `{setting}_options`",
            field=f"{setting}_options",
        ) from error


def arguments(kind: type) -> dict[str, Any]:
    """The arguments of a class's constructor, those that it passes on to its base classes included, with their defaults
    (`inspect.Parameter.empty` where there is none)."""
    return _signature(kind)[0]


def takes_any_argument(kind: type) -> bool:
    """Whether the constructor takes ``**options`` that no base class names."""
    return _signature(kind)[1]


def _signature(kind: type) -> tuple[dict[str, Any], bool]:
    named: dict[str, Any] = {}
    takes_any = False
    for base in kind.__mro__:
        if base in (nn.Module, object):
            break
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            named = {**{p.name: p.default for p in parameters if p.kind in kinds}, **named}
            takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
            if not takes_any:
                break
    return {name: default for name, default in named.items() if name not in ("self", "mat_based_loss")}, takes_any


def is_of_library(kind: type) -> bool:
    """Whether a class is of pytorch-metric-learning, or derived from one that is."""
    return any(base.__module__.startswith("pytorch_metric_learning.") for base in kind.__mro__)


def parameters_of(function: Callable[..., Any]) -> set[str]:
    """The names of a function's parameters."""
    return set(inspect.signature(function).parameters)


def _value(kind: type, name: str, value: Any, merged: Mapping[str, Any], setting: str) -> Any:
    """The value of an argument as its class takes it."""
    where = f"`{setting}_options` {name} of {kind.__name__}"
    if isinstance(value, nn.Module):
        return copy.deepcopy(value)
    if not is_of_library(kind):
        return value
    if name in _CLASSES:
        return _by_class(kind, name, value, merged, where, setting)
    if name == "weight_init_func":
        known = [key for key in vars(nn.init) if key.endswith("_") and not key.startswith("_")]
        if value not in known:
            message = f"{where}: {unknown('function of torch.nn.init', str(value), known)}"
            raise ConfigError(message, field=f"{setting}_options")
        return TorchInitWrapper(getattr(nn.init, value))
    if name.endswith("_range") and not isinstance(value, (tuple, list)):
        try:
            low, high = (float(number) for number in str(value).split(","))
        except ValueError:
            message = f"{where} {value!r}: pass two numbers with a comma between them, as in 0.2,0.8"
            raise ConfigError(message, field=f"{setting}_options") from None
        return low, high
    # A size must be whole, and 10.0 is how some writers of files put 10.
    if isinstance(value, float) and value.is_integer() and not isinstance(arguments(kind).get(name), float):
        return int(value)
    return value


def _by_class(kind: type, name: str, value: Any, merged: Mapping[str, Any], where: str, setting: str) -> nn.Module:
    classes: dict[str, Any] = {key: item for key, item in vars(_CLASSES[name]).items() if inspect.isclass(item)}
    if isinstance(value, str) and value in _NOT_BY_NAME and value in classes:
        raise ConfigError(f"{where}: {value} {_NOT_BY_NAME[value]}", field=f"{setting}_options")
    known = [key for key in classes if key not in _NOT_BY_NAME and not key.startswith("Base")]
    if value not in known:
        raise ConfigError(f"{where}: {unknown('class', str(value), known)}", field=f"{setting}_options")
    # SparseCentersRegularizer needs the number of centres that its loss has.
    defaults = arguments(kind)
    centres = next((merged.get(c, defaults[c]) for c in ("centers_per_class", "sub_centers") if c in defaults), 1)
    sizes = {"num_classes": merged.get("num_classes"), "centers_per_class": int(centres)}
    chosen: type[nn.Module] = classes[value]
    try:
        return chosen(**{key: size for key, size in sizes.items() if key in arguments(chosen)})
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{where}: {value} cannot be created with its defaults ({error})", field=f"{setting}_options"
        ) from error
