"""What launchers leave in the environment: whole groups are joined, halves are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[reportPrivateImportUsage]

import divcon as dc
from divcon.errors import ConfigError
from divcon.runtime.launch import _agree, launch, started
from divcon.runtime.launchers import StartedGroup, is_first, started_group, started_size, started_task

WHOLE = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
VARIABLES = (
    *WHOLE,
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets these variables of launchers, and no others."""

    def set_only(**variables: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_only


def test_a_group_that_is_named_whole_is_joined(environment: Any) -> None:
    environment()
    assert (started_group(), started_size(), is_first()) == (None, None, True)
    environment(**WHOLE)
    assert started_group() == StartedGroup(3, 8)
    assert not is_first()
    environment(**WHOLE, LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    assert started_group() == StartedGroup(3, 8, 1, 2)
    assert dc.TrainConfig().devices == 8
    environment(RANK="0", WORLD_SIZE="1")
    assert started_group() == StartedGroup(0, 1)
    environment(MASTER_ADDR="10.0.0.1", MASTER_PORT="1", SLURM_NTASKS="2", SLURM_PROCID="0")  # of a batch script
    assert started_group() is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "has RANK=0 without WORLD_SIZE and MASTER_ADDR and MASTER_PORT, .* torchrun --nproc-per-node"),
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE=2 without RANK and MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "1"}, "has WORLD_SIZE=1 without RANK, "),
        ({**WHOLE, "MASTER_PORT": ""}, "has RANK=3, WORLD_SIZE=8, MASTER_ADDR=10.0.0.1 without MASTER_PORT"),
        ({**WHOLE, "RANK": "8"}, "RANK=8 is not below WORLD_SIZE=8"),
        ({**WHOLE, "RANK": "one"}, "RANK=one: a launcher sets it to a whole number"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, r"SLURM has started 2 processes .*use srun .*torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI has started 4 processes"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "MPI has started 4 processes"),
    ],
)
def test_half_of_a_group_is_refused(
    variables: dict[str, str], message: str, environment: Any, command: Any, tmp_path: Any
) -> None:
    environment(**variables)
    with pytest.raises(ConfigError, match=message):
        started_group()
    assert started_size() is None
    assert dc.TrainConfig().devices == 1  # reading settings is no training
    with pytest.raises(ConfigError, match=message), launch(1, "learners", "cpu", print):
        pass
    code, _, err = command("train", "demo", "--out", tmp_path / "run")
    assert (code, len(err.splitlines()), (tmp_path / "run").exists()) == (2, 1, False)


def test_a_share_of_work_needs_no_communication(environment: Any) -> None:
    environment()
    assert started_task() == (0, 1)
    environment(RANK="2", WORLD_SIZE="4")
    assert started_task() == (2, 4)
    environment(SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="3")
    assert started_task() == (1, 3)
    environment(SLURM_PROCID="0", SLURM_NTASKS="3")
    assert started_task() == (0, 1)
    environment(OMPI_COMM_WORLD_RANK="1", OMPI_COMM_WORLD_SIZE="2")
    assert started_task() == (1, 2)
    for wrong in ({"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "1"}, {"WORLD_SIZE": "2"}):
        environment(**wrong)
        with pytest.raises(ConfigError, match="the environment has"):
            started_task()


@pytest.mark.parametrize(
    ("cards", "variables", "device"),
    [
        (8, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, 3),
        (8, {"LOCAL_RANK": "3"}, 3),
        (8, {}, 3),  # rank 3: all are on this machine
        (1, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "3"}, 0),
        (4, {}, "LOCAL_RANK, which says whose each is, is missing"),
        (2, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, "finds 2 CUDA devices on this machine, and 4 processes"),
        (2, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, "finds 2 CUDA devices on this machine, and 4 processes"),
    ],
)
def test_each_process_takes_the_device_of_its_place_on_the_machine(
    cards: int, variables: dict[str, str], device: Any, environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment(**WHOLE, **variables)
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr("divcon.runtime.launch.rendezvous", lambda *args, **options: iter([(HashStore(), 3, 8)]))
    monkeypatch.setattr("divcon.runtime.launch._agree", lambda store, rank, size: "name")
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **options: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda *args: None)
    if isinstance(device, str):
        with pytest.raises(ConfigError, match=device), launch(8, "learners", "cuda", print):
            pass
        return
    with launch(8, "learners", "cuda", print) as group:
        assert (group.rank, group.world_size) == (3, 8)
    assert taken == [device]


def test_a_group_of_somebody_else_is_joined_and_left_as_it_is(environment: Any) -> None:
    environment()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert started_group() == StartedGroup(0, 1)
        with started("cpu") as group:
            assert group.alone
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    assert started_group() is None


def test_processes_that_are_started_again_meet_under_another_name() -> None:
    """In a store that still has what those before them wrote, who were more."""
    store = HashStore()

    def meet(size: int) -> set[str]:
        with ThreadPoolExecutor(size) as pool:
            return set(pool.map(lambda rank: _agree(store, rank, size), range(size)))

    names = [meet(3), meet(3), meet(2), meet(3)]
    assert [len(each) for each in names] == [1, 1, 1, 1]
    assert len(set.union(*names)) == 4
