"""The ablation: fair to its arms, true to plain runs, and the same however often it is stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark, folds_of
from divcon.division import Division
from divcon.errors import ConfigError, DataError, RunError
from divcon.experiments import ARMS, Arm, ablation
from divcon.runs.display import NullDisplay
from divcon.runs.folder import RunFolder
from divcon.runtime.context import Progress
from divcon.training.sampler import plan_epoch

pytestmark = pytest.mark.heavy

SPACE = {"train": {"head_lr": [1e-3, 1e-2]}}
OPTIONS: dict[str, Any] = {"arms": ("single", "slices"), "seeds": (0, 1), "space": SPACE, "trials": 2, "folds": 2}


@pytest.fixture(scope="module")
def whole(small: Benchmark, base: dc.RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ablation that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    dc.ablate(small, out, base=base, **OPTIONS)
    return out


def results_in(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def timeless(value: Any) -> Any:
    """Without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.startswith("seconds")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the runs that are trained while a test goes on."""
    folders: list[Path] = []

    def noting(data: Any, out: Path, *arguments: Any, **options: Any) -> Any:
        folders.append(Path(out))
        return dc.run(data, out, *arguments, **options)

    monkeypatch.setattr(ablation, "run", noting)
    return folders


def test_every_arm_has_the_same_trials_folds_and_seeds(whole: Path, base: dc.RunConfig) -> None:
    results = results_in(whole)
    trials = [(r["method"], r["trial"], r["fold"], r["seed"]) for r in results["trials"]]
    assert trials == [(arm, t, f, 0) for arm in ("single", "slices") for t in range(2) for f in range(2)]
    assert [(r["method"], r["seed"]) for r in results["runs"]] == [
        ("single", 0),
        ("slices", 0),
        ("single", 1),
        ("slices", 1),
    ]
    assert {r["images_seen"] for r in results["runs"]} == {3 * (72 // 8) * 8}
    assert {r["batches"] for r in results["runs"]} == {27}
    assert results["trials"][0]["settings"] == {"train": {"head_lr": base.train.head_lr}}  # the default, first


def test_the_choice_is_the_best_epoch_of_the_mean_over_folds(whole: Path) -> None:
    results = results_in(whole)
    assert json.loads((whole / "choices.json").read_text()) == results["choices"]
    for arm, choice in results["choices"].items():
        scores = {
            (-np.mean([r["curve"][epoch]["map_at_r"] for r in some]), trial, -epoch)
            for trial in range(2)
            if (some := [r for r in results["trials"] if (r["method"], r["trial"]) == (arm, trial)])
            for epoch in range(3)
        }
        _, trial, epoch = min(scores)
        assert (choice["trial"], choice["epochs"]) == (trial, 1 - epoch)
        of_trial = [r for r in results["trials"] if (r["method"], r["trial"]) == (arm, trial)]
        assert choice["recall_at_1"] == pytest.approx(np.mean([r["curve"][-epoch]["recall_at_1"] for r in of_trial]))
        assert choice["settings"] == {"train": {"head_lr": SPACE["train"]["head_lr"][trial]}}


def test_a_trial_is_a_plain_run_on_a_fold(whole: Path, small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    record = next(r for r in results_in(whole)["trials"] if (r["method"], r["trial"], r["fold"]) == ("slices", 1, 1))
    slices = dataclasses.replace(base.model, method="slices")
    config = dataclasses.replace(base, model=slices, train=dataclasses.replace(base.train, head_lr=1e-2, seed=0))
    dc.run(folds_of(small, 2, 0)[1], tmp_path / "run", config)
    curve = [line["validation"]["recall_at_1"] for line in RunFolder(tmp_path / "run").lines()]
    assert [point["recall_at_1"] for point in record["curve"]] == curve


def test_a_run_is_a_plain_run_on_all_train_classes(
    whole: Path, small: Benchmark, base: dc.RunConfig, tmp_path: Path
) -> None:
    results = results_in(whole)
    record = next(r for r in results["runs"] if (r["method"], r["seed"]) == ("slices", 1))
    chosen = results["choices"]["slices"]
    train = dataclasses.replace(base.train, seed=1, **chosen["settings"]["train"])
    slices = dataclasses.replace(base.model, method="slices")
    config = dc.RunConfig(slices, train, dc.DataConfig(validation=False))
    model = dc.run(small, tmp_path / "run", config)
    scores = dc.evaluate(model, small, clustering=False, per_query=True)
    assert record["recall_at_1_last"] == record["curve"][-1]["recall_at_1"] == scores["recall_at_1"]
    assert record["recall_at_1"] == record["curve"][chosen["epochs"] - 1]["recall_at_1"]
    assert record["epochs"] == chosen["epochs"]
    assert np.mean(record["hits"]) == pytest.approx(record["recall_at_1"])
    assert {"recall_at_1", "recall_at_2", "r_precision", "map_at_r", "nmi", "ami"} <= set(record["scores"])
    num, of_class = np.array(record["per_class"]["num"]), record["per_class"]["map_at_r"]
    assert num.tolist() == np.unique(record["classes"], return_counts=True)[1].tolist()
    assert np.sum(num * of_class) / np.sum(num) == pytest.approx(record["scores"]["map_at_r"], rel=1e-5)
    assert len(record["hits"]) == len(record["classes"]) == len(small.query) - 1  # one query has no match
    if chosen["epochs"] == 3:
        assert record["scores"]["map_at_r"] == scores["map_at_r"]
        assert record["hits"] == [hit for hit in scores["per_query"]["recall_at_1"] if hit is not None]
    assert record["seconds"] >= record["seconds_dividing"] > 0
    assert len(record["kept_pairs"]) == 2
    assert (record["split_hash"], record["protocol"], record["data"]) == (small.split_hash, "leave-one-out", "small")
    assert record["settings"]["model"] == {"method": "slices"}

    # Distinct images, from the divisions that the run has left.
    drawn: set[int] = set()
    labels = np.unique(small.train.labels, return_inverse=True)[1].astype(np.int64)
    for epoch in range(3):
        division = Division.load(tmp_path / "run" / "divisions" / f"epoch_{epoch:04d}.safetensors")
        plan = plan_epoch(division, labels, batch_size=8, images_per_class=2, seed=1, epoch=epoch)
        drawn |= {int(i) for batch in plan.batches for i in batch.indices}
    assert record["distinct_images_seen"] == len(drawn)


def test_the_test_classes_are_evaluated_after_every_choice_is_written(
    small: Benchmark, base: dc.RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    evaluate = ablation.evaluate

    def watching(model: Any, data: Any, **options: Any) -> Any:
        looked.append(json.loads((tmp_path / "out" / "choices.json").read_text()))
        return evaluate(model, data, **options)

    monkeypatch.setattr(ablation, "evaluate", watching)
    dc.ablate(small, tmp_path / "out", base=base, **{**OPTIONS, "seeds": (0,)})
    assert len(looked) == 1 + 2 * 3  # the pretrained features, once, and each epoch of each run
    assert all(set(choices) == {"single", "slices"} for choices in looked)


class Stops(NullDisplay):
    """Ctrl-C after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def progress(self, progress: Progress) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def test_stopped_anywhere_and_resumed_it_is_the_same(
    whole: Path, small: Benchmark, base: dc.RunConfig, tmp_path: Path
) -> None:
    stops = 0
    while True:
        try:
            dc.ablate(small, tmp_path / "out", base=base, display=Stops(61), **OPTIONS)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 4
    assert timeless(results_in(tmp_path / "out")) == timeless(results_in(whole))


