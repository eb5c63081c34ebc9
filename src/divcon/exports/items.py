"""Export of embeddings, not of the model: an index, or a parquet that ``divcon encode`` wrote, for FAISS, FiftyOne and
embedding-atlas."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.data.columns import VECTOR_COLUMN
from divcon.data.readers.vectors import read_vectors
from divcon.errors import ConfigError, DataError, OutputError, StoreError, unknown
from divcon.evaluation.layout import By, lay_out
from divcon.evaluation.neighbours import nearest
from divcon.runtime.files import atomic_write
from divcon.runtime.places import absolute, place
from divcon.search.about import ANN_FROM
from divcon.search.layout import MAX_ITEMS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, Int64

    from divcon.search import Index

ItemFormat = Literal["faiss", "fiftyone", "atlas"]

ENDINGS = {"faiss": ".faiss", "atlas": ".parquet"}
_CHECKED, _NEAREST = 256, 10
"""Queries that a FAISS index is checked with, and their neighbours; neighbours that are written."""


@dataclass(frozen=True)
class ExportedItems:
    """What `export_items` wrote."""

    format: ItemFormat
    path: Path
    items: int
    dims: int
    """D."""
    beside: tuple[Path, ...] = ()
    """Other files that belong to it."""
    index: str | None = None
    """Of FAISS: the kind of the index, as its factory writes it."""
    recall: float | None = None
    """Of FAISS: the share of the exact 10 nearest items that the index finds, of 256 items."""
    mistakes: int | None = None
    """Items whose nearest neighbour has another label; None: there are no labels."""
    judged: int = 0
    """Items that could be right: with a label that another item has too."""


@dataclass(frozen=True)
class EmbeddedItems:
    """N embedded items."""

    embeddings: np.ndarray
    """(N, D) float32, each of length one."""
    columns: pa.Table
    """N rows: ``path``, ``label`` if any has one, and the user's columns."""
    index: Index | None = None
    ids: np.ndarray | None = None
    """(N,) int64, of the index."""

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def labels(self) -> list[str | None] | None:
        """The label of each, as text."""
        if "label" not in self.columns.column_names:
            return None
        return [None if label is None else str(label) for label in self.columns["label"].to_pylist()]

    @cached_property
    def neighbours(self) -> tuple[Int64[np.ndarray, "N k"], Float32[np.ndarray, "N k"]]:
        """The rows of the 10 nearest other items of each, or of all there are, and their cosines."""
        k = min(_NEAREST, len(self) - 1)
        rows, scores = nearest(self.embeddings, self.embeddings, k + 1, metric="cosine")
        others = rows != np.arange(len(self))[:, None]
        others &= np.cumsum(others, axis=1) <= k  # where an item is not among its own: of equal ones, others came first
        return rows[others].reshape(-1, k), scores[others].reshape(-1, k)

    @cached_property
    def predicted(self) -> tuple[list[str | None], Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]] | None:
        """The label of each item's nearest neighbour, whether that is its own, and whether it could be: another item
        has its label. None: there are no labels."""
        labels = self.labels
        if labels is None:
            return None
        known = pa.array(labels, pa.string())
        first = self.neighbours[0][:, 0]
        code = known.dictionary_encode().indices.fill_null(-1).to_numpy()
        judged = (code >= 0) & (np.bincount(code + 1)[code + 1] > 1)
        return known.take(pa.array(first)).to_pylist(), (code == code[first]) & judged, judged

    def map(self, by: By | Literal["auto"]) -> np.ndarray:
        """(N, 2) float32 coordinates, -1 to 1; those of the index's own map where it is of all items."""
        if self.index is not None and self.ids is not None and len(self) <= MAX_ITEMS:
            from divcon.search.layout import index_layout

            ids, layout = index_layout(self.index, by)
            if np.array_equal(ids, self.ids):
                return layout.xy
        return lay_out(self.embeddings, by).xy


def read_items(source: str | Path | Index) -> EmbeddedItems:
    """Read embedded items: of an index (itself, its store's address, or the folder of its run), or from the parquet, or
    the folder of such files, that `divcon.encode` wrote. Embeddings that are not of length one are made so.

    Raises:
        DataError: the table has no embeddings, or fewer than two.
        StoreError: there is no index.
    """
    from divcon.search import Index

    if isinstance(source, Index):
        return _of_index(source)
    path = place(source)
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("part-*.parquet"))):
        return _of_parquet(path)
    try:
        index = Index.open(str(source))
    except StoreError as error:
        raise StoreError(
            f"{error}; index the images first (divcon index RUN IMAGES), or name a parquet that divcon encode wrote"
        ) from None
    return _of_index(index)


