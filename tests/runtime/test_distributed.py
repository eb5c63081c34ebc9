"""The process group: what each rank works on, and the collectives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divcon.division.kmeans import kmeans
from divcon.errors import ConfigError
from divcon.runtime.context import Context
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.launch import launch

SIZE = 3


@given(st.integers(0, 100), st.integers(1, 9))
def test_shards_are_a_partition_as_even_as_can_be(size: int, count: int) -> None:
    shards = [ProcessGroup(rank, count).shard(size) for rank in range(count)]
    assert [row for shard in shards for row in range(size)[shard]] == list(range(size))
    lengths = [shard.stop - shard.start for shard in shards]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(0, 100), st.integers(1, 9), st.integers(1, 5))
def test_each_batch_of_a_step_belongs_to_one_rank(start: int, count: int, size: int) -> None:
    step = range(start, start + count)
    assert sorted(n for rank in range(size) for n in ProcessGroup(rank, size).batches(step)) == list(step)
    assert all(ProcessGroup(rank, size, "batch").batches(step) == step for rank in range(size))
    assert all(ProcessGroup(rank, size).images(count) == slice(0, count) for rank in range(size))


def test_a_batch_too_small_to_share_is_refused() -> None:
    assert ProcessGroup(1, 4, "batch").images(4) == slice(1, 2)
    with pytest.raises(ConfigError, match=r"`devices` 4 with `across=batch`: .* a batch of 3 images") as error:
        ProcessGroup(1, 4, "batch").images(3)
    assert error.value.field == "devices"


def clusters(group: ProcessGroup) -> Any:
    points = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    return kmeans(points, 7, seed=3, context=Context(processes=group))


def collectives(group: ProcessGroup) -> dict[str, Any]:
    """What rank 0 gets from each of them."""
    rows = torch.arange(10.0)[:, None] * torch.ones(2)
    values = np.arange(3, dtype=np.int64) + 10 * group.rank
    weights = torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(2)])
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.fill_(group.rank)
    group.broadcast_parameters(weights)
    norm: Any = weights[1]
    norm.running_mean.fill_(group.rank)
    group.average_statistics(weights)
    return {
        "sum": group.all_reduce(np.array([group.rank, 1.0])),
        "gathered": group.all_gather(rows[group.shard(10)], 10),
        "few": group.all_gather(rows[:2][group.shard(2)], 2),
        "first": group.broadcast(values),
        "weight": weights[0].weight.detach(),
        "statistics": norm.running_mean,
        "clusters": clusters(group),
    }


def batch_loss(group: ProcessGroup) -> tuple[float, list[Any]]:
    """The loss of a batch of 7 whose images the ranks share, and its gradients."""
    group.across = "batch"
    torch.manual_seed(0)
    backbone, head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
    unused = torch.nn.Linear(1, 1)
    pooling = torch.nn.Identity()
    images = torch.randn(7, 4)[group.images(7)]
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters(), *unused.parameters()], 0.1)
    with group.gathered_batch(pooling):
        features = pooling(backbone(images))
        loss = torch.cdist(head(features), head(features)).square().mean()
        loss.backward()
    group.all_reduce_gradients(optimizer, backbone)
    group.across = "learners"
    return loss.item(), [p.grad for p in optimizer.param_groups[0]["params"]]


def worker(group: ProcessGroup) -> None:
    collectives(group)
    batch_loss(group)
    group.barrier()


@pytest.mark.heavy
def test_collectives() -> None:
    with launch(SIZE, "learners", "cpu", worker) as group:
        result = collectives(group)
        loss, gradients = batch_loss(group)
        group.barrier()
    np.testing.assert_array_equal(result["sum"], [0 + 1 + 2, 3])
    np.testing.assert_array_equal(result["gathered"], np.arange(10)[:, None] * np.ones(2))
    np.testing.assert_array_equal(result["few"], np.arange(2)[:, None] * np.ones(2))
    np.testing.assert_array_equal(result["first"], [0, 1, 2])
    assert not result["weight"].any()
    np.testing.assert_allclose(result["statistics"], [1, 1])
    alone = clusters(ALONE)
    np.testing.assert_array_equal(result["clusters"].assignment, alone.assignment)
    assert result["clusters"].iterations == alone.iterations > 2
    expected_loss, expected = batch_loss(ProcessGroup())
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert [g is None for g in gradients] == [g is None for g in expected] == [False] * 4 + [True] * 2
    for mine, theirs in zip(gradients[:4], expected[:4], strict=True):
        torch.testing.assert_close(mine, theirs)
