"""Filters: the same rows as Python's comparisons give, in every store, whatever the values."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError
from divcon.search.about import About
from divcon.search.filters import Condition, conditions_of

OPERATORS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TEXTS = [
    "o'brien",
    "a\\'; DROP TABLE divcon; --",
    'say "x"',
    "%",
    "_",
    "",
    "Ärger",
    "ärger",
    "Z",
    "a\nb",
    "日本 `x`",
    "{}%s",
]
COLUMNS = {
    "text": [*TEXTS, None, "Z"],
    "whole number": [0, -5, 2**53 + 1, 2**62, 3, 3, None, 7, 8, 9, 10, 11, 12, 13],
    "number": [0.5, -1e300, 3, 1e-9, None, 7.25, 8, 9, 10, 11, 12, 13, 14, float("nan")],
    "flag": [True, False, None, True, False, True, False, True, False, True, False, True, False, True],
}


@pytest.mark.heavy
def test_filters_are_pythons_comparisons(
    uri: object, model: dc.EmbeddingModel, vectors: Callable[..., LabeledSet]
) -> None:
    data = vectors(14)
    index = dc.Index.build(model, data, uri, columns=COLUMNS)

    def matching(where: object) -> set[int]:
        return {hit.id for hit in index.search(0, k=14, where=where)}

    def expected(name: str, compare: Callable[[object, object], bool], value: object) -> set[int]:
        there = enumerate(COLUMNS[name])
        return {i for i, v in there if v is not None and v == v and compare(v, value)}

    for name, values in COLUMNS.items():
        for value in values:
            if value is None or value != value:
                continue
            assert matching({name: value}) == expected(name, operator.eq, value), (name, value)
    for (sign, compare), (name, value) in itertools.product(
        OPERATORS.items(),
        [("text", "ärger"), ("text", "a\\'; DROP TABLE divcon; --"), ("whole number", 2**53 + 1), ("number", 8)],
    ):
        assert matching({name: (sign, value)}) == expected(name, compare, value), (name, sign, value)
    assert matching({"whole number": ("<", 7.5)}) == {0, 1, 4, 5, 7}
    assert matching({"flag": ("!=", True)}) == expected("flag", operator.ne, True)
    assert matching({"text": ["Z", "%"], "number": (">", 1)}) == {8} | ({3, 13} & expected("number", operator.gt, 1))
    assert matching(["label=a", "whole number>=3"]) == {5, 10}
    assert matching("path = item00007") == {7}
    assert matching("text=o'brien") == {0}
    assert matching("flag=true") == expected("flag", operator.eq, True)
    assert matching({"label": "nobody"}) == set()
    assert len(index) == 14


@pytest.mark.parametrize(
    ("where", "column", "value"),
    [
        ("label=salt and pepper", "label", "salt and pepper"),
        ("path=a--b.png", "path", "a--b.png"),
        ("label='a' OR 1=1", "label", "'a' OR 1=1"),
        ("label=a'; DROP TABLE divcon; --", "label", "a'; DROP TABLE divcon; --"),
        ("label=a UNION SELECT 1=1", "label", "a UNION SELECT 1=1"),
        ("label=x) or (id>0", "label", "x) or (id>0"),
        ("label = select a drop of /* ink */", "label", "select a drop of /* ink */"),
    ],
)
def test_a_value_may_look_like_sql(where: str, column: str, value: str) -> None:
    assert conditions_of(where, About("0", 3)) == (Condition(column, "text", "=", (value,)),)


HOSTILE = [
    "'",
    "''",
    '"',
    "\\",
    "\\'",
    "%",
    "_",
    "' OR '1'='1",
    "--",
    ";",
    "$1",
    "%s",
    "{rows}",
    "`",
    "é",
    "e\u0301",
    "\u2028",
    "𝄞",
]


@pytest.mark.heavy
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    values=st.lists(
        st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=4)
        .map("".join)
        .map(lambda text: text.replace("\0", "")),
        min_size=1,
        max_size=6,
    ),
    sign=st.sampled_from(list(OPERATORS)),
    data=st.data(),
)
def test_a_value_is_never_parsed(
    uri: object,
    model: dc.EmbeddingModel,
    vectors: Callable[..., LabeledSet],
    values: list[str],
    sign: str,
    data: st.DataObject,
) -> None:
    index = dc.Index.build(model, vectors(len(values)), uri, columns={"text": values}, delete_missing=True)
    value = data.draw(st.sampled_from(values) | st.sampled_from(HOSTILE))
    conditions = conditions_of({"text": (sign, value)}, index.about)
    stored = index.store.rows(index.store.ids(conditions))
    expected = [text for text in values if OPERATORS[sign](text, value)]
    assert sorted(stored["meta_text"].to_pylist()) == sorted(expected)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("label", "write COLUMN=VALUE"),
        ("lable=a", "unknown column 'lable'; did you mean 'label'"),
        ({"price": "cheap"}, "'cheap' cannot be a value of column 'price', which holds int values; pass a number"),
        ({"price": None}, "None cannot be a value"),
        ({"price": 2**80}, "cannot be a value"),
        ({"share": float("nan")}, "cannot be a value"),
        ({"flag": "maybe"}, "which holds bool values"),
        ({"label": []}, "no value to compare 'label' with"),
        ({"price": ("like", 3)}, "is not \\(operator, value\\)"),
        ({"label": "a\0b"}, "cannot be a value"),
        ({"label": "a\ud800b"}, "cannot be a value"),
        ([3], "write COLUMN=VALUE"),
    ],
)
def test_what_cannot_be_a_filter(where: object, said: str) -> None:
    import pyarrow as pa

    columns = pa.schema([("price", pa.int64()), ("share", pa.float64()), ("flag", pa.bool_())])
    with pytest.raises(ConfigError, match=said):
        conditions_of(where, About("0", 3).with_columns(columns))  # type: ignore[arg-type]


def test_names_of_columns_are_stored_under_names_that_every_store_takes() -> None:
    import pyarrow as pa

    names = ["Price (EUR)", "price.eur", "цена", "x" * 80, "select", "price eur"]
    about = About("0", 3).with_columns(pa.schema([(name, pa.string()) for name in names]))
    stored = [column.stored for column in about.columns]
    assert stored[:2] == ["meta_price_eur", "meta_price_eur_2"]
    assert len(set(stored)) == len(names)
    assert all(name.isascii() and name.isidentifier() and len(name) < 60 for name in stored)
    assert conditions_of("price.eur=3", about) == (Condition("meta_price_eur_2", "text", "=", ("3",)),)
    assert conditions_of("Price (EUR)!=3", about)[0].stored == "meta_price_eur"
    np.testing.assert_equal(about.with_columns(pa.schema([("цена", pa.string())])), about)
