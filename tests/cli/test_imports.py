"""Parts of the user's own on the command line: typed as module:Name, or named by files whose module is allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from divcon.runtime import importing

Run = Callable[..., tuple[int, str, str]]

LOSSES = """\
from pytorch_metric_learning.losses import TripletMarginLoss


class Loss(TripletMarginLoss):
    pass
"""
SMALL = ["--dim", 8, "--learners", 2, "--batch-size", 12, "--images-per-class", 3, "--epochs", 2, "--workers", 0]
DATA = Path(__file__).parent.parent / "runs" / "before" / "data.parquet"


@pytest.fixture
def run(command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in a folder with a module that no command has imported."""
    (tmp_path / "losses_of_mine.py").write_text(LOSSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(importing, "_trusted", set())
    monkeypatch.delitem(sys.modules, "losses_of_mine", raising=False)
    return command


def forget() -> None:
    """What a new process knows."""
    sys.modules.pop("losses_of_mine", None)
    importing._trusted.clear()


@pytest.mark.heavy
def test_a_part_that_is_typed_is_imported_and_one_in_a_file_needs_the_users_word(run: Run) -> None:
    typed = ["--loss", "losses_of_mine:Loss", "--loss-options.margin", "0.2"]
    code, _, err = run("train", DATA, *SMALL, *typed, "--out", "run")
    assert code == 0, err

    forget()
    resume = ["train", "--out", "run", "--resume"]
    code, _, err = run(*resume)
    assert code == 2
    assert "run/config.json: names losses_of_mine:Loss" in err
    assert "--import losses_of_mine" in err
    assert "losses_of_mine" not in sys.modules
    code, _, err = run("--import", "losses_of_mine", *resume)
    assert code == 0, err
    forget()
    assert run(*resume, "--loss", "losses_of_mine:Loss")[0] == 0

    forget()
    repeat = ["train", "--config", "run/config.json", "--out", "again"]
    code, _, err = run(*repeat)
    assert code == 2
    assert "run/config.json line " in err
    assert "names losses_of_mine:Loss" in err
    assert "losses_of_mine" not in sys.modules
    code, _, err = run(*repeat, "--import=losses_of_mine", "--epochs", 1)
    assert code == 0, err


def test_options_in_a_file_import_nothing_either(run: Run, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("train:\n  loss_options: {distance: 'losses_of_mine:Loss'}\n")
    code, _, err = run("train", DATA, "--config", "settings.yaml", "--out", "run")
    assert code == 2
    assert "--import losses_of_mine" in err
    assert "losses_of_mine" not in sys.modules


def test_a_missing_module_is_reported(run: Run) -> None:
    for arguments in (["--import", "no_such_module", "train"], ["train", DATA, "--loss", "no_such_module:Loss"]):
        code, _, err = run(*arguments, "--out", "run")
        assert code == 2
        assert "the module 'no_such_module' cannot be imported" in err


@pytest.mark.parametrize("name", ["train", "evaluate", "search", "prune", "export", "serve"])
def test_every_command_takes_modules_to_import(run: Run, name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "--import MODULE" in out


def test_built_in_names_are_suggested(run: Run) -> None:
    code, _, err = run("train", DATA, "--optimizer", "adm", "--out", "run")
    assert code == 2
    assert "unknown --optimizer 'adm'; did you mean 'adam' or 'adamw'?" in err
