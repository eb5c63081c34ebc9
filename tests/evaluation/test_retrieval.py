"""Retrieval metrics, against loops over queries and ranks, and against pytorch-metric-learning."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import auc

from divcon.errors import DataError, NonFiniteError
from divcon.evaluation.retrieval import retrieval_metrics

RECALL_AT = (1, 2, 4, 8, 10)


def slow_metrics(query, labels, gallery, gallery_labels, admissible, recall_at=RECALL_AT, precision_at=(1,)):
    """Every definition, one query and one rank at a time."""
    each = []
    for i in range(len(query)):
        distances = [
            (sum((float(a) - float(b)) ** 2 for a, b in zip(query[i], gallery[j], strict=True)), j)
            for j in range(len(gallery))
            if admissible(i, j)
        ]
        hits = [gallery_labels[j] == labels[i] for _, j in sorted(distances)]
        num_matches = sum(hits)
        if num_matches == 0:
            each.append(None)
            continue
        precisions = [sum(hits[: rank + 1]) / (rank + 1) * hits[rank] for rank in range(len(hits))]
        area, old_recall, old_precision = 0.0, 0.0, 1.0
        for rank in range(len(hits)):
            recall, precision = sum(hits[: rank + 1]) / num_matches, sum(hits[: rank + 1]) / (rank + 1)
            area += (recall - old_recall) * (old_precision + precision) / 2
            old_recall, old_precision = recall, precision
        each.append(
            {f"recall_at_{k}": float(any(hits[:k])) for k in recall_at}
            | {f"precision_at_{k}": sum(hits[:k]) / k for k in precision_at}
            | {
                "r_precision": sum(hits[:num_matches]) / num_matches,
                "map_at_r": sum(precisions[:num_matches]) / num_matches,
                "map": sum(precisions) / num_matches,
                "map_trapezoidal": area,
            }
        )
    asked = [scores for scores in each if scores]
    means = {name: sum(scores[name] for scores in asked) / len(asked) for name in asked[0]} if asked else {}
    return means | {"num_queries": len(each), "num_queries_without_match": len(each) - len(asked)}, each


def assert_same(result, expected, tolerance=1e-12):
    assert list(result) == list(expected)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=tolerance), name


def clustered(num_classes=12, per_class=6, size=8, spread=1.0, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(num_classes), per_class))
    centres = generator.standard_normal((num_classes, size))
    points = centres[labels] + spread * generator.standard_normal((len(labels), size))
    return points.astype(np.float32), labels


@st.composite
def tied_tasks(draw):
    """Small integers as vectors (many ties and duplicates), labels, and all that may be excluded."""

    def side(n):
        column = st.lists(st.integers(0, 2), min_size=n, max_size=n).map(np.array)
        vector = st.lists(st.integers(-1, 1), min_size=2, max_size=2)
        points = draw(st.lists(vector, min_size=n, max_size=n).map(np.array))
        return points, {name: draw(column) for name in ("labels", "ids", "cameras")} | {"groups": draw(column) - 1}

    query = side(draw(st.integers(1, 9)))
    gallery = query if draw(st.booleans()) else side(draw(st.integers(1, 12)))
    used = draw(st.sets(st.sampled_from(["ids", "cameras", "groups"])))
    return query, gallery, sorted(used)


@given(tied_tasks(), st.sampled_from([1024, 0.0001]))
@settings(max_examples=100, deadline=None)
def test_integer_vectors_score_exactly_as_in_loops(task, memory_mb):
    (query, columns), (gallery, others), used = task
    leave_one_out = query is gallery

    def admissible(i, j):
        return not (
            (leave_one_out and i == j)
            or ("ids" in used and columns["ids"][i] == others["ids"][j])
            or (
                "cameras" in used
                and columns["cameras"][i] == others["cameras"][j]
                and columns["labels"][i] == others["labels"][j]
            )
            or ("groups" in used and columns["groups"][i] == others["groups"][j] >= 0)
        )

    passed = {name: columns[name] for name in used}
    if not leave_one_out:
        passed |= {f"gallery_{name}": others[name] for name in (*used, "labels")}
        passed["gallery_embeddings"] = gallery
    at = {"recall_at": (1, 3, 40), "precision_at": (1, 5)}
    expected, each = slow_metrics(query, columns["labels"], gallery, others["labels"], admissible, **at)
    options = {"map": True, "per_query": True, "memory_mb": memory_mb} | at
    if not any(each):
        with pytest.raises(DataError, match=f"none of the {len(query)} queries has a match"):
            retrieval_metrics(query, columns["labels"], **passed, **options)
        return
    result = retrieval_metrics(query, columns["labels"], **passed, **options)
    per_query = result.pop("per_query")
    assert_same(result, expected)
    for i, scores in enumerate(each):
        for name, values in per_query.items():
            if name == "num_matches":
                same = [others["labels"][j] == columns["labels"][i] for j in range(len(gallery))]
                assert values[i] == sum(same[j] and admissible(i, j) for j in range(len(gallery)))
            elif scores is None:
                assert np.isnan(values[i])
            else:
                assert values[i] == pytest.approx(scores[name], abs=1e-12)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_real_vectors_score_as_in_loops(spread):
    points, labels = clustered(spread=spread)
    expected, _ = slow_metrics(points, labels, points, labels, lambda i, j: i != j)
    assert_same(retrieval_metrics(points, labels, map=True), expected, 1e-9)


def test_classes_of_very_unequal_sizes_score_as_in_loops():
    generator = np.random.default_rng(3)
    labels = generator.permutation(np.repeat(np.arange(5), [1, 2, 10, 50, 70]))
    points = generator.standard_normal((len(labels), 3)) + labels[:, None] / 3
    expected, _ = slow_metrics(points, labels, points, labels, lambda i, j: i != j)
    del expected["map"], expected["map_trapezoidal"]
    assert_same(retrieval_metrics(points, labels), expected, 1e-9)
    assert expected["num_queries_without_match"] == 1


def test_marp_divides_by_the_hits_found_and_map_at_r_by_all_of_them():
    """The papers' mARP is never lower: over the same R ranks, it forgets the matches that are not among them."""
    points, labels = clustered(spread=2.0)
    result = retrieval_metrics(points, labels, metrics=["marp"], per_query=True)
    for i, ours in enumerate(result["per_query"]["marp"]):
        distances = sorted((float(((points[i] - points[j]) ** 2).sum()), j) for j in range(len(points)) if j != i)
        num_matches = int((labels == labels[i]).sum()) - 1
        hits = [labels[j] == labels[i] for _, j in distances][:num_matches]
        precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
        assert ours == pytest.approx(sum(precisions) / len(precisions) if precisions else 0.0)
        assert ours >= result["per_query"]["map_at_r"][i]
    assert result["marp"] > 1.3 * result["map_at_r"] > 0
    assert 0 in result["per_query"]["marp"]  # a query that finds none counts


