"""The user's columns in every kind of store: types, round trips, updates, and changes of a type."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError, NonFiniteError, StoreError
from divcon.search import Changes, Store
from divcon.search.about import About, about_of
from divcon.search.columns import TYPES, Unfit, columns_of_source, convert, python_value, stored_value
from divcon.search.filters import conditions_of
from divcon.search.items import Items, chunks_of, items_of
from divcon.search.parts import read_shards, write_shard
from divcon.search.update import Embedder

Vectors = Callable[..., LabeledSet]


def table_of(folder: Path, header: str, *rows: str, name: str = "t.csv") -> Path:
    """A CSV of vectors' names; the vectors themselves are beside it."""
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def images(image_folder: Path) -> list[Path]:
    return sorted(image_folder.rglob("*.png"))


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """``parquet(price=[1, 2])``: a parquet of vectors of 12 dimensions with these columns."""

    def make(**columns: Any) -> Path:
        number = len(next(iter(columns.values())))
        vectors = np.random.default_rng(0).normal(size=(number, 12)).astype(np.float32)
        flat = pa.array(vectors.reshape(-1))
        table = pa.table({"path": [f"v{i}" for i in range(number)], **columns})
        table = table.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, 12))
        pq.write_table(table, tmp_path / "vectors.parquet")
        return tmp_path / "vectors.parquet"

    return make


def stored(index: dc.Index) -> list[dict[str, Any]]:
    """The columns of all items, in order of their ids."""
    return [index.item(int(id_)).metadata for id_ in index.store.ids()]


TYPED: dict[str, tuple[list[Any], str]] = {
    "text": (["00003", "", None, "NA"], "text"),
    "int": ([2**53 + 1, -(2**63), None, 2**63 - 1], "int"),
    "small": (pa.array([1, None, 3, 255], pa.uint8()), "int"),
    "huge": (pa.array([2**63 - 1, None, 3, 0], pa.uint64()), "int"),
    "float": ([0.1, 1e300, None, float("inf")], "float"),
    "half": (pa.array([0.5, None, 2.0, -1.0], pa.float32()), "float"),
    "bool": ([True, None, False, True], "bool"),
    "date": ([date(2024, 2, 29), date(1, 1, 1), None, date(9999, 12, 31)], "date"),
    "datetime": ([datetime(2024, 2, 29, 12, 30, 0, 5), None, datetime(1066, 10, 14), datetime(2024, 1, 1)], "datetime"),
    "utc": ([datetime(2024, 2, 29, 12, 30, tzinfo=UTC), None, datetime(2024, 1, 1, tzinfo=UTC)] * 1, "datetime-utc"),
    "decimal": ([Decimal("1.10"), None, Decimal("-0.03"), Decimal("12345678901234567890.12")], "decimal"),
    "list": ([["a", "b"], [], None, ["ü"]], "json"),
    "struct": ([{"a": 1, "b": None}, None, {"a": 3, "b": "x"}, {"a": 4, "b": "y"}], "json"),
    "colour": (pa.array(["red", None, "blue", "red"]).dictionary_encode(), "text"),
}
TYPED["utc"][0].append(datetime(2024, 5, 1, 2, tzinfo=timezone(timedelta(hours=2))).astimezone(UTC))


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["parquet", "python"])
def test_nothing_is_lost_or_changed(
    form: str, uri: Any, model: dc.EmbeddingModel, vectors: Vectors, parquet: Callable[..., Path]
) -> None:
    columns = {name: values for name, (values, _) in TYPED.items()}
    if form == "parquet":
        index = dc.Index.build(model, parquet(**columns), uri)
    else:
        index = dc.Index.build(model, vectors(4), uri, columns=columns)
    assert index.column_types == {name: type_ for name, (_, type_) in TYPED.items()}
    plain = {name: v.to_pylist() if isinstance(v, pa.Array) else v for name, v in columns.items()}
    expected = [{name: values[i] for name, values in plain.items()} for i in range(4)]
    got = stored(index)
    assert got == expected
    assert [[type(value) for value in row.values()] for row in got] == [
        [type(value) for value in row.values()] for row in expected
    ]
    assert [str(row["decimal"]) for row in got] == ["1.10", "None", "-0.03", "12345678901234567890.12"]
    assert index.missing_values() == dict.fromkeys(TYPED, 1)
    for hit in index.search(0, k=4):
        assert hit.metadata == expected[hit.id]
        assert json.loads(json.dumps(hit.to_dict()))["metadata"]["text"] == expected[hit.id]["text"]
    # The same data again changes nothing, and neither does opening the index anew.
    again = dc.Index.open(uri, model)
    data = parquet(**columns) if form == "parquet" else vectors(4)
    options = {} if form == "parquet" else {"columns": columns}
    assert again.update(data, **options) == Changes(kept=4)
    assert stored(again) == expected


