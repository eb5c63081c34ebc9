"""CSV in all its dialects, and files that are no tables."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.data.tables import csv_line, load_table, require_columns
from divcon.errors import DataError

ROWS = [{"path": "a 1.png", "label": "x"}, {"path": "b;2.png", "label": "y,\n z"}, {"path": "c", "label": None}]


def error_of(path) -> str:
    with pytest.raises(DataError) as caught:
        load_table(path)
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", ["path{0}label", '"path"{0}"label"', "\npath{0}label"])
def test_dialects(tmp_path, separator, mark, end, header):
    lines = [header.format(separator), f"a 1.png{separator}x", "", f'"b;2.png"{separator}"y,\n z"', f"c{separator}", ""]
    path = tmp_path / "t.csv"
    path.write_bytes(mark + end.join(lines).encode())
    assert load_table(path).to_pylist() == ROWS
    blank = header.startswith("\n")
    assert [csv_line(path, row) for row in range(3)] == [blank + line for line in (2, 5, 6)]


def test_a_tsv_and_capital_suffixes(tmp_path):
    for name in ("t.tsv", "T.CSV"):
        (tmp_path / name).write_text("path\tlabel\na\tb\n")
        assert load_table(tmp_path / name).to_pylist() == [{"path": "a", "label": "b"}]


def test_numbers_keep_their_text(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,x_1\n007,1e3,4\nnan,NA,\n")
    assert load_table(tmp_path / "t.csv").to_pylist() == [
        {"path": "007", "label": "1e3", "x_1": "4"},
        {"path": "nan", "label": "NA", "x_1": None},
    ]


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1)] * 2),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=50, deadline=None)
def test_what_pythons_csv_writes_is_read_back(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["path", "label"])
        writer.writerows(rows)
    assert [tuple(row.values()) for row in load_table(path).to_pylist()] == rows


def test_a_row_of_another_length(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na,b\n\na,b,c\n")
    assert "t.csv line 4: 3 fields, where the header has 2" in error_of(tmp_path / "t.csv")


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "t.csv").write_bytes("path,label\na,b\ncaf\xe9,b\n".encode("latin-1"))
    assert "t.csv line 3: this is not UTF-8 (byte 0xe9)" in error_of(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes("path,label,caf\xe9\na,b,c\n".encode("latin-1"))
    assert "t.csv line 1: this is not UTF-8" in error_of(tmp_path / "t.csv")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path,label\na,\0\n")
    assert "not text in UTF-8" in error_of(tmp_path / "t.csv")


@pytest.mark.parametrize(("content", "said"), [("", "is empty"), ("\n \n", "is empty"), ("path,label\n", "no rows")])
def test_nothing_in_it(tmp_path, content, said):
    (tmp_path / "t.csv").write_text(content)
    assert said in error_of(tmp_path / "t.csv")


def test_a_column_twice(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,label\na,b,c\n")
    assert "two columns 'label'" in error_of(tmp_path / "t.csv")


def test_an_open_quote(tmp_path):
    (tmp_path / "t.csv").write_text('path,label\n"a,b\nc,d\n')
    assert "t.csv" in error_of(tmp_path / "t.csv")


def test_a_missing_file(tmp_path):
    assert "there is no such file" in error_of(tmp_path / "t.csv")


def test_not_a_parquet(tmp_path):
    (tmp_path / "t.parquet").write_text("Entry not found")
    assert "t.parquet: this is not a parquet file, but text: 'Entry not found'" in error_of(tmp_path / "t.parquet")
    pq.write_table(pa.table({"path": ["a"], "label": ["b"]}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-9])
    assert "its end is missing: it was cut off" in error_of(tmp_path / "t.parquet")


def test_a_parquet_column_of_lists(tmp_path):
    pq.write_table(pa.table({"path": ["a"], "label": [[1, 2]]}), tmp_path / "t.parquet")
    assert "the column 'label' holds list" in error_of(tmp_path / "t.parquet")


def test_columns_that_are_missing_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("pth,class\na,b\n")
    with pytest.raises(DataError, match=r"no column 'path' among 'pth', 'class'; rename 'pth'"):
        require_columns(tmp_path / "t.csv", load_table(tmp_path / "t.csv").column_names, ["path", "label"], "")
