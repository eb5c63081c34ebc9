"""Folders of tables: parquet files by split as Hugging Face's datasets writes them, and metadata files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divcon.data import encoded as encoded_images
from divcon.data.encoded import RowGroups
from divcon.data.read import read
from divcon.data.readers.folder import images_of
from divcon.errors import ConfigError, DataError, ImageError

NAMES = ["zebra", "ant", "bee", "cat"]


def error_of(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


def write_like_datasets(path, images, labels, paths=None, names=NAMES, **options):
    """What ``Dataset.to_parquet`` of datasets 5.2 writes for features Image and ClassLabel: the same columns, types and
    metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    structs = [{"bytes": b, "path": p} for b, p in zip(images, paths or [None] * len(images), strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), "label": pa.array(labels, pa.int64())})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, **options)
    return path


@pytest.fixture
def pushed(tmp_path, encoded):
    """A folder as ``push_to_hub`` leaves it: two files of train, one of test."""
    root = tmp_path / "pushed"
    for name, letters, labels in (
        ("train-00000-of-00002", "abc", [0, 0, 0]),
        ("train-00001-of-00002", "def", [1, 1, 1]),
        ("test-00000-of-00001", "ghij", [2, 2, 3, 3]),
    ):
        images = [encoded(letter) for letter in letters]
        write_like_datasets(root / "data" / f"{name}.parquet", images, labels, [f"{x}.png" for x in letters])
    return root


