"""Every command that a report and messages of a run show does what it says when it is typed elsewhere."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

Command = Callable[..., tuple[int, str, str]]
SETTINGS = "--backbone test_resnet --no-pretrained --size 32 --dim 8 --learners 2 --epochs 1 --batch-size 8 --workers 0"


@pytest.mark.parametrize("name", ["run", "my 'first' run; rm x"])
def test_the_command_of_a_report_puts_scores_there(
    name: str, image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, _, err = command("train", image_folder, *SETTINGS.split(), "--out", name)
    assert code == 0, err
    monkeypatch.chdir(tmp_path / "elsewhere")
    report = tmp_path / "here" / name / "report.html"
    commands = re.findall(r"<code>(divcon .*?)</code>", report.read_text())
    assert len(commands) == 1
    program, *words = shlex.split(html.unescape(commands[0]))
    assert program == "divcon"
    code, _, err = command(*words)
    assert code == 0, err
    assert f"the scores are in {report} too" in err
    assert "Scores on test classes" in report.read_text()
    assert not re.findall(r"<code>divcon ", report.read_text())


def test_a_report_of_data_that_no_file_names_shows_no_command(image_folder: Path, tmp_path: Path) -> None:
    import divcon as dc

    model = dc.ModelConfig(backbone="test_resnet", pretrained=False, image_size=32, embedding_dim=8, num_learners=2)
    config = dc.RunConfig(model, dc.TrainConfig(epochs=1, batch_size=8, workers=0, device="cpu"))
    dc.run(dc.read(image_folder), tmp_path / "run", config)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "<code>divcon " not in text
    assert "divcon.report(run, data, scores=divcon.evaluate(model, data))" in text


def test_the_command_after_a_report_that_was_not_written(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("divcon.runs.run.write_report", lambda *_, **__: 1 / 0)
        code, _, err = command("train", image_folder, *SETTINGS.split(), "--out", tmp_path / "a run")
    assert code == 0, err
    _, _, typed = err.replace("\n", " ").partition("Try: divcon ")
    words = shlex.split(re.split(" (?:similarity of learners|kept epoch) ", typed)[0])
    code, _, err = command(*words)
    assert code == 0, err
    assert (tmp_path / "a run" / "report.html").exists()


def test_runs_of_the_same_files_compare_however_their_paths_are_spelled(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    rows = [
        (str(path.relative_to(image_folder.parent)), path.parent.name) for path in sorted(image_folder.rglob("*.png"))
    ]
    classes = sorted({label for _, label in rows})
    test = set(classes[: len(classes) // 2])
    for name, prefix in (("relative", ""), ("absolute", f"{image_folder.parent}/")):
        lines = [f"{prefix}{path},{label},{'test' if label in test else 'train'}" for path, label in rows]
        Path("data.csv").write_text("\n".join(["path,label,split", *lines]))
        code, _, err = command("train", "data.csv", *SETTINGS.split(), "--no-validation", "--out", name)
        assert code == 0, err
    code, printed, err = command("compare", "relative", "absolute", "--workers", 0)
    assert code == 0, err
    assert "absolute - relative: recall_at_1 +0.0 [+0.0, +0.0] points" in printed
