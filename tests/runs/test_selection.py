"""Which epoch a run keeps, when `patience` ends it, how it is made longer, and cross-validation over folds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import divcon as dc
from divcon.data.benchmark import Benchmark, folds_of
from divcon.errors import ConfigError, RunError
from divcon.models.pruning import embedding_head
from divcon.runs import selection
from divcon.runs.display import NullDisplay
from divcon.runs.folder import RunFolder, kept_epoch, own_benchmark, run_of
from divcon.training.checkpoint_file import read_checkpoint

pytestmark = pytest.mark.heavy

Command = Callable[..., tuple[int, str, str]]

DATA = Path(__file__).parent / "before" / "data.parquet"
MODEL = dc.ModelConfig(num_learners=2, embedding_dim=8, embed="head")
TRAIN = dc.TrainConfig(epochs=4, batch_size=16, images_per_class=2, workers=0)
CONFIG = dc.RunConfig(MODEL, TRAIN)


class Heard(NullDisplay):
    """Collects warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.ends: list[int | None] = []
        self.begun: list[tuple[int, int]] = []

    def begin(self, config: dc.RunConfig, data: Benchmark, epochs_done: int) -> None:
        self.begun.append((config.train.epochs, epochs_done))

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def end(self, out: Path, kept_epoch: int | None) -> None:
        self.ends.append(kept_epoch)


class Stop(NullDisplay):
    """Stops a run in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, epoch: int) -> None:
        self.at = epoch

    def progress(self, progress: Any) -> None:
        if (progress.epoch, progress.stage) == (self.at, "train") and progress.done > 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def data() -> Benchmark:
    return dc.read(str(DATA))


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the few queries of these tests were many."""
    monkeypatch.setattr(selection, "FEW_QUERIES", 5)


def lines_of(out: Path) -> list[dict]:
    return RunFolder(out).lines()


def timeless(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


def line(
    epoch: int, recall: float | None = None, map_at_r: float = 0.0, *, phase: str = "finetune", queries: int = 1000
) -> dict[str, Any]:
    scores = {} if recall is None else {"recall_at_1": recall, "map_at_r": map_at_r, "num_queries": queries}
    return {"epoch": epoch, "phase": phase} | ({"validation": scores} if scores else {})


def marked(lines: list[dict], config: dc.RunConfig) -> list[dict]:
    """The lines as a run writes them."""
    done: list[dict] = []
    for each in lines:
        done.append({**each, "kept": selection.is_better(each, done, config)})
    return done


def of(epochs: int = 60, *, full_weight: float = 1.0, **settings: Any) -> dc.RunConfig:
    train = dc.TrainConfig(epochs=epochs, full_weight=full_weight)
    return dc.RunConfig(train=train, data=dc.DataConfig(**settings))


# The rule.


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=1, max_size=8), st.booleans())
def test_the_last_of_the_best_is_kept_and_what_was_never_trained_only_without_another(
    epochs: list[tuple[int, int, bool]], by_recall: bool
) -> None:
    config = of(full_weight=0.0, select_by="recall_at_1" if by_recall else "map_at_r")
    lines = [
        line(e, recall / 4, precision / 4, phase="finetune" if trained else "subspace")
        for e, (recall, precision, trained) in enumerate(epochs)
    ]
    expected = max(range(len(epochs)), key=lambda e: (epochs[e][2], epochs[e][0] if by_recall else epochs[e][1], e))
    assert kept_epoch(marked(lines, config)) == expected


def test_few_queries_keep_the_last_epoch_and_more_the_best_map_at_r() -> None:
    scores = [(0.9, 0.3), (0.8, 0.5), (0.7, 0.4)]
    for queries, select_by, expected in (
        (299, "auto", 2),
        (300, "auto", 1),
        (299, "map_at_r", 1),
        (10, "recall_at_1", 0),
        (10_000, "last", 2),
    ):
        lines = [line(e, *score, queries=queries) for e, score in enumerate(scores)]
        assert kept_epoch(marked(lines, of(select_by=select_by))) == expected


