"""Re-ranking by k-reciprocal encoding: against the paper's sets, one item at a time, and against torchreid."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from divcon.errors import ConfigError, NonFiniteError
from divcon.evaluation import ReRanking, reranked_distances, retrieval_metrics


def slow_reranked(query, gallery, k1, k2, weight):
    """Zhong et al. 2017, one pair at a time; comments say where the authors' code counts otherwise than the text."""
    items = [[float(x) for x in vector] for vector in [*query, *gallery]]  # code: the queries too are neighbours
    everything = range(len(items))
    squared = [
        [sum((a - b) ** 2 for a, b in zip(items[i], items[j], strict=True)) for j in everything] for i in everything
    ]
    # Code: from each item, distances are shares of its largest.
    distance = [[d / max(max(row), 1e-300) for d in row] for row in squared]
    rest = [sorted((j for j in everything if j != i), key=lambda j: (squared[i][j], j)) for i in everything]

    def nearest(i, k):
        """N(i, k), Eq. 1. Code: the item itself, and k others."""
        return {i, *rest[i][:k]}

    def mutual(i, k):
        """R(i, k), Eq. 2."""
        return {j for j in nearest(i, k) if i in nearest(j, k)}

    def expanded(i):
        """R*(i, k1), Eq. 3."""
        members = set(mutual(i, k1))
        for j in mutual(i, k1):
            half = mutual(j, round(k1 / 2))
            # Text: at least two thirds. Code: more.
            if 3 * len(half & mutual(i, k1)) > 2 * len(half):
                members |= half
        return members

    encodings = []
    for i in everything:
        # V, Eq. 6: exp(-d) where j is in R*(i), else 0. Code: divided by the sum.
        value = {j: math.exp(-distance[i][j]) for j in expanded(i)}
        encodings.append([value.get(j, 0) / sum(value.values()) for j in everything])
    # Local query expansion, section 3.4. Code: the item itself is the first of its k2.
    means = []
    for i in everything:
        near = [i, *rest[i]][:k2]
        means.append([sum(encodings[j][c] for j in near) / len(near) for c in everything])
    out = []
    for i in range(len(query)):
        row = []
        for j in range(len(query), len(items)):
            # The Jaccard distance of encodings, section 3.3, and the final distance, section 3.5.
            smaller = sum(map(min, means[i], means[j]))
            larger = sum(map(max, means[i], means[j]))
            row.append((1 - weight) * (1 - smaller / larger) + weight * distance[i][j])
        out.append(row)
    return np.array(out)


def scattered(num_query=9, num_gallery=31, size=5, seed=0, classes=6):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, num_query + num_gallery)
    points = generator.normal(size=(classes, size))[labels] + 0.7 * generator.normal(size=(len(labels), size))
    return points[:num_query], points[num_query:], labels[:num_query], labels[num_query:]


PARAMETERS = [(20, 6, 0.3), (6, 3, 0.3), (5, 1, 0.0), (1, 2, 0.5), (3, 7, 0.9), (100, 60, 0.3), (4, 2, 1.0)]


