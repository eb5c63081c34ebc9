"""divcon's retrieval metrics beside bare neighbour searches and pytorch-metric-learning's AccuracyCalculator.

    python benchmarks/evaluate.py                          # the size of Stanford Online Products' test set
    python benchmarks/evaluate.py --n 20000 --classes 3741

How runs are timed: benchmarks/turns.py. The bare searches compute no metric: they show what the metrics cost on top.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from turns import Contender, compare

CONTENDERS = {
    "divcon": Contender("divcon", "Recall@1/10/100, precision@1, R-precision, MAP@R", "divcon"),
    "faiss": Contender("faiss-cpu", "IndexFlatIP, 101 neighbours, no metrics", "divcon"),
    "torch": Contender("torch", "matmul + topk in blocks of 1,024, 101 neighbours, no metrics", "divcon"),
    "divcon-three": Contender("divcon", "precision@1, R-precision, MAP@R", "divcon-three"),
    "pml": Contender(
        "pytorch-metric-learning",
        'AccuracyCalculator k="max_bin_count": precision@1, R-precision, MAP@R',
        "divcon-three",
    ),
}


def vectors(n: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, dim) float32 of length one, scattered around their classes' centres, and (n,) labels."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(n) % classes)
    centres = generator.standard_normal((classes, dim), dtype=np.float32)
    points = centres[labels] + 1.6 * generator.standard_normal((n, dim), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


def prepare(contender: str, n: int, dim: int, classes: int) -> Callable[[], dict[str, float]]:
    points, labels = vectors(n, dim, classes)
    if contender.startswith("divcon"):
        from divcon.evaluate.retrieval import retrieval_metrics

        recall_at = (1, 10, 100) if contender == "divcon" else (1,)
        return lambda: retrieval_metrics(points, labels, recall_at=recall_at)
    if contender == "faiss":
        import faiss

        def search() -> dict[str, float]:
            index = faiss.IndexFlatIP(points.shape[1])
            index.add(points)
            index.search(points, 101)
            return {}

        return search
    import torch

    if contender == "torch":
        tensor = torch.from_numpy(points)

        def top() -> dict[str, float]:
            for block in tensor.split(1024):
                (block @ tensor.T).topk(101)
            return {}

        return top
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    tensors = torch.from_numpy(points), torch.from_numpy(labels)
    return lambda: calculator.get_accuracy(*tensors)


SIZES = {"n": (60502, "vectors"), "dim": (128, "their dimensions"), "classes": (11316, "classes")}

if __name__ == "__main__":
    title = "Evaluating {n:,} × {dim} in {classes:,} classes"
    compare(__file__, __doc__, CONTENDERS, SIZES, title, prepare)