@pytest.mark.parametrize("query_and_gallery", [False, True])
def test_pytorch_metric_learning_agrees(query_and_gallery):
    points, labels = clustered(num_classes=30, per_class=7, spread=1.2, seed=1)
    points, labels = np.append(points, points[:1] + 9, axis=0), np.append(labels, 77)  # one without a match
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_average_precision")
    if query_and_gallery:
        sides = points[::2], labels[::2], points[1::2], labels[1::2]
        result = retrieval_metrics(*sides[:2], gallery_embeddings=sides[2], gallery_labels=sides[3], map=True)
    else:
        sides = points, labels
        result = retrieval_metrics(points, labels, map=True)
    tensors = [torch.from_numpy(np.ascontiguousarray(side)) for side in sides]
    expected = {}
    for k, include in (("max_bin_count", names[:3]), (None, names[3:])):
        calculator = AccuracyCalculator(include=include, k=k, device=torch.device("cpu"))
        expected |= calculator.get_accuracy(*tensors)
    for ours, theirs in zip(("precision_at_1", "r_precision", "map_at_r", "map"), names, strict=True):
        assert 0.05 < result[ours] < 0.95
        assert result[ours] == pytest.approx(expected[theirs], abs=1e-6)


def test_scikit_learn_agrees_on_the_area_by_trapezoids():
    points, labels = clustered(num_classes=10, per_class=5, spread=1.2, seed=2)
    areas = retrieval_metrics(points, labels, map=True, per_query=True)["per_query"]["map_trapezoidal"]
    for i, area in enumerate(areas):
        others = np.argsort(np.square(points - points[i]).sum(1), kind="stable")
        hits = labels[others[others != i]] == labels[i]
        precision, recall = np.cumsum(hits) / np.arange(1, len(hits) + 1), np.cumsum(hits) / hits.sum()
        assert area == pytest.approx(auc(np.append(0, recall), np.append(1, precision)), abs=1e-9)


