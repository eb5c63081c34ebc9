"""Time and memory of what grows with the number of images: reading a table, splitting, dividing, planning an epoch,
evaluating.

    python benchmarks/scale.py                                   # 10^5 to 10^7 images, features of 64 numbers
    python benchmarks/scale.py --sizes 1e6 --stages divide plan
    python benchmarks/scale.py --table                           # the Markdown table of what is measured already
    python benchmarks/scale.py --inertia data/products --backbone resnet50.tv_in1k

Each measurement is a process of its own, and is kept in --out as it is done: the script can be stopped, and goes on
where it was. Data is made: ten images a class, features around their class's centre. Seconds are of the processor, as a
machine that does other work lengthens the others; memory is the peak of what the process itself has allocated, beyond
what it had before the stage began (its input: labels, or where the stage says so features).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from turns import peak_mb

pc: Any = pyarrow.compute
PER_CLASS, LEARNERS = 10, 8
BLOCK = 1 << 16
OUT = Path(__file__).parent.parent / "docs" / "results" / "scale.json"
STAGES = {
    "read": "read a parquet of paths, labels and splits (`dc.read`)",
    "stream": "read it as it is indexed (`index --stream`)",
    "split": "fingerprint, hold out validation classes",
    "divide": f"divide among {LEARNERS} by image, all features in memory",
    "budget": "the same in a quarter of that memory",
    "class": "divide by class, running class means",
    "plan": "plan an epoch, 4 learners",
    "plan32": "plan an epoch, 32 learners, divided by class",
    "evaluate": "search each image among all others",
}
MOST = {"divide": 10**7, "evaluate": 10**5}
"""The largest size that a stage is measured at; `evaluate` is quadratic."""
CONSTANT = ("stream",)
"""Stages whose memory does not grow."""


def labels_of(n: int) -> np.ndarray:
    return np.arange(n) // PER_CLASS


def features_in(folder: Path, n: int, dim: int) -> np.ndarray:
    """(n, dim) float32 around class centres, in a file that is mapped."""
    path = folder / f"features-{n}-{dim}.npy"
    if not path.exists():
        rng = np.random.default_rng(0)
        groups = rng.standard_normal((64, dim), dtype=np.float32)
        file = np.lib.format.open_memmap(path.with_suffix(".part"), "w+", np.float32, (n, dim))
        for start in range(0, n, BLOCK):
            labels = labels_of(n)[start : start + BLOCK]
            file[start : start + BLOCK] = groups[(labels * 2654435761) % 64] + rng.standard_normal(
                (len(labels), dim), dtype=np.float32
            )
        file.flush()
        path.with_suffix(".part").rename(path)
    return np.load(path, mmap_mode="r")


def table_in(folder: Path, n: int) -> Path:
    """A parquet of n paths of 28 characters."""
    path = folder / f"table-{n}.parquet"
    if not path.exists():
        schema = pa.schema([(name, pa.string()) for name in ("path", "label", "split")])
        with pq.ParquetWriter(path.with_suffix(".part"), schema) as writer:
            for start in range(0, n, 1 << 20):
                rows = np.arange(start, min(n, start + (1 << 20)))
                classes = pa.array(rows // PER_CLASS)
                image = pc.binary_join_element_wise(digits(pa.array(rows), 9), "jpg", ".")
                folders = digits(pa.array(rows // 10_000), 5)
                label = pc.binary_join_element_wise("product", digits(classes, 8), "-")
                split = pc.if_else(pc.equal(pc.bit_wise_and(classes, 7), 0), "test", "train")
                paths = pc.binary_join_element_wise("photos", folders, image, "/")
                writer.write_table(pa.table([paths, label, split], schema=schema))
        path.with_suffix(".part").rename(path)
    return path


def digits(numbers: pa.Array, width: int) -> pa.Array:
    return pc.utf8_lpad(numbers.cast(pa.string()), width, "0")


Work = Callable[[], dict[str, Any]]


def read(folder: Path, n: int, dim: int) -> Work:
    from divcon.data.readers.table import read_table

    table = table_in(folder, n)
    return lambda: {"rows": sum(map(len, read_table(table, check_files=False).parts.values()))}


def stream(folder: Path, n: int, dim: int) -> Work:
    from divcon.search.items import read_rows

    table = table_in(folder, n)
    return lambda: {"rows": sum(len(items) for items in read_rows(table))}


def split(folder: Path, n: int, dim: int) -> Work:
    from divcon.data.readers.table import read_table

    data = read_table(table_in(folder, n), check_files=False)

    def work() -> dict[str, Any]:
        return {"train": len(data.with_validation(0.1).train), "fingerprint": data.train.fingerprint}

    return work


def embedder(features: np.ndarray) -> Callable[[np.ndarray], Iterator[np.ndarray]]:
    def embed(images: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(images), 4096):
            yield features[images[start : start + 4096]]

    return embed


def inertia(features: np.ndarray, centroids: np.ndarray, learner: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(features), BLOCK):
        rows = np.asarray(features[start : start + BLOCK])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        of = learner[start : start + BLOCK]
        total += float(((rows - centroids[of])[of >= 0] ** 2).sum())
    return total / len(features)


def divide(folder: Path, n: int, dim: int) -> Work:
    from divcon.division import divide as in_memory

    features = features_in(folder, n, dim)

    def work() -> dict[str, Any]:
        division = in_memory(np.array(features), labels_of(n), LEARNERS, seed=0, tries=1)
        return {"inertia": lambda: inertia(features, division.centroids, division.learner)}

    return work


def budget(folder: Path, n: int, dim: int) -> Work:
    from divcon.division.streamed import bytes_of_points, divide_streamed, points_within

    features, allowed = features_in(folder, n, dim), bytes_of_points(n, dim, LEARNERS) // 4
    points = points_within(allowed, dim, LEARNERS)

    def work() -> dict[str, Any]:
        division = divide_streamed(embedder(features), labels_of(n), LEARNERS, max_points=points, seed=0, tries=1)
        return {
            "sample": division.sample,
            "budget_mb": allowed / 1e6,
            "inertia": lambda: inertia(features, division.centroids, division.learner),
        }

    return work


def by_class(folder: Path, n: int, dim: int) -> Work:
    from divcon.division.streamed import divide_streamed

    features = features_in(folder, n, dim)

    def work() -> dict[str, Any]:
        division = divide_streamed(
            embedder(features), labels_of(n), LEARNERS, max_points=n, by="class", seed=0, tries=1
        )
        return {"sizes": list(division.sizes)}

    return work


def plan(folder: Path, n: int, dim: int, learners: int = 4) -> Work:
    from divcon.division import Division
    from divcon.training.sampler import plan_epoch

    labels = np.random.default_rng(1).permutation(labels_of(n))
    learner = np.random.default_rng(2).integers(0, learners, n)
    if learners > 4:  # classes of ten spread over as many clusters would leave hardly a pair
        learner = labels * 2654435761 % learners
    division = Division(learner, np.zeros((learners, 0), np.float32)).without_singletons(labels)

    def work() -> dict[str, Any]:
        made = plan_epoch(division, labels, batch_size=80, images_per_class=4, seed=0, epoch=0)
        return {"batches": len(made.batches)}

    return work


def evaluate(folder: Path, n: int, dim: int) -> Work:
    import divcon as dc

    features, labels = np.array(features_in(folder, n, dim)), labels_of(n)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return lambda: {"recall_at_1": dc.retrieval_metrics(features, labels)["recall_at_1"]}


WORKS: dict[str, Callable[[Path, int, int], Work]] = {
    "read": read,
    "stream": stream,
    "split": split,
    "divide": divide,
    "budget": budget,
    "class": by_class,
    "plan": plan,
    "plan32": lambda folder, n, dim: plan(folder, n, dim, 32),
    "evaluate": evaluate,
}


class Peak:
    """The peak, in MB, of the memory that this process allocates inside of the block."""

    def __enter__(self) -> Peak:
        return_unused()
        self._before, self.mb, self._stop = allocated_mb(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.mb = max(self.mb, allocated_mb() - self._before)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def return_unused() -> None:
    """Give the system back what is free, which the stage would otherwise take without a trace."""
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def allocated_mb() -> float:
    """Memory of the process that is no file's; where the system does not say, the peak of all of it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_mb()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def measure(stage: str, folder: Path, n: int, dim: int) -> dict[str, Any]:
    work = WORKS[stage](folder, n, dim)
    with Peak() as peak:
        cpu, wall = time.process_time(), time.perf_counter()
        results = work()
        seconds = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
    return {**seconds, "peak_mb": peak.mb, **{k: v() if callable(v) else v for k, v in results.items()}}