@pytest.mark.parametrize(("k1", "k2", "weight"), PARAMETERS)
def test_distances_are_those_of_the_paper_s_sets(k1, k2, weight):
    query, gallery, _, _ = scattered()
    reranked = reranked_distances(query, gallery, ReRanking(k1, k2, weight))
    assert reranked.shape == (9, 31) and reranked.dtype == np.float32
    np.testing.assert_allclose(reranked, slow_reranked(query, gallery, k1, k2, weight), atol=1e-6)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_points_that_coincide_and_tie_are_as_in_the_sets(data):
    numbers = st.lists(st.integers(-1, 1), min_size=2, max_size=2)
    query, gallery = (np.array(data.draw(st.lists(numbers, min_size=1, max_size=most))) for most in (4, 9))
    k1, k2 = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))
    weight = data.draw(st.sampled_from([0, 0.3, 1]))
    reranked = reranked_distances(query, gallery, ReRanking(k1, k2, weight))
    np.testing.assert_allclose(reranked, slow_reranked(query, gallery, k1, k2, weight), atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize(("k1", "k2", "weight"), PARAMETERS)
@pytest.mark.parametrize("size", [2, 16])
def test_torchreid_agrees(torchreid, size, k1, k2, weight):
    query, gallery, _, _ = scattered(40, 160, size, seed=1, classes=30)
    sides = (cdist(query, gallery), cdist(query, query), cdist(gallery, gallery))
    expected = torchreid("reid/utils/rerank.py").re_ranking(*sides, k1, k2, weight)
    assert expected.std() > 0.01
    np.testing.assert_allclose(reranked_distances(query, gallery, ReRanking(k1, k2, weight)), expected, atol=2e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_invariants(seed, k1, k2, weight):
    query, gallery, _, _ = scattered(seed=seed)
    rerank = ReRanking(k1, k2, weight)
    reranked = reranked_distances(query, gallery, rerank)
    assert (reranked >= 0).all() and (reranked <= 1).all()

    order = np.random.default_rng(seed).permutation(len(gallery))
    np.testing.assert_allclose(reranked_distances(query, gallery[order], rerank), reranked[:, order], atol=1e-6)
    order = np.random.default_rng(seed).permutation(len(query))
    np.testing.assert_allclose(reranked_distances(query[order], gallery, rerank), reranked[order], atol=1e-6)

    # Turned, moved and stretched: only the shares of distances count.
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    np.testing.assert_allclose(
        reranked_distances(7 * query @ turn + 3, 7 * gallery @ turn + 3, rerank), reranked, atol=1e-6
    )

    original = cdist(query, gallery)
    of_original = np.argsort(reranked_distances(query, gallery, ReRanking(k1, k2, 1.0)), axis=1, kind="stable")
    assert (of_original == np.argsort(original, axis=1)).all()


def test_little_memory_takes_more_blocks_and_gives_the_same():
    query, gallery, _, _ = scattered(30, 120)
    expected = reranked_distances(query, gallery)
    reranked = reranked_distances(query, gallery, memory_mb=1)
    np.testing.assert_array_equal(reranked, expected)


def test_each_item_among_the_others_is_as_if_it_were_asked_alone():
    points = np.concatenate(scattered(4, 20)[:2])
    rerank = ReRanking(5, 3)
    reranked = reranked_distances(points, rerank=rerank)
    for i in range(len(points)):
        others = np.delete(np.arange(len(points)), i)
        np.testing.assert_allclose(
            reranked[i, others], reranked_distances(points[[i]], points[others], rerank)[0], atol=1e-6
        )


def test_cosine_is_euclidean_between_directions():
    query, gallery, _, _ = scattered()
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, gallery)]
    reranked = reranked_distances(query, torch.from_numpy(gallery), ReRanking(6, 3), metric="cosine")
    np.testing.assert_allclose(reranked, reranked_distances(*unit, ReRanking(6, 3)), atol=1e-6)
    assert np.abs(reranked - reranked_distances(query, gallery, ReRanking(6, 3))).max() > 0.05


def test_equal_points_and_single_ones_have_distances():
    assert reranked_distances(np.ones((2, 3)), np.ones((4, 3))).tolist() == [[0.0] * 4] * 2
    assert reranked_distances(np.ones((1, 3))).tolist() == [[0.0]]
    one = np.tile(np.random.default_rng(0).normal(size=3), (50, 1))
    assert not reranked_distances(one, rerank=ReRanking(weight=1.0)).any()


