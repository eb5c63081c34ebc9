"""Runs on data whose split is drawn, on closed sets, and on all classes: what is recorded, resumed and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.errors import ConfigError, DataError, RunError
from divcon.runs.folder import RunFolder, own_benchmark
from divcon.runs.like import settings_like

Command = Callable[..., tuple[int, str, str]]

COUNT, EACH = 60, 8
LABELS = [f"c{i:02}" for i in range(COUNT) for _ in range(EACH)]
SETTINGS = ("--dim", 8, "--learners", 2, "--batch-size", 16, "--images-per-class", 4, "--workers", 0)
CONFIG = dc.RunConfig(
    dc.ModelConfig(num_learners=2, embedding_dim=8),
    dc.TrainConfig(epochs=3, batch_size=16, images_per_class=4, workers=0),
)


def write(path: Path, **columns: list[Any]) -> Path:
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(COUNT), EACH)
    vectors = rng.normal(size=(COUNT, 12))[place] + 0.8 * rng.normal(size=(len(place), 12))
    pq.write_table(pa.table({"embedding": list(vectors.astype(np.float32)), "label": LABELS, **columns}), path)
    return path


@pytest.fixture
def open_set(tmp_path: Path) -> Path:
    """60 classes of 20 products."""
    return write(tmp_path / "open.parquet", product=[f"p{int(label[1:]) // 3}" for label in LABELS])


@pytest.fixture
def closed_set(tmp_path: Path) -> Path:
    return write(tmp_path / "closed.parquet", split=(["train"] * 6 + ["test"] * 2) * COUNT)


def products(names: list[str]) -> set[int]:
    return {int(name[1:]) // 3 for name in names}


class TestDrawnSplits:
    def test_the_run_keeps_its_split(self, command: Command, open_set: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        how = ("--test-fraction", 0.4, "--group", "product")
        code, _, err = command("train", open_set, *SETTINGS, *how, "--epochs", 1, "--out", run)
        assert code == 0, err
        data = dc.read(open_set, test_fraction=0.4, group="product")
        config, record = RunFolder(run).read()
        assert (config.data.test_fraction, config.data.group) == (0.4, "product")
        assert record["split_hash"] == data.split_hash
        folder = RunFolder(run)
        trained, validated = products(folder.classes_of("train")), products(folder.classes_of("validation"))
        tested = products([data.query.label_names[c] for c in data.query.classes])
        assert trained and validated and tested
        assert not trained & validated and not trained & tested and not validated & tested
        own = own_benchmark(run, whole=True)
        assert own.split_hash == data.split_hash and {own.validation.label_name(0)} <= set(
            folder.classes_of("validation")
        )
        # As its own data, by its path, and resumed: the same split, without saying it again.
        scores = tmp_path / "scores.json"
        for arguments in ((run,), (run, open_set)):
            code, _, err = command("evaluate", *arguments, "--no-clustering", "--workers", 0, "--json", scores)
            assert code == 0 and "were trained" not in err, err
            assert json.loads(scores.read_text())["split_hash"] == data.split_hash
        assert command("train", "--out", run, "--resume", "--epochs", 2)[0] == 0
        code, _, err = command("train", open_set, "--out", run, "--resume", "--test-fraction", 0.3)
        assert code == 2 and "--test-fraction is 0.4 in the run, 0.3 now" in err
        code, _, err = command("evaluate", run, "--group", "product")
        assert code == 2 and "--group is for DATA: the run's own data is read and split as the run has done" in err
        other = ("--test-fraction", 0.9, "--no-clustering", "--workers", 0, "--json", scores)
        code, _, err = command("evaluate", run, open_set, *other)
        words = " ".join(err.split())
        assert code == 0 and "of the test classes have names of classes that the model was trained on" in words
        assert "the run split its data with --test-fraction 0.4; --group product" in words.replace(
            ", --group", "; --group"
        )

    def test_in_python(self, open_set: Path, tmp_path: Path) -> None:
        config = replace(CONFIG, data=dc.DataConfig(test_fraction=0.4))
        dc.run(open_set, tmp_path / "path", config, report=False)
        data = dc.read(open_set, test_fraction=0.4)
        dc.run(data, tmp_path / "read", CONFIG, source={"data": str(open_set), "root": None}, report=False)
        for run in ("path", "read"):
            config, record = RunFolder(tmp_path / run).read()
            assert config.data.test_fraction == 0.4 and record["split_hash"] == data.split_hash
            assert own_benchmark(tmp_path / run).split_hash == data.split_hash
        with pytest.raises(ConfigError, match=r"`test_fraction=0.3`: the data was read with `test_fraction=0.4`"):
            dc.run(data, tmp_path / "other", replace(CONFIG, data=dc.DataConfig(test_fraction=0.3)))
        with pytest.raises(ConfigError, match=r"`group=product`: the data was read with `group=None`"):
            dc.run(data, tmp_path / "other", replace(CONFIG, data=dc.DataConfig(group="product")))
        assert not (tmp_path / "other").exists()

    def test_a_run_of_an_earlier_version_keeps_sorted_halves(
        self, command: Command, open_set: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        how = (*SETTINGS, "--test-fraction", "none", "--epochs", 1, "--out", run)
        assert command("train", open_set, *how)[0] == 0
        record = json.loads((run / "config.json").read_text())
        assert record["split_hash"] == dc.read(open_set, test_fraction=None).split_hash
        for name in ("test_fraction", "group", "protocol", "ignore_split", "train_on", "end_epoch"):
            del record["data"][name]
        (run / "config.json").write_text(json.dumps(record))
        code, printed, err = command("evaluate", run, "--no-clustering", "--workers", 0)
        assert code == 0 and "240 queries of 30 classes" in printed, err
        assert own_benchmark(run).split_hash == record["split_hash"]
        for data in ((), (open_set,)):
            code, _, err = command("train", *data, "--out", run, "--resume", "--epochs", 2 + len(data))
            assert code == 0, err
        assert len(RunFolder(run).lines()) == 3
        with pytest.raises(ConfigError, match=r"`test_fraction=None`: the data was read with `test_fraction=0.2`"):
            dc.run(dc.read(open_set), run, RunFolder(run).read()[0], resume=True)

    def test_an_old_run_on_data_with_a_split_of_its_own(
        self, command: Command, closed_set: Path, tmp_path: Path
    ) -> None:
        split = ["train" if int(label[1:]) < 40 else "test" for label in LABELS]
        data, run = write(tmp_path / "own.parquet", split=split), tmp_path / "run"
        assert command("train", data, *SETTINGS, "--epochs", 1, "--out", run)[0] == 0
        record = json.loads((run / "config.json").read_text())
        del record["data"]["test_fraction"]
        (run / "config.json").write_text(json.dumps(record))
        assert command("train", "--out", run, "--resume", "--epochs", 2)[0] == 0
        assert command("evaluate", run, "--no-clustering", "--workers", 0)[0] == 0
        config = RunFolder(run).read()[0]
        more = replace(config, train=replace(config.train, epochs=3))
        dc.run(dc.read(data), run, more, resume=True, report=False)

    def test_named_data_takes_no_part_in_it(self, command: Command, tmp_path: Path) -> None:
        code, _, err = command("train", "demo", "--test-fraction", 0.5, "--out", tmp_path / "run")
        assert code == 2 and "demo: takes no --test-fraction" in err
        code, _, err = command("check", "demo", "--group", "product")
        assert code == 2 and "demo: takes no --group" in err


class TestClosedSets:
    def naive(self, model: dc.EmbeddingModel, query: dc.LabeledSet, gallery: dc.LabeledSet) -> float:
        queries, items = model.encode(query), model.encode(gallery)
        names = [[side.label_name(i) for i in range(len(side))] for side in (query, gallery)]
        hits = [
            names[1][int(np.argmax(items @ vector))] == name for vector, name in zip(queries, names[0], strict=True)
        ]
        return float(np.mean(hits))

    def test_it_trains_validates_and_is_evaluated_on_images(
        self, command: Command, closed_set: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        how = ("--epochs", 2, "--embed", "head", "--ema-decay", 0)
        code, _, err = command("train", closed_set, *SETTINGS, *how, "--out", run)
        words = " ".join(err.split())
        assert code == 0 and "a closed set: train and test have the same classes" in words, err
        assert "324 vectors (12 dimensions) of 60 classes to train on, 36 more held out for validation" in words
        assert "on 36 validation images:" in words
        record, lines = RunFolder(run).read()[1], RunFolder(run).lines()
        assert record["protocol"] == "closed-set"
        validation = lines[-1]["validation"]
        assert (validation["protocol"], validation["num_queries"], validation["num_gallery"]) == ("closed-set", 36, 324)
        model, own = dc.EmbeddingModel.load(run), own_benchmark(run, whole=True)
        assert len(own.train) == 324 and not set(own.train.rows) & set(own.validation.rows)
        assert validation["recall_at_1"] == pytest.approx(self.naive(model, own.validation, own.train))
        data, scores = dc.read(closed_set), tmp_path / "scores.json"
        code, printed, err = command("evaluate", run, "--no-clustering", "--workers", 0, "--json", scores)
        assert code == 0 and "closed, closed-set, split" in printed and "trained on" not in err
        result = json.loads(scores.read_text())
        assert (result["num_queries"], result["num_gallery"]) == (120, 360)
        assert result["recall_at_1"] == pytest.approx(self.naive(model, data.query, data.gallery))
        assert "Recall@1" in (run / "report.html").read_text()
        assert command("train", "--out", run, "--resume", "--epochs", 3)[0] == 0

    def test_it_does_not_compare_with_an_open_one(self, closed_set: Path, tmp_path: Path) -> None:
        model = dc.EmbeddingModel("none", 8, vector_dim=12)
        closed = dc.evaluate(model, closed_set, clustering=False, per_query=True)
        opened = dc.evaluate(model, dc.read(closed_set, ignore_split=True), clustering=False, per_query=True)
        assert closed["split_hash"] != opened["split_hash"]
        with pytest.raises(DataError, match=r"of protocol closed-set and two of protocol leave-one-out: they do not"):
            dc.compare({"one": closed, "two": opened})

    def test_the_embedding_is_chosen_on_the_validation_images(self, closed_set: Path, tmp_path: Path) -> None:
        dc.run(closed_set, tmp_path / "run", replace(CONFIG, train=replace(CONFIG.train, epochs=1)), report=False)
        record = json.loads((tmp_path / "run" / "model" / "embedding.json").read_text())
        model, own = dc.EmbeddingModel.load(tmp_path / "run"), own_benchmark(tmp_path / "run", whole=True)
        assert record["num_queries"] == len(own.validation) == 36
        score = dc.evaluate(model, own.validation_task, clustering=False)["map_at_r"]
        assert record["scores"][record["chosen"]]["map_at_r"] == pytest.approx(score)

    def test_folds(self, closed_set: Path, tmp_path: Path) -> None:
        config = replace(CONFIG, data=dc.DataConfig(validation_folds=2))
        dc.run(closed_set, tmp_path / "run", config, report=False)
        lines = [RunFolder(tmp_path / "run" / "folds" / str(fold)).lines() for fold in (0, 1)]
        assert sum(fold[-1]["validation"]["num_queries"] for fold in lines) == 360
        assert (
            RunFolder(tmp_path / "run").lines()[0]["left_out"] + sum(RunFolder(tmp_path / "run").lines()[0]["sizes"])
            == 360
        )

    def test_drawn_from_a_table_without_a_split(self, command: Command, open_set: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        how = ("--protocol", "closed", "--test-fraction", 0.25, "--epochs", 1, "--no-validation", "--out", run)
        assert command("train", open_set, *SETTINGS, *how)[0] == 0
        code, printed, err = command("evaluate", run, "--no-clustering", "--workers", 0)
        assert code == 0 and "closed-set" in printed, err
        data = dc.read(open_set, protocol="closed", test_fraction=0.25)
        assert f"{len(data.query):,} queries of 60 classes" in printed


@pytest.fixture
def validated(open_set: Path, tmp_path: Path) -> Path:
    """A run of 6 epochs, of which the third is kept."""
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=6), data=dc.DataConfig(validation_folds=None))
    dc.run(open_set, tmp_path / "validated", config, report=False)
    lines = RunFolder(tmp_path / "validated").lines()
    for line in lines:
        line["kept"] = line["epoch"] == 2
    (tmp_path / "validated" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "validated"


class TestTrainOnAll:
    def test_it_has_the_settings_and_batches_that_validation_chose(
        self, command: Command, open_set: Path, validated: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "for-use"
        code, _, err = command("train", "--like", validated, "--train-on", "all", "--out", out)
        words = " ".join(err.split())
        assert code == 0, err
        then, (config, record) = RunFolder(validated).read()[0], RunFolder(out).read()
        # 43 of 60 classes train in the validated run, so that its epochs have 21 batches, and those of this one 30.
        before, lines = RunFolder(validated).lines(), RunFolder(out).lines()
        assert {line["batches"] for line in lines} == {30}
        done = sum(line["batches"] for line in before[:3])
        assert len(lines) == round(done / 30) and abs(sum(line["batches"] for line in lines) - done) <= 15
        assert f"kept epoch 2 after {done} batches: {len(lines)} epochs of 30 batches on all classes" in words
        assert lines[-1]["kept"] and lines[-1]["phase"] == before[2]["phase"]
        assert config.data.train_on == "all" and record["like"] == str(validated)
        chosen = json.loads((validated / "model" / "embedding.json").read_text())["chosen"]
        assert config.model.embed == chosen
        same = {"batch_size", "images_per_class", "lr", "head_lr", "loss", "seed", "ema_decay"}
        assert {n: getattr(config.train, n) for n in same} == {n: getattr(then.train, n) for n in same}
        assert set(RunFolder(out).classes_of("train")) == set(LABELS)
        assert RunFolder(out).classes_of("validation") == [] and "validation" not in lines[-1]
        assert f"this model has no test score of its own; {validated} has that of its settings" in words
        page = (out / "report.html").read_text()
        assert "no test score of its own" in page and str(validated) in page

    def test_it_has_no_score_of_its_own(
        self, command: Command, open_set: Path, validated: Path, tmp_path: Path
    ) -> None:
        out, scores = tmp_path / "for-use", tmp_path / "scores.json"
        dc.run(open_set, out, like=validated, report=False)
        code, _, err = command("evaluate", out, "--workers", 0)
        words = " ".join(err.split())
        assert code == 2 and "(--train-on all), so that it has no test score of its own" in words
        assert f"the score of {validated}" in words
        code, _, err = command("compare", out, validated, "--workers", 0)
        assert code == 2 and "no test score of its own" in " ".join(err.split())
        how = ("--no-clustering", "--workers", 0, "--json")
        code, _, err = command("evaluate", out, open_set, *how, scores)
        assert code == 0 and "these are no scores of a test" in " ".join(err.split())
        assert json.loads(scores.read_text())["trained_on_test"] is True
        assert command("evaluate", validated, *how, tmp_path / "other.json")[0] == 0
        assert "trained_on_test" not in json.loads((tmp_path / "other.json").read_text())
        code, _, err = command("compare", tmp_path / "other.json", scores)
        assert code == 2 and "was trained on the test classes (--train-on all)" in " ".join(err.split())
        # Other data is evaluated as ever.
        other = dc.read({"embedding": np.eye(12, dtype=np.float32)[:8], "label": list("aabbccdd")})
        assert RunFolder(out).check_test_classes(other, own=False) is None

    def test_it_is_resumed_indexed_and_exported(
        self, command: Command, open_set: Path, validated: Path, tmp_path: Path
    ) -> None:
        out, whole = tmp_path / "for-use", tmp_path / "whole"
        dc.run(open_set, whole, like=validated, report=False)

        class Stopping(dc.runs.display.NullDisplay):
            def epoch(self, line: dict[str, Any]) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            dc.run(open_set, out, like=validated, report=False, display=Stopping())
        code, _, err = command("train", "--out", out, "--resume")
        assert code == 0, err
        assert [line["loss"] for line in RunFolder(out).lines()] == pytest.approx(
            [line["loss"] for line in RunFolder(whole).lines()]
        )
        assert RunFolder(out).read()[1]["like"] == str(validated)
        assert len(own_benchmark(out, whole=True).train) == len(LABELS)
        assert command("index", out, open_set, "--workers", 0)[0] == 0
        hits = dc.Index.open(out).search(dc.read(open_set).query.vectors[0], k=2)
        assert hits[0].label == dc.read(open_set).query.label_name(0)
        assert command("export", out, "--format", "hf", "--out", tmp_path / "hub")[0] == 0
        assert "no test score of its own" in (tmp_path / "hub" / "README.md").read_text()

    def test_in_python_with_settings_of_ones_own(self, open_set: Path, tmp_path: Path) -> None:
        config = replace(CONFIG, data=dc.DataConfig(train_on="all"))
        warned: list[str] = []

        class Hears(dc.runs.display.NullDisplay):
            def warn(self, message: str) -> None:
                warned.append(message)

        dc.run(dc.read(open_set), tmp_path / "run", config, report=False, display=Hears())
        assert len(RunFolder(tmp_path / "run").lines()) == 3
        assert any("no test score of its own (`like` takes a validated length)" in message for message in warned)

    def test_the_schedule_is_that_of_all_epochs(self, open_set: Path, validated: Path, tmp_path: Path) -> None:
        record = json.loads((validated / "config.json").read_text())
        record["train"] |= {"lr_schedule": "cosine", "finetune_epoch": 2, "joint_epoch": 1, "warmup_epochs": 2}
        (validated / "config.json").write_text(json.dumps(record))
        data = dc.read(open_set)
        config, _ = settings_like(validated, data)
        lines = RunFolder(validated).lines()
        ratio = lines[0]["batches"] / 30
        assert config.train.epochs == round(6 * ratio) and config.data.end_epoch == round(3 * ratio) - 1
        assert config.train.epochs > config.data.end_epoch + 1
        assert config.train.warmup_epochs == pytest.approx(2 * ratio)
        joint, finetune = config.train.phase_starts
        assert joint <= finetune <= config.data.end_epoch  # the kept epoch was of the finetune phase
        dc.run(open_set, tmp_path / "run", like=validated, report=False)
        lines = RunFolder(tmp_path / "run").lines()
        assert len(lines) == config.data.end_epoch + 1 and lines[-1]["kept"] and lines[-1]["phase"] == "finetune"
        assert lines[-1]["lr"] > 0
        again = dc.run(open_set, tmp_path / "run", RunFolder(tmp_path / "run").read()[0], resume=True, report=False)
        assert len(RunFolder(tmp_path / "run").lines()) == len(lines) and again is not None
        record["train"]["finetune_epoch"] = 3
        (validated / "config.json").write_text(json.dumps(record))
        config, _ = settings_like(validated, data)
        assert config.train.phase_starts[1] > config.data.end_epoch  # the kept epoch came before the finetune phase

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--like", "nowhere", "--train-on", "all"), "--like nowhere: holds no run"),
            (("--like", "validated"), "add --train-on all"),
            (("--like", "validated", "--train-on", "all", "--resume"), "is resumed with its own settings"),
            (("open.parquet", "--train-on", "all", "--patience", 2), "all classes train"),
            (("open.parquet", "--train-on", "all", "--validation-folds", 2), "all classes train"),
            (("open.parquet", "--epochs", 2, "--end-epoch", 2), "--end-epoch 2: the epochs are 0 to 1"),
        ],
    )
    def test_what_is_refused(
        self,
        command: Command,
        validated: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        words: tuple[Any, ...],
        said: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, _, err = command("train", *words, "--out", "out")
        assert code == 2 and said in " ".join(err.split()), err

    def test_like_takes_a_complete_validated_run(self, open_set: Path, validated: Path, tmp_path: Path) -> None:
        dc.run(open_set, tmp_path / "all", like=validated, report=False)
        with pytest.raises(ConfigError, match=r"was itself trained on all classes.*validated"):
            dc.run(open_set, tmp_path / "again", like=tmp_path / "all")
        with pytest.raises(ConfigError, match=r"add `train_on=all`"):
            dc.run(open_set, tmp_path / "again", CONFIG, like=validated)
        shutil.rmtree(validated / "last")
        with pytest.raises(RunError, match="is not complete"):
            dc.run(open_set, tmp_path / "again", like=validated)
