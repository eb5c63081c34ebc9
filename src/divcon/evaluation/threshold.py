"""The similarity from which on a nearest neighbour counts as of the query's class; below it, the query is unknown.

A search always has a nearest neighbour, also where the gallery has nothing of the query's class. The threshold is
chosen where both kinds of query are known: of the classes at hand, half are in the gallery and half are not; then the
halves change places. Each query is so searched for twice, once *known* (its class is in the gallery) and once
*unknown*.

- *Precision*: of the queries whose nearest neighbour is at the threshold or above, the share whose nearest neighbour is
  of their class.
- *Recall*: of the known queries, the share whose nearest neighbour is at the threshold or above, and of their class.

The threshold is the one with the highest F1, the harmonic mean of the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from divcon.data.splitting import place_of
from divcon.errors import DataError, RunError
from divcon.evaluation.nearness import as_vectors
from divcon.evaluation.task import Exclusion, Task
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here, removed
from divcon.runtime.files import atomic_write
from divcon.runtime.places import place

if TYPE_CHECKING:
    import torch

THRESHOLD = "threshold.json"
"""In the folder of a model: its threshold, and the scores at it that it was chosen by."""


@dataclass(frozen=True, eq=False)
class NearestItems:
    """The nearest neighbour of M searches in galleries that have half of the classes."""

    similarity: np.ndarray
    """(M,) float64, cosines."""
    is_correct: np.ndarray
    """(M,) bool: whether it is of the query's class."""
    is_known: np.ndarray
    """(M,) bool: whether the gallery has an admissible item of the query's class."""

    def at(self, min_score: float) -> dict[str, Any]:
        """The scores at a threshold: ``min_score``; ``precision`` (None where no neighbour reaches it), ``recall`` and
        ``f1``; ``unknown_rejected``, the share of the unknown queries that it rejects; ``num_known`` and
        ``num_unknown``, the searches of either kind."""
        accepted = self.similarity >= min_score
        hits, known = int((accepted & self.is_correct).sum()), int(self.is_known.sum())
        unknown = len(self.similarity) - known
        return {
            "min_score": float(min_score),
            "precision": hits / int(accepted.sum()) if accepted.any() else None,
            "recall": hits / known,
            "f1": 2 * hits / (int(accepted.sum()) + known),
            "unknown_rejected": 1 - int((accepted & ~self.is_known).sum()) / unknown if unknown else None,
            "num_known": known,
            "num_unknown": unknown,
        }

    def best(self) -> float:
        """The threshold with the highest F1: half way between the last similarity that is accepted and the next."""
        order = np.argsort(-self.similarity, kind="stable")
        ranked = self.similarity[order]
        hits = np.cumsum(self.is_correct[order])
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + self.is_known.sum())
        # Of equal similarities all are accepted, or none.
        ends = np.append(ranked[1:] < ranked[:-1], True)
        last = int(np.flatnonzero(ends)[np.argmax(f1[ends])])
        following = ranked[last + 1] if last + 1 < len(ranked) else -1.0
        return float((ranked[last] + following) / 2)


