"""``divcon.compare`` and the command: what compares, what does not, and that the numbers are those of the runs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.errors import DataError
from divcon.evaluation.compare import read_scores

Command = Callable[..., tuple[int, str, str]]


def result(seed: int, queries: int = 40) -> dict[str, Any]:
    hits = np.random.default_rng(seed).integers(0, 2, queries).astype(float).tolist()
    return {
        "recall_at_1": float(np.mean(hits)),
        "map_at_r": 0.25,
        "nmi_std": 0.1,
        "num_queries": queries,
        "benchmark": "made",
        "protocol": "leave-one-out",
        "split_hash": "0123",
        "per_query": {
            "path": [f"a/{i}.png" for i in range(queries)],
            "label": [f"c{i // 4}" for i in range(queries)],
            "recall_at_1": hits,
        },
    }


def test_the_difference_is_of_the_same_drawn_classes() -> None:
    one, two = result(0), result(1)
    first, second = dc.compare({"one": one, "two": two})
    assert (first.difference, first.interval) == (None, None)
    assert second.difference == pytest.approx(two["recall_at_1"] - one["recall_at_1"])
    assert list(second.scores) == ["recall_at_1", "map_at_r"]
    # A slow bootstrap, a class at a time: the same interval but for chance.
    difference = np.array(two["per_query"]["recall_at_1"]) - one["per_query"]["recall_at_1"]
    by_class, rng = difference.reshape(10, 4), np.random.default_rng(5)
    means = [np.mean([by_class[rng.integers(10)].mean() for _ in range(10)]) for _ in range(4000)]
    assert second.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.03)
    same = dc.compare({"one": one, "again": copy.deepcopy(one)})[1]
    assert (same.difference, same.interval) == (0, (0, 0))


def test_baselines_are_beside_the_models_that_have_them(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = result(0), result(1)
    one["baselines"] = {
        "pooled_features": {"recall_at_1": 0.625, "map_at_r": 0.5},
        "pretrained_features": {"recall_at_1": 0.375, "map_at_r": 0.125},
    }
    first, second = dc.compare({"one": one, "two": two})
    assert first.baselines == one["baselines"]
    assert second.baselines == {}
    for name, scores in (("one", one), ("two", two)):
        (tmp_path / f"{name}.json").write_text(json.dumps(scores))
    monkeypatch.chdir(tmp_path)
    code, printed, err = command("compare", "one.json", "two.json")
    assert code == 0, err
    assert re.findall(r"^(p\w+ features, \S+) +(\S+ %) +(\S+)", printed, re.MULTILINE) == [
        ("pooled features, Recall@1", "62.5 %", "-"),
        ("pooled features, MAP@R", "50.0 %", "-"),
        ("pretrained features, Recall@1", "37.5 %", "-"),
        ("pretrained features, MAP@R", "12.5 %", "-"),
    ]


def test_a_query_that_is_left_out_is_left_out_of_the_interval() -> None:
    one, two = result(0), result(1)
    for each in (one, two):
        each["per_query"]["recall_at_1"][3] = None
    assert all(np.isfinite(dc.compare({"one": one, "two": two})[1].interval))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split_hash": "9"}, "one is of split hash 0123 and two of split hash 9"),
        ({"protocol": "query and gallery"}, "of protocol leave-one-out and two of protocol query and gallery"),
        ({"benchmark": "other"}, "one is of benchmark made and two of benchmark other"),
        ({"per_query": None}, "two: has no scores of every query"),
        ({"recall_at_1": None, "split_hash": None}, "two: holds no split_hash and no recall_at_1"),
    ],
)
def test_what_does_not_compare_is_refused(change: dict[str, Any], words: str) -> None:
    two = result(1) | change
    for key in [key for key, value in change.items() if value is None]:
        del two[key]
    with pytest.raises(DataError, match=words):
        dc.compare({"one": result(0), "two": two})


def test_other_queries_are_refused_and_other_folders_are_not() -> None:
    moved, other, fewer, labelled = (result(1) for _ in range(4))
    moved["per_query"]["path"] = ["/data/" + path for path in moved["per_query"]["path"]]
    assert len(dc.compare({"one": result(0), "two": moved})) == 2
    other["per_query"]["path"][7] = "a/seven.png"
    with pytest.raises(DataError, match=r"number 8 is a/7\.png in the one and a/seven\.png in the other"):
        dc.compare({"one": result(0), "two": other})
    labelled["per_query"]["label"][0] = "birds/c0"
    with pytest.raises(DataError, match="other labels: number 1 is c0 in the one and birds/c0 in the other"):
        dc.compare({"one": result(0), "two": labelled})
    fewer["per_query"]["path"].pop()
    with pytest.raises(DataError, match="one has 40 queries and two 39"):
        dc.compare({"one": result(0), "two": fewer})
    with pytest.raises(DataError, match="pass at least two"):
        dc.compare({"one": result(0)})


def test_files_that_are_no_scores(tmp_path: Path) -> None:
    for name, text, words in (("a", "{", "is not JSON"), ("b", "[1]", "holds no scores")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=words):
            read_scores(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(tmp_path / "c")


@pytest.mark.heavy
def test_from_run_folders_and_from_files(command: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 6)
    vectors = (rng.normal(size=(24, 12))[labels] + rng.normal(size=(len(labels), 12))).astype(np.float32)
    data = tmp_path / "v.parquet"
    pq.write_table(pa.table({"embedding": list(vectors), "label": [f"c{label:02}" for label in labels]}), data)
    runs = []
    for method in ("single", "slices"):
        runs.append(tmp_path / method)
        how = ("--method", method, "--dim", 8, "--epochs", 1, "--batch-size", 16, "--workers", 0, "--no-validation")
        assert command("train", data, *how, "--out", runs[-1])[0] == 0
    compared = tmp_path / "compared.json"
    code, printed, err = command("compare", *runs, "--workers", 0, "--json", compared)
    assert code == 0, err
    scores = [dc.evaluate(dc.EmbeddingModel.load(run), dc.read(data), clustering=False)["recall_at_1"] for run in runs]
    assert f"- {runs[0]}: recall_at_1 {100 * (scores[1] - scores[0]):+.1f} [" in printed
    assert "36 queries of 6 classes" in printed
    saved = json.loads(compared.read_text())
    assert [row["scores"]["recall_at_1"] for row in saved["compared"]] == pytest.approx(scores)

    assert command("evaluate", runs[1], "--no-clustering", "--workers", 0, "--json", tmp_path / "two.json")[0] == 0
    code, again, err = command("compare", runs[0], tmp_path / "two.json", "--workers", 0)
    assert code == 0, err
    assert again.splitlines()[-1].split(": ")[1] == printed.splitlines()[-1].split(": ")[1]
    code, _, err = command("compare", runs[0], runs[0])
    assert (code, "is given twice; give each run once" in err) == (2, True)
    code, _, err = command("compare", runs[0], "--workers", 0)
    assert (code, "pass at least two" in err) == (2, True)


@pytest.mark.heavy
def test_a_test_image_that_does_not_decode(
    command: Command, image_folder: Path, broken_png: Callable[[Path], None], tmp_path: Path
) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    how = ("--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--dim", 8, "--epochs", 1, "--batch-size", 8)
    for seed, run in enumerate(runs):
        settings = (*how, "--workers", 0, "--no-validation", "--seed", seed)
        code, _, err = command("train", image_folder, *settings, "--out", run)
        assert code == 0, err
    broken_png(image_folder / "class3" / "3.png")
    code, _, err = command("compare", *runs, "--workers", 0)
    assert code == 2
    assert "3.png" in err
    code, printed, err = command("compare", *runs, "--workers", 0, "--on-bad-image", "skip")
    assert code == 0, err
    assert "9 queries of 2 classes" in printed
