"""Data: readers that give an `ImageSet` or a `Benchmark`, and decoding in worker processes."""

from divcon.data.image_set import Benchmark, ImageSet

__all__ = ["Benchmark", "ImageSet"]
