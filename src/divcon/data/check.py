"""What is wrong with a data set before anything is trained on it: images that do not decode, copies, zero vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import faiss
import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from divcon.data.benchmark import Benchmark, counted
from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import each_image
from divcon.data.published.counts import Difference, PublishedCounts, differences
from divcon.runtime.context import DEFAULT, Context


@dataclass(frozen=True)
class PartCounts:
    """How much there is in one part of a benchmark."""

    part: str
    """train, validation, and test, or query and gallery where they are two sets."""
    images: int
    classes: int
    smallest: int
    """Images of the smallest class, of the median one, and of the largest; 0 where the part is empty."""
    median: float
    largest: int
    single: tuple[str, ...]
    """The classes of one image."""


@dataclass(frozen=True)
class Found:
    """An image, or a vector, that something was found about."""

    where: str
    """The table and line that name it and its path, or the path alone."""
    path: str
    row: int
    source: str
    label: str
    parts: tuple[str, ...]
    problem: str = ""
    """Of one that does not decode: why."""

    @property
    def side(self) -> str:
        """train, validation or test: what may have no image in common."""
        return self.parts[0] if self.parts[0] in ("train", "validation") else "test"


Group = tuple[Found, ...]


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found, with the images that it was found about, if it is about some."""

    kind: str
    fails: bool
    """Whether it would break training or make a score dishonest."""
    text: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class CheckResult:
    """What `divcon.data.check.check` found. ``ok`` where nothing would break training or make a score dishonest."""

    name: str
    protocol: str
    split_hash: str
    things: str
    """images or vectors."""
    parts: tuple[PartCounts, ...]
    unreadable: tuple[Found, ...]
    """Images that are missing, empty, cut off, or otherwise do not decode."""
    copies: tuple[Group, ...]
    """Images with the same pixels (after decoding, and of the part in the box), or the same vectors, in groups."""
    near: tuple[Group, ...] | None
    """Images that look the same but for size, compression or small changes, in groups; one of each group of exact
    copies stands for it. None: not looked for."""
    zeros: tuple[Found, ...] = ()
    """Vectors that are all zeros, which have no direction."""
    differences: tuple[Difference, ...] = ()
    """Numbers of classes and images that are not those published of the data set."""

    @property
    def across(self) -> tuple[Group, ...]:
        """The copies that are in more than one of train, validation and test."""
        return tuple(group for group in self.copies if _is_across(group))

    @property
    def two_labels(self) -> tuple[Group, ...]:
        """The copies within train, validation or test that have more than one label."""
        return tuple(group for group in self.copies if not _is_across(group) and _has_two_labels(group))

    @property
    def repeated(self) -> tuple[Group, ...]:
        """The copies within train, validation or test that have one label."""
        return tuple(group for group in self.copies if not _is_across(group) and not _has_two_labels(group))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that was found: what differs from the published numbers, then what was found in the images, of both
        what fails first; kinds of which nothing was found are left out."""
        one, many = self.things[:-1], self.things
        # What is most doubtful first: few are shown.
        near = tuple(sorted(self.near or (), key=lambda group: (not _is_across(group), not _has_two_labels(group))))
        across, two = sum(map(_is_across, near)), sum(map(_has_two_labels, near))
        listed: tuple[tuple[str, bool, tuple[Group, ...], str], ...] = (
            (
                "unreadable",
                True,
                tuple((found,) for found in self.unreadable),
                counted(len(self.unreadable), "image does not decode", "images do not decode")
                + ": training and evaluation stop there, unless bad images are skipped",
            ),
            (
                "zeros",
                True,
                tuple((found,) for found in self.zeros),
                counted(len(self.zeros), "vector is all zeros", "vectors are all zeros")
                + ": without a direction there are no neighbours",
            ),
            (
                "across",
                True,
                self.across,
                counted(len(self.across), f"{one} is", f"{many} are")
                + " in two of train, validation and test: the scores are then not of classes never seen",
            ),
            (
                "two_labels",
                True,
                self.two_labels,
                counted(len(self.two_labels), f"{one} has two labels", f"{many} have two labels")
                + ": one of them is wrong",
            ),
            (
                "repeated",
                False,
                self.repeated,
                counted(len(self.repeated), f"{one} is there", f"{many} are there")
                + " more than once: in training an easy pair, in the test a hit for nothing",
            ),
            (
                "near",
                False,
                near,
                counted(len(near), "group looks", "groups look")
                + f" nearly the same, {across:,} of them across train, validation and test, {two:,} under two labels: "
                "look at a few",
            ),
        )
        numbers = sorted(self.differences, key=lambda difference: not difference.fails)
        return (
            *(Finding("published", difference.fails, str(difference), ()) for difference in numbers),
            *(Finding(kind, fails, text, groups) for kind, fails, groups, text in listed if groups),
        )

    @property
    def ok(self) -> bool:
        return not any(finding.fails for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it, with ``ok`` and the names of the findings that fail."""
        fails = list(dict.fromkeys(finding.kind for finding in self.findings if finding.fails))
        return {"ok": self.ok, "fails": fails, **asdict(self)}