class TestMetrics:
    """`retrieval_metrics` with ``rerank``."""

    def test_they_are_those_of_the_re_ranked_distances(self):
        query, gallery, labels, others = scattered(20, 60)
        rerank = ReRanking(6, 3, 0.2)
        at = {"recall_at": (1, 5), "cmc": 7, "map": True}
        result = retrieval_metrics(
            query, labels, gallery_embeddings=gallery, gallery_labels=others, rerank=rerank, **at
        )
        again = result.pop("reranked")
        assert result == retrieval_metrics(query, labels, gallery_embeddings=gallery, gallery_labels=others, **at)
        distances = reranked_distances(query, gallery, rerank)
        expected = retrieval_metrics(distances, labels, gallery_labels=others, metric="precomputed", **at)
        assert again == {"k1": 6, "k2": 3, "weight": 0.2} | {
            name: value for name, value in expected.items() if not name.startswith("num_")
        }
        assert again["map"] != result["map"]
        json.dumps(again)

    def test_weight_one_changes_no_score_and_both_maps_come_along(self):
        query, gallery, labels, others = scattered(20, 60)
        result = retrieval_metrics(
            query, labels, gallery_embeddings=gallery, gallery_labels=others, rerank=ReRanking(weight=1.0), cmc=3
        )
        for name, value in result.pop("reranked").items():
            assert name in ("k1", "k2", "weight") or result[name] == value, name
        assert {"map", "map_trapezoidal", "cmc", "recall_at_1", "r_precision"} <= set(result)

    def test_clusters_in_noise_come_nearer(self):
        query, gallery, labels, others = scattered(60, 400, 8, classes=25)
        result = retrieval_metrics(
            query, labels, gallery_embeddings=gallery, gallery_labels=others, rerank=ReRanking(12, 4)
        )
        assert result["reranked"]["map"] > result["map"] + 0.03

    def test_what_is_excluded_stays_so(self):
        query, gallery, labels, others = scattered(12, 50)
        generator = np.random.default_rng(2)
        cameras, other_cameras = generator.integers(0, 2, 12), generator.integers(0, 2, 50)
        groups, other_groups = np.zeros(12, int), np.where(np.arange(50) % 7 == 0, 0, -1)
        rerank = ReRanking(6, 3)
        result = retrieval_metrics(
            query,
            labels,
            gallery_embeddings=gallery,
            gallery_labels=others,
            cameras=cameras,
            gallery_cameras=other_cameras,
            groups=groups,
            gallery_groups=other_groups,
            rerank=rerank,
        )["reranked"]
        distances = slow_reranked(query, gallery, 6, 3, 0.3)
        precisions, firsts = [], []
        for i in range(12):
            kept = [
                j
                for j in np.argsort(distances[i])
                if other_groups[j] != 0 and not (others[j] == labels[i] and other_cameras[j] == cameras[i])
            ]
            hits = np.array([others[j] == labels[i] for j in kept])
            precisions.append(np.mean((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]))
            firsts.append(hits[0])
        assert result["map"] == pytest.approx(np.mean(precisions))
        assert result["recall_at_1"] == pytest.approx(np.mean(firsts))

    def test_leave_one_out_by_position_and_by_id(self):
        points, labels = np.concatenate(scattered(10, 40)[:2]), np.concatenate(scattered(10, 40)[2:])
        rerank = ReRanking(6, 3)
        expected = retrieval_metrics(points, labels, rerank=rerank)["reranked"]
        order = np.random.default_rng(0).permutation(50)
        result = retrieval_metrics(
            points[order[:50]],
            labels[order[:50]],
            ids=order,
            gallery_embeddings=points.copy(),
            gallery_labels=labels,
            gallery_ids=np.arange(50),
            rerank=rerank,
        )["reranked"]
        assert result == pytest.approx(expected, abs=1e-9)
        distances = reranked_distances(points, rerank=rerank)
        np.fill_diagonal(distances, -1)  # were it retrieved, it would come first
        alone = retrieval_metrics(distances, labels, metric="precomputed", map=True)
        assert {name: alone[name] for name in ("map", "recall_at_1", "r_precision")} == {
            name: expected[name] for name in ("map", "recall_at_1", "r_precision")
        }

    def test_a_query_that_is_in_the_gallery_is_one_item(self):
        points, labels = np.concatenate(scattered(10, 40)[:2]), np.concatenate(scattered(10, 40)[2:])
        # Items 8 to 49 are the gallery; of the queries 0 to 11, four are in it.
        result = retrieval_metrics(
            points[:12],
            labels[:12],
            ids=np.arange(12),
            gallery_embeddings=points[8:],
            gallery_labels=labels[8:],
            gallery_ids=np.arange(8, 50),
            rerank=ReRanking(6, 3),
        )["reranked"]
        distances = reranked_distances(points, rerank=ReRanking(6, 3))[:12, 8:]
        expected = retrieval_metrics(
            distances,
            labels[:12],
            gallery_labels=labels[8:],
            ids=np.arange(12),
            gallery_ids=np.arange(8, 50),
            metric="precomputed",
            map=True,
        )
        assert result["map"] == pytest.approx(expected["map"], abs=1e-12)

    @pytest.mark.parametrize("metric", ["inner", "precomputed"])
    def test_what_is_no_distance_between_vectors_is_refused(self, metric):
        with pytest.raises(ValueError, match=f"euclidean or cosine, not '{metric}'"):
            retrieval_metrics(np.eye(4), [0, 0, 1, 1], metric=metric, rerank=ReRanking())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k1": 0}, "k1 and k2 must be at least 1, not 0 and 6"),
        ({"k2": -1}, "k1 and k2 must be at least 1, not 20 and -1"),
        ({"weight": 1.5}, "weight must be from 0 to 1, not 1.5"),
        ({"weight": float("nan")}, "weight must be from 0 to 1, not nan"),
    ],
)
def test_parameters_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ReRanking(**values)


def test_bad_input_is_reported():
    with pytest.raises(ValueError, match="2 dimensions, gallery items 3"):
        reranked_distances(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(NonFiniteError, match="gallery: 1 of 2 rows"):
        reranked_distances(np.ones((2, 2)), np.array([[1, np.nan], [1, 1]]))


def test_memory_that_is_not_allowed_is_not_taken():
    points = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    for arguments, message in (
        ({"memory_mb": 20}, r"3,000 x 3,000 distances would take 34 MB, and memory_mb allows 20"),
        (
            {"memory_mb": 36, "rerank": ReRanking(k1=2999)},
            r"neighbours of 3,000 items at k1 2999 and k2 6 would take 378",
        ),
        ({"memory_mb": 36, "rerank": ReRanking(k2=200)}, r"encodings of 3,000 items at k1 20 and k2 200 would take"),
    ):
        tracemalloc.start()
        try:
            with pytest.raises(ConfigError, match=message):
                reranked_distances(points, **arguments)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2 * arguments["memory_mb"] * 2**20