def _of_index(index: Index) -> EmbeddedItems:
    about = index.about
    own = {column.stored: column.name for column in about.user_columns if not column.unfinished}
    blocks = list(index.store.read_columns(["id", "path", "label", "embedding", *own]))
    if not blocks:
        raise DataError(f"{index.uri}: the index is empty")
    table = pa.concat_tables(blocks)
    table = table.take(np.argsort(table["id"].to_numpy()))
    flat = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    names = {**own, "path": "path", "label": "label"}
    columns = pa.table(
        {names[name]: table[name] for name in ("path", "label", *own) if name == "path" or _any(table[name])}
    )
    embeddings = flat.astype(np.float32).reshape(len(table), -1)
    return EmbeddedItems(_unit(embeddings, index.uri), columns, index, table["id"].to_numpy())


def _any(column: pa.ChunkedArray) -> bool:
    return column.null_count < len(column)


def _of_parquet(path: Path) -> EmbeddedItems:
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: there is no such file")
    try:
        schemas = [pq.read_schema(file) for file in files]
        if any(VECTOR_COLUMN not in schema.names for schema in schemas):
            raise DataError(f"{path}: has no column {VECTOR_COLUMN!r}; name a parquet that divcon encode wrote")
        names = [name for name in schemas[0].names if name != VECTOR_COLUMN]
        table = pa.concat_tables([pq.read_table(file, columns=names) for file in files])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    count = sum(pq.read_metadata(file).num_rows for file in files)
    embeddings = read_vectors(files, str(path), count)
    if "path" not in names:
        table = pa.table({"path": pa.array([f"row {i}" for i in range(count)])} | {n: table[n] for n in names})
    return EmbeddedItems(_unit(embeddings, str(path)), table)


def _unit(embeddings: np.ndarray, where: str) -> Float32[np.ndarray, "N D"]:
    if len(embeddings) < 2:
        raise DataError(f"{where}: holds {len(embeddings)} embeddings; two are needed for one to have a neighbour")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.where(np.abs(lengths - 1) < 1e-4, embeddings, embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)


def check_items(out: Path, format: ItemFormat) -> None:
    """Check the arguments of `export_items` before anything is read.

    Raises:
        ConfigError, OutputError: as `export_items`.
    """
    if format not in get_args(ItemFormat):
        raise ConfigError(f"`format`: {unknown('format', format, get_args(ItemFormat))}", field="format")
    ending = ENDINGS.get(format)
    if ending is not None and out.suffix != ending:
        raise ConfigError(
            f"`out` {out}: format {format} is a file; choose a name that ends in {ending}", field=("out", "format")
        )
    if ending is None and out.suffix:
        raise ConfigError(
            f"`out` {out}: format {format} is a folder; choose a name without {out.suffix}", field=("out", "format")
        )
    if out.exists() and (ending is not None or not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"`out` {out}: exists already; choose another name")


def export_items(
    source: str | Path | Index,
    out: str | Path,
    format: ItemFormat,
    *,
    faiss_index: str = "auto",
    by: By | Literal["auto", "none"] = "auto",
) -> ExportedItems:
    """Write embedded items for another program.

    Args:
        source: see `read_items`.
        out: ``faiss``: a new file that ends in ``.faiss``; ``atlas``: one that ends in ``.parquet``; ``fiftyone``: a
            new folder.
        format: ``faiss``: an index of inner products, which are cosines, and beside it ``OUT.parquet``, whose row i
            (``id``, ``path``, ``label`` and the user's columns) is FAISS's item i. ``atlas``: a parquet for
            embedding-atlas with the columns, ``embedding``, ``predicted`` (the label of the nearest neighbour),
            ``correct``, ``neighbors`` and, where there is a map, ``x`` and ``y``. ``fiftyone``: a folder that FiftyOne
            imports as ``fiftyone.types.LegacyFiftyOneDataset``, with ``ground_truth``, ``prediction`` and ``correct``
            of each image; ``embeddings.npy`` and ``map.npy`` have its embeddings and map, row for row.
        faiss_index: as FAISS's factory writes it (``Flat``, ``HNSW32``, ``IVF1024,Flat``). auto: ``Flat``, which is
            exact, for fewer than 100,000 items, else ``HNSW32``.
        by: the map: tsne, umap, pca, auto, or none.

    Raises:
        ConfigError: ``out`` does not fit the format, or FAISS knows no such index.
        OutputError: ``out`` exists already, or cannot be written; or FAISS finds other neighbours than exact search.
        DataError, StoreError: as `read_items`.
    """
    out = place(out)
    check_items(out, format)
    items = read_items(source)
    if format == "faiss":
        return _write_faiss(items, out, faiss_index)
    xy = None if by == "none" else items.map(by)
    write = _write_atlas if format == "atlas" else _write_fiftyone
    beside = write(items, out, xy)
    predicted = items.predicted
    mistakes, judged = (None, 0)
    if predicted is not None:
        mistakes, judged = int((predicted[2] & ~predicted[1]).sum()), int(predicted[2].sum())
    return ExportedItems(format, out, len(items), items.embeddings.shape[1], beside, None, None, mistakes, judged)


