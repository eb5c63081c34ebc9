"""One loader for the whole of a training: its workers live from the first epoch to the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from divcon.config import TrainConfig
from divcon.data.dataset import Decoded, Key, Pixels, batches_of, collate
from divcon.data.image_set import ImageSet
from divcon.data.transforms import train_transform
from divcon.data.workers import begin_worker
from divcon.models import EmbeddingModel
from divcon.train.report import Progress
from divcon.train.sampler import Batch, EpochPlan


class TrainLoader(ABC):
    """Feeds both passes over the training images: as evaluation sees them, to divide, and an epoch's batches, to
    train. A context manager: leaving it ends its workers."""

    def __init__(self, images: ImageSet, config: TrainConfig, device: torch.device) -> None:
        self._images = images
        self._config = config
        self._device = device

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 — most have nothing to end
        """End the workers."""

    def as_evaluated(self, images: np.ndarray, epoch: int, on_progress: Callable[[Progress], None]) -> Iterator[Pixels]:
        """The training images at these positions, (n,) int64, in order, as evaluation sees them.

        Raises:
            ImageError: an image does not decode.
        """
        done, size = 0, 2 * self._config.batch_size
        for seen, indices in self._seen([images[i : i + size] for i in range(0, len(images), size)]):
            yield seen, indices
            done += len(indices)
            on_progress(Progress("divide", epoch, done, len(images)))

    @abstractmethod
    def _seen(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        """These training images, as `divcon.EmbeddingModel.pool` takes them."""

    @abstractmethod
    def batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, first: int = 0
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """An epoch's batches from number ``first`` on, each with what the model sees and the (B,) labels, on the
        device.

        Raises:
            ImageError: an image does not decode.
        """


def create_loader(model: EmbeddingModel, images: ImageSet, config: TrainConfig, device: torch.device) -> TrainLoader:
    """The loader of a set of images, or of one of vectors."""
    if images.vectors is not None:
        return VectorLoader(images, config, device)
    return ImageLoader(model, images, config, device)


class _Plan:
    """The batch sampler: a list of batches of keys, swapped between epochs. Workers only ever see keys that they are
    given, so nothing is prefetched across a division."""

    def __init__(self) -> None:
        self.batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@final
class ImageLoader(TrainLoader):
    """Decodes in worker processes, and augments what is trained on. Batches are normalised (B, 3, size, size)
    float32."""

    def __init__(self, model: EmbeddingModel, images: ImageSet, config: TrainConfig, device: torch.device) -> None:
        super().__init__(images, config, device)
        self._model = model
        self._plan = _Plan()
        training = train_transform(
            model.image_size,
            interpolation=model.preprocessing.interpolation,
            min_scale=config.crop_scale,
            flip=images.flip if config.flip is None else config.flip,
        )
        self._loader: DataLoader | None = DataLoader(
            Decoded(images, model.eval_transform, training, config.seed),
            batch_sampler=self._plan,  # type: ignore[arg-type]
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            collate_fn=collate,
            worker_init_fn=begin_worker,
            pin_memory=device.type == "cuda",
            # Its own generator: a loader draws a seed for its workers, which must not shift dropout and mining.
            generator=torch.Generator(),
        )

    def close(self) -> None:
        self._loader = None

    def _seen(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        return self._run([batch.tolist() for batch in batches])

    def batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, first: int = 0
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        starts = np.cumsum([0, *(len(batch.indices) for batch in plan.batches)])
        keys: list[list[Key]] = [
            [(int(index), epoch, int(start) + place) for place, index in enumerate(batch.indices)]
            for start, batch in zip(starts, plan.batches, strict=False)
        ]
        for batch, (pixels, indices) in zip(plan.batches[first:], self._run(keys[first:]), strict=True):
            images = self._model.normalize(pixels.to(self._device, non_blocking=True))
            if self._config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield batch, images, torch.from_numpy(labels[indices.numpy()]).to(self._device)

    def _run(self, batches: list[list[Key]]) -> Iterator[Pixels]:
        assert self._loader is not None, "the loader was closed"
        self._plan.batches = batches
        return batches_of(self._loader)


@final
class VectorLoader(TrainLoader):
    """Takes vectors from memory as they are, without workers or augmentation. Batches are (B, F0) float32."""

    def __init__(self, images: ImageSet, config: TrainConfig, device: torch.device) -> None:
        super().__init__(images, config, device)
        assert images.vectors is not None
        self._vectors = images.vectors

    def _seen(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        for batch in batches:
            yield torch.from_numpy(self._vectors[batch]), torch.from_numpy(batch)

    def batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, first: int = 0
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        for batch in plan.batches[first:]:
            vectors = torch.from_numpy(self._vectors[batch.indices]).to(self._device)
            yield batch, vectors, torch.from_numpy(labels[batch.indices]).to(self._device)
