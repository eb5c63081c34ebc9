"""Folders of images, labelled by their folders or not at all."""

from __future__ import annotations

import pytest

from divcon.data.readers.folder import images_of, read_folder
from divcon.errors import DataError

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
        assert "skipped: 1 hidden file" in data.notes and "skipped: 2 files that are no images" in data.notes
        assert "skipped: 1 image beside the class folders" in data.notes

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
