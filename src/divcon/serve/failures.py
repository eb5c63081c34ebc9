"""The failures of an evaluated run: its worst queries, the most confused classes, and near-duplicates across splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from divcon.errors import ConfigError
from divcon.evaluation.compare import read_scores as read_json
from divcon.runs.report.thumbnails import sampled
from divcon.search import Index
from divcon.search.digests import key_of
from divcon.search.items import absolute
from divcon.serve.items import rows_of
from divcon.serve.run_data import RunData

CONFUSED, EXAMPLES, PAIRS = 60, 2, 24
"""The largest numbers of pairs of classes, examples of each, and near-duplicates."""
_NEIGHBOURS = 6
_MAX_QUERIES, _MAX_GALLERY = 5_000, 50_000
"""Of more, a sample is searched."""
_DUPLICATE = 0.95
"""The cosine from which two images count as near-duplicates."""


def read_scores(path: Path) -> dict[str, Any]:
    """Read the scores that ``divcon evaluate --json`` wrote.

    Raises:
        DataError: the file cannot be read, or is not a JSON object.
        ConfigError: it lacks the scores of each query.
    """
    scores = read_json(path)
    each = scores.get("per_query")
    columns = [each.get(name) for name in ("path", "label", "recall_at_1")] if isinstance(each, dict) else []
    lengths = {len(column) if isinstance(column, list) else None for column in columns}
    if len(lengths) != 1 or None in lengths:
        raise ConfigError(
            f'`scores` {path}: has no scores of each query; pass the file that "divcon evaluate --json" writes',
            field="scores",
        )
    return scores


class Failures:
    """The failures of an evaluated run: computed once, and asked for by the page piece by piece."""

    def __init__(self, index: Index, scores: dict[str, Any], run_data: RunData | None) -> None:
        self._index = index
        self._scores = scores
        self._each = each = scores["per_query"]
        self._splits = run_data.splits if run_data else {}
        self._ids = _ids_of(index, each["path"], run_data)
        gallery = self._splits.get("test", self._splits.get("gallery", index.store.ids()))
        self._gallery = _vectors(index, sampled(gallery[gallery >= 0], _MAX_GALLERY, (0,)))
        metric = next((name for name in ("map_at_r", "r_precision") if name in each), "recall_at_1")
        hit, rank = each["recall_at_1"], each[metric]
        self._known = [i for i, value in enumerate(hit) if value is not None]
        self._failed = [i for i in self._known if hit[i] == 0]
        self._wrong = self._near(sampled(np.array(self._failed, np.int64), _MAX_QUERIES, (0,)).tolist())
        surest = {i: near[0][1] for i, near in self._wrong.items() if near}
        self._known.sort(key=lambda i: (hit[i], rank[i] if rank[i] is not None else 1.0, -surest.get(i, -1.0), i))
        self.overview = self._overview()

    def queries(self, label: str | None = None, offset: int = 0, limit: int = 10) -> dict[str, Any]:
        """Queries, those that failed first, of these the worst first, and of equally bad ones that whose wrong
        neighbour is the most similar, for JSON: ``total`` and ``queries``, each with ``path``, ``label``, ``scores``,
        ``item`` (None: not in the index) and its nearest ``hits``.

        Args:
            label: of this class alone.
        """
        each = self._each
        known = [i for i in self._known if label is None or each["label"][i] == label]
        wanted = known[offset : offset + limit]
        near = self._near(wanted)
        rows = rows_of(self._index, sorted({self._ids[i] for i in wanted} | {j for h in near.values() for j, _ in h}))
        queries = []
        for i in wanted:
            hits = [
                {**rows[j].to_dict(score), "right": rows[j].label == each["label"][i]}
                for j, score in near.get(i, [])
                if j in rows
            ]
            own = {name: each[name][i] for name in ("recall_at_1", "r_precision", "map_at_r") if name in each}
            item = rows[self._ids[i]].to_dict() if self._ids[i] in rows else None
            queries.append(
                {"path": each["path"][i], "label": each["label"][i], "scores": own, "item": item, "hits": hits}
            )
        return {"total": len(known), "queries": queries}

    def _near(self, queries: list[int]) -> dict[int, list[tuple[int, float]]]:
        return _near(self._index, {i: self._ids[i] for i in queries if self._ids[i] >= 0}, *self._gallery)

    def _overview(self) -> dict[str, Any]:
        """All but the queries, for JSON: ``summary``; ``classes`` with a failed query, most failures first;
        ``confused`` pairs of classes, each with examples of a query and its nearest neighbour; ``pairs`` of a test and
        a train image that are near-duplicates."""
        labels, scores = self._each["label"], self._scores
        near = self._wrong
        rows = rows_of(self._index, sorted({hits[0][0] for hits in near.values() if hits}))
        confused: Counter[tuple[str, str]] = Counter()
        examples: defaultdict[tuple[str, str], list[tuple[int, int, float]]] = defaultdict(list)
        for i in self._failed:
            if not near.get(i) or near[i][0][0] not in rows:
                continue
            nearest_id, score = near[i][0]
            if (other := rows[nearest_id].label) not in (None, labels[i]):
                confused[labels[i], str(other)] += 1
                examples[labels[i], str(other)].append((self._ids[i], nearest_id, score))
        total = Counter(labels[i] for i in self._known)
        failed = Counter(labels[i] for i in self._failed)
        shown = confused.most_common(CONFUSED)
        items = rows_of(
            self._index, sorted({id_ for pair, _ in shown for one in examples[pair][:EXAMPLES] for id_ in one[:2]})
        )
        names = ("recall_at_1", "r_precision", "map_at_r", "protocol", "split_hash")
        summary = {name: scores[name] for name in names if name in scores}
        return {
            "summary": summary
            | {
                "queries": len(self._known),
                "failed": len(self._failed),
                "in_index": sum(i >= 0 for i in self._ids),
            },
            "classes": [{"label": a, "failed": n, "queries": total[a]} for a, n in failed.most_common()],
            "confused": [
                {
                    "label": a,
                    "taken_for": b,
                    "queries": n,
                    "of": total[a],
                    "examples": [
                        {"query": items[i].to_dict(), "nearest": items[j].to_dict(score)}
                        for i, j, score in examples[a, b][:EXAMPLES]
                        if i in items and j in items
                    ],
                }
                for (a, b), n in shown
            ],
            "pairs": _pairs(self._index, self._splits),
            "split_known": bool(self._splits),
        }


def _ids_of(index: Index, paths: list[str], run_data: RunData | None) -> list[int]:
    """The id of each query; -1 if it is not in the index."""
    if run_data is not None and run_data.query_paths == paths:
        return run_data.splits.get("test", run_data.splits.get("query", np.empty(0))).tolist()
    as_written, from_here = [key_of(path) for path in paths], [key_of(absolute("", path)) for path in paths]
    known = index.store.lookup(list(dict.fromkeys([*as_written, *from_here])))
    pairs = zip(as_written, from_here, strict=True)
    return [next((known[key].id for key in pair if key in known), -1) for pair in pairs]


def _vectors(index: Index, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that are in the index, ascending, and their embeddings."""
    stored, vectors = index.store.embeddings(np.unique(ids))
    order = np.argsort(stored)
    return stored[order], vectors[order]


