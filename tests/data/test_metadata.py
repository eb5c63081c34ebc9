"""The columns of a user's table beside those of the images."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divcon.data.readers.folder import images_of
from divcon.data.tables import metadata_of
from divcon.errors import DataError

ROWS = {"price": [3, None], "share": [0.5, 2.0], "red": [True, False], "name": ["a;b", None]}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "semicolons.csv", "jsonl", "parquet"])
def test_columns_of_every_kind_of_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table.{suffix}"
    separator = {"tsv": "\t", "semicolons.csv": ";"}.get(suffix, ",")
    if suffix == "parquet":
        colour = pa.array(["a;b", None]).dictionary_encode()
        table = pa.table({**ROWS, "name": colour, "path": ["x", "y"], "embedding": [[1.0], [2.0]], "tags": [["t"], []]})
        pq.write_table(table, path)
    elif suffix == "jsonl":
        path.write_text(
            '{"path": "x", "price": 3, "share": 0.5, "red": true, "name": "a;b"}\n'
            '{"path": "y", "share": 2.0, "red": false}\n'
        )
    else:
        lines = [
            ["path", "price", "label", "share", "red", "name"],
            ["x", "3", "l", "0.5", "true", '"a;b"'],
            ["y", "", "l", "2", "false", ""],
        ]
        path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    metadata = metadata_of(str(path))
    assert metadata is not None
    assert {name: metadata[name].to_pylist() for name in sorted(metadata.column_names)} == {
        k: ROWS[k] for k in sorted(ROWS)
    }
    assert metadata.schema.field("price").type == pa.int64()


def test_dates_are_text_and_what_is_no_table_has_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["x"], "day": [datetime.date(2020, 2, 1)], "raw": [b"1"]}), tmp_path / "t.parquet")
    metadata = metadata_of(str(tmp_path / "t.parquet"))
    assert metadata is not None
    assert metadata.to_pylist() == [{"day": "2020-02-01"}]
    pq.write_table(pa.table({"path": ["x"], "label": ["l"]}), tmp_path / "only.parquet")
    for source in (tmp_path, tmp_path / "none.csv", "", tmp_path / "only.parquet"):
        assert metadata_of(str(source)) is None


def test_tables_of_a_folder_are_one(tmp_path: Path) -> None:
    for split, price in (("train", [1, 2]), ("test", [2.5, 3.5])):
        table = {"embedding": [[1.0, 2.0], [3.0, 4.0]], "label": [split, split], "price": price}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    metadata = metadata_of(images_of(tmp_path).source)
    assert metadata is not None
    assert metadata["price"].to_pylist() == [1, 2, 2.5, 3.5]
    pq.write_table(pa.table({"embedding": [[1.0, 2.0]], "label": ["x"], "price": ["cheap"]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="its columns cannot be read"):
        metadata_of(images_of(tmp_path).source)
