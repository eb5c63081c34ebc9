"""Folders of images, labelled by their folders or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

import divcon as dc
from divcon.data.decode import image_endings
from divcon.data.readers.folder import images_of, label_in, read_folder
from divcon.errors import DataError, ImageError

FOUR = [f"{c}/{i}.png" for c in "abcd" for i in (1, 2)]


def error_of(root) -> str:
    with pytest.raises(DataError) as caught:
        read_folder(root)
    return str(caught.value)


def names(images) -> list[str]:
    return [images.path(i) for i in range(len(images))]


class TestReadFolder:
    def test_without_a_test_fraction_the_first_half_of_the_classes_trains(self, make_images, colour_of):
        data = read_folder(make_images(FOUR), test_fraction=None)
        assert names(data.train) == FOUR[:4] and names(data.query) == FOUR[4:]
        assert data.query is data.gallery and data.name == "images"
        assert data.query.open(0).getpixel((0, 0)) == colour_of("c/1.png")
        assert [data.query.label_name(i) for i in range(4)] == ["c", "c", "d", "d"]
        assert any("no split" in note for note in data.notes)

    def test_train_and_test_folders(self, make_images):
        data = read_folder(make_images([f"{'train' if path[0] in 'bd' else 'test'}/{path}" for path in FOUR]))
        assert {data.train.label_name(i) for i in range(4)} == {"b", "d"}
        assert names(data.query) == ["test/a/1.png", "test/a/2.png", "test/c/1.png", "test/c/2.png"]
        assert data.validation is None and data.notes == ()

    @pytest.mark.parametrize("word", ["val", "validation"])
    def test_validation_folder(self, make_images, word):
        part = dict(zip("abcdef", ["train", "train", "test", "test", word, word], strict=True))
        paths = [f"{part[c]}/{c}/{i}.png" for c in part for i in (1, 2)]
        data = read_folder(make_images(paths))
        assert {data.validation.label_name(i) for i in range(4)} == {"e", "f"}
        data = read_folder(make_images([path for path in paths if not path.startswith("test")], folder="other"))
        assert data.validation is None and {data.query.label_name(i) for i in range(4)} == {"e", "f"}

    def test_a_class_may_be_called_train(self, make_images):
        data = read_folder(make_images([path.replace("a/", "train/") for path in FOUR]))
        assert data.train.label_names == ("b", "c", "d", "train")

    def test_images_below_a_class_and_capital_suffixes(self, make_images):
        paths = [*FOUR, "a/deep/er/3.JPG", "a/0.TIFF", "b/3.webp", "b/4.gif", "b/5.bmp"]
        data = read_folder(make_images(paths), test_fraction=None)
        assert names(data.train)[:4] == ["a/0.TIFF", "a/1.png", "a/2.png", "a/deep/er/3.JPG"]
        assert len(data.train) == 9

    def test_numbered_classes_sort_by_number(self, make_images):
        data = read_folder(make_images([f"{c}/{i}.png" for c in (1, 2, 10, 20) for i in (1, 2)]), test_fraction=None)
        assert {data.train.label_name(i) for i in range(4)} == {"1", "2"}

    def test_what_is_skipped_is_counted(self, make_images):
        root = make_images([*FOUR, "loose.png", "a/.hidden.png", ".cache/1.png", "__MACOSX/1.png"])
        (root / "a" / "notes.txt").write_text("")
        (root / "readme.md").write_text("")
        data = read_folder(root)
        assert len(data.train) == len(data.query) == 4
        assert {skipped.kind: skipped.paths for skipped in data.skipped} == {
            "hidden or system files": ("a/.hidden.png",),
            "hidden or system folders": (".cache/", "__MACOSX/"),
            "files that are no images": ("readme.md", "a/notes.txt"),
            "images beside the class folders": ("loose.png",),
        }
        assert "skipped: 1 hidden or system file ('a/.hidden.png')" in data.notes
        assert "skipped: 2 files that are no images ('readme.md', 'a/notes.txt')" in data.notes
        assert "skipped: 1 image beside the class folders ('loose.png')" in data.notes

    def test_links_are_followed_once(self, make_images):
        root = make_images(FOUR)
        elsewhere = make_images(["1.png", "2.png"], folder="elsewhere")
        (root / "e").symlink_to(elsewhere)
        (root / "a" / "again").symlink_to(root / "a")
        (root / "b" / "more").symlink_to(elsewhere)
        data = read_folder(root)
        assert data.train.num_classes == 3 and data.query.num_classes == 2
        assert names(data.train)[:2] == ["a/1.png", "a/2.png"] and len(data.train) == 8
        assert "b/more/1.png" in names(data.train)

    def test_order_does_not_depend_on_the_file_system(self, make_images):
        assert names(read_folder(make_images(FOUR)).train) == names(
            read_folder(make_images(FOUR[::-1], folder="other")).train
        )

    def test_a_class_of_one_image_is_noted(self, make_images):
        data = read_folder(make_images([*FOUR, "aa/1.png"]))
        assert any("train: 1 class of one image ('aa')" in note for note in data.notes)

    def test_no_flip(self, make_images):
        assert not read_folder(make_images(FOUR), flip=False).train.flip

    def test_images_without_class_folders(self, make_images):
        message = error_of(make_images(["1.png", "2.png"]))
        assert "2 images, but no labels" in message and "ROOT/CLASS" in message
        assert "split/test: 1 image, but no labels" in error_of(
            make_images(["train/1.png", "train/2.png", "test/1.png"], folder="split")
        )

    def test_nothing_to_read(self, make_images, tmp_path):
        assert "there is no such folder" in error_of(tmp_path / "gone")
        assert "this is not a folder" in error_of(make_images(["1.png"]) / "1.png")
        (tmp_path / "empty" / "a").mkdir(parents=True)
        assert "there are no images" in error_of(tmp_path / "empty")

    def test_too_few_classes(self, make_images):
        assert "1 class; without a split" in error_of(make_images(FOUR[:2], folder="one"))
        assert "3 classes; without a split" in error_of(make_images(FOUR[:6], folder="three"))
        message = error_of(make_images(["a/1.png", "b/1.png", "c/1.png", "c/2.png", "d/1.png", "d/2.png"], folder="x"))
        assert "4 classes; without a split" in message and "and 2 have them" in message


def everything(data) -> list[str]:
    """The paths of all images, on whichever side a split has them."""
    return sorted({path for images in data.parts.values() for path in names(images)})


def labels_of(data) -> set[str]:
    """The labels of all images, without spaces at their ends."""
    return {images.label_names[c].strip() for images in data.parts.values() for c in images.classes}


def find(data, path: str):
    """The set that has the image of this path, and its index there."""
    return next((images, names(images).index(path)) for images in data.parts.values() if path in names(images))


def split(make_images, folder: str = "images", **parts: str):
    """``split(make_images, Training="ab", Testing="cd")``: two images of each class in each folder of a split."""
    return make_images([f"{part}/{c}/{i}.png" for part, names in parts.items() for c in names for i in (1, 2)], folder)


def sides(data) -> dict[str, str]:
    """The classes of each split, in one word."""
    return {
        part: "".join(images.label_names[c] for c in images.classes)
        for part, images in data.parts.items()
        if len(images)
    }


class TestSplitFolders:
    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ({"Train": "ab", "Test": "cd"}, {"train": "ab", "test": "cd"}),
            ({"TRAINING": "ab", "testing": "cd"}, {"train": "ab", "test": "cd"}),
            ({"train": "ab", "valid": "cd", "test": "ef"}, {"train": "ab", "validation": "cd", "test": "ef"}),
            ({"train": "ab", "valid": "cd"}, {"train": "ab", "test": "cd"}),
            ({"train": "ab", "eval": "cd"}, {"train": "ab", "test": "cd"}),
            ({"train": "ab", "dev": "cd", "holdout": "ef"}, {"train": "ab", "validation": "cd", "test": "ef"}),
            ({"train": "ab", "query": "cd", "gallery": "cd"}, {"train": "ab", "query": "cd", "gallery": "cd"}),
            ({"Train": "ab", "Probe": "cd", "Gallery": "cde"}, {"train": "ab", "query": "cd", "gallery": "cde"}),
            ({"query": "cd", "gallery": "cd"}, {"query": "cd", "gallery": "cd"}),
            ({"probe": "cd", "gallery": "cd"}, {"query": "cd", "gallery": "cd"}),
            ({"bounding_box_train": "ab", "query": "cd", "bounding_box_test": "cd"},
             {"train": "ab", "query": "cd", "gallery": "cd"}),
            ({"train2017": "ab", "val2017": "cd", "test2017": "ef"}, {"train": "ab", "validation": "cd", "test": "ef"}),
            ({"test": "abc"}, {"test": "abc"}),
            ({"images/train": "ab", "images/test": "cd"}, {"train": "ab", "test": "cd"}),
            ({"my-photos/v2/train": "ab"} | {"my-photos/v2/test": "cd"}, None),
            ({"v2/train": "ab", "v2/test": "cd"}, {"train": "ab", "test": "cd"}),
            ({"train/images": "ab", "test/images": "cd"}, {"train": "ab", "test": "cd"}),
            ({"train/train": "ab", "test1/test1": "cd"}, {"train": "ab", "test": "cd"}),
        ],
    )  # fmt: skip
    def test_names_of_splits(self, make_images, parts, expected):
        root = split(make_images, **parts)
        if expected is None:
            assert "1 class; without a split" in error_of(root)
            return
        data = read_folder(root)
        assert sides(data) == expected
        assert data.protocol == ("query-gallery" if "query" in expected else "leave-one-out")
        assert {path.split("/")[0] for images in data.parts.values() for path in names(images)} == {
            part.split("/")[0] for part in parts
        }

    def test_a_note_says_what_other_names_are_read_as(self, make_images):
        data = read_folder(split(make_images, Training="ab", holdout="cd"))
        assert data.notes == ("splits: 'Training' is train, 'holdout' is test",)
        data = read_folder(split(make_images, "other", **{"images/train": "ab", "images/test": "cd"}))
        assert data.notes == (f"the folders of {data.train.root}/images are read",)

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"train": "ab", "val": "cd", "test": "ef", "extra": "gh"},
             "'test', 'train' and 'val' are names of splits, and 'extra' is not: move away what is no split"),
            ({"train": "abcd", "mug": "x", "cup": "y"}, "'train' is the name of a split, and 'cup' and 'mug' are not"),
            ({"Test": "a", "b": "xy", "c": "xy", "d": "xy"}, "'Test' is the name of a split, and 'b', 'c' and 'd' are"),
            ({"train": "ab", "Train": "cd", "test": "ef"}, "'Train' and 'train' are both train"),
            ({"train": "ab", "val": "cd", "valid": "ef"}, "'val' and 'valid' are both validation"),
            ({"trainA": "ab", "trainB": "cd", "testA": "ef", "testB": "gh"}, "'testA' and 'testB' are both test"),
            ({"train": "ab", "query": "cd"}, "'query' needs a folder 'gallery' beside it"),
            ({"train": "ab", "gallery": "cd"}, "'gallery' needs a folder 'query' beside it"),
            ({"train": "ab", "test": "cd", "query": "cd", "gallery": "cd"}, "call the test images query and gallery"),
            ({"train": "abcd"}, "all images are in 'train', and there is no test; add a folder 'test'"),
            ({"train": "ab", "test": "bc"}, "1 class is both in train and in "),
            ({"fold_1": "abc", "fold_2": "abc", "fold_3": "abc", "fold_4": "abc"}, "are folds, not classes"),
        ],
    )  # fmt: skip
    def test_what_may_be_a_split_or_a_class_is_refused(self, make_images, parts, message):
        assert message in error_of(split(make_images, **parts))

    def test_a_split_beside_classes_of_images_is_refused_unless_it_may_be_a_railway_train(self, make_images):
        paths = [f"{c}/{i}.png" for c in ("a", "b", "c", "test") for i in (1, 2)]
        assert "'test' is the name of a split, and 'a', 'b' and 'c' are not" in error_of(make_images(paths))
        data = read_folder(make_images([path.replace("test", "train") for path in paths], folder="vehicles"))
        assert labels_of(data) == {"a", "b", "c", "train"}
        assert "'train' is read as a class: it has images in it, as the other folders have" in data.notes

    def test_folders_without_images_beside_splits_are_skipped(self, make_images):
        root = split(make_images, train="ab", test="cd")
        (root / "annotations" / "deep").mkdir(parents=True)
        (root / "annotations" / "deep" / "a.json").write_text("{}")
        data = read_folder(root)
        assert sides(data) == {"train": "ab", "test": "cd"}
        assert "skipped: 1 folder without images ('annotations/')" in data.notes

    def test_a_split_without_images(self, make_images):
        root = split(make_images, train="ab")
        (root / "test" / "c").mkdir(parents=True)
        assert "all images are in 'train', and there are no images in 'test'" in error_of(root)

    @pytest.mark.parametrize(
        "paths",
        [
            ["images/train/1.png", "images/val/2.png"],
            ["train/images/1.png", "val/images/2.png"],
            ["train/train/1.png", "test1/test1/2.png"],
        ],
    )
    def test_splits_of_images_without_classes(self, make_images, paths):
        assert "1 image, but no labels" in error_of(make_images(paths))

    def test_market1501_is_read_by_its_name(self, make_images):
        root = make_images(
            ["bounding_box_train/0002_c1s1_1_01.png", "query/0003_c1.png", "bounding_box_test/0003_c2.png"]
        )
        assert "if this is Market-1501, read it by its name, market1501" in error_of(root)

    def test_splits_below_the_classes_are_none(self, make_images):
        data = read_folder(make_images([f"{c}/{part}/1.png" for c in "abcd" for part in ("train", "test")]))
        assert not any("are the classes" in note for note in data.notes)
        assert labels_of(data) == set("abcd") and len(everything(data)) == 8
        assert any("the folders 'test' and 'train' below the classes are no splits here" in note for note in data.notes)

    @pytest.mark.parametrize(
        "names",
        [
            ("fr_train", "fr_test", "de_train", "de_test"),
            ("imagenet-train", "imagenet-val", "a", "b", "c"),
            ("fooTrain", "fooTest", "barTrain", "barTest"),
        ],
    )
    def test_names_of_splits_among_other_words_are_no_classes(self, make_images, names):
        message = error_of(make_images([f"{name}/{c}/{i}.png" for name in names for c in "xy" for i in (1, 2)]))
        assert f"'{names[1]}'" in message and "look like splits, not classes: rename them" in message

    def test_classes_whose_names_have_the_words_of_splits(self, make_images):
        names = ("bullet train", "test tube", "mug", "valve")
        data = read_folder(make_images([f"{name}/{i}.png" for name in names for i in (1, 2)]))
        assert labels_of(data) == set(names)

    def test_folders_below_classes_that_may_be_the_classes(self, make_images):
        shops = ("amazon", "dslr", "webcam", "caltech")
        data = read_folder(make_images([f"{shop}/{c}/{i}.png" for shop in shops for c in "xy" for i in (1, 2)]))
        assert labels_of(data) == set(shops)
        assert any(
            note.startswith("the classes are 'amazon', 'caltech', 'dslr' and 'webcam'; if the folders in them ('x' and")
            for note in data.notes
        )

    def test_too_few_folders_of_folders_may_be_something_else(self, make_images):
        root = split(make_images, entrenamiento="ab", prueba="cd")
        assert "2 classes; without a split" in (text := error_of(root))
        assert "if 'entrenamiento' and 'prueba' are splits, rename them: a split is called train, test" in text
        root = split(make_images, "outer", CUB="abcd")
        assert f"if the folders in it are the classes, pass {root}/CUB" in error_of(root)

    def test_classes_in_one_folder_called_images(self, make_images):
        data = read_folder(make_images([f"images/{path}" for path in FOUR]))
        assert labels_of(data) == set("abcd") and everything(data)[0] == "images/a/1.png"
        assert "2 images, but no labels" in error_of(make_images(["images/1.png", "images/2.png"], folder="flat"))


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("a/1.png", "a"), ("train/a/1.png", "a"), ("Training/a/1.png", "a"), ("images/valid/a/b/1.png", "a"),
        ("train/1.png", "train"), ("images/1.png", "images"), ("1.png", None),
        ("/x/a/1.png", None), ("../a/1.png", None),
    ],
)  # fmt: skip
def test_the_label_in_a_path(path, label):
    assert label_in(path) == label


class TestFiles:
    def test_every_ending_that_pillow_saves_is_read(self, make_images, tmp_path):
        Image.init()
        root, colour = make_images(FOUR), (200, 40, 90)
        (root / "a" / "1.png").unlink()
        saved = {}
        for ending, kind in Image.registered_extensions().items():
            image = Image.new("RGB", (32, 32), colour)
            try:
                image.save(root / "a" / f"x{ending.upper()}", kind)
            except (OSError, KeyError, ValueError):
                try:
                    image.convert("1").save(root / "a" / f"x{ending.upper()}", kind)
                except (OSError, KeyError, ValueError):
                    (root / "a" / f"x{ending.upper()}").unlink(missing_ok=True)
                    continue
            saved[f"a/x{ending.upper()}"] = kind
        data = read_folder(root)
        read = {path for path in everything(data) if path.startswith("a/x")}
        documents = {path for path, kind in saved.items() if kind in ("PDF", "EPS", "PALM", "WMF")}
        assert read == saved.keys() - documents and len(read) > 40
        assert {f"a/x{e}" for e in (".JFIF", ".JPE", ".PGM", ".PPM", ".JP2", ".MPO", ".TGA", ".BMP")} <= read
        for path in read:
            images, i = find(data, path)
            if "1" not in Image.open(root / path).mode:
                pixels = np.asarray(images.open(i)).astype(int)
                assert np.abs(pixels - colour).max() <= (255 if saved[path] in ("GIF", "BLP", "SPIDER") else 12), path
        assert {path for skipped in data.skipped for path in skipped.paths} >= documents

    def test_the_endings_are_those_of_what_decodes(self):
        endings = image_endings()
        assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".pgm", ".ppm", ".jp2", ".tif"} <= endings.keys()
        assert not {".pdf", ".eps", ".ps", ".wmf", ".mpg", ".h5", ".grib", ".svg", ".mp4"} & endings.keys()

    def test_an_ending_that_other_files_have_too(self, make_images):
        root = make_images(FOUR)
        (root / "a" / "cloud.pcd").write_text("# .PCD v0.7 - Point Cloud Data\n")
        (root / "a" / "board.gbr").write_text("G04 #@! TF.GenerationSoftware*\n")
        Image.new("RGB", (8, 8)).save(root / "a" / "x.rgb", "SGI")
        data = read_folder(root)
        assert "a/x.rgb" in everything(data)
        assert "skipped: 2 files that are no images ('a/board.gbr', 'a/cloud.pcd')" in data.notes

    def test_names_without_an_ending_or_with_another(self, make_images, colour_of):
        root = make_images(FOUR)
        for name in ("0001", "photo.png.", "photo2.png ", "photo.png~", "photo.png?w=200", "x.jpg"):
            shutil.copy(root / "a" / "1.png", root / "a" / name)
        (root / "a" / "README").write_text("mine")
        data = read_folder(root)
        a = [path for path in everything(data) if path.startswith("a/")]
        assert a == ["a/0001", "a/1.png", "a/2.png", "a/photo.png.", "a/photo2.png ", "a/x.jpg"]
        images, i = find(data, "a/x.jpg")
        assert images.open(i).getpixel((0, 0)) == colour_of("a/1.png")
        assert "skipped: 1 file that is no image ('a/README')" in data.notes
        assert (
            "skipped: 2 images whose names end as no image's do ('a/photo.png?w=200', 'a/photo.png~'); rename them to "
            ".jpg, .png, ... to use them" in data.notes
        )

    def test_what_is_damaged_is_an_image(self, make_images):
        """For the check to report: it was meant to be one."""
        root = make_images(FOUR)
        (root / "a" / "0.png").write_bytes(b"")
        (root / "a" / "0.pgm").write_bytes(b"P5 ")
        (root / "a" / "gone.jpg").symlink_to(root / "nowhere.jpg")
        assert everything(read_folder(root)) == sorted(["a/0.pgm", "a/0.png", "a/gone.jpg", *FOUR])

    def test_folders_and_files_of_the_system_are_no_classes(self, make_images):
        junk = [
            "@eaDir",
            "$RECYCLE.BIN",
            "lost+found",
            "__MACOSX",
            ".Trashes",
            "System Volume Information",
            ".thumbnails",
        ]
        junk += ["#recycle", "a/@eaDir", "train/.thumbnails"]
        root = make_images([*FOUR, *(f"{folder}/x/1.png" for folder in junk if folder != "train/.thumbnails")])
        for name in ("Thumbs.db", "desktop.ini", "._1.png", ".DS_Store", "ehthumbs.db"):
            (root / "a" / name).write_bytes(b"x")
        data = read_folder(root)
        assert data.train.label_names == ("a", "b", "c", "d") and everything(data) == FOUR
        skipped = {skipped.kind: skipped.paths for skipped in data.skipped}
        assert sorted(skipped["hidden or system folders"]) == sorted(f"{folder}/" for folder in junk[:-1])
        assert sorted(path[2:] for path in skipped["hidden or system files"]) == [
            ".DS_Store", "._1.png", "Thumbs.db", "desktop.ini", "ehthumbs.db"]  # fmt: skip
        assert names(images_of(root)) == FOUR

    def test_system_folders_beside_splits(self, make_images):
        root = split(make_images, **{"Train": "ab", "Test": "cd", "@eaDir": "x", "Train/@eaDir": "y"})
        assert sides(read_folder(root)) == {"train": "ab", "test": "cd"}

    def test_what_does_not_decode_here_is_named_with_what_to_install(self, make_images, monkeypatch):
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        without = {ending: kind for ending, kind in image_endings().items() if kind != "HEIF"}
        monkeypatch.setattr("divcon.data.decode.image_endings", lambda: without)
        monkeypatch.setattr("divcon.data.image_files.image_endings", lambda: without)
        root = make_images(FOUR)
        for name in ("1.HEIC", "2.heif", "3.heic", "4.heic"):
            (root / "a" / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        for name in ("x.svg", "x.pdf", "x.mp4", "x.CR2"):
            (root / "b" / name).write_bytes(b"x")
        data = read_folder(root)
        assert everything(data) == FOUR
        assert (
            "skipped: 4 HEIC images ('a/1.HEIC', 'a/2.heif', 'a/3.heic', ...); `pip install pillow-heif` to read them, "
            "or convert them to JPEG" in data.notes
        )
        assert "skipped: 2 drawings and documents ('b/x.pdf', 'b/x.svg'); draw them as PNG to use them" in data.notes
        assert "skipped: 1 video ('b/x.mp4'); extract frames to use them" in data.notes
        assert "skipped: 1 camera raw image ('b/x.CR2'); convert them to JPEG to use them" in data.notes
        for path in root.glob("*/*.png"):
            path.unlink()
        assert "there are no images in it (.jpg, .png, .webp, ...); skipped: 4 HEIC images" in (text := error_of(root))
        assert "1 camera raw image" in text and "pip install pillow-heif" in text
        with pytest.raises(DataError, match="pip install pillow-heif"):
            images_of(root)

    def test_heic(self, make_images):
        pillow_heif = pytest.importorskip("pillow_heif")
        root = make_images(FOUR)
        pixels = np.zeros((64, 48, 3), np.uint8)
        pixels[:32] = (0, 0, 255)
        exif = Image.Exif()
        exif[0x0112] = 6
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(root / "a" / "0.HEIC", quality=100, exif=exif.tobytes())
        data = read_folder(root)
        images, i = find(data, "a/0.HEIC")
        with Image.open(root / "a" / "0.HEIC") as stored:
            upright = ImageOps.exif_transpose(stored).convert("RGB")
        assert images.open(i).tobytes() == upright.tobytes() and data.skipped == ()

    @pytest.mark.heavy
    def test_the_server_shows_heic(self, tmp_path):
        """In a process that has not decoded anything yet, the plug-in must be registered before the header is read."""
        pillow_heif = pytest.importorskip("pillow_heif")
        pytest.importorskip("starlette")
        pillow_heif.from_pillow(Image.new("RGB", (64, 48))).save(tmp_path / "0.heic")
        code = (
            "from pathlib import Path; from divcon.serve.items import check_pixels; check_pixels(Path('0.heic'), 4000)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run([sys.executable, "-c", code.replace("4000", "3000")], cwd=tmp_path, check=True)

    def test_a_name_that_is_not_utf8_is_named(self, make_images):
        root = make_images(FOUR)
        try:
            (root / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes((root / "a" / "1.png").read_bytes())
            (root / os.fsdecode(b"th\xe9")).mkdir()
        except OSError:
            pytest.skip("this file system has UTF-8 names alone")
        (root / os.fsdecode(b"th\xe9") / "1.png").write_bytes((root / "a" / "1.png").read_bytes())
        data = read_folder(root)
        assert everything(data) == FOUR and labels_of(data) == set("abcd")
        assert (
            "skipped: 2 names that are not UTF-8 ('th\\xe9/', 'a/caf\\xe9.png'); rename them to use them; convmv "
            "renames whole folders" in data.notes
        )
        warned: list[str] = []
        assert names(images_of(root, context=dc.Context(on_warning=warned.append))) == FOUR
        assert len(warned) == 1 and "2 names that are not UTF-8" in warned[0]
        for read in (dc.read, images_of):
            with pytest.raises(DataError, match=r"th\\xe9: this name is not UTF-8; rename it"):
                read(root / os.fsdecode(b"th\xe9"))

    def test_a_line_break_in_a_name_is_written_in_one_line(self, make_images):
        root = make_images([*FOUR, "a/0\n.png"])
        (root / "a" / "0\n.png").write_bytes(b"")
        (root / "a" / "\x1b[31m.txt").write_text("")
        data = read_folder(root)
        images, i = find(data, "a/0\n.png")
        assert images.where(i) == f"{root}/a/0\\n.png"
        assert r"skipped: 1 file that is no image ('a/\x1b[31m.txt')" in data.notes
        with pytest.raises(ImageError, match=r"a/0\\n\.png: this image does not decode \(the file is empty"):
            images.open(i)

    def test_odd_names_are_read(self, make_images):
        odd = ['comma, "quote"', "line\nbreak", " lead", "trail ", "dots..", "ünïcode", "[b]", "007", "{x}'"]
        root = make_images([f"{c}/{name}{i}.png" for c in odd for name in odd[:6] for i in (1, 2)])
        data = read_folder(root)
        assert labels_of(data) == {name.strip() for name in odd} and len(everything(data)) == 2 * 6 * 9
        for images in data.parts.values():
            assert all(images.open(i).size == (8, 8) for i in range(len(images)))

    def test_a_folder_called_like_a_table(self, make_images):
        root = make_images(FOUR, folder="photos.csv")
        data = dc.read(root)
        images, i = find(data, "a/1.png")
        assert images.where(i) == str(root / "a/1.png")
        assert names(images_of(root)) == FOUR

    def test_links_that_lead_back_end(self, make_images):
        root = make_images(FOUR)
        (root / "a" / "up").symlink_to(root)
        (root / "self").symlink_to(root)
        (root / "b" / "above").symlink_to(root.parent)
        (root / "c" / "round").symlink_to(root / "c" / "round")
        (root / "e").symlink_to(root.parent / "not mounted")
        data = read_folder(root)
        assert data.train.label_names == ("a", "b", "c", "d") and everything(data) == FOUR
        (skipped,) = (skipped for skipped in data.skipped if skipped.kind.startswith("links to"))
        assert sorted(skipped.paths) == ["a/up/", "b/above/", "self/"]
        assert "skipped: 2 links that lead nowhere ('e', 'c/round')" in data.notes
        assert names(images_of(root)) == FOUR

    def test_links_between_classes_end(self, make_images):
        root = make_images(FOUR)
        (root / "a" / "to_b").symlink_to(root / "b")
        (root / "b" / "to_a").symlink_to(root / "a")
        linked = ["a/to_b/1.png", "a/to_b/2.png", "b/to_a/1.png", "b/to_a/2.png"]
        assert everything(read_folder(root)) == sorted(FOUR + linked)

    def test_a_folder_that_cannot_be_read_stops(self, make_images, monkeypatch):
        root, scandir = make_images(FOUR), os.scandir

        def denied(path):
            if os.fspath(path).endswith("b"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", denied)
        assert f"{root}/b: this folder cannot be read (Permission denied); change its permissions" in error_of(root)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
    def test_a_pipe_is_not_waited_for(self, make_images):
        root = make_images(FOUR)
        os.mkfifo(root / "a" / "pipe.png")
        assert "skipped: 1 file that is no image ('a/pipe.png')" in read_folder(root).notes

    def test_empty_class_folders_are_named(self, make_images):
        root = make_images(FOUR)
        (root / "e").mkdir()
        (root / "a" / "empty" / "deep").mkdir(parents=True)
        data = read_folder(root)
        assert data.train.label_names == ("a", "b", "c", "d")
        assert "skipped: 2 folders without images ('a/empty/', 'e/')" in data.notes

    def test_a_heic_file_alone(self, tmp_path):
        (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        with pytest.raises(ImageError):
            images_of(tmp_path / "x.heic").open(0)


class TestImagesOf:
    def test_one_file_many_files_and_folders(self, make_images, colour_of):
        root = make_images(["1.png", "a/2.png", "a/b/3.png"])
        assert names(images_of(root)) == ["1.png", "a/2.png", "a/b/3.png"]
        one = images_of(root / "1.png")
        assert len(one) == 1 and one.open(0).getpixel((0, 0)) == colour_of("1.png")
        many = images_of([str(root / "a"), root / "1.png"])
        assert [many.open(i).getpixel((0, 0)) for i in range(3)] == [
            colour_of(p) for p in ("a/2.png", "a/b/3.png", "1.png")
        ]
        assert many.label_names == ("",) and many.labels.tolist() == [0, 0, 0] and many.rows.tolist() == [0, 1, 2]
        assert many.where(0) == str(root / "a/2.png")

    def test_a_table(self, make_csv):
        images = images_of(make_csv("path\na1.png\nb1.png\n"))
        assert names(images) == ["a1.png", "b1.png"] and images.open(1).size == (8, 8)

    def test_nothing_to_read(self, tmp_path):
        with pytest.raises(DataError, match="gone: there is no such file or folder"):
            images_of(tmp_path / "gone")
        with pytest.raises(DataError, match="there are no images"):
            images_of(tmp_path)
        with pytest.raises(DataError, match="the list is empty"):
            images_of([])
