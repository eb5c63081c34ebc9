"""What is asked of a ranking: labels of queries and gallery as codes, and what a query may not retrieve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from divcon.evaluate.exclusion import Exclusion, column, joint_codes


@dataclass(frozen=True, eq=False)
class Task:
    """Q queries and G gallery items: their labels as codes, and what may not be retrieved."""

    query_labels: np.ndarray
    """(Q,) int64."""
    gallery_labels: np.ndarray
    """(G,) int64."""
    exclude: Exclusion
    in_gallery: np.ndarray
    """(Q,) int64: where in the gallery the query itself is, the first of its id; -1 where it is not there."""

    @classmethod
    def of(cls, num_queries: int, num_gallery: int | None, columns: dict[str, tuple[object, object]]) -> Task:
        """From what is known of each query and gallery item; without ``num_gallery``, leave-one-out.

        Args:
            columns: by name, of labels, ids, cameras and groups: the queries' and the gallery's, as
                `divcon.evaluate.retrieval_metrics` takes them.

        Raises:
            ValueError: lengths that do not fit, one side without the other, values that cannot be compared.
        """
        alone = num_gallery is None
        count = num_queries if alone else num_gallery
        if columns["labels"][0] is None:
            raise ValueError("labels are needed")
        sides = {
            name: _both_sides(name, *given, num_queries, count, alone)
            for name, given in columns.items()
            if any(side is not None for side in given)
        }
        labels = joint_codes(*sides["labels"], "labels")
        exclude = Exclusion.itself(num_queries) if alone else Exclusion(())
        in_gallery = np.arange(num_queries) if alone else np.full(num_queries, -1)
        if "ids" in sides:
            ids = joint_codes(*sides["ids"], "ids")
            exclude |= Exclusion.equal(*ids)
            if not alone:
                in_gallery = _first_equal(*ids)
        if "cameras" in sides:
            cameras = joint_codes(*sides["cameras"], "cameras")
            width = 1 + max(cameras[0].max(), cameras[1].max())
            exclude |= Exclusion.equal(labels[0] * width + cameras[0], labels[1] * width + cameras[1])
        if "groups" in sides:
            if any(side.dtype.kind != "i" for side in sides["groups"]):
                raise ValueError("groups: whole numbers are needed, negative where an item has no group")
            exclude |= Exclusion.equal(*sides["groups"])
        return cls(*labels, exclude, in_gallery)


def _both_sides(
    name: str, query: object, gallery: object, num_queries: int, num_gallery: int, leave_one_out: bool
) -> tuple[np.ndarray, np.ndarray]:
    if query is None or (gallery is None and not leave_one_out):
        missing, given = (name, f"gallery_{name}") if query is None else (f"gallery_{name}", name)
        raise ValueError(f"{missing} is needed where {given} is given")
    own = column(query, name)
    other = own if gallery is None else column(gallery, f"gallery_{name}")
    for side, size, what in ((own, num_queries, name), (other, num_gallery, f"gallery_{name}")):
        if len(side) != size:
            items = "embeddings" if leave_one_out else "queries" if what == name else "gallery items"
            raise ValueError(f"{what} has {len(side)} entries for {size} {items}")
    if leave_one_out and not np.array_equal(own, other):
        raise ValueError(f"gallery_{name} differs from {name}, but the gallery is the queries themselves")
    return own, other


def _first_equal(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(Q,) int64: the first position of each query's code among the gallery's; -1 where it has none."""
    values, first = np.unique(gallery, return_index=True)
    place = np.minimum(np.searchsorted(values, query), len(values) - 1)
    return np.where(values[place] == query, first[place], -1)
