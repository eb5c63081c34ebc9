"""What a run says while it goes on."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.runs.display import Bar
from divcon.runs.folder import RunFolder

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
        "epoch 1/2 ",
        "subspace",
        "learners ",
        "loss 0.",
        " images/s",
        "time left 0:0",
        "dividing",
        "evaluating",
    ):
        assert text in shown, text


def test_elsewhere_each_epoch_is_a_line(few: Benchmark, tmp_path: Path) -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, width=200)) as bar:
        dc.run(few, tmp_path / "run", CONFIG, display=bar)
    lines = screen.getvalue().splitlines()
    epochs = [line.split() for line in lines if line.split()[:1] in (["0"], ["1"])]
    for words, line in zip(epochs, RunFolder(tmp_path / "run").lines(), strict=True):
        assert words[:3] == [str(line["epoch"]), line["phase"], f"{line['loss']:.3f}"]
        assert words[3] == f"{100 * line['validation']['recall_at_1']:.1f}"
        assert words[4:6] == [str(size) for size in line["sizes"]]
    assert lines[-1].startswith("kept epoch")
