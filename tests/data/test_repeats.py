"""Rows of the same image, against the plain way to find them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.data.labeled_set import LabeledSet
from divcon.data.readers.table import first_rows, once

ROW = st.tuples(st.sampled_from(["a", "b", "é"]), st.sampled_from([None, (0, 0, 1, 1), (0, 0, 1, 2), (1, 0, 2, 1)]))


@given(st.lists(ROW, min_size=1, max_size=20), st.booleans(), st.data())
@settings(max_examples=100, deadline=None)
def test_the_first_row_of_each_image(rows, boxed, data):
    boxes = np.array([box or (-1, -1, -1, -1) for _, box in rows], np.int64)
    keys = [(path, box if boxed else None) for path, box in rows]
    images = LabeledSet(
        np.zeros(len(rows), np.int64),
        ("x",),
        pa.array([path for path, _ in rows]),
        np.arange(len(rows)),
        "t.parquet",
        boxes=boxes if boxed else None,
    )
    first = first_rows(images)
    assert first.tolist() == [keys.index(key) for key in keys]

    part = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    earlier, expected = set(), []
    for key, inside in zip(keys, part, strict=True):
        expected.append(bool(inside and key not in earlier))
        earlier |= {key} if inside else set()
    assert once(part, first).tolist() == expected