def test_epochs_that_were_not_evaluated_are_not_kept() -> None:
    lines = marked([line(0), line(1, 0.5, 0.5), line(2), line(3, 0.4, 0.4)], of())
    assert [each["kept"] for each in lines] == [False, True, False, False]
    assert kept_epoch(lines) == 1
    assert kept_epoch(lines[:1]) is None
    assert kept_epoch([]) is None


def test_lines_of_before_are_read_by_the_rule_of_then_and_followed_by_that_of_now() -> None:
    old = [line(0, 0.5), line(1, 0.5), line(2, 0.4)]
    assert kept_epoch(old) == 0
    config = of(select_by="recall_at_1")
    worse, equal = line(3, 0.4), line(3, 0.5)
    assert kept_epoch([*old, {**worse, "kept": selection.is_better(worse, old, config)}]) == 0
    assert kept_epoch([*old, {**equal, "kept": selection.is_better(equal, old, config)}]) == 3
    assert kept_epoch([line(0), line(1)]) == 1  # without validation classes


def test_distillation_trains_the_full_embedding_too() -> None:
    lines = [line(0, 0.9, 0.9, phase="subspace"), line(1, 0.5, 0.5)]
    config = of(full_weight=0.0)
    assert kept_epoch(marked(lines, config)) == 1
    distilled = replace(config, train=replace(config.train, distill_weight=1.0))
    assert kept_epoch(marked(lines, distilled)) == 0


# Warnings.


def found(lines: list[dict], config: dc.RunConfig) -> str:
    return "\n".join(selection.notes(marked(lines, config), config))


def test_a_choice_by_clear_scores_is_not_warned_of() -> None:
    assert found([line(e, e / 10, e / 20) for e in range(8)], of()) == ""


def test_few_queries_saturation_ties_and_an_untrained_embedding_are_warned_of() -> None:
    few = found([line(0, 0.5, 0.5, queries=31)], of())
    assert few == (
        "31 validation queries are too few to choose an epoch by (fewer than 300): the last is kept; to choose on "
        "more, use `validation_folds=5` or a larger `validation_fraction`"
    )
    drawn = found([line(0, 0.5, 0.5, queries=31)], of(validation_queries=31))
    assert drawn.endswith("to choose on more, use a larger `validation_queries`")
    assert "the best MAP@R on them may be chance" in found([line(0, 0.5, 0.5, queries=31)], of(select_by="map_at_r"))
    saturated = found([line(0, 0.5, 0.4), line(1, 0.99, 0.8)], of())
    assert saturated.startswith("Recall@1 on validation classes reached 99.0 % and no longer tells epochs apart: MAP@R")
    assert "`select_by=map_at_r` still may" in found(
        [line(0, 0.995, 0.4), line(1, 0.5, 0.8)], of(select_by="recall_at_1")
    )
    assert "reached" not in found([line(0, 0.5, 0.4), line(1, 0.989, 0.8)], of())
    tied = found([line(e, 0.9 if e < 3 else 0.5, 0.1 * e) for e in range(12)], of(select_by="recall_at_1"))
    assert tied.startswith("3 of 12 evaluated epochs have the best Recall@1, 90.0 %, and the last of them is kept: use")
    assert found([line(e, 0.9 if e < 2 else 0.5, 0.1 * e) for e in range(12)], of(select_by="recall_at_1")) == ""
    untrained = found([line(0, 0.5, 0.4, phase="subspace")], of(full_weight=0.0))
    assert untrained.startswith("no loss had trained the full embedding by epoch 0, which is kept: use a `full_weight`")
    assert found([line(0, 0.5, 0.4, phase="subspace"), line(1, 0.4, 0.3)], of(full_weight=0.0)) == ""