def test_a_worked_example():
    # Ranking of query 0: b a a b a; R = 3.
    points = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]
    result = retrieval_metrics(
        points[:1],
        ["a"],
        gallery_embeddings=points[1:],
        gallery_labels=["b", "a", "a", "b", "a"],
        precision_at=(1, 2, 10),
        recall_at=(1, 2),
        map=True,
    )
    expected = {
        "recall_at_1": 0.0,
        "recall_at_2": 1.0,
        "precision_at_1": 0.0,
        "precision_at_2": 0.5,
        "precision_at_10": 0.3,
        "r_precision": 2 / 3,
        "map_at_r": (1 / 2 + 2 / 3) / 3,
        "map": (1 / 2 + 2 / 3 + 3 / 5) / 3,
        "map_trapezoidal": ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3,
        "num_queries": 1,
        "num_queries_without_match": 0,
    }
    assert_same(result, expected)


def test_the_keys_and_their_order_are_fixed():
    points, labels = clustered()
    assert list(retrieval_metrics(points, labels)) == [
        *(f"recall_at_{k}" for k in RECALL_AT),
        "precision_at_1",
        "r_precision",
        "map_at_r",
        "num_queries",
        "num_queries_without_match",
    ]
    assert "recall_at_1000" in retrieval_metrics(points, labels, recall_at=(1, 1000))
    json.dumps(retrieval_metrics(points, labels))


def test_duplicates_of_the_query_are_retrieved_and_the_query_is_not():
    points = [[0.0], [0.0], [0.0], [9.0]]
    result = retrieval_metrics(points, ["a", "b", "b", "a"], recall_at=(1, 2, 3), per_query=True)
    # Of three equal images, item 0 finds 1 first, items 1 and 2 find 0 first; item 3 finds 0.
    assert result["per_query"]["recall_at_1"].tolist() == [0, 0, 0, 1]
    assert result["per_query"]["recall_at_2"].tolist() == [0, 1, 1, 1]
    assert result["recall_at_3"] == 1


def test_a_query_without_match_is_counted_and_not_averaged():
    points, labels = clustered()
    alone = np.append(labels, "alone")
    result = retrieval_metrics(np.append(points, points[:1] + 1e3, axis=0), alone, per_query=True)
    expected = retrieval_metrics(points, labels)
    assert result["num_queries_without_match"] == 1 and result["num_queries"] == len(alone)
    per_query = result["per_query"]
    assert np.isnan(per_query["recall_at_1"][-1]) and np.isfinite(per_query["recall_at_1"][:-1]).all()
    for name in ("recall_at_1", "r_precision", "map_at_r"):
        assert result[name] == pytest.approx(expected[name], abs=1e-12)
        assert result[name] == pytest.approx(np.nanmean(per_query[name]), abs=1e-12)


