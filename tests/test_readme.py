"""The README's examples, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from divcon.data.benchmark import Benchmark
from tests.fork_server import VARIABLE

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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
        assert len(lines) == 6
        assert all(re.fullmatch(r"[01]\.\d{3} \S+", line) for line in lines[3:])


def test_the_command_line_session(
    tmp_path: Path, few: Benchmark, photos_in: Callable[[Path, int], Path], divcon_server: str
) -> None:
    photos_in(tmp_path / "photos", 8)
    few.query.open(0).save(tmp_path / "query.jpg")
    path = f"{Path(divcon_server).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, VARIABLE: divcon_server}
    for block in blocks("bash"):
        done = subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        hits = done.stdout.splitlines()[-5:]
        assert all(re.match(r"\s*\d\.\d{4}  class\d+  .*\.png$", line) for line in hits), done.stdout
    assert (tmp_path / "runs/photos/model/model.safetensors").exists()


def test_it_fits_on_a_page_and_shows_what_is_learned_and_the_page() -> None:
    assert len(README.splitlines()) < 120
    pictures = re.findall(r"!\[(.*?)\]\((.*?)\)", README)
    assert len(pictures) == 2
    for words, path in pictures:
        assert len(words) > 40
        assert (ROOT / path).exists()


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", ["make demo", "make test", "make test-slow", "make docs"])
def test_the_commands_are_named_and_exist(command: str) -> None:
    assert command in README
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
