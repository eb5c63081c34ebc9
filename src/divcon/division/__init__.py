"""Divide: arrays in, a `Division` out. ``divcon.divide(...)`` is the function `divide`."""

from __future__ import annotations

from divcon.division.division import Division, divide
from divcon.division.kmeans import KMeans, kmeans

__all__ = ["Division", "KMeans", "divide", "kmeans"]
