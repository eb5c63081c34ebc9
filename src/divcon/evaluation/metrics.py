"""The table of retrieval metrics: each row has the depth of ranking that it needs, and computes one value a query.

`divcon.evaluation.retrieval_metrics` and all output of scores read the rows; a metric of your own is one more row.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from divcon.errors import ConfigError, unknown
from divcon.runtime.importing import is_named, load_part

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64, Shaped

Depth = int | Literal["R", "all"]
"""How many ranks a metric uses: a number k; ``"R"``, as many as the query has matches; ``"all"``, the whole gallery,
which is slow: it is sorted for each query."""


class Ranking:
    """The rankings of q queries, cut at a metric's depth. Each of the queries has a match.

    A rank's item is a *hit* where it has the query's label.
    """

    def __init__(self, block: RankedBlock, depth: Depth) -> None:
        self.depth: Depth = depth
        self._block = block

    @property
    def num_matches(self) -> Int64[np.ndarray, "q"]:
        """R: how many items of the gallery, admissible for the query, have its label. At least 1."""
        return self._block.num_matches

    @cached_property
    def hits(self) -> Bool[np.ndarray, "q k"]:
        """Whether the item at each rank is a hit.

        k is the depth. At depth ``"R"`` it is the largest R of the queries, and each row is False beyond its own R; at
        ``"all"`` it is the size of the gallery. False, too, where a ranking has no more items.
        """
        hits = self._block.hits
        if isinstance(self.depth, int):
            hits = hits[:, : self.depth]
            missing = self.depth - hits.shape[1]
            return np.pad(hits, ((0, 0), (0, missing))) if missing else hits
        if self.depth == "R":
            deepest = int(self.num_matches.max(initial=0))
            return hits[:, :deepest] & (np.arange(min(deepest, hits.shape[1])) < self.num_matches[:, None])
        return hits

    @cached_property
    def labels(self) -> Shaped[np.ndarray, "q k"]:
        """The labels of the items at the ranks, as they were passed; meaningless where `items` is -1."""
        return self._block.names[self._block.gallery_codes[self.items]]

    @property
    def query_labels(self) -> Shaped[np.ndarray, "q"]:
        """The labels of the queries, as they were passed."""
        return self._block.names[self._block.query_codes]

    @property
    def items(self) -> Int64[np.ndarray, "q k"]:
        """The positions in the gallery of the items at the ranks; -1 where a ranking has no more."""
        items = self._block.items
        return items[:, : self.hits.shape[1]]

    # The built-in metrics use only the hits, which are few.

    @cached_property
    def _within(self) -> np.ndarray:
        """(h,) bool: which of the block's hits are within the depth."""
        block = self._block
        if self.depth == "all":
            return np.ones(len(block.hit_place), dtype=bool)
        return block.hit_place < (self.num_matches[block.hit_query] if self.depth == "R" else self.depth)

    @cached_property
    def num_hits(self) -> Float64[np.ndarray, "q"]:
        """How many hits each query has within the depth."""
        counts = np.bincount(self._block.hit_query[self._within], minlength=len(self.num_matches))
        return counts.astype(np.float64)

    @property
    def hit_rank(self) -> Int64[np.ndarray, "h"]:
        """The rank, from 1 on, of each hit within the depth: the hits of the first query, of the second ..."""
        return self._block.hit_place[self._within] + 1

    @property
    def hit_number(self) -> Int64[np.ndarray, "h"]:
        """Which of its query's hits each hit is, from 1 on; ``hit_number / hit_rank`` is the precision there."""
        return self._block.hit_number[self._within]

    def sum_over_hits(self, values: Float64[np.ndarray, "h"]) -> Float64[np.ndarray, "q"]:
        """The sum of each query's values, one value a hit within the depth."""
        return np.bincount(self._block.hit_query[self._within], weights=values, minlength=len(self.num_matches))


