"""What a table's file really is: read where it can be, by its content; else the error names the true cause."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

import divcon as dc
from divcon.data.table_format import format_of, is_table, stem_of
from divcon.data.tables import metadata_of, where_in
from divcon.errors import DataError

NAMES = [f"{c}{i}.png" for c in "abcd" for i in (1, 2)]
CSV = "path,label,split\n" + "".join(f"{name},{name[0]},{'train' if name[0] in 'ab' else 'test'}\n" for name in NAMES)
ROWS = [dict(zip(("path", "label", "split"), line.split(","), strict=True)) for line in CSV.split()[1:]]


@pytest.fixture
def folder(make_images) -> Path:
    return make_images(NAMES)


def labels(path: Path) -> list[str]:
    data = dc.read(path)
    return [data.train.label_name(i) for i in range(4)] + [data.query.label_name(i) for i in range(4)]


EXPECTED = list("aabbccdd")


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        dc.read(path)
    return str(caught.value)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_as_programs_write_it(folder, separator, encoding, end):
    text = CSV.replace(",", separator).replace("\n", end)
    path = written(folder / "t.csv", text.encode(encoding))
    assert labels(path) == EXPECTED
    assert where_in(str(path), 0) == f"{path} line 2: "


def test_umlauts_in_utf16(folder):
    text = CSV.replace(",a,", ",Bär,").replace(",", "\t")
    assert labels(written(folder / "t.csv", text.encode("utf-16")))[:2] == ["Bär", "Bär"]


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_first_line_of_excel(folder, line):
    path = written(folder / "t.csv", f"{line}\n" + CSV.replace(",", ";"))
    assert labels(path) == EXPECTED
    path = written(folder / "t.csv", f"{line}\n" + CSV.replace(",", ";").replace(";c;", ";;", 1))
    assert "t.csv line 7: the label is empty" in error_of(path)


def test_spaces_after_the_commas(folder):
    assert labels(written(folder / "t.csv", CSV.replace(",", ", "))) == EXPECTED


@pytest.mark.parametrize("header", ["Path,Label,Split", "PATH,LABEL,SPLIT", " path ,label , split"])
def test_names_in_another_case_or_with_spaces(folder, header):
    assert labels(written(folder / "t.csv", CSV.replace("path,label,split", header))) == EXPECTED


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", [*PACK, ".zst"])
@pytest.mark.parametrize("named", ["t.csv", "t.csv{}"])
def test_compressed(folder, suffix, named, tmp_path):
    if suffix == ".zst":
        with pa.CompressedOutputStream(str(tmp_path / "packed"), "zstd") as stream:
            stream.write(CSV.encode())
        content = (tmp_path / "packed").read_bytes()
    else:
        content = PACK[suffix](CSV.encode())
    path = written(folder / named.format(suffix), content)
    assert labels(path) == EXPECTED and dc.read(path).name == "t"
    assert where_in(str(path), 3) == f"{path} line 5: "
    if suffix == ".gz":
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        assert labels(written(folder / "t.jsonl.gz", gzip.compress(lines.encode()))) == EXPECTED
        assert "gzip file is damaged or cut off" in error_of(written(path, content[:-20]))


def test_pandas_writes_what_is_read(folder):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS)
    for name in ("t.csv", "t.csv.gz", "t.csv.zip", "t.tsv"):
        frame.to_csv(folder / name, sep="\t" if name == "t.tsv" else ",")  # with its unnamed index
        assert labels(folder / name) == EXPECTED, name
    for orient in ("records", "columns", "split", "table"):
        frame.to_json(folder / "t.json", orient=orient)
        assert labels(folder / "t.json") == EXPECTED, orient
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    assert labels(folder / "t.jsonl") == EXPECTED
    frame.to_parquet(folder / "t.parquet")
    frame.to_feather(folder / "t.feather")
    assert labels(folder / "t.parquet") == labels(folder / "t.feather") == EXPECTED
    categories = frame.astype({"label": "category"})
    categories.to_parquet(folder / "t.parquet")
    assert labels(folder / "t.parquet") == EXPECTED


def test_polars_writes_what_is_read(folder):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(ROWS)
    frame.write_csv(folder / "t.csv", include_bom=True)
    frame.write_ndjson(folder / "t.jsonl")
    frame.write_json(folder / "t.json")
    frame.write_ipc(folder / "t.arrow", compression="zstd")
    frame.with_columns(polars.col("label").cast(polars.Categorical)).write_parquet(folder / "t.parquet")
    for suffix in ("csv", "jsonl", "json", "arrow", "parquet"):
        assert labels(folder / f"t.{suffix}") == EXPECTED, suffix


class TestJson:
    @pytest.mark.parametrize(
        "value",
        [
            ROWS,
            {name: [row[name] for row in ROWS] for name in ROWS[0]},
            {"data": ROWS},
            {"rows": ROWS},
        ],
        ids=["list", "columns", "data", "rows"],
    )
    @pytest.mark.parametrize("indent", [None, 2])
    def test_one_value(self, folder, value, indent):
        path = written(folder / "t.json", json.dumps(value, indent=indent))
        assert labels(path) == EXPECTED

    @pytest.mark.parametrize("by_label", [False, True])
    def test_files_and_their_labels(self, folder, by_label):
        value = {row["path"]: row["label"] for row in ROWS}
        if by_label:
            value = {label: [row["path"] for row in ROWS if row["label"] == label] for label in "abcd"}
        data = dc.read(written(folder / "t.json", json.dumps(value)))
        found = {p.path(i): p.label_name(i) for p in (data.train, data.query) for i in range(len(p))}
        assert found == {row["path"]: row["label"] for row in ROWS}

    def test_a_byte_order_mark(self, folder):
        content = "\ufeff" + "".join(json.dumps(row) + "\r\n" for row in ROWS)
        assert labels(written(folder / "t.jsonl", content)) == EXPECTED

    def test_labels_of_several_types(self, folder):
        values = [1, 1.0, "1", " 1 ", True, True, "x", "x"]
        lines = [json.dumps({**row, "label": value}) for row, value in zip(ROWS, values, strict=True)]
        path = written(folder / "t.jsonl", "\n".join(lines).replace('"train"', '"test"'))
        data = dc.read(path)
        assert [data.query.label_name(i) for i in range(8)] == ["1"] * 4 + ["true"] * 2 + ["x"] * 2

    def test_labels_that_look_like_times(self, folder):
        lines = [json.dumps({**row, "label": f"2024-01-0{1 + i // 2}"}) for i, row in enumerate(ROWS)]
        assert labels(written(folder / "t.jsonl", "\n".join(lines)))[::2] == [f"2024-01-0{i}" for i in (1, 2, 3, 4)]

    def test_nan_of_python(self, folder):
        lines = [json.dumps(row) for row in ROWS]
        lines[4] = lines[4].replace('"c"', "NaN")
        assert "t.jsonl line 5: the label is empty" in error_of(written(folder / "t.jsonl", "\n".join(lines)))

    def test_the_row_in_a_list(self, folder):
        rows = [dict(row) for row in ROWS]
        rows[4]["label"] = None
        assert "t.json entry 5: the label is empty" in error_of(written(folder / "t.json", json.dumps(rows)))

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (
                '{"path": "a", "label": "b"}\n{"path": \n',
                "line 2: this is not JSON Lines, one object a line (Expecting",
            ),
            ("[1, 2]", "entry 1: this is a int, where JSON Lines has an object"),
            ("hello", "this is not JSON Lines, one object a line: it starts with 'hello'"),
            ('{"images": [], "annotations": []}', "this is a file of COCO annotations, not a table"),
        ],
    )
    def test_what_is_none(self, folder, content, said):
        assert said in error_of(written(folder / "t.jsonl", content))


class TestMisnamed:
    """The content decides, and a note says so."""

    def test_read(self, folder):
        parquet = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), parquet)
        feather = io.BytesIO()
        pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), feather)
        lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        for name, content, what in (
            ("t.csv", parquet.getvalue(), "a parquet"),
            ("t.csv", lines, "JSON"),
            ("t.csv", feather.getvalue(), "an Arrow file"),
            ("t.parquet", CSV.encode(), "a CSV"),
            ("t.parquet", lines, "JSON"),
            ("t.jsonl", CSV.encode(), "a CSV"),
            ("t.jsonl", parquet.getvalue(), "a parquet"),
        ):
            path = written(folder / name, content)
            assert labels(path) == EXPECTED
            assert f"{path}: holds {what}, whatever its name says" in dc.read(path).notes
            ((_, columns),) = metadata_of(str(path)) or ()
            assert list(columns.keys() if isinstance(columns, dict) else columns.column_names) == ["split"]
            path.unlink()

    def test_images_in_a_parquet_named_csv(self, folder, encoded):
        table = {"image": [encoded(name) for name in NAMES], "label": EXPECTED}
        pq.write_table(pa.table(table), folder / "t.csv")
        assert dc.read(folder / "t.csv").train.open(0).size == (8, 8)


def html(title: str = "Sign in") -> str:
    return f"\n<!DOCTYPE html>\n<html lang=en><head><title>{title}</title></head><body>,;</body></html>"


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name.replace("__", "/").replace("_x_", "."), member)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo("t.csv")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"a,b\n"))
    return content.getvalue()


def picture(kind: str) -> bytes:
    Image.new("RGB", (9, 9)).save(content := io.BytesIO(), kind)
    return content.getvalue()


def array() -> bytes:
    np.save(content := io.BytesIO(), np.zeros((2, 2)))
    return content.getvalue()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234567\n"

WRONG = {
    "html": (html(), "this is an HTML page ('Sign in'), not a table: a download that was refused"),
    "xhtml": ("<?xml version='1.0'?>\n" + html("Not found"), "this is an HTML page ('Not found')"),
    "xml": ("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "this is an XML document"),
    "lfs": (POINTER, "this is a Git LFS pointer of a file of 1,234,567 bytes, not the file itself; fetch it with"),
    "annex": ("/annex/objects/SHA256E-s123--abc.csv\n", "this is a git-annex pointer"),
    "excel": (zipped(xl__workbook_x_xml=b"<x/>"), "this is an Excel file, not a table; save it as CSV UTF-8"),
    "old excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an Excel file of the old kind (.xls)"),
    "ods": (zipped(mimetype=b"x", content_x_xml=b"<x/>"), "this is an OpenDocument spreadsheet"),
    "zip": (zipped(a_x_csv=b"a", b_x_csv=b"b"), "this is a ZIP archive of 2 files, not a table; unpack it"),
    "tar": (tarred(), "this is a tar archive"),
    "packed tar": (gzip.compress(tarred()), "(unpacked from gzip): this is a tar archive"),
    "packed html": (gzip.compress(html().encode()), "(unpacked from gzip): this is an HTML page"),
    "png": (picture("PNG"), "this is a PNG image"),
    "jpeg": (picture("JPEG"), "this is a JPEG image"),
    "webp": (picture("WEBP"), "this is a WebP image"),
    "pdf": (b"%PDF-1.7\n\0", "this is a PDF document"),
    "pickle": (pickle.dumps([1]), "this is a Python pickle, not a table; write it as CSV or parquet"),
    "npy": (array(), "this is an array of NumPy (.npy)"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "this is an HDF5 file"),
    "empty": (b"", "the file is empty"),
    "spaces": (b" \n \n", "the file is empty"),
}


def test_answers_of_servers(tmp_path):
    said = "t.csv: holds one line, '404: Not Found', and no table: a download that was refused"
    assert said in error_of(written(tmp_path / "t.csv", "404: Not Found\n"))
    answer = '{"error": "Repository not found"}'
    for suffix in (".csv", ".jsonl"):
        assert "this is a server's answer, not a table" in error_of(written(tmp_path / f"t{suffix}", answer))


def test_columns_separated_by_spaces(tmp_path):
    assert "seem to be separated by spaces" in error_of(written(tmp_path / "t.csv", CSV.replace(",", " ")))
    assert "if it is a table, give it the ending .csv" in error_of(written(tmp_path / "t.txt", CSV))
    assert "if it is a table, give it the ending .csv" in error_of(written(tmp_path / "t.tab", CSV.replace(",", "\t")))
    assert "if it is a table, give it the ending .jsonl" in error_of(written(tmp_path / "t.dat", '{"path": "a.png"}\n'))
    assert "this is text with a character NUL in line 9" in error_of(
        written(tmp_path / "t.csv", CSV.replace("d2", "\0"))
    )
    polars = pytest.importorskip("polars")
    polars.DataFrame({"path": NAMES}).write_avro(tmp_path / "t.avro")
    assert "t.avro: this is an Avro file, not a table; write it as parquet" in error_of(tmp_path / "t.avro")
    with pytest.raises(DataError, match="the name of the data is empty"):
        dc.read("")
    assert error_of(tmp_path / "gone").endswith("gone: there is no such file or folder")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl", ".json"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_read_is_named(tmp_path, kind, suffix):
    content, said = WRONG[kind]
    message = error_of(written(tmp_path / f"t{suffix}", content))
    assert message.startswith(f"{tmp_path}/t{suffix}") and said in message
    assert "column" not in message and "not JSON" not in message


def test_a_file_of_excel(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for line in CSV.split():
        book.active.append(line.split(","))
    for name in ("t.xlsx", "t.csv"):
        book.save(tmp_path / "book.xlsx")
        shutil.copy(tmp_path / "book.xlsx", tmp_path / name)
        assert f"{name}: this is an Excel file, not a table; save it as CSV UTF-8" in error_of(tmp_path / name)


def test_an_older_encoding_names_the_line(folder):
    path = written(folder / "t.csv", CSV.replace(",d,", ",dé,").encode("cp1252"))
    assert "t.csv line 8: this is not UTF-8 (byte 0xe9), but an older encoding" in error_of(path)


def test_names_of_tables():
    assert [is_table(name) for name in ("a.CSV", "a.csv.gz", "a.JSONL.zst", "a.gz", "a.txt")] == [True] * 3 + [
        False
    ] * 2
    assert stem_of("x/a.csv.gz") == stem_of("x/a.csv") == "a"
    assert format_of("gone.csv") == "csv" and format_of("gone.parquet") == "parquet"


@pytest.mark.heavy
def test_the_command_line_says_it(tmp_path):
    import sys

    path = written(tmp_path / "t.csv", POINTER)
    done = subprocess.run([sys.executable, "-m", "divcon", "check", str(path)], capture_output=True, text=True)
    assert done.returncode == 2 and "Git LFS pointer" in done.stderr and "Traceback" not in done.stderr