def test_warnings_are_shown_at_the_end_and_in_the_report(data: Benchmark, tmp_path: Path) -> None:
    heard = Heard()
    dc.run(data, tmp_path, replace(CONFIG, train=replace(TRAIN, epochs=1)), display=heard)
    assert sum("are too few to choose an epoch by" in message for message in heard.warnings) == 1
    report = (tmp_path / "report.html").read_text()
    assert "12 validation queries are too few to choose an epoch by" in report
    assert "is kept: the last, as 12 validation queries are too few to choose by" in report
    assert heard.ends == [0]


# A run, and the model of its last epoch.


def test_the_kept_and_the_last_model_are_saved(data: Benchmark, tmp_path: Path, many: None) -> None:
    out = tmp_path / "run"
    config = replace(CONFIG, train=replace(TRAIN, lr=0.0, head_lr=0.3), data=dc.DataConfig(select_by="map_at_r"))
    dc.run(data, out, config, report=False)
    lines = lines_of(out)
    scores = [each["validation"]["map_at_r"] for each in lines]
    best = max(e for e, score in enumerate(scores) if score == max(scores))
    assert kept_epoch(lines) == best
    held = own_benchmark(out, data, whole=True).validation
    for folder, epoch in ((out, best), (out / "model", best), (out / "last", 3)):
        model = dc.EmbeddingModel.load(folder)
        assert dc.evaluate(model, held, clustering=False)["map_at_r"] == pytest.approx(scores[epoch], abs=1e-6)
    content = read_checkpoint(out / "checkpoint")
    last = {**content["model"], **content["average"]}
    assert all(torch.equal(value, last[name]) for name, value in load_file(out / "last/model.safetensors").items())
    folder = RunFolder(out / "last")
    assert folder.origin()[0] == RunFolder(out).read()[0]
    assert folder.origin()[1]["last_epoch"]["epoch"] == 3
    assert folder.used_classes() == RunFolder(out).used_classes()
    assert [len(own_benchmark(each, data, whole=True).train) for each in (out, out / "last")] == [72, 72]
    assert run_of(out / "last") == out == run_of(out) == run_of(out / "model")


