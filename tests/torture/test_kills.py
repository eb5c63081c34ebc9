"""SIGKILL at random moments, over and over: what is resumed ends as what nobody disturbed, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divcon.search import Index

SETTINGS = ["--epochs", 4, "--learners", 3, "--dim", 12, "--batch-size", 16, "--images-per-class", 4]
SETTINGS += ["--redivide-every", 1, "--finetune-epoch", 3, "--validation-fraction", 0.2]
KINDS = {
    "kept every batch": [*SETTINGS, "--memory-size", 64, "--divide-on", "memory", "--checkpoint-minutes", 0.00001],
    "kept now and then": [*SETTINGS, "--memory-size", 64, "--checkpoint-minutes", 0.0003],
    "kept between epochs": [*SETTINGS, "--loss", "ProxyAnchorLoss", "--checkpoint-minutes", 0],
}
first, *others = KINDS
STAGES = ("saving", "training", "dividing", "evaluating")


@pytest.fixture
def record_kills() -> Any:
    """Prints what was done when it was killed, to stand in the docs."""
    counts: Counter[str] = Counter()
    yield counts
    print("killed while", json.dumps(counts))


@pytest.mark.parametrize("kind", [first, *(pytest.param(kind, marks=pytest.mark.slow) for kind in others)])
def test_training(
    kind: str, zygote: Any, vectors: Path, tmp_path: Path, kills: int, run_of: Any, record_kills: Counter[str]
) -> None:
    settings = KINDS[kind]
    done = zygote.run("train", vectors, "--out", tmp_path / "whole", *settings)
    assert done.code == 0, done.text
    expected = run_of.of(tmp_path / "whole")
    rng = np.random.default_rng(len(kind))
    killed = runs = 0
    while killed < kills:
        runs += 1
        out = tmp_path / f"run{runs}"
        while True:
            stage = STAGES[killed % len(STAGES)]
            number = int(rng.integers(1, max(2, done.events[stage] // 2)))
            delay = float(rng.choice([0.0, rng.uniform(0, 0.01)]))
            ended = zygote.run(
                "train",
                vectors,
                "--out",
                out,
                *settings,
                "--resume",
                kill=(stage, number, delay) if killed < kills else None,
            )
            if ended.code != -9:
                break
            killed += 1
            record_kills[ended.last] += 1
        assert ended.code == 0, ended.text
        expected.check_same(run_of.of(out))
        shutil.rmtree(out)


def rows_of(store: Path) -> list[tuple[Any, ...]]:
    """What a store holds, by key; every id once."""
    found = Index.open(store).store
    ids = found.ids()
    assert len(set(ids.tolist())) == len(ids)
    at = dict(zip(*(part.tolist() for part in found.vectors(ids)), strict=True))
    rows = found.rows(ids).to_pylist()
    return sorted((row["key"], row["label"], row["content"], row["details"], tuple(at[row["id"]])) for row in rows)


def test_indexing(zygote: Any, vectors: Path, tmp_path: Path, kills: int, record_kills: Counter[str]) -> None:
    """A store is made, then brought up to date with what has come, gone and changed; both are killed."""
    done = zygote.run("train", vectors, "--out", tmp_path / "run", *SETTINGS)
    assert done.code == 0, done.text
    table = pq.read_table(vectors)
    labels = np.array(table["label"].to_pylist(), dtype=object)
    labels[100:150] = "another"
    changed = table.set_column(1, "label", pa.array(labels.tolist())).slice(60)
    pq.write_table(table.slice(0, 300), tmp_path / "data.parquet")
    pq.write_table(changed, tmp_path / "later.parquet")

    def bring_up_to_date(store: Path, limit: int) -> int:
        killed = 0
        for data in ("data.parquet", "later.parquet"):
            # One name, so that the rows of both are the same items.
            shutil.copy(tmp_path / data, tmp_path / "items.parquet")
            while True:
                kill = None if killed >= limit else ("indexing", int(rng.integers(1, 12)), float(rng.uniform(0, 0.02)))
                asked = ("index", tmp_path / "run", tmp_path / "items.parquet", "--store", store, "--delete-missing")
                ended = zygote.run(*asked, "--workers", 0, kill=kill)
                if ended.code != -9:
                    assert ended.code == 0, ended.text
                    break
                killed += 1
                record_kills[ended.last] += 1
        return killed

    rng = np.random.default_rng(0)
    bring_up_to_date(tmp_path / "whole", 0)
    expected = rows_of(tmp_path / "whole")
    assert len(expected) == 420
    killed = 0
    while killed < kills:
        killed += bring_up_to_date(tmp_path / "store", kills - killed)
        assert rows_of(tmp_path / "store") == expected
        shutil.rmtree(tmp_path / "store")
