"""The metric object for loops of one's own: it returns what `divcon.retrieval_metrics` does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.errors import DataError
from divcon.evaluation import RetrievalMetrics
from divcon.runtime.distributed import ProcessGroup
from divcon.runtime.launch import launch

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(np.arange(12), 7))
VECTORS = (RNG.normal(size=(12, 6))[LABELS] + 1.3 * RNG.normal(size=(len(LABELS), 6))).astype(np.float32)
KEYS = ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "r_precision", "map_at_r")


def scores(**options: Any) -> dict[str, float]:
    result = dc.retrieval_metrics(VECTORS, LABELS, metric="cosine", **options)
    return {name: result[name] for name in KEYS}


@pytest.mark.parametrize("size", [1, 10, 84, 100])
def test_batches_of_any_size_give_the_scores_of_all(size: int) -> None:
    metrics = RetrievalMetrics()
    for start in range(0, len(LABELS), size):
        batch = slice(start, start + size)
        metrics.update(torch.from_numpy(VECTORS[batch]), torch.from_numpy(LABELS[batch]))
    assert metrics.compute() == scores()
    assert metrics.compute() == scores() and len(metrics) == len(LABELS)  # computing changes nothing
    metrics.reset()
    with pytest.raises(ValueError, match=r"no item was added; call update\(\)"):
        metrics.compute()
    metrics.update(VECTORS, LABELS)
    assert metrics.compute() == scores()


def test_queries_search_in_a_gallery_and_not_for_themselves() -> None:
    metrics = RetrievalMetrics((1, 5), metrics=["map"], prefix="val/", metric="euclidean")
    ids = np.arange(len(LABELS))
    metrics.update(VECTORS[:30], LABELS[:30].astype(str), ids[:30])
    metrics.update(VECTORS[20:50], LABELS[20:50].astype(str), ids[20:50], gallery=True)
    metrics.update(VECTORS[50:], LABELS[50:].astype(str), ids[50:], gallery=True)
    apart: dict[str, Any] = {"gallery_embeddings": VECTORS[20:], "gallery_labels": LABELS[20:]}
    expected = dc.retrieval_metrics(
        VECTORS[:30], LABELS[:30], **apart, ids=ids[:30], gallery_ids=ids[20:], recall_at=(1, 5), map=True
    )
    names = ("recall_at_1", "recall_at_5", "r_precision", "map_at_r", "map")
    assert metrics.compute() == {f"val/{name}": expected[name] for name in names}


def test_an_item_that_a_sampler_repeats_counts_once() -> None:
    metrics, naive = RetrievalMetrics(), RetrievalMetrics()
    ids = np.arange(len(LABELS))
    for rows in (ids, ids[:16]):  # as a sampler fills the last batch
        metrics.update(VECTORS[rows], LABELS[rows], rows)
        naive.update(VECTORS[rows], LABELS[rows])
    assert metrics.compute() == scores()
    assert naive.compute()["recall_at_1"] > scores()["recall_at_1"]


def test_precisions_and_what_does_not_fit() -> None:
    metrics = RetrievalMetrics(half=True)
    metrics.update(torch.from_numpy(VECTORS).bfloat16().requires_grad_(), torch.from_numpy(LABELS))
    assert metrics.compute()["map_at_r"] == pytest.approx(scores()["map_at_r"], abs=0.02)
    assert metrics._sides[False].all()[0].dtype == np.float16
    with pytest.raises(ValueError, match=r"of shape \(84, 6\) with labels of shape \(3,\)"):
        metrics.update(VECTORS, LABELS[:3])
    with pytest.raises(ValueError, match=r"of 6 dimensions without ids were added before, and now of 5 without ids"):
        metrics.update(VECTORS[:, :5], LABELS, gallery=True)
    with pytest.raises(ValueError, match="now of 6 with ids"):
        metrics.update(VECTORS, LABELS, LABELS)
    unmatched = RetrievalMetrics()
    unmatched.update(VECTORS[:1], LABELS[:1])
    with pytest.raises(DataError, match="has a match"):
        unmatched.compute()
    some = RetrievalMetrics(max_queries=20, seed=3)
    some.update(VECTORS, LABELS)
    assert some.compute() == scores(max_queries=20, seed=3)


def of_rank(group: ProcessGroup) -> list[dict[str, float]]:
    """The ranks have unlike numbers of items, and one has none of the gallery."""
    ids = np.arange(len(LABELS))
    rows = ids[:20] if group.rank else ids[20:]
    metrics, gallery = RetrievalMetrics(), RetrievalMetrics()
    metrics.update(VECTORS[rows], LABELS[rows].astype(str), rows)
    if group.rank:
        metrics.update(VECTORS[30:36], LABELS[30:36].astype(str), ids[30:36])  # those of the other rank again
        gallery.update(VECTORS[:20], LABELS[:20])
    else:
        gallery.update(VECTORS[20:], LABELS[20:], gallery=True)
    return [metrics.compute(), gallery.compute()]


@pytest.mark.heavy
def test_ranks_gather_their_items() -> None:
    with launch(2, "batch", "cpu", of_rank) as group:
        leave_one_out, apart = of_rank(group)
    assert leave_one_out == pytest.approx(scores())
    expected = dc.retrieval_metrics(
        VECTORS[:20], LABELS[:20], gallery_embeddings=VECTORS[20:], gallery_labels=LABELS[20:], metric="cosine"
    )
    assert apart == pytest.approx({name: expected[name] for name in KEYS})
