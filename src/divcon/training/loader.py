"""One loader for the whole of a training: its workers live from the first epoch to the last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from divcon.config.settings import TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import Decoded, Key, Pixels, batches_of, begin_worker, collate, kept_workers
from divcon.data.transforms import TrainTransform
from divcon.models import EmbeddingModel
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.device import to_device
from divcon.training.sampler import Batch, EpochPlan

KEPT_BYTES = 2**31
"""Images as evaluation sees them are kept from one division to the next, where all take no more than so many bytes: the
14,000 first of 224 pixels."""


class TrainLoader(ABC):
    """Feeds both passes over the training images: as evaluation sees them, to divide, and an epoch's batches, to
    train. A context manager: within, its workers stay, and those of evaluations between epochs."""

    def __init__(self, images: LabeledSet, config: TrainConfig, device: torch.device, context: Context) -> None:
        self.images = images
        self._config = config
        self._device = device
        self._context = context

    def __enter__(self) -> TrainLoader:
        self._kept = kept_workers()
        self._kept.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        self._kept.__exit__(None, None, None)

    def close(self) -> None:  # noqa: B027 — most have nothing to end
        """End the workers."""

    def as_evaluated(self, images: np.ndarray, epoch: int) -> Iterator[Pixels]:
        """The training images at these positions, (n,) int64, in order, as evaluation sees them.

        Raises:
            ImageError: an image does not decode.
        """
        done, size = 0, 2 * self._config.batch_size
        for seen, indices in self._seen([images[i : i + size] for i in range(0, len(images), size)]):
            yield seen, indices
            done += len(indices)
            self._context.progress("divide", done, len(images), epoch=epoch)

    @abstractmethod
    def _seen(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        """These training images, as `divcon.EmbeddingModel.pool` takes them."""

    @abstractmethod
    def batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Batch, Tensor, Tensor]]:
        """Those batches of an epoch, in order, each with its number, what the model sees in this process, and the (B,)
        labels of all of it, on the CPU.

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
    """The loader of a set of images, or of one of vectors."""
    if images.vectors is not None:
        return VectorLoader(images, config, device, context)
    return ImageLoader(model, images, config, device, context)


class _Plan:
    """The batch sampler: a list of batches of keys, swapped between epochs. Workers only ever see keys that they are
    given, so nothing is prefetched across a division."""

    def __init__(self) -> None:
        self.batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _KeptPixels:
    """Decoded images as evaluation sees them. Memory that holds none of them yet is not taken from the system."""

    def __init__(self, num_images: int, size: int) -> None:
        fit = num_images * 3 * size**2 <= KEPT_BYTES
        self._pixels = torch.empty((num_images if fit else 0, 3, size, size), dtype=torch.uint8)
        self._held = np.zeros(num_images, bool)

    def holds(self, images: np.ndarray) -> bool:
        return bool(self._held[images].all())

    def take(self, images: np.ndarray) -> Pixels:
        indices = torch.from_numpy(images)
        return self._pixels[indices], indices

    def keep(self, pixels: Tensor, indices: Tensor) -> None:
        if len(self._pixels):
            self._pixels[indices] = pixels
            self._held[indices.numpy()] = True


@final
class ImageLoader(TrainLoader):
    """Decodes in worker processes, and augments what is trained on. Batches are normalised (B, 3, size, size)
    float32. What is divided is decoded once, where it fits into `KEPT_BYTES`."""

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
        self._plan = _Plan()
        self._kept_pixels = _KeptPixels(len(images), model.image_size)
        training = TrainTransform(
            model.image_size,
            interpolation=model.preprocessing.interpolation,
            min_scale=config.crop_scale,
            flip=images.flip if config.flip is None else config.flip,
        )
        self._loader: DataLoader | None = DataLoader(
            Decoded(images, model.eval_transform, training, config.seed),
            batch_sampler=self._plan,  # type: ignore[arg-type]
            num_workers=context.workers,
            persistent_workers=context.workers > 0,
            collate_fn=collate,
            worker_init_fn=begin_worker,
            pin_memory=device.type == "cuda",
            # Its own generator: a loader draws a seed for its workers, which must not shift dropout and mining.
            generator=torch.Generator(),
        )

    def close(self) -> None:
        self._loader = None
        self._kept_pixels = _KeptPixels(0, 0)

    def _seen(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        kept = self._kept_pixels
        held = [kept.holds(batch) for batch in batches]
        missing = [batch.tolist() for batch, is_held in zip(batches, held, strict=True) if not is_held]
        decoded = self._run(missing) if missing else iter(())
        for batch, is_held in zip(batches, held, strict=True):
            if is_held:
                yield kept.take(batch)
            else:
                pixels, indices = next(decoded)
                kept.keep(pixels, indices)
                yield pixels, indices
        next(decoded, None)  # the loader's workers are at an end of it

    def batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Batch, Tensor, Tensor]]:
        starts = np.cumsum([0, *(len(batch.indices) for batch in plan.batches)])
        keys: list[list[Key]] = []
        for number in numbers:
            indices, start = plan.batches[number].indices, int(starts[number])
            places = range(*self._context.group.images(len(indices)).indices(len(indices)))
            keys.append([(int(indices[place]), epoch, start + place) for place in places])
        for number, (pixels, _) in zip(numbers, self._run(keys), strict=True):
            batch = plan.batches[number]
            images = self._model.normalize(pixels.to(self._device, non_blocking=True))
            if self._config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield number, batch, images, torch.from_numpy(labels[batch.indices])

    def _run(self, batches: list[list[Key]]) -> Iterator[Pixels]:
        assert self._loader is not None, "the loader was closed"
        self._plan.batches = batches
        return batches_of(self._loader)


@final
class VectorLoader(TrainLoader):
    """Takes vectors from memory as they are, without workers or augmentation. Batches are (B, F0) float32."""

    def __init__(
        self, images: LabeledSet, config: TrainConfig, device: torch.device, context: Context = DEFAULT
    ) -> None:
        super().__init__(images, config, device, context)
        assert images.vectors is not None
        self._vectors = images.vectors

    def _seen(self, batches: list[np.ndarray]) -> Iterator[Pixels]:
        for batch in batches:
            yield torch.from_numpy(self._vectors[batch]), torch.from_numpy(batch)

    def batches(
        self, plan: EpochPlan, epoch: int, labels: np.ndarray, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Batch, Tensor, Tensor]]:
        for number in numbers:
            batch = plan.batches[number]
            mine = batch.indices[self._context.group.images(len(batch.indices))]
            vectors = to_device(torch.from_numpy(self._vectors[mine]), self._device)
            yield number, batch, vectors, torch.from_numpy(labels[batch.indices])
