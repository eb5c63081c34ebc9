"""The table of metrics, and metrics of the user's own: in arrays, on the terminal, in JSON, report and comparison."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import divcon as dc
from divcon.errors import ConfigError
from divcon.evaluation import METRICS, Metric, Ranking, metric, retrieval_metrics
from divcon.evaluation.metrics import Depth

Command = Callable[..., tuple[int, str, str]]

OWN = """
import numpy as np
from divcon.evaluation import Ranking, metric

@metric(depth=10)
def ndcg_at_10(ranking: Ranking) -> np.ndarray:
    gain = 1 / np.log2(np.arange(2, 12))
    best = np.cumsum(gain)[np.minimum(ranking.num_matches, 10) - 1]
    return ranking.hits @ gain / best

@metric(depth="all", higher_is_better=False, percent=False)
def first_hit(ranking: Ranking) -> np.ndarray:
    return ranking.hits.argmax(axis=1) + 1

def not_a_row(ranking: Ranking) -> np.ndarray:
    return ranking.num_hits
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with metrics."""
    name = f"own_metrics_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def points(count: int = 60, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return labels[:, None] + 2 * rng.standard_normal((count, 5)), labels


def rankings(embeddings: np.ndarray, labels: np.ndarray) -> list[tuple[list[int], list[bool]]]:
    """Of each query, the others nearest first and whether they are of its class, by loops."""
    rows = []
    for i, query in enumerate(embeddings):
        order = sorted((float(((query - other) ** 2).sum()), j) for j, other in enumerate(embeddings) if j != i)
        rows.append(([j for _, j in order], [bool(labels[j] == labels[i]) for _, j in order]))
    return rows


def test_own_metrics_are_those_of_a_loop(own: str) -> None:
    embeddings, labels = points()
    names = [f"{own}:ndcg_at_10", f"{own}:first_hit"]
    result = retrieval_metrics(embeddings, labels, metrics=names, per_query=True)
    ndcg, first = [], []
    for _, hits in rankings(embeddings, labels):
        gains = [1 / np.log2(rank + 2) for rank in range(10)]
        ndcg.append(sum(g for g, hit in zip(gains, hits[:10], strict=True) if hit) / sum(gains[: min(10, sum(hits))]))
        first.append(hits.index(True) + 1)
    np.testing.assert_allclose(result["per_query"]["ndcg_at_10"], ndcg)
    np.testing.assert_allclose(result["per_query"]["first_hit"], first)
    assert result["ndcg_at_10"] == pytest.approx(np.mean(ndcg))
    assert result["metrics"]["first_hit"] == {"depth": "all", "higher_is_better": False, "percent": False}
    # What comes with divcon is as it is without.
    assert {name: result[name] for name in retrieval_metrics(embeddings, labels)} == retrieval_metrics(
        embeddings, labels
    )


@pytest.mark.parametrize("depth", [3, "R", "all"])
def test_a_ranking_is_cut_at_the_depth(depth: Depth) -> None:
    embeddings, labels = points()
    names = np.array([f"class {label}" for label in labels])
    ranked = {tuple(items): (query, hits) for query, (items, hits) in enumerate(rankings(embeddings, labels))}
    first = {items[:3]: order for items, order in ranked.items()}
    assert len(first) == len(labels)
    checked = []

    @metric(depth=depth)
    def check(ranking: Ranking) -> np.ndarray:
        for row, items in enumerate(ranking.items.tolist()):
            query, hits = first[tuple(items[:3])]
            cut = int(ranking.num_matches[row]) if depth == "R" else len(items)
            assert ranking.query_labels[row] == names[query]
            assert ranking.hits[row, :cut].tolist() == [*hits, False][:cut]
            assert not ranking.hits[row, cut:].any()
            there = [item for item in items if item >= 0]
            assert ranking.labels[row, : len(there)].tolist() == names[there].tolist()
            checked.append(query)
        assert (ranking.num_hits == ranking.hits.sum(axis=1)).all()
        return ranking.num_hits

    retrieval_metrics(embeddings, names, metrics=[check])
    assert sorted(checked) == list(range(len(labels)))


def test_a_gallery_smaller_than_the_depth_is_padded(own: str) -> None:
    shapes = []

    @metric(depth=10)
    def shape(ranking: Ranking) -> np.ndarray:
        shapes.append(ranking.hits.shape)
        return ranking.hits[:, 9]

    result = retrieval_metrics([[0.0], [1.0], [2.0]], [0, 0, 0], metrics=[shape, f"{own}:ndcg_at_10"])
    assert shapes == [(3, 10)]
    assert (result["shape"], result["ndcg_at_10"]) == (0, pytest.approx(1))


def test_a_ranking_is_only_as_deep_as_is_asked_for() -> None:
    """One large class does not deepen the search of the others, and a depth of 20 does not sort the gallery."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(100), 4), np.full(400, 100)])
    deepest = {}

    @metric(depth=20)
    def deep(ranking: Ranking) -> np.ndarray:
        for label in ranking.query_labels:
            deepest[int(label)] = ranking._block.hits.shape[1]
        return ranking.num_hits

    retrieval_metrics(rng.standard_normal((800, 4)), labels, metrics=[deep])
    assert {deepest[label] for label in range(100)} == {20}
    assert deepest[100] == 399


