"""What is wrong with a data set before anything is trained on it: images that do not decode, copies, zero vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from divcon.data.check_result import CheckResult, Found, Group, PartCounts
from divcon.data.copies import Print, equal_groups, near_groups, prints
from divcon.data.image_set import Benchmark, ImageSet
from divcon.data.published.counts import Published, differences

Stage = Literal["decoding", "comparing"]
OnProgress = Callable[[Stage, int, int], None]


def check(
    benchmark: Benchmark,
    *,
    near: bool = True,
    published: Published | None = None,
    workers: int = 0,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> CheckResult:
    """Decode every image of a benchmark once, count, and compare all with all.

    An image that is in two parts by the table's own word (a row that is query and gallery) is no copy of itself.
    Vectors are copies where they are the same number for number; near copies of vectors are not looked for.

    Args:
        near: also look for images that look nearly the same: see `divcon.data.copies`.
        published: what is published of the data set, to compare with.
        workers: processes that decode.
        on_progress: called with the stage, and how much of how much is done.
    """
    every = _Everything(benchmark.parts)
    vectors = benchmark.query.vectors is not None
    unreadable: list[Found] = []
    zeros: list[Found] = []
    groups: tuple[Group, ...] | None = None
    if vectors:
        keys: list[bytes] = []
        for block in every.blocks():
            # Zero has two signs, and they are equal.
            numbers = np.ascontiguousarray(block.vectors) + np.float32(0)
            zeros += [every.found(len(keys) + int(i)) for i in np.flatnonzero(~numbers.any(axis=1))]
            keys += [hashlib.blake2b(vector.tobytes(), digest_size=16).digest() for vector in numbers]
        copies = equal_groups(keys)
    else:
        seen: dict[int, Print] = {}
        for i, result in enumerate(every.prints(workers)):
            if isinstance(result, Print):
                seen[i] = result
            else:
                unreadable.append(every.found(i, problem=result))
            on_progress("decoding", i + 1, len(every))
        places = np.fromiter(seen, np.int64, len(seen))
        copies = [places[group] for group in equal_groups([found.exact for found in seen.values()])]
        if near:
            groups = tuple(every.groups(_near(seen, copies, on_progress)))
    return CheckResult(
        benchmark.name,
        benchmark.protocol,
        benchmark.split_hash,
        "vectors" if vectors else "images",
        tuple(counts_of(part, images) for part, images in benchmark.parts.items()),
        tuple(unreadable),
        tuple(every.groups(copies)),
        groups,
        tuple(zeros),
        () if published is None else differences(benchmark, published),
    )


def counts_of(part: str, images: ImageSet) -> PartCounts:
    """How much there is in a part."""
    classes, sizes = np.unique(images.labels, return_counts=True)
    single = tuple(images.label_names[c] for c in classes[sizes == 1])
    if not len(sizes):
        return PartCounts(part, 0, 0, 0, 0.0, 0, single)
    smallest, median, largest = int(sizes.min()), float(np.median(sizes)), int(sizes.max())
    return PartCounts(part, len(images), len(classes), smallest, median, largest, single)


def _near(seen: dict[int, Print], copies: list[np.ndarray], on_progress: OnProgress) -> list[np.ndarray]:
    # One of each group of copies stands for it.
    again = {int(i) for group in copies for i in group[1:]}
    places = np.array([i for i in seen if i not in again], np.int64)
    if not len(places):
        return []
    bits = np.stack([seen[i].bits for i in places.tolist()])
    thumbs = np.stack([seen[i].thumb for i in places.tolist()])
    found = near_groups(bits, thumbs, lambda done, total: on_progress("comparing", done, total))
    return [places[group] for group in found]


class _Everything:
    """All images of all parts, each once however many parts it is in, numbered through."""

    def __init__(self, parts: dict[str, ImageSet]) -> None:
        self.sets: list[tuple[ImageSet, list[int]]] = []
        self.parts: list[list[str]] = []
        number: dict[tuple[str, int], int] = {}
        for part, images in parts.items():
            new = []
            for i, row in enumerate(images.rows.tolist()):
                known = number.setdefault((images.source, row), len(number))
                if known == len(self.parts):
                    self.parts.append([])
                    new.append(i)
                self.parts[known].append(part)
            self.sets.append((images, new))
        self.starts = np.cumsum([0] + [len(new) for _, new in self.sets])

    def __len__(self) -> int:
        return len(self.parts)

    def blocks(self, size: int = 8192) -> Iterator[ImageSet]:
        """Some thousand at a time, in order."""
        for images, new in self.sets:
            for start in range(0, len(new), size):
                yield images.subset(np.array(new[start : start + size], np.int64))

    def prints(self, workers: int) -> Iterator[Print | str]:
        """Of every image, in order."""
        for images, new in self.sets:
            if new:
                yield from prints(images.subset(np.array(new, np.int64)), workers=workers)

    def groups(self, groups: list[np.ndarray]) -> Iterator[Group]:
        """The same groups, with each image found."""
        for group in groups:
            yield tuple(self.found(int(i)) for i in group)

    def found(self, number: int, problem: str = "") -> Found:
        """What stands for an image in the result."""
        k = int(np.searchsorted(self.starts, number, side="right")) - 1
        images, new = self.sets[k]
        i = new[number - int(self.starts[k])]
        where, label = images.where(i), images.label_name(i)
        problem = problem.removeprefix(f"{where}: ")
        return Found(
            where, images.path(i), int(images.rows[i]), images.source, label, tuple(self.parts[number]), problem
        )