def nearest_items(
    embeddings: object,
    labels: Sequence[str] | np.ndarray,
    *,
    gallery_embeddings: object = None,
    gallery_labels: Sequence[str] | np.ndarray | None = None,
    ids: object = None,
    gallery_ids: object = None,
    cameras: object = None,
    gallery_cameras: object = None,
    groups: object = None,
    gallery_groups: object = None,
    max_queries: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    context: Context = DEFAULT,
) -> NearestItems:
    """Search for each query twice, among the items of either half of the classes.

    The halves are drawn by a hash of the classes' names, and differ by at most one class. Searches in which the query's
    half has no admissible item of its class are left out, and those without any admissible item.

    Args:
        embeddings: (N, D) numbers, array or tensor.
        labels: (N,) names.
        gallery_embeddings, gallery_labels, ids, cameras, groups, gallery_ids, gallery_cameras, gallery_groups: as in
            `divcon.evaluation.retrieval_metrics`; leave-one-out without a gallery.
        max_queries, seed: as in `divcon.evaluation.retrieval_metrics`: the same queries are drawn.
        context: the processes of its group call this at once, with the same arguments, and share out the queries.

    Raises:
        DataError: fewer than two classes, or no class has a match.
        NonFiniteError: an embedding holds NaN or infinite values.
    """
    from divcon.evaluation.neighbours import neighbour_blocks
    from divcon.evaluation.retrieval import drawn_queries, taken

    query, names = as_vectors(embeddings, "embeddings"), np.asarray(labels)
    alone = gallery_embeddings is None
    gallery = query if alone else as_vectors(gallery_embeddings, "gallery_embeddings")
    item_names = names if alone else np.asarray(gallery_labels)
    columns: dict[str, tuple[object, object]] = {
        "labels": (names, None if alone else item_names),
        "ids": (ids, gallery_ids),
        "cameras": (cameras, gallery_cameras),
        "groups": (groups, gallery_groups),
    }
    task = Task.of(len(query), None if alone else len(gallery), columns)
    half, queries = _halves(task.label_names), np.arange(len(query))
    if max_queries is not None:
        matches = task.exclude.admissible(task.query_labels, task.gallery_labels)
        drawn = drawn_queries(matches, max_queries, seed)
        queries = drawn if len(drawn) < np.count_nonzero(matches) else queries
    group = context.group
    own = np.arange(group.rank, len(queries), group.world_size)  # positions in the queries
    asked = queries[own]
    found_by_side = []
    for side in (False, True):
        items = np.flatnonzero(half[task.gallery_labels] == side)
        if not len(items):
            continue
        exclude = Exclusion(tuple((mine[asked], theirs[items]) for mine, theirs in task.exclude.pairs))
        matches = exclude.admissible(task.query_labels[asked], task.gallery_labels[items])
        in_half = half[task.query_labels[asked]] == side
        # A row a query: its nearest neighbour's similarity, whether that is correct, and whether the query is known and
        # counted. The rows of another rank's queries are zero, so that the sum over ranks is exact.
        found = np.zeros((len(queries), 4))
        options: dict[str, Any] = {"metric": "cosine", "exclude": exclude, "device": device}
        for block in neighbour_blocks(taken(query, asked), gallery[items], 1, **options) if len(asked) else ():
            rows = slice(block.start, block.start + len(block.indices))
            place = block.indices[:, 0]
            assert block.distances is not None
            is_correct = task.gallery_labels[items[place]] == task.query_labels[asked[rows]]
            counted = (place >= 0) & (~in_half[rows] | (matches[rows] > 0))
            values = (np.where(counted, block.distances[:, 0], 0), is_correct, in_half[rows], counted)
            found[own[rows]] = np.stack(values, axis=1)
        found = group.all_reduce(found)
        found_by_side.append(found[found[:, 3] > 0])
    similarity, *flags = np.concatenate([np.zeros((0, 4)), *found_by_side]).T[:3]
    result = NearestItems(np.ascontiguousarray(similarity), *(flag > 0 for flag in flags))
    if not result.is_known.any() or result.is_known.all():
        raise DataError(
            "a threshold needs at least two classes, of which at least one has a match: with half of the classes in "
            "the gallery, there are no queries of both kinds, known and unknown"
        )
    return result


def _halves(names: np.ndarray) -> np.ndarray:
    """(C,) bool: the half that each class is of."""
    half = np.zeros(len(names), bool)
    half[np.argsort([place_of(str(name)) for name in names], kind="stable")[1::2]] = True
    return half


def read_threshold(model: str | Path) -> dict[str, Any] | None:
    """The threshold of the model in a folder, of a run or model: ``min_score``, and the scores that it was chosen by
    (see `NearestItems.at`); None where it has none.

    Raises:
        RunError: the file is damaged.
    """
    for path in (here(place(model) / "model" / THRESHOLD), here(place(model) / THRESHOLD)):
        if not path.exists():
            continue
        try:
            record = {**json.loads(path.read_text())}
            return record | {"min_score": float(record["min_score"])}
        except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            raise RunError(f"{path}: is damaged ({error!r}); delete it, and resume the run to choose again") from None
    return None


def write_threshold(folder: Path, record: dict[str, Any]) -> None:
    """Write what `read_threshold` reads.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(folder / THRESHOLD) as beside:
        beside.write_text(json.dumps(record, indent=2) + "\n")


def forget_threshold(folder: Path) -> None:
    """Delete the threshold, as another model is to be saved in the folder."""
    removed(folder / THRESHOLD)


def in_words(record: dict[str, Any]) -> str:
    """A threshold and the scores at it, in a line."""
    precision = "-" if record["precision"] is None else f"{100 * record['precision']:.1f} %"
    rejected = record["unknown_rejected"]
    return (
        f"threshold {record['min_score']:.3f}: a nearest neighbour below it is unknown; precision {precision}, recall "
        f"{100 * record['recall']:.1f} %"
        + ("" if rejected is None else f", {100 * rejected:.1f} % of the queries of unknown classes rejected")
    )
