"""Published data sets that were unpacked, copied or passed wrongly: each has a message of its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.io

from divcon.data.published.counts import PUBLISHED_COUNTS, PublishedCounts
from divcon.data.read import read
from divcon.errors import DataError

NAMES = ("cub", "cars", "cars_devkit", "sop", "inshop", "vehicleid", "market1501")
IMAGES = {
    "cub": "images/001.Bird_1/Bird_1_0000_1.jpg",
    "cars": "car_ims/000001.jpg",
    "cars_devkit": "cars_test/00001.jpg",
    "sop": "bicycle_final/110000000001_0.JPG",
    "inshop": "Img/img/MEN/Jackets_Vests/id_00000001/01_0_front.jpg",
    "vehicleid": "image/0000001.jpg",
}
"""An image of each that a list names."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def root(trees: ModuleType, tmp_path: Path, name: str) -> Path:
    return getattr(trees, f"write_{name}")(tmp_path / "unpacked" / "tree", **trees.SMALL[name], put=trees.draw)


def error_of(name: str, root: Path | str | None, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(name.removesuffix("_devkit"), root, **options)
    return str(caught.value)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


class TestTheFolder:
    def test_the_parent_folder(self, name: str, root: Path) -> None:
        assert error_of(name, root.parent) == f"{root.parent}: you gave the parent folder; give {root}"

    def test_a_folder_further_up(self, name: str, root: Path) -> None:
        above = root.parent.parent
        assert error_of(name, above) == f"{above}: you gave a folder above; give {root}"

    def test_a_folder_inside(self, name: str, root: Path) -> None:
        for inside in (entry for entry in root.iterdir() if entry.is_dir()):
            assert error_of(name, inside) == f"{inside}: you gave a folder inside of the data set; give {root}"

    def test_the_folder_of_another_data_set(self, name: str, root: Path) -> None:
        for other in NAMES:
            if other.partition("_")[0] != name.partition("_")[0]:
                error = error_of(other, root)
                assert error.startswith(f"{root}: {other.removesuffix('_devkit')} is not here: there is none of ")

    def test_a_folder_with_the_archive_in_it(self, name: str, root: Path, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "all.tgz").write_bytes(b"")
        assert error_of(name, tmp_path / "new").endswith(
            f"; an archive is: if it is the one, give {tmp_path / 'new' / 'all.tgz'}"
        )

    def test_no_folder(self, name: str, tmp_path: Path) -> None:
        assert "there is no such file or folder" in error_of(name, tmp_path / "gone")
        (tmp_path / "file.txt").write_text("")
        assert "this is neither a folder nor an archive" in error_of(name, tmp_path / "file.txt")
        assert "say where it is" in error_of(name, None)


class TestImages:
    @pytest.fixture(params=IMAGES)
    def name(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.mark.heavy
    def test_missing_ones_are_counted_and_named(self, name: str, root: Path) -> None:
        (root / IMAGES[name]).unlink()
        path = IMAGES[name].removeprefix("Img/")
        assert re.search(rf": 1 of (40|50) images is missing \({re.escape(path)}\); unpack", error_of(name, root))
        others = sorted((root / IMAGES[name]).parent.iterdir())
        for other in others[:4]:
            other.unlink()
        if len(others) >= 4:
            assert re.search(r": 5 of (40|50) images are missing \((\S+, ){3}\.\.\.\); unpack", error_of(name, root))

    def test_check_files_false_skips_the_check(self, name: str, root: Path) -> None:
        (root / IMAGES[name]).unlink()
        data = read(name.removesuffix("_devkit"), root, check_files=False)
        assert sum(len(images) for images in data.parts.values()) in (40, 50)

    def test_the_folder_of_images_is_missing(self, name: str, root: Path) -> None:
        folder = IMAGES[name].partition("/")[0]
        shutil.rmtree(root / folder)
        error = error_of(name, root)
        assert ("images are missing" if name == "sop" else "lacks") in error and folder in error


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("cub", ["images.txt", "image_class_labels.txt"]),
        ("sop", ["Ebay_train.txt", "Ebay_test.txt"]),
        ("vehicleid", ["train_test_split/train_list.txt", "train_test_split/test_list_2400.txt"]),
        ("market1501", ["bounding_box_train", "query", "bounding_box_test"]),
        ("cars_devkit", ["devkit/cars_train_annos.mat", "devkit/cars_meta.mat"]),
    ],
)
def test_a_list_is_missing(name: str, lists: list[str], root: Path) -> None:
    for path in lists:
        (root / path).rename(root / "away")
        error = error_of(name, root)
        assert error == f"{root}: {name.removesuffix('_devkit')} lacks {path}; unpack the original archive again"
        (root / "away").rename(root / path)


