"""Retrieval tasks: the labels of queries and gallery as codes, and the items that a query must not retrieve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def joint_codes(query: object, gallery: object, name: str) -> Pair:
    """The values of Q queries and G gallery items as integer codes: equal values have equal codes.

    Args:
        query: (Q,) ints or strings, an array, tensor or sequence.
        gallery: (G,) of the same kind.
        name: of the values, for messages.

    Returns:
        (Q,) and (G,) int64, from 0 on.

    Raises:
        ValueError: not one-dimensional, neither whole numbers nor strings, or numbers on one side and strings on the
            other.
    """
    left, right = column(query, name), column(gallery, name)
    if left.dtype.kind != right.dtype.kind:
        raise ValueError(f"{name}: whole numbers on one side and strings on the other never match")
    codes = np.unique(np.concatenate([left, right]), return_inverse=True)[1].astype(np.int64)
    return codes[: len(left)], codes[len(left) :]


def column(values: object, name: str) -> np.ndarray:
    """One value an item, as (N,) int64 or an array of strings; raises as ``joint_codes``."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()  # pyright: ignore[reportAttributeAccessIssue]
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: one value an item is needed, not an array of shape {array.shape}")
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array):
        array = array.astype(str)
    if array.dtype.kind in "iub" or not len(array):
        return array.astype(np.int64)
    if array.dtype.kind == "U":
        return array
    raise ValueError(f"{name}: whole numbers or strings are needed, not {array.dtype}")


@dataclass(frozen=True, eq=False)
class Exclusion:
    """Q queries and G gallery items with codes; a query may not retrieve an item that shares a code with it.

    Exclusions add up: ``Exclusion.itself(n) | Exclusion.equal(groups, groups)``.
    """

    pairs: tuple[Pair, ...]
    """Each (Q,) and (G,) int64; a negative code is shared with nothing."""

    @classmethod
    def equal(cls, query_codes: Sequence[int] | np.ndarray, gallery_codes: Sequence[int] | np.ndarray) -> Exclusion:
        """Items whose code equals the query's: (Q,) and (G,) ints, a negative one is shared with nothing."""
        query, gallery = np.asarray(query_codes, np.int64), np.asarray(gallery_codes, np.int64)
        # Codes are small, so that their products stay within 64 bits.
        small_query, small_gallery = joint_codes(query, gallery, "codes")
        return cls(((np.where(query < 0, -1, small_query), np.where(gallery < 0, -1, small_gallery)),))

    @classmethod
    def itself(cls, n: int) -> Exclusion:
        """Leave-one-out over n items: query i never retrieves item i."""
        return cls.equal(np.arange(n), np.arange(n))

    def __or__(self, other: Exclusion) -> Exclusion:
        return Exclusion(self.pairs + other.pairs)

    def take(self, queries: np.ndarray) -> Exclusion:
        """The exclusion of the queries at these positions, in this order."""
        return Exclusion(tuple((query[queries], gallery) for query, gallery in self.pairs))

    def check(self, num_queries: int, num_gallery: int) -> None:
        """
        Raises:
            ValueError: the codes are not of ``num_queries`` queries and ``num_gallery`` items.
        """
        for query, gallery in self.pairs:
            if query.shape != (num_queries,) or gallery.shape != (num_gallery,):
                raise ValueError(
                    f"exclude: codes of {len(query)} queries and {len(gallery)} gallery items "
                    f"for {num_queries} queries and {num_gallery} gallery items"
                )

    def mask(self, queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(q, k) bool: whether items[i, j] is excluded for the query at position queries[i]."""
        excluded = np.zeros(items.shape, dtype=bool)
        for query, gallery in self.pairs:
            own = query[queries][:, None]
            excluded |= (gallery[items] == own) & (own >= 0)
        return excluded

    def most(self, num_queries: int) -> np.ndarray:
        """(Q,) int64: an upper bound on each query's excluded items (one that two pairs exclude counts twice)."""
        total = np.zeros(num_queries, dtype=np.int64)
        for query, gallery in self.pairs:
            total += _count_equal(query, gallery)
        return total

    def admissible(self, query_codes: np.ndarray, gallery_codes: np.ndarray) -> np.ndarray:
        """(Q,) int64: how many gallery items have the query's code and are not excluded for it."""
        total = _count_equal(query_codes, gallery_codes)
        for size in range(1, len(self.pairs) + 1):
            # Inclusion-exclusion: an item that several pairs exclude is subtracted once.
            for chosen in combinations(self.pairs, size):
                shared = _all_equal(((query_codes, gallery_codes), *chosen))
                total += (-1) ** size * _count_equal(*shared)
        return total


def _all_equal(pairs: Sequence[Pair]) -> Pair:
    """Codes that are equal where all pairs' codes are equal; negative where any is negative."""
    query, gallery = pairs[0]
    for other_query, other_gallery in pairs[1:]:
        absent = [(query < 0) | (other_query < 0), (gallery < 0) | (other_gallery < 0)]
        width = 1 + max(other_query.max(initial=0), other_gallery.max(initial=0))
        query, gallery = joint_codes(query * width + other_query, gallery * width + other_gallery, "codes")
        query, gallery = np.where(absent[0], -1, query), np.where(absent[1], -1, gallery)
    return query, gallery


def _count_equal(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    values, counts = np.unique(gallery[gallery >= 0], return_counts=True)
    if not len(values):
        return np.zeros(len(query), dtype=np.int64)
    place = np.minimum(np.searchsorted(values, query), len(values) - 1)
    return np.where(values[place] == query, counts[place], 0)


@dataclass(frozen=True, eq=False)
class Task:
    """Q queries and G gallery items: their labels as codes, and the pairs that are excluded."""

    query_labels: np.ndarray
    """(Q,) int64."""
    gallery_labels: np.ndarray
    """(G,) int64."""
    exclude: Exclusion
    in_gallery: np.ndarray
    """(Q,) int64: the position of the query itself in the gallery, the first of its id; -1 where it has none."""
    label_names: np.ndarray
    """(C,) ints or strings: the label of each code."""

    @classmethod
    def of(cls, num_queries: int, num_gallery: int | None, columns: dict[str, tuple[object, object]]) -> Task:
        """A task from the columns of queries and gallery; leave-one-out where ``num_gallery`` is None.

        Args:
            columns: ``labels``, ``ids``, ``cameras`` and ``groups``, each of the queries and of the gallery, as
                `divcon.evaluation.retrieval_metrics` takes them.

        Raises:
            ValueError: lengths that differ, one side without the other, values that cannot be compared.
        """
        alone = num_gallery is None
        count = num_queries if alone else num_gallery
        if columns["labels"][0] is None:
            raise ValueError("labels are needed")
        sides = {
            name: _both_sides(name, *pair, num_queries, count, alone)
            for name, pair in columns.items()
            if any(side is not None for side in pair)
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
        return cls(*labels, exclude, in_gallery, np.unique(np.concatenate(sides["labels"])))


def _both_sides(
    name: str, query: object, gallery: object, num_queries: int, num_gallery: int, leave_one_out: bool
) -> tuple[np.ndarray, np.ndarray]:
    if query is None or (gallery is None and not leave_one_out):
        missing, present = (name, f"gallery_{name}") if query is None else (f"gallery_{name}", name)
        raise ValueError(f"{missing} is needed where {present} is passed")
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
