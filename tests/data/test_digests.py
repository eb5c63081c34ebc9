"""Hashes that do not change from one version to the next, against the plain way to make them."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet


def of_set(images: LabeledSet) -> str:
    """The slow way: a string an image."""
    lines = [f"{images.path(i)}\t{images.label_name(i)}\n" for i in range(len(images))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def of_benchmark(data: Benchmark) -> str:
    text = data.protocol
    for role, images in (("query", data.query), ("gallery", data.gallery)):
        lines = sorted(f"{images.label_name(i)}\t{images.path(i)}" for i in range(len(images)))
        text += f"\n{role}\n" + "\n".join(lines)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def image_set(rows, kind=None) -> LabeledSet:
    names = tuple(sorted({label for _, label in rows}))
    labels = np.array([names.index(label) for _, label in rows], np.int64)
    paths = pa.array([path for path, _ in rows], kind or pa.string())
    return LabeledSet(labels, names, paths, np.arange(len(rows)), "somewhere")


# A new line or tab in a path is nobody's, but must not break the hash; letters beyond ASCII sort by their code.
TEXT = st.text(st.sampled_from("aZ0\t\n./ é\uffff\U0001f600"), max_size=4)
ROWS = st.lists(st.tuples(TEXT, TEXT), max_size=20)


@given(ROWS, ROWS, st.integers(1, 7), st.sampled_from([pa.string(), pa.large_string()]))
@settings(max_examples=100, deadline=None)
def test_they_are_what_the_plain_way_gives(query, gallery, at_a_time, kind):
    one, other, nothing = image_set(query, kind), image_set(gallery), image_set([])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_AT_A_TIME", at_a_time)
        assert one.fingerprint == of_set(one)
        for data in (Benchmark("x", nothing, one, one), Benchmark("x", nothing, one, other)):
            assert data.split_hash == of_benchmark(data)


def test_a_part_of_a_set(demo):
    part = demo.train.subset(np.arange(100, 300))
    assert part.fingerprint == of_set(part)


def test_those_of_the_demo_stay(demo):
    # Results that were published carry these.
    assert demo.split_hash == of_benchmark(demo) == "28e48916676f6d02"
    assert demo.train.fingerprint == of_set(demo.train) == "bbc83db70e4a2c61"