@dataclass(frozen=True, eq=False)
class RankedBlock:
    """The rankings of q queries from the search, as deep as the deepest metric needs."""

    hits: np.ndarray
    """(q, k) bool."""
    items: np.ndarray
    """(q, k) int64 positions in the gallery; -1 beyond the last admissible one."""
    num_matches: np.ndarray
    """(q,) int64, all above zero."""
    query_codes: np.ndarray
    """(q,) int64, the queries' labels as positions in ``names``."""
    gallery_codes: np.ndarray
    """(G,) int64, likewise the gallery's."""
    names: np.ndarray
    """(C,) the labels as they were passed."""

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        query, place = np.nonzero(self.hits)
        return query, place

    @property
    def hit_query(self) -> np.ndarray:
        """(h,) int64: the query of each hit."""
        return self._places[0]

    @property
    def hit_place(self) -> np.ndarray:
        """(h,) int64: its place in the ranking, from 0 on."""
        return self._places[1]

    @cached_property
    def hit_number(self) -> np.ndarray:
        """(h,) int64: which of its query's hits it is, from 1 on."""
        counts = np.bincount(self.hit_query, minlength=len(self.hits))
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return np.arange(len(self.hit_query)) - first[self.hit_query] + 1


Compute = Callable[[Ranking], np.ndarray]
"""One value a query, (q,) numbers; NaN leaves the query out of the mean."""

_NAME = re.compile(r"[A-Za-z]\w*")
_RESERVED = frozenset(
    {
        *("benchmark", "protocol", "split_hash", "num_queries", "num_queries_without_match", "num_gallery"),
        *("num_queries_total", "position", "clustered", "num_classes", "num_matches", "path", "label", "per_query"),
        *("metrics", "cmc", "random_gallery", "draws"),
        *("reranked", "k1", "k2", "weight", "nmi", "ami", "learners", "features", "without", "by_size", "dims"),
        *("per_class", "ordered_on", "similarity_correlations", "reproduced"),
    }
)
"""The other keys of a result."""


