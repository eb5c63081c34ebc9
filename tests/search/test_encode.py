"""`divcon.encode`: parquet of embeddings, in parts, as shards, after interruptions, and at addresses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.errors import DataError, StoreError
from divcon.runtime.context import Progress
from divcon.search import StreamSource

pytestmark = pytest.mark.heavy

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_model: Callable[..., dc.EmbeddingModel], tmp_path: Path) -> Path:
    tiny_model().save(tmp_path / "run")
    return tmp_path / "run"


def table_of(image_folder: Path) -> Path:
    """A CSV beside the images, with a label and two columns of the user's."""
    images = sorted(image_folder.rglob("*.png"))
    lines = [f"{p.relative_to(image_folder)},{p.parent.name},{i}.50,a {i % 3}" for i, p in enumerate(images)]
    path = image_folder / "items.csv"
    path.write_text("path,label,price,note\n" + "\n".join(lines) + "\n")
    return path


def embeddings_in(table: Any) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_table_keeps_its_columns_in_one_file_or_a_folder(
    run: Path, image_folder: Path, tmp_path: Path, streamed: bool
) -> None:
    csv = table_of(image_folder)
    data: Any = StreamSource(str(csv), to_encode=True) if streamed else csv
    encoded = dc.encode(run, data, tmp_path / "one.parquet", batch_size=8)
    assert (encoded.rows, encoded.kept, encoded.dims) == (40, 0, 16)
    assert not list(tmp_path.glob("*.parts"))
    one = pq.read_table(tmp_path / "one.parquet")
    assert one.column_names == ["path", "label", "price", "note", "embedding"]
    assert one["price"].to_pylist()[3] == "3.50"
    assert [Path(path).is_file() for path in one["path"].to_pylist()] == [True] * 40
    assert np.array_equal(embeddings_in(one), dc.EmbeddingModel.load(run).encode(str(csv), batch_size=8))

    # Parts of whole batches: the same embeddings but for rounding, and a folder that is a data set.
    dc.encode(run, data, tmp_path / "parts", part_rows=16, batch_size=8)
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == [
        *(f"part-{number:08d}.parquet" for number in range(3)),
        "shard-1-of-1.json",
    ]
    read = dc.read(tmp_path / "parts")
    assert read.train.num_classes + read.query.num_classes == 8
    rows = [pq.read_table(path) for path in sorted((tmp_path / "parts").glob("*.parquet"))]
    np.testing.assert_allclose(np.concatenate(list(map(embeddings_in, rows))), embeddings_in(one), atol=1e-6)


