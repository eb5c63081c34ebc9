"""divcon's retrieval metrics beside bare neighbour searches and other evaluations.

    python benchmarks/evaluate.py                          # the size of Stanford Online Products' test set
    python benchmarks/evaluate.py --n 20000 --classes 3741
    python benchmarks/evaluate.py --n 1000000 --classes 187000 --queries 10000 --turns 3

Each vector is a query among all the others; or ``--queries`` others are, of the same classes. Clusterings are of one
seed.

How runs are timed: benchmarks/turns.py. The bare searches compute no metric: they show what the metrics cost on top.
`loops` is how the 2019 code goes about it: a search with faiss, then for each k a loop over the queries in Python.
Open Metric Learning wants NumPy 1, and takes part where it is installed all the same
(`pip install --no-deps open-metric-learning`, and what it imports).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from turns import Contender, compare

CONTENDERS = {
    "divcon": Contender("divcon", "Recall@1/10/100, precision@1, R-precision, MAP@R", "divcon"),
    "faiss": Contender("faiss-cpu", "IndexFlatIP, 101 neighbours, no metrics", "divcon"),
    "torch": Contender("torch", "matmul + topk in blocks of 1,024, 101 neighbours, no metrics", "divcon"),
    "loops": Contender("faiss-cpu", "IndexFlatL2, then Recall@1/10/100 in Python loops (2019)", "divcon"),
    "oml": Contender("open-metric-learning", "batched_knn, then CMC@1/10/100, precision@1, MAP@100", "divcon"),
    "divcon-three": Contender("divcon", "precision@1, R-precision, MAP@R", "divcon-three"),
    "pml": Contender(
        "pytorch-metric-learning",
        'AccuracyCalculator k="max_bin_count": precision@1, R-precision, MAP@R',
        "divcon-three",
    ),
    "clustering": Contender("divcon", "NMI and AMI of k-means, as many clusters as classes", "clustering"),
}


def vectors(n: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, dim) float32 of length one, scattered around their classes' centres, and (n,) labels."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(n) % classes)
    centres = generator.standard_normal((classes, dim), dtype=np.float32)
    points = centres[labels] + 1.6 * generator.standard_normal((n, dim), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


def prepare(contender: str, n: int, dim: int, classes: int, queries: int) -> Callable[[], dict[str, float]]:
    points, labels = vectors(n + queries, dim, classes)
    asked, asked_labels = (points[n:], labels[n:]) if queries else (points, labels)
    points, labels = points[:n], labels[:n]
    if contender.startswith("divcon"):
        from divcon.evaluation.retrieval import retrieval_metrics

        recall_at = (1, 10, 100) if contender == "divcon" else (1,)
        others = {"gallery_embeddings": points, "gallery_labels": labels} if queries else {}
        return lambda: retrieval_metrics(asked, asked_labels, recall_at=recall_at, **others)
    if contender == "clustering":
        from divcon.evaluation.clustering import clustering_metrics

        return lambda: clustering_metrics(points, labels, seeds=(0,))
    if contender == "faiss":
        import faiss

        def search() -> dict[str, float]:
            index = faiss.IndexFlatIP(points.shape[1])
            index.add(points)
            index.search(asked, 101)
            return {}

        return search
    import torch

    if contender == "loops":
        import faiss

        def in_loops() -> dict[str, float]:
            index = faiss.IndexFlatL2(points.shape[1])
            index.add(points)
            neighbours = index.search(asked, 101)[1]
            near = torch.from_numpy(labels[neighbours if queries else neighbours[:, 1:]])
            return {
                f"recall@{k}": sum(1 for own, others in zip(asked_labels, near, strict=True) if own in others[:k])
                / len(near)
                for k in (1, 10, 100)
            }

        return in_loops
    if contender == "oml":
        return of_oml(points, labels, asked if queries else None, asked_labels)
    if contender == "torch":
        tensor = torch.from_numpy(points)

        def top() -> dict[str, float]:
            for block in torch.from_numpy(asked).split(1024):
                (block @ tensor.T).topk(101)
            return {}

        return top
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    sides = [torch.from_numpy(side) for side in (asked, asked_labels, *((points, labels) if queries else ()))]
    return lambda: calculator.get_accuracy(*sides)


def of_oml(
    points: np.ndarray, labels: np.ndarray, asked: np.ndarray | None, asked_labels: np.ndarray
) -> Callable[[], dict[str, float]]:
    import torch
    from oml.functional.knn import batched_knn, batched_knn_qg  # type: ignore[import-not-found]
    from oml.functional.metrics import calc_retrieval_metrics  # type: ignore[import-not-found]

    gallery, own = torch.from_numpy(points), torch.from_numpy(labels)
    every = torch.arange(len(gallery))

    def metrics() -> dict[str, float]:
        if asked is None:
            _, near, right = batched_knn(gallery, every, every, 101, labels_gt=own)
        else:
            _, near, right = batched_knn_qg(torch.from_numpy(asked), gallery, 101, torch.from_numpy(asked_labels), own)
        scores = calc_retrieval_metrics(
            near, right, cmc_top_k=(1, 10, 100), precision_top_k=(1,), map_top_k=(100,), verbose=False
        )
        return {f"recall@{k}": float(value) for k, value in scores["cmc"].items()}

    return metrics


SIZES = {
    "n": (60502, "vectors"),
    "dim": (128, "their dimensions"),
    "classes": (11316, "classes"),
    "queries": (0, "queries apart"),
}

if __name__ == "__main__":
    title = "Evaluating {n:,} × {dim} in {classes:,} classes, queries apart: {queries:,}"
    compare(__file__, __doc__, CONTENDERS, SIZES, title, prepare)
