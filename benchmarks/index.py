"""Building and updating an index of a million vectors beside LanceDB's own bulk write of the same rows.

    python benchmarks/index.py
    python benchmarks/index.py --n 10000000 --dim 64 --only load update --turns 1

`load` writes parts of parquet that are embedded already (`divcon index --load`), and `lancedb` the same rows of the
same files in one `add`. `build` also embeds (a linear layer of --dim) and computes the digests by which an update knows
what has changed, and `encode` embeds and writes them without any. `update` is a build over a store that has all the
rows, of which one in a hundred is another. None builds an approximate index, which is LanceDB's own work in both. The
seconds of the first and the last tenth of the chunks are in the results: were they not alike, the time would not be
linear. How runs are timed: benchmarks/turns.py.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from turns import Contender, compare

CONTENDERS = {
    "load": Contender("divcon", "index --load: parts of embedded rows", "load"),
    "lancedb": Contender("lancedb", "add: the same rows, one write", "load"),
    "build": Contender("divcon", "index: embed, digest, write", "build"),
    "encode": Contender("lancedb", "encode with the same model, add: one write, no digests", "build"),
    "update": Contender("divcon", "index again, one row in a hundred changed", "update"),
}
NEVER = 10**12
PART = 65_536


def vectors_of(n: int, dim: int, *, changed: bool = False) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((n, dim), dtype=np.float32)
    if changed:
        vectors[::100] += 1
    return vectors


def model_of(dim: int) -> Any:
    import torch

    import divcon as dc

    torch.manual_seed(0)
    return dc.EmbeddingModel(vector_dim=dim, embedding_dim=dim).eval()


def set_of(vectors: np.ndarray) -> Any:
    from divcon.data.labeled_set import LabeledSet

    n = len(vectors)
    return LabeledSet(
        labels=np.arange(n) % 1000,
        label_names=tuple(f"class {i}" for i in range(1000)),
        paths=pa.array([f"photos/{i:09}.jpg" for i in range(n)]),
        rows=np.arange(n),
        source="",
        vectors=vectors,
    )


def write_parts(folder: Path, n: int, dim: int) -> None:
    """Parts as `divcon index --parts` writes them."""
    from divcon.search.about import about_of
    from divcon.search.items import chunks_of, items_of
    from divcon.search.parts import write_shard
    from divcon.search.update import Embedder

    model = model_of(dim)
    items, _ = items_of(set_of(vectors_of(n, dim)))
    write_shard(Embedder(model, context=context_of([])), about_of(model), chunks_of(items, PART), folder)


def context_of(times: list[float]) -> Any:
    import divcon as dc

    return dc.Context(0, on_progress=lambda step: times.append(time.perf_counter()))


def tenths(times: list[float]) -> dict[str, float]:
    """The seconds of the first and the last tenth of the chunks, without the first chunk, which opens the store."""
    steps = np.diff(times)[1:]
    few = max(1, len(steps) // 10)
    return {"first_tenth": float(steps[:few].sum()), "last_tenth": float(steps[-few:].sum())}


def prepare(contender: str, n: int, dim: int, folder: str) -> Callable[[], dict[str, float]]:
    import lancedb

    import divcon as dc
    from divcon.search.parts import read_shards

    place = Path(folder or tempfile.gettempdir()) / f"divcon-index-{n}-{dim}"
    parts, store, times = place / "parts", place / contender, list[float]()
    if not list(parts.glob("shard-*")):
        write_parts(parts, n, dim)
    shutil.rmtree(store, ignore_errors=True)
    model = model_of(dim)

    def load() -> dict[str, float]:
        about, _, chunks = read_shards(parts)
        index = dc.Index.for_about(about, store)
        index.store.set_about(type(about)(**{**vars(index.about), "ann_from": NEVER}))
        index.load(chunks, context=context_of(times))
        return {"rows": len(index), **tenths(times)}

    def batches() -> Iterator[pa.RecordBatch]:
        for path in sorted(parts.glob("part-*")):
            yield from pq.ParquetFile(path).iter_batches(PART)

    def added() -> dict[str, float]:
        schema = pq.read_schema(next(parts.glob("part-*"))).remove_metadata()
        table = lancedb.connect(str(store)).create_table("items", schema=schema)
        table.add(pa.RecordBatchReader.from_batches(schema, batches()))
        return {"rows": table.count_rows()}

    if contender in ("load", "lancedb"):
        return load if contender == "load" else added
    data = set_of(vectors_of(n, dim))
    if contender == "encode":

        def encoded() -> dict[str, float]:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(model.encode(data).reshape(-1)), dim)
            labels = pa.array(data.label_names).take(pa.array(data.labels))
            rows = pa.table({"id": np.arange(n), "path": data.paths[:], "label": labels, "embedding": vectors})
            table = lancedb.connect(str(store)).create_table("items", schema=rows.schema)
            table.add(rows.to_reader(PART))
            return {"rows": table.count_rows()}

        return encoded
    if contender == "update":
        dc.Index.build(model, data, store, ann_from=NEVER, context=context_of([]))
        data = set_of(vectors_of(n, dim, changed=True))

    def build() -> dict[str, float]:
        index = dc.Index.create(model, store, ann_from=NEVER)
        changes = index.update(data, context=context_of(times))
        return {"added": changes.added, "changed": changes.changed, **tenths(times)}

    return build


SIZES = {
    "n": (1_000_000, "vectors"),
    "dim": (128, "their dimension"),
    "folder": ("", "where parts and stores are written, and left (the temporary folder)"),
}

if __name__ == "__main__":
    compare(__file__, __doc__, CONTENDERS, SIZES, "An index of {n:,} × {dim}", prepare, turns=3)
