"""What subspaces are worth: against scores of embeddings put together by hand, and plain loops."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.evaluation import retrieval_metrics, similarity_correlations, subspace_order
from divcon.evaluation.subspaces import greedy_order, kept_part, ordering_split, sample_of

Make = Callable[..., dc.EmbeddingModel]
FIXED = {"method": "masks", "head_options": {"kind": "fixed"}}


def joined(model: dc.EmbeddingModel, images: LabeledSet, learners: list[int]) -> np.ndarray:
    """The embeddings of some learners of slices, side by side."""
    return np.concatenate([model.encode(images, learner=k) for k in sorted(learners)], axis=1) / len(learners) ** 0.5


def by_hand(model: dc.EmbeddingModel, images: LabeledSet, learners: list[int]) -> dict[str, float]:
    return retrieval_metrics(joined(model, images, learners), images.labels)


def test_a_part_of_slices_is_their_embeddings_side_by_side(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model(num_learners=3, method="slices")  # of 6, 5 and 5
    parts = model.head.dimensions()
    assert [len(part) for part in parts] == [6, 5, 5]
    embeddings = model.encode(few.query)
    for learners in ([0], [2], [2, 0], [1, 2], [0, 1, 2]):
        part = kept_part(embeddings, [parts[k] for k in learners])
        np.testing.assert_allclose(part, joined(model, few.query, learners), atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("validation", [False, True])
def test_parts_left_out_and_best_few_equal_scores_by_hand(tiny_model: Make, few: Benchmark, validation: bool) -> None:
    model = tiny_model(num_learners=3, method="slices")
    data = few.with_validation(0.3) if validation else few
    result = dc.evaluate(model, data, parts=True, clustering=False)
    for k, scores in enumerate(result["without"]):
        expected = by_hand(model, few.query, [other for other in range(3) if other != k])
        assert scores["recall_at_1"] == pytest.approx(expected["recall_at_1"])
        assert scores["map_at_r"] == pytest.approx(expected["map_at_r"])
    assert result["ordered_on"] == ("validation" if validation else "train")
    order = result["by_size"][-1]["learners"]
    assert order == subspace_order(model, data.validation or data.train)
    assert sorted(order) == [0, 1, 2]
    for n, scores in enumerate(result["by_size"], 1):
        assert scores["learners"] == order[:n]
        assert scores["dims"] == sum(len(model.head.dimensions()[k]) for k in order[:n])
        assert scores["map_at_r"] == pytest.approx(by_hand(model, few.query, order[:n])["map_at_r"])
    assert result["by_size"][-1]["recall_at_1"] == pytest.approx(result["recall_at_1"])
    json.dumps(result)


@pytest.mark.heavy
def test_each_step_of_the_order_is_the_best_of_those_left(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model(num_learners=4, method="slices")
    order = subspace_order(model, few.train)
    for n in range(4):
        step = {
            k: (scores["recall_at_1"], scores["map_at_r"])
            for k in range(4)
            if k not in order[:n]
            for scores in [by_hand(model, few.train, [*order[:n], k])]
        }
        assert step[order[n]] == max(step.values())
    assert subspace_order(model, few.train, 9) == order[:2]
    assert subspace_order(model, few.train, features=model.features(few.train)) == order


@pytest.mark.heavy
def test_test_classes_do_not_choose_the_order(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model(num_learners=4, method="slices")
    rng = np.random.default_rng(0)
    other = replace(few.query, labels=rng.permutation(few.query.labels))
    changed = replace(few, query=other, gallery=other)
    one, two = (dc.evaluate(model, data, parts=True, clustering=False) for data in (few, changed))
    assert one["recall_at_1"] != two["recall_at_1"]
    assert [s["learners"] for s in one["by_size"]] == [s["learners"] for s in two["by_size"]]
    # Whose classes choose can be reported.
    third = dc.evaluate(model, few.query, parts=True, clustering=False, order_by=few)
    assert [s["learners"] for s in third["by_size"]] == [s["learners"] for s in one["by_size"]]


def test_a_gallery_is_cut_as_the_queries_are(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model(num_learners=2, **FIXED)
    rows = np.arange(len(few.query))
    query, gallery = few.query.subset(rows % 3 == 0), few.query.subset(rows % 3 != 0)
    result = dc.evaluate(model, replace(few, query=query, gallery=gallery), parts=True, clustering=False)
    for k in range(2):
        expected = retrieval_metrics(
            model.encode(query, learner=1 - k),
            query.labels,
            gallery_embeddings=model.encode(gallery, learner=1 - k),
            gallery_labels=gallery.labels,
        )
        assert result["without"][k]["map_at_r"] == pytest.approx(expected["map_at_r"], abs=1e-4)


def test_what_cannot_be_said_is_left_out(tiny_model: Make, few: Benchmark) -> None:
    def keys(model: dc.EmbeddingModel, data: Benchmark | LabeledSet) -> set[str]:
        result = dc.evaluate(model, data, parts=True, clustering=False)
        assert ("by_size" in result) == ("ordered_on" in result)
        return {"without", "by_size", "similarity_correlations"} & result.keys()

    assert keys(tiny_model(1), few) == set()
    assert keys(tiny_model(2, method="masks"), few) == {"similarity_correlations"}
    assert keys(tiny_model(2, **FIXED), few) == {"without", "by_size", "similarity_correlations"}
    assert keys(tiny_model(2, method="slices"), few.query) == {"without", "similarity_correlations"}
    assert "without" not in dc.evaluate(tiny_model(2, method="slices"), few, clustering=False)
    with pytest.raises(ValueError, match="share dimensions"):
        subspace_order(tiny_model(2, method="masks"), few.train)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    dims=st.integers(1, 24),
    seed=st.integers(0, 1000),
)
def test_greedy_takes_as_many_parts_as_fit_and_the_best_at_each_step(sizes: list[int], dims: int, seed: int) -> None:
    count = len(sizes)
    table = np.random.default_rng(seed).integers(0, 4, size=2**count)

    def worth(chosen: list[int]) -> tuple[float]:
        return (float(table[sum(1 << k for k in chosen)]),)

    sets = [s for n in range(1, count + 1) for s in combinations(range(count), n) if sum(sizes[k] for k in s) <= dims]
    if not sets:
        with pytest.raises(ValueError, match="smallest subspace"):
            greedy_order(sizes, worth, dims)
        return
    order = greedy_order(sizes, worth, dims)
    most = max(map(len, sets))
    assert len(order) == len(set(order)) == most
    assert sum(sizes[k] for k in order) <= dims
    for n in range(most):
        # Any part with which the most parts still fit.
        possible = [
            k
            for k in range(count)
            if k not in order[:n] and any(len(s) == most and {*order[:n], k} <= set(s) for s in sets)
        ]
        assert order[n] == min(possible, key=lambda k: (-worth([*order[:n], k])[0], k))


@given(
    labels=st.lists(st.integers(0, 6), max_size=120),
    most=st.integers(1, 60),
)
def test_a_sample_is_of_whole_classes_or_their_share(labels: list[int], most: int) -> None:
    images = vectors_of(np.array(labels, np.int64))
    sample = sample_of(images, most)
    np.testing.assert_array_equal(sample.rows, sample_of(images, most).rows)
    assert (np.diff(sample.rows) > 0).all()
    counts, all_counts = (np.bincount(s.labels, minlength=7) for s in (sample, images))
    pairs = int((all_counts >= 2).sum())
    assert (counts[all_counts < 2] == 0).all()
    assert (len(sample) > 0) == (pairs > 0)
    if pairs:
        share = max(16, most // pairs)
        assert all(drawn in (0, min(share, total)) for drawn, total in zip(counts, all_counts, strict=True))
        assert len(sample) <= most or sample.num_classes == 1
        np.testing.assert_array_equal(sample_of(sample, most).rows, sample.rows)


def vectors_of(labels: np.ndarray) -> LabeledSet:
    import pyarrow as pa

    n = len(labels)
    return LabeledSet(
        labels,
        tuple(f"c{i}" for i in range(7)),
        pa.array([f"{i}.png" for i in range(n)], pa.string()),
        np.arange(n, dtype=np.int64),
        "made",
        vectors=np.ones((n, 3), np.float32),
    )


def test_train_classes_choose_where_no_validation_class_has_a_pair() -> None:
    images = vectors_of(np.array([0, 0, 1, 2, 2, 2, 3]))
    train, single, test = (images.of_classes(np.array(c)) for c in ([0], [1, 3], [2]))
    name, chosen = ordering_split(Benchmark("made", train, test, test, validation=single)) or ("", test)
    assert (name, len(chosen)) == ("train", 2)
    assert ordering_split(Benchmark("made", single, test, test)) is None


def test_correlations_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(30, d)) for d in (3, 5, 2)]
    parts[2] = parts[0][:, :2] + 0.3 * parts[2]
    parts = [(p / np.linalg.norm(p, axis=1, keepdims=True)).astype(np.float32) for p in parts]
    correlations = similarity_correlations(parts)
    cosines = [[float(p[i] @ p[j]) for i, j in combinations(range(30), 2)] for p in parts]
    for i in range(3):
        for j in range(3):
            assert correlations[i][j] == pytest.approx(pearsonr(cosines[i], cosines[j]).statistic, abs=1e-5)
    assert correlations[0][2] == correlations[2][0] > correlations[0][1]  # type: ignore[operator]
    rotated = parts[1] @ np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
    assert similarity_correlations([parts[1], rotated])[0][1] == pytest.approx(1)


def test_a_subspace_that_tells_nothing_apart_is_like_none() -> None:
    live = np.eye(4, dtype=np.float32)[[0, 1, 0, 2]]
    for dead in (np.zeros((4, 2), np.float32), np.tile(np.float32([0.6, 0.8]), (4, 1))):
        assert similarity_correlations([live, dead]) == [[pytest.approx(1), None], [None, None]]
    assert similarity_correlations([live[:1], live[:1]]) == [[None, None], [None, None]]
