"""The head against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.errors import ConfigError
from divcon.models import create_head


@given(st.integers(1, 40), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_slices_equal_loops_and_differ_by_at_most_one(embedding_dim: int, num_learners: int) -> None:
    if embedding_dim < num_learners:
        with pytest.raises(ConfigError, match=f"{embedding_dim} dimensions cannot be divided among {num_learners}"):
            create_head("slices", 5, embedding_dim, num_learners)
        return
    head = create_head("slices", 5, embedding_dim, num_learners).eval()
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    weight, bias = head.linear.weight.detach().numpy(), head.linear.bias.detach().numpy()
    plain = features.numpy() @ weight.T + bias
    sizes = [head.subspace_dim(k) for k in range(num_learners)]
    assert sum(sizes) == embedding_dim
    assert max(sizes) - min(sizes) <= 1
    start, parts = 0, []
    for k, size in enumerate(sizes):
        part = plain[:, start : start + size]
        part = part / np.linalg.norm(part, axis=1, keepdims=True)
        np.testing.assert_allclose(head(features, learner=k).detach().numpy(), part, rtol=1e-4, atol=1e-5)
        parts.append(part)
        start += size
    full = np.concatenate(parts, axis=1) / np.sqrt(num_learners)
    np.testing.assert_allclose(head(features).detach().numpy(), full, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(head(features).detach().numpy(), axis=1), 1, atol=1e-5)


def test_a_learner_s_loss_reaches_its_own_slice_alone() -> None:
    head = create_head("slices", 5, 10, 3)
    head(torch.randn(4, 5), learner=1).sum().backward()
    touched = head.linear.weight.grad.abs().sum(dim=1) > 0
    assert touched.tolist() == [False] * 4 + [True] * 3 + [False] * 3


def test_each_slice_has_xavier_s_variance_of_its_own_size() -> None:
    torch.manual_seed(0)
    head = create_head("slices", 1000, 64, 4)
    expected = (2 / (1000 + 16)) ** 0.5  # of 16 outputs, not of 64
    for k in range(4):
        part = head.linear.weight[16 * k : 16 * (k + 1)]
        assert float(part.detach().std()) == pytest.approx(expected, rel=0.03)
    assert not head.linear.bias.any()


def test_forward_changes_nothing() -> None:
    head = create_head("slices", 5, 10, 2).eval()
    features = torch.randn(4, 5)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    first = head(features)
    head(features, learner=1)
    assert torch.equal(head(features), first)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'slices'"):
        create_head("slice", 5, 10, 2)
    with pytest.raises(ConfigError, match="single has one learner, not 2"):
        create_head("single", 5, 10, 2)
    for count in (0, -1, 11):
        with pytest.raises(ConfigError, match=f"10 dimensions cannot be divided among {count} learners"):
            create_head("slices", 5, 10, count)
        with pytest.raises(ConfigError, match=f"10 dimensions cannot be divided among {count} learners"):
            create_head("masks", 5, 10, count)
