"""Folders of tables as Spark, pandas, polars, pyarrow and Hugging Face's datasets write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.data.readers.folder import images_of
from divcon.errors import DataError

NAMES = [f"{c}{i}.png" for c in "abcd" for i in (1, 2)]
LABELS = list("aabbccdd")
SPLIT = ["train"] * 4 + ["test"] * 4
VECTORS = np.arange(24, dtype=np.float32).reshape(8, 3)


def table(**more: list) -> pa.Table:
    return pa.table({"embedding": list(VECTORS), "label": LABELS, "split": SPLIT, **more})


def rows_of(data: dc.Benchmark) -> dict[str, list[float]]:
    """By label, the first numbers of the vectors."""
    rows: dict[str, list[float]] = {}
    for part in (data.train, data.query):
        for i in range(len(part)):
            rows.setdefault(part.label_name(i), []).append(float(part.vectors[i][0]))
    return {label: sorted(values) for label, values in sorted(rows.items())}


EXPECTED = {"a": [0, 3], "b": [6, 9], "c": [12, 15], "d": [18, 21]}
UUID = "3c1d9b52-77aa-4c0f-9a55-0d8e3c1b2a4f"


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        dc.read(path)
    return str(caught.value)


class TestSpark:
    def write(self, root: Path, suffix: str = ".snappy.parquet") -> Path:
        """Three parts, one of which is empty, as Spark writes them."""
        root.mkdir(parents=True)
        for i, part in enumerate([table().slice(0, 5), table().slice(0, 0), table().slice(5)]):
            name = f"part-{i:05d}-{UUID}-c000{suffix}"
            if suffix == ".json":
                lines = [json.dumps(row) + "\n" for row in part.to_pylist()]
                (root / name).write_text("".join(lines))
            else:
                pq.write_table(part, root / name)
            (root / f".{name}.crc").write_bytes(b"crc\0")
        (root / "_SUCCESS").touch()
        (root / "._SUCCESS.crc").touch()
        return root

    @pytest.mark.parametrize("suffix", [".snappy.parquet", ".json"])
    def test_parts(self, tmp_path, suffix):
        data = dc.read(self.write(tmp_path / "out", suffix))
        assert rows_of(data) == EXPECTED and len(data.train) == 4 and data.name == "out"
        last = data.query.where(3)
        assert last.startswith(f"{tmp_path}/out/part-00002-{UUID}") and ("row 2" in last or "line 3" in last)
        assert len(images_of(tmp_path / "out")) == 8

    def test_partitions(self, tmp_path):
        pyarrow.dataset.write_dataset(
            table().append_column("class", pa.array([*LABELS[:2], "b/ä", "b/ä", *LABELS[4:]])).drop_columns("label"),
            tmp_path / "out",
            format="parquet",
            partitioning=["split", "class"],
            partitioning_flavor="hive",
        )
        (tmp_path / "out" / "_SUCCESS").touch()
        assert (tmp_path / "out" / "split=train" / "class=b%2F%C3%A4" / "part-0.parquet").exists()
        data = dc.read(tmp_path / "out")
        assert rows_of(data) == {"a": [0, 3], "b/ä": [6, 9], "c": [12, 15], "d": [18, 21]}
        assert len(data.train) == 4 and any("label 'class'" in note for note in data.notes)

    def test_numbers_and_nothing_as_partitions(self, tmp_path):
        for label in ("1", "01", "2", "__HIVE_DEFAULT_PARTITION__"):
            folder = tmp_path / f"label={label}"
            folder.mkdir()
            pq.write_table(pa.table({"embedding": [[1.0, 2.0]] * 2}), folder / "part-0.parquet")
        message = error_of(tmp_path)
        assert "label=__HIVE_DEFAULT_PARTITION__/part-0.parquet row 0: the label is empty (in 2 rows)" in message
        shutil.rmtree(tmp_path / "label=__HIVE_DEFAULT_PARTITION__")
        assert sorted(images_of(tmp_path).label_names) == ["01", "1", "2"]

    def test_paths_start_from_the_part(self, make_images, tmp_path, colour_of):
        make_images(NAMES)
        for label in "abcd":
            folder = tmp_path / "out" / f"label={label}"
            folder.mkdir(parents=True)
            names = [f"../../images/{label}1.png", f"../../images/{label}2.png"]
            pyarrow.csv.write_csv(pa.table({"path": names}), folder / "part-00000.csv")
        images = images_of(tmp_path / "out")
        assert [images.open(i).getpixel((0, 0)) for i in range(8)] == [colour_of(name) for name in NAMES]
        assert [images.label_name(i) for i in range(8)] == LABELS

    def test_not_written_to_its_end(self, tmp_path):
        root = self.write(tmp_path / "out")
        (root / "_SUCCESS").unlink()
        (root / "_temporary").mkdir()
        assert "out: is not written to its end (there is _temporary and no _SUCCESS)" in error_of(root)

    def test_another_format(self, tmp_path):
        (tmp_path / "part-00000.orc").write_bytes(b"ORC")
        assert "part-00000.orc: ORC is not read; write it as parquet" in error_of(tmp_path)


def test_pandas_and_polars_partitions(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"embedding": list(VECTORS), "label": LABELS, "split": SPLIT})
    frame.to_parquet(tmp_path / "pandas", partition_cols=["label"])
    assert rows_of(dc.read(tmp_path / "pandas")) == EXPECTED
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"embedding": VECTORS.tolist(), "label": LABELS, "split": SPLIT})
    frame.write_parquet(tmp_path / "polars", partition_by=["split", "label"], mkdir=True)
    assert rows_of(dc.read(tmp_path / "polars")) == EXPECTED


class TestHuggingFace:
    @pytest.fixture
    def both(self, make_images):
        datasets = pytest.importorskip("datasets")
        root = make_images(NAMES)
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))})
        parts = {}
        for split, start in (("train", 0), ("test", 4)):
            paths = [str(root / name) for name in NAMES[start : start + 4]]
            numbers = ["abcd".index(label) for label in LABELS[start : start + 4]]
            parts[split] = datasets.Dataset.from_dict({"img": paths, "label": numbers}, features=features)
        return datasets.DatasetDict(parts)

    def assert_read(self, path: Path, colour_of) -> dc.Benchmark:
        data = dc.read(path)
        parts = (data.train, data.query)
        assert [part.label_name(i) for part in parts for i in range(4)] == LABELS
        colours = [part.open(i).getpixel((0, 0)) for part in parts for i in range(4)]
        assert colours == [colour_of(name) for name in NAMES]
        return data

    def test_save_to_disk(self, both, tmp_path, colour_of):
        both.save_to_disk(tmp_path / "saved")
        self.assert_read(tmp_path / "saved", colour_of)
        both["train"].select([3, 2]).save_to_disk(tmp_path / "one")
        images = images_of(tmp_path / "one")
        assert [images.open(i).getpixel((0, 0)) for i in range(2)] == [colour_of(name) for name in ("b2.png", "b1.png")]
        both.save_to_disk(tmp_path / "shards", num_shards={"train": 3, "test": 2})
        self.assert_read(tmp_path / "shards", colour_of)
        next((tmp_path / "shards" / "train").glob("data-00001*")).unlink()
        assert "data-00001-of-00003.arrow: is missing, and state.json" in error_of(tmp_path / "shards")

    @pytest.mark.parametrize(
        "name", ["data/{}-00000-of-00001.parquet", "default/{}/0000.parquet", "{}/0000.parquet", "images-{}.parquet"]
    )
    def test_parquet_branches(self, both, tmp_path, colour_of, name):
        root = tmp_path / "hub"
        for split, part in both.items():
            (root / name.format(split)).parent.mkdir(parents=True, exist_ok=True)
            part.to_parquet(root / name.format(split))
        (root / "README.md").write_text("a card")
        (root / ".gitattributes").touch()
        data = self.assert_read(root, colour_of)
        assert len(data.train) == 4

    def test_several_configurations(self, both, tmp_path):
        for config in ("small", "large"):
            (tmp_path / "hub" / config).mkdir(parents=True)
            both["train"].to_parquet(tmp_path / "hub" / config / "train-00000-of-00001.parquet")
        assert "hub: holds several data sets (large, small); pass one of them" in error_of(tmp_path / "hub")
        assert len(images_of(tmp_path / "hub" / "small")) == 4

    def test_images_in_the_parquet(self, both, tmp_path, colour_of):
        embedded = both.map(lambda row: row, features=both["train"].features)
        root = tmp_path / "hub"
        for split, part in embedded.items():
            table = part.with_format("arrow")[:]
            structs = [{"bytes": Path(x["path"]).read_bytes(), "path": "x.png"} for x in table["img"].to_pylist()]
            table = table.set_column(table.column_names.index("img"), "img", pa.array(structs))
            table = table.replace_schema_metadata(part.features.arrow_schema.metadata)
            root.mkdir(exist_ok=True)
            pq.write_table(table, root / f"{split}.parquet")
        data = self.assert_read(root, colour_of)
        assert data.train.encoded is not None and data.train.path(0) == "x.png"

    def test_a_csv_of_each_split(self, make_images, tmp_path, colour_of):
        root = make_images(NAMES)
        (tmp_path / "lists").mkdir()
        for split, start in (("train", 0), ("test", 4)):
            paths = [f"../images/{name}" for name in NAMES[start : start + 4]]
            part = pa.table({"file_name": paths, "label": LABELS[start : start + 4]})
            pyarrow.csv.write_csv(part, tmp_path / "lists" / f"{split}.csv")
        self.assert_read(tmp_path / "lists", colour_of)
        assert len(images_of(tmp_path / "lists" / "train.csv")) == 4 and root.is_dir()

    def test_metadata_of_an_image_folder(self, both, make_images, colour_of):
        root = make_images([f"{split}/{name}" for name, split in zip(NAMES, SPLIT, strict=True)], folder="folder")
        for split, start in (("train", 0), ("test", 4)):
            part = pa.table({"file_name": NAMES[start : start + 4], "category": LABELS[start : start + 4]})
            pyarrow.csv.write_csv(part, root / split / "metadata.csv")
        data = dc.read(root)
        assert [data.train.label_name(i) for i in range(4)] == LABELS[:4]
        assert data.train.open(0).getpixel((0, 0)) == colour_of("train/a1.png")


def test_tables_that_are_no_parts_of_one(tmp_path):
    for name in ("products.csv", "customers.csv"):
        (tmp_path / name).write_text("path,label\na,b\n")
    assert "which of its tables (customers.csv, products.csv)? They are no parts of one" in error_of(tmp_path)


def test_images_make_it_a_folder_of_classes(make_images):
    root = make_images([f"{label}/{name}" for label, name in zip(LABELS, NAMES, strict=True)])
    (root / "list.csv").write_text("path,label\n")
    assert len(dc.read(root).train) + len(dc.read(root).query) == 8
