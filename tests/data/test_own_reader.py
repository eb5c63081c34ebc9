"""A reader of one's own, by name and as a function; and columns in memory, which it can make a benchmark of."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.data.read import read_source, takes_option
from divcon.errors import ConfigError, DataError, ImageError, TrustError

FOUR = [f"{c}/{i}.png" for c in "abcd" for i in (1, 2)]
LABELS = [path[0] for path in FOUR]
SPLIT = ["train"] * 4 + ["test"] * 4


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """``own_module(source)`` puts a module ``my_data`` where Python finds it."""

    def write(source: str) -> None:
        folder = tmp_path / "modules"
        folder.mkdir(exist_ok=True)
        (folder / "my_data.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "my_data", raising=False)

    yield write
    sys.modules.pop("my_data", None)


READER = """
import divcon as dc

def read(root, *, drop=(), flip=True):
    rows = [(f"{c}/{i}.png", c) for c in "abcd" if c not in drop for i in (1, 2)]
    columns = {"path": [path for path, _ in rows], "label": [label for _, label in rows]}
    columns["split"] = ["train" if label in "ab" else "test" for label in columns["label"]]
    return dc.read(columns, root, name="mine", flip=flip)
"""


def test_by_name_and_as_a_function(make_images, own_module):
    root = make_images(FOUR)
    own_module(READER)
    data = dc.read("my_data:read", root)
    assert (data.name, len(data.train), len(data.query)) == ("mine", 4, 4)
    assert data.query is data.gallery and data.query.open(0).size == (8, 8)
    assert data.split_hash == dc.read(root).split_hash
    import my_data  # type: ignore[reportMissingImports]

    assert dc.read(my_data.read, root, flip=False).train.flip is False


def test_options_are_checked_against_its_signature(make_images, own_module):
    own_module(READER)
    with pytest.raises(ConfigError, match=r"reader my_data:read: unknown option 'flipp'; did you mean 'flip'") as error:
        dc.read("my_data:read", make_images(FOUR), flipp=True)
    assert error.value.field == "flipp"
    assert takes_option("my_data:read", "flip") and not takes_option("my_data:read", "check_files")
    with pytest.raises(DataError, match=r"reader my_data:read: .*test has 1 class"):
        dc.read("my_data:read", make_images(FOUR), drop="c")


def test_it_is_passed_only_what_it_takes():
    data = dc.read("demo")
    calls = []

    def plain():
        calls.append({})
        return data

    def greedy(root=None, **options):
        calls.append(options)
        return data

    assert dc.read(plain) is data
    with pytest.raises(ConfigError, match=r"plain: takes no `root`"):
        dc.read(plain, "somewhere")
    assert dc.read(greedy, "somewhere", colour="red") is data
    assert calls[0] == {} and calls[1]["colour"] == "red" and "context" in calls[1]


def test_what_it_returns_and_raises_names_it():
    def no_benchmark():
        return {"path": []}

    with pytest.raises(DataError, match=r"reader .*no_benchmark: returned dict, not a divcon\.Benchmark"):
        dc.read(no_benchmark)

    def broken():
        raise KeyError("label")

    with pytest.raises(DataError, match=r"broken: failed with KeyError: 'label'") as error:
        dc.read(broken)
    assert isinstance(error.value.__cause__, KeyError)

    def refuses():
        raise ImageError("a.jpg: is cut off")

    with pytest.raises(ImageError, match=r"refuses: a\.jpg: is cut off"):
        dc.read(refuses)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone_module:read", r"reader 'gone_module:read': the module 'gone_module' cannot be imported"),
        ("my_data:rad", r"reader 'my_data:rad': unknown name in my_data 'rad'; did you mean 'read'"),
        ("my_data:__name__", r"is no function, but str"),
    ],
)
def test_a_name_that_names_no_reader(name, message, own_module):
    own_module(READER)
    with pytest.raises(ConfigError, match=message):
        dc.read(name)


def test_rows_that_identify_two_images():
    def numbered_twice():
        def images(paths, labels):
            return LabeledSet(np.array(labels), tuple("abcd"), pa.array(paths), np.arange(len(paths)), "mine")

        test = images(FOUR[4:], [2, 2, 3, 3])
        return dc.Benchmark("mine", images(FOUR[:4], [0, 0, 1, 1]), test, test)

    with pytest.raises(DataError, match=r"row 0 of 'mine' is a/1\.png in train and c/1\.png in test"):
        dc.read(numbered_twice)


def test_a_file_that_names_a_reader_imports_nothing_unless_trusted(make_images, own_module):
    own_module(READER)
    source = {"data": "my_data:read", "root": str(make_images(FOUR))}
    with pytest.raises(TrustError, match=r"runs/mine/config\.json: names my_data:read"):
        read_source(source, "runs/mine/config.json")
    assert "my_data" not in sys.modules
    assert read_source(source, "runs/mine/config.json", trust=["my_data"]).name == "mine"


class TestColumns:
    def test_a_dict_a_table_and_a_data_frame(self, make_images):
        root = make_images(FOUR)
        columns = {
            "path": [root / path for path in FOUR],
            "label": np.array([1, 1, 2, 2, 10, 10, 3, 3]),
            "split": SPLIT,
        }
        data = dc.read(columns, name="numbers")
        assert data.name == "numbers" and data.train.label_names == ("1", "2", "3", "10")
        table = pa.table({**columns, "path": FOUR})
        assert dc.read(table, root).train.open(0).size == (8, 8)

        class Frame:
            def __arrow_c_stream__(self, requested_schema=None):
                return table.__arrow_c_stream__(requested_schema)

        assert len(dc.read(Frame(), root).query) == 4

    def test_vectors_and_encoded_images(self, encoded):
        vectors = np.arange(24, dtype=np.float64).reshape(8, 3)
        data = dc.read({"embedding": vectors, "label": LABELS, "split": SPLIT})
        assert data.train.vectors is not None and data.train.vectors.dtype == np.float32
        np.testing.assert_array_equal(data.query.vectors, vectors[4:])
        images = dc.read({"image": [encoded(path) for path in FOUR], "label": LABELS, "split": SPLIT})
        assert images.query.open(1).size == (8, 8)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label": ["a", None, *LABELS[2:]]}, r"table row 1: the label is empty"),
            ({"label": LABELS[1:]}, r"table: is no table of columns of one length"),
            ({"split": [*SPLIT[:-1], "tset"]}, r"table row 7: the split is 'tset'"),
            ({"path": [*FOUR[:-1], "d/gone.png"]}, r"table row 7: d/gone\.png: there is no such file"),
            (
                {"path": None, "pths": [*"abcdefgh"]},
                r"table: there is no column 'path' among .*; rename 'pths'",
            ),
            ({"image": [7] * 8}, r"table: the column 'image' holds int64, not encoded images"),
            (
                {"embedding": [[1.0, 2.0]] * 7 + [[1.0]]},
                r"table row 7: the vector has 1 numbers",
            ),
            ({"label": []} | {"path": [], "split": []}, r"table: the table has no rows"),
        ],
    )
    def test_what_is_wrong_names_the_row(self, change, message, make_images):
        columns = {"path": FOUR, "label": LABELS, "split": SPLIT} | change
        with pytest.raises(DataError, match=message):
            dc.read({name: values for name, values in columns.items() if values is not None}, make_images(FOUR))

    def test_what_is_neither(self):
        with pytest.raises(DataError, match="int cannot be read: pass the name of a data set"):
            dc.read(3)  # type: ignore[arg-type]
