"""Exact neighbours, against sorting every distance in float64."""

import tracemalloc

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.errors import NonFiniteError
from divcon.evaluation.neighbours import Space, as_vectors, nearest, neighbour_blocks, smallest_products
from divcon.evaluation.task import Exclusion

METRICS = ("euclidean", "cosine", "inner")


def nearness(q, g, metric):
    q, g = q.astype(np.float64), g.astype(np.float64)
    if metric == "euclidean":
        return ((q - g) ** 2).sum()
    product = (q * g).sum()
    if metric == "cosine":
        norms = np.sqrt((q * q).sum()) * np.sqrt((g * g).sum())
        product = round(product / norms, 12) if norms else 0.0
    return -product


def slow_nearest(query, gallery, k, metric="euclidean", excluded=lambda i, j: False):
    """Sorts (distance, index) of every admissible pair."""
    indices = np.full((len(query), k), -1)
    distances = np.full((len(query), k), np.inf if metric == "euclidean" else -np.inf, dtype=np.float32)
    for i, q in enumerate(query):
        ranking = sorted((nearness(q, g, metric), j) for j, g in enumerate(gallery) if not excluded(i, j))
        for place, (value, j) in enumerate(ranking[:k]):
            indices[i, place] = j
            distances[i, place] = np.sqrt(value) if metric == "euclidean" else -value
    return indices, distances


def vectors(kind, n=64):
    generator = np.random.default_rng(5)
    if kind == "integers":
        return generator.integers(-2, 3, (n, 4)).astype(np.float32)
    if kind == "large integers":
        return generator.integers(0, 256, (n, 32)).astype(np.float32)
    if kind == "unit":
        points = generator.standard_normal((n, 16)).astype(np.float32)
        return points / np.linalg.norm(points, axis=1, keepdims=True)
    if kind == "duplicates":
        return np.repeat(generator.standard_normal((n // 8, 16)).astype(np.float32), 8, axis=0)
    if kind == "one point":
        return np.full((n, 5), 0.1, dtype=np.float32)
    if kind == "nearly one point":
        return (1 + 1e-6 * generator.standard_normal((n, 5))).astype(np.float32)
    if kind == "far from the origin":
        return (1e4 + generator.standard_normal((n, 5))).astype(np.float32)
    if kind == "one far item":
        points = generator.standard_normal((n, 5)).astype(np.float32)
        points[-1] *= 1e6
        return points
    return generator.standard_normal((n, 5)) * {"huge": 1e30, "tiny": 1e-30}[kind]


KINDS = (
    "integers",
    "large integers",
    "unit",
    "duplicates",
    "one point",
    "nearly one point",
    "far from the origin",
    "one far item",
    "huge",
    "tiny",
)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # products of huge vectors, in float32
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_and_distances_are_those_of_sorting_everything(kind, metric):
    points = vectors(kind)
    query = points[::4]
    exclude = Exclusion.equal(np.arange(0, 64, 4), np.arange(64))
    expected, distances = slow_nearest(query, points, 64, metric, lambda i, j: j == 4 * i)
    for k in (1, 7, 64):
        for backend in ("faiss", "torch"):
            for memory_mb in (100, 0.001):
                indices, near = nearest(
                    query, points, k, metric=metric, exclude=exclude, backend=backend, memory_mb=memory_mb
                )
                assert indices.dtype == np.int64 and near.dtype == np.float32
                np.testing.assert_array_equal(indices, expected[:, :k])
                np.testing.assert_array_equal(near, distances[:, :k])


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_small_integers(data):
    num_queries, num_gallery = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 60))
    size, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 65))
    numbers = st.integers(-1, 2)
    shape = st.lists(numbers, min_size=size, max_size=size)
    query = np.array(data.draw(st.lists(shape, min_size=num_queries, max_size=num_queries)))
    gallery = np.array(data.draw(st.lists(shape, min_size=num_gallery, max_size=num_gallery)))
    groups = [np.array(data.draw(st.lists(numbers, min_size=n, max_size=n))) for n in (num_queries, num_gallery)]
    metric = data.draw(st.sampled_from(METRICS))
    expected = slow_nearest(query, gallery, k, metric, lambda i, j: groups[0][i] == groups[1][j] >= 0)
    for backend in ("faiss", "torch"):
        result = nearest(query, gallery, k, metric=metric, exclude=Exclusion.equal(*groups), backend=backend)
        np.testing.assert_array_equal(result[0], expected[0])
        np.testing.assert_array_equal(result[1], expected[1])


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_a_tie_that_runs_on_beyond_what_was_fetched_goes_to_the_lowest_indices(backend):
    generator = np.random.default_rng(0)
    gallery = generator.standard_normal((3000, 8)).astype(np.float32) + 5
    tied = np.sort(generator.permutation(3000)[:700])
    gallery[tied] = 0
    query = np.zeros((2, 8), dtype=np.float32)
    query[1] = 0.01
    indices, _ = nearest(query, gallery, 5, backend=backend)
    assert (indices == tied[:5]).all()


