"""The one rule for labels: the same classes from a folder, from every format of tables, and from Python values."""

from __future__ import annotations

import datetime
import decimal
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.data.check import check
from divcon.data.inputs import as_labeled_set
from divcon.data.labels import alike, clean_label, label_text, read_labels
from divcon.data.readers.folder import images_of
from divcon.errors import ConfigError, DataError

NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (" a ", "a"),
        ("\u00a0a\u3000\n", "a"),
        ("\ufeffa\u200b ", "a"),
        (NFD, NFC),
        ("salt  and pepper", "salt  and pepper"),
        ("", None),
        (" \t", None),
        (None, None),
        (float("nan"), None),
        (np.float32("nan"), None),
        (decimal.Decimal("nan"), None),
        (np.datetime64("NaT"), None),
        (1, "1"),
        (1.0, "1"),
        (np.float32(1), "1"),
        (np.int8(-3), "-3"),
        (-0.0, "0"),
        (2.5, "2.5"),
        (np.float32(0.1), "0.1"),
        (1e20, "100000000000000000000"),
        (decimal.Decimal("7.00"), "7"),
        (decimal.Decimal("7.50"), "7.5"),
        ("1.0", "1.0"),
        ("01", "01"),
        (True, "true"),
        (np.bool_(False), "false"),
        (b" caf\xc3\xa9", NFC),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (np.array(4), "4"),
    ],
)
def test_the_rule(value, name):
    assert label_text(value) == name


def test_pandas_missing_values():
    pandas = pytest.importorskip("pandas")
    assert label_text(pandas.NA) is None and label_text(pandas.NaT) is None


@pytest.mark.parametrize("value", [[1], {"a": 1}, np.zeros(2), object()])
def test_what_is_no_label(value):
    with pytest.raises(ValueError, match="one text or number"):
        label_text(value)


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["1.0", "2.0", None], ["1", "2", None]),
        (["1", "2.0", "2.5"], ["1", "2", "2.5"]),
        (["1.0", "01"], ["1.0", "01"]),
        (["1.10", "1.1"], ["1.10", "1.1"]),  # numbers of sections, not numbers
        (["1.0", "x"], ["1.0", "x"]),
        (["True", "FALSE"], ["true", "false"]),
        (["True", "perhaps"], ["True", "perhaps"]),
        (["007", "1e3"], ["007", "1e3"]),
    ],
)
def test_text_of_a_format_without_types(texts, names):
    for column in (pa.chunked_array([pa.array(texts, pa.string())]), texts):
        labels = read_labels(column, untyped=True)
        assert [None if c < 0 else labels.names[c] for c in labels.codes] == names