def test_a_query_whose_value_is_nan_is_left_out_of_the_mean() -> None:
    embeddings, labels = points()

    @metric(depth=1)
    def of_even_classes(ranking: Ranking) -> np.ndarray:
        return np.where(ranking.query_labels % 2 == 0, ranking.num_hits, np.nan)

    @metric(depth=1)
    def of_none(ranking: Ranking) -> np.ndarray:
        return np.full(len(ranking.num_matches), np.nan)

    result = retrieval_metrics(embeddings, labels, metrics=[of_even_classes, of_none], per_query=True)
    hits = result["per_query"]["recall_at_1"][labels % 2 == 0]
    assert result["of_even_classes"] == hits.mean()
    assert np.isnan(result["per_query"]["of_even_classes"]).sum() == (labels % 2).sum()
    assert result["of_none"] is None


def test_built_in_metrics_have_names() -> None:
    embeddings, labels = points()
    result = retrieval_metrics(embeddings, labels, recall_at=(1,), metrics=["recall_at_3", "map"])
    full = retrieval_metrics(embeddings, labels, recall_at=(1, 3), map=True)
    assert {name: result[name] for name in ("recall_at_3", "map")} == {
        name: full[name] for name in ("recall_at_3", "map")
    }
    assert "metrics" not in result
    assert {row.depth for row in METRICS.values()} == {"R", "all"}


@pytest.mark.parametrize("seed", range(5))
def test_trapezoidal_average_precision_is_never_the_higher(seed: int) -> None:
    result = retrieval_metrics(*points(seed=seed), map=True, per_query=True)
    each = result["per_query"]
    assert not (each["map_trapezoidal"] > each["map"] + 1e-12).any()
    assert result["map_trapezoidal"] < result["map"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("recall_at_first", "unknown metric 'recall_at_first'; did you mean 'recall_at_1'"),
        ("recall_at_0", "unknown metric"),
        (
            "{own}:not_a_row",
            r"is not a divcon.evaluation.Metric; decorate the function with @divcon.evaluation.metric\(depth",
        ),
        ("{own}:ndcg_at_20", "did you mean 'ndcg_at_10'"),
        ("no_such_module:row", "no_such_module"),
        (lambda ranking: ranking.num_hits, "is not a divcon.evaluation.Metric"),
        (Metric("map", lambda ranking: ranking.num_hits, 3), "there is another metric 'map'"),
    ],
)
def test_what_is_no_metric_is_refused(chosen: object, message: str, own: str) -> None:
    with pytest.raises(ConfigError, match=message):
        retrieval_metrics(*points(), metrics=[chosen.format(own=own) if isinstance(chosen, str) else chosen])  # type: ignore[list-item]


