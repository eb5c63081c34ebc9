"""The two values: images that open as they should, and benchmarks that keep train and test apart."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet, file_sizes
from divcon.data.tables import where_in
from divcon.errors import DataError, ImageError


def image_set(labels, root="", **fields) -> LabeledSet:
    labels = np.asarray(labels, np.int64)
    paths = pa.array([f"{i}.png" for i in range(len(labels))], pa.string())
    fields = {"rows": np.arange(len(labels)), "source": "folder", "paths": paths} | fields
    return LabeledSet(labels, tuple("abcdefgh"), root=str(root), **fields)


def encoded_set(*images: Image.Image, format="PNG", **save) -> LabeledSet:
    buffers = [io.BytesIO() for _ in images]
    for image, buffer in zip(images, buffers, strict=True):
        image.save(buffer, format, **save)
    column = pa.array([buffer.getvalue() for buffer in buffers])
    return image_set([0] * len(images), encoded=column)


class TestImageSet:
    def test_a_subset_keeps_everything_of_its_images(self):
        images = image_set(
            [0, 1, 2, 1], cameras=np.arange(4) * 10, groups=np.arange(4), boxes=np.arange(16).reshape(4, 4), flip=False
        )
        part = images.subset(np.array([3, 1]))
        assert part.labels.tolist() == [1, 1] and part.rows.tolist() == [3, 1]
        assert part.paths.to_pylist() == ["3.png", "1.png"]
        assert part.cameras.tolist() == [30, 10] and part.groups.tolist() == [3, 1]
        assert part.boxes[:, 0].tolist() == [12, 4] and not part.flip
        assert part.label_names == images.label_names and part.num_classes == 1
        assert images.subset(images.labels == 1).rows.tolist() == [1, 3]
        assert images.of_classes(np.array([0, 2])).rows.tolist() == [0, 2]
        assert len(images.subset(np.zeros(4, bool))) == 0

    def test_lengths_and_labels_are_checked(self):
        with pytest.raises(ValueError, match="cameras has 1 entries for 2 labels"):
            image_set([0, 1], cameras=np.zeros(1))
        with pytest.raises(ValueError, match="outside label_names"):
            image_set([0, 99])

    def test_images_open_as_rgb_on_white(self):
        half = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
        half.putpixel((1, 0), (0, 0, 0, 0))
        for image in (half, half.convert("LA"), half.convert("P")):
            opened = encoded_set(image).open(0)
            assert opened.mode == "RGB"
        assert encoded_set(half).open(0).getpixel((1, 0)) == (255, 255, 255)
        assert encoded_set(half).open(0).getpixel((0, 0)) == (255, 0, 0)
        assert encoded_set(Image.new("L", (1, 1), 7)).open(0).getpixel((0, 0)) == (7, 7, 7)
        palette = Image.new("P", (1, 1), 1)
        palette.putpalette([9, 9, 9, 1, 2, 3])
        assert encoded_set(palette).open(0).getpixel((0, 0)) == (1, 2, 3)
        assert encoded_set(palette, transparency=1).open(0).getpixel((0, 0)) == (255, 255, 255)

    def test_a_jpeg_in_cmyk(self):
        assert encoded_set(Image.new("CMYK", (2, 2)), format="JPEG").open(0).mode == "RGB"

    @pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"])
    def test_what_does_not_decode_is_named(self, tmp_path, content):
        (tmp_path / "0.png").write_bytes(content)
        with pytest.raises(ImageError) as caught:
            image_set([0], root=tmp_path).open(0)
        assert str(tmp_path / "0.png") in str(caught.value) and "does not decode" in str(caught.value)

    def test_a_truncated_image(self, tmp_path):
        Image.effect_noise((64, 64), 50).save(tmp_path / "0.jpg")
        content = (tmp_path / "0.jpg").read_bytes()
        (tmp_path / "0.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(ImageError, match="does not decode"):
            image_set([0], root=tmp_path).open(0)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(ImageError, match=r"0\.png: there is no such file"):
            image_set([0], root=tmp_path).open(0)

    def test_where(self, tmp_path):
        (tmp_path / "T.CSV").write_text("path\na\n\nb\n")
        assert where_in(str(tmp_path / "T.CSV"), 1) == f"{tmp_path}/T.CSV line 4: "
        assert where_in("x/y.parquet", 1) == "x/y.parquet row 1: "
        assert image_set([0], root="there").where(0) == "there/0.png"


class TestBenchmark:
    def benchmark(self, **parts) -> Benchmark:
        test = image_set([2, 2, 3, 3])
        return Benchmark(**{"name": "x", "train": image_set([0, 0, 1, 1]), "query": test, "gallery": test} | parts)

    @pytest.mark.parametrize("part", ["query", "gallery", "validation"])
    def test_no_class_is_in_train_and_elsewhere(self, part):
        with pytest.raises(DataError, match=f"1 class is both in .*{part}.* for example 'b'"):
            self.benchmark(**{part: image_set([1, 4])})

    def test_validation_classes_are_not_test_classes(self):
        with pytest.raises(DataError, match="both in validation and in query, for example 'c'"):
            self.benchmark(validation=image_set([2, 2]))

    def test_the_same_class_by_name_under_another_number(self):
        other = replace(image_set([0, 0]), label_names=("b",))
        with pytest.raises(DataError, match="'b'"):
            self.benchmark(query=other, gallery=other)

    def test_the_hash_is_of_what_is_asked(self):
        test = image_set([2, 2, 3, 3])
        shuffled = test.subset(np.array([3, 0, 2, 1]))
        relabelled = image_set([2, 2, 3, 4])
        one = self.benchmark().split_hash
        assert len(one) == 16 and one == self.benchmark(train=image_set([0, 1])).split_hash
        assert one == self.benchmark(query=shuffled, gallery=shuffled).split_hash
        assert one != self.benchmark(query=relabelled, gallery=relabelled).split_hash
        assert one != self.benchmark(query=test, gallery=shuffled).split_hash

    def test_validation_is_held_out_of_train(self):
        train = image_set(np.repeat(np.arange(8), 2))
        test = replace(image_set([0, 0]), label_names=("z",))
        data = Benchmark("x", train, test, test)
        held = data.with_validation(0.25, seed=1)
        assert held.validation.num_classes == 2 and held.train.num_classes == 6
        assert not set(held.validation.classes) & set(held.train.classes)
        assert held.with_validation() is held
        again, other = data.with_validation(0.25, seed=1), data.with_validation(0.25, seed=2)
        assert again.validation.rows.tolist() == held.validation.rows.tolist() != other.validation.rows.tolist()

    def test_too_few_classes_to_hold_out(self):
        with pytest.raises(DataError, match="2 train classes of two images and more are too few to hold 2 out"):
            self.benchmark().with_validation()


def test_file_sizes_are_of_each_image_in_order(tmp_path: Path) -> None:
    """Over several blocks, of files that come twice, of one that is missing, of one elsewhere and of an address."""
    (tmp_path / "a.png").write_bytes(b"12345")
    (tmp_path / "b.png").write_bytes(b"1")
    names = ["a.png", "gone.png", str(tmp_path / "b.png"), "s3://bucket/c.png"]
    count = (1 << 16) + 30
    paths = pa.array([names[i % 4] for i in range(count)])
    images = LabeledSet(np.zeros(count, np.int64), ("",), paths, np.arange(count), "", root=str(tmp_path))
    np.testing.assert_array_equal(file_sizes(images), np.array([5, -1, 1, -1])[np.arange(count) % 4])
    elsewhere = replace(images, root="s3://bucket")
    np.testing.assert_array_equal(file_sizes(elsewhere), np.array([-1, -1, 1, -1])[np.arange(count) % 4])
