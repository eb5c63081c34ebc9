"""Lets ``divcon.train(...)`` be the function and ``divcon.train.loop`` the room of the same name."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[self.__name__.rpartition(".")[2]](*args, **kwargs)


def make_callable(module: str) -> None:
    """Calling the module is calling the function of its own name in it: ``divcon.train(...)`` is
    ``divcon.train.train(...)``."""
    sys.modules[module].__class__ = _CallableModule
