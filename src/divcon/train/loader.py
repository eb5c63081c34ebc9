"""One loader for the whole of a training: its workers live from the first epoch to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from divcon.config import TrainConfig
from divcon.data.dataset import Decoded, Key, Pixels, batches_of, collate
from divcon.data.image_set import ImageSet
from divcon.data.transforms import train_transform
from divcon.models import EmbeddingModel
from divcon.train.report import Progress
from divcon.train.sampler import Batch, EpochPlan


class _Plan:
    """The batch sampler: a list of batches of keys, swapped between epochs. Workers only ever see keys that they are
    given, so nothing is prefetched across a division."""

    def __init__(self) -> None:
        self.batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class TrainLoader:
    """Feeds both passes over the training images: all of them as evaluation sees them, to divide, and an epoch's
    batches with augmentation, to train. A context manager: leaving it ends the workers."""

    def __init__(self, model: EmbeddingModel, images: ImageSet, config: TrainConfig, device: torch.device) -> None:
        self._images = images
        self._model = model
        self._config = config
        self._device = device
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
            pin_memory=device.type == "cuda",
            # Its own generator: a loader draws a seed for its workers, which must not shift dropout and mining.
            generator=torch.Generator(),
        )

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._loader = None

    def all_images(self, epoch: int, on_progress: Callable[[Progress], None]) -> Iterator[Pixels]:
        """All training images in order, as evaluation sees them.

        Raises:
            ImageError: an image does not decode.
        """
        n, size = len(self._images), 2 * self._config.batch_size
        done = 0
        for pixels, indices in self._run([list(range(i, min(i + size, n))) for i in range(0, n, size)]):
            yield pixels, indices
            done += len(indices)
            on_progress(Progress("divide", epoch, done, n))

    def batches(self, plan: EpochPlan, epoch: int, labels: np.ndarray) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """An epoch's batches, each with its normalised (B, 3, size, size) float32 images and (B,) labels on the device.

        Raises:
            ImageError: an image does not decode.
        """
        starts = np.cumsum([0, *(len(batch.indices) for batch in plan.batches)])
        keys: list[list[Key]] = [
            [(int(index), epoch, int(start) + place) for place, index in enumerate(batch.indices)]
            for start, batch in zip(starts, plan.batches, strict=False)
        ]
        for batch, (pixels, indices) in zip(plan.batches, self._run(keys), strict=True):
            images = self._model.normalize(pixels.to(self._device, non_blocking=True))
            if self._config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield batch, images, torch.from_numpy(labels[indices.numpy()]).to(self._device)

    def _run(self, batches: list[list[Key]]) -> Iterator[Pixels]:
        assert self._loader is not None, "the loader was closed"
        self._plan.batches = batches
        return batches_of(self._loader)
