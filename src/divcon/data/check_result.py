"""What a check of a data set found, and which of it fails."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from divcon.data.published.counts import Difference
from divcon.data.split import counted


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
