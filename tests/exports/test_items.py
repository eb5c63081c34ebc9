"""Embeddings for FAISS, FiftyOne and embedding-atlas: the plain files, and what the real packages make of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.errors import ConfigError, DataError, OutputError, StoreError
from divcon.exports.items import export_items, read_items
from divcon.search.encode import encode

Command = Callable[..., tuple[int, str, str]]
LABELS = [*(f"class {i}" for i in range(6) for _ in range(9)), "alone"]
"""Six classes of nine, and one item alone in its class."""
N, DIM = len(LABELS), 8


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ``model`` of vectors, its index ``store``, and ``vectors.parquet`` that it encoded."""
    folder = tmp_path_factory.mktemp("indexed")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(7, DIM))[[*np.repeat(np.arange(6), 9), 6]]
    vectors = centres + 0.8 * rng.normal(size=centres.shape)
    columns = {"embedding": list(vectors.astype(np.float32)), "label": LABELS, "price": list(range(N))}
    table = pa.table(columns | {"path": [f"photos/{i}.jpg" for i in range(N)]})
    pq.write_table(table, folder / "data.parquet")
    dc.EmbeddingModel("none", DIM, method="single", vector_dim=DIM).save(folder / "model")
    dc.Index.build(folder / "model", folder / "data.parquet", folder / "store").close()
    encode(folder / "model", folder / "data.parquet", folder / "vectors.parquet")
    return folder


@pytest.fixture(params=["store", "vectors.parquet"])
def source(indexed: Path, request: pytest.FixtureRequest) -> Path:
    return indexed / request.param


def nearest_others(embeddings: np.ndarray, k: int) -> np.ndarray:
    products = embeddings.astype(np.float64) @ embeddings.T
    np.fill_diagonal(products, -2)
    return np.argsort(-products, axis=1)[:, :k]


def test_faiss_finds_what_exact_search_finds(source: Path, indexed: Path, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "items.faiss"
    code, printed, err = command("export", source, "--format", "faiss", "--out", out)
    assert code == 0, err
    assert f"55 embeddings of {DIM} dimensions" in printed
    assert "FAISS index Flat" in printed and "it finds 100.0 % of the exact nearest items" in printed
    index, rows = faiss.read_index(str(out)), pq.read_table(f"{out}.parquet").to_pylist()
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    model, data = dc.EmbeddingModel.load(indexed / "model"), pq.read_table(indexed / "data.parquet")
    by_path = dict(zip(data["path"].to_pylist(), model.encode(np.stack(data["embedding"].to_pylist())), strict=True))
    assert [row["id"] for row in rows] == list(range(N))
    names = [
        row["path"].split("indexed")[-1].split("/", 1)[-1] if row["path"].startswith("/") else row["path"]
        for row in rows
    ]
    embeddings = np.stack([by_path["photos/" + name.rsplit("/", 1)[-1]] for name in names])
    scores, found = index.search(embeddings, 4)
    np.testing.assert_array_equal(found[:, 0], np.arange(N))
    np.testing.assert_array_equal(found[:, 1:], nearest_others(embeddings, 3))
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)
    assert {(row["label"], row["price"]) for row in rows} == set(zip(LABELS, range(N), strict=True))


def test_other_kinds_of_faiss_index(indexed: Path, tmp_path: Path) -> None:
    done = export_items(indexed / "store", tmp_path / "a.faiss", "faiss", faiss_index="IVF4,Flat")
    assert (done.index, done.items) == ("IVF4,Flat", N)
    assert done.recall is not None and 0.2 < done.recall < 1  # it looks into one of four lists
    done = export_items(indexed / "store", tmp_path / "b.faiss", "faiss", faiss_index="HNSW16")
    assert done.recall is not None and done.recall > 0.95  # its graph depends on the order in which threads build it
    with pytest.raises(ConfigError, match="FAISS cannot build it of 55 vectors of 8 dimensions"):
        export_items(indexed / "store", tmp_path / "c.faiss", "faiss", faiss_index="Flt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.faiss", "a.faiss.parquet", "b.faiss", "b.faiss.parquet"
    ]  # fmt: skip


