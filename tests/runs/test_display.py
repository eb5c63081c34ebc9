"""What a run prints."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import divcon as dc
from divcon.cli.messages import in_flags
from divcon.data.benchmark import Benchmark
from divcon.runs.display import Bar
from divcon.runs.folder import RunFolder, kept_epoch

CONFIG = dc.RunConfig(
    dc.ModelConfig(num_learners=2, embedding_dim=16, backbone="test_resnet", pretrained=False, image_size=32),
    dc.TrainConfig(epochs=2, batch_size=16, images_per_class=2, workers=0, finetune_epoch=2),
)


def test_a_terminal_shows_phase_learners_loss_rate_and_time_left(few: Benchmark, tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    with Bar(console) as bar:
        dc.run(few, tmp_path / "run", CONFIG, display=bar)
    shown = screen.getvalue()
    for text in (
        "epoch 0 of 0-1 ",
        "epoch 1 of 0-1 ",
        "subspace",
        "learners ",
        "loss 0.",
        " images/s",
        "time left 0:0",
        "dividing",
        "evaluating",
    ):
        assert text in shown, text


def test_epochs_are_numbered_from_0_everywhere(few: Benchmark, tmp_path: Path) -> None:
    """Bar, lines, files, and the words at the end and on resuming: an epoch has one number."""
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, highlight=False, width=200)) as bar:
        dc.run(few, tmp_path / "run", CONFIG, display=bar)
    shown = screen.getvalue()
    assert "epoch 2" not in shown
    assert "epoch 1/2" not in shown
    lines = RunFolder(tmp_path / "run").lines()
    assert [line["epoch"] for line in lines] == [0, 1]
    assert f"kept epoch {kept_epoch(lines)} in" in shown
    again = io.StringIO()
    with Bar(Console(file=again, width=200)) as bar:
        dc.run(few, tmp_path / "run", CONFIG, resume=True, display=bar)
        assert "already done: epochs 0-1" in again.getvalue()
        bar.begin(dc.RunConfig(CONFIG.model, dc.TrainConfig(epochs=60)), few, 4)
    assert "resuming at epoch 4 of 0-59" in again.getvalue()


@pytest.mark.parametrize(
    ("options", "noted"),
    [
        ({"finetune_epoch": 2, "full_weight": 0.0}, True),
        ({"finetune_epoch": 2, "full_weight": 1.0}, False),  # each batch trains the full embedding, too
        ({"finetune_epoch": 1, "full_weight": 0.0}, False),
        ({"finetune_epoch": 2, "joint_epoch": 1, "full_weight": 0.0}, False),
    ],
)
def test_a_run_whose_full_embedding_is_never_trained_is_noted(few: Benchmark, options: Any, noted: bool) -> None:
    screen = io.StringIO()
    config = dc.RunConfig(CONFIG.model, dc.TrainConfig(epochs=2, **options))
    Bar(Console(file=screen, width=200), in_flags).begin(config, few, 0)
    assert (
        "no loss ever trains the full embedding: --finetune-epoch 2 is not below --epochs 2" in screen.getvalue()
    ) is noted


def test_elsewhere_each_epoch_is_a_line(few: Benchmark, tmp_path: Path) -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, width=200)) as bar:
        dc.run(few, tmp_path / "run", CONFIG, display=bar)
    lines = screen.getvalue().splitlines()
    epochs = [line.split() for line in lines if line.split()[:1] in (["0"], ["1"])]
    for words, line in zip(epochs, RunFolder(tmp_path / "run").lines(), strict=True):
        assert words[:3] == [str(line["epoch"]), line["phase"], f"{line['loss']:.3f}"]
        assert words[3] == f"{100 * line['validation']['recall_at_1']:.1f}"
        assert words[4] == f"{100 * line['validation']['map_at_r']:.1f}"
        assert words[5:7] == [str(size) for size in line["sizes"]]
    assert lines[-1].startswith("kept epoch")


def test_a_note_of_every_epoch_is_printed_once_and_counted_at_the_end(tmp_path: Path) -> None:
    screen = io.StringIO()
    bar = Bar(Console(file=screen, width=300), in_flags)
    line = {"phase": "subspace", "loss": 1.0, "sizes": [3], "left_out": 0, "warnings": []}
    seconds = {f"seconds_{what}": 0.0 for what in ("dividing", "training", "evaluating")}
    for epoch in range(64):
        notes = [f"learner {epoch % 2} has batches of {60 + epoch % 5} images, not 80"] if epoch > 2 else []
        notes += ["alone; see `num_learners`"] if epoch == 7 else []
        bar.epoch({**line, **seconds, "epoch": epoch, "warnings": notes, "learner_similarity": 0.5 + epoch / 1000})
    bar.warn("the same")
    bar.warn("the same")
    before = screen.getvalue()
    assert before.count("has batches of") == before.count("the same") == 1
    assert "note: learner 1 has batches of 63 images, not 80\n" in before
    bar.end(tmp_path, 60)
    ending = screen.getvalue().removeprefix(before)
    assert "batches of 63 images, not 80 (in 61 epochs, first in epoch 3; of learners 0, 1)\n" in ending
    assert "alone" not in ending
    assert "similarity of learners in epoch 60: 0.56" in ending


def test_the_end_of_a_run_shows_what_needs_no_training(few: Benchmark, tmp_path: Path) -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, width=200), in_flags) as bar:
        dc.run(few, tmp_path / "run", CONFIG, display=bar)
    shown = screen.getvalue()
    assert "beside what needs no training, on 2 validation classes:" in shown
    assert "pooled features " in shown
    assert "no scores of pretrained features: training started from random weights" in shown
