"""The validation queries that find their class best and worst, with what they find."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from divcon.data.image_set import ImageSet
from divcon.evaluate.neighbours import nearest
from divcon.evaluate.retrieval import retrieval_metrics
from divcon.evaluate.task import Task


@dataclass(frozen=True)
class Query:
    """An image that searched among all the others."""

    index: int
    map_at_r: float
    matches: int
    """Images that it should find."""
    neighbours: tuple[tuple[int, float], ...]
    """The nearest: index and euclidean distance."""


def best_and_worst(
    images: ImageSet, embeddings: np.ndarray, *, count: int = 6, neighbours: int = 6
) -> tuple[list[Query], list[Query]]:
    """The queries of highest and of lowest MAP@R, at most one a class in each list.

    Of equally good ones, those with more matches come first. Of equally bad ones, those whose nearest neighbour is
    nearest: a model that is sure and wrong says more than one that is lost.

    Args:
        embeddings: (N, D) float32 of the images, each of which searches among all the others (but, where they have
            cameras or groups, those of its label and camera, and of its group).

    Raises:
        DataError: no image has another of its class.
    """
    scores = retrieval_metrics(
        embeddings, images.labels, recall_at=(1,), cameras=images.cameras, groups=images.groups, per_query=True
    )["per_query"]
    columns = {"labels": (images.labels, None), "cameras": (images.cameras, None), "groups": (images.groups, None)}
    exclude = Task.of(len(images), None, columns).exclude
    indices, distances = nearest(embeddings, embeddings, min(neighbours, len(images)), exclude=exclude)
    asked = np.flatnonzero(scores["num_matches"] > 0)
    score, matches = scores["map_at_r"][asked], scores["num_matches"][asked]

    def listed(order: np.ndarray) -> list[Query]:
        found: list[Query] = []
        seen: set[int] = set()
        for place in order.tolist():
            index = int(asked[place])
            if int(images.labels[index]) in seen:
                continue
            seen.add(int(images.labels[index]))
            pairs = zip(indices[index].tolist(), distances[index].tolist(), strict=True)
            near = tuple((int(other), float(distance)) for other, distance in pairs if other >= 0)
            found.append(Query(index, float(score[place]), int(matches[place]), near))
            if len(found) == count:
                break
        return found

    best = listed(np.lexsort((asked, -matches, -score)))
    worst = listed(np.lexsort((asked, distances[asked, 0], score)))
    # With few classes the two lists would meet.
    middle = float(np.median(score))
    return [q for q in best if q.map_at_r >= middle], [q for q in worst if q.map_at_r <= middle]