@dataclass(frozen=True)
class Metric:
    """A retrieval metric: a row of the table.

    Call it with a `Ranking` for its values.

    Raises:
        ConfigError: an invalid name or depth.
    """

    name: str
    """Its key in every result: a letter, then letters, digits and ``_``."""
    compute: Compute = field(repr=False)
    """One value a query, (q,) numbers, from the rankings of q queries, cut at ``depth``. NaN leaves a query out of the
    mean."""
    depth: Depth
    """How deep a ranking it needs: a number of ranks, ``"R"`` or ``"all"``."""
    higher_is_better: bool = True
    percent: bool = True
    """Show 0.5 as 50.0 %; else as 0.5."""

    def __post_init__(self) -> None:
        if (
            not _NAME.fullmatch(self.name)
            or self.name.endswith(("_std", "_interval", "_interval_method"))
            or self.name in _RESERVED
        ):
            raise ConfigError(
                f"metric {self.name!r}: results cannot have this name; use letters, digits and _, and no other key "
                "of a result",
                field="metrics",
            )
        if self.depth not in ("R", "all") and not (isinstance(self.depth, int) and self.depth >= 1):
            raise ConfigError(
                f"metric {self.name!r}: depth is a number of ranks from 1 on, 'R' or 'all', not {self.depth!r}",
                field="metrics",
            )

    def __call__(self, ranking: Ranking) -> np.ndarray:
        """The values of the queries, (q,) float64.

        Raises:
            ConfigError: ``compute`` returns something else.
        """
        values = np.asarray(self.compute(ranking))
        if values.shape != ranking.num_matches.shape or values.dtype.kind not in "fiub":
            raise ConfigError(
                f"metric {self.name!r}: returned an array of shape {values.shape} and type {values.dtype} for "
                f"{len(ranking.num_matches)} queries; return one number a query",
                field="metrics",
            )
        return values.astype(np.float64, copy=False)

    def mean(self, values: np.ndarray) -> float | None:
        """The mean of (q,) float64 values without those that are NaN; None where all are."""
        kept = values[~np.isnan(values)]
        return float(kept.mean()) if len(kept) else None

    @property
    def built_in(self) -> bool:
        """Whether it comes with divcon."""
        return _built_in(self.name) is self

    def to_dict(self) -> dict[str, Any]:
        """What a result keeps of a metric of your own, so that it is shown without importing it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("name", "compute")}


def metric(
    *, depth: Depth, name: str | None = None, higher_is_better: bool = True, percent: bool = True
) -> Callable[[Compute], Metric]:
    """Turn a function of a `Ranking` into a metric. A decorator.

    Args:
        depth: how deep a ranking it needs: a number of ranks, ``"R"`` (as many as the query has matches) or ``"all"``.
        name: its key in results; None: the function's name.
        higher_is_better: False for a metric that is better when it is lower.
        percent: show 0.5 as 50.0 %.

    Example:
        >>> @metric(depth=10)
        ... def any_two_in_ten(ranking: Ranking) -> np.ndarray:
        ...     return ranking.hits.sum(axis=1) >= 2
    """

    def of(compute: Compute) -> Metric:
        own = name or getattr(compute, "__name__", "")
        return Metric(own, compute, depth, higher_is_better=higher_is_better, percent=percent)

    return of


@cache
def recall_at(k: int) -> Metric:
    """1 where any of the first k items is a hit, else 0."""
    return Metric(f"recall_at_{k}", lambda ranking: np.minimum(ranking.num_hits, 1.0), k)


@cache
def precision_at(k: int) -> Metric:
    """The share of hits among the first k items."""
    return Metric(f"precision_at_{k}", lambda ranking: ranking.num_hits / k, k)


def _share_of_matches(ranking: Ranking) -> np.ndarray:
    return ranking.num_hits / ranking.num_matches


def _average_precision(ranking: Ranking) -> np.ndarray:
    return ranking.sum_over_hits(ranking.hit_number / ranking.hit_rank) / ranking.num_matches


def _average_precision_of_hits(ranking: Ranking) -> np.ndarray:
    """As both papers' code computes its mARP: divided by the hits within the first R ranks, and 0 where there are none.
    MAP@R divides by R, so that it is never higher: what is not found counts there."""
    return ranking.sum_over_hits(ranking.hit_number / ranking.hit_rank) / np.maximum(ranking.num_hits, 1)


def _trapezoidal_average_precision(ranking: Ranking) -> np.ndarray:
    number, rank = ranking.hit_number, ranking.hit_rank
    before = np.where(rank > 1, (number - 1) / np.maximum(rank - 1, 1), 1.0)
    return ranking.sum_over_hits((before + number / rank) / 2) / ranking.num_matches


METRICS: Mapping[str, Metric] = {
    row.name: row
    for row in (
        Metric("r_precision", _share_of_matches, "R"),
        Metric("map_at_r", _average_precision, "R"),
        Metric("marp", _average_precision_of_hits, "R"),
        Metric("map", _average_precision, "all"),
        Metric("map_trapezoidal", _trapezoidal_average_precision, "all"),
    )
}
"""By name, beside ``recall_at_k`` and ``precision_at_k`` of every k."""
MARP = (
    "mARP, as the papers have it, is divided by the matches that are found and not by all of them: it is never below "
    "MAP@R, and does not compare with it"
)
"""What is said beside the score ``marp``."""
_AT_K = {"recall_at_": recall_at, "precision_at_": precision_at}


def default_metrics(recall_at_k: Iterable[int], precision_at_k: Iterable[int], full: bool) -> list[Metric]:
    """The rows that `divcon.evaluation.retrieval_metrics` computes by itself.

    Args:
        full: both mean average precisions over the whole ranking, too.
    """
    names = ["r_precision", "map_at_r"] + (["map", "map_trapezoidal"] if full else [])
    return [*map(recall_at, recall_at_k), *map(precision_at, precision_at_k), *(METRICS[name] for name in names)]


def metrics_of(chosen: Iterable[str | Metric]) -> list[Metric]:
    """Rows of the table by name (``map``, ``recall_at_100``), and your own: ``module:Name``, or the `Metric` itself.

    Raises:
        ConfigError: there is no such metric; two have one name; or what is imported is not a `Metric`.
    """
    rows: dict[str, Metric] = {}
    for row in map(_metric_of, [chosen] if isinstance(chosen, str | Metric) else chosen):
        for other in (_built_in(row.name), rows.get(row.name)):
            if other not in (None, row):
                raise ConfigError(f"there is another metric {row.name!r}; rename yours", field="metrics")
        rows[row.name] = row
    return list(rows.values())


def _metric_of(one: object) -> Metric:
    metric = load_part(one, "metric") if isinstance(one, str) and is_named(one) else one
    if isinstance(metric, str):
        row = _built_in(metric)
        if row is None:
            raise ConfigError(
                f"{unknown('metric', metric, [*METRICS, 'recall_at_1', 'precision_at_1'])}; one of your own is named "
                "module:Name",
                field="metrics",
            )
        return row
    if not isinstance(metric, Metric):
        raise ConfigError(
            f"metric {one!r}: is not a divcon.evaluation.Metric; decorate the function with "
            "@divcon.evaluation.metric(depth=...), the depth of ranking that it needs",
            field="metrics",
        )
    return metric


def _built_in(name: str) -> Metric | None:
    if name in METRICS:
        return METRICS[name]
    for prefix, family in _AT_K.items():
        k = name.removeprefix(prefix)
        if k != name and k.isdecimal() and int(k) >= 1:
            return family(int(k))
    return None


def compute_metrics(rows: Sequence[Metric], block: RankedBlock) -> dict[str, np.ndarray]:
    """The values of each metric, (q,) float64, by its name."""
    by_depth: dict[Depth, Ranking] = {}
    return {row.name: row(by_depth.setdefault(row.depth, Ranking(block, row.depth))) for row in rows}


@dataclass(frozen=True)
class Score:
    """One score of a result, and how it is shown."""

    name: str
    value: float
    std: float | None = None
    """Its standard deviation over seeds or draws, where there is one."""
    interval: tuple[float, float] | None = None
    """Its 95 % interval, where there is one."""
    interval_method: str = "bootstrap over classes"
    higher_is_better: bool = True
    percent: bool = True

    @property
    def title(self) -> str:
        """The name, with ``(lower is better)`` where that is so."""
        return self.name if self.higher_is_better else f"{self.name} (lower is better)"

    def text(self, value: float | None = None) -> str:
        """The value as text, or another one of this metric: ``56.9 %``."""
        value = self.value if value is None else value
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"

    def difference(self, value: float) -> str:
        """A difference of two values as text: ``+1.2``, in points where the score is a percentage."""
        return f"{100 * value:+.1f}" if self.percent else f"{value:+.4g}"


def scores_in(result: Mapping[str, Any]) -> list[Score]:
    """The scores of what `divcon.evaluate` returned, in its order."""
    rows = result.get("metrics")
    rows = rows if isinstance(rows, Mapping) else {}
    scores = []
    for name, value in result.items():
        if not isinstance(value, float) or name.endswith("_std") or name in _RESERVED - {"nmi", "ami"}:
            continue
        row, interval = rows.get(name) or {}, result.get(f"{name}_interval")
        scores.append(
            Score(
                name,
                value,
                std=result.get(f"{name}_std"),
                interval=(interval[0], interval[1]) if interval else None,
                interval_method=str(result.get(f"{name}_interval_method", Score.interval_method)),
                higher_is_better=bool(row.get("higher_is_better", True)),
                percent=bool(row.get("percent", True)),
            )
        )
    return scores


_TITLES = {
    "nmi": "NMI",
    "ami": "AMI",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "marp": "mARP",
    "map": "mAP",
}
_AT = {"recall_at_": "Recall@", "precision_at_": "Precision@"}


def score_title(name: str) -> str:
    """A score's name as papers write it: ``Recall@1`` for ``recall_at_1``; of your own metrics, the name."""
    for prefix, title in _AT.items():
        if (k := name.removeprefix(prefix)) != name and k.isdecimal():
            return f"{title}{k}"
    return _TITLES.get(name, "mAP (trapezoidal)" if name == "map_trapezoidal" else name)


def queries_in_words(result: Mapping[str, Any]) -> str:
    """How many queries a result of `divcon.evaluate` is of: ``6,000``, or ``20,000 of 1,000,000`` of a sample."""
    total = result.get("num_queries_total")
    return f"{result['num_queries']:,}" + ("" if total is None else f" of {total:,}")


def clustered_in_words(result: Mapping[str, Any]) -> str | None:
    """What NMI and AMI of a result are of, where they are of a sample; else None."""
    clustered = result.get("clustered")
    if clustered is None:
        return None
    classes = "one class" if clustered["num_classes"] == 1 else f"{clustered['num_classes']:,} classes"
    return (
        f"NMI and AMI are of {clustered['num_items']:,} of {clustered['num_items_total']:,} items, all items of "
        f"{classes} drawn at random"
    )
