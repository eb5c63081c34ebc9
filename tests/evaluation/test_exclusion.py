"""Which items a query may not retrieve, against loops over all pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divcon.evaluation.task import Exclusion, column, joint_codes


def codes(size):
    return st.lists(st.integers(-2, 3), min_size=size, max_size=size).map(np.array)


@st.composite
def exclusions(draw):
    num_queries, num_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    pairs = draw(st.lists(st.tuples(codes(num_queries), codes(num_gallery)), min_size=1, max_size=3))
    labels = draw(codes(num_queries)) + 2, draw(codes(num_gallery)) + 2
    return pairs, labels


@given(exclusions())
def test_masks_and_counts_are_those_of_all_pairs(drawn):
    pairs, (query_labels, gallery_labels) = drawn
    exclude = Exclusion(())
    for query, gallery in pairs:
        exclude |= Exclusion.equal(query, gallery)
    excluded = np.array(
        [
            [any(query[i] == gallery[j] >= 0 for query, gallery in pairs) for j in range(len(gallery_labels))]
            for i in range(len(query_labels))
        ]
    )
    everything = np.tile(np.arange(len(gallery_labels)), (len(query_labels), 1))
    assert (exclude.mask(np.arange(len(query_labels)), everything) == excluded).all()
    assert (exclude.most(len(query_labels)) >= excluded.sum(axis=1)).all()
    same_label = query_labels[:, None] == gallery_labels
    assert (exclude.admissible(query_labels, gallery_labels) == (same_label & ~excluded).sum(axis=1)).all()


def test_an_item_excludes_itself_and_no_other():
    mask = Exclusion.itself(3).mask(np.arange(3), np.tile(np.arange(3), (3, 1)))
    assert (mask == np.eye(3, dtype=bool)).all()


def test_taking_queries_keeps_their_codes():
    exclude = Exclusion.itself(4).take(np.array([3, 1]))
    assert exclude.mask(np.arange(2), np.array([[3, 1], [3, 1]])).tolist() == [[True, False], [False, True]]


def test_large_codes_do_not_run_into_each_other():
    far = 2**62
    exclude = Exclusion.equal([far, far - 1], [far, 0]) | Exclusion.equal([7, far], [7, far])
    assert exclude.admissible(np.array([0, 0]), np.array([0, 0])).tolist() == [1, 1]


def test_codes_of_another_size_are_refused():
    with pytest.raises(ValueError, match="codes of 3 queries and 3 gallery items"):
        Exclusion.itself(3).check(3, 4)


def test_strings_and_tensors_become_codes():
    query, gallery = joint_codes(["wren", "owl"], np.array(["owl", "kite", "wren"], dtype=object), "labels")
    assert query[0] == gallery[2] and query[1] == gallery[0] and len({*query, *gallery}) == 3
    assert column(torch.tensor([3, 1]), "labels").tolist() == [3, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1], [2]], "one value an item"),
        ([0.5, 1.0], "whole numbers or strings"),
        (["a", None], "whole numbers or strings"),
    ],
)
def test_columns_that_name_nothing_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        column(values, "labels")


def test_numbers_never_match_strings():
    with pytest.raises(ValueError, match="whole numbers on one side"):
        joint_codes([1, 2], ["1", "2"], "labels")
