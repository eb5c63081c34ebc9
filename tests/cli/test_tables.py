"""Tables with columns of other names, from the command line: said, chosen, recorded with the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Run = Callable[..., tuple[int, str, str]]
HOW = ("--learners", 1, "--dim", 4, "--batch-size", 8, "--no-validation", "--workers", 0)


@pytest.fixture
def run(command: Run) -> Run:
    return command


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    fine = np.repeat(np.arange(16), 6)
    vectors = rng.normal(size=(16, 6))[fine] + 0.1 * rng.normal(size=(96, 6))
    columns = {"vec": list(vectors), "fine": [f"f{c}" for c in fine], "category": [f"c{c // 2}" for c in fine]}
    columns["label"] = [None] * 3 + ["x"] * 93
    columns["part"] = ["train"] * 48 + ["test"] * 48
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


CHOSEN = ("--vector-column", "vec", "--label-column", "fine", "--split-column", "part")


def test_the_walk(run: Run, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, err = run("check", table, *CHOSEN)
    assert code == 0 and "train" in printed, err
    code, _, err = run("train", table, *CHOSEN, *HOW, "--epochs", 1, "--out", out)
    assert code == 0, err
    assert "48 vectors (6 dimensions) of 8 classes to train on" in err
    options = {"vector_column": "vec", "label_column": "fine", "split_column": "part"}
    assert json.loads((out / "config.json").read_text())["source"]["options"] == options

    # What needs the run's own data reads the same columns.
    code, printed, err = run("evaluate", out, "--json", tmp_path / "scores.json")
    assert code == 0 and json.loads((tmp_path / "scores.json").read_text())["num_queries"] == 48, err
    code, _, err = run("train", "--out", out, "--resume", "--epochs", 2)
    assert code == 0 and "epoch 1" in err, err
    code, _, err = run("train", table, *HOW, "--out", out, "--resume")
    assert code == 0, err
    code, _, err = run("train", "--config", out / "config.json", "--out", tmp_path / "again")
    assert code == 0, err
    assert json.loads((tmp_path / "again" / "config.json").read_text())["source"]["options"] == options
    code, printed, _ = run("train", "--config", out / "config.json", "--show-config")
    assert "label_column: fine" in printed

    # Other labels of the same table.
    other = ("--vector-column", "vec", "--label-column", "category", "--split-column", "part")
    code, _, err = run("evaluate", out, table, *other, "--json", tmp_path / "scores.json")
    assert code == 0 and set(json.loads((tmp_path / "scores.json").read_text())["per_query"]["label"]) == {
        f"c{i}" for i in range(4, 8)
    }, err
    code, _, err = run("evaluate", out, "--label-column", "category")
    assert code == 2 and "--label-column is for DATA" in err

    moved = tmp_path / "moved.parquet"
    moved.write_bytes(table.read_bytes())
    code, _, err = run("report", out, moved, "--evaluate")
    assert code == 0, err
    code, _, err = run("prune", out, moved, "--dims", 2, "--out", tmp_path / "pruned")
    assert code == 0, err
    code, _, err = run("encode", out, table, "--vector-column", "vec", "--out", tmp_path / "e.parquet")
    assert code == 0, err
    labels = pq.read_table(tmp_path / "e.parquet")["label"].to_pylist()
    assert labels[:4] == [None, None, None, "x"]  # no label is needed
    code, printed, err = run("index", out, table, "--vector-column", "vec", "--label-column", "fine")
    assert code == 0 and "96 added" in printed, err


def test_what_is_guessed_is_said(run: Run, table: Path, tmp_path: Path) -> None:
    pq.write_table(
        pq.read_table(table).drop_columns(["label"]).rename_columns(["vector", "fine", "class", "subset"]), table
    )
    code, _, err = run("check", table)
    assert code == 0, err
    assert "note: columns: vector 'vector', label 'class', split 'subset', by their names; --vector-column" in err
    code, _, err = run("train", table, *HOW, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0 and "columns: vector 'vector'" in err, err


def test_options_of_a_file(run: Run, table: Path, tmp_path: Path) -> None:
    lines = f"source:\n  data: {table}\n  options: {{vector_column: vec, label_column: fine, split_column: part}}\n"
    (tmp_path / "settings.yaml").write_text(lines)
    code, _, err = run("train", "--config", tmp_path / "settings.yaml", *HOW, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0 and "8 classes to train on" in err, err
    code, printed, _ = run("train", "--config", tmp_path / "settings.yaml", "--label-column", "x", "--show-config")
    assert "label_column: x" in printed and "vector_column: vec" in printed
    (tmp_path / "settings.yaml").write_text(lines.replace("label_column", "label_colum"))
    code, _, err = run("train", "--config", tmp_path / "settings.yaml", "--out", tmp_path / "other")
    assert code == 2 and "unknown option 'label_colum'; did you mean 'label_column'" in err


def test_a_missing_label(run: Run, table: Path) -> None:
    code, _, err = run("check", table, "--vector-column", "vec", "--split-column", "part")
    assert code == 2 and "t.parquet row 0: the label is empty (in 3 rows)" in err and "--on-missing-label skip" in err
    code, _, err = run("check", table, "--label-column", "fin")
    assert code == 2 and "--label-column 'fin': there is no such column" in err and "did you mean 'fine'" in err
