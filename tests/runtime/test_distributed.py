"""Processes that train together: who does what, what they tell each other, and how one that fails ends the others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divcon.division.kmeans import kmeans
from divcon.errors import ConfigError, DataError, WorkerError
from divcon.runtime.context import Context
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.launch import _joined, launch

SIZE = 3


@given(st.integers(0, 100), st.integers(1, 9))
def test_shares_are_a_partition_as_even_as_can_be(size: int, count: int) -> None:
    shares = [ProcessGroup(rank, count).share(size) for rank in range(count)]
    assert [row for share in shares for row in range(size)[share]] == list(range(size))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(0, 100), st.integers(1, 9), st.integers(1, 5))
def test_each_batch_of_a_step_is_one_process_s(start: int, count: int, size: int) -> None:
    step = range(start, start + count)
    assert sorted(n for rank in range(size) for n in ProcessGroup(rank, size).batches(step)) == list(step)
    assert all(ProcessGroup(rank, size, "batch").batches(step) == step for rank in range(size))
    assert all(ProcessGroup(rank, size).images(count) == slice(0, count) for rank in range(size))


def test_a_batch_too_small_to_be_shared_out_is_refused() -> None:
    assert ProcessGroup(1, 4, "batch").images(4) == slice(1, 2)
    with pytest.raises(ConfigError, match="--devices 4 cannot share out a batch of 3 images"):
        ProcessGroup(1, 4, "batch").images(3)


def clusters(processes: ProcessGroup) -> Any:
    points = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    return kmeans(points, 7, seed=3, context=Context(processes=processes))


def told(processes: ProcessGroup) -> dict[str, Any]:
    """What the first process gets of the others."""
    rows = torch.arange(10.0)[:, None] * torch.ones(2)
    mine = processes.shard(10)
    values = np.arange(3, dtype=np.int64) + 10 * processes.rank
    weights = torch.nn.ModuleList([torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(2)])
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.fill_(processes.rank)
    processes.broadcast_parameters(weights)
    norm: Any = weights[1]
    norm.running_mean.fill_(processes.rank)
    processes.average_statistics(weights)
    return {
        "sum": processes.all_reduce(np.array([processes.rank, 1.0])),
        "gathered": processes.all_gather(rows[mine], 10),
        "few": processes.all_gather(rows[:2][processes.shard(2)], 2),
        "first": processes.broadcast(values),
        "weight": weights[0].weight.detach(),
        "statistics": norm.running_mean,
        "clusters": clusters(processes),
    }


def batch_loss(processes: ProcessGroup) -> tuple[float, list[Any]]:
    """The gradients of a loss on a batch of 7 whose images the processes share out."""
    processes.across = "batch"
    torch.manual_seed(0)
    backbone, head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
    unused = torch.nn.Linear(1, 1)
    pooling = torch.nn.Identity()
    images = torch.randn(7, 4)[processes.images(7)]
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters(), *unused.parameters()], 0.1)
    with processes.gathered_batch(pooling):
        features = pooling(backbone(images))
        loss = torch.cdist(head(features), head(features)).square().mean()
        loss.backward()
    processes.all_reduce_gradients(optimizer, backbone)
    processes.across = "learners"
    return loss.item(), [p.grad for p in optimizer.param_groups[0]["params"]]


def follow(processes: ProcessGroup, failing: str | None) -> None:
    if failing is None:
        told(processes)
        batch_loss(processes)
    elif processes.rank == SIZE - 1:
        if failing == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("its image is gone") if failing == "data" else KeyError("not foreseen")
    processes.barrier()


def test_what_they_tell_each_other() -> None:
    with launch(SIZE, "learners", "cpu", follow, None) as processes:
        found = told(processes)
        loss, gradients = batch_loss(processes)
        processes.barrier()
    np.testing.assert_array_equal(found["sum"], [0 + 1 + 2, 3])
    np.testing.assert_array_equal(found["gathered"], np.arange(10)[:, None] * np.ones(2))
    np.testing.assert_array_equal(found["few"], np.arange(2)[:, None] * np.ones(2))
    np.testing.assert_array_equal(found["first"], [0, 1, 2])
    assert not found["weight"].any()
    np.testing.assert_allclose(found["statistics"], [1, 1])
    alone = clusters(ALONE)
    np.testing.assert_array_equal(found["clusters"].assignment, alone.assignment)
    assert found["clusters"].iterations == alone.iterations > 2
    expected_loss, expected = batch_loss(ProcessGroup())
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert [g is None for g in gradients] == [g is None for g in expected] == [False] * 4 + [True] * 2
    for mine, theirs in zip(gradients[:4], expected[:4], strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("failing", "error", "message"),
    [
        ("data", DataError, "^its image is gone$"),
        ("bug", WorkerError, "process 2: Traceback.*KeyError: 'not foreseen'"),
        ("killed", WorkerError, r"process 2 of the 3 that train together ended \(SIGKILL\)"),
    ],
)
def test_what_ends_one_ends_all(failing: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised, launch(SIZE, "learners", "cpu", follow, failing) as processes:
        processes.barrier()
        processes.barrier()
    assert re.search(message, str(raised.value), re.DOTALL)


def test_who_did_not_come_to_meet_keeps_nobody_from_meeting_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("divcon.runtime.launch.WAITS", timedelta(seconds=0.5))
        with pytest.raises(RuntimeError), _joined("cpu", 0, 2, str(tmp_path / "meeting")):
            pass
    with launch(2, "learners", "cpu", follow, None) as processes:
        told(processes)
        batch_loss(processes)
        processes.barrier()


def test_the_first_s_own_error_is_the_one_that_is_told() -> None:
    """Also where another has failed before."""
    with pytest.raises(DataError, match="mine"), launch(SIZE, "learners", "cpu", follow, "data") as processes:
        with pytest.raises(RuntimeError):
            processes.barrier()
            processes.barrier()
        raise DataError("mine")


def test_what_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="several devices of kind mps"), launch(2, "learners", "mps", follow, None):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--devices 2: PyTorch finds 1"), launch(2, "batch", "cuda", follow, None):
        pass
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="torchrun has started 4"), launch(2, "batch", "cpu", follow, None):
        pass


def test_alone_nothing_is_started() -> None:
    with launch(1, "learners", "cpu", follow, None) as processes:
        assert processes is ALONE


def listening() -> list[str]:
    """The addresses, in hexadecimal, on which this process listens."""
    mine = set()
    for place in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # what it is listed with is closed again
            mine.add(str(place.readlink()))
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="who listens stands in /proc")
def test_nobody_from_another_machine_can_join() -> None:
    with launch(2, "learners", "cpu", follow, None) as processes:
        told(processes)
        batch_loss(processes)
        found = listening()
        processes.barrier()
    assert found and set(found) == {"0100007F"}


def test_a_script_without_its_guard_is_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from divcon.runtime.launch import launch\nwith together(2, 'learners', 'cpu', print) as processes:\n    pass\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert 'needs the line if __name__ == "__main__"' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]
