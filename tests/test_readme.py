"""The README's examples, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from divcon.data.benchmark import Benchmark

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found


def test_the_library_example(tmp_path: Path) -> None:
    for block in blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].startswith("0 subspace")
        assert lines[1].startswith("1 finetune")
        assert "'recall_at_1': 0." in lines[2]
        assert "'nmi': 0." in lines[2]
        assert re.fullmatch(r"\(\d+, 128\)", lines[-1])


def test_the_command_line_session(tmp_path: Path, few: Benchmark) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(5):
        few.query.open(index).save(tmp_path / "photos" / f"{index}.png")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = []
    for block in blocks("bash"):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    images, vectors = printed
    assert "recall_at_1" in images
    assert "5 embeddings of 128 dimensions" in images
    assert "recall_at_1" in vectors
    assert "pooled features" in vectors
    assert pq.read_table(tmp_path / "vectors.parquet").column_names == ["path", "embedding"]
    assert (tmp_path / "runs/demo/model/model.safetensors").exists()
    assert (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("command", ["make demo", "make test", "make test-slow", "make docs"])
def test_the_commands_are_named_and_exist(command: str) -> None:
    assert command in README
    assert f"\n{command.split()[1]}:" in (Path(__file__).parent.parent / "Makefile").read_text()
