"""What `divcon.train` and `divcon.evaluate` take as data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.inputs import as_benchmark, as_labeled_set
from divcon.errors import DataError


def test_a_set_and_a_benchmark_are_taken_as_they_are(few: Benchmark) -> None:
    assert as_labeled_set(few.train) is few.train
    assert as_labeled_set(few) is few.train
    assert as_benchmark(few) is few
    alone = as_benchmark(few.query)
    assert alone.query is alone.gallery is few.query
    assert len(alone.train) == 0


def test_a_path_or_name_is_read(image_folder: Path) -> None:
    assert as_labeled_set(image_folder).fingerprint == dc.read(image_folder).train.fingerprint
    assert as_benchmark(str(image_folder)).split_hash == dc.read(image_folder).split_hash
    assert as_labeled_set("demo").num_classes == dc.read("demo").train.num_classes
    with pytest.raises(DataError, match="there is no such file or folder"):
        as_labeled_set("no/such/folder")


def test_validation_classes_are_left_out_and_that_is_reported(few: Benchmark) -> None:
    warnings: list[str] = []
    context = dc.Context(on_warning=warnings.append)
    held_out = few.with_validation(0.25)
    assert as_labeled_set(held_out, context) is held_out.train
    assert warnings == ["few: training on its 18 train classes; its 6 validation classes are left out"]


@pytest.mark.parametrize("labels", [[1, 1, 10, 10], ["b", "b", "a", "a"], [2.0, 2.0, 3.0, 3.0]])
def test_arrays_of_vectors_and_labels(labels: list) -> None:
    vectors = np.arange(8.0).reshape(4, 2)
    names = sorted({str(label).removesuffix(".0") for label in labels}, key=lambda name: (len(name), name))
    for x, y in ((vectors, np.array(labels)), (torch.from_numpy(vectors), labels)):
        images = as_labeled_set((x, y))
        assert images.label_names == tuple(names)
        assert [images.label_name(i) for i in range(4)] == [str(label).removesuffix(".0") for label in labels]
        assert images.vectors is not None
        assert images.vectors.dtype == np.float32
        np.testing.assert_array_equal(images.vectors, vectors)
        assert as_benchmark((x, y)).query.fingerprint == images.fingerprint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "`data` is of type int: pass what `divcon.read` returns"),
        (None, "of type NoneType"),
        (np.zeros((3, 2)), r"of type ndarray, of shape \(3, 2\)"),
        (["a.png", "b.png", "c.png"], "a list of str, str, str"),
        ((), "an empty tuple"),
        ((np.zeros((3, 2)), [1, 2]), "3 vectors need as many labels, and there are 2"),
        ((np.zeros((3, 2, 4)), [1, 2, 3]), "vectors come as"),
        ((np.full((3, 2), np.nan), [1, 2, 3]), "row 0: the vector has nan in place 0"),
    ],
)
def test_what_is_no_labelled_data_says_what_is(data: object, message: str) -> None:
    for take in (as_labeled_set, as_benchmark):
        with pytest.raises(DataError, match=message):
            take(data)  # type: ignore[arg-type]


def test_a_benchmark_with_nothing_to_train_on(few: Benchmark) -> None:
    empty = replace(few, train=few.train.subset(np.empty(0, np.int64)))
    with pytest.raises(DataError, match="has no train images"):
        as_labeled_set(empty)
