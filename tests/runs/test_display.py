"""What a run prints."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import divcon as dc
from divcon.cli.messages import in_flags
from divcon.data.benchmark import Benchmark
from divcon.runs.display import Bar, print_table
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.progress_bar import fitted, stage_bar
from divcon.runtime.context import Progress as Step

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
    assert "0:00:0" in shown  # the time left, once an epoch is done
    for text in (
        "epoch 0 of 0-1 ",
        "epoch 1 of 0-1 ",
        "subspace",
        "learners ",
        "loss 0.",
        " images/s",
        " left",
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
        assert words[5] == f"{sum(line[f'seconds_{what}'] for what in ('dividing', 'training', 'evaluating')):.1f}"
        assert words[6:8] == [str(size) for size in line["sizes"]]
    of = RunFolder(tmp_path / "run").lines()[0]["validation"]["num_queries"]
    assert f"recall@1 and map@r: % of {of:,} queries of the validation classes" in lines
    assert [line for line in lines if line][-1].startswith("kept epoch")


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


def _frames(screen: io.StringIO) -> list[str]:
    """What was shown, line by line and state by state of the bar, without the codes of the terminal."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    return [line for line in re.split(r"[\r\n]", plain) if line.strip()]


@pytest.mark.parametrize("width", [80, 40])
def test_a_narrow_terminal_shows_a_bar_of_one_line(few: Benchmark, tmp_path: Path, width: int) -> None:
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=width)) as bar:
        dc.run(few, tmp_path / "run", CONFIG, display=bar)
    shown = [frame for frame in _frames(screen) if " left" in frame and "held out" not in frame]
    assert max(map(len, shown)) <= width
    training = [frame for frame in shown if "subspace" in frame and "\u2501" in frame]
    assert len(shown) > 3
    if width == 80:
        assert training
        assert all(re.search(r"\d+% .*loss \d\.\d+.* (-:--|\d:\d\d):(--|\d\d) left", frame) for frame in training)
        rows = [line for line in _frames(screen) if re.match(r" +\d+  subspace", line)]
        assert len(rows) == 2 and max(map(len, rows)) <= width


def test_many_learners_fit_into_a_line(tmp_path: Path) -> None:
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, width=80), in_flags)
    line = {
        "epoch": 3,
        "phase": "subspace",
        "loss": 1.0,
        "left_out": 12,
        "warnings": [],
        "sizes": [1000 + k for k in range(32)],
    }
    bar.epoch({**line, **{f"seconds_{what}": 1000.0 for what in ("dividing", "training", "evaluating")}})
    shown = _frames(screen)[-1]
    assert shown.endswith("3000.0  32 of 1,000 to 1,031 (12)")
    assert len(shown) <= 80
    screen = io.StringIO()
    Bar(Console(file=screen, force_terminal=True, width=80)).epoch(
        {**line, "sizes": [5, 6], **{f"seconds_{what}": 1.0 for what in ("dividing", "training", "evaluating")}}
    )
    assert _frames(screen)[-1].endswith(" 3.0  5 6 (12)")


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (80, ("embedding", 13, "50% 300 images/s 500/1,000 images 0:02 elapsed 0:01 left")),
        (75, ("embedding", 8, "50% 300 images/s 500/1,000 images 0:02 elapsed 0:01 left")),
        (74, ("embedding", 20, "50% 300 images/s 500/1,000 images 0:01 left")),
        (45, ("embedding", 8, "50% 300 images/s 0:01 left")),
        (44, ("embedding", 20, "50% 0:01 left")),
        (25, ("embedding", 0, "50% 0:01 left")),
        (20, ("embed…", 0, "50% 0:01 left")),
        (14, ("", 0, "50% 0:01 left")),
        (5, ("", 0, "50% 0")),
    ],
)
def test_what_fits_into_a_line(width: int, shown: tuple[str, int, str]) -> None:
    line = fitted(width, "embedding", "50%", "0:01 left", ["300 images/s", "500/1,000 images", "0:02 elapsed"])
    assert line == shown


def test_a_stage_bar_counts_each_stage_anew() -> None:
    screen = io.StringIO()
    with stage_bar(Console(file=screen, force_terminal=True, width=80), "items", total=50) as on_progress:
        for step in (
            Step("embed", 10, 20),
            Step("embed", 20, 20),
            Step("index", 25, None),
            Step("unpack", 2_000_000, 4_000_000),
        ):
            on_progress(step)
            time.sleep(0.15)  # drawn ten times a second
    shown = "\n".join(_frames(screen))
    for text in ("embedding", "100%", "20/20 items", "indexing", "50%", "25/50 items", "unpacking", "2/4 MB"):
        assert text in shown, text
    assert max(map(len, shown.splitlines())) <= 80


def test_a_table_that_is_too_wide_becomes_blocks_on_a_terminal_alone() -> None:
    heads, rows = ["", "recall_at_1", "map_at_r"], [["runs/[a]", "65.6 %", "36.3 %"], ["runs/b", "60.1 %", "–"]]
    shown = {}
    for name, options in {"wide": {"width": 80}, "narrow": {"width": 25}}.items():
        screen = io.StringIO()
        print_table(Console(file=screen, force_terminal=True, highlight=False, **options), heads, rows)
        shown[name] = _frames(screen)
    assert [line.split() for line in shown["wide"]] == [
        ["recall_at_1", "map_at_r"],
        ["runs/[a]", "65.6", "%", "36.3", "%"],
        ["runs/b", "60.1", "%", "–"],
    ]
    assert shown["narrow"] == [
        "runs/[a]",
        "  recall_at_1: 65.6 %",
        "  map_at_r: 36.3 %",
        "runs/b",
        "  recall_at_1: 60.1 %",
    ]
    piped = io.StringIO()
    print_table(Console(file=piped, width=20), heads, rows)
    assert [line.rstrip() for line in piped.getvalue().splitlines()] == [line.rstrip() for line in shown["wide"]]
    assert "\x1b" not in piped.getvalue()
