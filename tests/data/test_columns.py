"""Which column is what: guessed from the names that data sets use, said in a note, and chosen by options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.data.readers.folder import images_of
from divcon.errors import ConfigError, DataError

NAMES = [f"{c}{i}.png" for c in "abcd" for i in (1, 2)]
LABELS = list("aabbccdd")
SPLIT = ["train"] * 4 + ["test"] * 4


@pytest.fixture
def folder(make_images) -> Path:
    return make_images(NAMES)


def table(folder: Path, suffix: str = ".csv", **columns: list) -> Path:
    path = folder / f"t{suffix}"
    if suffix == ".csv":
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    return path


def read(path: Path, **options) -> list[str]:
    data = dc.read(path, **options)
    assert data.train.open(0).size == (8, 8) if data.train.vectors is None else True
    return [data.train.label_name(i) for i in range(4)] + [data.query.label_name(i) for i in range(4)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("image", ["img", "image_path", "filename", "file_name", "image", "imagePath", "Image Path"])
@pytest.mark.parametrize("label", ["label", "Class", "category", "fine_label", "product_id", "class-name"])
def test_the_usual_names(folder, suffix, image, label):
    path = table(folder, suffix, **{image: NAMES, label: LABELS, "subset": SPLIT})
    assert read(path) == LABELS
    (note,) = [note for note in dc.read(path).notes if note.startswith("columns: ")]
    assert "split 'subset'" in note and re.search("`split_column` choose(s another| others)$", note)
    assert (f"image {image!r}" in note) == (image != "file_name")
    assert (f"label {label!r}" in note) == (label != "label")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", "dict"])
def test_a_column_of_another_name_that_holds_names_of_images(folder, suffix):
    columns = {"id": NAMES, "number": [str(i) for i in range(8)], "breed": LABELS}
    if suffix == "dict":
        data = dc.read(columns, folder)
    elif suffix == ".jsonl":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = dc.read(folder / "t.jsonl")
    else:
        data = dc.read(table(folder, suffix, **columns))
    assert data.train.open(0).size == (8, 8) and data.train.num_classes + data.query.num_classes == 4
    assert any("columns: image 'id', label 'breed', by their names" in note for note in data.notes)
    with pytest.raises(DataError, match="there is no column 'path'"):  # two that may be it
        dc.read(table(folder, id=NAMES, copy=NAMES, breed=LABELS))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("name", "values"),
    [("is_train", [True] * 4 + [False] * 4), ("Is Valid", [0] * 4 + [1] * 4), ("is_test", [0.0] * 4 + [1.0] * 4)],
)
def test_truth_values_that_are_a_split(folder, suffix, name, values):
    path = table(folder, suffix, path=NAMES, label=LABELS, **{name: values})
    assert read(path) == LABELS
    assert dc.read(path).notes == (f"columns: split {name!r}, by their names; `split_column` chooses another",)
    assert read(path, split_column=name) == LABELS
    assert read(table(folder, suffix, path=NAMES, label=LABELS, split=SPLIT, **{name: values[::-1]})) == LABELS


def test_truth_values_that_are_no_split(folder):
    for values in ([1] * 8, list("xyxyxyxy")):
        data = dc.read(table(folder, path=NAMES, label=LABELS, is_train=values))
        assert any(note.startswith("the table has no split") for note in data.notes)
        assert not any("is_train" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "values", "odd"),
    [
        ("is_train", [True, True, "", True, False, False, "", False], "line 4: the column 'is_train' is empty here"),
        ("subset", ["train"] * 3 + ["?"] + ["test"] * 4, "line 5: the column 'subset' is '?'"),
    ],
)
def test_a_split_with_a_gap_is_said(folder, name, values, odd):
    path = table(folder, path=NAMES, label=LABELS, **{name: values})
    notes = dc.read(path).notes
    assert any(odd in note and "not taken for the split" in note and "`split_column`" in note for note in notes)
    with pytest.raises(DataError, match=r"line [45]"):
        dc.read(path, split_column=name)


def test_a_column_for_each_number_of_a_vector(tmp_path):
    columns = {f"f{i}": [0.5] * 8 for i in range(4)}
    with pytest.raises(DataError, match="if 'f0' to 'f3' are a vector, write it as one column embedding"):
        dc.read(table(tmp_path, **columns, label=LABELS))


def test_divcons_own_names_need_no_note(folder):
    assert dc.read(table(folder, path=NAMES, label=LABELS, split=SPLIT)).notes == ()


def test_several_label_columns(folder):
    other = ["x"] * 4 + ["y"] * 4
    path = table(folder, ".parquet", img=NAMES, coarse_label=other, fine_label=LABELS, split=SPLIT)
    assert read(path) == LABELS
    assert any("label 'fine_label' (not 'coarse_label')" in note for note in dc.read(path).notes)
    with pytest.raises(DataError, match="train has 1 class"):
        dc.read(path, label_column="coarse_label")
    own = table(folder, ".parquet", path=NAMES, category=other, label=LABELS, split=SPLIT)
    assert read(own) == LABELS and dc.read(own).notes == ()


def test_chosen_columns_come_first(folder):
    wrong = ["x"] * 8
    path = table(folder, path=wrong, label=wrong, split=wrong, a=NAMES, b=LABELS, c=SPLIT)
    chosen = {"image_column": "a", "label_column": "B", "split_column": " c"}
    assert read(path, **chosen) == LABELS
    assert dc.read(path, **chosen).notes == ()
    columns = {"a": NAMES, "label": wrong, "b": LABELS, "c": SPLIT}
    assert dc.read(columns, folder, image_column="a", label_column="b", split_column="c").train.num_classes == 2


def test_a_column_that_is_not_there(folder):
    path = table(folder, path=NAMES, labels_fine=LABELS, split=SPLIT)
    with pytest.raises(ConfigError, match=r"`label_column` 'label_fine': there is no such .*; did you mean 'labels_f"):
        dc.read(path, label_column="label_fine")
    with pytest.raises(ConfigError) as caught:
        dc.read(path, image_column="nothing")
    assert caught.value.field == "image_column"
    with pytest.raises(DataError, match=r"there is no column 'label'.*choose another \(`label_column`\)"):
        dc.read(table(folder, path=NAMES, what=LABELS))
    with pytest.raises(ConfigError, match="`label_column` is for tables, and this is none"):
        dc.read(folder, label_column="x")


def test_a_column_twice(folder):
    text = "path,label,label\n" + "".join(f"{name},{name[0]},x\n" for name in NAMES)
    (folder / "t.csv").write_text(text)
    with pytest.raises(DataError, match="two columns 'label'"):
        dc.read(folder / "t.csv")
    (folder / "t.csv").write_text(text.replace("label,label", "Label,LABEL"))
    with pytest.raises(DataError, match="'Label' and 'LABEL' are both 'label' but for case"):
        dc.read(folder / "t.csv")
    (folder / "t.csv").write_text(text.replace("label,label", "label,other,other").replace(",x", ",x,y"))
    assert len(dc.read(folder / "t.csv", check_files=False).train) == 4
    double = pa.table([NAMES, LABELS, LABELS], names=["path", "label", "label"])
    pq.write_table(double, folder / "t.parquet")
    with pytest.raises(DataError, match="two columns 'label'"):
        dc.read(folder / "t.parquet")


def test_columns_without_a_name(folder):
    rows = [f"{i},{name},{name[0]},{split}" for i, (name, split) in enumerate(zip(NAMES, SPLIT, strict=True))]
    (folder / "t.csv").write_text("\n".join([",path,label,split", *rows]))
    assert read(folder / "t.csv") == LABELS


def test_a_table_without_a_header(folder):
    (folder / "t.csv").write_text("".join(f"{name},{name[0]}\n" for name in NAMES))
    with pytest.raises(DataError, match="the first line seems to be a row, not the names of the columns"):
        dc.read(folder / "t.csv")


def test_a_column_named_as_splits_with_other_words(folder):
    data = dc.read(table(folder, path=NAMES, label=LABELS, set=list("xyxyxyxy")))
    assert len(data.train) + len(data.query) == 8
    assert not any("'set'" in note for note in data.notes)
    with pytest.raises(DataError, match="the split is 'x'"):
        dc.read(folder / "t.csv", split_column="set")


def test_encoded_images(folder, encoded):
    images = [encoded(name) for name in NAMES]
    for column in ("img", "picture", "jpg"):
        path = table(folder, ".parquet", **{column: images, "fine_label": LABELS, "split": SPLIT, "filename": NAMES})
        data = dc.read(path)
        assert data.train.encoded is not None and data.train.path(0) == "a1.png" and read(path) == LABELS
    structs = [{"bytes": image, "path": None} for image in images]
    path = table(folder, ".parquet", pic=structs, target=LABELS, split=SPLIT)
    assert read(path, image_column="pic") == LABELS
    assert dc.read({"img": images, "y": LABELS, "split": SPLIT}).train.open(1).size == (8, 8)


VECTORS = np.arange(24, dtype=np.float32).reshape(8, 3)


class TestVectors:
    @pytest.mark.parametrize("name", ["embedding", "embeddings", "vector", "features", "Emb"])
    @pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".arrow"])
    def test_in_every_format(self, tmp_path, name, suffix):
        columns = {name: VECTORS.tolist(), "category": LABELS, "split": SPLIT}
        path = tmp_path / f"t{suffix}"
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif suffix == ".csv":
            lines = [f'"{row[name]}",{row["category"]},{row["split"]}' for row in rows]
            path.write_text("\n".join([",".join(columns), *lines]))
        elif suffix == ".arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, pa.table(columns).schema) as writer:
                writer.write_table(pa.table(columns))
        else:
            pq.write_table(pa.table(columns), path)
        data = dc.read(path)
        np.testing.assert_array_equal(data.train.vectors, VECTORS[:4])
        np.testing.assert_array_equal(data.query.vectors, VECTORS[4:])
        np.testing.assert_array_equal(images_of(path).vectors, VECTORS)

    def test_images_named_as_ever_are_not_replaced(self, folder):
        path = table(folder, ".parquet", path=NAMES, label=LABELS, split=SPLIT, features=VECTORS.tolist())
        assert dc.read(path).train.vectors is None
        np.testing.assert_array_equal(dc.read(path, vector_column="features").train.vectors, VECTORS[:4])

    def test_a_chosen_image_column_makes_it_images(self, folder):
        path = table(folder, ".parquet", file=NAMES, label=LABELS, split=SPLIT, embedding=VECTORS.tolist())
        assert dc.read(path).train.vectors is not None
        assert dc.read(path, image_column="file").train.vectors is None

    def test_what_holds_no_vectors(self, folder):
        path = table(folder, ".parquet", path=NAMES, label=LABELS)
        with pytest.raises(DataError, match="the column 'path' holds string, not vectors"):
            dc.read(path, vector_column="path")
        with pytest.raises(ConfigError, match="holds neither paths nor encoded images"):
            dc.read(table(folder, ".parquet", v=VECTORS.tolist(), label=LABELS), image_column="v")