class TestLists:
    @pytest.mark.parametrize(
        ("name", "file", "old", "new", "expected"),
        [
            ("cub", "images.txt", r"\n7 \S+", "\n7", "line 7: has 1 fields, not 2 (image_id, path)"),
            ("cub", "images.txt", r"\n7 ", "\nseven ", "line 7: the image_id 'seven' is no whole number"),
            ("cub", "images.txt", r"\n7 ", "\n700 ", "line 7: image 700 has no class in image_class_labels.txt"),
            ("cub", "image_class_labels.txt", r"\n5 1", "\n5 2", "line 6: class 2 is in 001.Bird_1, and this image"),
            (
                "cub",
                "images.txt",
                r"\n7 \S+",
                r"\n7 001.Bird_1/Bird_1_0000_1.jpg",
                "line 7: class 2 is in 002.Bird_2",
            ),
            (
                "sop",
                "Ebay_train.txt",
                r"^.*\n",
                "",
                "line 1: the header 'image_id class_id super_class_id path' is missing",
            ),
            ("sop", "Ebay_test.txt", r"\n22 5 ", "\n22 0 ", "line 3: the class_id '0' is no whole number from 1 on"),
            ("sop", "Ebay_test.txt", r"\n22 5 ", "\n22 1 ", "1 class is both in train and in query"),
            (
                "sop",
                "Ebay_train.txt",
                r"\n2 (\S+ \S+) bicycle",
                r"\n2 \1 kettle",
                "line 3: class 1 is in bicycle_final",
            ),
            ("sop", "Ebay_train.txt", r"(?s)\n.*", "\n", "has no entries"),
            ("inshop", "Eval/list_eval_partition.txt", "^40", "41", "says in its first line 41 images, and names 40"),
            ("inshop", "Eval/list_eval_partition.txt", "^40\n", "", "line 1: the number of images is missing"),
            ("inshop", "Eval/list_eval_partition.txt", "image_name", "name", "line 2: the header 'image_name item_id"),
            (
                "inshop",
                "Eval/list_eval_partition.txt",
                "train",
                "val",
                "line 3: the evaluation_status 'val' is none of",
            ),
            ("inshop", "Eval/list_eval_partition.txt", "\nimg/", "\nphotos/", "the image 'photos/"),
            ("vehicleid", "train_test_split/train_list.txt", r"\n(\S+) \S+", r"\n\1", "line 2: has 1 fields, not 2"),
            ("vehicleid", "train_test_split/train_list.txt", r"\n(\S+) \S+", r"\n\1 x", "the vehicle 'x' is no whole"),
        ],
    )
    def test_a_line_is_wrong(self, name: str, file: str, old: str, new: str, expected: str, root: Path) -> None:
        edit(root / file, old, new)
        error = error_of(name, root)
        assert str(root) in error and expected in error

    @pytest.mark.parametrize("name", ["vehicleid"])
    def test_the_same_line_twice_is_one_image(self, name: str, root: Path) -> None:
        before = read(name, root)
        path = root / "train_test_split" / "test_list_2400.txt"
        line = path.read_text().splitlines()[2]
        path.write_text(f"{path.read_text()}{line}\n")
        data = read(name, root)
        assert data.split_hash == before.split_hash and len(data.query) == 30
        assert "left out: 1 line of the lists of vehicleid-large with an image of an earlier line" in data.notes
        with (root / "train_test_split" / "train_list.txt").open("a") as file:
            file.write(f"{line.split()[0]} 1\n")
        assert f"name image/{line.split()[0]}.jpg twice, with two classes or in two splits" in error_of(name, root)

    @pytest.mark.parametrize("name", ["cub"])
    def test_a_list_is_no_text(self, name: str, root: Path) -> None:
        (root / "images.txt").write_bytes(b"\xff\xfe\x00")
        assert error_of(name, root) == f"{root}/images.txt: is no text; unpack the original archive again"

    @pytest.mark.parametrize("name", ["cub"])
    def test_windows_line_ends_and_empty_lines_are_fine(self, name: str, root: Path) -> None:
        before = read(name, root).split_hash
        path = root / "images.txt"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
        assert read(name, root).split_hash == before


