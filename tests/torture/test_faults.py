"""What else goes wrong: full disks, flipped bytes, dead workers, jumping clocks, stops, two owners. Nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import divcon as dc
from divcon.errors import RunError

pytestmark = pytest.mark.heavy

SETTINGS = ["--epochs", 4, "--learners", 3, "--dim", 12, "--batch-size", 16, "--images-per-class", 4]
SETTINGS += ["--redivide-every", 1, "--finetune-epoch", 3, "--validation-fraction", 0.2]
SETTINGS += ["--checkpoint-minutes", 0.0003, "--memory-size", 32]
PHOTOS = ["--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--epochs", 3, "--learners", 2, "--dim", 8]
PHOTOS += ["--batch-size", 8, "--images-per-class", 2, "--no-validation", "--redivide-every", 1, "--workers", 1]


@pytest.fixture(scope="module")
def whole(zygote: Any, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = zygote.run("train", vectors, "--out", out, *SETTINGS)
    assert done.code == 0, done.text
    return out


@pytest.fixture
def go_on(zygote: Any, vectors: Path, whole: Path, run_of: Any) -> Callable[..., str]:
    """Resumes a run to its end, and compares it with the one that nobody disturbed; what it printed."""

    def goes_on(out: Path) -> str:
        done = zygote.run("train", vectors, "--out", out, *SETTINGS, "--resume")
        assert done.code == 0, done.text
        run_of.of(whole).check_same(run_of.of(out))
        return done.text

    return goes_on


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount a small file system (root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("left", [0, 5_000, 20_000])
def test_the_disk_is_full(left: int, zygote: Any, vectors: Path, disk: Path, go_on: Callable[[Path], str]) -> None:
    out = disk / "run"
    killed = zygote.run("train", vectors, "--out", out, *SETTINGS, kill=("training", 15, 0.0))
    assert killed.code == -9
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    full = zygote.run("train", vectors, "--out", out, *SETTINGS, "--resume")
    assert full.code == 2, full.text
    assert "cannot be written (No space left on device)" in full.text.replace("\n", " ")
    filler.unlink()
    go_on(out)


def test_the_folder_is_read_only(zygote: Any, vectors: Path, disk: Path, go_on: Callable[[Path], str]) -> None:
    out = disk / "run"
    killed = zygote.run("train", vectors, "--out", out, *SETTINGS, kill=("training", 15, 0.0))
    assert killed.code == -9
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    wrong = zygote.run("train", vectors, "--out", out, *SETTINGS, "--resume")
    assert wrong.code == 2, wrong.text
    assert "cannot be written (Read-only file system)" in wrong.text.replace("\n", " ")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    go_on(out)


def test_the_clock_jumps(zygote: Any, vectors: Path, tmp_path: Path, whole: Path, run_of: Any) -> None:
    done = zygote.run("train", vectors, "--out", tmp_path / "run", *SETTINGS, clock=True)
    assert done.code == 0, done.text
    run_of.of(whole).check_same(run_of.of(tmp_path / "run"))


def test_a_byte_of_the_checkpoint_is_flipped(
    zygote: Any, vectors: Path, tmp_path: Path, kills: int, go_on: Callable[[Path], str]
) -> None:
    begun, out, rng = tmp_path / "begun", tmp_path / "run", np.random.default_rng(0)
    killed = zygote.run("train", vectors, "--out", begun, *SETTINGS, kill=("training", 30, 0.0))
    assert killed.code == -9
    whole = (begun / "checkpoint").read_bytes()
    for _ in range(kills):
        shutil.copytree(begun, out)
        damaged, place = bytearray(whole), int(rng.integers(len(whole)))
        damaged[place] ^= 1 << int(rng.integers(8))
        (out / "checkpoint").write_bytes(damaged)
        output = go_on(out).replace("\n", " ")
        assert "the checkpoint was damaged; training resumes from the one before it" in output, place
        shutil.rmtree(out)
    shutil.copytree(begun, out)
    for name in ("checkpoint", "checkpoint.previous"):
        (out / name).write_bytes(whole[:-200])
    both = zygote.run("train", vectors, "--out", out, *SETTINGS, "--resume")
    assert both.code == 2
    assert "is damaged (OSError) and so is the one before it" in both.text.replace("\n", " ")


def test_a_process_that_decodes_is_killed(zygote: Any, photos: Path, tmp_path: Path, run_of: Any) -> None:
    expected, out = tmp_path / "whole", tmp_path / "run"
    assert zygote.run("train", photos, "--out", expected, *PHOTOS).code == 0
    killed = zygote.run("train", photos, "--out", out, *PHOTOS, kill=("training", 7, 0.0), victim="worker")
    assert killed.code == 2, killed.text
    assert "a process that decodes images was killed" in killed.text.replace("\n", " ")
    done = zygote.run("train", photos, "--out", out, *PHOTOS, "--resume")
    assert done.code == 0, done.text
    run_of.of(expected).check_same(run_of.of(out))


def test_a_scheduler_ends_all_processes_at_once(zygote: Any, photos: Path, tmp_path: Path, run_of: Any) -> None:
    expected, out = tmp_path / "whole", tmp_path / "run"
    assert zygote.run("train", photos, "--out", expected, *PHOTOS).code == 0
    stopped = zygote.run("train", photos, "--out", out, *PHOTOS, kill=("training", 7, 0.0), victim="group")
    assert stopped.code == 143, stopped.text
    assert re.search(r"stopped in epoch \d after \d of \d batches\. Resume with", stopped.text)
    done = zygote.run("train", photos, "--out", out, *PHOTOS, "--resume")
    assert done.code == 0, done.text
    run_of.of(expected).check_same(run_of.of(out))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["training", "evaluating", "dividing"])
def test_it_is_asked_to_stop(
    stop: int, stage: str, zygote: Any, vectors: Path, tmp_path: Path, go_on: Callable[[Path], str]
) -> None:
    out = tmp_path / "run"
    number = {"training": 20, "evaluating": 3, "dividing": 5}[stage]
    stopped = zygote.run("train", vectors, "--out", out, *SETTINGS, kill=(stage, number, 0.0), victim=str(stop))
    assert stopped.code == 128 + stop, stopped.text
    assert "stopped in epoch " in stopped.text or "stopped before the first batch of epoch" in stopped.text
    assert not (out / "divcon.lock").exists()
    go_on(out)


def test_a_run_has_one_owner(zygote: Any, vectors: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = zygote.begin("train", vectors, "--out", out, "--epochs", 4000, *SETTINGS[2:])
    before = time.monotonic()
    while not (out / "checkpoint").exists() and time.monotonic() < before + 60:
        time.sleep(0.01)
    with pytest.raises(RunError, match=rf"run: another process is training it \({first} on .*wait until it has ended"):
        dc.run(dc.read(vectors), out, resume=True)
    os.kill(first, signal.SIGKILL)
    assert zygote.end().code == -9
    again = zygote.run("train", "--out", out, "--resume", kill=("training", 1, 0.0))
    assert f"the process that trained this run was killed ({first} on " in again.text
