"""Decoding in worker processes: images in, batches of pixels out, the same whatever the number of workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.data.transforms import OwnTransform, Transform
from divcon.errors import ConfigError, DataError, DivconError, ImageError, WorkerError
from divcon.runtime.context import DEFAULT, Context


def begin_worker(number: int) -> None:
    """What a worker of a loader does first (``worker_init_fn``).

    A terminal sends Ctrl-C, and a scheduler its SIGTERM, to all processes at once: a worker that died of it would take
    the batch with it that the main process wants to finish. It ends when the main process says so, or dies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_if_parent_asks, daemon=True).start()


def _end_if_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """For what forks the workers: threads that PyTorch starts in them before `begin_worker` have it blocked, too."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_death(error: BaseException) -> WorkerError | None:
    """What a person should know, where ``error`` is PyTorch's about a worker that died; else None."""
    text = str(error).strip()
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader worker"):
        return None
    return _killed(text.rstrip("."))


def _killed(how: str) -> WorkerError:
    return WorkerError(
        f"a process that decodes images was killed ({how}): memory may have run out, or shared memory "
        "(/dev/shm); fewer --workers need less"
    )


def of_workers(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader gives.

    Raises:
        WorkerError: one of its workers was killed.
    """
    with _sigterm_blocked():
        batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            raise worker_death(error) or error from None
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # It died with a batch that was done but not handed over.
            raise _killed(f"its last batch is lost: {error or type(error).__name__}") from None
        yield batch


T = TypeVar("T")

Key = int | tuple[int, int, int]
"""An image to see as evaluation does (its index), or as training does: (index, epoch, position in the epoch)."""

Pixels = tuple[torch.Tensor, torch.Tensor]
"""(B, 3, size, size) uint8, and the (B,) int64 indices of the images."""


class Decoded(Dataset):
    """The images of a set, decoded and transformed.

    What is much larger than the transform needs is decoded at a smaller scale, where its format allows it. Augmentation
    draws from (seed, epoch, position) alone, and leaves the process's generators as they were. The error of an image
    that does not decode, or that a transform of the user's own fails on, is returned, to be raised in the main process
    by `batches_of`: raised in a worker it would come wrapped in the worker's trace.
    """

    def __init__(
        self, images: LabeledSet, evaluation: Transform, training: Transform | None = None, seed: int = 0
    ) -> None:
        self.images = images
        self.evaluation = evaluation
        self.training = training
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int] | ImageError | ConfigError:
        index, *draw = key if isinstance(key, tuple) else (key,)
        transform = self.training if draw else self.evaluation
        if transform is None:
            raise ValueError("Decoded: a training key, and no training transform")
        try:
            image = self.images.open(index, needed_pixels(transform))
            return self._transformed(transform, image, draw), index
        except ImageError as error:
            return error
        except ConfigError as error:
            error.args = (f"{self.images.where(index)}: {error}",)
            return error

    def _transformed(self, transform: Transform, image: Image.Image, draw: list[int]) -> torch.Tensor:
        seed = 0
        if draw:
            seed = int(np.random.SeedSequence([self.seed, *draw]).generate_state(1, np.uint64)[0])
        if isinstance(transform, OwnTransform):
            return transform(image, seed)
        if not draw:
            return transform(image)
        state = torch.get_rng_state()
        # torch.manual_seed formats the stack for every device not yet started: as long as decoding an icon takes.
        torch.default_generator.manual_seed(seed)
        try:
            return transform(image)
        finally:
            torch.set_rng_state(state)


def needed_pixels(transform: Transform) -> int | None:
    """The pixels that the shorter side of an image must have for the transform; None: images are decoded in full."""
    return getattr(transform, "needs", None)


def collate(items: Sequence[tuple[torch.Tensor, int] | DivconError]) -> Pixels | DivconError:
    """Stack a batch; the error of one image stands for the whole."""
    for item in items:
        if isinstance(item, DivconError):
            return item
    pixels, indices = zip(*items, strict=True)  # type: ignore[arg-type]
    return torch.stack(pixels), torch.tensor(indices)


def batches_of(loader: DataLoader | Iterable[Pixels | DivconError]) -> Iterator[Pixels]:
    """The batches of a loader that collates with `collate`.

    Raises:
        ImageError: an image does not decode; the message names it.
        ConfigError: a transform of the user's own fails, or returns what is no image; the message names the image.
        WorkerError: a process that decodes was killed.
    """
    for batch in of_workers(loader):
        if isinstance(batch, DivconError):
            raise batch
        yield batch


def evaluation_batches(
    images: LabeledSet, transform: Transform, *, batch_size: int, context: Context = DEFAULT, pin_memory: bool = False
) -> Iterator[Pixels]:
    """All images in order, as evaluation sees them.

    Raises:
        ImageError: an image does not decode; the message names it.
        WorkerError: a process that decodes was killed.
    """
    workers = min(context.workers, -(-len(images) // batch_size))
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
    def __init__(self, images: LabeledSet, function: Callable[[LabeledSet, int], T]) -> None:
        self.images = images
        self.function = function

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> T | str:
        try:
            return self.function(self.images, index)
        except ImageError as error:
            return str(error)


def each(
    images: LabeledSet, function: Callable[[LabeledSet, int], T], *, context: Context = DEFAULT
) -> Iterator[T | str]:
    """What the function makes of the set and each index in turn, or what is wrong with an image in words; it is called
    where images are decoded, in worker processes if there are any."""
    loader = DataLoader(
        _Each(images, function),
        batch_size=64,
        num_workers=min(context.workers, -(-len(images) // 64)),
        collate_fn=list,
        worker_init_fn=begin_worker,
        generator=torch.Generator(),
    )
    for batch in of_workers(loader):
        yield from batch


def each_image(
    images: LabeledSet, function: Callable[[Image.Image], T], *, context: Context = DEFAULT
) -> Iterator[T | str]:
    """Decode every image once, in order: yields what the function, which is run where it is decoded, makes of it, or
    what is wrong with it in words."""
    return each(images, partial(_of_opened, function), context=context)


def _of_opened(function: Callable[[Image.Image], T], images: LabeledSet, index: int) -> T:
    return function(images.open(index))


def _decodes(image: Image.Image) -> None:
    """Nothing is made of it: that it decodes is enough."""


def undecodable(images: LabeledSet, *, context: Context = DEFAULT) -> Iterator[tuple[int, str | None]]:
    """Decode every image once: yields each index with None, or with what is wrong with that image."""
    return enumerate(each_image(images, _decodes, context=context))


def decodable(images: LabeledSet, context: Context = DEFAULT) -> LabeledSet:
    """The images that decode; a warning names each that does not. Every image is decoded once; vectors stay.

    Raises:
        DataError: none decodes.
    """
    if images.vectors is not None:
        return images
    keep = np.ones(len(images), bool)
    for index, message in undecodable(images, context=context):
        context.progress("decode", index + 1, len(images))
        if message is not None:
            keep[index] = False
            context.warn(f"left out: {message}")
    if not keep.any():
        raise DataError(f"{images.source or 'the images given'}: none of the {len(images)} images decodes")
    return images if keep.all() else images.subset(keep)


def only_decodable(data: Benchmark, parts: Sequence[str], context: Context = DEFAULT) -> Benchmark:
    """The benchmark whose ``parts`` (of train, query, gallery, validation) hold only images that decode.

    Raises:
        DataError: none of a part's images decodes.
    """
    found: dict[int, LabeledSet] = {}
    changed = {}
    for part in parts:
        images = getattr(data, part)
        if images is not None and len(images):
            # Query and gallery may be one set, and must stay one.
            if id(images) not in found:
                found[id(images)] = decodable(images, context)
            changed[part] = found[id(images)]
    return replace(data, **changed)
