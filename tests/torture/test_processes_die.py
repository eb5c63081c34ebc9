"""Of processes that train together one dies: the others end, a message says so, and the run is gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHILDREN = Path("/proc/self/task")
pytestmark = [pytest.mark.heavy, pytest.mark.skipif(not CHILDREN.exists(), reason="who started whom stands in /proc")]

SETTINGS = ["--epochs", "14", "--learners", "4", "--dim", "12", "--batch-size", "16", "--redivide-every", "1"]
SETTINGS += ["--learners-per-step", "2", "--checkpoint-minutes", "0.001", "--validation-fraction", "0.2"]
DIVCON = [sys.executable, "-m", "divcon"]
SECONDS = 60
"""How long the death of one may go unnoticed."""


def started(command: list[Any], folder: Path | None = None, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def finished(command: list[Any]) -> None:
    process = started(command)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text


def others_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that it has started to train along."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in listed if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_for(what: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def whole(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes train that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finished([*DIVCON, "train", vectors, "--out", out, "--devices", 2, *SETTINGS])
    return out


@pytest.fixture
def disturbed(vectors: Path, tmp_path: Path, whole: Path) -> Any:
    """A run by two processes in the middle of its work."""
    process = started([*DIVCON, "train", vectors, "--out", tmp_path / "run", "--devices", 2, *SETTINGS])
    lines = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (lines.exists() and len(lines.read_text().splitlines()) >= 3))
    assert process.poll() is None, process.communicate()
    yield process, tmp_path / "run"
    process.kill()


def test_another_is_killed(disturbed: Any, whole: Path, run_of: Any) -> None:
    process, out = disturbed
    (other,) = others_of(process)
    os.kill(other, signal.SIGKILL)
    _, text = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "error: process 1 of 2 ended (SIGKILL)" in text
    assert "Traceback" not in text
    finished([*DIVCON, "train", "--out", out, "--resume"])
    run_of.of(whole).check_same(run_of.of(out))


@pytest.mark.slow
def test_the_first_is_killed(disturbed: Any, whole: Path, run_of: Any) -> None:
    process, out = disturbed
    (other,) = others_of(process)
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(other), SECONDS)
    finished([*DIVCON, "train", "--out", out, "--resume"])
    run_of.of(whole).check_same(run_of.of(out))


@pytest.mark.slow
def test_it_is_asked_to_stop_and_one_goes_on(disturbed: Any, whole: Path, run_of: Any) -> None:
    """With another number of processes the state is kept, and the rest is the same but for rounding."""
    process, out = disturbed
    (other,) = others_of(process)
    os.kill(other, signal.SIGINT)  # as Ctrl-C is for all processes of a terminal
    process.terminate()
    _, text = process.communicate(timeout=SECONDS)
    assert process.returncode in (130, 143), text  # of whichever all have agreed on
    assert "stopped " in text and "--resume" in text
    assert not alive(other)
    finished([*DIVCON, "train", "--out", out, "--resume", "--devices", 1])
    expected, by_one = run_of.of(whole), run_of.of(out)
    for mine, theirs in zip(by_one.lines, expected.lines, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert (mine["sizes"], mine["batches"]) == (theirs["sizes"], theirs["batches"])


def test_nodes_share_no_folder_and_any_of_them_is_stopped(
    vectors: Path, tmp_path: Path, whole: Path, run_of: Any
) -> None:
    """Two nodes, each with a folder and the data elsewhere; the second gets SIGTERM, both stop, the run is resumed."""
    nodes = [tmp_path / "one", tmp_path / "two"]
    for node in nodes:
        node.mkdir()
    data = [vectors, Path(shutil.copy(vectors, nodes[1]))]

    def start(*more: str) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        commands = [[*DIVCON, "train", path, "--out", "run", *more] for path in data]
        return [started(commands[rank], node, RANK=str(rank), **meeting) for rank, node in enumerate(nodes)]

    processes, lines = start(*SETTINGS), nodes[0] / "run" / "metrics.jsonl"
    wait_for(lambda: any(p.poll() is not None for p in processes) or (lines.exists() and lines.read_text().count("\n")))
    processes[1].terminate()
    texts = [process.communicate(timeout=SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], texts
    assert "stopped " in texts[0] and "--resume" in texts[0]
    assert texts[1] == ""  # one of them says it
    for process in start("--resume"):
        _, text = process.communicate(timeout=300)
        assert process.returncode == 0, text
    assert [path.name for path in nodes[1].iterdir()] == [vectors.name]
    run_of.of(whole).check_same(run_of.of(nodes[0] / "run"))


@pytest.mark.slow
def test_a_group_that_has_lost_a_process_goes_on_without_it(vectors: Path, tmp_path: Path, whole: Path) -> None:
    """torchrun --nnodes 1:2: the second node is lost for good, and the first goes on with the run alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = [f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}", "--rdzv-backend=c10d", "--rdzv-id=test"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", *meeting]
    out = tmp_path / "run"
    command = [*torchrun, "--max-restarts=2", "-m", "divcon", "train", vectors, "--out", out, *SETTINGS]
    first = started(command)
    time.sleep(2)
    second = started(command)
    lines = out / "metrics.jsonl"
    wait_for(lambda: first.poll() is not None or (lines.exists() and lines.read_text().count("\n")))
    for pid in Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    second.kill()
    second.communicate()
    _, text = first.communicate(timeout=300)
    assert first.returncode == 0, text
    losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()] for run in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert json.loads((out / "config.json").read_text())["train"]["learners_per_step"] == 2


