"""``divcon.read``: names, paths, and the errors for what is neither; and the bundled icons."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from importlib import resources

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from divcon.data.read import read
from divcon.errors import ConfigError, DataError
from tools.icons import PERMISSIVE, split_of

FOUR = [f"{c}/{i}.png" for c in "abcd" for i in (1, 2)]


def test_a_folder_and_tables_by_path(make_images, make_csv):
    root = make_images(FOUR)
    assert len(read(root).train) == len(read(str(root)).train) == 4
    table = make_csv("path,label\n" + "".join(f"{path},{path[0]}\n" for path in FOUR), images=FOUR)
    assert read(table).split_hash == read(root).split_hash
    assert len(read(table, root).train) == 4


def test_options_go_to_the_reader(make_csv):
    table = make_csv("path,label\n" + "".join(f"gone/{path},{path[0]}\n" for path in FOUR))
    assert not read(table, check_files=False, flip=False).train.flip
    with pytest.raises(ConfigError, match="unknown option 'check_file'; did you mean 'check_files'"):
        read(table, check_file=False)


def test_what_is_neither_a_name_nor_a_path(make_images, tmp_path):
    with pytest.raises(DataError, match="no such file or folder; unknown data set 'icon'; did you mean 'icons'"):
        read("icon")
    with pytest.raises(DataError, match=r"gone/x\.csv: there is no such file"):
        read("gone/x.csv")
    image = make_images(FOUR) / FOUR[0]
    with pytest.raises(DataError, match="labelled images come as a folder"):
        read(image)
    with pytest.raises(ConfigError, match="takes no `root`"):
        read(tmp_path, tmp_path)


def test_icons_need_a_place(tmp_path):
    with pytest.raises(DataError, match=r"tools/icons\.py"):
        read("icons")
    with pytest.raises(DataError, match=r"icons\.parquet: there is no such file; `python tools/icons\.py"):
        read("icons", tmp_path)
    with pytest.raises(ConfigError, match="demo: takes no `root`"):
        read("demo", tmp_path)


def test_reading_does_not_import_torch():
    # A table of paths is checked in a blink; torch takes seconds to import.
    script = "import sys, divcon.data.read; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


class TestDemo:
    @pytest.fixture(scope="class")
    def data(self):
        return read("demo")

    def test_its_counts(self, data):
        assert (data.train.num_classes, len(data.train)) == (292, 1989)
        assert (data.query.num_classes, len(data.query)) == (308, 2047)
        assert data.name == "demo" and data.query is data.gallery and not data.train.flip
        assert any("600 of 6,670 classes that 152 icon sets draw" in note for note in data.notes)

    def test_every_class_has_4_to_40_images_and_its_split(self, data):
        for part, images in (("train", data.train), ("test", data.query)):
            sizes = np.bincount(images.labels)[images.classes]
            assert sizes.min() >= 4 and sizes.max() <= 40
            assert {split_of(images.label_names[c]) for c in images.classes} == {part}

    def test_every_image_is_64_pixels_and_none_is_there_twice(self, data):
        distinct = set()
        for images in (data.train, data.query):
            for i in range(len(images)):
                image = images.open(i)
                assert image.size == (64, 64)
                distinct.add(image.tobytes())
        assert len(distinct) == len(data.train) + len(data.query)

    def test_it_is_small_and_says_where_it_is_from(self):
        folder = resources.files("divcon.data") / "demo"
        content = (folder / "icons.parquet").read_bytes()
        assert len(content) <= 4_000_000
        table = pq.read_table(io.BytesIO(content))
        text = (folder / "ATTRIBUTION.md").read_text()
        assert "python tools/icons.py PACKAGE_DIR --out DIR --classes 600 --seed 0 --permissive" in text
        lines = [line.split(" | ") for line in text.splitlines() if re.match(r"\| [a-z0-9-]+ \|", line)][1:]
        listed = {line[0].strip("| "): int(line[-1].strip("| ").replace(",", "")) for line in lines}
        values = table["icon_set"].value_counts().to_pylist()
        assert listed == {value["values"]: value["counts"] for value in values}
        assert all(line[4].strip() in PERMISSIVE and line[2] and line[3] for line in lines)

    def test_the_pngs_are_small(self, data):
        modes = {Image.open(io.BytesIO(data.train.encoded[int(r)].as_py())).mode for r in data.train.rows}
        assert modes <= {"L", "P", "RGB"} and "L" in modes
