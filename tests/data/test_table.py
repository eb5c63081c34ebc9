"""Tables of images: every column, every format, and errors that name file and line."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.data import encoded as encoded_images
from divcon.data.readers import table as table_module
from divcon.data.readers.table import images_in_table, read_table
from divcon.errors import DataError, ImageError

PAIRS = [f"{c}{i}.png,{c}" for c in "abcd" for i in (1, 2)]
"""Two images of each of four classes."""


def csv(header: str, *rows: str) -> str:
    return "\n".join([header, *rows]) + "\n"


def error_of(table, **options) -> str:
    with pytest.raises(DataError) as caught:
        read_table(table, **options)
    return str(caught.value)


def names(images) -> list[str]:
    return [images.path(i) for i in range(len(images))]


class TestSplits:
    def test_without_a_test_fraction_the_first_half_of_the_sorted_classes_trains(self, make_csv):
        rows = [f"{c}{i}.png,{label}" for c, label in zip("abcd", "dcba", strict=True) for i in (1, 2)]
        data = read_table(make_csv(csv("path,label", *rows)), test_fraction=None)
        assert names(data.train) == ["c1.png", "c2.png", "d1.png", "d2.png"]
        assert names(data.query) == ["a1.png", "a2.png", "b1.png", "b2.png"]
        assert data.query is data.gallery and data.protocol == "leave-one-out"
        assert data.name == "table" and data.train.flip
        assert any("no split" in note for note in data.notes)

    def test_an_odd_class_is_train(self, make_csv):
        rows = [f"{c}{i}.png,{label}" for c, label in zip("abcd", "wxyz", strict=True) for i in (1, 2)]
        data = read_table(make_csv(csv("path,label", *rows, "a3.png,v", "b3.png,v")), test_fraction=None)
        assert data.train.num_classes == 3 and data.query.num_classes == 2

    def test_whole_numbers_sort_by_value(self, make_csv):
        rows = [f"{c}{i}.png,{label}" for c, label in zip("abcd", ("10", "9", "100", "1"), strict=True) for i in (1, 2)]
        data = read_table(make_csv(csv("path,label", *rows)), test_fraction=None)
        assert data.train.label_names == ("1", "9", "10", "100")
        assert {data.train.label_name(i) for i in range(4)} == {"1", "9"}

    def test_train_and_test(self, make_csv):
        rows = [f"{row},{'Train' if row[0] in 'bd' else ' test '}" for row in PAIRS]
        data = read_table(make_csv(csv("path,label,split", *rows)))
        assert {n[0] for n in names(data.train)} == {"b", "d"} and {n[0] for n in names(data.query)} == {"a", "c"}
        assert data.validation is None and data.notes == ()

    @pytest.mark.parametrize("word", ["validation", "val"])
    def test_validation_without_test_is_the_test_part(self, make_csv, word):
        rows = [f"{row},{'train' if row[0] in 'ab' else word}" for row in PAIRS]
        data = read_table(make_csv(csv("path,label,split", *rows)))
        assert {n[0] for n in names(data.query)} == {"c", "d"} and data.validation is None

    def test_validation_beside_test_is_for_selection(self, make_csv):
        split = {"a": "train", "b": "train", "c": "test", "d": "test", "e": "val", "f": "val"}
        images = [f"{c}{i}.png" for c in split for i in (1, 2)]
        rows = [f"{image},{image[0]},{split[image[0]]}" for image in images]
        data = read_table(make_csv(csv("path,label,split", *rows), images=images))
        assert {n[0] for n in names(data.validation)} == {"e", "f"}
        assert {n[0] for n in names(data.query)} == {"c", "d"}

    def test_query_and_gallery_splits(self, make_csv):
        rows = [f"{row},train" for row in PAIRS[:4]]
        rows += ["c1.png,c,query", "c2.png,c,gallery", "d1.png,d,gallery", "c3.png,c,test"]
        data = read_table(make_csv(csv("path,label,split", *rows)))
        assert names(data.query) == ["c1.png", "c3.png"]
        assert names(data.gallery) == ["c2.png", "d1.png", "c3.png"]
        assert data.protocol == "query-gallery"

    @pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("1", "0"), ("1.0", "0.0"), ("true", "FALSE")])
    def test_is_query_and_is_gallery(self, make_csv, yes, no):
        rows = [f"{row},train,," for row in PAIRS[:4]]
        rows += [f"c1.png,c,test,{yes},{no}", f"c2.png,c,test,{no},{yes}", f"d1.png,d,test,{yes},{yes}"]
        rows += [f"d2.png,d,test,{no},{yes}", f"d3.png,d,test,{no},{no}"]
        data = read_table(make_csv(csv("path,label,split,is_query,is_gallery", *rows)))
        assert names(data.query) == ["c1.png", "d1.png"] and names(data.gallery) == ["c2.png", "d1.png", "d2.png"]
        assert data.query.rows[1] == data.gallery.rows[1]
        assert any("1 test row, neither" in note for note in data.notes)

    def test_flags_without_a_split(self, make_csv):
        rows = [f"{row},{'1,1' if row[0] in 'cd' else '0,0'}" for row in PAIRS]
        data = read_table(make_csv(csv("path,label,is_query,is_gallery", *rows)))
        assert {n[0] for n in names(data.train)} == {"a", "b"} and data.query is data.gallery

    def test_a_table_of_test_rows_alone_can_be_evaluated_on(self, make_csv):
        data = read_table(make_csv(csv("path,label,split", *(f"{row},test" for row in PAIRS))))
        assert len(data.train) == 0 and len(data.query) == 8
        assert any("not for training" in note for note in data.notes)

    @given(st.lists(st.sampled_from("abcdefgh"), max_size=40))
    @settings(max_examples=25, deadline=None)
    def test_every_row_is_in_one_part(self, tmp_path_factory, letters):
        letters = [*letters, *"abcdefgh", *"hgfedcba"]
        path = tmp_path_factory.mktemp("property") / "t.csv"
        path.write_text(csv("path,label", *(f"{i}.png,{c}" for i, c in enumerate(letters))))
        data = read_table(path, check_files=False)
        rows = np.concatenate([data.train.rows, data.query.rows])
        assert sorted(rows) == list(range(len(letters)))
        for part in (data.train, data.query):
            assert [part.label_name(i) for i in range(len(part))] == [letters[row] for row in part.rows]


class TestOpenMetricLearning:
    """Its format as its documentation gives it, unchanged."""

    HEADER = "label,path,split,is_query,is_gallery,x_1,x_2,y_1,y_2,category,sequence"

    def test_a_table_as_its_converters_write_it(self, make_csv):
        table = make_csv(
            csv(
                self.HEADER,
                "7,a1.png,train,,,0.0,4.0,1.0,8.0,rope,",
                "7,a2.png,train,,,,,,,rope,",
                "8,b1.png,train,,,,,,,rope,",
                "8,b2.png,train,,,,,,,rope,",
                "9,c1.png,validation,True,True,2,4,3,5,rope,12",
                "9,c2.png,validation,True,True,,,,,rope,12",
                "11,d1.png,validation,True,True,,,,,rope,",
                "11,d2.png,validation,True,True,,,,,rope,3",
            )
        )
        data = read_table(table)
        assert data.query is data.gallery
        assert data.train.label_names == ("7", "8", "9", "11")
        assert data.train.boxes.tolist() == [[0, 1, 4, 8], [-1] * 4, [-1] * 4, [-1] * 4]
        assert data.train.open(0).size == (4, 7) and data.train.open(1).size == (8, 8)
        groups = data.query.groups
        assert groups[0] == groups[1] >= 0 and groups[2] == -1 and groups[3] not in (-1, groups[0])

    def test_the_same_as_parquet(self, make_csv, tmp_path):
        table = make_csv(
            csv("label,path,split,is_query,is_gallery", *(f"{'abcd'.index(r[-1])},{r[:6]},train,," for r in PAIRS[:4]))
            + csv("2,c1.png,validation,True,False", "2,c2.png,validation,False,True", "3,d1.png,validation,True,True")
        )
        parquet = table.with_suffix(".parquet")
        pq.write_table(pyarrow.csv.read_csv(table), parquet)
        assert pq.read_schema(parquet).field("is_query").type == pa.bool_()
        from_csv, from_parquet = read_table(table), read_table(parquet)
        assert names(from_parquet.query) == names(from_csv.query) == ["c1.png", "d1.png"]
        assert from_parquet.split_hash == from_csv.split_hash
        assert from_parquet.train.label_names == ("0", "1", "2", "3")


class TestColumns:
    def test_cameras(self, make_csv):
        rows = [f"{row},{camera}" for row, camera in zip(PAIRS, ["east", "west"] * 3 + ["", ""], strict=True)]
        data = read_table(make_csv(csv("path,label,camera", *rows)))
        cameras = np.concatenate([data.train.cameras, data.query.cameras])
        assert len(set(cameras[:2])) == 2 and cameras[0] == cameras[2]
        # Two unknown cameras are not the same one, or the images would ignore each other.
        assert cameras[6] != cameras[7]

    def test_paths_start_from_the_table_or_from_the_root(self, make_csv, make_images, colour_of):
        table = make_csv(csv("path,label", *PAIRS))
        assert read_table(table).train.open(0).getpixel((0, 0)) == colour_of("a1.png")
        other = make_images([row[:6] for row in PAIRS], folder="other", size=(5, 5))
        assert read_table(table, other).train.open(0).size == (5, 5)

    def test_absolute_paths(self, make_csv, make_images, tmp_path):
        root = make_images([row[:6] for row in PAIRS], folder="other")
        table = make_csv(csv("path,label", *(f"{root}/{row}" for row in PAIRS)), images=[])
        assert read_table(table).train.open(0).size == (8, 8)

    def test_other_columns_are_left_alone(self, make_csv):
        data = read_table(make_csv(csv("price,path,label,note", *(f"9,{row},\xff" for row in PAIRS))))
        assert len(data.train) == 4

    def test_no_flip(self, make_csv):
        data = read_table(make_csv(csv("path,label", *PAIRS)), flip=False)
        assert not data.train.flip and not data.query.flip

    def test_labels_keep_their_text(self, make_csv):
        rows = [row.replace(",a", ",NA").replace(",b", ",null").replace(",c", ",01") for row in PAIRS]
        assert read_table(make_csv(csv("path,label", *rows))).train.label_names == ("01", "NA", "d", "null")


class TestEncoded:
    def table(self, encoded, as_struct: bool) -> pa.Table:
        paths = [row[:6] for row in PAIRS]
        images = [encoded(path) for path in paths]
        if as_struct:
            images = [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)]
        return pa.table({"image": images, "label": [i // 2 for i in range(8)]})

    @pytest.mark.parametrize("as_struct", [False, True])
    def test_images_inside_the_parquet(self, encoded, colour_of, tmp_path, as_struct):
        # Several row groups: the column comes in chunks, and rows count through them.
        pq.write_table(self.table(encoded, as_struct), tmp_path / "t.parquet", row_group_size=3)
        data = read_table(tmp_path / "t.parquet", test_fraction=None)
        assert data.query.rows.tolist() == [4, 5, 6, 7]
        assert [data.query.open(i).getpixel((0, 0)) for i in range(4)] == [colour_of(r[:6]) for r in PAIRS[4:]]
        assert data.query.path(0) == ("c1.png" if as_struct else "(no path)")

    def test_a_column_that_has_fewer_rows_than_its_file_says(self, encoded, tmp_path, monkeypatch):
        pq.write_table(self.table(encoded, True), tmp_path / "t.parquet")
        read = table_module.read_encoded
        monkeypatch.setattr(table_module, "read_encoded", lambda *files: (read(*files)[0], pa.array([], pa.string())))
        with pytest.raises(DataError, match=r"t\.parquet: a column is damaged: it has another number of rows"):
            read_table(tmp_path / "t.parquet")

    def test_rows_without_the_column(self, encoded, tmp_path):
        pq.write_table(self.table(encoded, True), tmp_path / "t.parquet")
        group = pq.read_metadata(tmp_path / "t.parquet").row_group(0)
        assert encoded_images._chunk(group, "image.bytes", tmp_path / "t.parquet").num_values
        with pytest.raises(DataError, match=r"t\.parquet: its images are damaged .*'image\.bites'"):
            encoded_images._chunk(group, "image.bites", tmp_path / "t.parquet")

    def test_bytes_that_are_no_image_are_named(self, encoded, tmp_path):
        table = self.table(encoded, False)
        images = table["image"].to_pylist()
        images[5] = b"no image"
        pq.write_table(table.set_column(0, "image", pa.array(images)), tmp_path / "t.parquet")
        with pytest.raises(ImageError, match=r"t\.parquet row 5: .*does not decode"):
            read_table(tmp_path / "t.parquet", test_fraction=None).query.open(1)

    def test_a_row_without_bytes(self, encoded, tmp_path):
        table = self.table(encoded, True)
        images = table["image"].to_pylist()
        images[2] = {"bytes": None, "path": "x.png"}
        pq.write_table(table.set_column(0, "image", pa.array(images)), tmp_path / "t.parquet")
        assert "t.parquet row 2: the image has no bytes" in error_of(tmp_path / "t.parquet")

    def test_a_column_image_that_holds_names(self, tmp_path):
        pq.write_table(pa.table({"image": ["a.png"], "label": ["a"]}), tmp_path / "t.parquet")
        assert "a.png: there is no such file" in error_of(tmp_path / "t.parquet")
        pq.write_table(pa.table({"image": [7], "label": ["a"]}), tmp_path / "t.parquet")
        assert "holds int64, not encoded images" in error_of(tmp_path / "t.parquet")


class TestRepeats:
    def test_a_repeated_row_is_left_out_with_a_note(self, make_csv):
        data = read_table(make_csv(csv("path,label", *PAIRS, "a1.png,a")))
        assert names(data.train) == ["a1.png", "a2.png", "b1.png", "b2.png"]
        assert any("left out: 1 row with" in note for note in data.notes)

    def test_two_labels_for_one_image(self, make_csv):
        message = error_of(make_csv(csv("path,label", *PAIRS, "a1.png,c")))
        assert "table.csv line 10: a1.png has the label 'c', and 'a' in" in message and "table.csv line 2" in message

    def test_two_boxes_of_one_image_are_two_images(self, make_csv):
        rows = [*(f"{row},,,," for row in PAIRS), "a1.png,c,0,4,0,4", "a1.png,d,4,8,0,4"]
        data = read_table(make_csv(csv("path,label,x_1,x_2,y_1,y_2", *rows)))
        assert len(data.train) == 4 and len(data.query) == 6

    def test_an_image_that_is_query_and_gallery_in_two_rows_is_the_same_image(self, make_csv):
        rows = [f"{row},train" for row in PAIRS[:4]]
        rows += ["c1.png,c,query", "c2.png,c,gallery", "c1.png,c,gallery"]
        data = read_table(make_csv(csv("path,label,split", *rows)))
        assert names(data.gallery) == ["c2.png", "c1.png"]
        assert data.query.rows[0] == data.gallery.rows[1] != data.gallery.rows[0]


class TestErrors:
    def test_a_file_that_is_not_there(self, make_csv):
        rows = [*PAIRS, "gone.png,a", "lost.png,b"]
        message = error_of(make_csv(csv("path,label", *rows)))
        assert "table.csv line 10: gone.png: there is no such file (2 of 10 are missing)" in message
        data = read_table(make_csv(csv("path,label", *rows)), check_files=False)
        with pytest.raises(ImageError, match=r"table\.csv line 10: gone\.png: there is no such file"):
            data.train.open(names(data.train).index("gone.png"))

    @pytest.mark.parametrize("row", ["a1.png,", "a1.png,  "])
    def test_an_empty_label(self, make_csv, row):
        assert "table.csv line 10: the label is empty; " in error_of(make_csv(csv("path,label", *PAIRS, row)))

    def test_an_empty_path(self, make_csv):
        message = error_of(make_csv(csv("path,label", ",a", *PAIRS, ",b")))
        assert "table.csv line 2: the path is empty (in 2 rows)" in message

    def test_lines_are_counted_through_blank_lines_and_quoted_newlines(self, make_csv):
        rows = ['a1.png,"two\nlines"', "", 'a2.png,"two\nlines"', *PAIRS[2:], "d3.png,"]
        assert "table.csv line 13: the label is empty" in error_of(make_csv(csv("path,label", *rows)))

    @pytest.mark.parametrize(("value", "said"), [("practice", "the split is 'practice'"), ("", "the split is empty")])
    def test_an_unknown_split(self, make_csv, value, said):
        rows = [f"{row},test" for row in PAIRS]
        message = error_of(make_csv(csv("path,label,split", *rows, f"a3.png,a,{value}")))
        assert f"table.csv line 10: {said}" in message and "train, test, validation" in message

    def test_other_names_of_splits(self, make_csv):
        split = {"a": "Training", "b": "train2017", "c": "valid", "d": "holdout"}
        rows = [f"{row},{split[row[0]]}" for row in PAIRS]
        data = read_table(make_csv(csv("path,label,split", *rows, "c3.png,c,VAL", "a3.png,e,test", "b3.png,e,Test")))
        parts = {part: {images.label_name(i) for i in range(len(images))} for part, images in data.parts.items()}
        assert parts == {"train": {"a", "b"}, "validation": {"c"}, "test": {"d", "e"}}
        note = "splits: 'Training' is train, 'train2017' is train, 'valid' is validation, 'holdout' is test"
        assert note in data.notes

    def test_a_class_in_two_splits(self, make_csv):
        rows = [f"{row},{'train' if row[0] in 'ab' else 'test'}" for row in PAIRS]
        message = error_of(make_csv(csv("path,label,split", *rows, "d3.png,d,train")))
        assert "1 class is both in train and in test, of 2 test classes and 3 train classes, for example 'd'" in message
        assert "line 10: d3.png" in message and "line 8: d1.png" in message
        assert "`protocol=open`" in message and "`protocol=closed`" in message

    @pytest.mark.parametrize(
        ("header", "column", "advice"),
        [
            ("path,lable", "label", "rename 'lable', if that is it, or choose it (`label_column=lable`)"),
            ("path,what", "label", "path and label, or choose another (`label_column`)"),
            ("x.jpg,label", "path", "the first line seems to be a row"),
        ],
    )
    def test_a_missing_column(self, make_csv, header, column, advice):
        message = error_of(make_csv(csv(header, *PAIRS)))
        assert f"there is no column {column!r}" in message and advice in message

    def test_a_missing_column_of_images(self, make_csv):
        message = error_of(make_csv(csv("where,label", *(row.replace(".png", "") for row in PAIRS))))
        assert "there is no column 'path'" in message
        assert "path and label, or choose another (`image_column`)" in message

    @pytest.mark.parametrize(
        ("written", "advice"),
        [
            ("sub/a1", "'a1.png' is there: add the ending to the paths of the table"),
            ("sub/A1.PNG", "'a1.png' is there: write the name as the file has it"),
            ("sub/a1.jpg", "'a1.png' is there: write the name as the file has it"),
            (" sub/a1.png ", "without the spaces around it, 'sub/a1.png' is there"),
            ("C:\\shop\\sub\\a1.png", "sub/a1.png is in {root}: write the paths in the table like this"),
            ("/home/somebody/sub/a1.png", "sub/a1.png is in {root}: write the paths in the table like this"),
            ("photos/sub/a1.png", "sub/a1.png is in {root}: write the paths in the table like this"),
            ("D:/gone.png", "write the paths as they are on this computer"),
            ("~/gone.png", "'~' is not replaced in a table"),
            ("gone.png", "relative paths start from {root}: `root` sets another folder"),
        ],
    )
    def test_the_file_that_a_missing_path_means(self, make_images, make_csv, tmp_path, written, advice):
        make_images(["sub/a1.png"])
        rows = [f"{written},a", *(f"gone{i}.png,{c}" for i, c in enumerate("abbccdd"))]
        message = error_of(make_csv(csv("path,label", *rows)))
        assert "there is no such file (8 of 8 are missing)" in message
        assert advice.format(root=tmp_path / "images") in message

    def test_the_first_of_windows_paths_may_be_missing(self, make_csv, make_images):
        make_images([f"sub/{row[:6]}" for row in PAIRS])
        rows = ["sub\\gone.png,a", *(f"sub\\{row}" for row in PAIRS)]
        assert "(1 of 9 are missing)" in error_of(make_csv(csv("path,label", *rows)))

    def test_paths_without_an_ending(self, make_csv):
        message = error_of(make_csv(csv("image_id,label", *(row.replace(".png", "") for row in PAIRS))))
        assert "a1: there is no such file" in message and "'a1.png' is there: add the ending" in message
        message = error_of(make_csv(csv("image_id,label", *(row.replace(".png", "x") for row in PAIRS))))
        assert "a1x: there is no such file" in message and "the path has no ending such as .jpg" in message

    def test_paths_of_windows_and_file_addresses(self, make_csv, make_images, colour_of):
        root = make_images([row[:6] for row in PAIRS], folder="sub dir")
        for prefix in ("..\\sub dir\\", f"file://{str(root).replace(' ', '%20')}/"):
            rows = [f"{prefix}{row},{'train' if row[0] in 'ab' else 'test'}" for row in PAIRS]
            data = read_table(make_csv(csv("path,label,split", *rows)))
            assert data.train.open(1).getpixel((0, 0)) == colour_of("a2.png")

    def test_one_flag_alone(self, make_csv):
        message = error_of(make_csv(csv("path,label,is_query", *(f"{row},1" for row in PAIRS))))
        assert "there is no column 'is_gallery'" in message

    def test_a_flag_that_is_none(self, make_csv):
        rows = [f"{row},1,maybe" for row in PAIRS]
        assert "table.csv line 2: is_gallery is 'maybe'" in error_of(
            make_csv(csv("path,label,is_query,is_gallery", *rows))
        )

    def test_an_empty_flag_in_a_test_row(self, make_csv):
        rows = [f"{row},{'train,,' if row[0] in 'ab' else 'test,1,1'}" for row in PAIRS]
        table = make_csv(csv("path,label,split,is_query,is_gallery", *rows, "d3.png,d,test,,1"))
        assert "table.csv line 10: is_query or is_gallery is empty" in error_of(table)

    @pytest.mark.parametrize(
        ("box", "said"),
        [
            ("4,4,0,4", "the box is x_1 4, y_1 0, x_2 4, y_2 4"),
            ("0,4,5,2", "the box is x_1 0, y_1 5, x_2 4, y_2 2"),
            ("-1,4,0,4", "the box is x_1 -1"),
            ("0,4.5,0,4", "x_2 4.5"),
            ("0,4,,4", "the box has an empty side"),
            ("0,wide,0,4", "x_2 is 'wide'"),
        ],
    )
    def test_a_bad_box(self, make_csv, box, said):
        rows = [f"{row},,,," for row in PAIRS]
        message = error_of(make_csv(csv("path,label,x_1,x_2,y_1,y_2", *rows, f"a3.png,a,{box}")))
        assert "table.csv line 10: " in message and said in message

    def test_a_box_beyond_the_image(self, make_csv):
        rows = [f"{row},0,9,0,4" for row in PAIRS]
        data = read_table(make_csv(csv("path,label,x_1,x_2,y_1,y_2", *rows)))
        with pytest.raises(ImageError, match="outside its 8 x 8 pixels"):
            data.train.open(0)

    def test_half_a_box(self, make_csv):
        assert "there is no column 'y_1'" in error_of(make_csv(csv("path,label,x_1,x_2", *(f"{r},0,4" for r in PAIRS))))

    def test_too_few_classes(self, make_csv):
        assert "3 classes; without a split" in error_of(make_csv(csv("path,label", *PAIRS[:6])))
        assert "1 class; without a split" in error_of(make_csv(csv("path,label", *PAIRS[:2])))
        rows = [f"{row},{'train' if row[0] == 'a' else 'test'}" for row in PAIRS]
        message = error_of(make_csv(csv("path,label,split", *rows)))
        assert "train has 1 class, 1 of them with two images" in message

    def test_only_train_rows(self, make_csv):
        message = error_of(make_csv(csv("path,label,split", *(f"{row},train" for row in PAIRS))))
        assert "all rows are train" in message

    def test_classes_of_one_image_are_noted(self, make_csv):
        data = read_table(make_csv(csv("path,label", *PAIRS, "a3.png,aa", "d3.png,dd")), test_fraction=None)
        assert any("train: 1 class of one image ('aa') have no positive pair" in note for note in data.notes)
        assert any("test: 1 class of one image ('dd')" in note for note in data.notes)

    def test_queries_without_a_match(self, make_csv):
        rows = [f"{row},train" for row in PAIRS[:4]]
        table = make_csv(csv("path,label,split", *rows, "c1.png,c,query", "d1.png,d,query", "c2.png,c,gallery"))
        assert any("1 query without a match" in note for note in read_table(table).notes)
        table = make_csv(csv("path,label,split", *rows, "c1.png,c,query", "d1.png,d,gallery"))
        assert "no query has an image of its class" in error_of(table)
        table = make_csv(csv("path,label,split", *rows, "c1.png,c,query", "c2.png,c,query"))
        assert "2 queries and 0 gallery images" in error_of(table)


class TestImagesInTable:
    def test_without_labels(self, make_csv):
        images = images_in_table(make_csv(csv("path", "a1.png", "b1.png")))
        assert images.label_names == ("",) and images.labels.tolist() == [0, 0]
        assert names(images) == ["a1.png", "b1.png"]

    def test_labels_are_kept_and_the_split_ignored(self, make_csv):
        images = images_in_table(make_csv(csv("path,label,split", "a1.png,x,train", "b1.png,y,nonsense")))
        assert [images.label_name(i) for i in range(2)] == ["x", "y"]
