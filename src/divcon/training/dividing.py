"""Divide the training images within the memory budget: all features at once where they fit, otherwise as they are
embedded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from divcon.config.memory_size import memory_in_words, size_of_bytes
from divcon.config.settings import TrainConfig
from divcon.division import Division, divide
from divcon.division.streamed import POINTS_PER_CLUSTER, bytes_of_points, divide_streamed, points_within
from divcon.errors import ConfigError
from divcon.models import EmbeddingModel
from divcon.models.inputs import check_finite
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.distributed import ProcessGroup
from divcon.runtime.memory import budget_in_bytes
from divcon.training.feature_bank import FeatureBank
from divcon.training.loader import TrainLoader
from divcon.training.precision import Precision


class Divider:
    """Divides the training images of a run.

    Args:
        labels: (N,) int64, from 0.
        budget: bytes that dividing may take in this process (`division_budget`); 0: no limit.

    Raises:
        ConfigError: the feature bank, or the least sample, takes more.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        loader: TrainLoader,
        bank: FeatureBank,
        labels: np.ndarray,
        config: TrainConfig,
        budget: int,
        precision: Precision,
        device: torch.device,
        context: Context = DEFAULT,
    ) -> None:
        self._model, self._loader, self._bank, self._labels = model, loader, bank, labels
        self._config, self._precision, self._device, self._context = config, precision, device, context
        clusters, width = model.head.max_learners, model.num_features
        self._in_memory = not budget or bytes_of_points(len(labels), width, clusters) <= budget
        self._max_points = points_within(budget, width, clusters)
        self.sampled = ""
        """Why k-means is fitted on a sample; empty where it is not."""
        by_class = config.divide_by == "class"
        points, what = (int(labels.max()) + 1, "classes") if by_class else (len(labels), "images")
        if self._in_memory or config.divide_by not in ("image", "class") or clusters == 1:
            return
        given = f"`division_memory` {memory_in_words(config.division_memory)}"
        given += f" ({size_of_bytes(budget)} in each process)" if config.division_memory <= 1 else ""
        if config.divide_on == "bank":
            needed = size_of_bytes(bytes_of_points(len(labels), width, clusters))
            raise ConfigError(
                f"`divide_on=bank` keeps the features of all {len(labels):,} training images, and dividing them takes "
                f"{needed}: more than {given}; use `divide_on=fresh`, which embeds them a few at a time, or allow more",
                field=("divide_on", "division_memory"),
            )
        least = min(points, POINTS_PER_CLUSTER * clusters)
        if self._max_points < least:
            needed = size_of_bytes(bytes_of_points(least, width, clusters))
            raise ConfigError(
                f"{given} holds {self._max_points:,} features of {width:,} numbers, and k-means for {clusters} "
                f"learners needs {least:,}, {needed}; allow more, or use fewer `num_learners`",
                field=("division_memory", "num_learners"),
            )
        if self._max_points < points:
            self.sampled = (
                f"k-means is fitted on {self._max_points:,} of {points:,} {what}, drawn at random, as many as {given} "
                "holds; each other goes to the nearest centroid"
            )

    def divide(self, epoch: int, previous: Division | None, *, double: bool) -> Division:
        """Divide all training images by the features that the model computes now; all processes call this at once.

        Raises:
            DataError: they cannot be divided.
            ImageError: an image does not decode.
            NonFiniteError: a feature is NaN or infinite; the message names the images.
        """
        options = {
            "by": self._config.divide_by,
            "seed": (self._config.seed, epoch),
            "tries": self._config.division_tries,
            "previous": previous,
            "double": double,
            "device": self._device,
            "context": self._context,
        }
        learners = self._model.num_learners
        if self._in_memory:
            with self._precision.autocast():
                features = self._bank.features_to_divide(self._model, self._loader, epoch, self._context)
            features = self._clustered(features)
            return divide(features, self._labels, learners, **options)
        done = 0

        def embed(images: np.ndarray) -> Iterator[np.ndarray]:
            nonlocal done
            batches = self._loader.evaluation_batches(images, epoch, done=done, total=self._in_all)
            for features, rows in self._pooled(batches):
                check_finite(features, self._loader.images, f"epoch {epoch}, dividing", rows)
                yield self._clustered(features)
            done += len(images)

        return divide_streamed(embed, self._labels, learners, max_points=self._max_points, **options)

    def _clustered(self, features: np.ndarray) -> np.ndarray:
        """What k-means clusters of pooled features: these, or the full embedding."""
        return self._model.embed(features) if self._config.divide_on == "embedding" else features

    @property
    def _in_all(self) -> int:
        """About how many images this process embeds."""
        return -(-len(self._labels) // self._context.group.world_size)

    def _pooled(self, batches: Iterator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pooled = self._model.pooled(batches)
        while True:
            with self._precision.autocast():  # not while the caller has a batch
                batch = next(pooled, None)
            if batch is None:
                return
            yield batch


def division_budget(config: TrainConfig, group: ProcessGroup, device: torch.device) -> int:
    """The bytes that dividing may take in each process of a training that starts now; 0: no limit. A share of the
    memory is at most that share of the GPU's, where k-means runs on one."""
    on_gpu = device.type == "cuda" and config.divide_by == "image"
    return budget_in_bytes(
        config.division_memory, group, torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    )