def test_leave_one_out_leaves_out_the_item_and_keeps_its_duplicates():
    points = np.array([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 1.0]])
    indices, distances = nearest(points, points, 3, exclude=Exclusion.itself(4))
    assert indices.tolist() == [[1, 3, 2], [0, 3, 2], [0, 1, 3], [0, 1, 2]]
    assert distances[:, 0].tolist() == [0, 0, 3, 0]


def test_rows_with_too_few_admissible_items_are_padded():
    points = np.array([[0.0], [1.0], [2.0]])
    indices, distances = nearest(points, points, 4, exclude=Exclusion.equal([0, 1, -1], [0, 0, 5]))
    assert indices.tolist() == [[2, -1, -1, -1], [1, 0, 2, -1], [2, 1, 0, -1]]
    assert distances[0].tolist() == [2, np.inf, np.inf, np.inf]
    assert nearest(points, points, 4, metric="inner")[1][:, 3].tolist() == [-np.inf] * 3


def test_many_excluded_items_are_fetched_past():
    points = np.random.default_rng(1).standard_normal((600, 4)).astype(np.float32)
    groups = np.arange(600) % 2  # half the gallery is out, the nearest items among it
    points += 10 * groups[:, None]
    indices, _ = nearest(points[:40], points, 3, exclude=Exclusion.equal(groups[:40], groups))
    expected, _ = slow_nearest(points[:40], points, 3, excluded=lambda i, j: groups[i] == groups[j])
    assert (indices == expected).all()


@pytest.mark.parametrize("kind", ["integers", "unit"])
def test_rankings_longer_than_faiss_does_well(kind):
    points = vectors(kind, 2600)
    indices = np.concatenate([b.indices for b in neighbour_blocks(points[:20], points, 2300, distances=False)])
    squared = ((points[:20, None].astype(np.float64) - points.astype(np.float64)) ** 2).sum(axis=2)
    assert (indices == np.argsort(squared, axis=1, kind="stable")[:, :2300]).all()


def test_faiss_and_torch_agree_to_the_bit():
    points = vectors("unit", 1600)
    points[800:] = points[:800]
    for metric in METRICS:
        ours = [
            nearest(points, points, 30, metric=metric, exclude=Exclusion.itself(1600), backend=backend)
            for backend in ("faiss", "torch")
        ]
        np.testing.assert_array_equal(ours[0][0], ours[1][0])
        np.testing.assert_array_equal(ours[0][1], ours[1][1])


@pytest.mark.heavy
def test_blocks_come_in_order_and_shrink_with_the_budget():
    points = vectors("unit", 100)
    whole = nearest(points, points, 10)
    for memory_mb, least in ((100, 1), (0.05, 5), (0.0001, 100)):
        blocks = list(neighbour_blocks(points, points, 10, memory_mb=memory_mb))
        assert len(blocks) >= least
        assert [b.start for b in blocks] == np.cumsum([0] + [len(b.indices) for b in blocks])[:-1].tolist()
        np.testing.assert_array_equal(np.concatenate([b.indices for b in blocks]), whole[0])
        np.testing.assert_array_equal(np.concatenate([b.distances for b in blocks]), whole[1])