def test_results_alone_are_enough_to_resume(
    whole: Path, small: Benchmark, base: dc.RunConfig, tmp_path: Path, trained: list[Path]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(whole / "results.json", out)
    dc.ablate(small, out, base=base, **OPTIONS)
    assert trained == []
    assert results_in(out) == results_in(whole)
    assert (out / "table.md").read_text() == (whole / "table.md").read_text()
    assert (out / "choices.json").read_text() == (whole / "choices.json").read_text()
    assert (out / "recall.svg").read_bytes() == (whole / "recall.svg").read_bytes()
    assert (out / "recall.png").exists()


def test_seeds_and_arms_may_come_and_go(
    whole: Path, small: Benchmark, base: dc.RunConfig, tmp_path: Path, trained: list[Path]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(whole / "results.json", out)
    before = results_in(out)
    dc.ablate(small, out, base=base, **{**OPTIONS, "arms": ("slices",), "seeds": (1,)})
    assert trained == []
    assert results_in(out) == before
    table = (out / "table.md").read_text()
    assert "| slices |" in table
    assert "| single |" not in table
    assert "seed 0" not in table

    dc.ablate(small, out, base=base, **{**OPTIONS, "arms": ("masks", "slices"), "seeds": (2, 0)})
    assert len(trained) == 2 * 2 + 3  # the trials of masks; masks with two seeds, slices with the new one
    after = results_in(out)
    assert after["runs"][:4] == before["runs"]
    assert {r["seed"] for r in after["trials"]} == {0}  # all trials have one seed, whatever comes first now
    assert set(after["choices"]) == {"single", "slices", "masks"}
    assert after["settings"]["seeds"] == [0, 1, 2]


def test_an_ablation_of_something_else_is_refused(
    whole: Path, small: Benchmark, base: dc.RunConfig, tmp_path: Path, trained: list[Path]
) -> None:
    def refused(message: str, data: Benchmark = small, base: dc.RunConfig = base, **options: Any) -> None:
        with pytest.raises(RunError, match=message):
            dc.ablate(data, whole, base=base, **{**OPTIONS, **options})

    other = dataclasses.replace(base, train=dataclasses.replace(base.train, epochs=4))
    refused("train epochs is 3 there, 4 now", base=other)
    refused(
        r"arms single space train head_lr is \[0.001, 0.01\] there, \[0.1\] now", space={"train": {"head_lr": [0.1]}}
    )
    refused("trials is 2 there, 3 now", trials=3)
    refused("folds is 2 there, 3 now", folds=3)
    fewer = small.query.of_classes(small.query.classes[:6])
    refused("split_hash is", data=dataclasses.replace(small, query=fewer, gallery=fewer))
    refused("train is", data=dataclasses.replace(small, train=small.train.of_classes(small.train.classes[:10])))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and holds no ablation"):
        dc.ablate(small, tmp_path, base=base, **OPTIONS)
    with pytest.raises(RunError, match="is a file"):
        dc.ablate(small, tmp_path / "notes.txt", base=base, **OPTIONS)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(RunError, match="damaged, or not of an ablation"):
        dc.ablate(small, tmp_path, base=base, **OPTIONS)
    assert trained == []


def test_what_does_not_change_the_results_may_change(
    whole: Path, small: Benchmark, base: dc.RunConfig, trained: list[Path]
) -> None:
    train = dataclasses.replace(base.train, workers=1, seed=9)
    dc.ablate(small, whole, base=dataclasses.replace(base, train=train), **OPTIONS)
    assert trained == []


def test_nothing_to_search_is_no_trial_and_the_last_epoch(small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    lines: list[str] = []
    results = dc.ablate(small, tmp_path, arms=("slices", "masks"), base=base, seeds=(3,), tell=lines.append)
    assert results["trials"] == []
    assert {choice["epochs"] for choice in results["choices"].values()} == {3}
    assert all(run["recall_at_1"] == run["recall_at_1_last"] for run in results["runs"])
    assert lines[0] == "run 1 of 2: slices, seed 3"
    table = (tmp_path / "table.md").read_text()
    assert "difference from slices" in table  # single is not there, so the first
    assert "chosen" not in table
    left = {path.name for path in (tmp_path / "runs" / "slices" / "seed-3").iterdir()}
    assert left == {"config.json", "classes.json", "metrics.jsonl", "divisions", "report.html"}


def test_every_known_arm_trains_on_as_many_images(small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    results = dc.ablate(small, tmp_path, arms=list(ARMS), base=base, seeds=(0,))
    runs = {run["method"]: run for run in results["runs"]}
    assert list(runs) == list(ARMS)
    assert {run["images_seen"] for run in runs.values()} == {216}
    divided = {name for name, run in runs.items() if run["kept_pairs"]}
    assert divided == set(ARMS) - {"single", "normalised-slices", "slices-all-data", "masks-all-data"}
    assert runs["random-classes"]["kept_pairs"] == [1.0, 1.0]  # a class stays whole
    assert max(runs["random-images"]["kept_pairs"]) < 0.8
    assert len(runs["clustered"]["kept_pairs"]) == 2  # until the finetune phase


def test_a_base_of_masks_keeps_their_kind_and_hierarchy_for_its_own_arms(
    small: Benchmark, base: dc.RunConfig, tmp_path: Path
) -> None:
    model = dataclasses.replace(base.model, method="masks", head_options={"kind": "fixed"})
    train = dataclasses.replace(base.train, hierarchy=True, joint_epoch=2, finetune_epoch=3)
    arms = ("single", "masks", "slices", "normalised-slices")
    results = dc.ablate(
        small, tmp_path, arms=arms, base=dc.RunConfig(model, train), seeds=(0,), clustering=False, keep_models=True
    )
    kept = {arm: dc.EmbeddingModel.load(tmp_path / "runs" / arm / "seed-0") for arm in arms}
    assert kept["masks"].head.options["kind"] == "fixed"
    sizes = [line["sizes"] for line in RunFolder(tmp_path / "runs" / "masks" / "seed-0").lines()]
    assert [len(of_epoch) for of_epoch in sizes] == [1, 2, 2]
    of = {run["method"]: run["settings"] for run in results["runs"]}
    assert of["masks"]["model"] == {"method": "masks", "head_options": {"kind": "fixed"}}
    assert of["single"]["train"] == {"hierarchy": False}
    assert "train" not in of["masks"]
    assert "nmi" not in results["runs"][0]["scores"]


def test_models_are_kept_with_keep_models(small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    results = dc.ablate(small, tmp_path, arms=("single",), base=base, seeds=(0,), keep_models=True)
    model = dc.EmbeddingModel.load(tmp_path / "runs" / "single" / "seed-0")
    scores = dc.evaluate(model, small, clustering=False)
    assert scores["recall_at_1"] == results["runs"][0]["recall_at_1_last"]


def test_validation_classes_of_the_data_are_train_classes(small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    held = small.with_validation(0.3, 0)
    results = dc.ablate(held, tmp_path, arms=("single",), base=base, seeds=(0,))
    assert results["runs"][0]["images_seen"] == 3 * 72


def test_epochs_between_are_not_evaluated_but_counted(small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    sparse = dataclasses.replace(base, data=dc.DataConfig(evaluate_every=2))
    results = dc.ablate(small, tmp_path, arms=("single",), base=sparse, seeds=(0,))
    curve = results["runs"][0]["curve"]
    assert [(point["epoch"], point["images_seen"]) for point in curve] == [(1, 144), (2, 216)]


def test_a_trial_that_fails_is_not_chosen(small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    arm = Arm("wild", space={"train": {"head_lr": [1e-3, 1e30]}})
    results = dc.ablate(small, tmp_path / "a", arms=(arm,), base=base, seeds=(0,), trials=2, folds=2)
    assert [("failed" in record) for record in results["trials"]] == [False, False, True, True]
    assert results["choices"]["wild"]["trial"] == 0
    wrong = Arm("wild", space={"train": {"head_lr": [1e30]}})
    with pytest.raises(RunError, match="wild: every trial failed"):
        dc.ablate(small, tmp_path / "b", arms=(wrong,), base=base, seeds=(0,), trials=2, folds=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": (0, 1, 0)}, "`seeds` 0,1,0: list each seed once"),
        ({"seeds": ()}, "`seeds`"),
        ({"seeds": (-1,)}, "`seeds` -1"),
        ({"trials": 0}, "`trials` 0: must be at least 1"),
        ({"folds": 1}, "`folds` 1: must be at least 2"),
        ({"reference": "masks"}, r"`reference` masks: is none of the arms \(single, slices\)"),
        (
            {"arms": ("single", "hierarchy"), "space": {"train": {"finetune_epoch": [1]}}},
            "arm 'hierarchy'.*hierarchy",
        ),
        ({"space": {"train": {"loss": ["TripletLoss"]}}}, "arm 'single' with loss TripletLoss: unknown loss"),
        ({"base": dc.RunConfig(dc.ModelConfig(method="single"))}, "one learner has nothing to divide"),
    ],
)
def test_what_cannot_be_is_reported_before_anything_is_trained(
    small: Benchmark, base: dc.RunConfig, tmp_path: Path, trained: list[Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dc.ablate(small, tmp_path / "out", **{"base": base, **OPTIONS, **options})
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_too_few_classes_and_no_test_images_are_reported(small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"12 train classes .* too few for 7 folds"):
        dc.ablate(small, tmp_path / "out", base=base, **{**OPTIONS, "folds": 7})
    none = small.query.subset(np.empty(0, np.int64))
    with pytest.raises(DataError, match="no test images"):
        dc.ablate(dataclasses.replace(small, query=none, gallery=none), tmp_path / "out", base=base)
    with pytest.raises(DataError, match="no train images"):
        dc.ablate(dataclasses.replace(small, train=none), tmp_path / "out", base=base)


def test_observing_a_run_changes_nothing_of_it(small: Benchmark, base: dc.RunConfig, tmp_path: Path) -> None:
    def observe(model: dc.EmbeddingModel, report: Any) -> dict[str, Any]:
        torch.rand(100)
        return {"drawn": len(report.drawn), "mean": float(model.encode(small.query).mean())}

    plain = dc.run(small, tmp_path / "plain", base)
    watched = dc.run(small, tmp_path / "watched", base, observe=observe)
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    lines = RunFolder(tmp_path / "watched").lines()
    assert all(0 < line.pop("observed")["drawn"] <= line["images"] for line in lines)
    assert timeless(lines) == timeless(RunFolder(tmp_path / "plain").lines())
    assert "drawn" not in lines[0]
