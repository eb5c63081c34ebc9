"""divcon's k-means, which divides, beside faiss's and scikit-learn's.

    python benchmarks/kmeans.py                      # 120,000 × 2,048, as large as ResNet-50's features of SOP twice
    python benchmarks/kmeans.py --clusters 32

All have the points in memory, of length one around ``--groups`` centres, use all of them, and stop where nothing moves
or after 25 iterations; divcon starts from a greedy k-means++, as scikit-learn does, faiss from points drawn at random.
The inertia that each ends with is in the results. How runs are timed: benchmarks/turns.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from turns import Contender, compare

ITERATIONS = 25
CONTENDERS = {
    "divcon": Contender("divcon", "kmeans", "divcon"),
    "faiss": Contender("faiss-cpu", "Kmeans, no points left out", "divcon"),
    "sklearn": Contender("scikit-learn", "KMeans, lloyd, one start", "divcon"),
}


def points_of(n: int, dim: int, groups: int) -> np.ndarray:
    """(n, dim) float32 of length one."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((groups, dim), dtype=np.float32)
    points = rng.standard_normal((n, dim), dtype=np.float32)
    points += centres[rng.integers(0, groups, n)]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def prepare(contender: str, n: int, dim: int, clusters: int, groups: int) -> Callable[[], dict[str, float]]:
    points = points_of(n, dim, groups)
    if contender == "divcon":
        from divcon.division.kmeans import kmeans

        def ours() -> dict[str, float]:
            result = kmeans(points, clusters, seed=0, max_iterations=ITERATIONS)
            return {"inertia": result.inertia, "iterations": result.iterations}

        return ours
    if contender == "faiss":
        import faiss

        def theirs() -> dict[str, float]:
            clustering = faiss.Kmeans(
                points.shape[1], clusters, niter=ITERATIONS, seed=1, max_points_per_centroid=len(points)
            )
            clustering.train(points)
            distances, _ = clustering.index.search(points, 1)
            return {"inertia": float(distances.sum()), "iterations": len(clustering.iteration_stats)}

        return theirs
    from sklearn.cluster import KMeans

    def of_sklearn() -> dict[str, float]:
        result = KMeans(clusters, n_init=1, max_iter=ITERATIONS, random_state=0).fit(points)
        return {"inertia": float(result.inertia_), "iterations": int(result.n_iter_)}

    return of_sklearn


SIZES = {
    "n": (120_000, "points"),
    "dim": (2048, "their features"),
    "clusters": (8, "K"),
    "groups": (500, "centres that they lie around"),
}

if __name__ == "__main__":
    compare(__file__, __doc__, CONTENDERS, SIZES, "k-means of {n:,} × {dim:,}, K {clusters}", prepare)