@pytest.mark.parametrize("kind", ["unit", "one point"])
def test_full_rankings_stay_under_the_budget(kind):
    points = vectors(kind, 3000)
    tracemalloc.start()
    try:
        for block in neighbour_blocks(points[:300], points, 3000, memory_mb=6, distances=False):
            assert block.indices.shape[1] == 3000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20  # all at once would take ten times that


def test_products_stay_under_the_budget(monkeypatch):
    sizes = []

    def measured(function):
        def call(*args):
            result = function(*args)
            for tensor in (result, *args):
                if isinstance(tensor, torch.Tensor):
                    sizes.append(tensor.numel() * tensor.element_size())
            return result

        return call

    monkeypatch.setattr(Space, "_products", measured(Space._products))
    monkeypatch.setattr("divcon.evaluation.neighbours.smallest_products", measured(smallest_products))
    points = vectors("unit", 3000)
    for k, backend in ((1, "torch"), (2100, "faiss")):
        list(neighbour_blocks(points[:200], points, k, backend=backend, memory_mb=4, distances=False))
        assert 2**17 < max(sizes) < 2**21
        sizes.clear()


def test_both_begin_and_the_faster_goes_on(monkeypatch):
    used, sizes, slower, now = [], [], "", [0]
    monkeypatch.setattr("divcon.evaluation.neighbours.time.perf_counter", lambda: now[0])
    for name in ("_by_faiss", "_by_torch"):
        search = getattr(Space, name)

        def slowed(self, vectors, reach, search=search, name=name):
            used.append(name)
            sizes.append(len(vectors))
            now[0] += len(vectors) * (2 if name == slower else 1)
            return search(self, vectors, reach)

        monkeypatch.setattr(Space, name, slowed)
    points = vectors("unit", 600)
    expected = nearest(points, points, 5, backend="faiss")
    monkeypatch.setattr("divcon.evaluation.neighbours._TRIAL", 100)
    # Fewer elements than its threshold faiss compares in a slower way, which says nothing of the rest.
    for threshold, enough in ((1, 100), (150 * points.shape[1] - 1, 150)):
        monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", threshold)
        for slower, faster in (("_by_faiss", "_by_torch"), ("_by_torch", "_by_faiss")):
            used.clear()
            sizes.clear()
            result = nearest(points, points, 5)
            assert used == ["_by_torch", "_by_faiss", faster] and used.count(slower) == 1
            assert sizes == [enough, enough, 600 - 2 * enough]
            np.testing.assert_array_equal(result[0], expected[0])
            np.testing.assert_array_equal(result[1], expected[1])
    for some in (points[:149], points[:299]):  # too few for faiss
        used.clear()
        np.testing.assert_array_equal(nearest(some, points, 5)[0], expected[0][: len(some)])
        assert set(used) == {"_by_torch"}
    used.clear()
    np.testing.assert_array_equal(nearest(points, points, 5, memory_mb=0.3)[0], expected[0])  # at a time, too
    assert set(used) == {"_by_torch"} and len(used) > 2


def test_a_thorough_search_fetches_no_more_than_may_tie():
    points = vectors("unit", 500)
    points[100:120] = points[7]
    space = Space(points, points, "euclidean", device=torch.device("cpu"), backend="faiss", budget=2**26)
    assert space.thorough(np.arange(5), 3)[1].shape == (5, 3)
    assert space.thorough(np.array([0, 7]), 3)[1].shape == (2, 21)


