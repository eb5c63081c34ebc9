"""Objects of pytorch-metric-learning from plain values, such as a command line or a config file can give."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning.utils.common_functions import TorchInitWrapper
from torch import nn

from divcon.errors import ConfigError, unknown

_MODULES = {
    "distance": distances,
    "reducer": reducers,
    "embedding_regularizer": regularizers,
    "weight_regularizer": regularizers,
}
_NOT_BY_NAME = {
    "BatchedDistance": "wraps another distance",
    "MultipleReducers": "needs reducers for parts of a loss, and divcon makes it where a loss has parts",
    "DoNothingReducer": "does not reduce a loss to one number",
    "ClassWeightedReducer": "needs a tensor of weights",
}


def create(
    kind: type[nn.Module], options: Mapping[str, Any], what: str, sizes: Mapping[str, int] | None = None
) -> nn.Module:
    """An instance of a loss or miner.

    Args:
        kind: its class.
        options: arguments of its constructor, plain values. For an argument that takes an object, the name of its
            class, made with its defaults: ``distance="CosineSimilarity"``, ``reducer="MeanReducer"``,
            ``embedding_regularizer="ZeroMeanRegularizer"``, ``weight_regularizer="RegularFaceRegularizer"``; for
            ``weight_init_func`` the name of a function of ``torch.nn.init``; for a range ``"0.2,0.8"``. Embeddings have
            length one, so that the dot product is the cosine, and a regularizer of lengths (LpRegularizer) is a
            constant.
        what: ``loss`` or ``miner``, for the errors.
        sizes: arguments that are filled in where the class takes them and ``options`` leaves them out.

    Raises:
        ConfigError: an unknown argument or class (the nearest names are suggested), or values it cannot be made of.
    """
    known = arguments(kind)
    for option in options:
        if option not in known:
            raise ConfigError(unknown(f"argument of {kind.__name__}", option, known))
    given = {**{name: size for name, size in (sizes or {}).items() if name in known}, **options}
    values = {name: _value(kind, name, value, given, what) for name, value in given.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{kind.__name__} cannot be made of {given} ({error}); give its arguments as --{what}-options.NAME VALUE"
        ) from error


def arguments(kind: type[nn.Module]) -> dict[str, Any]:
    """The arguments that a class's constructor takes, those it hands on to its bases included, with their defaults
    (`inspect.Parameter.empty` where there is none)."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if base is nn.Module:
            break
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            found = {**{p.name: p.default for p in parameters if p.kind in named}, **found}
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
                break
    return {name: default for name, default in found.items() if name not in ("self", "mat_based_loss")}


def _value(kind: type[nn.Module], name: str, value: Any, given: Mapping[str, Any], what: str) -> Any:
    where = f"--{what}-options.{name} of {kind.__name__}"
    if name in _MODULES:
        return _by_class(kind, name, value, given, where)
    if name == "weight_init_func":
        known = [key for key in vars(nn.init) if key.endswith("_") and not key.startswith("_")]
        if value not in known:
            raise ConfigError(f"{where}: {unknown('function of torch.nn.init', str(value), known)}")
        return TorchInitWrapper(getattr(nn.init, value))
    if name.endswith("_range"):
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            raise ConfigError(f"{where} {value!r}: give two numbers with a comma between, as in 0.2,0.8") from None
        return low, high
    # A size must be whole, and 10.0 is how some writers of files put 10.
    whole = isinstance(value, float) and value.is_integer() and not isinstance(arguments(kind)[name], float)
    return int(value) if whole else value


def _by_class(kind: type[nn.Module], name: str, value: Any, given: Mapping[str, Any], where: str) -> nn.Module:
    classes: dict[str, Any] = {key: item for key, item in vars(_MODULES[name]).items() if inspect.isclass(item)}
    if value in _NOT_BY_NAME and value in classes:
        raise ConfigError(f"{where}: {value} {_NOT_BY_NAME[value]}")
    known = [key for key in classes if key not in _NOT_BY_NAME and not key.startswith("Base")]
    if value not in known:
        raise ConfigError(f"{where}: {unknown('class', str(value), known)}")
    # SparseCentersRegularizer is made for as many centres as its loss has.
    defaults = arguments(kind)
    centres = next((given.get(c, defaults[c]) for c in ("centers_per_class", "sub_centers") if c in defaults), 1)
    sizes = {"num_classes": given.get("num_classes"), "centers_per_class": int(centres)}
    made: type[nn.Module] = classes[value]
    try:
        return made(**{key: size for key, size in sizes.items() if key in arguments(made)})
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{where}: {value} cannot be made with its defaults ({error})") from error