def test_a_kill_between_the_line_and_the_checkpoint_leaves_no_other_model_than_the_lines_say(
    data: Benchmark, tmp_path: Path, many: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is dropped may be that of the model; the epoch then replaces it, whatever its score is this time."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        dc.run(data, out, CONFIG, display=Stop(2), report=False)
    lines = lines_of(out)
    content = {**lines[-1], "epoch": 2, "kept": True}
    RunFolder(out).append(content)
    monkeypatch.setattr(selection, "is_better", lambda *_: False)
    dc.run(data, out, CONFIG, resume=True, report=False)
    assert [each["kept"] for each in lines_of(out)][2:] == [True, False]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    model = replace(MODEL, method="slices")
    dc.run(str(DATA), out, replace(CONFIG, model=model))
    return out


def test_a_run_is_evaluated_on_some_queries_the_same_each_epoch_and_says_so(
    data: Benchmark, tmp_path: Path, command: Command
) -> None:
    model = replace(MODEL, embed="auto")
    config = replace(CONFIG, model=model, data=replace(CONFIG.data, validation_fraction=0.4, validation_queries=9))
    config = replace(config, train=replace(config.train, seed=5, ema_decay=0.0))
    dc.run(str(DATA), tmp_path / "run", config)
    held = data.with_validation(0.4, 5).validation
    assert held is not None
    lines, total = lines_of(tmp_path / "run"), len(held)
    assert {(each["validation"]["num_queries"], each["validation"]["num_queries_total"]) for each in lines} == {
        (9, total)
    }
    last = dc.EmbeddingModel.load(tmp_path / "run" / "last")
    by_head = last.with_head(embedding_head(last, "head"))
    scores = dc.evaluation.retrieval_metrics(by_head.encode(held), held.labels, max_queries=9, seed=5)
    assert scores["recall_at_1"] == lines[-1]["validation"]["recall_at_1"]
    record = json.loads((tmp_path / "run" / "model" / "embedding.json").read_text())
    assert (record["num_queries"], record["num_queries_total"]) == (9, total)
    baselines = json.loads((tmp_path / "run" / "baselines.json").read_text())["baselines"]
    assert baselines["pretrained_features"]["num_queries_total"] == total
    assert (tmp_path / "run" / "report.html").read_text().count(f">9 of {total}<") >= 2
    code, printed, err = command(
        *("evaluate", tmp_path / "run", "--max-queries", 7, "--max-clustered", 20, "--workers", 0),
        *("--json", tmp_path / "scores.json"),
    )
    assert code == 0, err
    test = json.loads((tmp_path / "scores.json").read_text())
    assert f": 7 of {len(data.query)} queries of" in printed and test["num_queries"] == 7
    clustered = test["clustered"]
    assert f"NMI and AMI are of {clustered['num_items']} of {len(data.query)} items, all items of" in printed
    assert "(--max-clustered sets how many)" in printed
    assert f"7 of {len(data.query)}" in (tmp_path / "run" / "report.html").read_text()
    code, printed, _ = command(
        *("compare", tmp_path / "run", tmp_path / "run" / "last", "--max-queries", 7, "--workers", 0, "--no-baselines"),
    )
    assert code == 0 and f": 7 of {len(data.query)} queries of" in printed


@pytest.mark.parametrize("which", ["last", "model"])
def test_a_model_folder_is_loaded(trained: Path, which: str) -> None:
    assert dc.EmbeddingModel.load(trained / which).embedding_dim == 8


def test_every_command_takes_the_last_model(command: Command, trained: Path, tmp_path: Path) -> None:
    last = trained / "last"
    code, printed, err = command("evaluate", last, "--parts", "--json", tmp_path / "last.json", "--workers", 0)
    assert (code, err) == (0, "")
    assert "best few, chosen on validation classes" in printed
    own = dc.evaluate(dc.EmbeddingModel.load(last), dc.read(str(DATA)), clustering=False)
    scores = json.loads((tmp_path / "last.json").read_text())
    assert scores["recall_at_1"] == own["recall_at_1"]
    assert scores["recall_at_1_interval_method"] == "bootstrap over classes"

    code, printed, err = command("compare", trained, last, "--workers", 0)
    assert code == 0, err
    code, printed, err = command("encode", last, DATA, "--out", tmp_path / "all.parquet", "--workers", 0)
    assert code == 0, err
    code, printed, err = command("prune", last, "--dims", 4, "--out", tmp_path / "small", "--workers", 0)
    assert code == 0, err
    assert "validation classes: " in printed
    assert RunFolder(tmp_path / "small").origin()[1]["last_epoch"]["epoch"] == 3
    code, printed, err = command("index", last, DATA, "--store", tmp_path / "index", "--workers", 0)
    assert code == 0, err
    with dc.Index.open(str(tmp_path / "index")) as index:  # which names its model
        hits = index.search(dc.read(str(DATA)).query.vectors[0], k=2)
        assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    code, printed, err = command("export", last, "--format", "hf", "--out", tmp_path / "card")
    assert code == 0, err
    card = (tmp_path / "card" / "README.md").read_text()
    assert "The model is that of the run's last epoch, 3." in card
    assert str(trained) not in card
    code, _, err = command("report", last)
    assert (code, f"a model of the run {trained}; pass that" in err) == (2, True)
    how = ("--epochs", 1, "--batch-size", 16, "--workers", 0, "--out", tmp_path / "again")
    code, _, err = command("train", DATA, "--init", last, *how)
    assert code == 0, err
    assert "2 learners, D 8" in err
    code, _, err = command("train", DATA, "--out", last)
    assert (code, "is not empty and holds no run" in err) == (2, True)


def test_the_page_of_an_index_of_the_last_model_shows_the_run_s_divisions(trained: Path, tmp_path: Path) -> None:
    from divcon.serve.run_data import RunData

    data = dc.read(str(DATA))
    with dc.Index.build(dc.EmbeddingModel.load(trained / "last"), data.train, str(tmp_path / "index")) as index:
        shown = RunData.read(trained / "last", index)
        assert set(shown.splits) == {"train", "validation", "test"}
        assert [row["phase"] for row in shown.divisions()["divisions"]] == ["subspace", "subspace", "finetune"][
            : len(shown.divisions()["divisions"])
        ]
        assert shown.divisions()["divisions"]


# Patience.


def test_patience_counts_evaluations_without_a_rise() -> None:
    config = of(patience=2)

    def ends(*scores: float, **options: Any) -> bool:
        return selection.ended_by_patience([line(e, 0.0, score, **options) for e, score in enumerate(scores)], config)

    assert not ends(0.5)
    assert not ends(0.5, 0.5)
    assert ends(0.5, 0.5, 0.5)
    assert ends(0.5, 0.4, 0.3)
    assert not ends(0.5, 0.4, 0.6)
    assert ends(0.5, 0.4, 0.3, queries=10)  # by MAP@R, where the last epoch is kept
    config = of(patience=2, select_by="recall_at_1")
    assert ends(0.1, 0.2, 0.3)
    config = of(3, patience=2)
    assert not ends(0.5, 0.4, 0.3)  # all epochs are done
    config = of(full_weight=0.0, patience=2)
    assert not ends(0.5, 0.4, 0.3, phase="subspace")
    config = of()
    assert not ends(0.5, 0.4, 0.3)
    assert not selection.ended_by_patience([], of(patience=2))
    # Epochs that are not evaluated do not count.
    some = [line(0, 0.5, 0.5), line(1), line(2), line(3, 0.4, 0.4), line(4)]
    assert not selection.ended_by_patience(some, of(patience=2))
    assert selection.ended_by_patience([*some, line(5, 0.4, 0.4)], of(patience=2))


PATIENT = replace(CONFIG, train=replace(TRAIN, epochs=30, lr=0.0, head_lr=0.0), data=dc.DataConfig(patience=3))


def test_a_run_ends_by_patience_says_so_and_is_finished(data: Benchmark, tmp_path: Path) -> None:
    out, heard = tmp_path / "run", Heard()
    dc.run(data, out, PATIENT, display=heard)
    lines = lines_of(out)
    assert len(lines) == 4
    ended = [message for message in heard.warnings if message.startswith("ended after epoch 3 of 0-29 by `patience` 3")]
    assert len(ended) == 1
    assert "has not risen since epoch 0" in ended[0]
    report = (out / "report.html").read_text()
    assert "Ended after epoch 3 of 0-29 by patience 3" in report
    assert "Not done" not in report
    assert read_checkpoint(out / "checkpoint")["epochs_done"] == 4
    before = {p: p.read_bytes() for p in (out / "metrics.jsonl", out / "last/model.safetensors")}
    again = Heard()
    shutil.rmtree(out / "last")
    dc.run(data, out, PATIENT, resume=True, display=again)
    assert again.begun == [(4, 4)]
    assert any(message.startswith("ended after epoch 3") for message in again.warnings)
    assert before == {p: p.read_bytes() for p in before}
    # A larger patience trains on; what is trained does not depend on it.
    longer = replace(PATIENT, train=replace(PATIENT.train, epochs=30), data=dc.DataConfig(patience=5))
    dc.run(data, out, longer, resume=True, report=False)
    assert len(lines_of(out)) == 6
    assert RunFolder(out).read()[0].data.patience == 5
    dc.run(data, tmp_path / "straight", longer, report=False)
    assert timeless(lines_of(out)) == timeless(lines_of(tmp_path / "straight"))


def test_several_processes_end_together(data: Benchmark, tmp_path: Path) -> None:
    config = replace(PATIENT, train=replace(PATIENT.train, devices=2, learners_per_step=2))
    dc.run(data, tmp_path / "run", config, report=False)
    assert len(lines_of(tmp_path / "run")) == 4
    dc.run(data, tmp_path / "run", config, resume=True, report=False)
    assert len(lines_of(tmp_path / "run")) == 4


def test_settings_that_do_not_go_together_are_refused() -> None:
    for options, names in (
        ({"patience": 3, "validation": False}, ("patience", "validation")),
        ({"validation_folds": 3, "validation": False}, ("validation_folds", "validation")),
        ({"patience": 3, "validation_folds": 3}, ("patience", "validation_folds")),
        ({"validation_folds": 3, "select_by": "last"}, ("validation_folds", "select_by")),
        ({"patience": 0}, ("patience",)),
        ({"validation_folds": 1}, ("validation_folds",)),
        ({"select_by": "map"}, ("select_by",)),
    ):
        with pytest.raises(ConfigError) as caught:
            dc.DataConfig(**options)
        assert caught.value.fields == names


# A longer run.


@pytest.mark.parametrize("stopped", [None, 1, 3])
@pytest.mark.parametrize("schedule", ["constant", "step"])
def test_a_longer_run_is_as_one_that_was_long_from_the_start(
    data: Benchmark, tmp_path: Path, schedule: str, stopped: int | None
) -> None:
    train = replace(TRAIN, lr_schedule=schedule, lr_step_epochs=2, warmup_epochs=1.0)
    short, out = replace(CONFIG, train=train), tmp_path / "run"
    if stopped is None:
        dc.run(data, out, short, report=False)
    else:
        with pytest.raises(KeyboardInterrupt):
            dc.run(data, out, short, display=Stop(stopped), report=False)
    longer = replace(short, train=replace(train, epochs=7))
    dc.run(data, out, longer, resume=True, report=False)
    pinned = replace(longer, train=replace(longer.train, finetune_epoch=3))
    saved = RunFolder(out).read()
    assert (saved[0].train, saved[1]["pinned"]) == (pinned.train, ["finetune_epoch"])
    dc.run(data, tmp_path / "straight", pinned, report=False)
    assert timeless(lines_of(out)) == timeless(lines_of(tmp_path / "straight"))
    for name in ("model", "last"):
        assert (out / name / "model.safetensors").read_bytes() == (
            tmp_path / "straight" / name / "model.safetensors"
        ).read_bytes()
    # The same call again, and one that is longer still: the phases stay where they are.
    dc.run(data, out, longer, resume=True, report=False)
    dc.run(data, out, replace(short, train=replace(train, epochs=8)), resume=True, report=False)
    assert RunFolder(out).read()[0].train.phase_starts == (3, 3)
    assert [each["phase"] for each in lines_of(out)] == ["subspace"] * 3 + ["finetune"] * 5


def test_without_validation_a_longer_run_keeps_its_new_last_epoch(data: Benchmark, tmp_path: Path) -> None:
    config = replace(CONFIG, data=dc.DataConfig(validation=False))
    dc.run(data, tmp_path, config, report=False)
    assert kept_epoch(lines_of(tmp_path)) == 3
    dc.run(data, tmp_path, replace(config, train=replace(TRAIN, epochs=5)), resume=True, report=False)
    assert kept_epoch(lines_of(tmp_path)) == 4
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "last")]
    assert models[0] == models[1]


