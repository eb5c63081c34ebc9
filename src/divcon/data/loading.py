"""Decode images in worker processes, into batches of pixels that do not depend on the number of workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
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
    """Ignore the signals that end a run (a loader's ``worker_init_fn``).

    A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes; if a worker ended then, the batch that the main
    process still finishes would be lost. A worker ends when the main process ends it, or dies.
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
    """Block SIGTERM while workers are forked, so that threads that PyTorch starts in them block it too."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_death(error: BaseException) -> WorkerError | None:
    """The error to raise if ``error`` is PyTorch's error about a worker that died; else None."""
    text = str(error).strip()
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader worker"):
        return None
    return _killed(text.rstrip("."))


def _killed(how: str) -> WorkerError:
    return WorkerError(
        f"a process that decodes images was killed ({how}): memory may have run out, or shared memory "
        "(/dev/shm); fewer `workers` need less"
    )


def of_workers(loader: Iterable[Any]) -> Generator[Any, None, None]:
    """Iterate over a loader.

    Raises:
        WorkerError: one of its workers was killed.
    """
    with _sigterm_blocked():
        batches = iter(loader)
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                raise worker_death(error) or error from None
            except (ConnectionError, EOFError, FileNotFoundError) as error:
                # The worker died before it passed on its last batch.
                raise _killed(f"its last batch is lost: {error or type(error).__name__}") from None
            yield batch
    finally:
        if not getattr(loader, "persistent_workers", False):
            end_workers(batches)


def end_workers(batches: Iterator[Any] | None) -> None:
    """End the worker processes of a loader's iterator now.

    An iterator that an exception's traceback still holds is freed by the garbage collector, which may end the thread
    that writes to the workers first: each then waits for its timeout of five seconds.
    """
    if (shut_down := getattr(batches, "_shutdown_workers", None)) is not None:
        shut_down()


T = TypeVar("T")

Key = int | tuple[int, int, int]
"""An image to transform as for evaluation (its index), or as for training: (index, epoch, position in the epoch)."""

Pixels = tuple[torch.Tensor, torch.Tensor]
"""(B, C, H, W) uint8, and the (B,) int64 indices of the images."""

OnBad = Callable[[int, str], None]
"""What to do with the index of an image that does not decode, and the message."""


@contextmanager
def reading_ahead(images: LabeledSet, indices: Sequence[int]) -> Iterator[None]:
    """Fetch the images of a batch that are at addresses at once: one after the other, each waits for the storage."""
    urls = images.addresses(indices)
    if not urls:
        yield
        return
    from divcon.runtime import remote

    with remote.read_ahead(urls):
        yield


class Decoded(Dataset):
    """The images of a set, decoded and transformed.

    Images much larger than the transform needs are decoded at a smaller scale, if their format allows it. Augmentation
    depends only on (seed, epoch, position), and does not change the process's generators. If an image does not decode,
    or the user's own transform fails on it, the error is returned, and `batches_of` raises it in the main process:
    raised in a worker, it would be wrapped in the worker's trace.
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

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        """The items of a batch; the loader asks for it where it is there."""
        with reading_ahead(self.images, [key[0] if isinstance(key, tuple) else key for key in keys]):
            return [self[key] for key in keys]

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int] | ImageError | ConfigError:
        index, *draw = key if isinstance(key, tuple) else (key,)
        transform = self.training if draw else self.evaluation
        if transform is None:
            raise ValueError("Decoded: a training key, and no training transform")
        try:
            pixel_range: Any = getattr(transform, "pixel_range", "full")
            channels = getattr(transform, "channels", 3)
            image: Any
            if channels == 3:
                image = self.images.open(index, needed_pixels(transform), pixel_range)
            else:
                image = self.images.open_channels(index, channels, pixel_range)
            return self._transformed(transform, image, draw), index
        except ImageError as error:
            return error
        except ConfigError as error:
            error.args = (f"{self.images.where(index)}: {error}",)
            return error

    def _transformed(self, transform: Transform, image: Any, draw: list[int]) -> torch.Tensor:
        seed = 0
        if draw:
            seed = int(np.random.SeedSequence([self.seed, *draw]).generate_state(1, np.uint64)[0])
        if isinstance(transform, OwnTransform):
            return transform(image, seed)
        if not draw:
            return transform(image)
        state = torch.get_rng_state()
        # torch.manual_seed formats the stack for every device that is not initialised yet, which takes as long as
        # decoding an icon.
        torch.default_generator.manual_seed(seed)
        try:
            return transform(image)
        finally:
            torch.set_rng_state(state)


def needed_pixels(transform: Transform) -> int | None:
    """The pixels that the shorter side of an image must have for the transform; None: images are decoded in full."""
    return getattr(transform, "needs", None)


def collate(items: Sequence[tuple[torch.Tensor, int] | DivconError]) -> Pixels | DivconError:
    """Stack a batch, or return the first error in it."""
    for item in items:
        if isinstance(item, DivconError):
            return item
    pixels, indices = zip(*items, strict=True)  # type: ignore[arg-type]
    return torch.stack(pixels), torch.tensor(indices)


class _Readable(Decoded):
    """As `Decoded`; of an image that does not decode, its index and the message."""

    def __getitem__(self, key: Key) -> Any:
        item = super().__getitem__(key)
        return (key, str(item)) if isinstance(item, ImageError) else item


def _collate_readable(items: Sequence[Any]) -> tuple[Pixels | None, list[tuple[int, str]]] | DivconError:
    """The batch of the images that decode (None: none does), and the indices and messages of the others."""
    is_bad = [isinstance(item, tuple) and isinstance(item[1], str) for item in items]
    bad = [item for item, wrong in zip(items, is_bad, strict=True) if wrong]
    good = [item for item, wrong in zip(items, is_bad, strict=True) if not wrong]
    batch = collate(good) if good else None
    return batch if isinstance(batch, DivconError) else (batch, bad)


def batches_of(loader: DataLoader | Iterable[T | DivconError]) -> Generator[T, None, None]:
    """The batches of a loader whose batches may be errors, as of `collate`.

    Raises:
        ImageError: an image does not decode; the message names it.
        ConfigError: the user's own transform fails, or does not return an image; the message names the image.
        WorkerError: a process that decodes was killed.
    """
    with closing(of_workers(loader)) as batches:
        for batch in batches:
            if isinstance(batch, DivconError):
                raise batch
            yield batch


def evaluation_batches(
    images: LabeledSet,
    transform: Transform,
    *,
    batch_size: int,
    context: Context = DEFAULT,
    pin_memory: bool = False,
    on_bad_image: OnBad | None = None,
) -> Iterator[Pixels]:
    """All images in order, transformed as for evaluation.

    Args:
        on_bad_image: called with the index of each image that does not decode, and the message; these images are in no
            batch. None: they are an error.

    Raises:
        ImageError: an image does not decode; the message names it.
        WorkerError: a process that decodes was killed.
    """
    workers = min(context.workers, -(-len(images) // batch_size))
    key = (id(images), transform, batch_size, workers, pin_memory, on_bad_image is None)
    kept = _kept if workers else None
    loader = None if kept is None else kept.pop(key, None)
    loader = loader or DataLoader(
        Decoded(images, transform) if on_bad_image is None else _Readable(images, transform),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=kept is not None,
        collate_fn=collate if on_bad_image is None else _collate_readable,
        pin_memory=pin_memory,
        worker_init_fn=begin_worker,
        # Its own generator: a loader draws a seed for its workers, which must not change other random numbers.
        generator=torch.Generator(),
    )
    with closing(batches_of(loader)) as batches:
        for batch in batches:
            if on_bad_image is None:
                yield batch
                continue
            pixels, bad = batch
            for index, message in bad:
                on_bad_image(index, message)
            if pixels is not None:
                yield pixels
    if kept is not None:
        kept[key] = loader


_kept: dict[Hashable, DataLoader] | None = None
"""Loaders whose workers wait for the next pass over the same set."""


@contextmanager
def kept_workers() -> Iterator[None]:
    """Keep the worker processes of evaluations for the next pass over the same set, unless they are forked: starting
    them otherwise takes seconds."""
    global _kept
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if _kept is not None or method == "fork":
        yield
        return
    _kept = {}
    try:
        yield
    finally:
        for loader in _kept.values():
            end_workers(loader._iterator)
        _kept = None


class _Each(Dataset, Generic[T]):
    def __init__(self, images: LabeledSet, function: Callable[[LabeledSet, int], T]) -> None:
        self.images = images
        self.function = function

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> list[T | str]:
        with reading_ahead(self.images, indices):
            return [self[index] for index in indices]

    def __getitem__(self, index: int) -> T | str:
        try:
            return self.function(self.images, index)
        except ImageError as error:
            return str(error)


def each(
    images: LabeledSet, function: Callable[[LabeledSet, int], T], *, context: Context = DEFAULT
) -> Iterator[T | str]:
    """Call a function with the set and each index in turn, in worker processes if there are any.

    Yields its results; for an image that does not decode, the message."""
    loader = DataLoader(
        _Each(images, function),
        batch_size=64,
        num_workers=min(context.workers, -(-len(images) // 64)),
        collate_fn=list,
        worker_init_fn=begin_worker,
        generator=torch.Generator(),
    )
    with closing(of_workers(loader)) as batches:
        for batch in batches:
            yield from batch


def each_image(
    images: LabeledSet, function: Callable[[Image.Image], T], *, context: Context = DEFAULT
) -> Iterator[T | str]:
    """Call a function with each decoded image in turn, in worker processes if there are any. Images of more than 8 bits
    a channel are scaled by their own range, so that they can be looked at.

    Yields its results; for an image that does not decode, the message."""
    return each(images, partial(_of_opened, function), context=context)


def _of_opened(function: Callable[[Image.Image], T], images: LabeledSet, index: int) -> T:
    return function(images.open(index, pixel_range="own", any_channels=True))


def _decodes(image: Image.Image) -> None:
    """Do nothing with the decoded image."""


def undecodable(images: LabeledSet, *, context: Context = DEFAULT) -> Iterator[tuple[int, str | None]]:
    """Decode every image once: yields each index with None, or with the message if the image does not decode."""
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
        raise DataError(f"{images.source or 'the data'}: none of the {len(images)} images decodes")
    return images if keep.all() else images.subset(keep)


def only_decodable(data: Benchmark, parts: Sequence[str], context: Context = DEFAULT) -> Benchmark:
    """The benchmark whose ``parts`` (of train, query, gallery, validation) hold only images that decode.

    Raises:
        DataError: none of a part's images decodes.
    """
    checked: dict[int, LabeledSet] = {}
    changed = {}
    for part in parts:
        images = getattr(data, part)
        if images is not None and len(images):
            # Query and gallery may be one set, and must stay one.
            if id(images) not in checked:
                checked[id(images)] = decodable(images, context)
            changed[part] = checked[id(images)]
    return replace(data, **changed)