@pytest.mark.parametrize(
    ("column", "names"),
    [
        (pa.array([1, 2, None], pa.int8()), ["1", "2", None]),
        (pa.array([1, 2.5, None, float("nan")], pa.float32()), ["1", "2.5", None, None]),
        (pa.array(["a", None, " a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array([1.0, 2.0, None]).dictionary_encode(), ["1", "2", None]),
        (pa.array([True, None]), ["true", None]),
        (pa.array([b"a", None]), ["a", None]),
        (pa.nulls(2), [None, None]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array([datetime.date(2024, 5, 1)]), ["2024-05-01"]),
    ],
    ids=str,
)
def test_every_type_of_column(column, names):
    for chunks in ([column], [column[:1], column[1:]]):
        labels = read_labels(pa.chunked_array(chunks))
        assert [None if c < 0 else labels.names[c] for c in labels.codes] == names


SPELLINGS = ["a", "a ", NFC, NFD, "b", "\u00a0b", "c", "c"]
ALL = {"a", NFC, "b", "c"}


def write(path: Path, labels: list, root: Path) -> Path:
    """A table of the labels in the format of its ending; the images are beside it."""
    columns = columns_of(labels, root)
    if path.suffix == ".csv":
        rows = zip(*columns.values(), strict=True)
        lines = [f'{image},"{"" if label is None else label}",{split}' for image, label, split in rows]
        path.write_text("\n".join([",".join(columns), *lines]) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.table(columns), path)
    return path


def columns_of(labels: list, root: Path) -> dict[str, list]:
    """The last four rows are test."""
    n = len(labels)
    return {
        "path": [str(root / f"{i}.png") for i in range(n)],
        "label": labels,
        "split": ["train"] * (n - 4) + ["test"] * 4,
    }


@pytest.fixture
def images(make_images) -> Path:
    return make_images([f"{i}.png" for i in range(9)])


class TestEveryFormat:
    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    def test_spellings_are_one_class(self, tmp_path, images, suffix):
        data = dc.read(write(tmp_path / f"t{suffix}", SPELLINGS, images))
        assert set(data.query.label_names) == ALL
        assert len(data.train) == len(data.query) == 4
        (note,) = [note for note in data.notes if "several ways" in note]
        assert note.startswith("3 labels are") and "'a '" in note and "cafe\\u0301" in note

    def test_so_are_folders(self, make_images):
        root = make_images([f"{label}/{i}{j}.png" for i, label in enumerate(SPELLINGS[:7]) for j in range(2)])
        data = dc.read(root)
        assert set(data.query.label_names) == ALL
        assert any("3 labels are written in several ways" in note for note in data.notes)
        assert data.train.open(0).size == (8, 8)  # the folder keeps its name

    def test_in_memory(self, images):
        assert set(dc.read(columns_of(SPELLINGS, images)).query.label_names) == ALL
        vectors = np.eye(8, 3)
        held = as_labeled_set((vectors, SPELLINGS))
        assert set(held.label_names) == ALL and len(held.spellings) == 3

    @pytest.mark.parametrize(
        "labels",
        [
            [1, 1, 2, 2, 10, 10, 11, 11],
            [1.0, 1.0, 2.0, 2.0, 10.0, 10.0, 11.0, 11.0],
            ["1", "1", "2", "2", "10", "10", "11", "11"],
        ],
        ids=["integers", "floats", "text"],
    )
    def test_numbers_are_one_thing(self, tmp_path, images, labels):
        hashes = {dc.read(write(tmp_path / f"t{s}", labels, images)).split_hash for s in (".csv", ".jsonl", ".parquet")}
        data = dc.read(tmp_path / "t.csv")
        assert len(hashes) == 1 and data.query.label_names == ("1", "2", "10", "11")
        assert as_labeled_set((np.eye(8, 3), np.array(labels))).label_names == ("1", "2", "10", "11")

    def test_text_stays_text(self, tmp_path, images):
        labels = ["1", "1", "01", "01", "1.10", "1.10", "1.1", "1.1"]
        for suffix in (".csv", ".jsonl", ".parquet"):
            data = dc.read(write(tmp_path / f"t{suffix}", labels, images))
            assert set(data.query.label_names) == {"1", "01", "1.10", "1.1"}

    @pytest.mark.parametrize(("suffix", "row"), [(".csv", "line 5"), (".jsonl", "line 4"), (".parquet", "row 3")])
    @pytest.mark.parametrize("missing", [None, float("nan"), "  "], ids=["null", "nan", "spaces"])
    def test_a_missing_label_names_its_row_or_is_left_out(self, tmp_path, images, suffix, row, missing):
        labels = ["a", "a", "b", missing, "b", "c", "c", "d", "d"]
        if missing is not None and missing != "  ":
            labels = [1.0, 1.0, 2.0, missing, 2.0, 3.0, 3.0, 4.0, 4.0]
        if suffix == ".csv":
            labels = ["" if label is missing else label for label in labels]
        elif suffix == ".jsonl" and isinstance(labels[0], float):
            pytest.skip("standard JSON has no NaN; test_table_file tries Python's")
        table = write(tmp_path / f"t{suffix}", labels, images)
        with pytest.raises(DataError, match=rf"t\{suffix} {row}: the label is empty; .*`on_missing_label=skip`"):
            dc.read(table)
        data = dc.read(table, on_missing_label="skip")
        assert len(data.train) + len(data.query) == 8 and "left out: 1 row without a label" in data.notes
        assert 3 not in {*data.train.rows.tolist(), *data.query.rows.tolist()}
        assert len(data.query.label_names) == 4 and "nan" not in data.query.label_names
        # To embed or to index images, no label is needed.
        labels = [images_of(table).label_name(i) for i in range(9)]
        assert labels[3] == "" and labels.count("") == 1

    def test_all_labels_missing(self, tmp_path, images):
        with pytest.raises(DataError, match="the label is empty"):
            dc.read(write(tmp_path / "t.csv", [None] * 8, images), on_missing_label="skip")

    def test_an_unknown_choice(self, tmp_path, images):
        with pytest.raises(ConfigError, match="`on_missing_label` 'ignore': must be stop or skip"):
            dc.read(write(tmp_path / "t.csv", SPELLINGS, images), on_missing_label="ignore")

    def test_words_for_missing_values_are_pointed_out(self, tmp_path, images):
        labels = ["nan", "nan", "b", "b", "c", "c", "d", "d"]
        data = dc.read(write(tmp_path / "t.csv", labels, images))
        assert any("the label 'nan' is read as a class of that name" in note for note in data.notes)

    @pytest.mark.parametrize("library", ["pandas", "polars"])
    def test_frames(self, library, images):
        module = pytest.importorskip(library)
        frame = module.DataFrame(columns_of([1.0, 1.0, 2.0, None, 2.0, 3.0, 3.0, 4.0, 4.0], images))
        with pytest.raises(DataError, match="table row 3: the label is empty"):
            dc.read(frame)
        data = dc.read(frame, on_missing_label="skip")
        assert data.query.label_names == ("1", "2", "3", "4")


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["Dog", "dog", "cat"], [("Dog", "dog")]),
        (["salt and pepper", "salt  and pepper"], [("salt and pepper", "salt  and pepper")]),
        (["log-in", "login", "log_in"], [("log-in", "login", "log_in")]),
        (["café", "cafe"], [("café", "cafe")]),
        (["ﬁsh", "fish"], [("ﬁsh", "fish")]),
        (["A1", "А1"], [("A1", "А1")]),  # the second is Cyrillic
        (["1", "01", "1.0", "10"], [("1", "01", "1.0")]),
        (["a\u200bb", "ab"], [("a\u200bb", "ab")]),
        (["1-12", "11-2", "1 12"], [("1-12", "1 12")]),
        (["---", "___", "a"], []),
        (["车", "車"], []),
    ],
)
def test_what_looks_alike(names, groups):
    assert alike(names) == groups
    assert [clean_label(name) for name in names] == names


def test_check_reports_what_it_joined_and_what_looks_alike(tmp_path, images):
    labels = ["Dog", "Dog", "dog", "dog ", "x", "x", "y", "y"]
    result = check(dc.read(write(tmp_path / "t.csv", labels, images)), near=False, context=dc.Context(0))
    assert result.joined == (("dog", "dog", "dog "),)
    assert [[item.label for item in group] for group in result.alike] == [["Dog", "dog"]]
    assert [item.row for item in result.alike[0]] == [0, 2]
    assert "alike" in [finding.kind for finding in result.findings] and "alike" not in result.to_dict()["fails"]