def test_what_would_not_be_the_same_is_refused_and_changes_nothing(data: Benchmark, tmp_path: Path) -> None:
    out, train = tmp_path / "run", replace(TRAIN, lr_schedule="cosine")
    config = replace(CONFIG, train=train)
    dc.run(data, out, config, report=False)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    message = (
        r"a run of 4 epochs cannot have 8 `epochs`: the learning rates .*`lr_schedule=cosine`\); start another run"
    )
    with pytest.raises(RunError, match=message):
        dc.run(data, out, replace(config, train=replace(train, epochs=8)), resume=True)
    for epochs in (2, 3):
        with pytest.raises(RunError, match=f"`epochs` {epochs}: 4 epochs of this run are done already"):
            dc.run(data, out, replace(config, train=replace(train, epochs=epochs)), resume=True)
    with pytest.raises(RunError, match="`finetune_epoch` is None in the run, 1 now"):
        dc.run(data, out, replace(config, train=replace(train, epochs=8, finetune_epoch=1)), resume=True)
    heard = Heard()
    dc.run(data, out, config, resume=True, display=heard, report=False)
    assert any(
        "start another run from this model (`init`), as its learning rates depend on" in m for m in heard.warnings
    )
    assert before == {p: p.read_bytes() for p in before}


def test_a_training_without_a_run_folder_is_made_longer_too(data: Benchmark, tmp_path: Path) -> None:
    def trained_for(config: dc.TrainConfig) -> dict:
        torch.manual_seed(0)
        model = dc.EmbeddingModel(**{**MODEL.network, "backbone": "none", "vector_dim": data.train.vectors.shape[1]})
        for _ in dc.train(model, data.train, config, checkpoint=tmp_path / "checkpoint"):
            pass
        return model.state_dict()

    trained_for(TRAIN)
    with pytest.raises(RunError, match=r"epoch 3, which is done, was of the finetune phase .*`finetune_epoch=3`"):
        trained_for(replace(TRAIN, epochs=8))
    longer = trained_for(replace(TRAIN, epochs=6, finetune_epoch=3))
    (tmp_path / "checkpoint").unlink()
    straight = trained_for(replace(TRAIN, epochs=6, finetune_epoch=3))
    assert all(torch.equal(value, longer[name]) for name, value in straight.items())


