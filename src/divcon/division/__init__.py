"""Divide the training images among the learners: arrays in, a `Division` out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.division.division import Division, divide

__all__ = ["Division", "divide"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Division": "division",
        "divide": "division",
    },
)
