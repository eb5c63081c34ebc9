"""Check a data set before training: images that do not decode, copies, near copies, zero vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from divcon.data.benchmark import Benchmark, counted
from divcon.data.image_files import Skipped
from divcon.data.labeled_set import LabeledSet
from divcon.data.labels import alike
from divcon.data.published.counts import Difference, PublishedCounts, differences
from divcon.runtime.context import DEFAULT, Context


@dataclass(frozen=True)
class PartCounts:
    """The numbers of images and classes of one split of a benchmark."""

    part: str
    """train, validation, and test, or query and gallery if they are two sets."""
    images: int
    classes: int
    smallest: int
    """Images of the smallest, the median and the largest class; 0 if the split is empty."""
    median: float
    largest: int
    single: tuple[str, ...]
    """The classes with one image."""


@dataclass(frozen=True)
class Item:
    """An image or a vector that a check reports."""

    where: str
    """The table and line that name it, and its path; or the path alone."""
    path: str
    row: int
    source: str
    label: str
    parts: tuple[str, ...]
    problem: str = ""
    """Why it does not decode."""

    @property
    def side(self) -> str:
        """train, validation or test, which must have no image in common."""
        return self.parts[0] if self.parts[0] in ("train", "validation") else "test"


Group = tuple[Item, ...]


@dataclass(frozen=True)
class Finding:
    """One kind of problem, with the images that have it."""

    kind: str
    fails: bool
    """Whether it breaks training or makes a score dishonest."""
    text: str
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class CheckResult:
    """The result of `check`. It is ``ok`` if nothing breaks training or makes a score dishonest."""

    name: str
    protocol: str
    split_hash: str
    things: str
    """images or vectors."""
    parts: tuple[PartCounts, ...]
    unreadable: tuple[Item, ...]
    """Images that are missing, empty, cut off, or otherwise do not decode."""
    copies: tuple[Group, ...]
    """Groups of images with the same pixels (decoded, and within the box), or of equal vectors."""
    near: tuple[Group, ...] | None
    """Groups of images that look the same but for size, compression or small changes; one of each group of exact copies
    stands for it. None: not computed."""
    zeros: tuple[Item, ...] = ()
    """Vectors that are all zeros, which have no direction."""
    differences: tuple[Difference, ...] = ()
    """Numbers of classes and images that differ from the published ones."""
    notes: tuple[str, ...] = ()
    """Those of the benchmark."""
    skipped: tuple[Skipped, ...] = ()
    """The files and folders of the data's folder that are not read, by kind."""
    alike: tuple[Group, ...] = ()
    """Groups of classes whose names look alike (see `divcon.data.labels.alike`), each by its first image."""
    joined: tuple[tuple[str, ...], ...] = ()
    """For each class that the source writes in several ways, its name and the ways."""

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
        """All problems: differences from the published numbers, then those of the images; each with those that fail
        first."""
        one, many = self.things[:-1], self.things
        # The most serious first: only a few are shown.
        near = tuple(sorted(self.near or (), key=lambda group: (not _is_across(group), not _has_two_labels(group))))
        across, two = sum(map(_is_across, near)), sum(map(_has_two_labels, near))
        listed: tuple[tuple[str, bool, tuple[Group, ...], str], ...] = (
            (
                "unreadable",
                True,
                tuple((item,) for item in self.unreadable),
                counted(len(self.unreadable), "image does not decode", "images do not decode")
                + ": training and evaluation stop there, unless bad images are skipped",
            ),
            (
                "zeros",
                True,
                tuple((item,) for item in self.zeros),
                counted(len(self.zeros), "vector is all zeros", "vectors are all zeros")
                + ": without a direction there are no neighbours",
            ),
            (
                "across",
                True,
                self.across,
                counted(len(self.across), f"{one} is", f"{many} are")
                + " in two of train, validation and test: the scores are then not of unseen images",
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
            (
                "alike",
                False,
                self.alike,
                counted(len(self.alike), "group of labels looks", "groups of labels look")
                + " alike, but for case, spaces or Unicode: if they are one class, write them in one way",
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
        """The result as plain values for JSON, with ``ok``, the kinds of findings that fail, and the number of skipped
        files and folders of each kind."""
        fails = list(dict.fromkeys(finding.kind for finding in self.findings if finding.fails))
        skipped = [{"count": len(kind.paths), **asdict(kind)} for kind in self.skipped]
        return {"ok": self.ok, "fails": fails, **asdict(self), "skipped": skipped}


def _is_across(group: Group) -> bool:
    return len({item.side for item in group}) > 1


def _has_two_labels(group: Group) -> bool:
    return len({item.label for item in group}) > 1


HASH_BITS = 256
MAX_BITS = 16
"""Near copies differ in at most this many bits of the hash,"""
MAX_DIFFERENCE = 4.0
"""and their thumbnails by at most this much, of 255, on average over places and colours.

Flat drawings are the hardest case: near pairs of the bundled icons are nearly all of one class. Of photographs, most
near copies are detected after JPEG compression or at half the size, few when they are cropped or brighter (see
``tests/data/test_check.py``). The check misses many near copies, and reports few pairs that are none."""

_SIDE, _LOW, _THUMB = 64, 16, 16
_FLAT = 2.0
_QUERIES = 256
_PAIRS = 16384


@dataclass(frozen=True)
class Fingerprint:
    """The hashes that images are compared by."""

    exact: bytes
    """16 bytes, equal if size and RGB pixels are equal."""
    bits: np.ndarray
    """(32,) uint8, the 256 bits of `perceptual_hash`."""
    thumb: np.ndarray
    """(768,) uint8, the image at 16 x 16."""


def fingerprint_of(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image."""
    digest = hashlib.blake2b(np.array(image.size, np.int64).tobytes(), digest_size=16)
    digest.update(image.tobytes())
    small = image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    thumb = np.asarray(small.resize((_THUMB, _THUMB), Image.Resampling.BOX)).reshape(-1)
    return Fingerprint(digest.digest(), perceptual_hash(small), thumb)


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """pHash with 256 bits, (32,) uint8: which of the 16 x 16 lowest frequencies of the grey values at 64 x 64 are above
    their median. The usual 64 bits are too few for flat drawings."""
    from scipy.fft import dctn  # here, as below: wrong arguments of a command are found without SciPy and PyTorch

    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float32)
    low = np.asarray(dctn(grey, norm="ortho"))[:_LOW, :_LOW].reshape(-1)
    return np.packbits(low > np.median(low))


def fingerprints(images: LabeledSet, *, context: Context = DEFAULT) -> Iterator[Fingerprint | str]:
    """The fingerprint of every image, in order, or what is wrong with it; each is decoded once."""
    from divcon.data.loading import each_image

    return each_image(images, fingerprint_of, context=context)


def equal_groups(keys: Sequence[bytes]) -> list[np.ndarray]:
    """The indices of each key that occurs more than once: sorted int64 arrays, ordered by their first index."""
    indices: dict[bytes, list[int]] = {}
    for i, key in enumerate(keys):
        indices.setdefault(key, []).append(i)
    return [np.array(group) for group in indices.values() if len(group) > 1]


def near_groups(bits: np.ndarray, thumbs: np.ndarray, context: Context = DEFAULT) -> list[np.ndarray]:
    """Groups of near copies: sorted int64 arrays of indices, ordered by their first index.

    Two images are near if at most `MAX_BITS` bits of their hashes differ, and their thumbnails differ by at most
    `MAX_DIFFERENCE` on average; a chain of near images is one group. Images of one colour are in no group: their hashes
    are noise. Every pair is compared, a block of rows at a time.

    Args:
        bits: (N, 32) uint8, of `perceptual_hash`.
        thumbs: (N, 768) uint8.
    """
    import faiss

    n = len(bits)
    plain = thumbs.std(axis=1) < _FLAT if n else np.zeros(0, bool)
    kept = np.flatnonzero(~plain)
    index = faiss.IndexBinaryFlat(HASH_BITS)
    index.add(np.ascontiguousarray(bits[kept]))  # type: ignore[call-arg]
    group = np.arange(len(kept))
    for start in range(0, len(kept), _QUERIES):
        block = np.ascontiguousarray(bits[kept[start : start + _QUERIES]])
        limits, _, neighbours = index.range_search(block, MAX_BITS + 1)  # type: ignore[call-arg]
        left = start + np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
        for pairs in range(0, len(left), _PAIRS):
            right = neighbours[pairs : pairs + _PAIRS]
            group = _joined(group, left[pairs : pairs + _PAIRS], right, thumbs, kept)
        context.progress("compare", min(start + _QUERIES, len(kept)), len(kept))
    order = np.argsort(group, kind="stable")
    ends = np.flatnonzero(np.diff(group[order])) + 1
    return [kept[members] for members in np.split(order, ends) if len(members) > 1]


def _joined(group: np.ndarray, left: np.ndarray, right: np.ndarray, thumbs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Each image's group, (N,) int64, named by its first member, after joining the pairs whose thumbnails are near."""
    # Images of one group are not compared again: a thousand copies are a thousand pairs, not a million.
    new = (right > left) & (group[left] != group[right])
    left, right = left[new], right[new]
    difference = thumbs[kept[left]].astype(np.int16) - thumbs[kept[right]]
    near = np.abs(difference).mean(axis=1) <= MAX_DIFFERENCE
    if not near.any():
        return group
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

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
    """Check a benchmark: decode every image once, count images and classes, and compare all images with each other.

    An image that is in two splits on purpose (a row that is query and gallery) is no copy of itself. Vectors are copies
    if they are equal; near copies of vectors are not looked for.

    Args:
        near: also look for near copies (see `near_groups`).
        published: the published counts of the data set, to compare with.
        context: reports the images decoded, then those compared.
    """
    every = _Everything(benchmark.parts)
    first = every.first_of_labels()
    vectors = benchmark.query.vectors is not None
    unreadable: list[Item] = []
    zeros: list[Item] = []
    groups: tuple[Group, ...] | None = None
    if vectors:
        keys: list[bytes] = []
        for block in every.blocks():
            # Zero and minus zero are equal.
            numbers = np.ascontiguousarray(block.vectors) + np.float32(0)
            zeros += [every.item(len(keys) + int(i)) for i in np.flatnonzero(~numbers.any(axis=1))]
            keys += [hashlib.blake2b(vector.tobytes(), digest_size=16).digest() for vector in numbers]
        copies = equal_groups(keys)
    else:
        prints: dict[int, Fingerprint] = {}
        for i, result in enumerate(every.fingerprints(context)):
            if isinstance(result, Fingerprint):
                prints[i] = result
            else:
                unreadable.append(every.item(i, problem=result))
            context.progress("decode", i + 1, len(every))
        decoded = np.fromiter(prints, np.int64, len(prints))
        copies = [decoded[group] for group in equal_groups([fingerprint.exact for fingerprint in prints.values()])]
        if near:
            groups = tuple(every.groups(_near(prints, copies, context)))
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
        benchmark.notes,
        benchmark.skipped,
        tuple(every.groups([np.array([first[name] for name in group]) for group in alike(list(first))])),
        benchmark.query.spellings,
    )


def counts_of(part: str, images: LabeledSet) -> PartCounts:
    """The numbers of images and classes of a split."""
    classes, sizes = np.unique(images.labels, return_counts=True)
    single = tuple(images.label_names[c] for c in classes[sizes == 1])
    if not len(sizes):
        return PartCounts(part, 0, 0, 0, 0.0, 0, single)
    smallest, median, largest = int(sizes.min()), float(np.median(sizes)), int(sizes.max())
    return PartCounts(part, len(images), len(classes), smallest, median, largest, single)


def _near(prints: dict[int, Fingerprint], copies: list[np.ndarray], context: Context) -> list[np.ndarray]:
    # One of each group of copies stands for it.
    repeated = {int(i) for group in copies for i in group[1:]}
    compared = np.array([i for i in prints if i not in repeated], np.int64)
    if not len(compared):
        return []
    bits = np.stack([prints[i].bits for i in compared.tolist()])
    thumbs = np.stack([prints[i].thumb for i in compared.tolist()])
    return [compared[group] for group in near_groups(bits, thumbs, context)]


class _Everything:
    """The images of all splits, numbered through; one that is in several splits is there once."""

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

    def first_of_labels(self) -> dict[str, int]:
        """The number of the first image of each label."""
        first: dict[str, int] = {}
        for (images, new), start in zip(self.sets, self.starts.tolist(), strict=False):
            labels, places = np.unique(images.labels[new], return_index=True)
            for label, place in zip(labels.tolist(), places.tolist(), strict=True):
                first.setdefault(images.label_names[label], start + place)
        return first

    def blocks(self, size: int = 8192) -> Iterator[LabeledSet]:
        """All images in order, some thousand at a time."""
        for images, new in self.sets:
            for start in range(0, len(new), size):
                yield images.subset(np.array(new[start : start + size], np.int64))

    def fingerprints(self, context: Context) -> Iterator[Fingerprint | str]:
        """Those of all images, in order."""
        for images, new in self.sets:
            if new:
                yield from fingerprints(images.subset(np.array(new, np.int64)), context=context)

    def groups(self, groups: list[np.ndarray]) -> Iterator[Group]:
        """Groups of numbers as groups of items."""
        for group in groups:
            yield tuple(self.item(int(i)) for i in group)

    def item(self, number: int, problem: str = "") -> Item:
        """The item of an image."""
        k = int(np.searchsorted(self.starts, number, side="right")) - 1
        images, new = self.sets[k]
        i = new[number - int(self.starts[k])]
        where, label = images.where(i), images.label_name(i)
        problem = problem.removeprefix(f"{where}: ")
        return Item(
            where, images.path(i), int(images.rows[i]), images.source, label, tuple(self.parts[number]), problem
        )
