"""Divide the training images among the learners: arrays in, a `Division` out."""

from __future__ import annotations

from divcon.division.division import Division, divide

__all__ = ["Division", "divide"]
