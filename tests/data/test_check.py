"""What a check finds, in data with known faults; and a clean table in which it finds nothing."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.check import (
    MAX_BITS,
    MAX_DIFFERENCE,
    check,
    equal_groups,
    fingerprint_of,
    fingerprints,
    near_groups,
    perceptual_hash,
)
from divcon.data.clean import cleaned, write_table
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError
from divcon.runtime.context import Progress


def picture(seed: int, side: int = 40) -> Image.Image:
    """Coarse and fine structure, as photographs have, and another for each seed."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (4, 8, 16, 20)]
    sized = [np.asarray(layer.resize((side, side), Image.Resampling.BICUBIC), np.float32) for layer in layers]
    return Image.fromarray(np.average(sized, axis=0, weights=(6, 4, 3, 2)).round().astype(np.uint8))


def write(root: Path, rows: list[tuple[str, str, str]], columns: str = "path,label,split") -> Path:
    """A table; ``a7.png`` is picture 7, and ``b7.png`` is it again."""
    root.mkdir(parents=True, exist_ok=True)
    for name, *_ in rows:
        if not (root / name).exists():
            picture(int("".join(filter(str.isdigit, name)))).save(root / name)
    (root / "t.csv").write_text("\n".join([columns, *(",".join(row) for row in rows)]) + "\n")
    return root / "t.csv"


GOOD = [(f"a{i}.png", f"class{i // 3}", "train" if i < 9 else "test") for i in range(18)]


def kinds(result) -> list[str]:
    return [finding.kind for finding in result.findings]


def paths(groups) -> list[list[str]]:
    return [[image.path for image in group] for group in groups]


class TestPrints:
    def test_the_hash_is_of_the_lowest_cosines(self):
        image = picture(3, 64)
        grey = np.asarray(image.convert("L"), float)
        k, x = np.arange(16)[:, None], np.arange(64)[None]
        cosine = np.cos(np.pi * k * (2 * x + 1) / 128) * np.where(k == 0, np.sqrt(1 / 64), np.sqrt(2 / 64))
        low = (cosine @ grey @ cosine.T).reshape(-1)
        clear = np.abs(low - np.median(low)) > 1e-2
        bits = np.unpackbits(perceptual_hash(image)).astype(bool)
        assert clear.sum() > 200
        assert (bits == (low > np.median(low)))[clear].all()

    def test_the_exact_print_is_of_size_and_pixels(self):
        black = [Image.new("RGB", size) for size in ((2, 8), (8, 2), (4, 4), (4, 4))]
        exact = [fingerprint_of(image).exact for image in black]
        assert len(set(exact)) == 3 and exact[2] == exact[3]
        one_off = picture(1)
        one_off.putpixel((0, 0), tuple(v ^ 1 for v in one_off.getpixel((0, 0))))
        assert fingerprint_of(one_off).exact != fingerprint_of(picture(1)).exact

    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_every_image_in_order(self, tmp_path, workers):
        write(tmp_path, GOOD)
        (tmp_path / "a3.png").write_bytes(b"")
        images = dc.read(tmp_path / "t.csv").train
        results = list(fingerprints(images, context=dc.Context(workers)))
        assert [isinstance(f, str) for f in results] == [i == 3 for i in range(9)]
        for i, result in enumerate(results):
            assert i == 3 or result.exact == fingerprint_of(picture(i)).exact
        assert "a3.png" in results[3] and "empty" in results[3]

    def test_equal_groups(self):
        assert [g.tolist() for g in equal_groups([b"x", b"y", b"x", b"z", b"y", b"x"])] == [[0, 2, 5], [1, 4]]
        assert equal_groups([]) == equal_groups([b"x"]) == []


