"""Names of a package that are imported at their first use, so that a command imports only what it needs: PyTorch alone
takes a second, and timm and torchvision two more."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def lazy_names(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose public names are in modules that are imported late.

    Args:
        package: its ``__name__``.
        home: the module of each name, within the package, as in ``{"Index": "index"}``; with the name that it has there
            where that is another: ``{"ImageSet": "labeled_set:LabeledSet"}``.
    """

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, other = home[name].partition(":")
        value = getattr(importlib.import_module(f"{package}.{module}"), other or name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return get, names


class LazyModule(ModuleType):
    """A module of another package, imported when one of its names is used: ``timm = LazyModule("timm")``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