def test_atlas_has_vectors_labels_mistakes_neighbours_and_a_map(source: Path, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "atlas.parquet"
    code, printed, err = command("export", source, "--format", "atlas", "--map", "pca", "--out", out)
    assert code == 0, err
    assert f"embedding-atlas {out} --vector embedding --image path --x x --y y --neighbors neighbors" in printed
    rows = pq.read_table(out).to_pylist()
    embeddings, labels = np.array([row["embedding"] for row in rows]), [row["label"] for row in rows]
    others = nearest_others(embeddings, 10)
    assert [row["predicted"] for row in rows] == [labels[other] for other in others[:, 0]]
    expected = [None if label == "alone" else label == labels[o] for label, o in zip(labels, others[:, 0], strict=True)]
    assert [row["correct"] for row in rows] == expected
    assert 0 < expected.count(False) < 30
    assert f"{expected.count(False)} of 54 items have a nearest neighbour of another label" in printed
    np.testing.assert_array_equal([row["neighbors"]["ids"] for row in rows], others)
    distances = np.array([row["neighbors"]["distances"] for row in rows])
    np.testing.assert_allclose(distances, 1 - np.take_along_axis(embeddings @ embeddings.T, others, 1), atol=1e-5)
    xy = np.array([[row["x"], row["y"]] for row in rows])
    assert np.abs(xy).max() == pytest.approx(1) and len(np.unique(xy[:, 0])) == N
    assert {row["price"] for row in rows} == set(range(N))


def test_fiftyones_folder(source: Path, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "fifty"
    code, printed, err = command("export", source, "--format", "fiftyone", "--map", "pca", "--out", out)
    assert code == 0, err
    assert "LegacyFiftyOneDataset" in printed
    samples = json.loads((out / "samples.json").read_text())["samples"]
    embeddings = np.load(out / "embeddings.npy")
    assert embeddings.shape == (N, DIM) and np.load(out / "map.npy").shape == (N, 2)
    labels = [sample["ground_truth"]["label"] for sample in samples]
    near = nearest_others(embeddings, 1)[:, 0]
    assert [sample["prediction"]["label"] for sample in samples] == [labels[other] for other in near]
    for i, sample in enumerate(samples):
        wrong = labels[i] != labels[near[i]] and labels[i] != "alone"
        assert (sample["tags"], sample["correct"] is False) == (["mistake"] if wrong else [], wrong)
        assert sample["prediction"]["confidence"] == pytest.approx(embeddings[i] @ embeddings[near[i]], abs=1e-5)
        assert Path(sample["filepath"]).is_absolute() and sample["filepath"].endswith(".jpg")


def test_items_without_labels_and_equal_ones(tmp_path: Path) -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32), 15, axis=0) * 3
    pq.write_table(pa.table({"embedding": list(vectors)}), tmp_path / "v.parquet")
    items = read_items(tmp_path / "v.parquet")
    np.testing.assert_allclose(np.linalg.norm(items.embeddings, axis=1), 1)
    rows, scores = items.neighbours
    assert rows.shape == (60, 10) and not (rows == np.arange(60)[:, None]).any()
    np.testing.assert_array_equal(rows // 15, np.repeat(np.arange(4), 15)[:, None] * np.ones((1, 10), int))
    np.testing.assert_allclose(scores, 1)
    done = export_items(tmp_path / "v.parquet", tmp_path / "a.parquet", "atlas", by="none")
    assert done.mistakes is None
    assert pq.read_schema(tmp_path / "a.parquet").names == ["path", "neighbors", "embedding"]


def test_what_cannot_be_exported_says_why(indexed: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "there.faiss").write_text("")
    for arguments, message in (
        ([indexed / "store", "--format", "faiss", "--out", tmp_path / "a.bin"], "ends in .faiss"),
        ([indexed / "store", "--format", "fiftyone", "--out", tmp_path / "a.json"], "is a folder"),
        ([indexed / "store", "--format", "faiss", "--out", tmp_path / "there.faiss"], "exists already"),
        ([indexed / "model", "--format", "faiss", "--out", tmp_path / "a.faiss"], "index the images first"),
        ([tmp_path / "no.parquet", "--format", "faiss", "--out", tmp_path / "a.faiss"], "there is no such file"),
        ([indexed / "store", "--format", "atlas", "--precision", "fp16", "--out", tmp_path / "a.parquet"], "of models"),
        (
            [indexed / "store", "--format", "atlas", "--faiss-index", "Flat", "--out", "a.parquet"],
            "is for --format faiss",
        ),
        ([indexed / "model", "--map", "pca", "--out", tmp_path / "a.onnx"], "--map pca does not go with --format onnx"),
    ):
        code, _, err = command("export", *arguments)
        assert (code, message in err) == (2, True), err
    assert [path.name for path in tmp_path.iterdir()] == ["there.faiss"]
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="has no column 'embedding'"):
        read_items(tmp_path / "t.parquet")
    with pytest.raises((StoreError, OutputError, DataError)):
        read_items(tmp_path / "nothing")


