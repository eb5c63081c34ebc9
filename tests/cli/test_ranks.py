"""What each process of a launcher does with a command: one rule for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from divcon.cli.ranks import SEVERAL, SHARDED, SHARED

RANK = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def as_second(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)


def commands() -> list[str]:
    from divcon.cli.app import app

    return [name for name in app if not name.startswith("-")]


def test_every_command_has_its_place() -> None:
    assert {*SHARED, *SHARDED, *SEVERAL} <= set(commands())
    assert {"check", "compare", "encode", "features", "map", "prune", "search", "serve"} <= set(commands())


def test_the_second_process_ends_at_once(as_second: None, command: Any, tmp_path: Path) -> None:
    for name in sorted({*commands()} - {*SHARED, *SEVERAL}):
        assert command(name, "nothing.csv", "--out", tmp_path / "x.parquet") == (0, "", ""), name
    assert command("index", "--store", "x") == (0, "", "")
    for words in (("index", "run", "photos", "--parts"), ("encode", "run", "photos", "--out")):  # a shard of its own
        code, _, err = command(*words, tmp_path / "parts")
        assert (code, "run" in err) == (2, True)
        assert command(*words, tmp_path / "parts", "--engine", "ray") == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_the_first_process_does_the_work(
    monkeypatch: pytest.MonkeyPatch, as_second: None, command: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "0")
    code, _, err = command("check", tmp_path / "nothing.csv")
    assert (code, "nothing.csv" in err) == (2, True)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_runs_are_refused(
    name: str, rank: str, monkeypatch: pytest.MonkeyPatch, as_second: None, command: Any
) -> None:
    monkeypatch.setenv("RANK", rank)
    code, _, err = command(name)
    assert code == 2
    assert f"divcon {name} trains several runs, and 2 processes were started; start one" in err
    assert "--devices N" in err
