"""Data: readers that give a `LabeledSet` or a `Benchmark`, and decoding in worker processes."""

from __future__ import annotations

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet

__all__ = ["Benchmark", "LabeledSet"]
