"""Load the training images: one loader for a whole training, whose workers live from the first epoch to the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from divcon.config.image_size import ImageSize, height_width
from divcon.config.settings import TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import Decoded, Key, Pixels, batches_of, begin_worker, collate, end_workers, kept_workers
from divcon.data.transforms import TrainTransform, Transform, create_transform
from divcon.errors import ConfigError
from divcon.models import EmbeddingModel
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.device import to_device
from divcon.training.sampler import Batch, EpochPlan

CACHE_BYTES = 2**31
"""The size of the cache of decoded images for divisions: 14,000 of 224 pixels. If not all images fit, none is
cached."""


class TrainLoader(ABC):
    """Loads the training images: with the evaluation transform, to divide them, and in an epoch's batches, to train. A
    context manager: inside, its workers and those of evaluations between epochs stay alive."""

    def __init__(self, images: LabeledSet, config: TrainConfig, device: torch.device, context: Context) -> None:
        self.images = images
        self._config = config
        self._device = device
        self._context = context

    def __enter__(self) -> TrainLoader:
        self._workers = kept_workers()
        self._workers.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._workers.__exit__(None, None, None)

    def close(self) -> None:  # noqa: B027 — most have no workers
        """End the workers."""

    def evaluation_batches(
        self, images: np.ndarray, epoch: int, *, done: int = 0, total: int | None = None
    ) -> Iterator[Pixels]:
        """Load the training images at these positions, (n,) int64, in order, with the evaluation transform.

        Args:
            done, total: of a division that loads them in several calls: the images done before, and in all.

        Raises:
            ImageError: an image does not decode.
        """
        size = 2 * self._config.batch_size
        total = done + len(images) if total is None else max(total, done + len(images))
        for inputs, indices in self._evaluation_batches([images[i : i + size] for i in range(0, len(images), size)]):
            yield inputs, indices
            done += len(indices)
            self._context.progress("divide", done, total, epoch=epoch)

    @abstractmethod
    def _evaluation_batches(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        """Load these batches, as `divcon.EmbeddingModel.pool` takes them."""

    @abstractmethod
    def training_batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Batch, Tensor, Tensor]]:
        """Load the batches of an epoch with these numbers, in order: each with its number, the model's inputs in this
        process, and the (B,) labels of the whole batch, on the CPU.

        Raises:
            ImageError: an image does not decode.
        """


def create_loader(
    model: EmbeddingModel,
    images: LabeledSet,
    config: TrainConfig,
    device: torch.device,
    context: Context = DEFAULT,
) -> TrainLoader:
    """Create the loader of a set of images, or of vectors."""
    if images.vectors is not None:
        return VectorLoader(images, config, device, context)
    return ImageLoader(model, images, config, device, context)


def training_transform(model: EmbeddingModel, images: LabeledSet, config: TrainConfig) -> Transform:
    """The transform of training images: a random crop, mirroring and `augment`, or the user's own.

    Raises:
        ConfigError: there is no such transform, or it cannot be created; or an augmentation does not take its
            arguments.
    """
    if config.train_transform is not None:
        return create_transform(config.train_transform, model.image_size, "train_transform", model.pixel_range)
    return TrainTransform(
        model.image_size,
        interpolation=model.preprocessing.interpolation,
        min_scale=config.crop_scale,
        flip=images.flip if config.flip is None else config.flip,
        fit=model.fit,
        fill=model.preprocessing.fill,
        augment=config.augment,
        pixel_range=model.pixel_range,
        channels=model.channels,
    )


class _BatchSampler:
    """The batch sampler: batches of keys, replaced for each epoch. Nothing is prefetched across a division, because no
    worker has a key of the next epoch. Keys are created as they are asked for: those of ten million images would take a
    gigabyte."""

    def __init__(self) -> None:
        self.keys: Callable[[int], list[Key]] = lambda _: []
        """The keys of a batch, by its number."""
        self.numbers: Sequence[int] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return map(self.keys, self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


class _PixelCache:
    """Decoded images with the evaluation transform. Its memory is allocated by the system only as it is filled."""

    def __init__(self, num_images: int, size: ImageSize, channels: int = 3) -> None:
        height, width = height_width(size)
        fits = num_images * channels * height * width <= CACHE_BYTES
        self._pixels = torch.empty((num_images if fits else 0, channels, height, width), dtype=torch.uint8)
        self._cached = np.zeros(num_images, bool)

    def has(self, images: np.ndarray) -> bool:
        return bool(self._cached[images].all())

    def get(self, images: np.ndarray) -> Pixels:
        indices = torch.from_numpy(images)
        return self._pixels[indices], indices

    def put(self, pixels: Tensor, indices: Tensor) -> None:
        if len(self._pixels):
            self._pixels[indices] = pixels
            self._cached[indices.numpy()] = True


@final
class ImageLoader(TrainLoader):
    """Decodes images in worker processes, and augments those of training batches. Batches are normalised (B, C, H,
    W) float32. To divide, images are decoded once if they fit into `CACHE_BYTES`."""

    def __init__(
        self,
        model: EmbeddingModel,
        images: LabeledSet,
        config: TrainConfig,
        device: torch.device,
        context: Context = DEFAULT,
    ) -> None:
        super().__init__(images, config, device, context)
        self._model = model
        self._sampler = _BatchSampler()
        self._cache = _PixelCache(len(images), model.image_size, model.channels)
        decoded = Decoded(images, model.eval_transform, training_transform(model, images, config), config.seed)
        tried = config.train_transform is not None or config.augment
        if tried and isinstance(error := decoded[0, 0, 0], ConfigError):
            raise error  # before all images are embedded to be divided
        self._loader: DataLoader | None = DataLoader(
            decoded,
            batch_sampler=self._sampler,  # type: ignore[arg-type]
            num_workers=context.workers,
            persistent_workers=context.workers > 0,
            collate_fn=collate,
            worker_init_fn=begin_worker,
            pin_memory=device.type == "cuda",
            # Its own generator: a loader draws a seed for its workers, which must not shift dropout and mining.
            generator=torch.Generator(),
        )

    def close(self) -> None:
        if self._loader is not None:
            end_workers(self._loader._iterator)
        self._loader = None
        self._cache = _PixelCache(0, 0)

    def _evaluation_batches(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        cached = [self._cache.has(batch) for batch in batches]
        missing = [i for i, is_cached in enumerate(cached) if not is_cached]
        decoded = self._run(missing, lambda i: batches[i].tolist()) if missing else iter(())
        for batch, is_cached in zip(batches, cached, strict=True):
            if is_cached:
                yield self._cache.get(batch)
            else:
                pixels, indices = next(decoded)
                self._cache.put(pixels, indices)
                yield pixels, indices
        next(decoded, None)  # so that the loader's workers finish

    def training_batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Batch, Tensor, Tensor]]:
        def keys(number: int) -> list[Key]:
            indices, start = plan.batches[number].indices, int(plan.batches.starts[number])
            mine = range(*self._context.group.images(len(indices)).indices(len(indices)))
            return [(int(indices[i]), epoch, start + i) for i in mine]

        for number, (pixels, _) in zip(numbers, self._run(numbers, keys), strict=True):
            batch = plan.batches[number]
            images = self._model.normalize(pixels.to(self._device, non_blocking=True))
            if self._config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield number, batch, images, torch.from_numpy(labels[batch.indices])

    def _run(self, numbers: Sequence[int], keys: Callable[[int], list[Key]]) -> Iterator[Pixels]:
        assert self._loader is not None, "the loader was closed"
        self._sampler.numbers, self._sampler.keys = numbers, keys
        return batches_of(self._loader)


@final
class VectorLoader(TrainLoader):
    """Takes vectors from memory, without workers or augmentation. Batches are (B, F0) float32."""

    def __init__(
        self, images: LabeledSet, config: TrainConfig, device: torch.device, context: Context = DEFAULT
    ) -> None:
        super().__init__(images, config, device, context)
        assert images.vectors is not None
        self._vectors = images.vectors

    def _evaluation_batches(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        for batch in batches:
            yield torch.from_numpy(self._vectors[batch]), torch.from_numpy(batch)

    def training_batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Batch, Tensor, Tensor]]:
        for number in numbers:
            batch = plan.batches[number]
            mine = batch.indices[self._context.group.images(len(batch.indices))]
            vectors = to_device(torch.from_numpy(self._vectors[mine]), self._device)
            yield number, batch, vectors, torch.from_numpy(labels[batch.indices])