class TestCars:
    @pytest.mark.parametrize("name", ["cars"])
    def test_the_annotations_are_missing(self, name: str, root: Path) -> None:
        (root / "cars_annos.mat").unlink()
        assert "cars lacks cars_annos.mat, which is handed out beside car_ims.tgz" in error_of(name, root)

    @pytest.mark.parametrize("name", ["cars"])
    def test_the_images_are_still_packed(self, name: str, root: Path) -> None:
        shutil.rmtree(root / "car_ims")
        assert error_of(name, root) == f"{root}: cars lacks car_ims; unpack the original archive again"
        (root / "car_ims.tgz").write_bytes(b"")
        assert error_of(name, root) == f"{root}: cars lacks car_ims; car_ims.tgz is still packed: unpack it there"

    @pytest.mark.parametrize("name", ["cars_devkit"])
    def test_the_classes_of_the_test_folder_are_missing(self, name: str, root: Path) -> None:
        labelled = root / "cars_test_annos_withlabels.mat"
        labelled.unlink()
        error = error_of(name, root)
        assert "cars lacks cars_test_annos_withlabels.mat" in error and "devkit's own cars_test_annos.mat" in error
        shutil.copy(root / "devkit" / "cars_test_annos.mat", labelled)
        error = error_of(name, root)
        assert "names images without their classes; this is cars_test_annos.mat" in error

    @pytest.mark.heavy
    @pytest.mark.parametrize("name", ["cars"])
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"not a mat", "does not read as a MATLAB file"),
            ({"other": 1}, "there are no annotations with relative_im_path and class"),
            (
                {"class_names": 1, "annotations": {"relative_im_path": "car_ims/000001.jpg", "class": "x"}},
                "no whole number",
            ),
            ({"annotations": {"relative_im_path": "car_ims/000001.jpg", "class": 1}}, "there are no class_names"),
            (
                {"class_names": ["a"], "annotations": {"relative_im_path": "car_ims/000001.jpg", "class": 2}},
                "car_ims/000001.jpg is of class 2, and there are 1",
            ),
        ],
    )
    def test_the_annotations_are_damaged(self, name: str, root: Path, content: Any, expected: str) -> None:
        path = root / "cars_annos.mat"
        path.write_bytes(content) if isinstance(content, bytes) else scipy.io.savemat(path, content)
        error = error_of(name, root)
        assert error.startswith(str(path)) and expected in error

    @pytest.mark.heavy
    @pytest.mark.parametrize("name", ["cars"])
    def test_a_mat_that_was_cut_short(self, name: str, root: Path) -> None:
        path = root / "cars_annos.mat"
        for share in np.linspace(0, 0.99, 12):
            cut = path.read_bytes()[: int(share * path.stat().st_size)]
            (root / "cut").mkdir(exist_ok=True)
            (root / "cut" / "car_ims").mkdir(exist_ok=True)
            (root / "cut" / "cars_annos.mat").write_bytes(cut)
            assert str(root / "cut") in error_of(name, root / "cut")


