"""Features where nothing is trained: in small parts on a CPU, one batch ahead of who takes them, and the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from divcon.models.folding import computed


class Watched(nn.Module):
    """Returns the means of its inputs, and records the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.recorded.append(len(x))
        return x.flatten(2).mean(2) if x.ndim == 4 else x


@pytest.mark.parametrize(
    ("size", "batch", "parts"),
    [
        (64, 160, [54, 53, 53]),  # of nearly one size, not two large ones and a rest
        (64, 64, [64]),
        (64, 65, [33, 32]),
        (512, 3, [1, 1, 1]),
        (1024, 2, [1, 1]),  # at least an image
    ],
)
def test_a_cpu_computes_a_limited_number_of_pixels_at_a_time(
    size: int, batch: int, parts: list[int], monkeypatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    images = torch.randn(batch, 1, size, size)
    network = Watched()
    [(features, along)] = computed(network, lambda pooled: 2 * pooled, [(images, torch.arange(batch))])
    assert network.recorded == parts
    torch.testing.assert_close(features, 2 * images.flatten(2).mean(2))
    assert along.tolist() == list(range(batch))


def test_more_threads_compute_more_pixels(monkeypatch) -> None:
    network = Watched()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    list(computed(network, nn.Identity(), [(torch.randn(160, 1, 64, 64), torch.arange(160))]))
    assert network.recorded == [160]


def test_vectors_and_no_batches() -> None:
    network = Watched()
    vectors = [(torch.randn(n, 5), torch.arange(n)) for n in (4, 3)]
    assert [len(features) for features, _ in computed(network, nn.Identity(), vectors)] == [4, 3]
    assert network.recorded == [4, 3]
    assert list(computed(network, nn.Identity(), [])) == []


def test_a_batch_is_yielded_after_the_next_is_queued() -> None:
    network = Watched()
    images = [(torch.randn(n, 1, 8, 8), torch.arange(n)) for n in (2, 3, 4)]
    yielded = [(len(network.recorded), len(along)) for _, along in computed(network, nn.Identity(), images)]
    before = len(network.recorded) - 3  # an image that folding computes
    assert yielded == [(before + 2, 2), (before + 3, 3), (before + 3, 4)]
