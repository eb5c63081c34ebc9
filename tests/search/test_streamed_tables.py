"""Tables that are read as they are indexed, against tables that are read as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from divcon.data.readers.folder import images_of
from divcon.errors import ConfigError, DataError
from divcon.search.items import CHUNK, Items, items_of, read_rows

ROWS = 2 * CHUNK + 100


def columns(rows: int = ROWS) -> dict[str, list]:
    return {
        "file": [f"photos/{row // 7}/{row}.jpg" for row in range(rows)],
        "label": [None if row % 50 == 0 else f" class {row // 7} " for row in range(rows)],
        "price": [f"{row / 4}" for row in range(rows)],
        "split": ["train"] * rows,
        "note": [None if row % 3 else f'says "{row}", \n and more' for row in range(rows)],
    }


def assert_same(streamed: list[Items], whole: Items) -> None:
    assert [name for items in streamed for name in items.names] == whole.names
    assert [path for items in streamed for path in items.paths()] == whole.paths()
    assert [label for items in streamed for label in items.labels] == whole.labels
    assert pa.concat_arrays([pa.array(items.details()) for items in streamed]).equals(pa.array(whole.details()))


@pytest.fixture(scope="module", params=["csv", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rows = tmp_path_factory.mktemp("table") / f"items.{request.param}", pa.table(columns())
    for number in range(1, 8):  # the files of one folder; the others are not looked for
        (path.parent / f"photos/{number}").mkdir(parents=True)
    pa.csv.write_csv(rows, path) if request.param == "csv" else pq.write_table(rows, path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_rows_are_those_of_the_whole_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divcon.data.readers.table.check_paths", lambda images: None)
    streamed = list(read_rows(table, column_types={"price": "float"}))
    assert [len(items) for items in streamed[:2]] == [CHUNK, CHUNK]
    assert_same(streamed, items_of(images_of(str(table)), column_types={"price": "float"})[0])
    assert streamed[1].images.rows[0] == CHUNK
    assert streamed[0].images.root == str(table.parent)


def test_it_is_read_only_as_far_as_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("path,label\n")
        for row in range(400_000):
            file.write(f"photos/{row:09}.jpg,class {row // 10}\n")
        file.write("one,field,too many\n")
    reading = read_rows(path)
    assert next(reading).names[0] == str(tmp_path / "photos/000000000.jpg")
    with pytest.raises(DataError, match=r"long\.csv: cannot be read to its end"):
        list(reading)


def test_vectors_without_a_path_have_the_names_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    vectors = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    names = [None if row % 2 else f"item {row}" for row in range(len(vectors))]
    rows = {"embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 4), "path": names}
    pq.write_table(pa.table(rows), path)
    streamed = list(read_rows(path))
    assert len(streamed) == 2
    assert_same(streamed, items_of(images_of(str(path)))[0])
    np.testing.assert_array_equal(np.concatenate([items.images.vectors for items in streamed]), vectors)


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"image": [b"png"], "label": ["a"]}), path)
    with pytest.raises(DataError, match="holds encoded images"):
        next(read_rows(path))
    pq.write_table(pa.table({"path": ["a.png"]}), path)
    with pytest.raises(ConfigError, match="`column_types`"):
        next(read_rows(path, column_types={"price": "float"}))
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="the table has no rows"):
        next(read_rows(path))
    (tmp_path / "rows.jsonl").write_text('{"path": "a.png"}\n')
    with pytest.raises(DataError, match="a CSV or parquet is read as it is indexed"):
        next(read_rows(tmp_path / "rows.jsonl"))
    (tmp_path / "v.csv").write_text('embedding,label\n"[1, 2]",a\n')
    with pytest.raises(DataError, match="write them as parquet"):
        next(read_rows(tmp_path / "v.csv"))
