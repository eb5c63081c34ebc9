"""Launching a process group: it starts, it ends with the first rank that fails, and nobody else can join."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from divcon.errors import ConfigError, DataError, WorkerError
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.launch import launch

pytestmark = pytest.mark.heavy


def worker(group: ProcessGroup, failing: str | None = None) -> None:
    """Fail on the last rank, if asked to."""
    group.barrier()
    if failing is not None and group.rank == group.world_size - 1:
        if failing == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise DataError("its image is gone") if failing == "data" else KeyError("not foreseen")
    group.barrier()


@pytest.mark.parametrize(
    ("failing", "error", "message"),
    [
        ("data", DataError, "^its image is gone$"),
        ("bug", WorkerError, "process 1: Traceback.*KeyError: 'not foreseen'"),
        ("killed", WorkerError, r"process 1 of 2 ended \(SIGKILL\)"),
    ],
)
def test_what_ends_one_rank_ends_all(failing: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised, launch(2, "learners", "cpu", worker, failing) as group:
        group.barrier()
        group.barrier()
    assert re.search(message, str(raised.value), re.DOTALL)


def test_rank_0_s_own_error_comes_first() -> None:
    """Also where another rank has failed before."""
    with pytest.raises(DataError, match="mine"), launch(2, "learners", "cpu", worker, "data") as group:
        with pytest.raises(RuntimeError):
            group.barrier()
            group.barrier()
        raise DataError("mine")


def test_a_group_that_was_not_complete_does_not_keep_the_next_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        patched.setattr("divcon.runtime.launch.MEETING", timedelta(seconds=0.5))
        torchrun = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**torchrun, "MASTER_PORT": port}.items():
            patched.setenv(name, value)
        free.close()
        with (
            pytest.raises(WorkerError, match="the 2 processes of the group did not meet"),
            launch(2, "learners", "cpu", worker),
        ):
            pass
    with launch(2, "learners", "cpu", worker) as group:
        group.barrier()
        np.testing.assert_array_equal(group.all_reduce(np.ones(1)), [1])


def test_what_cannot_be_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="work on cuda and cpu, not on mps"), launch(2, "learners", "mps", worker):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="`devices` 2: PyTorch finds 1"), launch(2, "batch", "cuda", worker):
        pass
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match="4 processes were started") as error,
        launch(2, "batch", "cpu", worker),
    ):
        pass
    assert error.value.field == "devices"


def test_one_device_launches_nothing() -> None:
    with launch(1, "learners", "cpu", worker) as group:
        assert group is ALONE


def listening() -> list[str]:
    """The addresses, in hexadecimal, on which this process listens."""
    mine = set()
    for place in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own descriptor is closed again
            mine.add(str(place.readlink()))
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="who listens stands in /proc")
def test_no_other_machine_can_join() -> None:
    with launch(2, "learners", "cpu", worker) as group:
        addresses = listening()
        group.barrier()
        group.barrier()
    assert addresses and set(addresses) == {"0100007F"}


def test_a_script_without_its_guard_gets_the_line_that_it_needs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from divcon.runtime.launch import launch\nwith launch(2, 'learners', 'cpu', print) as group:\n    pass\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert 'needs the line if __name__ == "__main__"' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_an_error_of_another_rank_keeps_its_kind_and_its_settings() -> None:
    from divcon import errors

    for error in (
        errors.ImageError("a.png: no"),
        errors.NonFiniteError("loss"),
        errors.RemoteError("s3://b/x", "gone"),
    ):
        other = errors.error_of(errors.as_text(error).encode())
        assert str(other) == str(error)
        assert type(other) is (errors.DivconError if isinstance(error, errors.RemoteError) else type(error))
    setting = errors.ConfigError("`devices` 9: too many", field=("devices", "across"))
    other = errors.error_of(errors.as_text(setting).encode())
    assert isinstance(other, errors.ConfigError) and (str(other), other.fields) == (str(setting), setting.fields)