def test_a_run_is_made_longer_from_the_command_line(command: Command, tmp_path: Path) -> None:
    out, how = tmp_path / "run", ("--dim", 8, "--learners", 2, "--batch-size", 16, "--workers", 0)
    code, _, err = command("train", DATA, "--epochs", 2, *how, "--out", out)
    assert code == 0, err
    assert f"the last epoch's model in {out / 'last'}" in err
    code, _, err = command("train", "--out", out, "--resume")
    assert code == 0, err
    assert "already done: epochs 0-1" in err
    assert "all 2 epochs are done; to train longer, resume with more --epochs" in err
    code, _, err = command("train", "--out", out, "--resume", "--epochs", 3)
    assert code == 0, err
    assert "resuming at epoch 2 of 0-2" in err
    code, _, err = command("train", "--out", out, "--resume", "--epochs", 2)
    assert (code, "--epochs 2: 3 epochs of this run are done already" in err) == (2, True)
    # Its settings file repeats the run.
    code, _, err = command("train", "--config", out / "config.json", "--out", tmp_path / "again")
    assert code == 0, err
    phases = [[each["phase"] for each in lines_of(each)] for each in (out, tmp_path / "again")]
    assert phases[0] == phases[1]


# Folds.


FOLDS = replace(CONFIG, data=dc.DataConfig(validation_folds=3))


