"""Vectors in place of images: every type of column, errors that name the row, and files that read back the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.data.read import read
from divcon.data.readers import vectors as vectors_module
from divcon.data.readers.folder import images_of
from divcon.data.readers.vectors import read_vectors, write_benchmark_vectors, write_vectors
from divcon.errors import DataError, ImageError, OutputError

LABELS = list("aabbccdd")


def numbers(n: int = 8, width: int = 3, seed: int = 0) -> np.ndarray:
    """Small whole numbers, which float16 holds exactly."""
    return np.random.default_rng(seed).integers(-9, 10, (n, width)).astype(np.float32)


def table(path, embedding, /, **columns):
    """Write a parquet of the vectors, with the labels LABELS unless others are passed; returns its path."""
    columns = {"label": LABELS} | columns
    pq.write_table(pa.table({"embedding": embedding} | columns), path)
    return path


def fixed(values, kind=None) -> pa.Array:
    flat = pa.array(np.asarray(values).reshape(-1), kind)
    return pa.FixedSizeListArray.from_arrays(flat, np.asarray(values).shape[1])


def error_of(path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def items(images: LabeledSet, *, paths: bool = True) -> list[tuple]:
    """All that tells one image from another, in order."""
    return [
        (
            images.path(i) if paths else "",
            images.label_name(i),
            *(images.vectors[i] if images.vectors is not None else ()),
        )
        for i in range(len(images))
    ]


class TestColumn:
    @pytest.mark.parametrize("number", ["float32", "float64", "float16", "int8", "uint8", "int32", "int64"])
    @pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda number: pa.list_(number, 3)])
    def test_every_list_of_numbers_reads_as_float32(self, tmp_path, number, kind):
        values = np.abs(numbers()).astype(number)
        column = pa.array(list(values), kind(pa.from_numpy_dtype(values.dtype)))
        data = read(table(tmp_path / "t.parquet", column))
        assert data.train.vectors.dtype == np.float32 and data.query is data.gallery
        np.testing.assert_array_equal(np.concatenate([data.train.vectors, data.query.vectors]), values)
        assert data.train.label_names == tuple("abcd") and data.query.labels.tolist() == [2, 2, 3, 3]

    def test_tensors_of_one_dimension(self, tmp_path):
        kind = pa.fixed_shape_tensor(pa.float32(), [3])
        column = pa.ExtensionArray.from_storage(kind, fixed(numbers()))
        data = read(table(tmp_path / "t.parquet", column))
        np.testing.assert_array_equal(data.train.vectors, numbers()[:4])
        kind = pa.fixed_shape_tensor(pa.float32(), [3, 1])
        column = pa.ExtensionArray.from_storage(kind, fixed(numbers()))
        assert "not vectors" in error_of(table(tmp_path / "t.parquet", column))

    @given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 40), st.integers(1, 40))
    @settings(max_examples=20, deadline=None)
    def test_row_groups_and_blocks_do_not_matter(self, tmp_path_factory, n, width, group, block):
        values = numbers(4 * n, width)
        path = tmp_path_factory.mktemp("v") / "t.parquet"
        pq.write_table(pa.table({"embedding": fixed(values)}), path, row_group_size=group)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("divcon.data.readers.vectors._ROWS_AT_A_TIME", block)
            np.testing.assert_array_equal(images_of(path).vectors, values)

    @pytest.mark.parametrize("column", [list("abcdefgh"), list(range(8)), [["x"]] * 8, [[[1.0]]] * 8, [[True]] * 8])
    def test_another_type(self, tmp_path, column):
        message = error_of(table(tmp_path / "t.parquet", column))
        assert "t.parquet: the column 'embedding' holds" in message and "list of numbers per row" in message

    @pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float64(), 2)])
    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            ([1.0, float("nan")], "the vector has nan in place 1"),
            ([float("-inf"), 1.0], "the vector has -inf in place 0"),
            ([1e300, 1.0], "the vector has 1e+300 in place 0; every number must be finite in float32"),
            ([0.0, None], "the vector has no number in place 1"),
            (None, "the vector is missing"),
        ],
    )
    @pytest.mark.parametrize("row", [0, 5])
    def test_a_bad_vector_is_named(self, tmp_path, kind, bad, said, row, monkeypatch):
        if bad is None and kind == pa.list_(pa.float64(), 2) and int(pa.__version__.split(".")[0]) < 26:
            pytest.skip("older versions do not read them")
        monkeypatch.setattr("divcon.data.readers.vectors._ROWS_AT_A_TIME", 3)
        values = [[1.0, 2.0]] * 8
        values[row] = bad
        assert f"t.parquet row {row}: {said}" in error_of(table(tmp_path / "t.parquet", pa.array(values, kind)))

    def test_squares_that_overflow(self, tmp_path):
        values = numbers(8, 4)
        values[5] = 1.5e19
        said = "t.parquet row 5: the vector has numbers up to 1.5e+19, whose squares overflow float32; divide"
        assert said in error_of(table(tmp_path / "t.parquet", fixed(values)))
        values[5] = 9e18  # the sum of the squares is 3.2e38
        assert len(read(table(tmp_path / "t.parquet", fixed(values))).train) == 4

    def test_lengths(self, tmp_path):
        values = [[1.0, 2.0]] * 8
        values[6] = [1.0]
        assert "t.parquet row 6: the vector has 1 numbers, where the first has 2" in error_of(
            table(tmp_path / "t.parquet", values)
        )
        values[6] = []
        assert "t.parquet row 6: the vector is empty" in error_of(table(tmp_path / "t.parquet", values))
        empty = pa.array([[]] * 8, pa.list_(pa.float32()))
        assert "t.parquet row 0: the vector is empty" in error_of(table(tmp_path / "t.parquet", empty))

    def test_vectors_in_a_csv(self, tmp_path):
        numpy = "[ 1.   -2.5\n  3e2]"
        rows = [f'{label},"{text}"' for label, text in zip(LABELS, ["[1, -2.5, 300.0]", numpy] * 4, strict=True)]
        (tmp_path / "t.csv").write_text("label,embedding\n" + "\n".join(rows) + "\n")
        data = read(tmp_path / "t.csv")
        np.testing.assert_array_equal(data.train.vectors, [[1, -2.5, 300]] * len(data.train))
        bad = (tmp_path / "t.csv").read_text().replace("[1, -2.5, 300.0]", "[1. 2. ... 3.]", 1)
        (tmp_path / "t.csv").write_text(bad)
        assert "t.csv line 2: the vector in the column 'embedding' cannot be read: NumPy has cut" in error_of(
            tmp_path / "t.csv"
        )


class TestTable:
    def test_rows_are_named_where_there_is_no_path(self, tmp_path):
        data = read(table(tmp_path / "t.parquet", fixed(numbers())))
        assert data.query.path(0) == "row 4" and data.query.where(0) == f"{tmp_path}/t.parquet row 4"
        assert len({data.query.path(i) for i in range(4)}) == 4

    def test_paths_need_no_files(self, tmp_path):
        paths = [f"gone/{i}.png" for i in range(7)] + [None]
        data = read(table(tmp_path / "t.parquet", fixed(numbers()), path=paths, image=[b"no image"] * 8))
        assert data.train.path(0) == "gone/0.png" and data.query.path(3) == "row 7"
        assert data.query.where(0) == f"{tmp_path}/t.parquet row 4: gone/4.png"
        assert data.train.encoded is None

    def test_they_are_not_opened(self, tmp_path):
        data = read(table(tmp_path / "t.parquet", fixed(numbers())))
        with pytest.raises(ImageError, match=r"t\.parquet row 5: this is a vector, not an image"):
            data.query.open(1)
        assert "8 vectors" in repr(images_of(tmp_path / "t.parquet"))

    def test_all_other_columns_are_as_for_images(self, tmp_path):
        path = table(
            tmp_path / "t.parquet",
            fixed(numbers()),
            split=["train"] * 4 + ["test"] * 4,
            is_query=[None] * 4 + [True, False, True, True],
            is_gallery=[None] * 4 + [False, True, True, False],
            camera=list("xyxyxyxy"),
            sequence=[1, 1, 2, 2, 3, 3, None, 4],
        )
        data = read(path)
        assert data.query.rows.tolist() == [4, 6, 7] and data.gallery.rows.tolist() == [5, 6]
        np.testing.assert_array_equal(data.gallery.vectors, numbers()[[5, 6]])
        assert data.train.cameras[0] == data.train.cameras[2] != data.train.cameras[1]
        assert data.query.groups[1] == -1

    def test_a_repeated_path_is_left_out_with_a_note(self, tmp_path):
        columns = {"path": list("ppqrstuvw"), "label": list("aaabbccdd"), "split": ["train"] * 5 + ["test"] * 4}
        data = read(table(tmp_path / "t.parquet", fixed(numbers(9)), **columns))
        assert len(data.train) == 4 and any("1 row with the path of an earlier row" in note for note in data.notes)

    def test_without_labels_they_can_be_encoded(self, tmp_path):
        pq.write_table(pa.table({"embedding": fixed(numbers())}), tmp_path / "t.parquet")
        images = images_of(tmp_path / "t.parquet")
        assert images.label_names == ("",) and images.labels.tolist() == [0] * 8
        np.testing.assert_array_equal(images.vectors, numbers())
        assert "no column 'label' among 'embedding'" in error_of(tmp_path / "t.parquet")


class TestImageSet:
    def vectors(self, **fields) -> LabeledSet:
        fields = {"labels": np.arange(4), "vectors": numbers(4)} | fields
        paths = pa.array([f"row {i}" for i in range(4)])
        return LabeledSet(label_names=tuple("abcd"), paths=paths, rows=np.arange(4), source="", **fields)

    def test_parts_carry_their_vectors(self):
        images = self.vectors()
        part = images.subset(np.array([3, 1]))
        np.testing.assert_array_equal(part.vectors, numbers(4)[[3, 1]])
        np.testing.assert_array_equal(part.joined(images.subset(np.array([0]))).vectors, numbers(4)[[3, 1, 0]])
        np.testing.assert_array_equal(images.of_classes(np.array([2])).vectors, numbers(4)[[2]])

    def test_the_fingerprint_is_of_the_vectors_too(self):
        images, other = self.vectors(), numbers(4)
        other[3, 2] += 1
        assert images.fingerprint == self.vectors().fingerprint
        assert len({images.fingerprint, self.vectors(vectors=other).fingerprint}) == 2
        assert images.fingerprint != replace(images, vectors=None).fingerprint
        assert images.fingerprint != self.vectors(vectors=numbers(4).reshape(4, 3)[:, [0, 2, 1]]).fingerprint

    def test_the_shape_is_checked(self):
        with pytest.raises(ValueError, match="vectors has 3 entries for 4 labels"):
            self.vectors(vectors=numbers(3))
        with pytest.raises(ValueError, match=r"float64 of shape \(4, 3\)"):
            self.vectors(vectors=numbers(4).astype(float))
        with pytest.raises(ValueError, match=r"of shape \(4,\)"):
            self.vectors(vectors=numbers(4)[:, 0])


def feature_of(images: LabeledSet) -> np.ndarray:
    """A vector that tells what the image is: its row, its label, and one number more."""
    return np.stack([images.rows, images.labels, np.full(len(images), 0.5)], 1).astype(np.float32)


def same(one: Benchmark, other: Benchmark) -> None:
    """The benchmark ``other``, read back, is ``one`` with its vectors."""
    assert other.split_hash == one.split_hash and other.protocol == one.protocol
    for name in ("train", "query", "gallery", "validation"):
        part, back = getattr(one, name), getattr(other, name)
        assert (part is None) == (back is None)
        if part is not None:
            vectors = replace(part, vectors=feature_of(part), encoded=None)
            assert sorted(items(back)) == sorted(items(vectors))
    both_rows = np.intersect1d(one.query.rows, one.gallery.rows)
    assert len(np.intersect1d(other.query.rows, other.gallery.rows)) == len(both_rows)


class TestWriting:
    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch):
        monkeypatch.setattr(vectors_module, "_ROWS_AT_A_TIME", 3)

    def test_embeddings_with_their_paths_and_labels(self, make_csv, tmp_path):
        images = images_of(make_csv("path,label\n" + "".join(f"{c}{i}.png,{c}\n" for c in "abcd" for i in (1, 2))))
        write_vectors(tmp_path / "out" / "v.parquet", images, numbers())
        data = read(tmp_path / "out" / "v.parquet")
        assert data.train.path(0) == str(tmp_path / "images" / "a1.png")
        assert [data.query.label_name(i) for i in range(4)] == list("ccdd")
        np.testing.assert_array_equal(data.query.vectors, numbers()[4:])
        with pytest.raises(DataError, match=r"shape \(7, 3\) are not one vector for each of 8"):
            write_vectors(tmp_path / "v.parquet", images, numbers(7))

    def test_without_labels_and_without_images(self, make_images, tmp_path):
        write_vectors(tmp_path / "v.parquet", images_of(make_images(["1.png", "2.png"])), numbers(2))
        assert pq.read_schema(tmp_path / "v.parquet").names == ["path", "embedding"]
        nothing = images_of(tmp_path / "v.parquet").subset(np.zeros(2, bool))
        write_vectors(tmp_path / "w.parquet", nothing, numbers(0))
        assert pq.read_table(tmp_path / "w.parquet").num_rows == 0

    def test_encoded_images_that_share_a_path_are_distinct(self, encoded, tmp_path):
        structs = [{"bytes": encoded(str(i)), "path": ["0.png", "1.png"][i % 2] if i < 6 else None} for i in range(8)]
        pq.write_table(pa.table({"image": structs, "label": LABELS}), tmp_path / "t.parquet")
        data = read(tmp_path / "t.parquet")
        write_benchmark_vectors(tmp_path / "v.parquet", data, feature_of)
        back = read(tmp_path / "v.parquet")
        assert len(back.train) == 4 and len(back.query) == 4
        assert back.train.path(1) == "1.png row 1" and back.query.path(3) == "row 7"
        write_vectors(tmp_path / "w.parquet", images_of(tmp_path / "t.parquet"), numbers())
        assert len(read(tmp_path / "w.parquet").query) == 4

    def test_the_demo_reads_back_as_it_is(self, demo, tmp_path, monkeypatch):
        monkeypatch.setattr(vectors_module, "_ROWS_AT_A_TIME", 500)
        data, asked = demo.with_validation(), []

        def counted(images):
            asked.append(len(images))
            return feature_of(images)

        write_benchmark_vectors(tmp_path / "v.parquet", data, counted)
        same(data, read(tmp_path / "v.parquet"))
        assert sum(asked) == len(demo.train) + len(demo.query) and max(asked) == 500
        assert pq.read_schema(tmp_path / "v.parquet").names == ["path", "label", "split", "embedding"]

    def test_query_and_gallery_cameras_sequences_and_boxes(self, tmp_path):
        lines = [
            "path,label,split,is_query,is_gallery,camera,sequence,x_1,y_1,x_2,y_2",
            "0.png,a,train,,,1,,0,0,4,4",
            "0.png,a,train,,,2,,4,0,8,4",
            "2.png,b,train,,,,,,,,",
            "3.png,b,train,,,2,,,,,",
            "4.png,c,test,1,0,1,7,0,0,4,4",
            "5.png,c,test,0,1,2,7,,,,",
            "6.png,c,test,1,1,,8,,,,",
            "7.png,d,test,1,1,1,,0,0,3,3",
            "8.png,d,test,0,1,1,8,0,0,3,4",
        ]
        (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
        data = read(tmp_path / "t.csv", check_files=False)
        assert data.protocol == "query-gallery" and len(data.query) == 3 and len(data.gallery) == 4
        write_benchmark_vectors(tmp_path / "v.parquet", data, feature_of)
        back = read(tmp_path / "v.parquet")
        same(data, back)
        for part in ("train", "query", "gallery"):
            mine, theirs = getattr(data, part), getattr(back, part)
            # The first number of a vector is its row in the first table.
            at = [theirs.vectors[:, 0].tolist().index(row) for row in mine.rows]
            assert theirs.boxes[at].tolist() == mine.boxes.tolist()
            assert (theirs.groups[at] >= 0).tolist() == (mine.groups >= 0).tolist()
            for codes, other in ((mine.cameras, theirs.cameras[at]), (mine.groups, theirs.groups[at])):
                assert ((codes[:, None] == codes) == (other[:, None] == other)).all()

    @given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=6, max_size=12))
    @settings(max_examples=25, deadline=None)
    def test_any_roles_read_back(self, tmp_path_factory, roles):
        folder = tmp_path_factory.mktemp("roles")
        roles = [*roles, (True, True), (True, True), (True, True), (True, True)]
        lines = [f"{i}.png,{'ab'[i % 2]},train,," for i in range(4)]
        lines += [f"{i + 4}.png,{'cd'[i % 2]},test,{q},{g}" for i, (q, g) in enumerate(roles)]
        (folder / "t.csv").write_text("\n".join(["path,label,split,is_query,is_gallery", *lines]) + "\n")
        data = read(folder / "t.csv", check_files=False)
        write_benchmark_vectors(folder / "v.parquet", data, feature_of)
        same(data, read(folder / "v.parquet"))
        arrays = {name: feature_of(getattr(data, name)) for name in ("train", "query", "gallery")}
        write_benchmark_vectors(folder / "w.parquet", data, arrays)
        same(data, read(folder / "w.parquet"))

    def test_query_and_gallery_of_two_sources(self, tmp_path):
        def part(source, labels):
            paths = pa.array([f"{source}{i}" for i in range(len(labels))])
            return LabeledSet(np.array(labels), tuple("abcd"), paths, np.arange(len(labels)), source)

        data = Benchmark("x", part("s", [0, 0, 1, 1]), part("q", [2, 3]), part("g", [2, 3, 3]))
        write_benchmark_vectors(tmp_path / "v.parquet", data, feature_of)
        back = read(tmp_path / "v.parquet")
        assert len(back.query) == 2 and len(back.gallery) == 3 and back.split_hash == data.split_hash

    def test_features_that_do_not_fit(self, demo, tmp_path):
        def wrong(images):
            return np.zeros((len(images), 2 + (images.rows[0] > 50)), np.float32)

        with pytest.raises(DataError, match=r"train: features of shape .* are not one vector of length 2"):
            write_benchmark_vectors(tmp_path / "v.parquet", demo, wrong)
        with pytest.raises(DataError, match=r"query: there are features of train, too few"):
            write_benchmark_vectors(tmp_path / "v.parquet", demo, {"train": feature_of(demo.train)})
        with pytest.raises(DataError, match=r"train: there are features of train, too few"):
            write_benchmark_vectors(tmp_path / "v.parquet", demo, {"train": numbers(5)})
        with pytest.raises(DataError, match=r"shape \(3,\) are not one vector for each"):
            write_benchmark_vectors(tmp_path / "v.parquet", demo, lambda images: np.zeros(len(images)))
        assert not (tmp_path / "v.parquet").exists() and not list(tmp_path.iterdir())
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError):
            write_benchmark_vectors(tmp_path / "file" / "v.parquet", demo, feature_of)


@pytest.mark.parametrize("rows", [0, 7, 9])
def test_a_file_whose_columns_have_several_numbers_of_rows_is_damaged(rows, tmp_path):
    file = table(tmp_path / "v.parquet", fixed(numbers()))
    assert read_vectors([file], "v", 8).shape == (8, 3)
    with pytest.raises(DataError, match="v: the column 'embedding' is damaged"):
        read_vectors([file], "v", rows)