def _near(
    index: Index, queries: dict[int, int], gallery_ids: np.ndarray, gallery_vectors: np.ndarray
) -> dict[int, list[tuple[int, float]]]:
    """The nearest items of each query, without itself, and their cosines."""
    query_ids, vectors = _vectors(index, np.array(list(queries.values()), np.int64)) if queries else (np.empty(0), None)
    if not len(query_ids) or not len(gallery_ids):
        return {}
    from divcon.evaluation.neighbours import nearest

    places, cosines = nearest(vectors, gallery_vectors, min(_NEIGHBOURS + 1, len(gallery_ids)), metric="cosine")
    by_id = {
        int(id_): [(int(gallery_ids[p]), float(c)) for p, c in zip(*pair, strict=True) if gallery_ids[p] != id_]
        for id_, *pair in zip(query_ids, places, cosines, strict=True)
    }
    return {i: by_id[id_][:_NEIGHBOURS] for i, id_ in queries.items() if id_ in by_id}


def _pairs(index: Index, splits: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    train = splits.get("train", np.empty(0, np.int64))
    test = np.concatenate(
        [np.empty(0, np.int64), *(splits[name] for name in ("test", "query", "gallery") if name in splits)]
    )
    sides = [_vectors(index, sampled(ids[ids >= 0], _MAX_GALLERY // 5, (0,))) for ids in (test, train)]
    if not all(len(ids) for ids, _ in sides):
        return []
    from divcon.evaluation.neighbours import nearest

    places, cosines = nearest(sides[0][1], sides[1][1], 1, metric="cosine")
    best = [int(i) for i in np.argsort(-cosines[:, 0], kind="stable")[:PAIRS] if cosines[i, 0] >= _DUPLICATE]
    pairs = [(int(sides[0][0][i]), int(sides[1][0][places[i, 0]]), float(cosines[i, 0])) for i in best]
    rows = rows_of(index, sorted({id_ for pair in pairs for id_ in pair[:2]}))
    return [
        {"test": rows[a].to_dict(), "train": rows[b].to_dict(), "score": round(score, 6)}
        for a, b, score in pairs
        if a in rows and b in rows
    ]
