"""Notes that come again in every epoch are one note, with a count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from divcon.config.settings import ModelConfig
from divcon.evaluation.subspaces import ONE

_LEARNER = re.compile(r"\blearner (\d+)")


def template(note: str) -> str:
    """The note without its numbers: notes that differ in numbers alone, such as the epoch, are one."""
    return re.sub(r"\d+", "#", note)


@dataclass
class Repeated:
    """A note of one epoch or more."""

    text: str
    """As it was in the first."""
    epochs: list[int] = field(default_factory=list)
    """Each once, ascending."""
    learners: list[int] = field(default_factory=list)
    """The learners that it was about, each once."""

    def add(self, note: str, epoch: int) -> None:
        if epoch not in self.epochs[-1:]:
            self.epochs.append(epoch)
        self.learners += [k for k in map(int, _LEARNER.findall(note)) if k not in self.learners]

    @property
    def count(self) -> str:
        """``in 64 epochs, first in epoch 3; of learners 0, 2``."""
        count = len(self.epochs)
        first = f"in {count:,} epochs, first in epoch" if count > 1 else "in epoch"
        return f"{first} {self.epochs[0]}{self.of_learners}"

    @property
    def of_learners(self) -> str:
        """``; of learners 0, 2``; empty where it was about one at most."""
        return f"; of learners {', '.join(map(str, sorted(self.learners)))}" if len(self.learners) > 1 else ""

    def __str__(self) -> str:
        return f"{self.text} ({self.count})"


class EpochNotes:
    """The notes of a run's epochs, each once."""

    def __init__(self) -> None:
        self._by_template: dict[str, Repeated] = {}

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]]) -> EpochNotes:
        """Those of lines of ``metrics.jsonl``."""
        notes = cls()
        for line in lines:
            for note in line["warnings"]:
                notes.add(note, line["epoch"])
        return notes

    def add(self, note: str, epoch: int) -> bool:
        """Add a note; returns whether it is the first of its kind."""
        key = template(note)
        new = key not in self._by_template
        self._by_template.setdefault(key, Repeated(note)).add(note, epoch)
        return new

    @property
    def all(self) -> list[Repeated]:
        """In the order of their first epochs."""
        return list(self._by_template.values())

    @property
    def repeated(self) -> list[Repeated]:
        """Those of several epochs or learners."""
        return [note for note in self.all if len(note.epochs) > 1 or len(note.learners) > 1]


def learners_are_one(config: ModelConfig, lines: Sequence[Mapping[str, Any]], kept: int | None) -> str | None:
    """The note on learners that rank images alike in the kept epoch; None where they do not, or it is not known.

    Args:
        lines: of ``metrics.jsonl``.
    """
    similarity = next((line.get("learner_similarity") for line in lines if line["epoch"] == kept), None)
    if similarity is None or similarity <= ONE:
        return None
    slices = "" if config.method == "slices" else "`method=slices`, "
    return (
        f"the {config.num_learners} learners are one: in epoch {kept}, which is kept, the similarities of images in "
        f"one learner's subspace and in another's correlate {similarity:.2f} (1: the same), so that dividing adds "
        f"little; try {slices}fewer `num_learners`, or a larger `embedding_dim`"
    )
