"""Backbones of vectors: their scale, what they start from, and what they are refused for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.errors import ConfigError
from divcon.models.backbone import create_vector_backbone, resolve_backbone


@given(st.integers(1, 50), st.floats(1e-6, 1e6), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_vectors_come_to_a_root_mean_square_of_one_and_keep_their_directions(dim: int, scale: float, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(4, dim)) * scale
    features = create_vector_backbone("none", dim)(torch.tensor(vectors, dtype=torch.float32)).numpy()
    expected = [row / np.sqrt(sum(v * v for v in row) / dim) for row in vectors]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_a_vector_of_zeros_stays_one() -> None:
    assert not create_vector_backbone("none", 3)(torch.zeros(2, 3)).any()


def test_the_mlp_starts_from_the_vectors_and_learns_in_both_layers() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(5, 6)
    network = create_vector_backbone("mlp", 6)
    assert torch.equal(network(vectors), create_vector_backbone("none", 6)(vectors))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(2):  # the inner layer has a gradient once the outer one is not zero any more
        optimizer.zero_grad()
        network(vectors)[:, 0].sum().backward()
        optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in network.state_dict().items())
    # By hand: x + W2 gelu(W1 x + b1) + b2.
    x = create_vector_backbone("none", 6)(vectors)
    w = {name.rpartition("1.")[2]: value for name, value in network.state_dict().items()}
    inner = torch.nn.functional.gelu(x @ w["inner.weight"].T + w["inner.bias"])
    torch.testing.assert_close(network(vectors), x + inner @ w["outer.weight"].T + w["outer.bias"])


def test_auto_is_a_resnet_for_images_and_none_for_vectors() -> None:
    assert resolve_backbone("auto", None) == "resnet50.tv_in1k"
    assert resolve_backbone("auto", 512) == "none"
    assert resolve_backbone("mlp", 512) == "mlp"
    assert resolve_backbone("test_resnet", None) == "test_resnet"


def test_backbones_for_other_data_name_one_that_fits() -> None:
    for name in ("none", "mlp"):
        with pytest.raises(
            ConfigError, match=rf"`backbone` {name} is for vectors, and the data holds images: choose a timm"
        ):
            resolve_backbone(name, None)
    with pytest.raises(
        ConfigError, match=r"`backbone` resnet50: a timm model takes images.* vectors of 512 .* none, mlp"
    ):
        resolve_backbone("resnet50", 512)
    with pytest.raises(ConfigError, match=r"`weights` w\.pth: .*leave it out"):
        resolve_backbone("none", 512, Path("w.pth"))
    with pytest.raises(ConfigError, match="did you mean 'none'"):
        create_vector_backbone("non", 4)
    with pytest.raises(ConfigError, match="`vector_dim` 0: must be at least 1"):
        create_vector_backbone("none", 0)
