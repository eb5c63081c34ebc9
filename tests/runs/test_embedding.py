"""What a run's model embeds by in the end: chosen on validation classes, once, whatever kills or stops the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, Stopped
from divcon.models import embedding_model, with_embedding
from divcon.runs import embedding, run
from divcon.runs.display import NullDisplay
from divcon.runs.embedding import choose_embedding, in_words, read_record
from divcon.runs.folder import RunFolder, kept_epoch

pytestmark = pytest.mark.heavy

DIM = 16
TRAIN = dc.TrainConfig(epochs=2, batch_size=16, images_per_class=2, workers=0)
DATA = dc.DataConfig(validation_fraction=0.3)
Command = Callable[..., tuple[int, str, str]]


def config(data: dc.DataConfig = DATA, **model: Any) -> dc.RunConfig:
    return dc.RunConfig(
        dc.ModelConfig(**{"num_learners": 2, "embedding_dim": 8, "method": "slices", **model}), TRAIN, data
    )


def labelled(classes: int, noise: float = 1.0, seed: int = 0) -> LabeledSet:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), 8)
    vectors = rng.normal(size=(classes, DIM))[labels] + noise * rng.normal(size=(len(labels), DIM))
    paths, rows = pa.array([f"v{i}" for i in range(len(labels))]), np.arange(len(labels))
    names = tuple(f"{seed} {c}" for c in range(classes))
    return LabeledSet(labels, names, paths, rows, f"set {seed}", vectors=vectors.astype(np.float32))


@pytest.fixture(scope="module")
def data() -> Benchmark:
    test = labelled(6, seed=1)
    return Benchmark("own", labelled(20), test, test)


def model_of(embedding_dim: int = 8) -> dc.EmbeddingModel:
    return dc.EmbeddingModel("none", embedding_dim, 2, method="slices", vector_dim=DIM)


def test_the_best_by_map_at_r_is_chosen_and_the_line_says_so() -> None:
    model, train, validation = model_of(), labelled(20), labelled(9, seed=2)
    changed, record = choose_embedding(model, train, validation)
    scores = record["scores"]
    assert list(scores) == ["head", "features", "pca"]
    for name in scores:
        candidate = with_embedding(model, name, model.features(train))
        expected = dc.evaluate(candidate, validation, clustering=False)
        assert scores[name]["map_at_r"] == pytest.approx(expected["map_at_r"])
        assert scores[name]["recall_at_1"] == pytest.approx(expected["recall_at_1"])
        assert scores[name]["dims"] == candidate.embedding_dim
    assert record["chosen"] == max(scores, key=lambda name: scores[name]["map_at_r"]) == changed.head.embedding
    assert (record["num_queries"], record["embed"], record["left_out"]) == (72, "auto", None)
    line = in_words(record)
    best = (
        f"embedding: pooled features, D 16 (MAP@R {100 * scores['features']['map_at_r']:.1f} on 72 validation queries"
    )
    assert line.startswith(best)
    assert f"; head, D 8: {100 * scores['head']['map_at_r']:.1f};" in line
    assert line.endswith("; `embed=head` keeps the head's")
    again, same = choose_embedding(changed, train, validation)
    assert (same, again.config) == (record, changed.config)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((0.5, 0.5, 0.5), "head"),
        ((0.5, 0.5009, 0.5009), "head"),
        ((0.5, 0.502, 0.5), "features"),
        ((0.5, 0.51, 0.5109), "features"),
        ((0.5, 0.51, 0.52), "pca"),
        ((0.6, 0.51, 0.52), "head"),
    ],
)
def test_the_head_wins_ties(scores: tuple[float, ...], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter(scores)

    def scored(*arguments: Any, **more: Any) -> dict[str, Any]:
        return {"map_at_r": next(values), "recall_at_1": 0.5, "num_queries": 72}

    monkeypatch.setattr(embedding, "scores_among", scored)
    model, record = choose_embedding(model_of(), labelled(20), labelled(9, seed=2))
    assert record["chosen"] == model.head.embedding == chosen


def test_without_validation_it_is_the_head_and_a_pca_that_cannot_be_is_left_out() -> None:
    model, train = model_of(), labelled(20)
    for validation in (None, labelled(9, seed=2).subset(np.arange(0, 72, 8))):  # the latter: no class has two
        changed, record = choose_embedding(model, train, validation)
        assert (record["chosen"], changed.config) == ("head", model.config)
        assert in_words(record) == "embedding: head, D 8 (no validation classes to choose by)"
    _, record = choose_embedding(model_of(20), train, labelled(9, seed=2))
    assert list(record["scores"]) == ["head", "features"]
    assert "at most 16 dimensions" in record["left_out"]
    with pytest.raises(ConfigError, match="`embed=pca` with `embedding_dim` 20"):
        choose_embedding(model_of(20), train, None, "pca")


class Lines(NullDisplay):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def embedding(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.heavy
def test_a_run_chooses_once_and_its_report_shows_it(data: Benchmark, tmp_path: Path) -> None:
    display, out = Lines(), tmp_path / "run"
    model = dc.run(data, out, config(), display=display)
    record = read_record(out / "model")
    assert record is not None
    assert record["chosen"] == "features"
    assert display.lines == [in_words(record)]
    assert (model.head.embedding, model.embedding_dim) == ("features", DIM)
    loaded = dc.EmbeddingModel.load(out)
    np.testing.assert_array_equal(loaded.encode(data.query.vectors), model.encode(data.query.vectors))
    assert "Embeddings on validation classes" in (out / "report.html").read_text()
    # The head is that of the kept epoch, and its scores are those of that epoch.
    head = with_embedding(loaded, "head")
    lines = RunFolder(out).lines()
    line = lines[kept_epoch(lines) or 0]
    assert record["scores"]["head"]["map_at_r"] == pytest.approx(line["validation"]["map_at_r"])
    before = (out / "model" / "model.safetensors").read_bytes()
    again = dc.run(data, out, config(), resume=True, display=display)
    assert len(display.lines) == 1
    assert (out / "model" / "model.safetensors").read_bytes() == before
    assert again.config == model.config
    # Training is the same whatever the model embeds by in the end.
    straight = dc.run(data, tmp_path / "head", config(embed="head"), report=False)
    assert read_record(tmp_path / "head" / "model") is None
    np.testing.assert_array_equal(head.encode(data.query.vectors), straight.encode(data.query.vectors))


@pytest.mark.heavy
def test_a_run_that_was_killed_before_it_chose_chooses_when_it_is_resumed(
    data: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = dc.run(data, tmp_path / "straight", config(), report=False)

    def killed(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    def resumed(out: Path) -> None:
        model = dc.run(data, out, config(), resume=True, report=False)
        np.testing.assert_array_equal(model.encode(data.query.vectors), straight.encode(data.query.vectors))
        assert read_record(out / "model") == read_record(tmp_path / "straight" / "model")
        assert sorted(path.name for path in out.iterdir() if "model" in path.name) == ["model"]

    # Before the choice, before and within the writing of the new model, and between the moves of its files.
    for number, (module, name) in enumerate(
        [
            (run, "choose_embedding"),
            (run, "save_with_record"),
            (embedding_model, "write_model"),
            (embedding, "finish_replacing"),
        ]
    ):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(module, name, killed)
            dc.run(data, tmp_path / str(number), config(), report=False)
        resumed(tmp_path / str(number))
    replaced = Path.replace
    for count in range(3):
        moved: list[Path] = []

        def replace_until_killed(self: Path, target: Path, moved: list[Path] = moved, count: int = count) -> Path:
            if self.parent.name == "model.new" and not self.name.endswith(".new"):
                if len(moved) == count:
                    raise KeyboardInterrupt
                if Path(target).parent.name == "model":
                    moved.append(self)
            return replaced(self, target)

        out = tmp_path / f"moves {count}"
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Path, "replace", replace_until_killed)
            dc.run(data, out, config(), report=False)
        assert (out / "model.new").exists()
        resumed(out)


@pytest.mark.heavy
def test_the_epochs_are_scored_by_the_features_where_the_model_is_to_embed_by_them(
    data: Benchmark, tmp_path: Path
) -> None:
    seen: list[int] = []

    def observe(model: dc.EmbeddingModel, report: Any) -> dict[str, Any]:
        seen.append(model.embedding_dim)
        return {}

    by_features = dc.run(data, tmp_path / "features", config(embed="features"), report=False, observe=observe)
    assert seen == [DIM, DIM]
    assert (by_features.head.embedding, read_record(tmp_path / "features" / "model")["scores"]) == ("features", {})  # type: ignore[index]
    line = json.loads((tmp_path / "features" / "metrics.jsonl").read_text().splitlines()[0])
    held = data.with_validation(0.3, 0).validation
    assert held is not None
    expected = dc.evaluate(by_features, held, clustering=False)  # without a backbone all epochs have the same features
    assert line["validation"]["map_at_r"] == pytest.approx(expected["map_at_r"])
    head = dc.run(data, tmp_path / "head", config(embed="head"), report=False)
    trained = json.loads((tmp_path / "head" / "metrics.jsonl").read_text().splitlines()[0])
    assert trained["validation"]["map_at_r"] != line["validation"]["map_at_r"]
    assert trained["loss"] == line["loss"]
    assert with_embedding(by_features, "head").config == head.config


@pytest.mark.heavy
def test_a_pca_that_is_asked_for_is_checked_before_training_and_old_runs_keep_their_head(
    data: Benchmark, tmp_path: Path
) -> None:
    for settings in ({"embed": "pca"}, {"head_init": "pca"}):
        with pytest.raises(ConfigError, match=r"with `embedding_dim` 20: a PCA has at most 16 dimensions"):
            dc.run(data, tmp_path / "no", config(**settings, embedding_dim=20))
        assert not (tmp_path / "no" / "config.json").exists()
    assert dc.run(data, tmp_path / "pca", config(embed="pca"), report=False).head.embedding == "pca"
    old = config(embed="head", head_init="random")
    dc.run(data, tmp_path / "old", old, report=False)
    record = json.loads((tmp_path / "old" / "config.json").read_text())
    del record["model"]["embed"], record["model"]["head_init"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(record))
    model = dc.run(data, tmp_path / "old", old, resume=True, report=False)
    assert model.head.embedding == "head"


@pytest.mark.heavy
def test_a_head_that_starts_as_a_pca_trains_and_resumes(data: Benchmark, tmp_path: Path) -> None:
    settings = config(head_init="pca", embed="head")
    straight = dc.run(data, tmp_path / "straight", settings, report=False)
    random = dc.run(data, tmp_path / "random", config(embed="head", head_init="random"), report=False)
    assert not np.allclose(straight.encode(data.query.vectors), random.encode(data.query.vectors), atol=1e-2)

    class Stop(NullDisplay):
        def progress(self, progress: Any) -> None:
            if progress.stage == "train":
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Stopped)):
        dc.run(data, tmp_path / "stopped", settings, report=False, display=Stop())
    resumed = dc.run(data, tmp_path / "stopped", settings, resume=True, report=False)
    np.testing.assert_array_equal(resumed.encode(data.query.vectors), straight.encode(data.query.vectors))
    # Several processes: the same embeddings but for rounding.
    two = replace(settings, train=replace(TRAIN, devices=2, learners_per_step=2, device="cpu"))
    one = replace(settings, train=replace(TRAIN, learners_per_step=2, device="cpu"))
    several = dc.run(data, tmp_path / "two", two, report=False)
    alone = dc.run(data, tmp_path / "one", one, report=False)
    np.testing.assert_allclose(several.encode(data.query.vectors), alone.encode(data.query.vectors), atol=1e-3)


@pytest.mark.heavy
def test_several_processes_choose_what_one_does(data: Benchmark, tmp_path: Path) -> None:
    train = replace(TRAIN, learners_per_step=2, device="cpu")
    for name, devices in (("one", 1), ("two", 2)):
        dc.run(data, tmp_path / name, replace(config(), train=replace(train, devices=devices)), report=False)
    one, two = (read_record(tmp_path / name / "model") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one["chosen"] == two["chosen"]
    assert one["scores"]["pca"]["map_at_r"] == pytest.approx(two["scores"]["pca"]["map_at_r"], abs=1e-3)


@pytest.mark.heavy
def test_init_starts_from_the_head_that_was_trained(data: Benchmark, tmp_path: Path) -> None:
    dc.run(data, tmp_path / "first", config(embed="features"), report=False)
    settings = run.model_settings(tmp_path / "first")
    assert (settings["method"], settings["embedding_dim"], settings["num_learners"]) == ("slices", 8, 2)
    fresh = model_of()
    assert fresh.warm_start(dc.EmbeddingModel.load(tmp_path / "first"))
    trained = with_embedding(dc.EmbeddingModel.load(tmp_path / "first"), "head")
    np.testing.assert_array_equal(fresh.encode(data.query.vectors), trained.encode(data.query.vectors))


@pytest.mark.heavy
def test_from_the_command_line(command: Command, tmp_path: Path) -> None:
    images = labelled(40)
    table = {"embedding": list(images.vectors), "label": [f"c{label:02}" for label in images.labels]}  # type: ignore[arg-type]
    pq.write_table(pa.table(table), tmp_path / "v.parquet")
    run_, how = tmp_path / "run", ("--workers", 0)
    code, _, err = command(
        "train", tmp_path / "v.parquet", "--dim", 8, "--epochs", 1, "--batch-size", 16, *how,
        "--validation-fraction", 0.3, "--head-init", "pca", "--out", run_,
    )  # fmt: skip
    assert code == 0, err
    assert "embedding: pooled features, D 16 (MAP@R" in err
    assert "--embed head keeps the head's" in err
    assert command("evaluate", run_, "--parts", *how)[0] == 0
    code, out, err = command("encode", run_, tmp_path / "v.parquet", "--out", tmp_path / "e.parquet", *how)
    assert (code, "embeddings of 16 dimensions" in out) == (0, True), err
    for by, dims, expected in (("head", None, 8), ("whitening", 5, 5), ("features", None, 16), ("pca", 4, 4)):
        small = tmp_path / by
        more = () if dims is None else ("--dims", dims)
        code, out, err = command("prune", run_, "--by", by, *more, "--out", small, *how)
        assert code == 0, err
        assert f"model of {expected} dimensions in {small}" in out
        assert dc.EmbeddingModel.load(small).embedding_dim == expected
        assert json.loads((small / "run.json").read_text())["pruned"]["by"] == by
    for options, message in (
        (("--by", "subspaces", "--dims", 4), "the model embeds by the pooled features"),
        (("--by", "head", "--dims", 4), "--dims 4: --by head has its own number"),
        (("--by", "pca"), "--dims is missing: --by pca needs"),
        (("--by", "whitening", "--dims", 40), "a PCA has at most 16 dimensions"),
    ):
        code, _, err = command("prune", run_, *options, "--out", tmp_path / "no", *how)
        assert code != 0
        assert message in err
