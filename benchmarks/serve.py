"""Searches a second of `divcon serve`, by vector, beside the bare LanceDB table of the same index.

    python benchmarks/serve.py

An index of --n vectors around 5,000 centres in LanceDB with its approximate index. `divcon` is the server, in a process
of its own, asked over HTTP by --clients connections at once; `lancedb` is the same table searched in as many threads as
the server has, in one process, with the same number of partitions, and the path and label of each result. Both return
ten. The 95th percentile is of the time that a client waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa


def vectors_of(n: int, dim: int) -> np.ndarray:
    """(n, dim) float32 of length one, around 5,000 centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((5000, dim), dtype=np.float32)
    vectors = 0.7 * rng.standard_normal((n, dim), dtype=np.float32) + centres[rng.integers(0, 5000, n)]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def built(place: Path, vectors: np.ndarray) -> Path:
    """The index, built once."""
    import torch

    import divcon as dc
    from divcon.data.labeled_set import LabeledSet

    if not (place / "done").exists():
        n, dim = vectors.shape
        model = dc.EmbeddingModel(vector_dim=dim, embedding_dim=dim).eval()
        with torch.no_grad():
            model.head.linear.weight.copy_(torch.eye(dim))
        model.save(place / "run" / "model")
        paths, labels = pa.array([f"photos/{i:09}.jpg" for i in range(n)]), np.arange(n) % 1000
        names = tuple(f"class {i}" for i in range(1000))
        data = LabeledSet(
            labels=labels, label_names=names, paths=paths, rows=np.arange(n), source="", vectors=vectors
        )
        dc.Index.build(place / "run", data, place / "index")
        (place / "done").touch()
    return place / "index"


def percentiles(waits: list[float], seconds: float) -> dict[str, float]:
    ms = np.array(waits) * 1000
    return {
        "a_second": len(waits) / seconds,
        **{f"p{p}_ms": float(np.percentile(ms, p)) for p in (50, 95)},
    }


def bare(store: Path, queries: np.ndarray, effort: int, threads: int, seconds: float) -> dict[str, float]:
    """LanceDB's table in threads of this process."""
    import lancedb

    table = lancedb.connect(str(store)).open_table("items")
    end = time.perf_counter() + seconds

    def searches(start: int) -> list[float]:
        waits = []
        i = start
        while (begun := time.perf_counter()) < end:
            query = table.search(queries[i % len(queries)], vector_column_name="embedding").distance_type("cosine")
            assert len(query.nprobes(effort).select(["id", "path", "label", "_distance"]).limit(10).to_list()) == 10
            waits.append(time.perf_counter() - begun)
            i += threads
        return waits

    with ThreadPoolExecutor(threads) as pool:
        waits = [wait for some in pool.map(searches, range(threads)) for wait in some]
    return percentiles(waits, seconds)


async def asked(port: int, queries: np.ndarray, clients: int, seconds: float) -> dict[str, float]:
    """Connections that each send one request after the other, by hand: a client of HTTP would need more time than the
    server."""
    bodies = [json.dumps({"vector": query.tolist(), "k": 10}).encode() for query in queries]
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def one(start: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        i = start
        while (begun := time.perf_counter()) < end:
            body = bodies[i % len(bodies)]
            head = f"POST /search HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in answer.lower().split("\r\n") if line.startswith("content-length"))
            content = await reader.readexactly(int(length.partition(":")[2]))
            assert answer.startswith("HTTP/1.1 200"), content
            waits.append(time.perf_counter() - begun)
            i += clients
        writer.close()

    await asyncio.gather(*(one(i) for i in range(clients)))
    return percentiles(waits, seconds)


def served(store: Path, queries: np.ndarray, clients: int, threads: int, seconds: float) -> dict[str, float]:
    """`divcon serve` in a process of its own."""
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "divcon", "serve", str(store), "--port", str(port)]
    command += ["--at-once", str(threads), "--waiting", str(2 * clients)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except OSError:
                time.sleep(0.2)
        asyncio.run(asked(port, queries, 4, 2.0))  # what is loaded at the first request
        return asyncio.run(asked(port, queries, clients, seconds))
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, default=Path("build/speed-serve.json"))
    options = parser.parse_args()
    place = options.folder / f"divcon-serve-{options.n}-{options.dim}"
    vectors = vectors_of(options.n, options.dim)
    store = built(place, vectors)
    effort = json.loads((store / "divcon.json").read_text())["effort"]
    queries = vectors[:: options.n // 500] + np.float32(0.02)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    runs: dict[str, list[dict[str, Any]]] = {"divcon serve": [], "lancedb": []}
    for _ in range(options.turns):
        sizes = (options.threads, options.seconds)
        runs["lancedb"].append(bare(store, queries, effort, *sizes))
        runs["divcon serve"].append(served(store, queries, options.clients, *sizes))
        print({name: done[-1] for name, done in runs.items()}, file=sys.stderr)
    ratios = [a["a_second"] / b["a_second"] for a, b in zip(runs["divcon serve"], runs["lancedb"], strict=True)]
    results = {
        "sizes": {"n": options.n, "dim": options.dim, "clients": options.clients, "threads": options.threads},
        "partitions": effort,
        "cores": os.cpu_count(),
        "runs": runs,
        "ratio": float(np.median(ratios)),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n")
    print("| | searches a second | p50 ms | p95 ms |\n|---|---|---|---|")
    for name, done in runs.items():
        cells = [np.median([run[key] for run in done]) for key in ("a_second", "p50_ms", "p95_ms")]
        print(f"| {name} | {cells[0]:.0f} | {cells[1]:.1f} | {cells[2]:.1f} |")
    print(f"divcon / bare: {results['ratio']:.2f}")


if __name__ == "__main__":
    main()