def test_names_depths_and_values_are_checked(own: str) -> None:
    for name in ("num_queries", "path", "a_std", "a b", "", "1st"):
        with pytest.raises(ConfigError, match="results cannot have this name"):
            Metric(name, lambda ranking: ranking.num_hits, 1)
    for depth in (0, -1, "r", None):
        with pytest.raises(ConfigError, match="depth is a number of ranks"):
            Metric("own", lambda ranking: ranking.num_hits, depth)  # type: ignore[arg-type]
    two = [Metric("own", lambda ranking: ranking.num_hits, depth) for depth in (1, 2)]
    with pytest.raises(ConfigError, match="there is another metric 'own'"):
        retrieval_metrics(*points(), metrics=two)
    for wrong in (lambda r: r.hits, lambda r: 1.0, lambda r: np.array(["a"] * len(r.num_matches))):
        with pytest.raises(ConfigError, match="metric 'own': returned an array of shape"):
            retrieval_metrics(*points(), metrics=[Metric("own", wrong, 1)])  # type: ignore[arg-type]


@pytest.mark.heavy
def test_a_metric_of_ones_own_is_shown_wherever_scores_are(
    own: str, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    names = ["--metric", f"{own}:ndcg_at_10", "--metric", f"{own}:first_hit"]
    small = ["--backbone", "test_resnet", "--no-pretrained", "--size", "32", "--workers", "0", "--device", "cpu"]
    for seed in (0, 1):
        run = [
            *small,
            "--dim",
            "8",
            "--learners",
            "2",
            "--epochs",
            "1",
            "--seed",
            seed,
            "--out",
            tmp_path / f"run{seed}",
        ]
        code, _, err = command("train", image_folder, *run, "--batch-size", "8")
        assert code == 0, err
    plain = ["--workers", "0", "--device", "cpu"]
    files = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, file in enumerate(files):
        code, out, err = command("evaluate", tmp_path / f"run{seed}", *names, "--parts", "--json", file, *plain)
        assert code == 0, err
        assert re.search(r"^ndcg_at_10 +\d+\.\d %", out, re.MULTILINE)
        assert re.search(r"^first_hit \(lower is better\) +[\d.]+ *$", out, re.MULTILINE)
        assert re.search(r"^alone .* ndcg_at_10 +first_hit", out, re.MULTILINE)
    scores = json.loads(files[0].read_text())
    assert len(scores["per_query"]["ndcg_at_10"]) == scores["num_queries"]
    assert scores["first_hit"] == np.mean(scores["per_query"]["first_hit"])
    del sys.modules[own]
    (tmp_path / f"{own}.py").unlink()  # what shows a result needs no code of its metrics
    code, out, err = command("compare", *files)
    assert code == 0, err
    assert re.search(r"1.json - .*0.json: ndcg_at_10 [+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\] points", out)
    assert re.search(r"1.json - .*0.json: first_hit [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]$", out, re.MULTILINE)
    compared = dc.compare(files)[1]
    assert compared.differences["recall_at_1"].value == compared.difference
    low, high = compared.differences["first_hit"].interval
    assert low <= compared.differences["first_hit"].value <= high
    code, _, err = command("report", tmp_path / "run0", "--scores", files[0], *plain)
    assert code == 0, err
    page = (tmp_path / "run0" / "report.html").read_text()
    assert "ndcg_at_10" in page and "first_hit (lower is better)" in page
    (tmp_path / f"{own}.py").write_text(OWN)
    code, _, err = command("report", tmp_path / "run1", "--evaluate", *names, *plain)
    assert code == 0, err
    assert "ndcg_at_10" in (tmp_path / "run1" / "report.html").read_text()
    code, out, err = command("compare", tmp_path / "run0", tmp_path / "run1", *names, *plain)
    assert code == 0, err
    assert "ndcg_at_10" in out
    code, _, err = command("report", tmp_path / "run1", *names)
    assert code == 2 and "--metric is computed by --evaluate" in err