def all_of(stages: list[str], sizes: list[int], dim: int, folder: Path, out: Path) -> None:
    done = json.loads(out.read_text()) if out.exists() else {}
    for n in sizes:
        for stage in stages:
            key = f"{stage} {n} {dim}"
            if key in done or n > MOST.get(stage, n):
                continue
            command = [sys.executable, __file__, "--one", stage, "--sizes", str(n), "--dim", str(dim), "--data", folder]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            done[key] = {"stage": stage, "images": n, "dim": dim, **json.loads(output.splitlines()[-1])}
            print(f"{key}: {done[key]['cpu_seconds']:.2f} s, {done[key]['peak_mb']:,.0f} MB", file=sys.stderr)
            out.write_text(json.dumps(done, indent=1) + "\n")


def table(out: Path) -> str:
    """A Markdown table of what is measured: a row for each stage, columns for sizes; and ten times the largest size,
    reckoned: ten times as much."""
    done = list(json.loads(out.read_text()).values())
    sizes = sorted({one["images"] for one in done})
    heads = [*(f"10^{np.log10(n):g}" for n in sizes), f"10^{np.log10(10 * sizes[-1]):g}, reckoned"]
    lines = ["| stage | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for stage, words in STAGES.items():
        measured = {one["images"]: (one["cpu_seconds"], one["peak_mb"]) for one in done if one["stage"] == stage}
        cells = [cell(*measured[n]) if n in measured else "" for n in sizes]
        last = ""
        if sizes[-1] in measured:
            seconds, mb = measured[sizes[-1]]
            last = cell(10 * seconds, mb if stage in CONSTANT else 10 * mb)
        lines.append(f"| {words} | " + " | ".join([*cells, last]) + " |")
    return "\n".join(lines)


def cell(seconds: float, mb: float) -> str:
    time_taken = f"{seconds:.2g} s" if seconds < 60 else f"{seconds / 60:.2g} min"
    return f"{time_taken}, {in_words(mb)}"


def in_words(mb: float) -> str:
    return f"{mb / 1000:.2g} GB" if mb >= 1000 else f"{max(mb, 1):.2g} MB" if mb < 100 else f"{round(mb, -1):.0f} MB"


def inertia_of_samples(data: str, backbone: str, size: int) -> None:
    """Print how much higher the inertia of k-means is where it is fitted on a sample of real features."""
    import divcon as dc
    from divcon.division.kmeans import kmeans, nearest_centroids

    features = dc.EmbeddingModel(backbone, image_size=size).features(dc.read(data).train)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    print(f"{len(features):,} images, {features.shape[1]:,} features; seeds 0 to 4")
    for clusters in (4, 8, 32):
        whole = np.mean([kmeans(features, clusters, seed=seed).inertia for seed in range(5)])
        for each in (64, 256, 1024):
            if each * clusters >= len(features):
                continue
            excess = []
            for seed in range(5):
                sample = np.random.default_rng(seed).choice(len(features), each * clusters, replace=False)
                centroids = kmeans(features[sample], clusters, seed=seed).centroids
                excess.append(((features - centroids[nearest_centroids(features, centroids)]) ** 2).sum() / whole - 1)
            print(f"{clusters} clusters, {each} points a cluster: {100 * np.mean(excess):+.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: int(float(text)), nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--stages", choices=list(WORKS), nargs="+", default=list(WORKS))
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "divcon-scale")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", choices=list(WORKS), help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    parser.add_argument("--inertia", help="print what a sample costs k-means on the features of this data's images")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    if arguments.inertia:
        inertia_of_samples(arguments.inertia, arguments.backbone, arguments.size)
        return
    if arguments.table:
        print(table(arguments.out))
        return
    arguments.data.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.data, arguments.sizes[0], arguments.dim)))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    all_of(arguments.stages, arguments.sizes, arguments.dim, arguments.data, arguments.out)
    print(table(arguments.out))


if __name__ == "__main__":
    main()