def slow_near_groups(bits: np.ndarray, thumbs: np.ndarray) -> list[list[int]]:
    """Every pair in a loop; a group grows until nothing is near any of it."""
    n = len(bits)

    def near(i: int, j: int) -> bool:
        different = sum(bin(a ^ b).count("1") for a, b in zip(bits[i].tolist(), bits[j].tolist(), strict=True))
        apart = sum(abs(int(a) - int(b)) for a, b in zip(thumbs[i], thumbs[j], strict=True)) / thumbs.shape[1]
        flat = min(np.std(thumbs[i].astype(float)), np.std(thumbs[j].astype(float))) < 2
        return different <= MAX_BITS and apart <= MAX_DIFFERENCE and not flat

    left, groups = set(range(n)), []
    while left:
        group, new = set(), {min(left)}
        while new:
            i = new.pop()
            group.add(i)
            new |= {j for j in left - group if near(i, j)}
        left -= group
        groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


class TestNear:
    @given(st.integers(0, 2**32 - 1), st.integers(2, 24), st.integers(1, 4))
    @settings(max_examples=40, deadline=None)
    def test_as_every_pair_in_a_loop(self, seed, n, families):
        rng = np.random.default_rng(seed)
        family = rng.integers(0, families, n)
        # Members of a family differ by about what is allowed, so that chains, and pairs beyond, are met.
        flips = rng.random((n, 256)) < rng.choice([0.01, 0.03, 0.06])
        bits = rng.integers(0, 256, (families, 32), dtype=np.uint8)[family] ^ np.packbits(flips, axis=1)
        step = rng.choice([2, 5, 8])
        thumbs = rng.integers(20, 230, (families, 768))[family] + rng.integers(-step, step + 1, (n, 768))
        thumbs[rng.random(n) < 0.1] = 7
        thumbs = thumbs.astype(np.uint8)
        assert [g.tolist() for g in near_groups(bits, thumbs)] == slow_near_groups(bits, thumbs)

    @pytest.mark.parametrize("apart", [MAX_BITS, MAX_BITS + 1])
    def test_at_the_limit_of_the_hash(self, apart):
        bits = np.zeros((2, 256), np.uint8)
        bits[1, :apart] = 1
        thumbs = np.tile(np.arange(768) % 256, (2, 1)).astype(np.uint8)
        assert len(near_groups(np.packbits(bits, axis=1), thumbs)) == (apart == MAX_BITS)

    def test_more_copies_than_a_block(self):
        rng = np.random.default_rng(0)
        bits = rng.integers(0, 256, (700, 32), dtype=np.uint8)
        thumbs = rng.integers(0, 256, (700, 768), dtype=np.uint8)
        bits[300:650], thumbs[300:650] = bits[299], thumbs[299]
        done = []
        groups = near_groups(bits, thumbs, dc.Context(on_progress=lambda p: done.append((p.done, p.total))))
        assert [g.tolist() for g in groups] == [list(range(299, 650))]
        assert done[-1] == (700, 700)
        assert near_groups(bits[:0], thumbs[:0]) == []

    @pytest.mark.parametrize("change", ["jpeg", "half", "double"])
    def test_photographs_are_found_again_and_no_others(self, change):
        photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
        places = [(x, y) for x in range(0, 600, 100) for y in range(0, 400, 100)]
        images = [photo.crop((x, y, x + 100, y + 100)) for photo in photographs for x, y in places]

        def changed(image: Image.Image) -> Image.Image:
            if change == "jpeg":
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=50)
                return Image.open(buffer).convert("RGB")
            return image.resize((50, 50) if change == "half" else (200, 200), Image.Resampling.BICUBIC)

        prints = [fingerprint_of(image) for image in [*images, *map(changed, images)]]
        groups = near_groups(np.stack([f.bits for f in prints]), np.stack([f.thumb for f in prints]))
        assert all(len(group) == 2 and group[1] == group[0] + len(images) for group in groups)
        assert len(groups) >= 0.65 * len(images)

    def test_one_drawing_in_two_colours_is_not_near(self):
        red, blue = picture(1), picture(1)
        red, blue = (
            Image.merge("RGB", [image.getchannel(c) for c in order]) for image, order in ((red, "RGB"), (blue, "BGR"))
        )
        same_grey = red.convert("L").convert("RGB")
        prints = [fingerprint_of(image) for image in (red, blue, same_grey)]
        assert near_groups(np.stack([f.bits for f in prints]), np.stack([f.thumb for f in prints])) == []

    def test_few_of_the_icons_are_taken_for_copies_of_another_class(self, demo):
        """Flat drawings are the hardest there is: nearly all groups are of one class."""
        result = check(demo, context=dc.Context(2))
        assert result.ok and kinds(result) == ["near", "alike"] and result.copies == () and result.unreadable == ()
        assert ("light-bulb", "lightbulb") in [tuple(item.label for item in group) for group in result.alike]
        two = [group for group in result.near if len({image.label for image in group}) > 1]
        assert len(two) <= 3 and 80 <= len(result.near) <= 160
        assert "0 of them across" in result.findings[0].text


