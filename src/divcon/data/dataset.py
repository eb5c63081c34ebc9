"""Decoding in worker processes: images in, batches of pixels out, the same whatever the number of workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from divcon.data.image_set import Benchmark, ImageSet
from divcon.data.transforms import Transform
from divcon.data.workers import begin_worker, of_workers
from divcon.errors import DataError, ImageError

T = TypeVar("T")

Key = int | tuple[int, int, int]
"""An image to see as evaluation does (its index), or as training does: (index, epoch, position in the epoch)."""

Pixels = tuple[torch.Tensor, torch.Tensor]
"""(B, 3, size, size) uint8, and the (B,) int64 indices of the images."""


class Decoded(Dataset):
    """The images of a set, decoded and transformed.

    What is much larger than the transform needs is decoded at a smaller scale, where its format allows it. Augmentation
    draws from (seed, epoch, position) alone, and leaves the process's generator as it was. An image that
    does not decode is returned as its `ImageError`, to be raised in the main process by `batches_of`: raised in a
    worker it would come wrapped in the worker's trace.
    """

    def __init__(
        self, images: ImageSet, evaluation: Transform, training: Transform | None = None, seed: int = 0
    ) -> None:
        self.images = images
        self.evaluation = evaluation
        self.training = training
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int] | ImageError:
        try:
            if not isinstance(key, tuple):
                return self.evaluation(self.images.open(key, _needs(self.evaluation))), key
            index, epoch, position = key
            image = self.images.open(index, _needs(self.training))
        except ImageError as error:
            return error
        if self.training is None:
            raise ValueError("Decoded: a training key, and no training transform")
        state = torch.get_rng_state()
        words = np.random.SeedSequence([self.seed, epoch, position]).generate_state(1, np.uint64)
        # torch.manual_seed formats the stack for every device not yet started: as long as decoding an icon takes.
        torch.default_generator.manual_seed(int(words[0]))
        try:
            return self.training(image), index
        finally:
            torch.set_rng_state(state)


def _needs(transform: Transform | None) -> int | None:
    """Of how many pixels the shorter side must be for the transform; None: it does not say."""
    return getattr(transform, "needs", None)


def collate(items: Sequence[tuple[torch.Tensor, int] | ImageError]) -> Pixels | ImageError:
    """Stack a batch; one image that does not decode stands for the whole."""
    for item in items:
        if isinstance(item, ImageError):
            return item
    pixels, indices = zip(*items, strict=True)  # type: ignore[arg-type]
    return torch.stack(pixels), torch.tensor(indices)


def batches_of(loader: DataLoader | Iterable[Pixels | ImageError]) -> Iterator[Pixels]:
    """The batches of a loader that collates with `collate`.

    Raises:
        ImageError: an image does not decode; the message names it.
        WorkerError: a process that decodes was killed.
    """
    for batch in of_workers(loader):
        if isinstance(batch, ImageError):
            raise ImageError(*batch.args)
        yield batch


def evaluation_batches(
    images: ImageSet, transform: Transform, *, batch_size: int, workers: int, pin_memory: bool = False
) -> Iterator[Pixels]:
    """All images in order, as evaluation sees them.

    Raises:
        ImageError: an image does not decode; the message names it.
        WorkerError: a process that decodes was killed.
    """
    workers = min(workers, -(-len(images) // batch_size))
    key = (id(images), transform, batch_size, workers, pin_memory)
    kept = _kept if workers else None
    loader = None if kept is None else kept.pop(key, None)
    loader = loader or DataLoader(
        Decoded(images, transform),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=kept is not None,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=begin_worker,
        # Its own generator: a loader draws a seed for its workers, which must not shift anybody's random numbers.
        generator=torch.Generator(),
    )
    yield from batches_of(loader)
    if kept is not None:
        kept[key] = loader


_kept: dict[Hashable, DataLoader] | None = None
"""The loaders whose workers wait for another pass over the same set."""


@contextmanager
def kept_workers() -> Iterator[None]:
    """Within, the processes that have decoded a set for evaluation wait for the next pass over it, where starting them
    takes seconds: where they are not forked."""
    global _kept
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if _kept is not None or method == "fork":
        yield
        return
    _kept = {}
    try:
        yield
    finally:
        _kept = None


class _Each(Dataset, Generic[T]):
    def __init__(self, images: ImageSet, function: Callable[[ImageSet, int], T]) -> None:
        self.images = images
        self.function = function

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> T | str:
        try:
            return self.function(self.images, index)
        except ImageError as error:
            return str(error)


def each(images: ImageSet, function: Callable[[ImageSet, int], T], *, workers: int = 0) -> Iterator[T | str]:
    """What the function makes of the set and each index in turn, or what is wrong with an image in words; it is called
    where images are decoded, in worker processes if there are any."""
    loader = DataLoader(
        _Each(images, function),
        batch_size=64,
        num_workers=min(workers, -(-len(images) // 64)),
        collate_fn=list,
        worker_init_fn=begin_worker,
        generator=torch.Generator(),
    )
    for batch in of_workers(loader):
        yield from batch


def each_image(images: ImageSet, function: Callable[[Image.Image], T], *, workers: int = 0) -> Iterator[T | str]:
    """Decode every image once, in order: yields what the function, which is run where it is decoded, makes of it, or
    what is wrong with it in words."""
    return each(images, partial(_of_opened, function), workers=workers)


def _of_opened(function: Callable[[Image.Image], T], images: ImageSet, index: int) -> T:
    return function(images.open(index))


def _decodes(image: Image.Image) -> None:
    """Nothing is made of it: that it decodes is enough."""


def undecodable(images: ImageSet, *, workers: int = 0) -> Iterator[tuple[int, str | None]]:
    """Decode every image once: yields each index with None, or with what is wrong with that image."""
    return enumerate(each_image(images, _decodes, workers=workers))


def decodable(
    images: ImageSet,
    workers: int,
    warn: Callable[[str], None],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImageSet:
    """The images that decode; ``warn`` names the others. Every image is decoded once; vectors are there as they are.

    Raises:
        DataError: none decodes.
    """
    if images.vectors is not None:
        return images
    keep = np.ones(len(images), bool)
    for index, message in undecodable(images, workers=workers):
        on_progress(index + 1, len(images))
        if message is not None:
            keep[index] = False
            warn(f"left out: {message}")
    if not keep.any():
        raise DataError(f"{images.source or 'the images given'}: none of the {len(images)} images decodes")
    return images if keep.all() else images.subset(keep)


def only_decodable(
    data: Benchmark,
    parts: Sequence[str],
    workers: int,
    warn: Callable[[str], None],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Benchmark:
    """The benchmark whose ``parts`` (of train, query, gallery, validation) hold only images that decode.

    Raises:
        DataError: none of a part's images decodes.
    """
    found: dict[int, ImageSet] = {}
    changed = {}
    for part in parts:
        images = getattr(data, part)
        if images is not None and len(images):
            # Query and gallery may be one set, and must stay one.
            if id(images) not in found:
                found[id(images)] = decodable(images, workers, warn, on_progress)
            changed[part] = found[id(images)]
    return replace(data, **changed)
