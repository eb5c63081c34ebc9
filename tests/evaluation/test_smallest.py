"""The smallest products, chunk by chunk: those of sorting all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.evaluation.neighbours import smallest_products


def smallest(vectors: torch.Tensor, others: torch.Tensor, k: int, step: int, buffer: int):
    parts = ((start, others[start : start + step]) for start in range(0, len(others), step))
    return smallest_products(vectors, parts, k, torch.full((buffer,), torch.nan, dtype=vectors.dtype))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_they_are_the_first_of_all_when_sorted(data):
    count = data.draw(st.sampled_from([1, 2, 31, 32, 33, 64, 200, 500]))
    k, step = data.draw(st.integers(1, min(count, 6))), data.draw(st.integers(1, count))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    # Small whole numbers: their products are exact, and many are equal.
    vectors = torch.randint(-2, 3, (data.draw(st.integers(1, 5)), 3), generator=generator).double()
    others = torch.randint(-2, 3, (count, 3), generator=generator).double()
    values, positions = smallest(vectors, others, k, step, buffer=data.draw(st.sampled_from([1, 40, 300, 10_000])))
    products = vectors @ others.T
    assert torch.equal(values, products.sort(dim=1).values[:, :k])
    assert torch.equal(products.gather(1, positions), values)
    assert all(len(set(row.tolist())) == k for row in positions)


@pytest.mark.parametrize("step", [1000, 4096, 10_000])
def test_long_rows_go_by_their_chunks(step, monkeypatch):
    widths = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor,
        "topk",
        lambda self, *args, **options: widths.append(self.shape[1]) or topk(self, *args, **options),
    )
    generator = torch.Generator().manual_seed(0)
    vectors, others = torch.randn(70, 16, generator=generator), torch.randn(10_000, 16, generator=generator)
    values, positions = smallest(vectors, others, 10, step, buffer=50_000)
    assert max(widths) <= max(step / 32 + 1, 320)
    expected = (vectors @ others.T).sort(dim=1)
    torch.testing.assert_close(values, expected.values[:, :10])
    assert (positions == expected.indices[:, :10]).float().mean() > 0.99
    assert np.isfinite(values).all()


def test_the_buffer_passed_is_the_one_used():
    buffer = torch.zeros(4 * 64)
    vectors, others = torch.ones(6, 2), torch.arange(1.0, 101).view(50, 2)
    smallest_products(vectors, [(0, others)], 3, buffer)
    # Six vectors, four at a time; of the last two, the first two rows.
    torch.testing.assert_close(buffer.view(4, 64)[:, :50], (vectors[:4] @ others.T))
    assert torch.isinf(buffer.view(4, 64)[:, 50:]).all()


def test_no_more_of_it_is_touched_than_is_needed():
    buffer = torch.zeros(100 * 64)
    smallest_products(torch.ones(2, 2), [(0, torch.ones(50, 2))], 3, buffer)
    assert (buffer[: 2 * 64] != 0).all() and not buffer[2 * 64 :].any()