def _is_across(group: Group) -> bool:
    return len({found.side for found in group}) > 1


def _has_two_labels(group: Group) -> bool:
    return len({found.label for found in group}) > 1


HASH_BITS = 256
MAX_BITS = 16
"""Near copies differ in at most this many bits of the hash,"""
MAX_DIFFERENCE = 4.0
"""and their thumbnails by at most this much, of 255, on average over places and colours.

Flat drawings are the hardest there is, and near pairs of the bundled icons are nearly all of one class; of parts of
photographs most are found again after JPEG or at half the size, and few where they are cropped or brighter (see
``tests/data/test_check.py``): near copies that are missed are many more than pairs that are none."""

_SIDE, _LOW, _THUMB = 64, 16, 16
_FLAT = 2.0
_QUERIES = 256
_PAIRS = 16384


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image to compare it by."""

    exact: bytes
    """16 bytes, the same where size and RGB pixels are the same."""
    bits: np.ndarray
    """(32,) uint8, the 256 bits of `perceptual_hash`."""
    thumb: np.ndarray
    """(768,) uint8, the image at 16 x 16."""


def fingerprint_of(image: Image.Image) -> Fingerprint:
    """The prints of an RGB image."""
    digest = hashlib.blake2b(np.array(image.size, np.int64).tobytes(), digest_size=16)
    digest.update(image.tobytes())
    small = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    thumb = np.asarray(small.resize((_THUMB, _THUMB), Image.Resampling.BOX)).reshape(-1)
    return Fingerprint(digest.digest(), perceptual_hash(small), thumb)


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """(32,) uint8: of the image's grey values at 64 x 64, which of the 16 x 16 lowest frequencies are above their
    median.

    The hash that is known as pHash, with 256 bits in place of 64, which for flat drawings are too few. The package
    imagehash has it too, and would bring PyWavelets for the sake of these lines.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float32)
    low = np.asarray(dctn(grey, norm="ortho"))[:_LOW, :_LOW].reshape(-1)
    return np.packbits(low > np.median(low))


def fingerprints(images: LabeledSet, *, context: Context = DEFAULT) -> Iterator[Fingerprint | str]:
    """Decode every image once, in order: its print, or what is wrong with it."""
    return each_image(images, fingerprint_of, context=context)


