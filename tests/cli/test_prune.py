"""``divcon prune`` and the report of parts, as a user types them, and ``divcon.prune``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, DataError, RunError
from divcon.runs.folder import RunFolder, own_benchmark
from divcon.runs.prune import Pruning

pytestmark = pytest.mark.heavy

Command = Callable[..., tuple[int, str, str]]
DIM = 12


def write(path: Path, classes: int = 40, seed: int = 0) -> Path:
    """Eight vectors a class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 8)
    vectors = (rng.normal(size=(classes, DIM))[labels] + rng.normal(size=(len(labels), DIM))).astype(np.float32)
    pq.write_table(pa.table({"embedding": list(vectors), "label": [f"c{label:02}" for label in labels]}), path)
    return path


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "vectors.parquet")


@pytest.fixture(scope="module")
def runs(parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``slices``, with validation classes; ``masks``, without."""
    from divcon.cli import main

    folder = tmp_path_factory.mktemp("runs")
    how = ["--embed", "head", "--learners", "4", "--dim", "16", "--epochs", "2", "--batch-size", "16", "--workers", "0"]
    for name, more in {"slices": ["--validation-fraction", "0.3"], "masks": ["--no-validation"]}.items():
        with pytest.raises(SystemExit, match="0"):
            main(["train", str(parquet), "--method", name, *how, *more, "--out", str(folder / name)])
            raise SystemExit(0)
    return folder


def prune(command: Command, *arguments: object) -> tuple[int, str, str]:
    return command("prune", *arguments, "--workers", 0)


def test_from_a_run_to_a_model_that_is_used_like_any_other(
    command: Command, runs: Path, parquet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    code, printed, err = prune(command, runs / "slices", "--by", "subspaces", "--dims", 10, "--out", out)
    assert code == 0, err
    assert "of 4, chosen on validation classes; no other whole subspace fits into 10 dimensions" in printed
    assert "vectors of 10 validation classes" in printed
    assert f"model of 8 dimensions in {out}" in printed
    model, small = dc.EmbeddingModel.load(runs / "slices"), dc.EmbeddingModel.load(out)
    assert (small.embedding_dim, small.num_learners, small.config["method"]) == (8, 2, "slices")
    learners = json.loads((out / "run.json").read_text())["pruned"]["learners"]
    images = dc.read(parquet).query
    parts = [model.encode(images, learner=k) for k in sorted(learners)]
    np.testing.assert_allclose(small.encode(images), np.concatenate(parts, 1) / np.sqrt(2), atol=1e-6)

    # It says what it was trained on, and its parts are chosen by its run's validation classes.
    code, printed, err = command("evaluate", out, "--parts", "--json", tmp_path / "scores.json", "--workers", 0)
    assert (code, err) == (0, "")
    assert "best few, chosen on validation classes" in printed
    scores = json.loads((tmp_path / "scores.json").read_text())
    whole = dc.evaluate(model, dc.read(parquet), parts=True, order_by=own_benchmark(runs / "slices"), clustering=False)
    assert scores["recall_at_1"] == pytest.approx(whole["by_size"][1]["recall_at_1"])
    assert sorted(whole["by_size"][1]["learners"]) == sorted(learners)

    code, printed, err = command("encode", out, parquet, "--out", tmp_path / "small.parquet", "--workers", 0)
    assert code == 0, err
    assert "embeddings of 8 dimensions" in printed
    how = ("--epochs", 1, "--batch-size", 16, "--workers", 0, "--out", tmp_path / "again")
    code, _, err = command("train", parquet, "--init", out, *how)
    assert code == 0, err
    assert "2 learners, D 8" in err
    assert "the head starts anew" not in err


def test_pca_and_a_pruned_model_pruned_again(command: Command, runs: Path, tmp_path: Path) -> None:
    code, printed, err = prune(command, runs / "masks", "--dims", 7, "--out", tmp_path / "seven")
    assert code == 0, err
    assert "kept the first 7 principal components of 16" in printed
    assert "train classes" in printed
    code, printed, err = prune(command, tmp_path / "seven", "--dims", 3, "--out", tmp_path / "three")
    assert code == 0, err
    model = dc.EmbeddingModel.load(tmp_path / "three")
    assert (model.embedding_dim, model.config["method"]) == (3, "single")
    code, printed, err = prune(command, runs / "slices", "--dims", 7, "--out", tmp_path / "slices")
    assert code == 0, err
    assert "validation classes: " in printed


def test_a_pruned_model_knows_which_classes_it_was_trained_on(
    command: Command, runs: Path, parquet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    assert prune(command, runs / "slices", "--dims", 8, "--out", out)[0] == 0
    assert RunFolder(out).used_classes() == RunFolder(runs / "slices").used_classes() != set()
    table = pq.read_table(parquet)
    swapped = ["test" if int(label.as_py()[1:]) < 20 else "train" for label in table["label"]]
    pq.write_table(table.append_column("split", [swapped]), tmp_path / "swapped.parquet")
    code, _, err = command("evaluate", out, tmp_path / "swapped.parquet", "--no-clustering", "--workers", 0)
    assert code == 0
    shared = sum(int(name[1:]) < 20 for name in RunFolder(out).used_classes())
    assert shared > 10 and f"{shared} of the test classes have names of classes that the model was trained on" in err
    # And a run cannot be begun in its place, or gone on with.
    code, _, err = command("train", parquet, "--out", out)
    assert (code, "is not empty and holds no run" in err) == (2, True)


def test_data_that_moved_changed_or_is_another(command: Command, parquet: Path, runs: Path, tmp_path: Path) -> None:
    here = tmp_path / "here.parquet"
    shutil.copy(parquet, here)
    run = tmp_path / "run"
    shutil.copytree(runs / "slices", run)
    config = json.loads((run / "config.json").read_text())
    config["source"]["data"] = str(here)
    (run / "config.json").write_text(json.dumps(config))
    small = ("--by", "subspaces", "--dims", 8, "--out", tmp_path / "small")

    write(here, seed=1)
    code, _, err = prune(command, run, *small)
    assert code == 2
    assert "its data has changed since it was trained (train " in err
    here.unlink()
    code, _, err = prune(command, run, *small)
    assert code == 2
    assert "the data it was trained on cannot be read" in err
    assert "pass it from where it is now" in err
    other = write(tmp_path / "other.parquet", classes=20)
    code, _, err = prune(command, run, other, *small)
    assert code == 2
    assert "is not what" in err
    assert not (tmp_path / "small").exists()
    code, printed, err = prune(command, run, parquet, *small)
    assert code == 0, err
    assert "chosen on validation classes" in printed

    # Scores on other data have no order of subspaces, and a note says why.
    code, printed, err = command("evaluate", run, other, "--parts", "--no-clustering", "--workers", 0)
    assert code == 0, err
    assert "note: no scores of the best few subspaces: " in err
    assert "best few: left out" in printed
    assert "without" in printed


def test_a_model_folder_is_pruned_by_the_data_that_is_passed(
    command: Command, runs: Path, parquet: Path, tmp_path: Path
) -> None:
    small = ("--by", "subspaces", "--dims", 8, "--out", tmp_path / "small")
    code, _, err = prune(command, runs / "slices" / "model", *small)
    assert (code, "does not say what it was trained on; pass the data" in err) == (2, True)
    code, printed, err = prune(command, runs / "slices" / "model", parquet, *small)
    assert code == 0, err
    assert "chosen on train classes" in printed
    assert not (tmp_path / "small" / "run.json").exists()


def test_what_cannot_be_pruned_is_refused(command: Command, runs: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        code, _, err = prune(command, *arguments)
        assert code == 2
        return " ".join(err.split())

    out = ("--out", tmp_path / "small")
    by = ("--by", "subspaces")
    assert "--dims 16: the model has 16 dimensions" in refused(runs / "slices", "--dims", 16, *out)
    assert "4 learners have 4 dimensions each" in refused(runs / "slices", "--dims", 3, *by, *out)
    assert "method masks, and its learners share dimensions" in refused(runs / "masks", "--dims", 8, *by, *out)
    assert "is not empty" in refused(runs / "slices", "--dims", 8, "--out", runs / "masks")
    (tmp_path / "file").touch()
    assert "is a file" in refused(runs / "slices", "--dims", 8, "--out", tmp_path / "file")
    assert not (tmp_path / "small").exists()
    code, _, _ = prune(command, runs / "slices", "--dims", 0, *out)
    assert code != 0


def test_validation_classes_are_those_that_the_run_had(runs: Path, parquet: Path) -> None:
    own = own_benchmark(runs / "slices")
    assert own.validation is not None
    names = {own.train.label_names[c] for c in own.validation.classes}
    assert names == set(json.loads((runs / "slices" / "classes.json").read_text())["validation"])
    assert own_benchmark(runs / "masks").validation is None
    with pytest.raises(RunError, match="does not say"):
        own_benchmark(runs)
    assert own_benchmark(runs, dc.read(parquet)).validation is None


def test_from_python(runs: Path, parquet: Path) -> None:
    model = dc.EmbeddingModel.load(runs / "slices")
    data = dc.read(parquet)
    reports: list[Pruning] = []
    small = dc.prune(model, data, 8, by="subspaces", on_done=reports.append)
    images = dc.prune(model, data.train, 8, by="subspaces", on_done=reports.append)
    np.testing.assert_array_equal(small.encode(data.query), images.encode(data.query))
    assert [about.evaluated_on for about in reports] == ["train", "given"]
    assert reports[0].learners is not None
    assert (reports[0].dims, len(reports[0].learners), reports[0].num_classes) == (8, 2, data.train.num_classes)
    after = dc.evaluate(small, data.train, clustering=False)["recall_at_1"]
    assert reports[0].recall_after == pytest.approx(after)
    assert reports[0].recall_before == pytest.approx(dc.evaluate(model, data.train, clustering=False)["recall_at_1"])
    # The components are those of train classes, also where validation classes judge.
    split = data.with_validation(0.3)
    one, two = (dc.prune(model, d, 5, on_done=reports.append) for d in (split, split.train))
    np.testing.assert_array_equal(one.encode(data.query), two.encode(data.query))
    assert (reports[2].evaluated_on, reports[2].learners) == ("validation", None)
    with pytest.raises(ConfigError, match="must be subspaces, pca, features, whitening, head"):
        dc.prune(model, data, 8, by="best")  # type: ignore[arg-type]
    nothing = data.train.subset(np.empty(0, np.int64))
    for none in (nothing, Benchmark("none", nothing, data.query, data.query)):
        with pytest.raises(DataError, match="no two images to choose by"):
            dc.prune(model, none, 8)
