"""Parts of a user's own by name, and what a file may not import without the user's word."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from divcon.errors import ConfigError, TrustError
from divcon.runtime import importing
from divcon.runtime.importing import check_trusted, is_named, load_part, name_of, trust_module


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine_for_tests.py").write_text("ran = True\nclass Outer:\n    class Inner:\n        pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importing, "_trusted", set())
    sys.modules.pop("mine_for_tests", None)
    return "mine_for_tests"


def test_a_name_gives_the_object_and_the_object_the_name(mine: str) -> None:
    inner = load_part(f"{mine}:Outer.Inner", "loss")
    assert name_of(inner) == name_of(inner()) == f"{mine}:Outer.Inner"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:X", "the module 'no_such_module' cannot be imported"),
        ("mine_for_tests:Outr", "did you mean 'Outer'"),
        ("mine_for_tests:", "is named module:Name"),
        ("mine_for_tests:Outer()", "pass the object again"),
    ],
)
def test_a_wrong_name_says_why(mine: str, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_part(name, "loss")


def test_a_file_imports_nothing_that_the_user_has_not_allowed(mine: str) -> None:
    with pytest.raises(TrustError, match=r"model/config\.json: names mine_for_tests:Outer.*`trust=mine_for_tests`"):
        check_trusted(f"{mine}:Outer", "model/config.json")
    assert mine not in sys.modules
    check_trusted(f"{mine}:Outer", "model/config.json", trust=[mine])
    check_trusted(f"{mine}:Outer", "model/config.json", trust=True)
    with pytest.raises(TrustError):
        check_trusted(f"{mine}:Outer", "model/config.json", trust=["another"])
    trust_module(mine)
    check_trusted(f"{mine}:Outer", "model/config.json")


@pytest.mark.parametrize(
    "value", ["MarginLoss", 3, None, "C:\\photos", "s3://bucket/x", "a b:c", ":", "a:", ":b", "3:4", "a-b:c"]
)
def test_what_names_no_part_passes(value: object) -> None:
    assert not is_named(value)
    check_trusted(value, "file")