def test_the_embeddings_as_their_own_gallery_are_leave_one_out():
    points, labels = clustered()
    both = retrieval_metrics(points, labels, gallery_embeddings=points, gallery_labels=labels)
    assert both == retrieval_metrics(points, labels)
    assert both["recall_at_1"] < 1  # else each would retrieve itself


def test_the_protocol_of_market_1501():
    # Same identity and camera: ignored, and no match either; another identity in the same camera counts.
    result = retrieval_metrics(
        [[0.0], [0.0]],
        [1, 2],
        gallery_embeddings=[[0.0], [1.0], [2.0]],
        gallery_labels=[1, 2, 1],
        cameras=[0, 0],
        gallery_cameras=[0, 0, 5],
        recall_at=(1, 2),
        per_query=True,
    )
    assert result["per_query"]["num_matches"].tolist() == [1, 0]
    assert result["recall_at_1"] == 0 and result["recall_at_2"] == 1
    assert result["num_queries_without_match"] == 1


def market_task(seed=0, num_classes=15, per_class=7):
    """Queries and gallery with cameras, distractors (label 0) and junk (label -1, the group of all queries)."""
    points, labels = clustered(num_classes, per_class, size=6, spread=1.5, seed=seed)
    generator = np.random.default_rng(seed)
    labels, cameras = labels + 1, generator.integers(0, 3, len(labels))
    more = np.repeat([0, -1], 20)
    query = np.arange(30)
    rest = {
        "gallery_embeddings": np.append(points[30:], generator.standard_normal((40, 6)), axis=0),
        "gallery_labels": np.append(labels[30:], more),
        "gallery_cameras": np.append(cameras[30:], generator.integers(0, 3, 40)),
        "groups": np.zeros(30, int),
        "gallery_groups": np.append(np.full(len(points) - 30, -1), np.where(more < 0, 0, -1)),
    }
    return points[query], labels[query], {"cameras": cameras[query], **rest}


def slow_characteristic(query, labels, task, last):
    """Market-1501's protocol (Zheng et al. 2015, "Scalable Person Re-identification"), one query at a time: of its
    ranking, junk and images of its own person in its own camera are taken out; it counts at each rank from its first
    right image on."""
    counts, queries = [0] * last, 0
    for i in range(len(query)):
        order = sorted(
            range(len(task["gallery_labels"])),
            key=lambda j: float(((query[i] - task["gallery_embeddings"][j]) ** 2).sum()),
        )
        good = []
        for j in order:
            label, camera = task["gallery_labels"][j], task["gallery_cameras"][j]
            if label == -1 or (label == labels[i] and camera == task["cameras"][i]):
                continue
            good.append(label == labels[i])
        if not any(good):
            continue
        queries += 1
        for rank in range(last):
            counts[rank] += any(good[: rank + 1])
    return [count / queries for count in counts]


@pytest.mark.parametrize("last", [1, 5, 50, 500])
def test_the_cumulative_match_characteristic_is_that_of_market_1501(last):
    query, labels, task = market_task()
    result = retrieval_metrics(query, labels, **task, recall_at=(1, 3), cmc=last)
    assert result["cmc"] == slow_characteristic(query, labels, task, last)
    assert len(result["cmc"]) == last and result["cmc"][0] == result["recall_at_1"] < 1
    json.dumps(result)


