"""divcon's retrieval metrics beside bare neighbour searches and pytorch-metric-learning's AccuracyCalculator.

    python benchmarks/evaluate.py                          # the size of Stanford Online Products' test set
    python benchmarks/evaluate.py --n 20000 --classes 3741

Each run is a process of its own, and the contenders take turns, so that a busy machine slows all alike. Time is
measured from the vectors in memory to the result; memory is the peak of the process above what it held before.
The bare searches compute no metric: they show what the metrics cost on top.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

CONTENDERS = {
    "divcon": ("divcon", "Recall@1/10/100, precision@1, R-precision, MAP@R"),
    "faiss": ("faiss-cpu", "IndexFlatIP, 101 neighbours, no metrics"),
    "torch": ("torch", "matmul + topk in blocks of 1,024, 101 neighbours, no metrics"),
    "divcon-three": ("divcon", "precision@1, R-precision, MAP@R"),
    "pml": ("pytorch-metric-learning", 'AccuracyCalculator k="max_bin_count": precision@1, R-precision, MAP@R'),
}


def vectors(n: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, dim) float32 of length one, scattered around their classes' centres, and (n,) labels."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.arange(n) % classes)
    centres = generator.standard_normal((classes, dim), dtype=np.float32)
    points = centres[labels] + 1.6 * generator.standard_normal((n, dim), dtype=np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


def prepare(contender: str, points: np.ndarray, labels: np.ndarray) -> Callable[[], dict[str, float]]:
    """What is timed, its imports done."""
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


def peak_mb() -> float:
    """The most memory that this process has held (Linux counts in KiB, macOS in bytes)."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def run_one(contender: str, n: int, dim: int, classes: int) -> None:
    points, labels = vectors(n, dim, classes)
    run = prepare(contender, points, labels)
    before, start = peak_mb(), time.perf_counter()
    scores = run()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "added_mb": peak_mb() - before, "scores": scores}))


def run_apart(contender: str, arguments: argparse.Namespace) -> dict:
    sizes = ["--n", arguments.n, "--dim", arguments.dim, "--classes", arguments.classes]
    command = [sys.executable, __file__, "--contender", contender, *map(str, sizes)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def summary(runs: dict[str, list[dict]]) -> list[dict]:
    """A row a contender; ratios are medians of turns, each against divcon in the same turn."""
    rows = []
    for contender, (package, what) in CONTENDERS.items():
        ours = runs["divcon-three" if contender in ("divcon-three", "pml") else "divcon"]
        seconds = [run["seconds"] for run in runs[contender]]
        ratios = [mine["seconds"] / run["seconds"] for mine, run in zip(ours, runs[contender], strict=True)]
        rows.append(
            {
                "contender": contender,
                "package": package,
                "version": version(package),
                "what": what,
                "median_seconds": statistics.median(seconds),
                "seconds": seconds,
                "divcon_to_this": statistics.median(ratios),
                "peak_mb": max(run["peak_mb"] for run in runs[contender]),
                "added_mb": max(run["added_mb"] for run in runs[contender]),
                "scores": runs[contender][0]["scores"],
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        "| | computes | median s | fastest – slowest s | divcon's time / this | peak MB | added MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['package']} {row['version']} | {row['what']} | {row['median_seconds']:.2f} "
            f"| {min(row['seconds']):.2f} – {max(row['seconds']):.2f} | {row['divcon_to_this']:.2f} "
            f"| {row['peak_mb']:.0f} | {row['added_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=60502, help="vectors (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=128, help="their dimensions (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=11316, help="classes (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="runs of each contender (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/benchmark-evaluate.json"), help="where results go")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        run_one(arguments.contender, arguments.n, arguments.dim, arguments.classes)
        return
    runs: dict[str, list[dict]] = {contender: [] for contender in CONTENDERS}
    for turn in range(arguments.turns):
        for contender, done in runs.items():
            done.append(run_apart(contender, arguments))
            print(f"turn {turn + 1}: {contender} {done[-1]['seconds']:.2f} s", file=sys.stderr)
    rows = summary(runs)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    sizes = {"n": arguments.n, "dim": arguments.dim, "classes": arguments.classes, "turns": arguments.turns}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"sizes": sizes, "machine": machine, "results": rows}, indent=2) + "\n")
    print(f"{arguments.n:,} × {arguments.dim}, {arguments.classes:,} classes, {machine['cores']} cores\n")
    print(table(rows))


if __name__ == "__main__":
    main()