class TestCheck:
    def test_good_data(self, tmp_path):
        result = check(dc.read(write(tmp_path, GOOD)))
        assert result.ok and result.findings == () and result.near == ()
        train, test = result.parts
        assert (train.part, train.images, train.classes, train.smallest, train.median, train.largest) == (
            "train", 9, 3, 3, 3.0, 3)  # fmt: skip
        assert test.part == "test" and test.single == ()

    def test_counts(self, tmp_path):
        rows = [("a1.png", "x", "train"), ("a2.png", "x", "train"), ("a3.png", "y", "train"), ("a4.png", "y", "train")]
        rows += [("a5.png", "y", "train"), ("a6.png", "z", "train"), ("a7.png", "v", "validation")]
        result = check(dc.read(write(tmp_path, rows + GOOD[9:])))
        train, validation, test = result.parts
        assert (train.smallest, train.median, train.largest, train.single) == (1, 2.0, 3, ("z",))
        assert (validation.part, validation.images, validation.single) == ("validation", 1, ("v",))
        assert test.classes == 3
        assert result.ok

    def test_every_way_not_to_decode(self, tmp_path):
        table = write(tmp_path, GOOD)
        (tmp_path / "a1.png").write_bytes(b"")
        (tmp_path / "a4.png").write_bytes((tmp_path / "a4.png").read_bytes()[:120])
        (tmp_path / "a9.png").unlink()
        reported: list[Progress] = []
        result = check(dc.read(table, check_files=False), context=dc.Context(on_progress=reported.append))
        assert not result.ok and kinds(result) == ["unreadable"]
        assert [(f.where, f.problem) for f in result.unreadable] == [
            (f"{table} line 3: a1.png", "this image does not decode (the file is empty)"),
            (f"{table} line 6: a4.png", "this image does not decode (image file is truncated)"),
            (f"{table} line 11: a9.png", "there is no such file"),
        ]
        assert [f.label for f in result.unreadable] == ["class0", "class1", "class3"]
        assert Progress("decode", 18, 18) in reported

    @pytest.mark.parametrize(
        ("rows", "kind", "fails"),
        [
            ([("b1.png", "class0", "train")], "repeated", False),
            ([("b1.png", "class2", "train")], "two_labels", True),
            ([("b1.png", "class4", "test")], "across", True),
            ([("b1.png", "v", "validation")], "across", True),
            ([("b10.png", "class3", "test")], "repeated", False),
            ([("b10.png", "class5", "test")], "two_labels", True),
        ],
    )
    def test_copies(self, tmp_path, rows, kind, fails):
        result = check(dc.read(write(tmp_path, GOOD + rows)))
        assert kinds(result) == [kind] and result.ok is not fails and result.findings[0].fails is fails
        (group,) = result.findings[0].groups
        assert {image.path[1:] for image in group} == {rows[0][0][1:]} and len(group) == 2
        assert result.near == (), "exact copies are no near ones"

    def test_copies_in_other_formats(self, tmp_path):
        table = write(tmp_path, GOOD)
        picture(1).save(tmp_path / "other.webp", lossless=True)
        with table.open("a") as file:
            file.write("other.webp,class2,train\n")
        assert paths(check(dc.read(table)).copies) == [["a1.png", "other.webp"]]

    def test_near_copies_are_shown_and_do_not_fail(self, tmp_path):
        table = write(tmp_path, GOOD)
        picture(1).resize((80, 80), Image.Resampling.BICUBIC).save(tmp_path / "large.png")
        picture(2).resize((80, 80), Image.Resampling.BICUBIC).save(tmp_path / "larger.png")
        with table.open("a") as file:
            file.write("larger.png,class0,train\nlarge.png,class4,test\n")
        result = check(dc.read(table))
        assert result.ok and kinds(result) == ["near"]
        assert sorted(paths(result.near)) == [["a1.png", "large.png"], ["a2.png", "larger.png"]]
        assert result.findings[0].text.startswith("2 groups look nearly the same, 1 of them across")
        assert paths(result.findings[0].groups)[0] == ["a1.png", "large.png"], "the doubtful one is shown first"
        without = check(dc.read(table), near=False)
        assert without.near is None and without.findings == ()

    def test_two_boxes_in_one_image_are_two_images(self, tmp_path):
        wide = Image.new("RGB", (80, 40))
        wide.paste(picture(1), (0, 0))
        wide.paste(picture(2), (40, 0))
        rows = [(*row, "", "", "", "") for row in GOOD]
        rows += [
            ("w99.png", "class0", "train", "0", "0", "40", "40"),
            ("w99.png", "class4", "test", "40", "0", "80", "40"),
        ]
        (tmp_path / "d").mkdir()
        wide.save(tmp_path / "d" / "w99.png")
        result = check(dc.read(write(tmp_path / "d", rows, "path,label,split,x_1,y_1,x_2,y_2")))
        assert paths(result.repeated) == [["a1.png", "w99.png"]]
        assert paths(result.across) == [["a2.png", "w99.png"]]

    def test_a_row_that_is_query_and_gallery_is_one_image(self, tmp_path):
        rows = [(*row, "", "") for row in GOOD[:9]]
        rows += [(*row, str(i % 3 < 2), str(i % 3 > 0)) for i, row in enumerate(GOOD[9:])]
        data = dc.read(write(tmp_path, rows, "path,label,split,is_query,is_gallery"))
        assert data.protocol == "query-gallery"
        result = check(data)
        assert result.findings == () and [part.part for part in result.parts] == ["train", "query", "gallery"]
        (tmp_path / "a10.png").unlink()
        (image,) = check(data).unreadable
        assert image.parts == ("query", "gallery")

    def test_a_result_is_json(self, tmp_path):
        import json

        result = check(dc.read(write(tmp_path, [*GOOD, ("b1.png", "class4", "test")])))
        report = json.loads(json.dumps(result.to_dict()))
        assert report["ok"] is False and report["fails"] == ["across"]
        assert report["copies"][0][0]["row"] == 1 and report["parts"][0]["images"] == 9