# The real packages change others that are installed here: they are tested where DIVCON_TEST_TOOLS names a folder of
# environments, `fiftyone` and `embedding-atlas`, with their programs.


def tool(name: str, program: str) -> Path:
    found = Path(os.environ.get("DIVCON_TEST_TOOLS", "nowhere"), name, "bin", program)
    if not found.exists():
        pytest.skip(f"DIVCON_TEST_TOOLS has no environment {name}")
    return found


@pytest.mark.slow
def test_fiftyone_reads_its_folder(indexed: Path, tmp_path: Path) -> None:
    """By its importer, which needs no database server."""
    python = tool("fiftyone", "python")
    export_items(indexed / "store", tmp_path / "out", "fiftyone", by="pca")
    code = """
import json, sys
from fiftyone.utils.data.importers import LegacyFiftyOneDatasetImporter
importer = LegacyFiftyOneDatasetImporter(sys.argv[1])
importer.setup()
samples = list(importer)
print(json.dumps([[type(s.ground_truth).__name__, s.ground_truth.label, s.prediction.label, s.correct, s.tags,
                   s.price, s.media_type] for s in samples]))
"""
    answer = subprocess.run([python, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True)
    written = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]
    assert json.loads(answer.stdout.splitlines()[-1]) == [
        [
            "Classification",
            s["ground_truth"]["label"],
            s["prediction"]["label"],
            s["correct"],
            s["tags"],
            s["price"],
            "image",
        ]
        for s in written
    ]


@pytest.mark.slow
def test_embedding_atlas_reads_its_parquet(indexed: Path, tmp_path: Path) -> None:
    """It writes its page as a stand-alone application, with the data in it."""
    program = tool("embedding-atlas", "embedding-atlas")
    parquet, app = tmp_path / "atlas.parquet", tmp_path / "app.zip"
    export_items(indexed / "store", parquet, "atlas", by="pca")
    flags = ["--vector", "embedding", "--x", "x", "--y", "y", "--neighbors", "neighbors", "--export-application", app]
    done = subprocess.run([program, parquet, *flags], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(app) as archive:
        metadata = json.loads(archive.read("data/metadata.json"))
        shown = json.dumps(metadata)
        assert '"x"' in shown and '"neighbors"' in shown
        data = next(name for name in archive.namelist() if name.endswith(".parquet"))
        archive.extract(data, tmp_path)
    read = pq.read_table(tmp_path / data)
    assert read.num_rows == N and {"x", "y", "label", "correct", "predicted"} <= set(read.column_names)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