def test_torchreid_agrees_on_the_characteristic_and_map(torchreid):
    query, labels, task = market_task(seed=1)
    kept = task["gallery_labels"] >= 0  # torchreid takes junk out when it reads
    points, others, cameras = (task[f"gallery_{name}"][kept] for name in ("embeddings", "labels", "cameras"))
    distances = np.square(query[:, None] - points).sum(axis=2)
    rank = torchreid("reid/metrics/rank.py")
    curve, mean = rank.evaluate_rank(distances, labels, others, task["cameras"], cameras, max_rank=20, use_cython=False)
    result = retrieval_metrics(query, labels, **task, cmc=20, map=True)
    assert result["cmc"] == pytest.approx(curve.tolist(), abs=1e-6)
    assert result["map"] == pytest.approx(mean, abs=1e-6)
    assert 0.1 < result["cmc"][0] < result["cmc"][-1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_the_characteristic_never_falls_and_is_recall_at_each_rank(seed, last):
    query, labels, task = market_task(seed, num_classes=8, per_class=5)
    ranks = tuple(range(1, last + 1))
    result = retrieval_metrics(query, labels, **task, recall_at=ranks, cmc=last)
    assert result["cmc"] == [result[f"recall_at_{k}"] for k in ranks] == sorted(result["cmc"])
    assert retrieval_metrics(query, labels, **task, recall_at=(1,), cmc=last)["cmc"] == result["cmc"]


def test_given_distances_score_as_the_vectors_they_are_of():
    query, labels, task = market_task()
    expected = retrieval_metrics(query, labels, **task, map=True, cmc=9)
    distances = np.square(query[:, None] - task.pop("gallery_embeddings")).sum(axis=2)
    for memory_mb in (1024, 0.01):
        result = retrieval_metrics(
            distances, labels, **task, metric="precomputed", map=True, cmc=9, memory_mb=memory_mb
        )
        assert result == expected
    points, labels = clustered()
    distances = np.square(points[:, None] - points).sum(axis=2)
    assert retrieval_metrics(distances, labels, metric="precomputed") == retrieval_metrics(points, labels)


def test_labels_of_any_kind_score_alike():
    points, labels = clustered()
    expected = retrieval_metrics(points, labels)
    assert retrieval_metrics(torch.from_numpy(points), torch.from_numpy(labels)) == expected
    assert retrieval_metrics(points.tolist(), [f"class {label}" for label in labels]) == expected
    assert retrieval_metrics(points, labels - 100) == expected


def test_cosine_ignores_lengths():
    points, labels = clustered()
    lengths = np.random.default_rng(0).uniform(0.1, 10, (len(points), 1))
    cosine = retrieval_metrics(points * lengths, labels, metric="cosine")
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert cosine == pytest.approx(retrieval_metrics(unit, labels), abs=1e-9)
    assert cosine != retrieval_metrics(points * lengths, labels)


@pytest.mark.heavy
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 3))
@settings(max_examples=25, deadline=None)
def test_invariants(seed, spread):
    points, labels = clustered(num_classes=6, per_class=4, size=4, spread=spread, seed=seed)
    assume(len(np.unique(points, axis=0)) == len(points))
    generator = np.random.default_rng(seed)
    recall_at = tuple(range(1, 24))
    base = retrieval_metrics(points, labels, recall_at=recall_at, map=True)

    recalls = [base[f"recall_at_{k}"] for k in recall_at]
    assert recalls == sorted(recalls) and recalls[-1] == 1
    assert base["map_at_r"] <= base["r_precision"] <= 1 and base["map_at_r"] <= base["map"] + 1e-12

    identity = {"gallery_embeddings": points.copy(), "gallery_labels": labels}
    ids = {"ids": np.arange(24), "gallery_ids": np.arange(24)}
    by_ids = retrieval_metrics(points, labels, **identity, **ids, recall_at=recall_at, map=True)
    assert by_ids == base

    order = generator.permutation(24)
    permuted = {"gallery_embeddings": points[order], "gallery_labels": labels[order], "gallery_ids": order}
    shuffled = retrieval_metrics(points, labels, ids=np.arange(24), **permuted, recall_at=recall_at, map=True)
    assert shuffled == base

    far = {
        "gallery_embeddings": np.append(points, [[1e3] * 4], axis=0),
        "gallery_labels": np.append(labels, 99),
        "gallery_ids": np.arange(25),
    }
    with_far = retrieval_metrics(points, labels, ids=np.arange(24), **far, recall_at=recall_at, map=True)
    assert with_far == base

    small = retrieval_metrics(points, labels, recall_at=recall_at, map=True, memory_mb=0.0001)
    assert small == base


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": [0, 1]}, "labels has 2 entries for 3 embeddings"),
        ({"labels": None}, "labels are needed"),
        ({"labels": [0.5, 1, 1]}, "whole numbers or strings"),
        ({"embeddings": np.ones(3)}, r"embeddings: an array of shape \(N, D\)"),
        ({"embeddings": np.ones((0, 2)), "labels": []}, "there are no vectors"),
        ({"gallery_embeddings": np.ones((2, 2))}, "gallery_labels is needed where labels is passed"),
        ({"gallery_embeddings": np.ones((2, 2)), "gallery_labels": [1]}, "gallery_labels has 1 entries for 2"),
        ({"cmc": 0}, "cmc, the last rank, must be at least 1, not 0"),
        ({"metric": "precomputed"}, r"distances of shape \(3, 2\): pass \(Q, G\) with gallery_labels"),
        ({"metric": "precomputed", "gallery_labels": [1] * 3}, "gallery_labels has 3 entries for 2 gallery items"),
        ({"metric": "precomputed", "gallery_labels": [1, 1], "gallery_embeddings": np.ones((2, 2))}, r"\(Q, G\)"),
        ({"gallery_embeddings": np.ones((2, 3)), "gallery_labels": [1, 1]}, "2 dimensions, gallery items 3"),
        ({"gallery_embeddings": np.ones((1, 2)), "gallery_labels": ["1"]}, "never match"),
        ({"gallery_labels": [1, 1, 0]}, "the gallery is the queries themselves"),
        ({"gallery_ids": [1, 2, 3]}, "ids is needed where gallery_ids is passed"),
        ({"cameras": [1]}, "cameras has 1 entries"),
        ({"groups": ["a", "b", "c"]}, "groups: whole numbers are needed"),
        ({"recall_at": (0, 1)}, "at least 1"),
        ({"precision_at": (-1,)}, "at least 1"),
    ],
)
def test_bad_input_is_reported(changed, message):
    arguments = {"embeddings": np.eye(3, 2), "labels": [0, 1, 1]} | changed
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(arguments.pop("embeddings"), arguments.pop("labels"), **arguments)


