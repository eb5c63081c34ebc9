"""divcon's k-means, which divides, beside faiss's and scikit-learn's.

    python benchmarks/kmeans.py                      # 120,000 × 2,048, as large as ResNet-50's features of SOP twice
    python benchmarks/kmeans.py --clusters 32

All have the points in memory, of length one around ``--groups`` centres, use all of them, and stop where nothing moves
or after 25 iterations; divcon starts from a greedy k-means++, as scikit-learn does, faiss from points drawn at random.
The inertia that each ends with is in the results. How runs are timed: benchmarks/turns.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from turns import Contender, add_options, alternate, run_one, write

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


def prepare(contender: str, points: np.ndarray, clusters: int) -> Callable[[], dict[str, float]]:
    """What is timed, its imports done."""
    if contender == "divcon":
        from divcon.divide.kmeans import kmeans

        def ours() -> dict[str, float]:
            found = kmeans(points, clusters, seed=0, max_iterations=ITERATIONS)
            return {"inertia": found.inertia, "iterations": found.iterations}

        return ours
    if contender == "faiss":
        import faiss

        def theirs() -> dict[str, float]:
            found = faiss.Kmeans(
                points.shape[1], clusters, niter=ITERATIONS, seed=1, max_points_per_centroid=len(points)
            )
            found.train(points)
            distances, _ = found.index.search(points, 1)
            return {"inertia": float(distances.sum()), "iterations": ITERATIONS}

        return theirs
    from sklearn.cluster import KMeans

    def of_sklearn() -> dict[str, float]:
        found = KMeans(clusters, n_init=1, max_iter=ITERATIONS, random_state=0).fit(points)
        return {"inertia": float(found.inertia_), "iterations": int(found.n_iter_)}

    return of_sklearn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=120_000, help="points (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=2048, help="their features (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=8, help="K (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=500, help="centres that they lie around (default: %(default)s)")
    add_options(parser, CONTENDERS, "benchmark-kmeans.json")
    options = parser.parse_args()
    if options.contender:
        run_one(prepare(options.contender, points_of(options.n, options.dim, options.groups), options.clusters))
        return
    sizes = {"n": options.n, "dim": options.dim, "clusters": options.clusters, "groups": options.groups}
    title = f"k-means of {options.n:,} × {options.dim:,}, K {options.clusters}"
    write(options.json, title, sizes, options.turns, alternate(__file__, CONTENDERS, sizes, options.turns))


if __name__ == "__main__":
    main()
