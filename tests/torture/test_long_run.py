"""A long run holds no more after a hundred divisions than after a few: memory, open files, processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def long_run(kind: str, divisions: int, learners: int, checkpoint: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("long_run.py")), kind, str(divisions), str(learners)]
    done = subprocess.run([*command, str(checkpoint)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(
        f"{kind}, K {learners}: memory {found['memory'][9]:.0f} MiB after 10 divisions, {found['memory'][-1]:.0f} MiB"
    )
    print(f"after {divisions}; open files {max(found['files'])}, {found['files_after']} after it")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "learners"), [("vectors", 4), ("vectors", 64), ("images", 4)])
def test_a_hundred_divisions(kind: str, learners: int, tmp_path: Path) -> None:
    found = long_run(kind, 100, learners, tmp_path / "checkpoint")
    memory = np.array(found["memory"])
    # The allocator's own to and fro is some MiB; a leak of a checkpoint, features or a worker would be tens.
    assert memory[-10:].mean() - memory[10:20].mean() < 8
    assert max(found["files"][5:]) <= max(found["files"][:5])
    assert set(found["children"]) == {2 if kind == "images" else 0}
    assert found["children_after"] == 0


def test_files_and_processes_are_given_back(tmp_path: Path) -> None:
    found = long_run("images", 10, 16, tmp_path / "checkpoint")
    assert len(set(found["files"][2:])) == 1
    assert set(found["children"]) == {2}
    assert found["children_after"] == 0
    assert found["files_after"] < found["files"][-1]