def vector_set(vectors, labels, start: int) -> LabeledSet:
    vectors = np.asarray(vectors, np.float32).reshape(len(labels), -1)
    rows = np.arange(start, start + len(labels))
    names = tuple("abcdefgh")
    return LabeledSet(
        np.asarray(labels, np.int64), names, pa.array([f"row {r}" for r in rows]), rows, "v.parquet", vectors=vectors
    )


class TestVectors:
    def test_zeros_and_copies(self):
        train = vector_set([[1, 2], [1, 2], [0, 3], [0, -0.0], [5, 5], [6, 6]], [0, 0, 0, 1, 1, 1], 0)
        test = vector_set([[7, 7], [8, 8], [-0.0, 3], [9, 9]], [2, 2, 3, 3], 6)
        result = check(Benchmark("v", train, test, test))
        assert result.things == "vectors" and kinds(result) == ["zeros", "across", "repeated"] and result.near is None
        assert [image.row for image in result.zeros] == [3]
        assert [[image.row for image in group] for group in result.copies] == [[0, 1], [2, 8]]
        assert [finding.fails for finding in result.findings] == [True, True, False]

    @given(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=8, max_size=40),
        st.lists(st.tuples(st.integers(0, 4), st.integers(4, 7)), min_size=8, max_size=40),
    )
    @settings(max_examples=60, deadline=None)
    def test_what_is_cleaned_is_clean_and_no_more_is_left_out(self, train, test):
        """Vectors of few values, so that zeros and copies of every kind come about."""
        sets = []
        for start, rows in ((0, train), (1000, test)):
            # Beside each drawn vector stand two of its class that are nobody's copy.
            values = [(value, -1) for value, _ in rows] + [(start + i, 9) for i in range(2 * len(rows))]
            labels = [label for _, label in rows] + [rows[i // 2][1] for i in range(2 * len(rows))]
            values = [(0, 0) if value == (0, -1) else value for value in values]
            sets.append(vector_set(values, labels, start))
        if any(part.num_classes < 2 for part in sets):
            return
        data = Benchmark("v", sets[0], sets[1], sets[1])
        clean, left_out = cleaned(data, check(data))
        again = check(clean)
        assert again.ok and again.copies == () and again.zeros == ()
        assert not [part for part in again.parts if part.part == "train" and part.single]
        assert len(clean.train) + len(clean.query) + len(left_out) == len(data.train) + len(data.query)
        # Oracle: each value on its own.
        by_value: dict[tuple, list[tuple[str, int]]] = {}
        for part, images in zip(("train", "test"), sets, strict=True):
            for vector, label in zip(images.vectors.tolist(), images.labels.tolist(), strict=True):
                by_value.setdefault(tuple(vector), []).append((part, label))
        kept = {"train": 0, "test": 0}
        for vector, where in by_value.items():
            side = "test" if ("test" in dict(where)) else "train"
            if any(vector) and len({label for part, label in where if part == side}) == 1:
                kept[side] += 1
        assert (len(clean.train), len(clean.query)) == (kept["train"], kept["test"])

    def test_written_and_read_back(self, tmp_path):
        train = vector_set([[1, 2], [1, 2], [4, 3], [0, 0], [5, 5], [6, 6]], [0, 0, 0, 1, 1, 1], 0)
        test = vector_set([[7, 7], [8, 8], [4, 3], [9, 9]], [2, 2, 3, 3], 7)
        data = Benchmark("v", train, test, test)
        with pytest.raises(DataError, match="train has 1 class, 1 of them with two"):
            cleaned(data, check(data))
        train = vector_set([[1, 2], [1, 2], [4, 3], [0, 0], [5, 5], [6, 6], [2, 1]], [0, 0, 0, 1, 1, 1, 0], 0)
        data = Benchmark("v", train, test, test)
        clean, left_out = cleaned(data, check(data))
        assert {out.reason for out in left_out} == {
            "a vector of zeros", "the same as v.parquet row 0", "the same as v.parquet row 9 of test"}  # fmt: skip
        with pytest.raises(ConfigError, match=r"the data is vectors, which a CSV cannot hold; .* \.parquet"):
            write_table(tmp_path / "out.csv", clean)
        write_table(tmp_path / "out.parquet", clean)
        back = dc.read(tmp_path / "out.parquet")
        assert back.train.vectors.tolist() == [[1, 2], [5, 5], [6, 6], [2, 1]]
        assert back.query.vectors.tolist() == test.vectors.tolist() and check(back).ok


class TestClean:
    def clean(self, table: Path, out: Path, **options) -> tuple[Benchmark, dict[str, str]]:
        data = dc.read(table, check_files=False, **options)
        clean, left_out = cleaned(data, check(data))
        write_table(out, clean)
        back = dc.read(out)
        result = check(back, near=False)
        assert result.ok and result.copies == ()
        return back, {Path(gone.where.split(": ")[-1]).name: gone.reason for gone in left_out}

    @pytest.mark.parametrize("out", ["clean.csv", "deeper/clean.csv", "clean.parquet", "../clean.csv"])
    def test_a_table_of_paths_reads_back_from_anywhere(self, tmp_path, out):
        rows = [*GOOD, ("b1.png", "class0", "train"), ("b2.png", "class2", "train"), ("b3.png", "class4", "test")]
        rows += [("a30.png", "alone", "train"), ("a31.png", "v", "validation"), ("b10.png", "class3", "test")]
        table = write(tmp_path / "here", rows)
        (tmp_path / "here" / "a6.png").write_bytes(b"")
        back, gone = self.clean(table, tmp_path / "here" / out)
        assert gone["a6.png"] == "this image does not decode (the file is empty)"
        assert gone["b1.png"].startswith("the same as ") and gone["b1.png"].endswith("a1.png")
        assert gone["a2.png"].startswith("also under the label 'class2': ")
        assert gone["b2.png"].startswith("also under the label 'class0': ")
        assert gone["a3.png"].endswith("b3.png of test")
        assert gone["a30.png"] == "the only image left of its class in train"
        assert gone["b10.png"].endswith("a10.png")
        assert len(gone) == 7
        assert len(back.query) == 10, "the test keeps its copy of what was in train"
        assert back.validation.label_name(0) == "v"
        assert [back.train.label_name(i) for i in range(len(back.train))] == [
            "class0",
            "class0",
            *["class1"] * 2,
            *["class2"] * 2,
        ]
        for part in (back.train, back.validation, back.query):
            assert all(
                np.array_equal(part.open(i), picture(int(Path(part.path(i)).stem[1:]))) for i in range(len(part))
            )
        below = [Path(path).is_absolute() for path in back.query.paths.to_pylist()]
        assert not any(below) if out in ("clean.csv", "../clean.csv", "clean.parquet") else all(below)

    def test_a_copy_in_validation_stays_there_and_goes_from_train(self, tmp_path):
        rows = [*GOOD, ("b1.png", "v", "validation"), ("a30.png", "v", "validation"), ("b30.png", "class4", "test")]
        back, gone = self.clean(write(tmp_path, rows), tmp_path / "clean.csv")
        assert set(gone) == {"a1.png", "a30.png"} and len(back.validation) == 1

    def test_a_folder(self, tmp_path):
        for path, label, split in GOOD:
            (tmp_path / "f" / split / label).mkdir(parents=True, exist_ok=True)
            picture(int(path[1:-4])).save(tmp_path / "f" / split / label / path)
        (tmp_path / "f" / "test" / "class3" / "a9.png").write_bytes(b"<html>")
        data = dc.read(tmp_path / "f")
        clean, (gone,) = cleaned(data, check(data))
        write_table(tmp_path / "f.csv", clean)
        back = dc.read(tmp_path / "f.csv")
        assert back.split_hash != data.split_hash and len(back.query) == 8 and len(back.train) == 9
        assert gone.where == str(tmp_path / "f" / "test" / "class3" / "a9.png")
        assert back.query.path(0) == "f/test/class3/a10.png"

    def test_names_that_need_quotes(self, tmp_path):
        table = write(tmp_path, GOOD)
        odd = ['comma, "quote"', "semi;colon", "line\nbreak", "#tab\t", "ünïcode"]
        data = dc.read(table)
        for i, name in enumerate(odd):
            (tmp_path / f"{name}.png").write_bytes((tmp_path / f"a{i}.png").read_bytes())
        names = [f"{name}.png" for name in odd] + data.train.paths.to_pylist()[len(odd) :]
        labels = tuple(f'{name}, "{i};' for i, name in enumerate(data.train.label_names))
        data = replace(
            data,
            train=replace(data.train, paths=pa.array(names), label_names=labels),
            query=replace(data.query, label_names=labels),
        )
        data = replace(data, gallery=data.query)
        write_table(tmp_path / "clean.csv", data)
        back = dc.read(tmp_path / "clean.csv")
        assert back.train.paths.to_pylist() == names
        assert [back.train.label_name(i) for i in range(9)] == [labels[i // 3] for i in range(9)]

    def test_query_gallery_camera_sequence_and_box_are_kept(self, tmp_path):
        columns = "path,label,split,is_query,is_gallery,camera,sequence,x_1,y_1,x_2,y_2"
        rows = [(*row, "", "", "", "", "", "", "", "") for row in GOOD[:9]]
        rows += [
            (
                *row,
                str(i % 3 == 0),
                str(i % 3 > 0),
                f"cam{i % 2}" if i else "",
                f"s{i}" if i % 4 else "",
                "1",
                "2",
                "30",
                "40",
            )
            for i, row in enumerate(GOOD[9:])
        ]
        # A gallery copy of a query, and the other way round.
        box = ("1", "2", "30", "40")
        rows += [("b9.png", "class3", "test", "False", "True", "cam1", "", *box)]
        rows += [("b13.png", "class4", "test", "True", "False", "cam1", "", *box)]
        table = write(tmp_path, rows, columns)
        before = dc.read(table)
        back, gone = self.clean(table, tmp_path / "clean.csv")
        assert set(gone) == {"b9.png", "a13.png"}, "the query stays, and is in the gallery too"
        assert back.protocol == "query-gallery"
        queries, gallery = back.query.paths.to_pylist(), back.gallery.paths.to_pylist()
        assert sorted(queries) == ["a12.png", "a15.png", "a9.png", "b13.png"]
        assert sorted(gallery) == sorted(["a9.png", "b13.png", *(f"a{i}.png" for i in (10, 11, 14, 16, 17))])
        assert set(back.query.rows[[queries.index(n) for n in ("a9.png", "b13.png")]]) < set(back.gallery.rows)
        old = before.gallery.paths.to_pylist()
        for name in ("a10.png", "a14.png", "a17.png"):
            i, j = old.index(name), gallery.index(name)
            assert before.gallery.boxes[i].tolist() == back.gallery.boxes[j].tolist() == [1, 2, 30, 40]
        same = lambda codes: np.equal.outer(codes, codes)  # noqa: E731
        keep = [old.index(name) for name in gallery if name in old]
        here = [gallery.index(name) for name in gallery if name in old]
        assert (same(before.gallery.cameras[keep]) == same(back.gallery.cameras[here])).all()
        assert ((before.gallery.groups[keep] < 0) == (back.gallery.groups[here] < 0)).all()
        assert (back.train.boxes < 0).all()

    @pytest.mark.parametrize("with_path", [True, False])
    def test_encoded_images(self, tmp_path, with_path):
        rows = [*GOOD, ("b1.png", "class4", "test")]
        content = []
        for name, *_ in rows:
            buffer = io.BytesIO()
            picture(int(name[1:-4])).save(buffer, "PNG")
            content.append(buffer.getvalue())
        content[4] = b""
        columns = {"path": [r[0] for r in rows]} if with_path else {}
        columns |= {"label": [r[1] for r in rows], "split": [r[2] for r in rows], "image": content}
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        data = dc.read(tmp_path / "t.parquet")
        clean, left_out = cleaned(data, check(data))
        assert [gone.where.split(" row ")[1].split(":")[0] for gone in left_out] == ["4", "1"]
        with pytest.raises(ConfigError, match=r"the images are bytes in a table, .* ends in \.parquet"):
            write_table(tmp_path / "out.csv", clean)
        write_table(tmp_path / "out.parquet", clean)
        back = dc.read(tmp_path / "out.parquet")
        kept = [i for i in range(9) if i not in (1, 4)]
        assert [np.array_equal(back.train.open(j), picture(i)) for j, i in enumerate(kept)] == [True] * 7
        assert len(back.query) == 10 and check(back).ok
        if with_path:
            assert back.train.paths.to_pylist() == [f"a{i}.png" for i in kept]

    def test_names_that_cannot_be_written(self, tmp_path):
        data = dc.read(write(tmp_path, GOOD))
        with pytest.raises(ConfigError, match=r"ends in \.csv or \.parquet"):
            write_table(tmp_path / "out.txt", data)
        with pytest.raises(ConfigError, match="this is the table that is read"):
            write_table(tmp_path / "t.csv", data)

    def test_too_little_is_left(self, tmp_path):
        rows = [(name, f"t{i}" if i < 9 else label, split) for i, (name, label, split) in enumerate(GOOD)]
        rows += [(f"b{i}.png", f"t{i}", "train") for i in range(9)]
        data = dc.read(write(tmp_path, rows))
        with pytest.raises(DataError, match="no class of train would be left with two images"):
            cleaned(data, check(data))