def test_metadata_in_folders_with_other_names_of_splits(tmp_path, encoded):
    for folder, labels in (("Training", "ab"), ("Valid", "cd"), ("TEST", "ef")):
        (tmp_path / folder).mkdir()
        lines = ["file_name,label"]
        for label in labels:
            for i in (1, 2):
                (tmp_path / folder / f"{label}{i}.png").write_bytes(encoded(f"{label}{i}"))
                lines.append(f"{label}{i}.png,{label}")
        (tmp_path / folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = read(tmp_path)
    parts = {part: images.paths.to_pylist() for part, images in data.parts.items()}
    assert parts["train"] == [f"Training/{name}.png" for name in ("a1", "a2", "b1", "b2")]
    assert parts["validation"][0] == "Valid/c1.png" and parts["test"][0] == "TEST/e1.png"
    (tmp_path / "Valid" / "metadata.csv").unlink()
    assert f"{tmp_path}/Valid: there is no metadata file" in error_of(tmp_path)


class TestDatasets:
    def test_labels_have_their_names(self, encoded, tmp_path, colour_of):
        images = [encoded(letter) for letter in "abcdefgh"]
        data = read(write_like_datasets(tmp_path / "t.parquet", images, [0, 0, 1, 1, 2, 2, 3, 3]), test_fraction=None)
        # The first half of the sorted names, not of the numbers.
        assert [data.train.label_name(i) for i in range(4)] == ["ant", "ant", "bee", "bee"]
        assert data.train.open(0).getpixel((0, 0)) == colour_of("c")

    @pytest.mark.parametrize(
        ("bad", "said"), [(-1, "the label is -1"), (4, "the label is 4"), (None, "label is empty")]
    )
    def test_labels_without_a_name(self, encoded, tmp_path, bad, said):
        path = write_like_datasets(tmp_path / "t.parquet", [encoded("a")] * 8, [0, 0, 1, 1, 2, bad, 3, bad])
        message = error_of(path)
        assert "t.parquet row 5: " in message and said in message and "(in 2 rows)" in message

    @pytest.mark.parametrize("metadata", [b"", b"[]", b'{"info": {}}', b'{"info": {"features": {"label": null}}}'])
    def test_other_metadata_is_left_alone(self, tmp_path, metadata):
        table = pa.table({"path": list("abcdefgh"), "label": [0, 0, 1, 1, 2, 2, 3, 3]})
        pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "t.parquet")
        assert read(tmp_path / "t.parquet", check_files=False).train.label_names == ("0", "1", "2", "3")

    def test_files_by_split_are_one_benchmark(self, pushed, colour_of):
        for root in (pushed, pushed / "data"):
            data = read(root)
            assert len(data.train) == 6 and len(data.query) == 4 and data.query is data.gallery and not data.notes
            assert {data.train.label_name(i) for i in range(6)} == {"zebra", "ant"}
            letters = [data.train.path(i)[0] for i in range(6)] + [data.query.path(i)[0] for i in range(4)]
            opened = [data.train.open(i) for i in range(6)] + [data.query.open(i) for i in range(4)]
            assert sorted(letters) == list("abcdefghij")
            assert [image.getpixel((0, 0)) for image in opened] == [colour_of(letter) for letter in letters]
        assert data.name == "data" and read(pushed).name == "pushed"

    def test_a_row_is_named_in_its_own_file(self, pushed):
        data = read(pushed)
        assert data.train.where(4) == f"{pushed}/data/train-00001-of-00002.parquet row 1: e.png"
        assert data.query.where(0) == f"{pushed}/data/test-00000-of-00001.parquet row 0: g.png"
        write_like_datasets(pushed / "data" / "train-00001-of-00002.parquet", [b"no"] * 3, [1, 1, 1])
        with pytest.raises(ImageError, match=r"train-00001-of-00002\.parquet row 2: "):
            read(pushed).train.open(5)
        write_like_datasets(pushed / "data" / "test-00000-of-00001.parquet", [b"no"] * 3 + [None], [2, 2, 3, 3])
        assert "test-00000-of-00001.parquet row 3: the image has no bytes" in error_of(pushed)

    def test_a_file_is_missing(self, pushed):
        (pushed / "data" / "train-00000-of-00002.parquet").unlink()
        assert f"{pushed}/data: of the 2 files of train, number 00000 is missing" in error_of(pushed)

    def test_files_of_one_split_have_none(self, pushed, encoded):
        (pushed / "data" / "test-00000-of-00001.parquet").unlink()
        write_like_datasets(pushed / "data" / "train-00001-of-00002.parquet", [encoded("x")] * 6, [1, 1, 2, 2, 3, 3])
        data = read(pushed)
        assert data.train.num_classes == 2 and any("no split" in note for note in data.notes)

    def test_a_class_in_two_files_of_two_splits(self, pushed, encoded):
        write_like_datasets(pushed / "data" / "test-00000-of-00001.parquet", [encoded("x")] * 4, [1, 1, 2, 2])
        message = error_of(pushed)
        assert "both in train and in test, of 2 test classes and 2 train classes, for example 'ant'" in message
        assert "train-00001-of-00002.parquet row 0" in message and "test-00000-of-00001.parquet row 0" in message

    def test_files_of_other_columns_are_named(self, pushed, encoded):
        pq.write_table(pa.table({"image": [encoded("x")] * 4}), pushed / "data" / "test-00000-of-00001.parquet")
        assert "test-00000-of-00001.parquet: there is no column 'label' among 'image'" in error_of(pushed)
        table = pa.table({"path": list("abcd"), "label": list("yyzz")})
        pq.write_table(table, pushed / "data" / "test-00000-of-00001.parquet")
        assert "holds encoded images, and test-00000-of-00001.parquet names of files" in error_of(pushed)

    def test_numbers_and_names_of_labels_in_two_files(self, tmp_path):
        pq.write_table(pa.table({"path": list("abcd"), "label": [7, 7, 8, 8]}), tmp_path / "train.parquet")
        pq.write_table(pa.table({"path": list("efgh"), "label": list("xxyy")}), tmp_path / "test.parquet")
        data = read(tmp_path, check_files=False)
        assert data.train.label_names == ("7", "8", "x", "y") and data.query.labels.tolist() == [2, 2, 3, 3]

    def test_vectors_by_split(self, tmp_path):
        for split, start in (("train", 0), ("validation", 4), ("test", 8)):
            vectors = [[float(start + i), 0.5] for i in range(4)]
            labels = [f"{split}{i // 2}" for i in range(4)]
            pq.write_table(pa.table({"embedding": vectors, "label": labels}), tmp_path / f"{split}.parquet")
        data = read(tmp_path)
        parts = {"train": data.train, "validation": data.validation, "test": data.query}
        for (split, images), start in zip(parts.items(), (0, 4, 8), strict=True):
            assert images.vectors[:, 0].tolist() == [start, start + 1, start + 2, start + 3], split
            assert images.where(2) == f"{tmp_path}/{split}.parquet row 2"
        assert len(images_of(tmp_path)) == 12
        pq.write_table(pa.table({"embedding": [[1.0]] * 4, "label": list("aabb")}), tmp_path / "val.parquet")
        assert "val.parquet row 0: the vector has 1 numbers, where the first has 2" in error_of(tmp_path)

    def test_a_table_beside_folders_of_classes_is_none_of_it(self, make_images, tmp_path):
        root = make_images([f"{c}/{i}.png" for c in "abcd" for i in (1, 2)])
        pq.write_table(pa.table({"embedding": [[1.0]], "label": ["a"]}), root / "train.parquet")
        assert len(read(root).train) == 4 and len(images_of(root)) == 8