def _write_faiss(items: EmbeddedItems, out: Path, kind: str) -> ExportedItems:
    import faiss  # pyright: ignore[reportMissingTypeStubs]

    if kind == "auto":
        kind = "Flat" if len(items) < ANN_FROM else "HNSW32"
    dims = items.embeddings.shape[1]
    try:
        index: Any = faiss.index_factory(dims, kind, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(items.embeddings)
        index.add(items.embeddings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"`faiss_index` {kind}: FAISS cannot build it of {len(items):,} vectors of {dims} dimensions ({reason}); "
            "Flat, HNSW32 and IVF64,Flat are some that it has",
            field="faiss_index",
        ) from None
    rows = out.with_name(out.name + ".parquet")
    if rows.exists():
        raise OutputError(f"{rows}: exists already; choose another name")
    with atomic_write(out) as beside:
        faiss.write_index(index, str(beside))
        recall = _recall(faiss.read_index(str(beside)), items.embeddings)
        if kind == "Flat" and recall < 1:
            raise OutputError(f"{out}: FAISS finds other neighbours than exact search; nothing was written")
        _write_table(rows, pa.table({"id": pa.array(np.arange(len(items)))} | _plain(items.columns)))
    return ExportedItems("faiss", out, len(items), dims, (rows,), kind, recall)


def _recall(index: Any, embeddings: np.ndarray) -> float:
    """The share of the exact nearest items, of some, that an index finds; of equal cosines, any."""
    k = min(_NEAREST, len(embeddings))
    rows = np.random.default_rng(0).permutation(len(embeddings))[:_CHECKED]
    scores, found = index.search(np.ascontiguousarray(embeddings[rows]), k)
    _, exact = nearest(embeddings[rows], embeddings, k, metric="cosine")
    return float(((found >= 0) & (scores >= exact[:, -1:] - 1e-5)).mean())


def _plain(columns: pa.Table) -> dict[str, Any]:
    return {name: columns[name] for name in columns.column_names if name != "id"}


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as beside:
        pq.write_table(table, beside)


def _write_atlas(items: EmbeddedItems, out: Path, xy: np.ndarray | None) -> tuple[Path, ...]:
    table = items.columns
    made: dict[str, Any] = {}
    if (predicted := items.predicted) is not None:
        labels, right, judged = predicted
        made |= {"predicted": pa.array(labels, pa.string()), "correct": pa.array(right, mask=~judged)}
    rows, cosines = items.neighbours
    neighbours = [
        {"ids": ids, "distances": distances}
        for ids, distances in zip(rows.tolist(), np.clip(1 - cosines, 0, 2).tolist(), strict=True)
    ]
    kind = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float64()))])
    made["neighbors"] = pa.array(neighbours, kind)
    if xy is not None:
        made |= {"x": pa.array(xy[:, 0]), "y": pa.array(xy[:, 1])}
    width = items.embeddings.shape[1]
    made[VECTOR_COLUMN] = pa.FixedSizeListArray.from_arrays(pa.array(items.embeddings.reshape(-1)), width)
    own = {name: table[name] for name in table.column_names if name not in made}
    _write_table(out, pa.table(own | made))
    return ()


def _write_fiftyone(items: EmbeddedItems, out: Path, xy: np.ndarray | None) -> tuple[Path, ...]:
    """Write the folder next to ``out``, and rename it once it is whole."""
    columns = items.columns.to_pydict()
    labels, predicted = items.labels, items.predicted
    cosines = items.neighbours[1][:, 0]
    samples = []
    for i, path in enumerate(columns["path"]):
        sample: dict[str, Any] = {"filepath": str(absolute(path)), "tags": []}
        if labels is not None and predicted is not None:
            names, right, judged = predicted
            sample["ground_truth"] = None if labels[i] is None else _classification(labels[i])
            near = names[i]
            sample["prediction"] = None if near is None else _classification(near, float(cosines[i]))
            sample["correct"] = bool(right[i]) if judged[i] else None
            if judged[i] and not right[i]:
                sample["tags"].append("mistake")
        for name, values in columns.items():
            if name not in ("path", "label", "id", *sample):
                sample[name] = _as_json(values[i])
        samples.append(sample)
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            new = Path(beside, target.name)
            new.mkdir()
            (new / "metadata.json").write_text(json.dumps({"media_type": "image"}) + "\n")
            (new / "samples.json").write_text(json.dumps({"samples": samples}, ensure_ascii=False) + "\n", "utf-8")
            np.save(new / "embeddings.npy", items.embeddings)
            if xy is not None:
                np.save(new / "map.npy", xy)
            if target.exists():
                target.rmdir()
            new.replace(target)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
    return ()


def _classification(label: str | None, confidence: float | None = None) -> dict[str, Any]:
    more = {} if confidence is None else {"confidence": confidence}
    return {"_cls": "Classification", "tags": [], "label": label, **more}


def _as_json(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
