"""What is said of a decoding process that dies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from divcon.data.loading import of_workers, worker_death
from divcon.errors import WorkerError


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError(),
        FileNotFoundError(2, "No such file or directory"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    ],
)
def test_however_pytorch_notices_a_killed_worker_it_is_one_error(error: Exception) -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise error

    loaded = of_workers(batches())
    assert next(loaded) == 1
    with pytest.raises(WorkerError, match="a process that decodes images was killed"):
        next(loaded)


def test_other_errors_stay_what_they_are() -> None:
    assert worker_death(RuntimeError("CUDA error")) is None
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(of_workers(iter_of(RuntimeError("CUDA error"))))


def iter_of(error: Exception) -> Iterator[int]:
    yield 1
    raise error
