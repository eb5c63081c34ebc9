"""The threshold for unknown queries: against loops, from a run, and in what evaluation reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.data.splitting import place_of
from divcon.errors import ConfigError, DataError, RunError
from divcon.evaluation.protocol import chosen_threshold
from divcon.evaluation.threshold import NearestItems, nearest_items, read_threshold
from divcon.runs.folder import own_benchmark

Command = Callable[..., tuple[int, str, str]]


def vectors(count: int, each: int, noise: float = 0.8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    place = np.repeat(np.arange(count), each)
    values = rng.normal(size=(count, 8))[place] + noise * rng.normal(size=(len(place), 8))
    return values / np.linalg.norm(values, axis=1, keepdims=True), np.array([f"class {i}" for i in place])


def searches(query, labels, gallery=None, names=None, excluded=lambda q, g: False) -> list[tuple[float, bool, bool]]:
    """By loops: similarity, whether correct, whether known, of each search."""
    alone = gallery is None
    gallery, names = (query, labels) if alone else (gallery, names)
    order = sorted({*labels, *names}, key=place_of)
    result = []
    for half in (order[::2], order[1::2]):
        for q in range(len(query)):
            allowed = [
                g for g in range(len(gallery)) if names[g] in half and not (alone and g == q) and not excluded(q, g)
            ]
            known = labels[q] in half
            if not allowed or (known and labels[q] not in [names[g] for g in allowed]):
                continue
            best = max(allowed, key=lambda g: query[q] @ gallery[g])
            result.append((float(query[q] @ gallery[best]), names[best] == labels[q], known))
    return result


def same(found: NearestItems, expected: list[tuple[float, bool, bool]]) -> None:
    rows = sorted(zip(found.similarity, found.is_correct, found.is_known, strict=True))
    assert len(rows) == len(expected)
    for (value, correct, known), (naive, is_correct, is_known) in zip(rows, sorted(expected), strict=True):
        assert value == pytest.approx(naive, abs=1e-6) and (correct, known) == (is_correct, is_known)


def scores_at(expected: list[tuple[float, bool, bool]], threshold: float) -> tuple[float, float, float]:
    accepted = [row for row in expected if row[0] >= threshold]
    hits, known = sum(row[1] for row in accepted), sum(row[2] for row in expected)
    return hits / len(accepted), hits / known, 2 * hits / (len(accepted) + known)


class TestSearches:
    def test_leave_one_out(self) -> None:
        for count, each in ((2, 3), (7, 4), (20, 2)):
            query, labels = vectors(count, each)
            same(nearest_items(query, labels), searches(query, labels))

    def test_a_gallery_with_classes_of_its_own_and_queries_without_a_match(self) -> None:
        query, labels = vectors(12, 3)
        gallery, names = vectors(12, 4, seed=1)
        names[-8:] = "only in the gallery"
        same(
            nearest_items(query, labels, gallery_embeddings=gallery, gallery_labels=names),
            searches(query, labels, gallery, names),
        )

    def test_cameras_and_ids(self) -> None:
        query, labels = vectors(10, 6)
        cameras = np.arange(60) % 3
        found = nearest_items(query, labels, cameras=cameras)
        same(found, searches(query, labels, excluded=lambda q, g: labels[q] == labels[g] and cameras[q] == cameras[g]))
        ids = np.arange(60)
        again = nearest_items(
            query[:20], labels[:20], gallery_embeddings=query, gallery_labels=labels, ids=ids[:20], gallery_ids=ids
        )
        same(again, searches(query[:20], labels[:20], query, labels, excluded=lambda q, g: q == g))

    def test_too_few_classes(self) -> None:
        query, labels = vectors(1, 5)
        with pytest.raises(DataError, match="a threshold needs at least two classes"):
            nearest_items(query, labels)
        with pytest.raises(DataError, match="a threshold needs at least two classes"):
            nearest_items(*vectors(6, 1))


class TestChoice:
    @pytest.mark.parametrize("noise", [0.1, 0.8, 2.0])
    def test_no_other_threshold_has_a_higher_f1(self, noise: float) -> None:
        query, labels = vectors(15, 5, noise)
        found, expected = nearest_items(query, labels), searches(query, labels)
        chosen = found.at(found.best())
        precision, recall, f1 = scores_at(expected, chosen["min_score"])
        assert (chosen["precision"], chosen["recall"], chosen["f1"]) == pytest.approx((precision, recall, f1))
        others = [scores_at(expected, value - 1e-7)[2] for value, _, _ in expected]
        assert f1 == pytest.approx(max(others))
        unknown = [value for value, _, known in expected if not known]
        assert chosen["num_known"] == chosen["num_unknown"] == len(unknown) == 75
        assert chosen["unknown_rejected"] == pytest.approx(np.mean([value < chosen["min_score"] for value in unknown]))

    def test_where_classes_are_apart_everything_is_right(self) -> None:
        found = nearest_items(np.repeat(np.eye(8), 3, axis=0), np.repeat(list("abcdefgh"), 3))
        assert found.best() == pytest.approx(0.5)  # half way between 1, of known queries, and 0, of unknown ones
        assert found.at(0.5) == {
            "min_score": 0.5,
            "precision": 1.0,
            "recall": 1.0,
            "f1": 1.0,
            "unknown_rejected": 1.0,
            "num_known": 24,
            "num_unknown": 24,
        }

    def test_equal_similarities_are_accepted_together(self) -> None:
        similarity = np.array([0.9, 0.9, 0.9, 0.5])
        correct = np.array([True, False, False, True])
        found = NearestItems(similarity, correct, np.array([True, False, False, True]))
        assert found.best() < 0.5 and found.at(found.best())["f1"] == pytest.approx(4 / 6)

    def test_a_threshold_that_nothing_reaches(self) -> None:
        scores = nearest_items(*vectors(6, 3)).at(1.5)
        assert scores["precision"] is None and scores["recall"] == scores["f1"] == 0
        assert scores["unknown_rejected"] == 1.0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    values, labels = vectors(50, 6)
    table = pa.table({"embedding": list(values.astype(np.float32)), "label": labels.tolist()})
    pq.write_table(table, tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def test_a_run_chooses_it_on_validation_and_evaluate_reports_it_on_test(
    command: Command, data: Path, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "scores.json"
    how = ("--dim", 8, "--epochs", 2, "--batch-size", 16, "--workers", 0, "--validation-fraction", 0.3)
    code, _, err = command("train", data, *how, "--out", run)
    assert code == 0 and "threshold 0." in err, err
    record = json.loads((run / "model" / "threshold.json").read_text())
    assert read_threshold(run) == read_threshold(run / "model") == record and record["chosen_on"] == "validation"
    assert read_threshold(run / "last") is not None
    model, own = dc.EmbeddingModel.load(run), own_benchmark(run, whole=True)
    names = [own.validation.label_name(i) for i in range(len(own.validation))]
    found = nearest_items(model.encode(own.validation), names)
    assert record == {**record, **found.at(found.best())}
    assert record["min_score"] == pytest.approx(found.best())

    code, printed, err = command("evaluate", run, "--no-clustering", "--workers", 0, "--json", file)
    assert code == 0, err
    scores, test = json.loads(file.read_text())["threshold"], dc.read(data)
    names = [test.query.label_name(i) for i in range(len(test.query))]
    precision, recall, _ = scores_at(searches(model.encode(test.query), np.array(names)), record["min_score"])
    assert scores["min_score"] == record["min_score"]
    assert (scores["precision"], scores["recall"]) == pytest.approx((precision, recall))
    words = f"precision {100 * precision:.1f} %, recall {100 * recall:.1f} %"
    assert f"threshold {record['min_score']:.3f}: a nearest neighbour below it is unknown; {words}" in printed
    # From Python: of the folder, or as it is passed; of a model alone there is none.
    assert dc.evaluate(str(run), data, clustering=False)["threshold"] == scores
    assert dc.evaluate(model, data, clustering=False, threshold=record["min_score"])["threshold"] == scores
    assert "threshold" not in dc.evaluate(model, data, clustering=False)

    # Chosen again where it is missing; another kept model has its own.
    (run / "model" / "threshold.json").unlink()
    assert command("train", "--out", run, "--resume")[0] == 0
    assert read_threshold(run) == record
    (run / "model" / "threshold.json").write_text("[")
    with pytest.raises(RunError, match=r"threshold\.json: is damaged"):
        read_threshold(run)


def test_evaluate_chooses_the_same_from_the_embeddings_that_it_scores(data: Path) -> None:
    benchmark = dc.read(data)
    model = dc.EmbeddingModel("none", 4, 1, method="single", vector_dim=benchmark.query.vectors.shape[1])  # type: ignore[union-attr]
    chosen = chosen_threshold(model, benchmark)
    assert chosen is not None
    assert dc.evaluate(model, benchmark, clustering=False, threshold="best")["threshold"] == chosen
    lower = dc.evaluate(model, benchmark, clustering=False, threshold=chosen["min_score"] - 0.3)["threshold"]
    assert lower["f1"] < chosen["f1"]
    with pytest.raises(ConfigError, match="must be a similarity"):
        dc.evaluate(model, benchmark, threshold="high")  # type: ignore[arg-type]


def test_without_validation_there_is_none(command: Command, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = ("--dim", 8, "--epochs", 1, "--batch-size", 16, "--workers", 0, "--no-validation")
    assert command("train", data, *how, "--out", run)[0] == 0
    assert read_threshold(run) is None and read_threshold(tmp_path) is None
    code, printed, _ = command("evaluate", run, "--no-clustering", "--workers", 0)
    assert code == 0 and "threshold" not in printed


def test_a_longer_run_has_the_threshold_of_its_new_model(data: Path, tmp_path: Path) -> None:
    train = dc.TrainConfig(epochs=1, batch_size=16, workers=0, head_lr=0.1)
    config = dc.RunConfig(dc.ModelConfig(embedding_dim=8, embed="head"), train)
    dc.run(data, tmp_path / "run", config, report=False)
    first = read_threshold(tmp_path / "run")
    longer = dc.RunConfig(config.model, dc.TrainConfig(epochs=6, batch_size=16, workers=0, head_lr=0.1))
    model = dc.run(data, tmp_path / "run", longer, resume=True, report=False)
    own = own_benchmark(tmp_path / "run", whole=True)
    names = [own.validation.label_name(i) for i in range(len(own.validation))]
    now = read_threshold(tmp_path / "run")
    assert now != first
    assert now["min_score"] == pytest.approx(nearest_items(model.encode(own.validation), names).best(), abs=1e-6)


def test_a_model_for_use_has_that_of_the_run_it_is_like(data: Path, tmp_path: Path) -> None:
    config = dc.RunConfig(dc.ModelConfig(embedding_dim=8), dc.TrainConfig(epochs=1, batch_size=16, workers=0))
    dc.run(data, tmp_path / "run", config, report=False)
    dc.run(data, tmp_path / "all", like=tmp_path / "run", report=False)
    of_run = {"of_run": str(tmp_path / "run")}
    assert read_threshold(tmp_path / "all") == read_threshold(tmp_path / "run") | of_run
