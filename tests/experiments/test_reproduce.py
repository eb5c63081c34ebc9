"""Published results reproduced, on folders of the originals' layout with tiny images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import divcon as dc
from divcon.config.presets import PRESETS, preset
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, RunError
from divcon.experiments.reproduce import part_of, shortened
from divcon.runs.display import NullDisplay
from divcon.runs.folder import RunFolder
from divcon.training.schedule import phase_at

pytestmark = pytest.mark.heavy

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--batch-size", 16, "--workers", 0)


@pytest.fixture(scope="session")
def cub(trees: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cub") / "CUB_200_2011"
    trees.write_cub(root, train=[6] * 100, test=[6] * 100, put=trees.draw)
    return root


def row_of(printed: str, score: str) -> list[str]:
    """The row of a score in the last table that has one."""
    return [line.split() for line in printed.splitlines() if line.startswith(f"{score} ")][-1]


def small(config: dc.RunConfig, **train: Any) -> dc.RunConfig:
    model = replace(config.model, backbone="test_resnet", pretrained=False, image_size=32, num_learners=2)
    return replace(config, model=model, train=replace(config.train, batch_size=16, workers=0, **train))


@pytest.mark.parametrize("name", PRESETS)
def test_the_walk_of_every_preset(command: Run, cub: Path, tmp_path: Path, name: str) -> None:
    arguments = ("reproduce", "cub", cub, "--preset", name, "--fraction", 0.02, *SMALL, "--json", tmp_path / "r.json")
    code, printed, err = command(*arguments, "--out", tmp_path / "run")
    assert code == 0, err
    result = json.loads((tmp_path / "r.json").read_text())
    reproduced, lines = result["reproduced"], RunFolder(tmp_path / "run").lines()
    observed = [line["observed"]["recall_at_1"] for line in lines]
    assert len(lines) == reproduced["settings"]["train"]["epochs"] == 6
    config = preset(name, "cub")
    phases = {phase_at(epoch, config.train, config.model.num_learners) for epoch in range(config.train.epochs)}
    assert {line["phase"] for line in lines} == {str(phase) for phase in phases}
    assert result["recall_at_1"] == observed[-1] == np.mean(result["per_query"]["recall_at_1"])
    assert reproduced["papers_rule"] == {"recall_at_1": max(observed), "epoch": int(np.argmax(observed))}
    assert (result["num_classes"], result["num_queries"], result["protocol"]) == (8, 48, "leave-one-out")
    assert set(reproduced["changed"]) == {"backbone", "image_size", "batch_size"}
    assert reproduced["environment"]["versions"]["divcon"] == dc.__version__
    assert reproduced["differences"] is None
    assert f"by the papers' rule (not a result): {100 * max(observed):.1f}" in printed
    assert "changed from the preset: --size is 32, in" in printed
    assert "this used 2 % of the classes and epochs: it is not a result" in printed
    known = reproduced["published"]
    for score, value in (known["scores"] if known else {"recall_at_1": None}).items():
        assert row_of(printed, score)[2] == (f"{100 * value:.1f}" if value else "-")
    assert ("marp" in result) == name.startswith("tpami2021")
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(("does not compare with it" in text) == ("marp" in result) for text in (printed, report))
    # What no validation class can show, the classes that it was tested on do.
    assert "Recall@1 on test classes" in report
    assert "Each of 48 test images, searched among the others" in report
    assert json.loads((tmp_path / "run" / "test.json").read_text())["recall_at_1"] == result["recall_at_1"]
    assert "Scores on test classes" in (tmp_path / "run" / "report.html").read_text()
    # Its data cannot be read again, as it is a part.
    code, _, err = command("evaluate", tmp_path / "run")
    assert (code, "does not say what it was trained on" in err) == (2, True)


@pytest.mark.parametrize("name", ["cars", "sop", "inshop", "vehicleid-small", "market1501"])
def test_the_walk_on_every_data_set(command: Run, trees: ModuleType, tmp_path: Path, name: str) -> None:
    family = name.partition("-")[0]
    getattr(trees, f"write_{family}")(tmp_path / "root", **trees.SMALL[family], put=trees.draw)
    arguments = ("reproduce", name, tmp_path / "root", "--fraction", 0.5, *SMALL, "--learners", 2, "--epochs", 4)
    code, printed, err = command(*arguments, "--finetune-epoch", 2, "--out", tmp_path / "run", "--no-clustering")
    assert code == 0, err
    assert f"{name}, cvpr2019" in printed
    assert ("published: CVPR 2019" in printed) == (name in ("cars", "sop", "inshop"))


def test_a_whole_run_is_compared_with_what_is_published(command: Run, cub: Path, tmp_path: Path) -> None:
    short = ("--epochs", 2, "--finetune-epoch", 1, "--no-clustering", "--json", tmp_path / "r.json")
    code, printed, err = command("reproduce", "cub", cub, *SMALL, *short, "--out", tmp_path / "run")
    assert code == 0, err
    result = json.loads((tmp_path / "r.json").read_text())
    published = {"recall_at_1": 65.9, "recall_at_2": 76.6, "recall_at_4": 84.4, "recall_at_8": 90.6}
    assert result["reproduced"]["differences"] == pytest.approx(
        {score: result[score] - value / 100 for score, value in published.items()}
    )
    for score, value in published.items():
        ours = 100 * result[score]
        expected = [score, f"{ours:.1f}", f"{value}", f"{100 * (result[score] - value / 100):+.1f}"]
        assert row_of(printed, score) == expected
    assert row_of(printed, "nmi") == ["nmi", "-", "69.6"]  # without clustering
    assert "changed from the preset: --epochs is 2, in cvpr2019 200" in printed
    assert "of the classes and epochs" not in printed
    # What it wrote compares as what evaluate writes does, and the run is one like any other.
    scores = tmp_path / "scores.json"
    assert command("evaluate", tmp_path / "run", "--no-clustering", "--workers", 0, "--json", scores)[0] == 0
    code, printed, err = command("compare", tmp_path / "r.json", scores)
    assert code == 0, err
    assert "recall_at_1 +0.0 [+0.0, +0.0] points" in printed


def test_learners_before_and_after_they_are_merged(command: Run, cub: Path, tmp_path: Path) -> None:
    arguments = ("reproduce", "cub", cub, *SMALL, "--learners", 2, "--epochs", 4, "--finetune-epoch", 2)
    arguments += ("--no-clustering", "--by-learner", "--metric", "marp", "--evaluate-every", 4)
    code, printed, err = command(*arguments, "--fraction", 0.02, "--json", tmp_path / "r.json", "--out", tmp_path / "r")
    assert code == 0, err
    result = json.loads((tmp_path / "r.json").read_text())
    learners, lines = result["reproduced"]["learners"], RunFolder(tmp_path / "r").lines()
    before, after = learners["before"], learners["after"]
    assert (before["epoch"], after["epoch"]) == (1, 3)
    assert [line["epoch"] for line in lines if line["observed"]] == [1, 3]
    assert before == {"epoch": 1, **lines[1]["observed"]}
    assert after["recall_at_1"] == result["recall_at_1"]
    assert after["alone"] == [learner["recall_at_1"] for learner in result["learners"]]
    assert len(before["alone"]) == 2
    assert row_of(printed, "learner")[0] == "learner"
    cells = [f"{100 * side['alone'][1]:.1f}" for side in (before, after)]
    assert ["learner", "1", *cells] in [line.split() for line in printed.splitlines()]
    assert result["marp"] >= result["map_at_r"]


class Stops(NullDisplay):
    """A person who presses Ctrl-C after an epoch."""

    def __init__(self, after: int) -> None:
        self.after = after

    def epoch(self, line: dict[str, Any]) -> None:
        if line["epoch"] == self.after:
            raise KeyboardInterrupt


def test_stopped_it_goes_on_to_the_same_result(cub: Path, tmp_path: Path) -> None:
    data, config = dc.read("cub", cub), small(preset("tpami2021-learned", "cub"))
    straight = dc.reproduce(data, "tpami2021-learned", tmp_path / "a", config=config, fraction=0.02, clustering=False)
    for stop in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            dc.reproduce(data, "tpami2021-learned", tmp_path / "b", config=config, fraction=0.02, display=Stops(stop))
    again = dc.reproduce(data, "tpami2021-learned", tmp_path / "b", config=config, fraction=0.02, clustering=False)
    for result in (straight, again):
        result["reproduced"].pop("seconds")
    assert again == straight
    with pytest.raises(RunError, match="the data has changed since the run started"):
        other = replace(config, train=replace(config.train, seed=1))
        dc.reproduce(data, "tpami2021-learned", tmp_path / "b", config=other, fraction=0.02)


def test_only_every_so_many_epochs_and_the_last_are_scored(cub: Path, tmp_path: Path) -> None:
    config = small(preset("cvpr2019", "cub"), epochs=5, finetune_epoch=4)
    config = replace(config, data=replace(config.data, evaluate_every=3))
    dc.reproduce(dc.read("cub", cub), "cvpr2019", tmp_path, config=config, fraction=0.02, clustering=False)
    assert [bool(line["observed"]) for line in RunFolder(tmp_path).lines()] == [False, False, True, False, True]


def test_a_part_has_its_share_of_classes_whole(trees: ModuleType, cub: Path, tmp_path: Path) -> None:
    trees.write_market1501(tmp_path / "m", train=[3] * 50, test=[(1, 2)] * 50, put=trees.draw)
    for data in (dc.read("cub", cub), dc.read("market1501", tmp_path / "m")):
        part = part_of(data, 0.2, 0)
        for name, images in part.parts.items():
            whole = data.parts[name]
            names = {images.label_names[c] for c in images.classes}
            kept = np.array([whole.label_name(i) in names for i in range(len(whole))])
            assert len(images) == kept.sum()
        assert part.train.num_classes == 0.2 * data.train.num_classes
        assert (part.query is part.gallery) == (data.query is data.gallery)
        assert part_of(data, 0.2, 0).split_hash == part.split_hash != part_of(data, 0.2, 1).split_hash


@given(fraction=st.floats(0.001, 1.0), name=st.sampled_from(sorted(PRESETS)), data=st.sampled_from(["cub", "sop"]))
def test_a_shorter_run_has_every_phase_and_can_grow(fraction: float, name: str, data: str) -> None:
    config = preset(name, data)
    short = shortened(config, fraction)
    train, then = short.train, config.train
    assert train.epochs == min(then.epochs, max(6, round(fraction * then.epochs)))
    joint, finetune = train.phase_starts
    assert 1 <= joint <= finetune <= train.epochs
    assert (finetune < train.epochs) == (then.phase_starts[1] < then.epochs)
    if train.hierarchy:
        assert joint > train.redivide_every * math.log2(short.model.num_learners)
        assert short.model.num_learners >= 2
    if fraction == 1.0:
        assert short == replace(config, train=train)
        assert (train.epochs, finetune) == (then.epochs, then.phase_starts[1])


def test_what_cannot_be_is_refused(few: Benchmark, tmp_path: Path) -> None:
    for fraction in (0.0, -1.0, 1.5):
        with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
            dc.reproduce(few, "single", tmp_path / "r", fraction=fraction)
    with pytest.raises(ConfigError, match="unknown preset 'cvpr'"):
        dc.reproduce(few, "cvpr", tmp_path / "r")
    assert not (tmp_path / "r").exists()
