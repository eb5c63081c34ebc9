"""What the tests of metrics share: another implementation of those of re-identification."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def torchreid() -> Callable[[str], ModuleType]:
    """A file of torchreid by its path in the package, without the rest, which wants data sets and models."""
    package = importlib.util.find_spec("torchreid")
    assert package is not None and package.submodule_search_locations, "torchreid, of the extra dev, is not installed"
    folder = Path(package.submodule_search_locations[0])

    def load(path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(path).stem, folder / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its compiled half is missing, and it says so
            spec.loader.exec_module(module)
        return module

    return load
