"""Data: readers that give a `LabeledSet` or a `Benchmark`, and decoding in worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.data.benchmark import Benchmark
    from divcon.data.labeled_set import LabeledSet

__all__ = ["Benchmark", "LabeledSet"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Benchmark": "benchmark",
        "LabeledSet": "labeled_set",
    },
)