def test_a_csv_is_text_until_it_is_declared(uri: Any, tiny_model: Any, images: list[Path], tmp_path: Path) -> None:
    values = [
        ("00003", "NA", "1.50", "2024-05-01", "true"),
        ("00010", "null", "10", "2024-05-02", "False"),
        ("7", "", "", "", ""),
        ("08", '""', "9.25", "2024-12-31", "0"),
        ("1e3", "None", "-3", "2023-01-01", "yes"),
        ("  7", "nan", "2", "2024-05-03", "no"),
    ]
    rows = [f"{path},{','.join(row)}" for path, row in zip(images, values, strict=False)]
    data = table_of(tmp_path, "path,sku,country,price,day,sold", *rows)
    model = tiny_model()
    index = dc.Index.build(model, data, uri)
    assert set(index.column_types.values()) == {"text"}
    assert [row["sku"] for row in stored(index)] == ["00003", "00010", "7", "08", "1e3", "  7"]
    assert [row["country"] for row in stored(index)] == ["NA", "null", None, "", "None", "nan"]
    assert [row["price"] for row in stored(index)] == ["1.50", "10", None, "9.25", "-3", "2"]
    ids = lambda where: sorted(hit.id for hit in index.search(0, k=10, where=where))  # noqa: E731
    assert ids({"country": ""}) == ids("country=") == [3]
    assert (ids("country=NA"), ids("country=null"), ids("country=None"), ids("sku=00003")) == ([0], [1], [4], [0])
    assert ids("country!=NA") == [1, 3, 4, 5]  # a missing value never matches

    types = {"price": "float", "day": "date", "sold": "bool"}
    with pytest.raises(DataError, match=r"'price' is text in the index, and float in this data: either read it as"):
        index.update(data, column_types=types)
    assert index.change_types(types) == 6
    assert index.column_types == {"sku": "text", "country": "text", **types}
    assert [row["price"] for row in stored(index)] == [1.5, 10.0, None, 9.25, -3.0, 2.0]
    assert [row["sold"] for row in stored(index)] == [True, False, None, False, True, False]
    assert stored(index)[3]["day"] == date(2024, 12, 31)
    assert ids("price<9.5") == [0, 3, 4, 5]
    assert ids({"price": (">", 2), "day": (">=", date(2024, 5, 2))}) == [1, 3]
    assert ids("day<2024-05-02") == [0, 4]
    assert ids({"sold": True}) == ids("sold=yes") == [0, 4]
    # A CSV has no types, so that the same file brings nothing new; with the types declared neither.
    assert index.update(data) == Changes(kept=6)
    assert index.update(data, column_types=types) == Changes(kept=6)
    assert dc.Index.open(uri, model).column_types == index.column_types

    broken = table_of(tmp_path, "path,price", f"{images[0]},1", f"{images[1]},cheap", f"{images[2]},dear", name="b.csv")
    with pytest.raises(DataError, match=r"b\.csv line 3: .*: the column 'price': 'cheap' is no float \(and 1 more"):
        index.update(broken)
    assert stored(index)[0]["price"] == 1.5


@pytest.mark.parametrize(
    ("columns", "type_", "said"),
    [
        ({"price": ["1"] * 4}, "int", "'price' is int in the index, and text in this data"),
        ({"price": [1.5] * 4}, "int", "'price' is int in the index, and float in this data"),
        ({"price": [True] * 4}, "int", "'price' is int in the index, and bool in this data"),
        ({"price": [1] * 4}, "text", "'price' is text in the index, and int in this data"),
        ({"price": [date(2024, 1, 1)] * 4}, "text", "'price' is text in the index, and date in this data"),
        ({"price": [1] * 4}, "date", "'price' is date in the index, and int in this data"),
        ({"price": [2**53 + 1] * 4}, "float", "9007199254740993 would become 9007199254740992"),
    ],
)
def test_an_update_of_another_type_is_refused(
    columns: dict[str, Any], type_: str, said: str, uri: Any, model: dc.EmbeddingModel, vectors: Vectors
) -> None:
    first = {"int": 3, "text": "3", "date": date(2024, 1, 1), "float": 0.5}[type_]
    index = dc.Index.build(model, vectors(4), uri, columns={"price": [first] * 4})
    with pytest.raises(DataError, match=said):
        index.update(vectors(6), columns={name: values + values[:2] for name, values in columns.items()})
    assert len(index) == 4  # nothing of it was written
    assert [row["price"] for row in stored(index)] == [first] * 4


