"""Divide: arrays in, a `Division` out. ``divcon.divide(...)`` is the function `divide`."""

from divcon.callable_module import make_callable
from divcon.divide.division import Division, divide
from divcon.divide.kmeans import KMeans, kmeans

__all__ = ["Division", "KMeans", "divide", "kmeans"]

make_callable(__name__)
