"""The picture of how runs converge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from divcon.errors import ConfigError, RunError
from divcon.experiments import recall_curves
from divcon.experiments.curves import _figure, draw_recall
from divcon.runs.folder import RunFolder
from tests.experiments.conftest import texts_of


def test_the_curve_is_drawn_for_each_run(tmp_path: Path) -> None:
    scores = {"num_queries": 1234, "num_classes": 120}
    lines = [
        {
            "epoch": e,
            "phase": "subspace",
            "validation": {"recall_at_1": 0.5 + e / 10, "recall_at_1_interval": [0.4, 0.8], **scores},
        }
        for e in range(3)
    ]
    runs = {"single": lines, "slices": [*lines, {"epoch": 3, "phase": "finetune"}]}
    draw_recall(runs, tmp_path / "r.png", untrained=0.4)
    assert Image.open(tmp_path / "r.png").width > 900
    texts = texts_of(_figure(runs, "validation", 0.4))
    assert {"single 70.0", "slices 70.0", "pretrained features 40.0", "slices conquers", "epoch"} <= set(texts)
    assert "Recall@1 on validation classes, %" in texts
    assert any("1,234 queries in 120 classes" in text and "95 % interval" in text for text in texts)


def run_folder(path: Path, of: dict[str, Any], split_hash: str = "abc") -> Path:
    """A run of three epochs with these scores of each."""
    path.mkdir(parents=True)
    record = {"model": {}, "train": {"epochs": 3}, "data": {}, "benchmark": "cub", "protocol": "p"}
    (path / "config.json").write_text(json.dumps(record | {"split_hash": split_hash}))
    for epoch in range(3):
        phase = "subspace" if epoch < 2 else "finetune"
        RunFolder(path).append({"epoch": epoch, "phase": phase, "observed": {}} | of)
    return path


def test_runs_are_drawn_on_the_classes_that_all_of_them_have_scores_of(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    both = {"observed": {"recall_at_1": 0.4}, "validation": {"recall_at_1": 0.5}}
    single = run_folder(tmp_path / "single", both)
    divided = run_folder(tmp_path / "divided", both)
    code, printed, err = command("curves", single, divided, "--out", tmp_path / "c.svg")
    assert code == 0, err
    assert "recall_at_1 on test classes" in printed
    picture = (tmp_path / "c.svg").read_text()
    assert "single 40.0" in picture
    assert "divided 40.0" in picture
    assert "single and divided conquer" in picture
    assert recall_curves([single, divided], tmp_path / "again.svg") == "test"
    assert (tmp_path / "again.svg").read_text() == picture
    # A run without scores of the test classes is compared on the validation classes.
    usual = run_folder(tmp_path / "usual", {"validation": {"recall_at_1": 0.5}})
    assert recall_curves([single, usual], tmp_path / "v.pdf") == "validation"
    assert (tmp_path / "v.pdf").read_bytes().startswith(b"%PDF")
    # Folders of one name are told apart by those above.
    other = run_folder(tmp_path / "b" / "usual", {"validation": {"recall_at_1": 0.5}})
    assert recall_curves([usual, other], tmp_path / "w.svg") == "validation"
    assert f"{tmp_path.name}/usual 50.0" in (tmp_path / "w.svg").read_text()
    assert "b/usual 50.0" in (tmp_path / "w.svg").read_text()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    run = run_folder(tmp_path / "run", {"validation": {"recall_at_1": 0.5}})
    tested = run_folder(tmp_path / "tested", {"observed": {"recall_at_1": 0.5}})
    elsewhere = run_folder(tmp_path / "elsewhere", {"validation": {"recall_at_1": 0.5}}, split_hash="def")
    for runs, error, words in (
        ([], ConfigError, "`runs` is empty"),
        ([run, run], ConfigError, "is given twice"),
        ([run, elsewhere], RunError, "elsewhere is of other data or another split than run"),
        ([run, tested], RunError, "tested: has no scores by epoch; .* which not all of these runs have"),
        ([tmp_path / "none"], RunError, "none"),
    ):
        with pytest.raises(error, match=words):
            recall_curves(runs, tmp_path / "c.png")
    code, _, err = command("curves", run, "--out", tmp_path / "c.jpg")
    assert (code, "--out" in err, "end it in .png, .svg or .pdf" in err) == (2, True, True)
    assert not list(tmp_path.glob("c.*"))