def test_integers_become_floats_and_empty_columns_any_type(
    uri: Any, model: dc.EmbeddingModel, vectors: Vectors
) -> None:
    index = dc.Index.build(model, vectors(4), uri, columns={"price": [0.5, 1.5, 2.5, 3.5]})
    assert index.update(vectors(4), columns={"price": [1, 2, 3, None]}).changed == 4
    assert [row["price"] for row in stored(index)] == [1.0, 2.0, 3.0, None]
    assert type(stored(index)[0]["price"]) is float
    assert index.update(vectors(4), columns={"price": [None] * 4}).changed == 3
    assert index.column_types == {"price": "float"}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            {"sku": 3},
            "3 cannot be a value of column 'sku', which holds text values; pass text \\('3'\\), or",
        ),
        ({"sku": ("<", 3.5)}, "which holds text values"),
        ({"sku": [3, "x"]}, "which holds text values"),
        ({"sku": True}, "True cannot be a value of column 'sku'"),
        ("sku<10", "column 'sku' holds text values, whose order is that of letters .* and 10 is a number"),
        ("sku>=-1e3", "column 'sku' holds text values"),
        ({"label": 3}, "3 cannot be a value of column 'label', which holds text values; pass text"),
        ({"path": 3}, "'path'"),
        ("label>7", "column 'label' holds text values"),
        ({"count": "3"}, "'3' cannot be a value of column 'count', which holds int values; pass a number"),
        ({"count": True}, "True cannot be a value of column 'count'"),
        ("count=three", "'three' cannot be a value of column 'count', which holds int values"),
        ({"count": date(2024, 1, 1)}, "which holds int values"),
        ({"price": "3"}, "'3' cannot be a value of column 'price', which holds float values"),
        ({"price": 2**53 + 1}, "9007199254740993 cannot be a value of column 'price'"),
        ({"flag": 1}, "1 cannot be a value of column 'flag', which holds bool values"),
        ({"flag": "true"}, "'true' cannot be a value of column 'flag'"),
        ("flag=maybe", "'maybe' is no bool"),
        ({"day": 20240501}, "20240501 cannot be a value of column 'day', which holds date values"),
        ("day<5", "column 'day' holds date values, and '5' is no date; write it as 2024-05-31"),
        ({"day": datetime(2024, 1, 1)}, "which holds date values"),
        ({"time": date(2024, 1, 1)}, "which holds datetime values"),
        ({"time": "2024-01-01T00:00:00Z"}, "has a time zone, and datetime has none"),
        ({"cost": True}, "True cannot be a value of column 'cost', which holds decimal values"),
        ("tags=a", "column 'tags' holds json values"),
    ],
)
def test_a_comparison_of_unlike_types_is_refused(where: Any, said: str) -> None:
    columns = pa.schema(
        [
            ("sku", pa.string()),
            ("count", pa.int32()),
            ("price", pa.float32()),
            ("flag", pa.bool_()),
            ("day", pa.date32()),
            ("time", pa.timestamp("ns")),
            ("cost", pa.decimal128(10, 2)),
            ("tags", pa.list_(pa.string())),
        ]
    )
    with pytest.raises(ConfigError, match=said) as caught:
        conditions_of(where, About("0", 3).with_columns(columns))
    assert caught.value.field == "where"