def test_a_collapsed_model_costs_one_ranking_a_block(monkeypatch):
    ranked = []
    thorough = Space.thorough
    monkeypatch.setattr(
        Space, "thorough", lambda self, rows, reach: ranked.append(len(rows)) or thorough(self, rows, reach)
    )
    points = vectors("one point", 1000)
    indices, _ = nearest(points, points, 4, exclude=Exclusion.itself(1000))
    assert ranked == [1]
    assert indices[500].tolist() == [0, 1, 2, 3] and indices[1].tolist() == [0, 2, 3, 4]


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_quick_values_lie_within_their_error_bounds(kind, metric, dtype, monkeypatch):
    points = vectors(kind, 1000)
    for backend in ("faiss", "torch"):
        space = Space(points, points, metric, device=torch.device("cpu"), backend=backend, budget=2**26)
        monkeypatch.setattr(space, "dtype", lambda reach: dtype)
        rows = np.arange(0, 1000, 10)
        values, items, error = space.quick(rows, 1000)
        exact = space.exact(np.repeat(rows, 1000), items.ravel()).reshape(values.shape)
        scale = {"euclidean": space._scale**2, "inner": space._scale**2, "cosine": 1.0}[metric]
        # Half the bound, so that another processor's or library's rounding has room.
        assert (np.abs(values - exact * scale) <= error / 2 + 1e-300).all()


def test_the_training_precision_around_changes_nothing():
    points = vectors("unit", 400)
    expected = nearest(points, points, 10, backend="torch")
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = nearest(points, points, 10, backend="torch")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])


def test_autocast_does_not_reach_the_products(monkeypatch):
    searches = []
    search = Space._by_torch
    monkeypatch.setattr(Space, "_by_torch", lambda self, *args: searches.append(search(self, *args)) or searches[-1])
    points = vectors("unit", 100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nearest(points, points, 10, backend="torch", metric="inner")
    products = -searches[0][0] / -searches[0][0][0, 0]  # the vectors were scaled
    np.testing.assert_allclose(products, np.sort(points @ points.T)[:, ::-1][:, : products.shape[1]], atol=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16),
        torch.tensor([[1, 2], [3, 4]]),
        np.array([[1, 2], [3, 4]], dtype=np.float16),
        np.array([[1.0, 2.0], [3.0, 4.0]], order="F"),
        [[1, 2], [3, 4]],
    ],
)
def test_vectors_of_any_kind(values):
    result = as_vectors(values, "query")
    assert result.tolist() == [[1, 2], [3, 4]] and result.dtype in (np.float32, np.float64)
    assert result.flags.c_contiguous


def test_float64_is_compared_as_float64():
    points = np.array([[0.0], [1.0 + 1e-12], [1.0]])
    assert nearest(points[:1], points, 3)[0].tolist() == [[0, 2, 1]]


def test_broken_vectors_are_named():
    points = np.ones((20, 3))
    points[[2, 7]] = np.nan
    points[11, 1] = np.inf
    with pytest.raises(NonFiniteError, match=r"gallery: 3 of 20 rows .*: 2, 7, 11$"):
        neighbour_blocks(np.ones((1, 3)), points, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": np.ones(3)}, r"query: an array of shape \(N, D\)"),
        ({"gallery": np.ones((0, 3))}, "gallery: there are no vectors"),
        ({"gallery": np.ones((2, 4))}, "3 dimensions, gallery items 4"),
        ({"query": np.array([["a"]])}, "numbers are needed"),
        ({"k": 0}, "k must be at least 1"),
        ({"metric": "l2"}, "euclidean, cosine, inner"),
        ({"backend": "scann"}, "faiss or torch"),
        ({"exclude": Exclusion.itself(5)}, "codes of 5 queries"),
        ({"query": np.full((1, 3), 1e300)}, "overflow"),
    ],
)
def test_what_cannot_be_searched_is_said_at_the_call(changed, message):
    arguments = {"query": np.ones((2, 3)), "gallery": np.ones((4, 3)), "k": 1} | changed
    with pytest.raises(ValueError, match=message):
        neighbour_blocks(**arguments)