def test_broken_embeddings_are_named():
    points = np.ones((4, 2))
    points[2] = np.inf
    with pytest.raises(NonFiniteError, match="embeddings: 1 of 4 rows hold NaN or infinite values: 2"):
        retrieval_metrics(points, [0, 0, 1, 1])


@given(st.integers(1, 60), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_some_queries_are_those_of_all_and_search_among_all(most: int, seed: int) -> None:
    points, labels = clustered(num_classes=9, per_class=5, spread=1.5)
    labels[:4] = np.arange(100, 104)  # without a match
    every = retrieval_metrics(points, labels, per_query=True)["per_query"]
    some = retrieval_metrics(points, labels, per_query=True, max_queries=most, seed=seed)
    each = some.pop("per_query")
    if most >= 41:
        assert "num_queries_total" not in some and "position" not in each
        assert some == retrieval_metrics(points, labels)
        return
    place = each.pop("position")
    assert len(set(place.tolist())) == most == some["num_queries"] and (np.sort(place) == place).all()
    assert (some["num_queries_total"], some["num_queries_without_match"]) == (45, 4)
    for name, values in each.items():
        assert np.array_equal(values, every[name][place])
    assert some["map_at_r"] == pytest.approx(every["map_at_r"][place].mean())


def test_each_query_with_a_match_may_be_drawn() -> None:
    points, labels = clustered(num_classes=9, per_class=5)
    labels[:4] = np.arange(100, 104)
    drawn = [
        retrieval_metrics(points, labels, per_query=True, max_queries=5, seed=seed)["per_query"]["position"]
        for seed in range(100)
    ]
    assert set(np.concatenate(drawn).tolist()) == set(range(4, 45))
    with pytest.raises(ValueError, match="max_queries must be at least 1, not 0"):
        retrieval_metrics(points, labels, max_queries=0)
