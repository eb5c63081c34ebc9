"""SIGKILL at random moments, over and over: what is resumed ends as what nobody disturbed, bit for bit."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divcon.search import Index

pytestmark = pytest.mark.heavy

SETTINGS = ["--epochs", 4, "--learners", 3, "--dim", 12, "--batch-size", 16, "--images-per-class", 4]
SETTINGS += ["--redivide-every", 1, "--finetune-epoch", 3, "--validation-fraction", 0.2]
KINDS = {
    "kept every batch": [*SETTINGS, "--memory-size", 64, "--divide-on", "memory", "--checkpoint-minutes", 0.00001],
    "kept now and then": [*SETTINGS, "--memory-size", 64, "--checkpoint-minutes", 0.0003],
    "kept between epochs": [*SETTINGS, "--loss", "ProxyAnchorLoss", "--checkpoint-minutes", 0],
}
first, *others = KINDS
STAGES = ("saving", "training", "dividing", "evaluating")


@pytest.mark.parametrize("kind", [first, *(pytest.param(kind, marks=pytest.mark.slow) for kind in others)])
def test_training(kind: str, zygote: Any, vectors: Path, tmp_path: Path, kills: int, run_of: Any) -> None:
    settings = KINDS[kind]
    done = zygote.run("train", vectors, "--out", tmp_path / "whole", *settings)
    assert done.code == 0, done.text
    expected = run_of.of(tmp_path / "whole")
    most = {stage: done.events[stage] // 2 for stage in STAGES}
    counts, out = Counter[str](), tmp_path / "run"
    for seed in itertools.count():
        arguments = ("train", vectors, "--out", out, *settings, "--resume")
        counts += zygote.killed(arguments, kills - counts.total(), STAGES, most, seed)
        expected.check_same(run_of.of(out))
        shutil.rmtree(out)
        if counts.total() >= kills:
            break
    print(f"killed while {dict(counts)}")


def rows_of(store: Path) -> list[tuple[Any, ...]]:
    """What a store holds, by key; every id once."""
    opened = Index.open(store).store
    ids = opened.ids()
    assert len(set(ids.tolist())) == len(ids)
    at = dict(zip(*(part.tolist() for part in opened.embeddings(ids)), strict=True))
    rows = opened.rows(ids).to_pylist()
    return sorted((row["key"], row["label"], row["content"], row["details"], tuple(at[row["id"]])) for row in rows)


def test_indexing(zygote: Any, vectors: Path, tmp_path: Path, kills: int) -> None:
    """A store is made, then brought up to date with what has come, gone and changed; both are killed."""
    done = zygote.run("train", vectors, "--out", tmp_path / "run", *SETTINGS)
    assert done.code == 0, done.text
    table = pq.read_table(vectors)
    labels = np.array(table["label"].to_pylist(), dtype=object)
    labels[100:150] = "another"
    changed = table.set_column(1, "label", pa.array(labels.tolist())).slice(60)
    pq.write_table(table.slice(0, 300), tmp_path / "data.parquet")
    pq.write_table(changed, tmp_path / "later.parquet")

    def bring_up_to_date(store: Path, limit: int, seed: int) -> Counter[str]:
        counts = Counter[str]()
        for data in ("data.parquet", "later.parquet"):
            # One name, so that the rows of both are the same items.
            shutil.copy(tmp_path / data, tmp_path / "items.parquet")
            arguments = ["index", tmp_path / "run", tmp_path / "items.parquet", "--store", store, "--delete-missing"]
            arguments += ["--workers", 0]
            # Half of what is left for the store that is made, the rest for the one that is brought up to date.
            some = (limit + 1) // 2 if data == "data.parquet" else limit - counts.total()
            counts += zygote.killed(arguments, min(some, 10), ("indexing",), {"indexing": 12}, seed)
        return counts

    bring_up_to_date(tmp_path / "whole", 0, 0)
    expected = rows_of(tmp_path / "whole")
    assert len(expected) == 420
    counts = Counter[str]()
    for seed in itertools.count():
        counts += bring_up_to_date(tmp_path / "store", kills - counts.total(), seed)
        assert rows_of(tmp_path / "store") == expected
        shutil.rmtree(tmp_path / "store")
        if counts.total() >= kills:
            break
    print(f"killed while {dict(counts)}")


def test_packing(zygote: Any, photos: Path, tmp_path: Path, kills: int) -> None:
    def arguments(out: str) -> tuple[Any, ...]:
        return ("pack", photos, "--out", tmp_path / out, "--short-side", 24, "--workers", 0)

    done = zygote.run(*arguments("whole"))
    assert done.code == 0, done.text
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(expected) > 4
    counts = Counter[str]()
    for seed in itertools.count():
        some = min(10, kills - counts.total())
        counts += zygote.killed(arguments("packed"), some, ("packing", "saving"), {"packing": 40, "saving": 8}, seed)
        assert {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()} == expected
        shutil.rmtree(tmp_path / "packed")
        if counts.total() >= kills:
            break
    print(f"killed while {dict(counts)}")