def test_the_score_over_folds_is_that_of_all_queries_and_the_later_of_equals_wins() -> None:
    one = [line(e, r, m, queries=100) for e, (r, m) in enumerate([(0.1, 0.2), (0.3, 0.6), (0.3, 0.6)])]
    two = [line(e, r, m, queries=300) for e, (r, m) in enumerate([(0.5, 0.4), (0.1, 0.2), (0.1, 0.2)])]
    chosen = selection.select_over_folds([one, two], of(validation_folds=2))
    assert (chosen["epoch"], chosen["select_by"], chosen["num_queries"]) == (0, "map_at_r", 400)
    assert chosen["curve"][0]["recall_at_1"] == pytest.approx(0.4)
    assert chosen["curve"][1]["map_at_r"] == pytest.approx(0.3)
    assert selection.select_over_folds([one, one, one], of(validation_folds=3))["epoch"] == 2
    few = [line(0, 0.9, 0.9, queries=20), line(1, 0.1, 0.1, queries=20)]
    assert selection.select_over_folds([few, few], of(validation_folds=2))["epoch"] == 1
    never = [line(0, 0.9, 0.9, phase="subspace"), line(1, 0.1, 0.1)]
    assert selection.select_over_folds([never, never], of(full_weight=0.0, validation_folds=2))["epoch"] == 1


