"""The published numbers of classes and images of each data set, and how a benchmark differs from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from divcon.data.benchmark import Benchmark, counted
from divcon.data.labeled_set import LabeledSet


@dataclass(frozen=True)
class PublishedCounts:
    """The published numbers of a data set."""

    parts: Mapping[str, tuple[int, int]]
    """The numbers of classes and images of train and test, or of train, query and gallery."""
    recall_at: tuple[int, ...]
    """The k of Recall@k that papers report."""
    images_vary: bool = False
    """Whether paper and lists disagree on the number of images, so that another number is no error."""
    random_galleries: int = 0
    """The number of random galleries with one image per class in the data set's own protocol; 0: it has none."""


def _vehicleid(vehicles: int, images: int) -> PublishedCounts:
    return PublishedCounts(
        MappingProxyType({"train": (13164, 113346), "test": (vehicles, images)}),
        (1, 5),
        images_vary=True,
        random_galleries=10,
    )


PUBLISHED_COUNTS: Mapping[str, PublishedCounts] = MappingProxyType(
    {
        "cub": PublishedCounts(MappingProxyType({"train": (100, 5864), "test": (100, 5924)}), (1, 2, 4, 8)),
        "cars": PublishedCounts(MappingProxyType({"train": (98, 8054), "test": (98, 8131)}), (1, 2, 4, 8)),
        "sop": PublishedCounts(MappingProxyType({"train": (11318, 59551), "test": (11316, 60502)}), (1, 10, 100, 1000)),
        "inshop": PublishedCounts(
            MappingProxyType({"train": (3997, 25882), "query": (3985, 14218), "gallery": (3985, 12612)}),
            (1, 10, 20, 30, 50),
        ),
        "vehicleid-small": _vehicleid(800, 6493),
        "vehicleid-medium": _vehicleid(1600, 13377),
        "vehicleid-large": _vehicleid(2400, 19777),
        # The gallery has two classes that are no persons: the distractors 0000 and the junk -1.
        "market1501": PublishedCounts(
            MappingProxyType({"train": (751, 12936), "query": (750, 3368), "gallery": (752, 19732)}), (1, 5, 10)
        ),
    }
)
"""By the name of the benchmark."""


@dataclass(frozen=True)
class Difference:
    """A number of a benchmark that differs from the published one."""

    part: str
    things: str
    """classes or images."""
    here: int
    published: int
    fails: bool
    """False if the published number is itself in doubt."""

    def __str__(self) -> str:
        less, n = self.here < self.published, abs(self.here - self.published)
        what = counted(n, *(("class", "classes") if self.things == "classes" else ("image",)))
        return (
            f"{self.part} has {self.here:,} {self.things}, and {self.published:,} are published: {what} "
            f"{'missing' if less else 'too many'}"
        )


def differences(benchmark: Benchmark, published: PublishedCounts) -> tuple[Difference, ...]:
    """The numbers of a benchmark that differ from the published ones, by split."""
    result = []
    for part, numbers in published.parts.items():
        here = _numbers(benchmark.parts[part])
        for things, n, expected in zip(("classes", "images"), here, numbers, strict=True):
            if n != expected:
                fails = things == "classes" or not published.images_vary
                result.append(Difference(part, things, n, expected, fails))
    return tuple(result)


def swapped(benchmark: Benchmark, published: PublishedCounts) -> tuple[str, str] | None:
    """Two splits of which each has the published numbers of the other; None if there are none."""
    numbers = {part: _numbers(benchmark.parts[part]) for part in published.parts}
    for one in numbers:
        for other in numbers:
            crosswise = numbers[one] == published.parts[other] and numbers[other] == published.parts[one]
            if one < other and crosswise and published.parts[one] != published.parts[other]:
                return one, other
    return None


def _numbers(images: LabeledSet) -> tuple[int, int]:
    return images.num_classes, len(images)