def test_torchrun_starts_them(vectors: Path, tmp_path: Path, whole: Path, run_of: Any) -> None:
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished([*torchrun, "-m", "divcon", "train", vectors, "--out", out, *SETTINGS])
    run_of.of(whole).check_same(run_of.of(out))


@pytest.mark.slow
def test_an_image_that_only_another_process_sees(photos: Path, tmp_path: Path) -> None:
    settings = ["--backbone", "test_resnet", "--no-pretrained", "--size", "32", "--epochs", "2", "--learners", "2"]
    settings += ["--batch-size", "8", "--images-per-class", "2", "--workers", "1", "--no-validation"]
    images = tmp_path / "images"
    for split, names in (("train", "first"), ("test", "other")):
        for folder in sorted(photos.iterdir()):
            shutil.copytree(folder, images / split / f"{names} {folder.name}")
    last = sorted((images / "train").rglob("*.png"))[-1]
    last.write_bytes(b"no image")
    process = started([*DIVCON, "train", images, "--out", tmp_path / "run", "--devices", 2, *settings])
    _, text = process.communicate(timeout=120)
    assert process.returncode == 2
    assert str(last) in text.replace("\n", "")
    assert "Traceback" not in text


def test_torchrun_evaluates_with_them(whole: Path, tmp_path: Path) -> None:
    """They share the images, and rank 0 alone prints and writes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--parts", "--no-clustering", "--json"]
    run = shutil.copytree(whole, tmp_path / "run")  # the scores go into it
    finished([*DIVCON, "evaluate", run, *options, tmp_path / "one.json"])
    command = [*torchrun, "-m", "divcon", "evaluate", run, *options, tmp_path / "two.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recall_at_1: 95 %") == 1
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert one["per_query"]["recall_at_1"] == two["per_query"]["recall_at_1"]
    assert two["map_at_r"] == pytest.approx(one["map_at_r"])


@pytest.mark.slow
def test_torchrun_starts_them_again(vectors: Path, tmp_path: Path, whole: Path, run_of: Any) -> None:
    """One is killed; the next start goes on from the checkpoint by itself, to the same weights."""
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "2", "-m", "divcon", "train", vectors, "--out", out, *SETTINGS]
    process = started(command)
    metrics = out / "metrics.jsonl"
    until = time.monotonic() + SECONDS
    while not (metrics.exists() and metrics.read_bytes().count(b"\n")) and time.monotonic() < until:
        time.sleep(0.05)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(max(map(int, ranks)), signal.SIGKILL)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "exitcode: -9" in text
    run_of.of(whole).check_same(run_of.of(out))