def test_an_interrupted_call_goes_on_and_another_model_begins_anew(
    run: Path, tiny_model: Callable[..., dc.EmbeddingModel], image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.parquet"

    def interrupt(step: Progress) -> None:
        if step.done > 20:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"part_rows": 8, "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        dc.encode(run, image_folder, out, context=dc.Context(on_progress=interrupt), **how)
    assert not out.exists()
    assert len(list((tmp_path / "v.parquet.parts").glob("part-*"))) == 2
    encoded = dc.encode(run, image_folder, out, **how)
    assert (encoded.rows, encoded.kept) == (40, 16)

    with pytest.raises(KeyboardInterrupt):
        dc.encode(run, image_folder, out, context=dc.Context(on_progress=interrupt), **how)
    other = tiny_model(seed=1).eval()
    encoded = dc.encode(other, image_folder, out, **how)
    assert (encoded.rows, encoded.kept) == (40, 0)
    assert np.array_equal(embeddings_in(pq.read_table(out)), other.encode(image_folder, batch_size=4))
    with pytest.raises(KeyboardInterrupt):
        dc.encode(other, image_folder, out, context=dc.Context(on_progress=interrupt), **how)
    encoded = dc.encode(other, image_folder, out, learner=1, **how)
    assert (encoded.rows, encoded.kept) == (40, 0)
    assert np.array_equal(embeddings_in(pq.read_table(out)), other.encode(image_folder, learner=1, batch_size=4))

    dc.encode(run, image_folder, tmp_path / "folder", **how)
    with pytest.raises(StoreError, match=r"folder/part-00000000\.parquet: holds embeddings of another model"):
        dc.encode(other, image_folder, tmp_path / "folder", **how)
    with pytest.raises(DataError, match="no image"):
        (tmp_path / "empty").mkdir()
        dc.encode(run, tmp_path / "empty", tmp_path / "x.parquet")


def test_vectors_and_repeated_images_are_rows_each(tmp_path: Path, image_folder: Path, run: Path) -> None:
    model = dc.EmbeddingModel(vector_dim=6, embedding_dim=4).eval()
    vectors = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    assert dc.encode(model, vectors, tmp_path / "v.parquet").rows == 9
    assert np.array_equal(embeddings_in(pq.read_table(tmp_path / "v.parquet")), model.encode(vectors))
    image = next(image_folder.rglob("*.png"))
    assert dc.encode(run, [image, image], tmp_path / "twice.parquet").rows == 2


def test_shards_as_slurm_starts_them(
    command: Command, run: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, out = tmp_path / "paths.txt", tmp_path / "out"
    images = sorted(image_folder.rglob("*.png"))
    listing.write_text("".join(f"{path}\n" for path in images))
    how = (run, "--stream", listing, "--part-rows", 8, "--workers", 0, "--out")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    for number in (0, 1):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        code, printed, err = command("encode", *how, out)
        assert code == 0, err
        assert printed == f"shard {number + 1} of 2: {(24, 16)[number]} embeddings of 16 dimensions in {out}\n"
    assert command("encode", *how, tmp_path / "one.parquet") == (0, "", "")  # the first process writes it
    monkeypatch.setenv("SLURM_PROCID", "0")
    code, _, err = command("encode", *how, tmp_path / "one.parquet", "--shard", "1/2")
    assert code == 2
    assert "2 processes cannot write one file; name a folder, without .parquet" in err
    rows = [pq.read_table(path) for path in sorted(out.glob("*.parquet"))]
    assert [path for table in rows for path in table["path"].to_pylist()] == [str(path) for path in images]
    code, _, err = command("encode", run, image_folder, "--out", tmp_path / "v.csv")
    assert code == 2
    assert "use a name that ends in .parquet, or that of a folder" in err
    code, _, err = command("encode", run, "--out", tmp_path / "v")
    assert code == 2
    assert "give either IMAGES after RUN" in err


def test_from_s3_to_s3(command: Command, run: Path, image_folder: Path, tmp_path: Path, s3: Any) -> None:
    s3.upload(image_folder, "photos/")
    names = [name for name in s3.names() if name.endswith(".png")]
    s3.write({"paths.txt": "".join(f"{s3.url}/{name}\n" for name in names).encode()})
    how = ("--part-rows", 16, "--batch-size", 8, "--workers", 0)
    code, printed, err = command("encode", run, "--stream", f"{s3.url}/paths.txt", "--out", f"{s3.url}/vectors", *how)
    assert code == 0, err
    assert printed == f"40 embeddings of 16 dimensions in {s3.url}/vectors\n"
    assert [name for name in s3.names() if name.startswith("vectors/")] == [
        *(f"vectors/part-{number:08d}.parquet" for number in range(3)),
        "vectors/shard-1-of-1.json",
    ]
    s3.system.rm_file(f"{s3.name}/vectors/part-00000001.parquet")
    code, printed, err = command("encode", run, "--stream", f"{s3.url}/paths.txt", "--out", f"{s3.url}/vectors", *how)
    assert printed == f"40 embeddings of 16 dimensions in {s3.url}/vectors, 24 of them there already\n", err

    # The index of the same images, by parts beside the vectors.
    parts = f"{s3.url}/parts"
    code, printed, err = command("index", run, "--stream", f"{s3.url}/paths.txt", "--parts", parts, *how)
    assert code == 0, err
    code, printed, err = command("index", "--load", parts, "--store", tmp_path / "store")
    assert code == 0, err
    assert printed.startswith("40 added")
    hit = dc.Index.open(tmp_path / "store", run).search(image_folder / names[7].removeprefix("photos/"), k=1)[0]
    assert hit.path == f"{s3.url}/{names[7]}"
    assert hit.score == pytest.approx(1)