def equal_groups(keys: Sequence[bytes]) -> list[np.ndarray]:
    """The places at which the same key stands twice or more: sorted int64 arrays, ordered by their first place."""
    places: dict[bytes, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    return [np.array(group) for group in places.values() if len(group) > 1]


def near_groups(bits: np.ndarray, thumbs: np.ndarray, context: Context = DEFAULT) -> list[np.ndarray]:
    """Images that are near copies, in groups: sorted int64 arrays, ordered by their first place.

    Two images are near where at most `MAX_BITS` of their hashes differ and their thumbnails by at most
    `MAX_DIFFERENCE` on average; images are in a group where a chain of near ones joins them. Images of one colour are
    in none: their hashes are noise. Every pair is compared, a block of rows at a time.

    Args:
        bits: (N, 32) uint8, of `perceptual_hash`.
        thumbs: (N, 768) uint8.
    """
    n = len(bits)
    plain = thumbs.std(axis=1) < _FLAT if n else np.zeros(0, bool)
    kept = np.flatnonzero(~plain)
    index = faiss.IndexBinaryFlat(HASH_BITS)
    index.add(np.ascontiguousarray(bits[kept]))  # type: ignore[call-arg]
    group = np.arange(len(kept))
    for start in range(0, len(kept), _QUERIES):
        block = np.ascontiguousarray(bits[kept[start : start + _QUERIES]])
        limits, _, found = index.range_search(block, MAX_BITS + 1)  # type: ignore[call-arg]
        left = start + np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
        for pairs in range(0, len(left), _PAIRS):
            group = _joined(group, left[pairs : pairs + _PAIRS], found[pairs : pairs + _PAIRS], thumbs, kept)
        context.progress("compare", min(start + _QUERIES, len(kept)), len(kept))
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    return [kept[members] for members in np.split(order, ends) if len(members) > 1]


def _joined(group: np.ndarray, left: np.ndarray, right: np.ndarray, thumbs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Each image's group, (N,) int64, named by its first member, after those pairs whose thumbnails are near."""
    # What is one group already is not compared again: a thousand copies are a thousand pairs, not a million.
    new = (right > left) & (group[left] != group[right])
    left, right = left[new], right[new]
    difference = thumbs[kept[left]].astype(np.int16) - thumbs[kept[right]]
    near = np.abs(difference).mean(axis=1) <= MAX_DIFFERENCE
    if not near.any():
        return group
    n = len(group)
    edges = np.concatenate([[left[near], right[near]], [np.arange(n), group]], axis=1)
    component = connected_components(coo_matrix((np.ones(edges.shape[1], bool), edges), (n, n)), directed=False)[1]
    return np.unique(component, return_index=True)[1][component]


def check(
    benchmark: Benchmark,
    *,
    near: bool = True,
    published: PublishedCounts | None = None,
    context: Context = DEFAULT,
) -> CheckResult:
    """Decode every image of a benchmark once, count, and compare all with all.

    An image that is in two parts by the table's own word (a row that is query and gallery) is no copy of itself.
    Vectors are copies where they are the same number for number; near copies of vectors are not looked for.

    Args:
        near: also look for images that look nearly the same: see `divcon.data.check`.
        published: what is published of the data set, to compare with.
        context: reports the images decoded, then those compared.
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
        seen: dict[int, Fingerprint] = {}
        for i, result in enumerate(every.fingerprints(context)):
            if isinstance(result, Fingerprint):
                seen[i] = result
            else:
                unreadable.append(every.found(i, problem=result))
            context.progress("decode", i + 1, len(every))
        places = np.fromiter(seen, np.int64, len(seen))
        copies = [places[group] for group in equal_groups([found.exact for found in seen.values()])]
        if near:
            groups = tuple(every.groups(_near(seen, copies, context)))
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


def counts_of(part: str, images: LabeledSet) -> PartCounts:
    """How much there is in a part."""
    classes, sizes = np.unique(images.labels, return_counts=True)
    single = tuple(images.label_names[c] for c in classes[sizes == 1])
    if not len(sizes):
        return PartCounts(part, 0, 0, 0, 0.0, 0, single)
    smallest, median, largest = int(sizes.min()), float(np.median(sizes)), int(sizes.max())
    return PartCounts(part, len(images), len(classes), smallest, median, largest, single)


def _near(seen: dict[int, Fingerprint], copies: list[np.ndarray], context: Context) -> list[np.ndarray]:
    # One of each group of copies stands for it.
    again = {int(i) for group in copies for i in group[1:]}
    places = np.array([i for i in seen if i not in again], np.int64)
    if not len(places):
        return []
    bits = np.stack([seen[i].bits for i in places.tolist()])
    thumbs = np.stack([seen[i].thumb for i in places.tolist()])
    found = near_groups(bits, thumbs, context)
    return [places[group] for group in found]


class _Everything:
    """All images of all parts, each once however many parts it is in, numbered through."""

    def __init__(self, parts: dict[str, LabeledSet]) -> None:
        self.sets: list[tuple[LabeledSet, list[int]]] = []
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

    def blocks(self, size: int = 8192) -> Iterator[LabeledSet]:
        """Some thousand at a time, in order."""
        for images, new in self.sets:
            for start in range(0, len(new), size):
                yield images.subset(np.array(new[start : start + size], np.int64))

    def fingerprints(self, context: Context) -> Iterator[Fingerprint | str]:
        """Of every image, in order."""
        for images, new in self.sets:
            if new:
                yield from fingerprints(images.subset(np.array(new, np.int64)), context=context)

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
