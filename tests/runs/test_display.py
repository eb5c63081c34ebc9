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
