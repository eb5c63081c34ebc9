"""The nearest centroid, again and again as they move, against comparing all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.division.kmeans import Nearest, squared_distances
from divcon.runtime.context import Context


@pytest.mark.heavy
@given(st.integers(0, 9999), st.integers(1, 9), st.sampled_from([2, 16]), st.sampled_from([1e-3, 0.1, 1.0]))
@settings(deadline=None)
def test_moving_centroids_have_the_points_that_comparing_all_gives_them(
    seed: int, num_clusters: int, dim: int, move: float
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((60, dim)).astype(np.float32)
    centroids = points[rng.choice(60, num_clusters, replace=False)].copy()
    x = torch.from_numpy(points)
    norms = (x * x).sum(dim=1)
    nearest = Nearest(x, norms, num_clusters, Context())
    for _ in range(8):
        expected = ((points[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
        assignment = nearest(torch.from_numpy(centroids.copy())).numpy()
        np.testing.assert_allclose(expected[np.arange(60), assignment], expected.min(axis=1), rtol=1e-6, atol=1e-5)
        last = expected.min(axis=1)
        some = rng.integers(num_clusters)  # one goes further than the others
        centroids += (move / 10 * rng.standard_normal(centroids.shape)).astype(np.float32)
        centroids[some] += (move * rng.standard_normal(dim)).astype(np.float32)
    np.testing.assert_allclose(nearest.distances().numpy(), last, rtol=1e-5, atol=1e-4)


def test_points_that_no_centroid_comes_near_are_not_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    centres = torch.eye(8) * 10
    x = centres.repeat_interleave(50, 0) + torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    x[:20] = (centres[0] + centres[1]) / 2 + 0.01 * x[:20]
    compared: list[int | None] = []
    compare = Nearest._compare
    monkeypatch.setattr(
        Nearest,
        "_compare",
        lambda self, c, points: compared.append(None if points is None else len(points)) or compare(self, c, points),
    )
    nearest = Nearest(x, (x * x).sum(dim=1), 8, Context())
    nearest(centres)
    nearest(centres + 0.2)
    assert compared[0] is None and compared[1] is not None and 20 <= compared[1] < 100


def test_distances_of_some_points_are_those_of_all() -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    norms, centroids, at = (x * x).sum(dim=1), x[:3], torch.tensor([49, 3, 3, 0])
    torch.testing.assert_close(
        squared_distances(x, norms, centroids, at), squared_distances(x, norms, centroids)[at], rtol=1e-5, atol=1e-5
    )