class TestRowGroups:
    """Images that are not all in memory."""

    @pytest.fixture(autouse=True)
    def nothing_fits(self, monkeypatch):
        monkeypatch.setattr(encoded_images, "IN_MEMORY", 10)

    @pytest.mark.parametrize("as_struct", [True, False])
    def test_they_are_read_when_asked_for(self, tmp_path, encoded, colour_of, as_struct):
        letters = "abcdefghijklmnopqrst"
        images, labels = [encoded(letter) for letter in letters], [i // 5 for i in range(20)]
        path = write_like_datasets(tmp_path / "t.parquet", images, labels, list(letters), row_group_size=3)
        if not as_struct:
            pq.write_table(pa.table({"image": images, "label": labels, "path": list(letters)}), path, row_group_size=3)
        image_set = images_of(path)
        assert isinstance(image_set.encoded, RowGroups)
        for i in np.random.default_rng(0).permutation(20):
            assert image_set.open(i).getpixel((0, 0)) == colour_of(letters[i]) and image_set.path(i) == letters[i]

    def test_of_several_files(self, pushed, colour_of):
        data = read(pushed)
        assert isinstance(data.train.encoded, RowGroups) and len(data.train.encoded.groups) == 3
        for images in (data.train, data.query):
            for i in range(len(images)):
                assert images.open(i).getpixel((0, 0)) == colour_of(images.path(i)[0])

    def test_worker_processes_read_them_too(self, pushed):
        import pickle

        from divcon.data.loading import undecodable
        from divcon.runtime.context import Context

        images = read(pushed).train
        images.open(0)
        assert pickle.loads(pickle.dumps(images)).open(5) == images.open(5)
        assert [message for _, message in undecodable(images, context=Context(2))] == [None] * 6

    @pytest.mark.parametrize("statistics", [True, False])
    def test_a_row_without_bytes(self, tmp_path, encoded, statistics):
        images = [encoded("a")] * 5 + [None] + [encoded("b")] * 2
        path = tmp_path / "t.parquet"
        write_like_datasets(path, images, [0, 0, 1, 1, 2, 2, 3, 3], row_group_size=2, write_statistics=statistics)
        assert "t.parquet row 5: the image has no bytes" in error_of(path)

    def test_a_file_that_went_away(self, pushed):
        data = read(pushed)
        shutil.rmtree(pushed / "data")
        with pytest.raises(ImageError, match=r"test-00000-of-00001\.parquet row 1.*cannot be read any more"):
            data.query.open(1)

    def test_large_row_groups_are_read_at_once(self, pushed, monkeypatch):
        monkeypatch.setattr(encoded_images, "LARGEST_GROUP", 10)
        assert not isinstance(read(pushed).train.encoded, RowGroups)


class TestMetadata:
    ROWS = tuple((f"{c}{i}.png", c) for c in "abcd" for i in (1, 2))

    def write(self, folder, rows, suffix=".csv"):
        columns = {"file_name": [row[0] for row in rows], "label": [row[1] for row in rows]}
        path = folder / f"metadata{suffix}"
        if suffix == ".csv":
            path.write_text("\n".join(["file_name,label", *(f"{name},{label}" for name, label in rows)]) + "\n")
        elif suffix == ".parquet":
            pq.write_table(pa.table(columns), path)
        else:
            lines = [json.dumps({"file_name": name, "note": {"any": 1}, "label": label}) for name, label in rows]
            path.write_text("\n\n".join(lines) + "\n")
        return path

    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
    def test_images_beside_it(self, make_images, colour_of, suffix):
        root = make_images([name for name, _ in self.ROWS])
        table = self.write(root, self.ROWS, suffix)
        for data in (read(root), read(table)):
            assert [data.train.path(i) for i in range(4)] == ["a1.png", "a2.png", "b1.png", "b2.png"]
            assert data.query.open(0).getpixel((0, 0)) == colour_of("c1.png")
        assert read(root).split_hash == read(table).split_hash and read(root).name == "images"
        assert len(images_of(root)) == 8

    @pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
    def test_one_in_each_split(self, make_images, colour_of, suffix):
        root = make_images([f"{'train' if c in 'ab' else 'test'}/deep/{name}" for name, c in self.ROWS])
        for split, classes in (("train", "ab"), ("test", "cd")):
            rows = [(f"deep/{name}", label) for name, label in self.ROWS if label in classes]
            self.write(root / split, rows, suffix)
        data = read(root)
        assert {data.train.label_name(i) for i in range(4)} == {"a", "b"} and not data.notes
        assert data.query.path(0) == "test/deep/c1.png"
        assert data.query.open(0).getpixel((0, 0)) == colour_of("test/deep/c1.png")

    @pytest.mark.parametrize(("suffix", "place"), [(".csv", "line 4"), (".parquet", "row 2"), (".jsonl", "line 5")])
    def test_errors_name_file_and_line(self, make_images, suffix, place):
        root = make_images([f"{'train' if c in 'ab' else 'test'}/{name}" for name, c in self.ROWS])
        self.write(root / "train", self.ROWS[:4], suffix)
        path = self.write(root / "test", [*self.ROWS[4:6], ("gone.png", "d"), self.ROWS[7]], suffix)
        assert f"{path} {place}: test/gone.png: there is no such file (1 of 8 are missing)" in error_of(root)
        assert len(read(root, check_files=False).query) == 4
        self.write(root / "test", [*self.ROWS[4:6], ("", "d"), self.ROWS[7]], suffix)
        assert f"{path} {place}: the path is empty" in error_of(root)
        self.write(root / "test", [*self.ROWS[4:6], ("d1.png", " "), self.ROWS[7]], suffix)
        assert f"{path} {place}: the label is empty" in error_of(root)

    def test_which_of_them(self, make_images, tmp_path):
        root = make_images([f"{split}/{name}" for split in ("train", "test") for name, _ in self.ROWS])
        path = self.write(root / "train", self.ROWS[:4])
        assert f"{root}/test: there is no metadata file" in error_of(root)
        self.write(root / "train", self.ROWS[:4], ".jsonl")
        assert f"{root}/train: there are metadata.csv and metadata.jsonl; keep one" in error_of(root)
        path.unlink()
        with pytest.raises(ConfigError, match="takes no `root`"):
            read(root, tmp_path)

    def test_without_labels(self, make_images):
        root = make_images(["1.png", "2.png"])
        (root / "metadata.csv").write_text("file_name,caption\n1.png,x\n2.png,y\n")
        assert "metadata.csv: there is no column 'label' among 'file_name', 'caption'" in error_of(root)
        assert images_of(root).label_names == ("",)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "metadata.jsonl: the file is empty"),
            ("{]\n", "metadata.jsonl line 1: this is not JSON Lines, one object a line ("),
            ('{"file_name": "a"}\n\n{"file_name": "b"\n', "metadata.jsonl line 3: this is not JSON Lines"),
            ('{"file_name": "a"}\n[1]\n', "metadata.jsonl entry 2: this is a list, where JSON Lines has an object"),
            ("\n", "metadata.jsonl: the file is empty"),
        ],
    )
    def test_no_json(self, tmp_path, content, said):
        (tmp_path / "metadata.jsonl").write_text(content)
        message = error_of(tmp_path)
        assert said in message

    def test_absolute_paths(self, make_images):
        root = make_images([f"{'train' if c in 'ab' else 'test'}/{name}" for name, c in self.ROWS])
        self.write(root / "train", self.ROWS[:4])
        self.write(root / "test", [(f"{root}/test/{name}", label) for name, label in self.ROWS[4:]])
        assert read(root).query.path(0) == f"{root}/test/c1.png"