class TestInshop:
    @pytest.fixture
    def name(self) -> str:
        return "inshop"

    def test_the_images_are_still_packed(self, name: str, root: Path) -> None:
        shutil.rmtree(root / "Img" / "img")
        (root / "Img" / "img.zip").write_bytes(b"PK")
        error = error_of(name, root)
        assert "there is no folder Img/img or img or Img/img_highres or img_highres" in error
        assert "Img/img.zip is still packed: unpack it there" in error

    def test_a_size_that_is_not_there(self, name: str, root: Path) -> None:
        assert "no folder Img/img_highres or img_highres;" in error_of(name, root, images="img_highres")


class TestSwapped:
    @pytest.mark.parametrize("name", ["sop"])
    def test_the_lists_of_sop(self, name: str, root: Path) -> None:
        swap(root / "Ebay_train.txt", root / "Ebay_test.txt")
        assert f"{root}: Ebay_train.txt and Ebay_test.txt are swapped" in error_of(name, root)

    @pytest.mark.parametrize("name", ["market1501"])
    @pytest.mark.parametrize("folder", ["bounding_box_train", "query"])
    def test_the_folders_of_market(self, name: str, root: Path, folder: str) -> None:
        swap(root / folder, root / "bounding_box_test")
        error = error_of(name, root)
        assert f"{root}: {folder} and bounding_box_test are swapped: {folder}/" in error and "is junk" in error

    @pytest.mark.heavy
    @pytest.mark.parametrize("name", ["cub", "cars", "cars_devkit", "sop"])
    def test_by_the_published_numbers(
        self, trees: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = getattr(trees, f"write_{name}")(tmp_path / "tree", train=[5] * 4, test=[5] * 6, put=trees.draw)
        publish(monkeypatch, name, {"train": (6, 30), "test": (4, 20)})
        assert error_of(name, root) == (
            f"{root}: test and train are swapped: each has the published numbers of classes and images of the other; "
            "unpack the original archive again"
        )
        publish(monkeypatch, name, {"train": (6, 30), "test": (4, 21)})
        assert "train has 4 classes, and 6 are published: 2 classes missing" in read(name.partition("_")[0], root).notes

    @pytest.mark.parametrize("name", ["inshop"])
    def test_query_and_gallery(self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(monkeypatch, name, {"train": (4, 20), "query": (4, 12), "gallery": (4, 8)})
        assert f"{root / 'Img'}: gallery and query are swapped" in error_of(name, root)

    @pytest.mark.parametrize("name", ["vehicleid"])
    def test_the_lists_of_vehicleid(self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(monkeypatch, "vehicleid-large", {"train": (4, 20), "test": (6, 30)})
        assert not read(name, root).notes
        swap(root / "train_test_split" / "train_list.txt", root / "train_test_split" / "test_list_2400.txt")
        assert "test and train are swapped" in error_of(name, root)


def publish(monkeypatch: pytest.MonkeyPatch, name: str, parts: dict[str, tuple[int, int]]) -> None:
    """Let these be the published numbers."""
    numbers = {**PUBLISHED_COUNTS, name.removesuffix("_devkit"): PublishedCounts(parts, (1,))}
    monkeypatch.setattr("divcon.data.published.build.PUBLISHED_COUNTS", numbers)


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("away"))
    other.rename(one)
    one.with_name("away").rename(other)


class TestMarket:
    @pytest.fixture
    def name(self) -> str:
        return "market1501"

    def test_a_file_of_another_name(self, name: str, root: Path) -> None:
        (root / "query" / "mine.jpg").write_bytes(b"")
        assert f"{root}/query/mine.jpg: the name does not say person and camera" in error_of(name, root)

    def test_an_empty_folder(self, name: str, root: Path) -> None:
        shutil.rmtree(root / "query")
        (root / "query").mkdir()
        assert f"{root}/query: has no images" in error_of(name, root)

    def test_missing_images_show_in_the_numbers(self, name: str, root: Path) -> None:
        next((root / "query").glob("*.jpg")).unlink()
        assert "query has 7 images, and 3,368 are published: 3,361 images missing" in read(name, root).notes
