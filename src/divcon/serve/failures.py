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
from divcon.search.items import absolute, key_of
from divcon.serve.items import rows_of
from divcon.serve.run_data import RunData

WORST, CONFUSED, PAIRS = 48, 30, 24
"""The numbers of queries, pairs of classes and near-duplicates that are shown."""
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


def failures(index: Index, scores: dict[str, Any], run_data: RunData | None) -> dict[str, Any]:
    """The failures, for JSON: ``summary``, ``worst`` queries with their neighbours, ``confused`` pairs of classes, and
    ``pairs`` of a test and a train image that are near-duplicates."""
    each = scores["per_query"]
    splits = run_data.splits if run_data else {}
    ids = _ids_of(index, each["path"], run_data)
    gallery = splits.get("test", splits.get("gallery", index.store.ids()))
    gallery_ids, gallery_vectors = _vectors(index, sampled(gallery[gallery >= 0], _MAX_GALLERY, (0,)))
    metric = next((name for name in ("map_at_r", "r_precision") if name in each), "recall_at_1")
    known = [i for i, value in enumerate(each["recall_at_1"]) if value is not None]
    known.sort(key=lambda i: (each["recall_at_1"][i], each[metric][i] if each[metric][i] is not None else 1.0, i))
    failed = [i for i in known if each["recall_at_1"][i] == 0]
    searched = list(dict.fromkeys([*known[:WORST], *sampled(np.array(failed, np.int64), _MAX_QUERIES, (0,)).tolist()]))
    near = _near(index, {i: ids[i] for i in searched if ids[i] >= 0}, gallery_ids, gallery_vectors)
    rows = rows_of(index, sorted({ids[i] for i in known[:WORST]} | {j for hits in near.values() for j, _ in hits}))

    worst = []
    for i in known[:WORST]:
        hits = [{**rows[j].to_dict(score), "right": rows[j].label == each["label"][i]} for j, score in near.get(i, [])]
        own = {name: each[name][i] for name in ("recall_at_1", "r_precision", "map_at_r") if name in each}
        item = rows[ids[i]].to_dict() if ids[i] in rows else None
        worst.append({"path": each["path"][i], "label": each["label"][i], "scores": own, "item": item, "hits": hits})

    confused: Counter[tuple[str, str]] = Counter()
    examples: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for i in failed:
        if near.get(i) and (other := rows[near[i][0][0]].label) not in (None, each["label"][i]):
            pair = (each["label"][i], str(other))
            confused[pair] += 1
            examples[pair].append(ids[i])
    total = Counter(each["label"][i] for i in known)
    summary = {name: scores[name] for name in ("recall_at_1", "r_precision", "map_at_r", "protocol", "split_hash")
               if name in scores}  # fmt: skip
    return {
        "summary": summary | {"queries": len(known), "failed": len(failed), "in_index": sum(i >= 0 for i in ids)},
        "worst": worst,
        "confused": [
            {"label": a, "taken_for": b, "queries": n, "of": total[a], "examples": examples[a, b][:4]}
            for (a, b), n in confused.most_common(CONFUSED)
        ],
        "pairs": _pairs(index, splits),
        "split_known": bool(splits),
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