def test_folds_choose_the_epoch_of_a_run_on_all_train_classes(data: Benchmark, tmp_path: Path, many: None) -> None:
    out, heard = tmp_path / "run", Heard()
    dc.run(data, out, FOLDS, display=heard, source={"data": str(DATA), "root": None})
    assert heard.warnings[0].startswith("cross-validation over 3 folds of the train classes: 4 trainings of 4 epochs")
    held = [set(RunFolder(out / "folds" / str(i)).classes_of("validation")) for i in range(3)]
    names = data.train.label_names
    assert held == [{names[c] for c in fold.validation.classes} for fold in folds_of(data, 3, 0)]
    chosen = json.loads((out / "folds" / "selection.json").read_text())
    scores = np.array([[e["validation"]["map_at_r"] for e in lines_of(out / "folds" / str(i))] for i in range(3)])
    queries = [lines_of(out / "folds" / str(i))[0]["validation"]["num_queries"] for i in range(3)]
    mean = np.average(scores, axis=0, weights=queries)
    assert [point["map_at_r"] for point in chosen["curve"]] == pytest.approx(mean.tolist())
    assert chosen["epoch"] == np.flatnonzero(mean == mean.max())[-1]
    lines = lines_of(out)
    assert kept_epoch(lines) == chosen["epoch"]
    assert all("validation" not in each for each in lines)
    assert sum(lines[0]["sizes"]) + lines[0]["left_out"] == len(data.train)
    assert own_benchmark(out, whole=True).validation is None
    report = (out / "report.html").read_text()
    assert (
        f"Epoch {chosen['epoch']} is kept: the best mean MAP@R over 3 folds of the train classes, 84 queries" in report
    )
    # The same weights as without validation.
    without = dc.DataConfig(validation=False)
    dc.run(data, tmp_path / "plain", replace(CONFIG, data=without), report=False)
    weights = [(each / "last/model.safetensors").read_bytes() for each in (out, tmp_path / "plain")]
    assert weights[0] == weights[1]
    with pytest.raises(RunError, match="its `validation_folds` have chosen the epoch to keep"):
        dc.run(data, out, replace(FOLDS, train=replace(TRAIN, epochs=9)), resume=True)


class StopInFold(Stop):
    """Stops in the given run: of a fold, or the last."""

    def __init__(self, run: int, epoch: int) -> None:
        super().__init__(epoch)
        self.left = run

    def end(self, out: Path, kept_epoch: int | None) -> None:
        self.left -= 1

    def progress(self, progress: Any) -> None:
        if self.left == 0:
            super().progress(progress)


@pytest.mark.parametrize(("run", "epoch"), [(0, 0), (1, 2), (3, 2)])
def test_folds_are_resumed(data: Benchmark, tmp_path: Path, many: None, run: int, epoch: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        dc.run(data, out, FOLDS, display=StopInFold(run, epoch), report=False)
    assert RunFolder(out).read() is not None
    dc.run(data, out, FOLDS, resume=True, report=False)
    dc.run(data, tmp_path / "straight", FOLDS, report=False)
    for part in ("", "folds/0", "folds/1", "folds/2"):
        assert timeless(lines_of(out / part)) == timeless(lines_of(tmp_path / "straight" / part))
    for name in ("model", "last"):
        one, other = (each / name / "model.safetensors" for each in (out, tmp_path / "straight"))
        assert one.read_bytes() == other.read_bytes()


def test_too_many_folds_are_reported(data: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(dc.errors.DataError, match="use fewer `validation_folds`, or more classes"):
        dc.run(data, tmp_path, replace(CONFIG, data=dc.DataConfig(validation_folds=8)))
