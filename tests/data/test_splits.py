"""Splits of data that come without one, closed sets, and splits of the data's own that share classes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.data.benchmark import Benchmark, folds_of
from divcon.data.check import check
from divcon.data.clean import write_table
from divcon.data.pack import pack
from divcon.data.splitting import place_of
from divcon.errors import ConfigError, DataError


def classes_of(images: dc.LabeledSet) -> set[str]:
    return {images.label_names[c] for c in images.classes}


def paths_of(images: dc.LabeledSet) -> set[str]:
    return set(images.paths.to_pylist())


def vectors(labels: list[str], **columns: list) -> dict:
    rng = np.random.default_rng(0)
    return {"embedding": rng.normal(size=(len(labels), 3)).astype(np.float32), "label": labels, **columns}


def pairs(names: list[str], count: int = 2) -> list[str]:
    return [name for name in names for _ in range(count)]


NAMES = [f"product {i}" for i in range(200)]


class TestDrawnClasses:
    def test_a_class_is_test_where_its_hash_is_below_the_fraction(self) -> None:
        for options, fraction in (({}, 0.2), ({"test_fraction": 0.5}, 0.5), ({"test_fraction": 0.05}, 0.05)):
            data = dc.read(vectors(pairs(NAMES)), **options)
            assert classes_of(data.query) == {name for name in NAMES if place_of(name) < fraction}
            assert classes_of(data.train) == set(NAMES) - classes_of(data.query)
            assert data.query is data.gallery and data.protocol == "leave-one-out"
            assert data.splitting == {"test_fraction": fraction}
            assert abs(data.query.num_classes / len(NAMES) - fraction) < 0.1

    def test_the_hash_is_the_same_in_every_version(self) -> None:
        assert place_of("product 0") == pytest.approx(PLACE, abs=0)

    def test_a_class_stays_on_its_side_when_others_are_added_or_leave(self) -> None:
        whole = dc.read(vectors(pairs(NAMES)))
        some = dc.read(vectors(pairs(NAMES[50:150][::-1], 3)))
        assert classes_of(some.query) == classes_of(whole.query) & set(NAMES[50:150])
        assert len(classes_of(some.query)) > 5

    def test_both_sides_have_two_classes_with_a_pair(self) -> None:
        for count in range(4, 12):
            for start in range(0, 60, 4):
                names = NAMES[start : start + count]
                for fraction in (0.01, 0.2, 0.99):
                    data = dc.read(vectors([*pairs(names), "alone"]), test_fraction=fraction)
                    for side in (data.train, data.query):
                        assert (np.bincount(side.labels) >= 2).sum() >= 2
        lowest = sorted(names, key=place_of)[:2]
        assert classes_of(dc.read(vectors(pairs(names)), test_fraction=1e-9).query) == set(lowest)

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            (pairs(NAMES[:3]), "3 classes; without a split, train and test need two classes each"),
            ([*pairs(NAMES[:3]), "alone"], "4 classes; .* and 3 have them: give at least four, or a split"),
            (["one"], "1 class; without a split"),
        ],
    )
    def test_too_few_classes(self, labels: list[str], said: str) -> None:
        with pytest.raises(DataError, match=said):
            dc.read(vectors(labels))

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan"), 2])
    def test_a_fraction_out_of_bounds(self, fraction: float) -> None:
        with pytest.raises(ConfigError, match=r"`test_fraction` .*: must be between 0 and 1") as caught:
            dc.read(vectors(pairs(NAMES)), test_fraction=fraction)
        assert caught.value.field == "test_fraction"
        with pytest.raises(ConfigError, match=r"must be between 0 and 1"):
            dc.DataConfig(test_fraction=fraction)

    def test_folders_tables_and_columns_draw_the_same(self, make_images, tmp_path: Path) -> None:
        files = [f"{name}/{i}.png" for name in NAMES[:20] for i in (1, 2)]
        root = make_images(files)
        folder = dc.read(root)
        with (root / "table.csv").open("w") as file:
            rows = csv.writer(file)
            rows.writerows([("path", "label"), *((path, path.split("/")[0]) for path in files)])
        table = dc.read(root / "table.csv")
        columns = dc.read(vectors(pairs(NAMES[:20])))
        assert classes_of(folder.query) == classes_of(table.query) == classes_of(columns.query)
        assert (
            "the folder has no split: a share of 0.2 (`test_fraction`) of the classes by a hash of their names"
            in (folder.notes[-1])
        )
        assert folder.split_hash == table.split_hash

    def test_named_data_sets_keep_their_rule(self) -> None:
        with pytest.raises(ConfigError, match=r"demo: takes no `test_fraction`"):
            dc.read("demo", test_fraction=0.5)

    def test_a_row_twice_is_one_image(self) -> None:
        columns = vectors(pairs(NAMES[:8], 3), path=[f"{i // 2}" for i in range(24)])
        columns["label"] = [NAMES[i // 4] for i in range(24)]
        data = dc.read(columns)
        assert len(data.train) + len(data.query) == 12
        assert any("left out: 12 rows with the path of an earlier row" in note for note in data.notes)


PLACE = 0.8827759784584351
PRODUCTS = [f"shirt {i}" for i in range(60)]
VARIANTS = [(f"{product} {colour}", product) for product in PRODUCTS for colour in ("red", "blue", "green")]


def variants() -> dict:
    rows = [row for row in VARIANTS for _ in range(3)]
    return vectors([label for label, _ in rows], product=[product for _, product in rows])


def product_of(images: dc.LabeledSet) -> set[str]:
    return {name.rpartition(" ")[0] for name in classes_of(images)}


class TestGroups:
    def test_variants_of_a_product_stay_together(self) -> None:
        without = dc.read(variants())
        assert product_of(without.train) & product_of(without.query)
        data = dc.read(variants(), group="product")
        assert not product_of(data.train) & product_of(data.query)
        assert product_of(data.query) == {product for product in PRODUCTS if place_of(product) < 0.2}
        assert "by a hash of their `group` product" in data.notes[-1]

    def test_also_in_validation_and_in_folds(self) -> None:
        data = dc.read(variants(), group="product")
        for seed in range(5):
            held = data.with_validation(0.1, seed)
            assert held.validation is not None and held.validation.num_classes >= round(0.1 * data.train.num_classes)
            assert not product_of(held.train) & product_of(held.validation)
            assert len(held.train) + len(held.validation) == len(data.train)
            folds = folds_of(data, 4, seed)
            assert sum(len(fold.validation) for fold in folds) == len(data.train)
            for fold in folds:
                assert not product_of(fold.train) & product_of(fold.validation)
        assert sorted(paths_of(data.with_validation(0.1, 0).validation)) != sorted(
            paths_of(data.with_validation(0.1, 1).validation)
        )

    def test_a_csv_and_a_folder_of_tables(self, make_images) -> None:
        root = make_images([f"{label}.{i}.png" for label, _ in VARIANTS[:36] for i in (1, 2)])
        rows = [(f"{label}.{i}.png", label, product) for label, product in VARIANTS[:36] for i in (1, 2)]
        with (root / "metadata.csv").open("w") as file:
            csv.writer(file).writerows([("file_name", "label", "product"), *rows])
        for where in (root, root / "metadata.csv"):
            data = dc.read(where, group="product")
            assert not product_of(data.train) & product_of(data.query)
            assert len(data.train) + len(data.query) == 72

    def test_classes_that_a_chain_of_values_joins(self) -> None:
        labels = pairs(["a", "b", "c", *NAMES[:9]], 2)
        chain = ["x", "x", "x", "y", "y", "y", *[""] * 18]
        for fraction in (0.1, 0.5, 0.9):
            data = dc.read(vectors(labels, brand=chain), group="brand", test_fraction=fraction)
            sides = [{"a", "b", "c"} & classes_of(side) for side in (data.train, data.query)]
            assert sorted(map(len, sides)) == [0, 3]

    def test_a_class_without_a_value_is_a_group_of_its_own(self) -> None:
        data = dc.read(vectors(pairs(NAMES), brand=[None, *["x"] * 3, *[" "] * 396]), group="brand")
        assert classes_of(data.query) - {NAMES[0], NAMES[1]} == {name for name in NAMES[2:] if place_of(name) < 0.2}

    def test_one_group_of_everything(self) -> None:
        with pytest.raises(DataError, match=r"200 classes in 1 group, .* use a `group` with more values"):
            dc.read(vectors(pairs(NAMES), brand=["x"] * 400), group="brand")
        data = dc.read(vectors(pairs(NAMES[:8]), brand=["x"] * 12 + ["y"] * 4), group="brand")
        assert {data.train.num_classes, data.query.num_classes} == {6, 2}
        with pytest.raises(DataError, match=r"in 1 group, too few to hold two classes out for validation"):
            replace(data, train=data.query, query=data.train, gallery=data.train).with_validation() if (
                data.train.num_classes == 2
            ) else data.with_validation()

    def test_no_such_column(self, make_images) -> None:
        with pytest.raises(DataError, match=r"`group` prodct: there is no such column .* there are: .*product"):
            dc.read(variants(), group="prodct")
        with pytest.raises(DataError, match=r"`group` brand: the column is empty in all rows"):
            dc.read(vectors(pairs(NAMES), brand=[""] * 400), group="brand")
        with pytest.raises(ConfigError, match=r"`group` product: .* is a folder of images, which has no columns"):
            dc.read(make_images([f"{name}/{i}.png" for name in "abcd" for i in (1, 2)]), group="product")
        with pytest.raises(ConfigError, match=r"`group` product with `protocol=closed`"):
            dc.read(variants(), group="product", protocol="closed")

    def test_a_split_of_the_data_that_divides_groups_is_noted(self) -> None:
        columns = variants()
        columns["split"] = ["test" if label.endswith("red") else "train" for label in columns["label"]]
        data = dc.read(columns, group="product")
        assert any("the split divides 60 groups between train and test" in note for note in data.notes)
        held = data.with_validation(0.2, 0)
        assert not product_of(held.train) & product_of(held.validation)


def closed_columns(extra: list[tuple[str, str]] = ()) -> dict:
    """10 classes with 6 train and 2 test rows each."""
    rows = [(name, split) for name in NAMES[:10] for split in ["train"] * 6 + ["test"] * 2]
    rows += extra
    return vectors([label for label, _ in rows], split=[split for _, split in rows])


class TestClosedSets:
    def check(self, data: Benchmark, train: int, test: int) -> None:
        assert data.closed and data.protocol == "closed-set"
        assert data.gallery is data.train and len(data.train) == train and len(data.query) == test
        assert not set(data.train.rows) & set(data.query.rows)
        assert list(data.parts) == ["train", "test"] and data.parts["test"] is data.query
        assert any(note.startswith("a closed set: train and test have the same classes") for note in data.notes)

    def test_train_and_test_of_the_same_classes(self) -> None:
        self.check(dc.read(closed_columns()), 60, 20)

    def test_a_folder(self, make_images) -> None:
        paths = [f"{part}/{c}/{i}{part}.png" for c in "abcd" for part in ("train", "test") for i in (1, 2, 3)]
        self.check(dc.read(make_images(paths)), 12, 12)

    def test_one_parquet_a_split(self, tmp_path: Path) -> None:
        for split, count in (("train", 5), ("test", 3)):
            columns = vectors(pairs(NAMES[:6], count))
            pq.write_table(
                pa.table({"label": columns["label"], "embedding": list(columns["embedding"])}),
                tmp_path / f"{split}-00000-of-00001.parquet",
            )
        self.check(dc.read(tmp_path), 30, 18)

    def test_classes_that_only_train_are_in_the_gallery(self) -> None:
        self.check(dc.read(closed_columns([("only train", "train")] * 3)), 63, 20)

    def test_it_never_has_the_hash_of_an_open_set(self) -> None:
        data = dc.read(closed_columns())
        as_open = Benchmark("x", data.train.subset(np.empty(0, np.int64)), data.query, data.gallery)
        assert as_open.protocol == "query-gallery" and as_open.split_hash != data.split_hash

    def test_the_gallery_that_a_table_names(self) -> None:
        columns = closed_columns()
        test = [split == "test" for split in columns["split"]]
        second = [is_test and i % 2 == 1 for i, is_test in enumerate(test)]
        columns |= {"is_query": [a and not b for a, b in zip(test, second, strict=True)], "is_gallery": second}
        data = dc.read(columns)
        assert data.protocol == "closed-set" and len(data.query) == len(data.gallery) == 10
        assert list(data.parts) == ["train", "query", "gallery"]

    def test_an_image_in_both(self) -> None:
        columns = closed_columns()
        columns["path"] = [str(i) for i in range(79)] + ["0"]
        columns["label"] = [*columns["label"][:-1], columns["label"][0]]
        with pytest.raises(DataError, match=r"1 image is both in train and in test, for example table row 0: 0"):
            dc.read(columns)

    def test_it_is_drawn_from_data_without_a_split(self) -> None:
        labels = [*pairs(NAMES[:30], 10), *pairs(["two"], 2), *pairs(["three"], 3), "one"]
        paths = [f"{i}.jpg" for i in range(len(labels))]
        data = dc.read(vectors(labels, path=paths), protocol="closed")
        self.check(data, len(data.train), len(labels) - len(data.train))
        tested = np.bincount(data.query.labels, minlength=len(data.query.label_names))
        names = data.query.label_names
        assert tested[names.index("two")] == tested[names.index("one")] == 0 and tested[names.index("three")] == 1
        assert tested[[names.index(name) for name in NAMES[:30]]].min() >= 1
        assert abs(len(data.query) / len(labels) - 0.2) < 0.06
        # An image stays on its side when others are added.
        more = dc.read(vectors([*labels, *pairs(["new"], 5)], path=[*paths, *"abcde"]), protocol="closed")
        assert paths_of(data.query) == {path for path in paths_of(more.query) if path.endswith(".jpg")}
        half = dc.read(vectors(labels, path=paths), protocol="closed", test_fraction=0.5)
        assert paths_of(data.query) < paths_of(half.query)
        with pytest.raises(ConfigError, match=r"`test_fraction=None` with `protocol=closed`"):
            dc.read(vectors(labels), protocol="closed", test_fraction=None)

    def test_too_few_images_of_each_class(self) -> None:
        with pytest.raises(DataError, match=r"no class has three images or more.*leave `protocol=closed` out"):
            dc.read(vectors(pairs(NAMES[:30], 2)), protocol="closed")

    def test_validation_holds_images_out(self) -> None:
        labels = [*pairs(NAMES[:20], 9), *pairs(["two"], 2), "one"]
        data = dc.read(vectors(labels), protocol="closed")
        held = data.with_validation(0.1, 0)
        assert len(held.validation) == round(0.1 * len(data.train))
        assert not set(held.validation.rows) & set(held.train.rows) and held.gallery is data.gallery
        assert np.bincount(held.train.labels)[data.train.label_names.index("two")] == 2
        task = held.validation_task
        assert isinstance(task, Benchmark) and task.query is held.validation and task.gallery is held.train
        assert held.split_hash == data.split_hash and list(held.parts) == ["train", "validation", "test"]
        whole = data.with_validation(0.99, 0)
        assert set(np.bincount(whole.train.labels)) <= {0, 1, 2}
        assert set(data.with_validation(0.1, 0).validation.rows) == set(held.validation.rows)
        assert set(data.with_validation(0.1, 1).validation.rows) != set(held.validation.rows)
        small = dc.read(closed_columns() | {"split": (["train"] * 2 + ["test"] * 6) * 10})
        with pytest.raises(DataError, match=r"no train class has three images or more"):
            small.with_validation()

    def test_folds_hold_images_out(self) -> None:
        data = dc.read(closed_columns())
        folds = folds_of(data, 3, 0)
        assert sorted(np.concatenate([fold.validation.rows for fold in folds])) == sorted(data.train.rows)
        for fold in folds:
            assert np.bincount(fold.train.labels).min() >= 2 and fold.closed

    def test_validation_of_the_data(self) -> None:
        data = dc.read(closed_columns([(name, "val") for name in NAMES[:10]]))
        assert len(data.validation) == 10 and data.with_validation() is data
        assert len(data.without_validation().train) == 70 and len(data.gallery) == 60

    def test_packed_cleaned_and_back(self, make_images, tmp_path: Path) -> None:
        paths = [f"{part}/{c}/{i}{part}.png" for c in "abcd" for part in ("train", "test") for i in (1, 2, 3)]
        data = dc.read(make_images(paths))
        back = dc.read(pack(data, tmp_path / "packed"))
        assert back.protocol == "closed-set" and back.gallery is back.train and back.has_split(data.split_hash)
        write_table(tmp_path / "images" / "clean.csv", data)
        again = dc.read(tmp_path / "images" / "clean.csv")
        assert again.protocol == "closed-set" and len(again.query) == 12 and again.split_hash == data.split_hash

    def test_a_pack_that_shares_some_classes(self, make_images, tmp_path: Path) -> None:
        paths = [f"{part}/{c}/{i}{part}.png" for c in "abcd" for part in ("train", "test") for i in (1, 2, 3)]
        data = dc.read(make_images([*paths, "test/e/1.png"]), protocol="closed")
        back = dc.read(pack(data, tmp_path / "packed"))
        assert back.has_split(data.split_hash) and len(back.query) == 13

    def test_check_compares_train_with_test_once(self, make_images) -> None:
        paths = [f"{part}/{c}/{i}{part}.png" for c in "abcd" for part in ("train", "test") for i in (1, 2, 3)]
        root = make_images(paths)
        result = check(dc.read(root), near=False)
        assert [part.part for part in result.parts] == ["train", "test"] and result.ok, result.findings
        (root / "test" / "a" / "1test.png").write_bytes((root / "train" / "a" / "1train.png").read_bytes())
        assert not check(dc.read(root), near=False).ok


class TestSharedClasses:
    SHARED = pairs(["new 1", "new 2"], 3)

    def columns(self) -> dict:
        return closed_columns([(name, "test") for name in self.SHARED])

    def test_some_are_refused_with_both_ways_out(self) -> None:
        with pytest.raises(DataError) as caught:
            dc.read(self.columns())
        message = str(caught.value)
        assert "10 classes are both in train and in test, of 12 test classes and 10 train classes" in message
        assert "for example 'product 0' (table row 0; table row 6)" in message
        assert "`protocol=open`" in message and "`protocol=closed`" in message

    def test_open_leaves_them_out_of_test(self) -> None:
        data = dc.read(self.columns(), protocol="open")
        assert data.protocol == "leave-one-out" and classes_of(data.query) == {"new 1", "new 2"}
        assert len(data.train) == 60
        assert any("left out of test: 20 images of 10 classes that train" in note for note in data.notes)

    def test_closed_has_queries_without_a_match(self) -> None:
        data = dc.read(self.columns(), protocol="closed")
        assert data.closed and len(data.query) == 26
        assert any("6 queries without a match" in note for note in data.notes)

    def test_open_of_a_closed_set_leaves_nothing(self) -> None:
        with pytest.raises(DataError, match=r"all 10 classes of test are in train too.*`ignore_split=True`"):
            dc.read(closed_columns(), protocol="open")

    def test_the_split_can_be_ignored(self) -> None:
        data = dc.read(closed_columns(), ignore_split=True)
        assert data.protocol == "leave-one-out" and len(data.train) + len(data.query) == 80
        assert not classes_of(data.train) & classes_of(data.query)
        assert any("the split of the data is ignored" in note for note in data.notes)
        assert data.splitting == {"test_fraction": 0.2, "ignore_split": True}

    def test_so_can_that_of_folders(self, make_images) -> None:
        root = make_images([f"{part}/{c}/{i}.png" for c in "abcdef" for part in ("train", "test") for i in (1, 2)])
        data = dc.read(root, ignore_split=True)
        assert classes_of(data.query) == {name for name in "abcdef" if place_of(name) < 0.2}
        assert len(data.query) == 4 * data.query.num_classes and len(data.train) + len(data.query) == 24

    def test_closed_where_no_class_is_shared(self) -> None:
        columns = vectors(pairs(NAMES[:8]), split=["train"] * 8 + ["test"] * 8)
        with pytest.raises(DataError, match=r"train and test share no class"):
            dc.read(columns, protocol="closed")

    def test_validation_of_train_classes_in_an_open_set(self) -> None:
        columns = vectors(pairs(NAMES[:10], 4), split=(["train"] * 3 + ["val"]) * 5 + ["test"] * 20)
        with pytest.raises(DataError, match=r"5 classes are both in validation and in train.*`protocol=open`"):
            dc.read(columns)
        data = dc.read(columns, protocol="open")
        assert data.validation is None and len(data.train) == 15 and len(data.query) == 20

    def test_a_fraction_for_data_with_a_split(self, make_images) -> None:
        with pytest.raises(ConfigError, match=r"`test_fraction` 0.3: .* has a split of its own \(the column split\)"):
            dc.read(closed_columns(), test_fraction=0.3)
        root = make_images([f"{part}/{c}/{i}.png" for c in "ab" for part in ("train", "test") for i in (1, 2)])
        with pytest.raises(ConfigError, match=r"has a split of its own \(the folders test, train\)"):
            dc.read(root, test_fraction=0.3)
        dc.read(closed_columns(), test_fraction=None)  # as older runs have it

    def test_published_sets_are_never_closed(self, few: Benchmark) -> None:
        with pytest.raises(DataError, match="both in train and in query"):
            Benchmark("few", few.train, few.train, few.train)


class TestOnAll:
    def test_it_trains_on_every_image_once(self) -> None:
        for columns in (vectors(pairs(NAMES)), closed_columns()):
            data = dc.read(columns)
            every = data.with_validation().on_all()
            assert every.for_use and every.validation is None and every.split_hash == data.split_hash
            assert sorted(every.train.rows) == list(range(len(columns["label"])))
            assert len(every.train.paths) == len(every.train) and list(every.parts) == ["train"]
            names = [every.train.label_name(i) for i in range(len(every.train))]
            assert names == [columns["label"][row] for row in every.train.rows]

    def test_distractors_and_junk_stay_out(self, trees, tmp_path: Path) -> None:
        root = trees.write_market1501(tmp_path / "market", **trees.SMALL["market1501"], put=trees.draw)
        data = dc.read("market1501", root)
        every = data.on_all()
        assert not {"-1", "0000"} & classes_of(every.train)
        assert classes_of(every.train) == classes_of(data.train) | classes_of(data.query)

    def test_sets_of_two_sources(self, few: Benchmark) -> None:
        other = replace(few.query, source="elsewhere")
        with pytest.raises(DataError, match=r"`train_on=all` needs one table or folder"):
            Benchmark("two", few.train, other, other).on_all()
