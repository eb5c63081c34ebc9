"""A long run holds no more after two hundred divisions than after one hundred: memory, open files, processes."""

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
    half, last = found["memory"][divisions // 2], found["memory"][-1]
    print(
        f"{kind}, K {learners}: {half:.0f} MiB after {divisions // 2} divisions, {last:.0f} after {divisions}; "
        f"open files {max(found['files'])}, {found['files_after']} in the end; workers left {found['children_after']}"
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "learners"), [("vectors", 4), ("images", 4), ("images", 64)])
def test_two_hundred_divisions(kind: str, learners: int, tmp_path: Path) -> None:
    found = long_run(kind, 200, learners, tmp_path / "checkpoint")
    memory = np.array(found["memory"])
    # The allocator gathers some tens of MiB of pieces at first, and ever fewer; a leak goes on as it begins.
    assert memory[-10:].mean() - memory[95:105].mean() < 16
    assert max(found["files"][5:]) <= max(found["files"][:5])
    assert set(found["children"]) == {2 if kind == "images" else 0}
    assert found["children_after"] == 0


def test_files_and_processes_are_given_back(tmp_path: Path) -> None:
    found = long_run("images", 10, 16, tmp_path / "checkpoint")
    assert len(set(found["files"][2:])) == 1
    assert set(found["children"]) == {2}
    assert found["children_after"] == 0
    assert found["files_after"] < found["files"][-1]