@pytest.mark.heavy
def test_filters_of_dates_times_and_decimals(uri: Any, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    days = [date(2024, 5, 1), date(999, 1, 1), None, date(2024, 12, 31)]
    times = [datetime(2024, 5, 1, 8), datetime(2024, 5, 1, 8, 0, 0, 1), datetime(2023, 1, 1), None]
    utc = [datetime(2024, 5, 1, 8, tzinfo=UTC), None, datetime(2024, 5, 1, 7, tzinfo=UTC), datetime.now(UTC)]
    costs = [Decimal("9.90"), Decimal("10.00"), Decimal("-1"), None]
    columns = {"day": days, "time": times, "utc": utc, "cost": costs, "a<b": [1, 2, 3, 4], "n": [1, 2, 3, 4]}
    index = dc.Index.build(model, vectors(4), uri, columns=columns)

    def ids(where: Any) -> list[int]:
        return sorted(hit.id for hit in index.search(0, k=4, where=where))

    assert ids({"day": ("<", date(2024, 6, 1))}) == ids("day<2024-06-01") == [0, 1]
    assert ids({"day": [date(999, 1, 1), "2024-12-31"]}) == [1, 3]
    assert ids({"time": (">", datetime(2024, 5, 1, 8))}) == ids("time>2024-05-01 08:00") == [1]
    plus_two = timezone(timedelta(hours=2))
    assert ids({"utc": datetime(2024, 5, 1, 10, tzinfo=plus_two)}) == ids("utc=2024-05-01T10:00:00+02:00") == [0]
    assert ids({"utc": ("<", "2024-05-01T07:30:00Z")}) == [2]
    assert ids({"cost": (">", Decimal("9.9"))}) == ids("cost>9.9") == ids({"cost": (">", 9.9)}) == [1]
    assert ids({"cost": [Decimal("9.9"), -1]}) == [0, 2]
    assert ids({"cost": ("!=", 10), "n": ("<", 3)}) == [0]
    assert ids("a<b>=3") == [2, 3]
    assert ids("a<b<3") == [0, 1]


JSON_LINES = [
    '{"path": "%s", "id": 9007199254740993, "when": "2024-05-01T00:00:00Z", "tags": ["a", 1.5], "price": 1}',
    '{"path": "%s", "id": -1, "when": "NA", "tags": null, "price": 2.5, "sold": true}',
    '{"path": "%s", "when": "", "tags": {"a": [9007199254740993]}, "price": null, "sold": false}',
]


def test_json_lines_keep_their_types(tiny_model: Any, images: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "t.jsonl"
    data.write_text("\n".join(line % path for line, path in zip(JSON_LINES, images, strict=False)) + "\n")
    index = dc.Index.build(tiny_model(), data, tmp_path / "store")
    assert index.column_types == {"id": "int", "when": "text", "tags": "json", "price": "float", "sold": "bool"}
    assert stored(index) == [
        {"id": 2**53 + 1, "when": "2024-05-01T00:00:00Z", "tags": ["a", 1.5], "price": 1.0, "sold": None},
        {"id": -1, "when": "NA", "tags": None, "price": 2.5, "sold": True},
        {"id": None, "when": "", "tags": {"a": [2**53 + 1]}, "price": None, "sold": False},
    ]
    lines = [line % path for line, path in zip(JSON_LINES, images, strict=False)]
    exact = data.with_name("exact.jsonl")
    exact.write_text(
        "\n".join(lines).replace("2.5", "2.50000000000000000001").replace(": -1,", ": 18446744073709551616,")
    )
    with pytest.raises(DataError, match=r"exact\.jsonl line 2: the column 'id': 18446744073709551616 is larger"):
        dc.Index.build(tiny_model(), exact, tmp_path / "other")
    types = {"id": "text", "price": "decimal"}
    other = dc.Index.build(tiny_model(), exact, tmp_path / "other", column_types=types)
    assert [row["id"] for row in stored(other)] == ["9007199254740993", "18446744073709551616", None]
    assert stored(other)[1]["price"] == Decimal("2.50000000000000000001")


def test_values_of_several_types_in_one_column(model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    def build(values: list[Any], **types: str) -> dc.Index:
        return dc.Index.build(model, vectors(3), tmp_path / "s", columns={"x": values}, column_types=types)

    with pytest.raises(DataError, match=r"`columns` row 2: the column 'x' is text here \('b'\), and int in .* row 0"):
        build([1, None, "b"])
    with pytest.raises(DataError, match="is bool here"):
        build([1, True, 2])
    with pytest.raises(DataError, match="9007199254740993 would become 9007199254740992"):
        build([0.5, 2**53 + 1, None])
    with pytest.raises(DataError, match=r"row 1: the column 'x' holds a value of type bytes"):
        build(["a", b"b", None])
    with pytest.raises(DataError, match=r"row 0: .* is no text in UTF-8"):
        build(["\ud800", None, None])
    index = build([1, None, "b"], x="text")
    assert [row["x"] for row in stored(index)] == ["1", None, "b"]


def test_columns_of_arrays_and_tables(model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    columns = {
        "int": np.array([1, 2, 3], np.uint16),
        "float": np.array([0.5, np.nan, 2]),
        "text": np.array(["a", "", "c"]),
        "object": np.array(["a", None, "c"], object),
        "day": np.array(["2024-05-01", "NaT", "2024-05-03"], "datetime64[D]"),
        "time": np.array(["2024-05-01T08:00", "NaT", "2024-05-03T08:00"], "datetime64[ns]"),
    }
    index = dc.Index.build(model, vectors(3), tmp_path / "a", columns=columns)
    types = ["int", "float", "text", "text", "date", "datetime"]
    assert list(index.column_types.values()) == types
    assert list(stored(index)[1].values()) == [2, None, "", None, None, None]
    assert stored(index)[2]["time"] == datetime(2024, 5, 3, 8)
    table = pa.table({"a": [1, 2, 3], "b": ["x", "y", None]})
    index = dc.Index.build(model, vectors(3), tmp_path / "b", columns=table)
    assert stored(index) == table.to_pylist()
    twins = pa.table([[1, 2, 3], [4, 5, 6]], names=["a", "a"])
    for wrong, said in (
        (twins, "two columns 'a'"),
        ({"a": [1, 2]}, "has 2 rows for 3 images"),
        ({"a": [1, 2, 3], "b": [1]}, "a has 3, b has 1"),
        ({"a": "abc"}, "pass one value a row"),
        ({"a": np.ones((3, 2))}, r"an array of shape \(3, 2\)"),
        (7, "`columns` is of type int"),
    ):
        with pytest.raises(DataError, match=said):
            dc.Index.build(model, vectors(3), tmp_path / "c", columns=wrong)
    fine = pa.table({"t": pa.array([1, None, 3], pa.timestamp("ns"))})
    with pytest.raises(DataError, match=r"row 0: the column 't': .* is finer than microseconds"):
        dc.Index.build(model, vectors(3), tmp_path / "d", columns=fine)


def test_columns_of_a_table_in_memory_are_kept(model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    data = vectors(10)
    table = {
        "embedding": data.vectors,
        "label": [f"l{i % 5}" for i in range(10)],
        "sku": [f"{i:05}" if i else None for i in range(10)],
        "day": [date(2024, 5, 1 + i) for i in range(10)],
    }
    gallery = dc.read(table).gallery
    assert 0 < len(gallery) < 10
    index = dc.Index.build(model, gallery, tmp_path / "s")
    assert index.column_types == {"sku": "text", "day": "date"}
    expected = [{"sku": table["sku"][i], "day": table["day"][i]} for i in gallery.rows]
    assert stored(index) == expected
    assert stored(dc.Index.build(model, pickle.loads(pickle.dumps(gallery)), tmp_path / "t")) == expected


def test_columns_that_are_no_metadata_are_left_out_and_named(
    model: dc.EmbeddingModel, parquet: Callable[..., Path], tmp_path: Path
) -> None:
    said: list[str] = []
    data = parquet(
        clip=[[0.5, 1.0], [1.0, 2.0]],
        thumbnail=[b"1", b"2"],
        nested=[{"a": b"1"}, {"a": b"2"}],
        span=[timedelta(1), None],
        name=["a", "b"],
    )
    index = dc.Index.create(model, tmp_path / "s")
    index.update(data, context=dc.Context(on_warning=said.append))
    assert index.column_types == {"name": "text"}
    assert [text.split("'")[1] for text in said] == ["clip", "thumbnail", "nested", "span"]
    assert "declare it json to keep it" in said[0]
    said.clear()
    lines = tmp_path / "t.jsonl"
    lines.write_text('{"path": "a", "clip": [0.5, 1], "sizes": [1, 2]}\n{"path": "b", "clip": null}\n')
    columns = columns_of_source(str(lines), warn=said.append)
    assert columns is not None and columns.column_names == ["sizes"]
    assert said == ["left out: the column 'clip', which holds vectors; declare it json to keep it"]
    other = dc.Index.build(model, data, tmp_path / "t", column_types={"clip": "json"})
    assert stored(other)[0] == {"clip": [0.5, 1.0], "name": "a"}


def test_two_columns_of_one_name(tiny_model: Any, images: list[Path], tmp_path: Path) -> None:
    data = table_of(tmp_path, "path,price,price", f"{images[0]},1,2")
    with pytest.raises(DataError, match=r"t\.csv: there are two columns 'price'"):
        dc.Index.build(tiny_model(), data, tmp_path / "store")


def test_a_column_of_several_types_in_a_folder_of_tables(
    model: dc.EmbeddingModel, parquet: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name, price, extra in (("a", [1, 2], ["x", "y"]), ("b", [1.5, 2.5], [None, None])):
        columns = {"price": price, "extra": pa.array(extra, pa.string() if name == "a" else pa.null())}
        data = pq.read_table(parquet(**columns))
        data = data.set_column(0, "path", pa.array([f"{name}0", f"{name}1"])).append_column(
            "label", pa.array(["l", "m"])
        )
        pq.write_table(data, folder / f"train-{name}.parquet")
    with pytest.raises(DataError, match=r"'price' is int in .*train-a.*, and float in .*train-b.*; declare its type"):
        dc.Index.build(model, folder, tmp_path / "s")
    index = dc.Index.build(model, folder, tmp_path / "s", column_types={"price": "decimal"})
    assert [row["price"] for row in stored(index)] == [Decimal(1), Decimal(2), Decimal("1.5"), Decimal("2.5")]
    assert [row["extra"] for row in stored(index)] == ["x", "y", None, None]


@pytest.mark.parametrize(
    ("types", "said"),
    [
        ({"price": "floaty"}, "unknown type 'floaty'; did you mean 'float'"),
        ({"prise": "float"}, "unknown column 'prise'; did you mean 'price'"),
        ({"price": float}, "unknown type"),
        ("price=float", "pass names and types"),
    ],
)
def test_types_that_cannot_be(
    types: Any, said: str, model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path
) -> None:
    index = dc.Index.build(model, vectors(2), tmp_path / "s", columns={"price": ["1", "2"]})
    for act in (
        lambda: index.update(vectors(2), columns={"price": ["1", "2"]}, column_types=types),
        lambda: index.change_types(types),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            act()
        assert caught.value.field == "column_types"
    with pytest.raises(ConfigError, match="this data has no columns"):
        index.update(vectors(2), column_types={"price": "float"})


# --------------------------------------------------------------------------------------------------- changes of a type


CHANGES = [
    (["1", "-20", None], "int", [1, -20, None]),
    (["9.90", "1e3", None], "float", [9.9, 1000.0, None]),
    (["9.90", "1", None], "decimal", [Decimal("9.90"), Decimal(1), None]),
    (["true", "No", None], "bool", [True, False, None]),
    (["2024-02-29", None, "0001-01-01"], "date", [date(2024, 2, 29), None, date(1, 1, 1)]),
    (["2024-05-01T08:00", None, "2024-05-01 08:00:00.5"], "datetime", None),
    (["2024-05-01T08:00+02:00", None, "2024-05-01 08:00:00 UTC"], "datetime-utc", None),
    (['["a"]', None, "3"], "json", [["a"], None, 3]),
    ([1, 2**53, None], "float", [1.0, 2.0**53, None]),
    ([1, 2**53 + 1, None], "text", ["1", "9007199254740993", None]),
    ([1.0, -3.0, None], "int", [1, -3, None]),
    ([0.1, 1e-7, None], "text", ["0.1", "1e-07", None]),
    ([0, 1, None], "bool", [False, True, None]),
    ([True, False, None], "text", ["true", "false", None]),
    ([date(2024, 5, 1), None, date(2024, 5, 2)], "text", ["2024-05-01", None, "2024-05-02"]),
    ([date(2024, 5, 1), None, date(2024, 5, 2)], "datetime", [datetime(2024, 5, 1), None, datetime(2024, 5, 2)]),
    ([Decimal("1.5"), None, Decimal(3)], "float", [1.5, None, 3.0]),
    ([[1], None, {"a": "ü"}], "text", ["[1]", None, '{"a": "ü"}']),
]


@pytest.mark.heavy
def test_a_change_of_a_type_converts_every_value(uri: Any, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    columns = {f"column {i}": values for i, (values, _, _) in enumerate(CHANGES)}
    index = dc.Index.build(model, vectors(3), uri, columns={**columns, "same": ["a", "", None]})
    before = index.search(1, k=3)
    reader = dc.Index.open(uri, model)
    assert index.change_types({f"column {i}": type_ for i, (_, type_, _) in enumerate(CHANGES)}) == 3
    for i, (_, type_, expected) in enumerate(CHANGES):
        assert reader.column_types[f"column {i}"] == type_
        if expected is not None:
            assert [row[f"column {i}"] for row in stored(reader)] == expected
    assert stored(reader)[2]["column 5"] == datetime(2024, 5, 1, 8, 0, 0, 500_000)
    assert stored(reader)[0]["column 6"] == datetime(2024, 5, 1, 6, tzinfo=UTC)
    assert [row["same"] for row in stored(reader)] == ["a", "", None]
    assert [(hit.id, hit.score, hit.label, hit.path) for hit in reader.search(1, k=3)] == [
        (hit.id, hit.score, hit.label, hit.path) for hit in before
    ]
    assert index.change_types({"column 0": "int"}) == 0
    # The columns go on as before: updates, filters, and another change.
    assert [hit.id for hit in reader.search(0, k=3, where={"column 0": ("<", 0)})] == [1]
    assert index.update(vectors(3), columns={"column 0": [5, 6, 7]}).changed == 3
    assert index.change_types({"column 0": "text"}) == 3
    assert [row["column 0"] for row in stored(reader)] == ["5", "6", "7"]
    assert len(index) == 3


@pytest.mark.parametrize(
    ("values", "type_", "said"),
    [
        (
            ["00003", "4", "05"],
            "int",
            r"values of 2 of 3 rows: item00000 \(id 0\): '00003' would become 3",
        ),
        (["1", "cheap", "3"], "float", r"1 of 3 rows: item00001 \(id 1\): 'cheap' is no float"),
        (["1", "", "3"], "float", r"item00001 .* '' is no float, and leave it empty where there is no value"),
        (["NA", "1", "2"], "int", "'NA' is no int"),
        (["1.5", "1", "2"], "int", "'1.5' is no int"),
        (["9007199254740993", "1", "2"], "float", "would become 9007199254740992.0"),
        (["0.12345678901234567890", "1", "2"], "float", "would become 0.12345678901234568"),
        (["007.5", "1", "2"], "float", "would become 7.5"),
        (["1e999", "1", "2"], "float", "is larger than float holds"),
        ([1.5, 2.0, 3.0], "int", "1.5 is float, and int cannot hold it"),
        ([2**53 + 1, 2, 3], "float", "9007199254740993 would become 9007199254740992"),
        ([2, 1, 0], "bool", "2 is int, and bool cannot hold it"),
        (["2024-13-01", None, None], "date", "'2024-13-01' is no date"),
        (["01/05/2024", None, None], "date", "is no date; write it as 2024-05-31"),
        ([datetime(2024, 1, 1, 8), None, None], "date", "date cannot hold it"),
        ([Decimal("0.1234567890123456789"), None, None], "float", "float cannot hold it"),
        ([["a"], None, None], "int", "json, and int cannot hold it"),
    ],
)
def test_a_change_that_would_lose_a_value_changes_nothing(
    values: list[Any], type_: str, said: str, uri: Any, model: dc.EmbeddingModel, vectors: Vectors
) -> None:
    index = dc.Index.build(model, vectors(3), uri, columns={"x": values, "y": ["1", "2", "3"]})
    types, rows = index.column_types, stored(index)
    with pytest.raises(DataError, match=said):
        index.change_types({"y": "int", "x": type_})
    assert index.column_types == types
    assert stored(index) == rows


def test_a_change_that_is_interrupted_keeps_the_old_values(
    uri: Any, model: dc.EmbeddingModel, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = dc.Index.build(model, vectors(3), uri, columns={"x": ["1", None, "3"]})

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(index.store), "_change" if index.uri.startswith("postgres") else "write_values", killed)
        with pytest.raises(KeyboardInterrupt):
            index.change_types({"x": "int"})
    again = dc.Index.open(uri, model)
    assert again.column_types == {"x": "text"}
    assert [row["x"] for row in stored(again)] == ["1", None, "3"]
    assert again.update(vectors(4), columns={"x": ["1", None, "3", "4"]}) == Changes(added=1, embedded=1, kept=3)
    assert [hit.id for hit in again.search(0, k=4, where={"x": "4"})] == [3]
    assert again.change_types({"x": "int"}) == 4
    assert again.column_types == {"x": "int"}
    assert [row["x"] for row in stored(again)] == [1, None, 3, 4]


def test_a_change_needs_the_store_for_itself(uri: Any, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    index = dc.Index.build(model, vectors(3), uri, columns={"x": ["1", None, "3"]})
    with dc.Index.open(uri, model).store.writing(), pytest.raises(StoreError, match="another process is writing"):
        index.change_types({"x": "int"})


@pytest.mark.parametrize("type_", list(TYPES))
def test_every_type_becomes_text_and_comes_back(type_: str) -> None:
    values: dict[str, list[Any]] = {
        "text": ["", "00003", "NA", "ü\n"],
        "int": [0, -(2**63), 2**63 - 1],
        "float": [0.1, -0.0, 1e-300, 1e300, float("inf"), float("-inf")],
        "bool": [True, False],
        "date": [date(2024, 2, 29), date(1, 1, 1)],
        "datetime": [datetime(2024, 2, 29, 1, 2, 3, 4), datetime(1, 1, 1)],
        "datetime-utc": [datetime(2024, 2, 29, 1, 2, 3, 4, UTC)],
        "decimal": [Decimal("1.10"), Decimal("-1E+3")],
        "json": [[1, "ü"], {"a": None}, "text", 3],
    }
    for value in values[type_]:
        inside = stored_value(value, type_)
        text = convert(inside, type_, "text")
        assert isinstance(text, str)
        assert python_value(convert(text, "text", type_, exact=True), type_) == value
    for other in TYPES:  # a change either returns the value, or refuses
        for value in values[type_]:
            inside = stored_value(value, type_)
            try:
                changed = convert(inside, type_, other, exact=True)
            except Unfit:
                continue
            assert python_value(convert(changed, other, type_), type_) == value


# ------------------------------------------------------------------------------------------------------- other matters


def test_an_index_of_an_earlier_version_takes_csv_and_new_types(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(Path(__file__).parent / "data" / "index_format_1", folder)
    index = dc.Index.open(folder / "index", folder / "model")
    assert index.column_types == {"price": "int", "Colour (EU)": "text"}
    flat = pa.array(np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32).reshape(-1))
    data = LabeledSet(
        labels=np.zeros(30, np.int64),
        label_names=("",),
        paths=pa.array([str(i) for i in range(30)]),
        rows=np.arange(30),
        source="",
        vectors=flat.to_numpy().reshape(30, 12),
    )
    # As a CSV of before: text, of which that version made integers, and missing values of "NA".
    colours, marked = (["red", "blue", None] * 10), {b"divcon type": b"untyped"}
    schema = pa.schema([pa.field("price", pa.string(), metadata=marked), pa.field("Colour (EU)", pa.string())])
    prices = [str(i) for i in range(30)]
    assert index.update(data, columns=pa.table([prices, colours], schema=schema)) == Changes(kept=30)
    prices[3:5] = ["NA", "007"]
    assert index.update(data, columns=pa.table([prices, colours], schema=schema)).changed == 2
    assert [row["price"] for row in stored(index)[2:6]] == [2, None, 7, 5]
    days = [date(2024, 5, 1)] * 30
    assert index.update(data, columns={"price": range(30), "Colour (EU)": days}).changed == 30
    assert stored(index)[0]["Colour (EU)"] == "2024-05-01"
    assert index.change_types({"price": "float", "Colour (EU)": "date"}) == 30
    assert index.column_types == {"price": "float", "Colour (EU)": "date"}
    assert stored(dc.Index.open(folder / "index"))[7] == {"price": 7.0, "Colour (EU)": date(2024, 5, 1)}


def test_shards_keep_types(uri: Any, model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    columns = {"day": [date(2024, 5, 1 + i) for i in range(20)], "sku": [f"{i:05}" for i in range(20)]}
    for shard in (1, 2):
        chunks = chunks_of(items_of(vectors(20), columns)[0], 5)
        write_shard(Embedder(model), about_of(model), chunks, tmp_path / "parts", shard, 2)
    about, _, parts = read_shards(tmp_path / "parts")
    index = dc.Index.for_about(about, uri, model)
    assert index.load(parts) == Changes(added=20)
    assert index.column_types == {"day": "date", "sku": "text"}
    assert stored(index)[7] == {"day": date(2024, 5, 8), "sku": "00007"}
    assert index.update(vectors(20), columns=columns) == Changes(kept=20)
    other = dc.Index.build(model, vectors(20), tmp_path / "int", columns={"sku": range(20)})
    with pytest.raises(DataError, match="'sku' is int in the index, and text in this data"):
        other.load(read_shards(tmp_path / "parts")[2])


def test_own_chunks_of_items_have_types(model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    data = vectors(6)
    names = data.paths.to_pylist()
    table = pa.table({"day": [date(2024, 5, 1)] * 6})
    index = dc.Index.create(model, tmp_path / "s")
    assert index.update(iter([Items(data, names, [None] * 6, table)])).added == 6
    assert stored(index)[5] == {"day": date(2024, 5, 1)}
    with pytest.raises(ConfigError, match="items have their columns"):
        index.update(iter([]), column_types={"day": "text"})


def test_text_that_postgres_cannot_hold_is_named(
    uri: Any, model: dc.EmbeddingModel, vectors: Vectors, request: pytest.FixtureRequest
) -> None:
    columns = {"x": ["a", "b\0c", None]}
    if isinstance(uri, Store) or not uri.startswith("postgres"):
        assert stored(dc.Index.build(model, vectors(3), uri, columns=columns))[1]["x"] == "b\0c"
        return
    with pytest.raises(StoreError, match=r"'item00001': the column 'meta_x' holds .* with a character NUL"):
        dc.Index.build(model, vectors(3), uri, columns=columns)


# ------------------------------------------------------------------------------------- the smallest score, and vectors


@pytest.mark.parametrize("options", [{}, {"learner": 1}, {"where": "label=a"}])
def test_a_smallest_score(options: dict[str, Any], uri: Any, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    data = vectors(60)
    index = dc.Index.build(model, data, uri)
    hits = index.search(3, k=60, **options)
    for least in (-1, 0, 0.3, hits[4].score, 1):
        expected = [hit for hit in hits if hit.score >= least]
        assert index.search(3, k=60, min_score=least, **options) == expected
        assert index.search(3, k=3, min_score=least, **options) == expected[:3]
    assert 0 < len(index.search(3, k=60, min_score=0.3, **options)) < len(hits)
    assert index.search(3, k=60, min_score=float(np.float64(hits[4].score)), **options)[-1].id == hits[4].id
    rows = index.search(["item00003", 5, 7], k=60, min_score=0.5, **options)
    assert rows == [[hit for hit in index.search(i, k=60, **options) if hit.score >= 0.5] for i in (3, 5, 7)]


def test_a_smallest_score_with_an_approximate_index(uri: Any, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    index = dc.Index.build(model, vectors(500), uri, ann_from=300)
    hits = index.search(3, k=20)
    assert index.search(3, k=20, min_score=hits[6].score) == hits[:7]


@pytest.mark.parametrize("score", [1.01, -1.5, float("nan"), "0.5", True, None])
def test_a_smallest_score_that_cannot_be(
    score: Any, model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path
) -> None:
    index = dc.Index.build(model, vectors(3), tmp_path / "s")
    if score is None:
        assert len(index.search(0, min_score=score)) == 3
        return
    with pytest.raises(ConfigError, match=r"`min_score` .*: pass a cosine similarity, -1 to 1") as caught:
        index.search(0, min_score=score)
    assert caught.value.field == "min_score"


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "has nan in place 4"), (np.inf, "has inf"), (3e19, ".* overflow")]
)
@pytest.mark.parametrize("form", ["set", "array", "tuple", "items"])
def test_vectors_that_nothing_can_be_computed_from(
    form: str, value: float, said: str, model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path
) -> None:
    data = vectors(9)
    data.vectors[6, 4] = value
    forms: dict[str, tuple[Any, str]] = {
        "set": (data, "item00006: the vector"),
        "array": (data.vectors, "row 6: the vector"),
        "tuple": ((data.vectors, list("abcabcabc")), "row 6: the vector"),
        "items": (chunks_of(items_of(data)[0], 4), "item00006: the vector"),
    }
    passed, name = forms[form]
    with pytest.raises(DataError, match=f"{name} {said}"):
        dc.Index.build(model, passed, tmp_path / "store")
    index = dc.Index.build(model, vectors(9), tmp_path / "fine")
    with pytest.raises(NonFiniteError, match=f"query 7: the vector {said}"):
        index.search(data.vectors)
