"""The columns of a user's table beside those of the images, as its file has them."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divcon.data.readers.folder import images_of
from divcon.errors import DataError
from divcon.search.columns import columns_of_source, types_in

ROWS = {"price": [3, None], "share": [0.5, 2.0], "red": [True, False], "name": ["a;b", None]}
TEXTS = {"price": ["3", None], "share": ["0.5", "2"], "red": ["true", "false"], "name": ["a;b", None]}
TYPES = {"price": "int", "share": "float", "red": "bool", "name": "text"}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "semicolons.csv", "jsonl", "parquet"])
def test_columns_of_every_kind_of_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table.{suffix}"
    separator = {"tsv": "\t", "semicolons.csv": ";"}.get(suffix, ",")
    is_text = suffix not in ("jsonl", "parquet")
    if suffix == "parquet":
        colour = pa.array(["a;b", None]).dictionary_encode()
        table = pa.table({**ROWS, "name": colour, "path": ["x", "y"], "embedding": [[1.0], [2.0]]})
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
    columns = columns_of_source(str(path))
    assert columns is not None
    assert {name: columns[name].to_pylist() for name in columns.column_names} == (TEXTS if is_text else ROWS)
    assert types_in(columns) == (dict.fromkeys(TYPES, "untyped") if is_text else TYPES)
    declared = columns_of_source(str(path), TYPES)
    assert declared is not None
    assert types_in(declared) == TYPES
    assert {name: declared[name].to_pylist() for name in declared.column_names} == ROWS


def test_dates_are_dates_and_what_is_no_table_has_none(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["x"], "day": [datetime.date(2020, 2, 1)], "raw": [b"1"]}), tmp_path / "t.parquet")
    columns = columns_of_source(str(tmp_path / "t.parquet"))
    assert columns is not None
    assert (columns.to_pylist(), types_in(columns)) == ([{"day": "2020-02-01"}], {"day": "date"})
    pq.write_table(pa.table({"path": ["x"], "label": ["l"]}), tmp_path / "only.parquet")
    for source in (tmp_path, tmp_path / "none.csv", "", tmp_path / "only.parquet"):
        assert columns_of_source(str(source)) is None


def test_file_name_is_a_column_beside_path(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,file_name\nx,original.jpg\n")
    columns = columns_of_source(str(tmp_path / "t.csv"))
    assert columns is not None
    assert columns.to_pylist() == [{"file_name": "original.jpg"}]


def test_text_of_a_csv_is_kept_to_the_character(tmp_path: Path) -> None:
    texts = ["  a ", "NaN", "1,5", 'say "x"', "two\nlines", "ü\t", "TRUE", "0x1F", "+49 30 1", "1_000"]
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    (tmp_path / "t.csv").write_text("path,note\n" + "".join(f"{i},{text}\n" for i, text in enumerate(quoted)))
    columns = columns_of_source(str(tmp_path / "t.csv"))
    assert columns is not None
    assert columns["note"].to_pylist() == texts


def test_columns_of_files_in_other_forms(tmp_path: Path) -> None:
    padded = tmp_path / "padded.csv"
    padded.write_text("path, sku, label\nx, 003, l\n")
    utf16 = tmp_path / "utf16.csv"
    utf16.write_bytes("sep=;\npath;sku\nx;003\n".encode("utf-16"))
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(b"path,sku\nx,003\n"))
    vectors = tmp_path / "vectors.csv"
    vectors.write_text('path,sku,embedding\nx,003,"[0.5, 1.0]"\n')
    listed = tmp_path / "listed.json"
    listed.write_text('[{"path": "x", "sku": "003"}]')
    for path in (padded, utf16, packed, vectors, listed):
        columns = columns_of_source(str(path))
        assert columns is not None, path
        assert columns.to_pylist() == [{"sku": "003"}], path


def test_tables_of_a_folder_are_one(tmp_path: Path) -> None:
    for split, price in (("train", [1.0, 2.0]), ("test", [2.5, 3.5])):
        table = {"embedding": [[1.0, 2.0], [3.0, 4.0]], "label": [split, split], "price": price}
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    columns = columns_of_source(images_of(tmp_path).source)
    assert columns is not None
    assert columns["price"].to_pylist() in ([1, 2, 2.5, 3.5], [2.5, 3.5, 1, 2])
    pq.write_table(pa.table({"embedding": [[1.0, 2.0]], "label": ["x"], "price": ["cheap"]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"'price' is .* in .*, and .* in .*; declare its type"):
        columns_of_source(images_of(tmp_path).source)
